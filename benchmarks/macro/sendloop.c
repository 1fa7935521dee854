/* The kernel's price of a fan-out: a plain loop over send(2), nothing else.
 *
 * Usage: sendloop
 *
 * Listens on a free loopback port, answers each upgrade request with the constant 101 of
 * RFC 6455's sample key, and keeps the sockets. Commands on stdin, JSON lines on stdout:
 *
 *   fanout messages=K bytes=S   send K text frames of S bytes to every socket, in one piece
 *   count                       sockets held
 *   quit
 *
 * "cpu_ns" is user plus system time of the loop alone, from getrusage. The frames are real, so
 * that the receivers (the load generator) do exactly the work they do for a WebSocket server. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "common.h"

#define MAX_EVENTS 512
#define STDIN_TAG UINT32_MAX
#define LISTEN_TAG (UINT32_MAX - 1)
/* Largest request head looked at, in bytes; our own generator sends less than half of it. */
#define HEAD_MAX 4096

static const char ANSWER[] = "HTTP/1.1 101 Switching Protocols\r\n"
                             "Upgrade: websocket\r\n"
                             "Connection: Upgrade\r\n"
                             "Sec-WebSocket-Accept: " HANDSHAKE_ACCEPT "\r\n\r\n";

static int epoll;
static int *sockets; /* upgraded, in the order of their arrival: what the loop runs over */
static size_t held;
static size_t capacity;

static uint64_t cpu_ns(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    uint64_t seconds = (uint64_t)usage.ru_utime.tv_sec + (uint64_t)usage.ru_stime.tv_sec;
    uint64_t micros = (uint64_t)usage.ru_utime.tv_usec + (uint64_t)usage.ru_stime.tv_usec;
    return seconds * 1000000000u + micros * 1000u;
}

static void watch(int fd, uint32_t tag) {
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = tag};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        die("epoll_ctl");
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN || errno == ECONNABORTED)
                return;
            die("accept");
        }
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        watch(fd, (uint32_t)fd);
    }
}

static void forget(int fd) {
    for (size_t i = 0; i < held; i++)
        if (sockets[i] == fd) {
            memmove(sockets + i, sockets + i + 1, (held - i - 1) * sizeof *sockets);
            held--;
            break;
        }
    close(fd);
}

/* A request head comes whole: the generator writes it with one send. Later input is a Close or
 * the end, and either ends the socket. */
static void on_input(int fd, const bool *upgraded) {
    char head[HEAD_MAX];
    ssize_t got = recv(fd, head, sizeof head, 0);
    if (got <= 0 || upgraded[fd]) {
        forget(fd);
        return;
    }
    if (got < 4 || memcmp(head + got - 4, "\r\n\r\n", 4) != 0 || held == capacity ||
        send(fd, ANSWER, sizeof ANSWER - 1, MSG_NOSIGNAL) != (ssize_t)(sizeof ANSWER - 1)) {
        close(fd);
        return;
    }
    sockets[held++] = fd;
}

static void fan_out(const char *line) {
    size_t messages = (size_t)arg_number(line, "messages", 1);
    size_t bytes = (size_t)arg_number(line, "bytes", 100);
    if (messages == 0 || bytes > 65535) {
        printf("{\"event\":\"error\",\"reason\":\"messages or bytes out of range\"}\n");
        return;
    }
    size_t header = bytes < 126 ? 2 : 4;
    size_t total = messages * (header + bytes);
    unsigned char *piece = malloc(total);
    if (piece == NULL)
        die("malloc");
    for (size_t i = 0; i < messages; i++) {
        unsigned char *frame = piece + i * (header + bytes);
        frame[0] = 0x81;
        frame[1] = header == 2 ? (unsigned char)bytes : 126;
        if (header == 4) {
            frame[2] = (unsigned char)(bytes >> 8);
            frame[3] = (unsigned char)bytes;
        }
        memset(frame + header, 'x', bytes);
    }
    size_t refused = 0;
    uint64_t start = now_ns(), cpu = cpu_ns();
    for (size_t i = 0; i < held; i++)
        if (send(sockets[i], piece, total, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)total)
            refused++;
    cpu = cpu_ns() - cpu;
    printf("{\"event\":\"done\",\"deliveries\":%zu,\"sends\":%zu,\"refused\":%zu,"
           "\"cpu_ns\":%llu,\"wall_ns\":%llu}\n",
           held * messages, held, refused, (unsigned long long)cpu,
           (unsigned long long)(now_ns() - start));
    free(piece);
}

int main(void) {
    unsigned limit = raise_file_limit();
    capacity = limit;
    sockets = calloc(limit, sizeof *sockets);
    bool *upgraded = calloc(limit, sizeof *upgraded);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (sockets == NULL || upgraded == NULL || epoll < 0 || listener < 0)
        die("start");
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, size) < 0 || listen(listener, 4096) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) < 0)
        die("listen");
    watch(listener, LISTEN_TAG);
    watch(STDIN_FILENO, STDIN_TAG);
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("{\"event\":\"ready\",\"port\":%d,\"versions\":{}}\n", ntohs(address.sin_port));
    for (;;) {
        struct epoll_event events[MAX_EVENTS];
        int n = epoll_wait(epoll, events, MAX_EVENTS, -1);
        for (int i = 0; i < n; i++) {
            uint32_t tag = events[i].data.u32;
            char line[LINE_MAX_BYTES];
            if (tag == LISTEN_TAG) {
                accept_all(listener);
            } else if (tag != STDIN_TAG) {
                size_t before = held;
                on_input((int)tag, upgraded);
                upgraded[tag] = held > before;
            } else if (read_command(line)) {
                if (is_verb(line, "fanout"))
                    fan_out(line);
                else if (is_verb(line, "count"))
                    printf("{\"event\":\"count\",\"open\":%zu}\n", held);
                else if (is_verb(line, "quit"))
                    return 0;
                else
                    printf("{\"event\":\"error\",\"reason\":\"unknown command\"}\n");
            }
        }
    }
}
