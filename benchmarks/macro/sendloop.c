/* The kernel's price of a fan-out: a plain loop over send(2), next to nothing else.
 *
 * Usage: sendloop [--ping SECONDS]
 *
 * Listens on a free loopback port, answers each upgrade request with the constant 101 of
 * RFC 6455's sample key, and keeps the sockets. Who asked for "/room/N" is in room N: what one of
 * its members says goes to all of them, once all input of a turn is read, all messages of the turn
 * in one piece. What a socket does not take at once is lost; there are no queues here.
 * With --ping each socket is sent a ping so often, four times a second those whose turn it is, and
 * whatever comes is taken for a pong: the kernel's price of connections that say nothing.
 * Commands on stdin, JSON lines on stdout:
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
#define READ_BUFFER_BYTES (256 * 1024)
#define ROOMS_MAX 65536
#define NO_ROOM UINT32_MAX

static const char ANSWER[] = "HTTP/1.1 101 Switching Protocols\r\n"
                             "Upgrade: websocket\r\n"
                             "Connection: Upgrade\r\n"
                             "Sec-WebSocket-Accept: " HANDSHAKE_ACCEPT "\r\n\r\n";

static int epoll;
static int *sockets; /* upgraded, in the order of their arrival: what the loop runs over */
static size_t held;
static size_t capacity;

static struct room {
    int *members;
    size_t count, capacity;
    unsigned char *piece; /* the frames of this turn */
    size_t piece_size, piece_capacity;
} rooms[ROOMS_MAX];
static uint32_t dirty[ROOMS_MAX]; /* rooms with news in this turn */
static size_t dirty_count;
static uint32_t *room_of; /* by descriptor */
static uint64_t refused_relays;
static double ping_every;   /* seconds; 0 for no pings */
static uint64_t pinged_at;  /* when the last were sent, in nanoseconds */
static double pings_owed;   /* by then, with a fraction */
static size_t ping_next;    /* the socket whose turn it is */

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
    struct room *room = room_of[fd] == NO_ROOM ? NULL : &rooms[room_of[fd]];
    for (size_t i = 0; room != NULL && i < room->count; i++)
        if (room->members[i] == fd)
            room->members[i] = room->members[--room->count];
    room_of[fd] = NO_ROOM;
    close(fd);
}

static void *grown(void *old, size_t *have, size_t want, size_t size) {
    if (want <= *have)
        return old;
    *have = want * 2;
    void *fresh = realloc(old, *have * size);
    if (fresh == NULL)
        die("realloc");
    return fresh;
}

static void enter_room(int fd, const char *head) {
    static const char where[] = "GET /room/";
    room_of[fd] = NO_ROOM;
    if (strncmp(head, where, sizeof where - 1) != 0)
        return;
    unsigned long number = strtoul(head + sizeof where - 1, NULL, 10);
    if (number >= ROOMS_MAX)
        return;
    struct room *room = &rooms[number];
    room->members = grown(room->members, &room->capacity, room->count + 1, sizeof(int));
    room->members[room->count++] = fd;
    room_of[fd] = (uint32_t)number;
}

/* Note a client's text for its room; bytes used, 0 for less than a frame, -1 for what ends it. The
 * generator's frames are whole messages. */
static ssize_t take_frame(int fd, unsigned char *data, size_t size) {
    if (size < 6)
        return 0;
    size_t at = 2, length = data[1] & 0x7f;
    if (length >= 126) {
        size_t digits = length == 126 ? 2 : 8;
        if (size < 2 + digits)
            return 0;
        for (length = 0; digits > 0; digits--)
            length = length << 8 | data[at++];
    }
    if ((data[0] & 0x0f) > 2 || length > READ_BUFFER_BYTES - 14)
        return -1;
    if (size < at + 4 + length)
        return 0;
    struct room *room = room_of[fd] == NO_ROOM ? NULL : &rooms[room_of[fd]];
    if (room == NULL)
        return -1;
    if (room->piece_size == 0)
        dirty[dirty_count++] = room_of[fd];
    room->piece =
        grown(room->piece, &room->piece_capacity, room->piece_size + at + length, 1);
    unsigned char *out = room->piece + room->piece_size;
    memcpy(out, data, at);
    out[1] &= 0x7f; /* servers do not mask */
    const unsigned char *key = data + at, *payload = key + 4;
    for (size_t i = 0; i < length; i++)
        out[at + i] = payload[i] ^ key[i & 3];
    room->piece_size += at + length;
    return (ssize_t)(at + 4 + length);
}

static void relay(void) {
    for (size_t i = 0; i < dirty_count; i++) {
        struct room *room = &rooms[dirty[i]];
        for (size_t m = 0; m < room->count; m++)
            if (send(room->members[m], room->piece, room->piece_size,
                     MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)room->piece_size)
                refused_relays++;
        room->piece_size = 0;
    }
    dirty_count = 0;
}

/* A request head comes whole: the generator writes it with one send. A frame may come in parts:
 * what is left of one waits in the socket, looked at but not taken. */
static void on_input(int fd, bool *upgraded) {
    static unsigned char buffer[READ_BUFFER_BYTES];
    bool is_pong = upgraded[fd] && ping_every > 0;
    ssize_t got = recv(fd, buffer, sizeof buffer - 1, is_pong ? 0 : MSG_PEEK);
    if (got <= 0) {
        upgraded[fd] = false;
        forget(fd);
        return;
    }
    if (is_pong)
        return;
    size_t used = 0;
    if (upgraded[fd]) {
        ssize_t taken;
        while ((taken = take_frame(fd, buffer + used, (size_t)got - used)) > 0)
            used += (size_t)taken;
        if (taken < 0) {
            forget(fd);
            upgraded[fd] = false;
            return;
        }
    } else {
        buffer[got] = '\0';
        if (got > HEAD_MAX || got < 4 || memcmp(buffer + got - 4, "\r\n\r\n", 4) != 0 ||
            held == capacity ||
            send(fd, ANSWER, sizeof ANSWER - 1, MSG_NOSIGNAL) != (ssize_t)(sizeof ANSWER - 1)) {
            close(fd);
            return;
        }
        used = (size_t)got;
        sockets[held++] = fd;
        enter_room(fd, (const char *)buffer);
        upgraded[fd] = true;
    }
    if (used > 0 && recv(fd, buffer, used, 0) != (ssize_t)used)
        die("recv");
}

/* Send the pings that are due; returns the milliseconds until the next are. */
static int ping(void) {
    static const unsigned char frame[] = {0x89, 0};
    static const uint64_t turn = 250000000u;
    if (ping_every <= 0)
        return -1;
    uint64_t now = now_ns();
    if (now - pinged_at >= turn) {
        pings_owed += (double)held * (double)(now - pinged_at) / 1e9 / ping_every;
        pinged_at = now;
        if (pings_owed > (double)held)
            pings_owed = (double)held;
        for (; pings_owed >= 1; pings_owed--) {
            if (ping_next >= held)
                ping_next = 0;
            if (send(sockets[ping_next++], frame, sizeof frame, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
                refused_relays++;
        }
    }
    return (int)((turn - (now - pinged_at)) / 1000000u) + 1;
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

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "--ping") == 0)
        ping_every = strtod(argv[2], NULL);
    pinged_at = now_ns();
    unsigned limit = raise_file_limit();
    capacity = limit;
    sockets = calloc(limit, sizeof *sockets);
    bool *upgraded = calloc(limit, sizeof *upgraded);
    room_of = calloc(limit, sizeof *room_of);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (sockets == NULL || upgraded == NULL || room_of == NULL || epoll < 0 || listener < 0)
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
        int n = epoll_wait(epoll, events, MAX_EVENTS, ping());
        for (int i = 0; i < n; i++) {
            uint32_t tag = events[i].data.u32;
            char line[LINE_MAX_BYTES];
            if (tag == LISTEN_TAG) {
                accept_all(listener);
            } else if (tag != STDIN_TAG) {
                on_input((int)tag, upgraded);
            } else if (read_command(line)) {
                if (is_verb(line, "fanout"))
                    fan_out(line);
                else if (is_verb(line, "count"))
                    printf("{\"event\":\"count\",\"open\":%zu,\"refused\":%llu}\n", held,
                           (unsigned long long)refused_relays);
                else if (is_verb(line, "settle"))
                    printf("{\"event\":\"done\"}\n");
                else if (is_verb(line, "quit"))
                    return 0;
                else
                    printf("{\"event\":\"error\",\"reason\":\"unknown command\"}\n");
            }
        }
        relay();
    }
}
