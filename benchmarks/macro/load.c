/* The load generator: thousands of WebSocket clients in one process, so cheap that the server is
 * what is measured.
 *
 * Usage: load HEAD_FILE [TOKEN_FILE]
 *
 * HEAD_FILE holds the request head, sent as it is except that "{token}" becomes the connection's
 * line of TOKEN_FILE (connection i takes line i, modulo the number of lines). The key in the head
 * must be the sample key of RFC 6455: the 101's accept value is checked against it.
 * Connections come from many loopback addresses, so that neither the range of local ports nor a
 * limit per address is met. Pings are answered, a Close is echoed, every frame is parsed and
 * counted. Commands on stdin, JSON lines on stdout, one answer each:
 *
 *   connect port=P count=N [rate=R inflight=I sources=A timeout=T]  open N more connections, at
 *                    most R a second (0: no bound) and I upgrades at a time, from A addresses
 *   reset            set the counters of received frames to zero
 *   expect frames=N [timeout=T]      answer once N messages have come since the last reset
 *   echo size=S window=W seconds=T [text=1]   closed loop: every connection keeps W messages of
 *                    S bytes on the way for T seconds, then all outstanding ones are awaited
 *   publish rate=R seconds=T receivers=N text=TEMPLATE   open loop: the first connection sends
 *                    the template (the rest of the line) R times a second for T seconds, with
 *                    "{stamp}" replaced by the moment it was due; N connections are to get each
 *   stats            the counters now
 *   close [hard=1 timeout=T]         Close handshake on every connection (hard: reset instead)
 *   quit
 *
 * Times are in seconds in commands and nanoseconds of CLOCK_MONOTONIC in answers. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "common.h"

#define MAX_EVENTS 512
#define STDIN_TAG UINT32_MAX
/* File descriptors kept for everything but connections. */
#define FILES_RESERVED 32
#define READ_BUFFER_BYTES (256 * 1024)
/* Largest answer to an upgrade request, in bytes. */
#define ANSWER_MAX 4096
/* Largest request head after the token is filled in, in bytes. */
#define HEAD_MAX 16384
/* Largest echo window and message: both in one piece must fit a socket's send buffer. */
#define WINDOW_MAX 256
#define ECHO_MAX 4096
/* Close codes counted one by one; RFC 6455 section 7.4.2 allows 1000 to 4999. */
#define CLOSE_CODES 5000
#define CONTROL_MAX 125
/* A stamp is this mark and the digits of a time; the rest of a message must not have the mark. */
#define STAMP_MARK '@'
#define STAMP_DIGITS 16
#define STAMP_HOLE "{stamp}"
/* Latencies are counted as HdrHistogram does: this many buckets for each power of two, so a value
 * is known to 1.6 %. */
#define BUCKET_BITS 6
#define LATENCY_BUCKETS (64 << BUCKET_BITS)

#define OP_CONTINUATION 0x0
#define OP_TEXT 0x1
#define OP_BINARY 0x2
#define OP_CLOSE 0x8
#define OP_PING 0x9

enum state { FREE, CONNECTING, UPGRADING, OPEN, CLOSING };

struct connection {
    int fd;
    uint8_t state;
    uint8_t header[10]; /* of the frame in hand, as far as it has come */
    uint8_t header_have;
    bool in_payload;
    uint8_t control_have;
    uint8_t control[CONTROL_MAX];
    uint64_t left;    /* payload bytes of the frame still to come */
    uint64_t message; /* payload bytes of the message so far */
    uint32_t owed;    /* echo messages to send once the read is parsed */
    char *answer;     /* answer to the upgrade request, only while it is incomplete */
    size_t answer_have;
    uint64_t stamp;       /* as far as its digits have come */
    uint8_t stamp_digits; /* 0: looking for the mark; 1: it was found; n + 1: with n digits */
};

static struct {
    uint64_t frames; /* complete messages */
    uint64_t bytes;  /* their payload */
    uint64_t pings;
    uint64_t reads;
    uint64_t first_ns, last_ns; /* arrival of the first and the last message */
} seen;

static struct {
    enum { IDLE, CONNECT, EXPECT, ECHO, PUBLISH, CLOSE } what;
    uint64_t start, deadline;
    /* connect */
    uint32_t wanted, started, finished, failed, inflight, inflight_max, sources;
    double rate;
    struct sockaddr_in target;
    char reason[96];
    /* expect */
    uint64_t frames;
    /* echo */
    bool sending;
    uint64_t stop, sent, received, outstanding, wrong;
    size_t size, frame_bytes;
    /* publish; shares rate, stop, sent and received */
    uint32_t speaker;
    uint64_t total, receivers, slowest_ns;
    char text[LINE_MAX_BYTES];
} job;

static uint64_t latencies[LATENCY_BUCKETS];

static int epoll;
static struct connection *connections;
static uint32_t slots, next_slot, open_count;
static uint64_t lost, broken, close_codes[CLOSE_CODES];
static uint64_t batch_ns; /* time at which the events in hand were fetched */
static unsigned char *echo_frames; /* WINDOW_MAX masked frames back to back */
static char *head_text;
static char **tokens;
static size_t token_count;

static void drop(struct connection *c) {
    if (c->state == OPEN || c->state == CLOSING)
        open_count--;
    close(c->fd);
    free(c->answer);
    memset(c, 0, sizeof *c);
    c->fd = -1;
}

static void fail_connect(struct connection *c, const char *reason, size_t length) {
    if (job.failed++ == 0) {
        if (length >= sizeof job.reason)
            length = sizeof job.reason - 1;
        for (size_t i = 0; i < length; i++)
            job.reason[i] = reason[i] < ' ' || reason[i] > '~' || strchr("\"\\", reason[i])
                                ? '?'
                                : reason[i];
        job.reason[length] = '\0';
    }
    job.inflight--;
    drop(c);
}

/* An open connection ends without our having asked for it. */
static void lose(struct connection *c) {
    if (c->state == OPEN)
        lost++;
    if (job.what == ECHO && c->state == OPEN)
        job.wrong++;
    drop(c);
}

static bool send_all(struct connection *c, const void *data, size_t size) {
    return send(c->fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)size;
}

/* Client frames are masked (RFC 6455 section 5.3); a constant key keeps the work out of the loop. */
static size_t build_frame(unsigned char *out, uint8_t opcode, const unsigned char *payload,
                          size_t size) {
    static const unsigned char key[4] = {0x37, 0xfa, 0x21, 0x3d};
    size_t n = 0;
    out[n++] = 0x80 | opcode;
    if (size < 126) {
        out[n++] = 0x80 | (unsigned char)size;
    } else {
        out[n++] = 0x80 | 126;
        out[n++] = (unsigned char)(size >> 8);
        out[n++] = (unsigned char)size;
    }
    memcpy(out + n, key, 4);
    n += 4;
    for (size_t i = 0; i < size; i++)
        out[n++] = payload[i] ^ key[i & 3];
    return n;
}

static bool send_control(struct connection *c, uint8_t opcode, const unsigned char *data,
                         size_t size) {
    unsigned char frame[CONTROL_MAX + 6];
    return send_all(c, frame, build_frame(frame, opcode, data, size));
}

/* Bytes of the header, as far as its first two bytes tell. */
static size_t header_size(const struct connection *c) {
    if (c->header_have < 2)
        return 2;
    uint8_t length = c->header[1] & 0x7f;
    return length < 126 ? 2 : length == 126 ? 4 : 10;
}

/* One frame is complete. False once the connection is gone. */
static bool end_frame(struct connection *c) {
    uint8_t opcode = c->header[0] & 0x0f;
    bool final = c->header[0] & 0x80;
    size_t control = c->control_have;
    c->header_have = 0;
    c->in_payload = false;
    c->control_have = 0;
    if (opcode <= OP_BINARY) {
        if (!final)
            return true;
        if (seen.frames++ == 0)
            seen.first_ns = batch_ns;
        seen.last_ns = batch_ns;
        seen.bytes += c->message;
        if (job.what == ECHO) {
            job.received++;
            job.outstanding--;
            job.wrong += c->message != job.size;
            c->owed++;
        }
        c->message = 0;
        return true;
    }
    if (opcode == OP_PING) {
        seen.pings++;
        if (!send_control(c, 0xA, c->control, control)) {
            lose(c);
            return false;
        }
    } else if (opcode == OP_CLOSE) {
        unsigned code = control >= 2 ? (unsigned)(c->control[0] << 8 | c->control[1]) : 1005;
        close_codes[code < CLOSE_CODES ? code : 0]++;
        if (c->state == OPEN) {
            send_control(c, OP_CLOSE, c->control, control < 2 ? control : 2);
            lose(c);
        } else {
            drop(c);
        }
        return false;
    }
    return true;
}

static void count_latency(uint64_t due) {
    uint64_t ns = batch_ns > due ? batch_ns - due : 0;
    unsigned power = ns >> BUCKET_BITS ? 63 - (unsigned)__builtin_clzll(ns) : BUCKET_BITS;
    uint64_t step = ns >> (power - BUCKET_BITS);
    latencies[((power - BUCKET_BITS) << BUCKET_BITS) + step]++;
    if (ns > job.slowest_ns)
        job.slowest_ns = ns;
    job.received++;
}

/* Look for stamps in a piece of a message, which may begin or end in one. */
static void read_stamps(struct connection *c, const unsigned char *data, size_t size) {
    const unsigned char *end = data + size;
    while (data < end) {
        if (c->stamp_digits == 0) {
            data = memchr(data, STAMP_MARK, (size_t)(end - data));
            if (data == NULL)
                return;
            data++;
            c->stamp = 0;
            c->stamp_digits = 1;
            continue;
        }
        unsigned digit = *data <= '9' ? *data - 48u : *data - 87u;
        data++;
        c->stamp = c->stamp << 4 | (digit & 15);
        if (++c->stamp_digits > STAMP_DIGITS) {
            c->stamp_digits = 0;
            count_latency(c->stamp);
        }
    }
}

/* Take the bytes the server sent. False once the connection is gone. */
static bool feed(struct connection *c, const unsigned char *data, size_t size) {
    while (size > 0) {
        if (!c->in_payload) {
            c->header[c->header_have++] = *data++;
            size--;
            if (c->header_have < header_size(c))
                continue;
            uint8_t opcode = c->header[0] & 0x0f, length = c->header[1] & 0x7f;
            c->left = length;
            if (length >= 126) {
                c->left = 0;
                for (size_t i = 2; i < c->header_have; i++)
                    c->left = c->left << 8 | c->header[i];
            }
            if (c->header[1] & 0x80 || c->header[0] & 0x70 ||
                (opcode >= OP_CLOSE && c->left > CONTROL_MAX)) {
                broken++;
                lose(c);
                return false;
            }
            c->in_payload = true;
            if (opcode <= OP_BINARY)
                c->message += c->left;
        }
        size_t take = size < c->left ? size : (size_t)c->left;
        if ((c->header[0] & 0x0f) >= OP_CLOSE) {
            memcpy(c->control + c->control_have, data, take);
            c->control_have += (uint8_t)take;
        } else if (job.what == PUBLISH) {
            read_stamps(c, data, take);
        }
        data += take;
        size -= take;
        c->left -= take;
        if (c->left == 0 && !end_frame(c))
            return false;
    }
    return true;
}

static void send_echoes(struct connection *c) {
    uint32_t count = c->owed;
    c->owed = 0;
    if (!job.sending || count == 0)
        return;
    if (!send_all(c, echo_frames, count * job.frame_bytes)) {
        lose(c);
        return;
    }
    job.sent += count;
    job.outstanding += count;
}

static void on_established(struct connection *c, uint32_t slot) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) {
        fail_connect(c, strerror(error), strlen(strerror(error)));
        return;
    }
    char head[HEAD_MAX];
    const char *hole = token_count > 0 ? strstr(head_text, "{token}") : NULL;
    int before = hole == NULL ? 0 : (int)(hole - head_text);
    int size_or_more = snprintf(head, sizeof head, "%.*s%s%s", before, head_text,
                                hole == NULL ? "" : tokens[slot % token_count],
                                hole == NULL ? head_text : hole + 7);
    if (size_or_more >= (int)sizeof head) {
        fail_connect(c, "request head too large", 22);
        return;
    }
    size_t have = (size_t)size_or_more;
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = slot};
    if (!send_all(c, head, have) || epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event) < 0) {
        fail_connect(c, "request head not sent", 21);
        return;
    }
    c->state = UPGRADING;
}

static void on_answer(struct connection *c, const unsigned char *data, size_t size) {
    if (c->answer == NULL && (c->answer = malloc(ANSWER_MAX + 1)) == NULL)
        die("malloc");
    size_t take = size < ANSWER_MAX - c->answer_have ? size : ANSWER_MAX - c->answer_have;
    memcpy(c->answer + c->answer_have, data, take);
    c->answer_have += take;
    c->answer[c->answer_have] = '\0';
    char *end = strstr(c->answer, "\r\n\r\n");
    if (end == NULL) {
        if (c->answer_have == ANSWER_MAX)
            fail_connect(c, "answer too long", 15);
        return;
    }
    end[2] = '\0';
    if (strncmp(c->answer, "HTTP/1.1 101 ", 13) != 0 || !strstr(c->answer, HANDSHAKE_ACCEPT)) {
        fail_connect(c, c->answer, strcspn(c->answer, "\r"));
        return;
    }
    size_t behind = c->answer_have - (size_t)(end + 4 - c->answer);
    size_t used = take - behind;
    free(c->answer);
    c->answer = NULL;
    c->answer_have = 0;
    c->state = OPEN;
    open_count++;
    job.inflight--;
    job.finished++;
    feed(c, data + used, size - used);
}

static void on_event(uint32_t slot, uint32_t events) {
    static unsigned char buffer[READ_BUFFER_BYTES];
    struct connection *c = &connections[slot];
    if (c->state == FREE)
        return;
    if (c->state == CONNECTING) {
        if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
            on_established(c, slot);
        return;
    }
    ssize_t got = recv(c->fd, buffer, sizeof buffer, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        if (c->state == UPGRADING)
            fail_connect(c, "closed before its answer", 24);
        else
            lose(c);
        return;
    }
    seen.reads++;
    if (c->state == UPGRADING)
        on_answer(c, buffer, (size_t)got);
    else if (feed(c, buffer, (size_t)got) && c->owed)
        send_echoes(c);
}

static void start_connection(void) {
    while (connections[next_slot].state != FREE)
        next_slot = (next_slot + 1) % slots;
    uint32_t slot = next_slot;
    struct connection *c = &connections[slot];
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        die("socket");
    int on = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    /* The port is chosen at connect, so that one port serves many pairs of addresses. */
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    uint32_t host = slot % job.sources;
    struct sockaddr_in source = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(0x7f010000u + (host / 250 << 8) + host % 250 + 1)};
    struct epoll_event event = {.events = EPOLLOUT, .data.u32 = slot};
    c->state = CONNECTING;
    job.started++;
    job.inflight++;
    if (bind(c->fd, (struct sockaddr *)&source, sizeof source) < 0 ||
        (connect(c->fd, (struct sockaddr *)&job.target, sizeof job.target) < 0 &&
         errno != EINPROGRESS) ||
        epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event) < 0)
        fail_connect(c, strerror(errno), strlen(strerror(errno)));
}

static void print_counters(const char *event) {
    printf("{\"event\":\"%s\",\"open\":%u,\"frames\":%llu,\"bytes\":%llu,\"pings\":%llu,"
           "\"reads\":%llu,\"first_ns\":%llu,\"last_ns\":%llu,\"lost\":%llu,\"broken\":%llu,"
           "\"closes\":{",
           event, open_count, (unsigned long long)seen.frames, (unsigned long long)seen.bytes,
           (unsigned long long)seen.pings, (unsigned long long)seen.reads,
           (unsigned long long)seen.first_ns, (unsigned long long)seen.last_ns,
           (unsigned long long)lost, (unsigned long long)broken);
    const char *comma = "";
    for (int code = 0; code < CLOSE_CODES; code++)
        if (close_codes[code]) {
            printf("%s\"%d\":%llu", comma, code, (unsigned long long)close_codes[code]);
            comma = ",";
        }
    printf("}}\n");
}

static void begin(int what, const char *line, double timeout) {
    job.what = what;
    job.start = now_ns();
    job.deadline = job.start + (uint64_t)(arg_number(line, "timeout", timeout) * 1e9);
}

static void refuse(const char *reason) { printf("{\"event\":\"error\",\"reason\":\"%s\"}\n", reason); }

static void begin_connect(const char *line) {
    double port = arg_number(line, "port", 0), count = arg_number(line, "count", 1);
    double inflight = arg_number(line, "inflight", 64), sources = arg_number(line, "sources", 100);
    if (port < 1 || port > 65535 || count < 1 || count > slots - open_count || inflight < 1 ||
        sources < 1 || sources > 50000) {
        refuse("connect: port, count, inflight or sources out of range");
        return;
    }
    if (open_count == 0)
        next_slot = 0;
    job.wanted = (uint32_t)count;
    job.started = job.finished = job.failed = job.inflight = 0;
    job.inflight_max = (uint32_t)inflight;
    job.sources = (uint32_t)sources;
    job.rate = arg_number(line, "rate", 0);
    job.reason[0] = '\0';
    job.target = (struct sockaddr_in){.sin_family = AF_INET,
                                      .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                      .sin_port = htons((uint16_t)port)};
    begin(CONNECT, line, 120);
}

static void begin_echo(const char *line) {
    double size = arg_number(line, "size", 64), window = arg_number(line, "window", 1);
    if (size < 0 || size > ECHO_MAX || window < 1 || window > WINDOW_MAX) {
        refuse("echo: size or window out of range");
        return;
    }
    unsigned char payload[ECHO_MAX];
    memset(payload, 'x', sizeof payload);
    job.size = (size_t)size;
    uint8_t opcode = arg_number(line, "text", 0) != 0 ? OP_TEXT : OP_BINARY;
    job.frame_bytes = build_frame(echo_frames, opcode, payload, job.size);
    for (size_t i = 1; i < (size_t)window; i++)
        memcpy(echo_frames + i * job.frame_bytes, echo_frames, job.frame_bytes);
    job.sent = job.received = job.outstanding = job.wrong = 0;
    job.sending = true;
    begin(ECHO, line, 0);
    job.stop = job.start + (uint64_t)(arg_number(line, "seconds", 1) * 1e9);
    /* Whatever has not come back five seconds after the last send counts as lost. */
    job.deadline = job.stop + 5000000000u;
    for (uint32_t i = 0; i < slots; i++)
        if (connections[i].state == OPEN) {
            connections[i].owed = (uint32_t)window;
            send_echoes(&connections[i]);
        }
}

static void begin_publish(const char *line) {
    const char *text = strstr(line, " text=");
    uint32_t speaker = 0;
    while (speaker < slots && connections[speaker].state != OPEN)
        speaker++;
    if (text == NULL || strstr(text, STAMP_HOLE) == NULL || speaker == slots) {
        refuse("publish: no text with a place for the stamp, or nobody to send it");
        return;
    }
    snprintf(job.text, sizeof job.text, "%s", text + 6);
    job.speaker = speaker;
    job.rate = arg_number(line, "rate", 1);
    job.receivers = (uint64_t)arg_number(line, "receivers", 1);
    job.total = (uint64_t)(job.rate * arg_number(line, "seconds", 1));
    job.sent = job.received = job.slowest_ns = 0;
    memset(latencies, 0, sizeof latencies);
    for (uint32_t i = 0; i < slots; i++)
        connections[i].stamp_digits = 0;
    begin(PUBLISH, line, 0);
    /* Whatever has not come ten seconds after the last was due counts as lost. */
    job.deadline = job.start + (uint64_t)((double)job.total / job.rate * 1e9) + 10000000000u;
}

/* Send what is due. The stamp is the moment a message was due, not that of its sending: a sender
 * that is held up does not make the wait look shorter. */
static bool send_due(uint64_t now) {
    struct connection *c = &connections[job.speaker];
    char *hole = strstr(job.text, STAMP_HOLE);
    while (job.sent < job.total) {
        uint64_t due = job.start + (uint64_t)((double)job.sent / job.rate * 1e9);
        if (due > now)
            return true;
        unsigned char message[LINE_MAX_BYTES + STAMP_DIGITS], frame[sizeof message + 8];
        int size = snprintf((char *)message, sizeof message, "%.*s%c%016llx%s",
                            (int)(hole - job.text), job.text, STAMP_MARK, (unsigned long long)due,
                            hole + strlen(STAMP_HOLE));
        if (c->state != OPEN ||
            !send_all(c, frame, build_frame(frame, OP_TEXT, message, (size_t)size)))
            return false;
        job.sent++;
    }
    return true;
}

/* Sleep until something comes or the next message is due, finer than the milliseconds that
 * epoll_wait knows. */
static void wait_until_due(void) {
    uint64_t now = now_ns(), next = now + 20000000u;
    if (job.sent < job.total)
        next = job.start + (uint64_t)((double)job.sent / job.rate * 1e9);
    uint64_t left = next > now ? next - now : 0;
    struct timespec rest = {.tv_sec = (time_t)(left / 1000000000u),
                            .tv_nsec = (long)(left % 1000000000u)};
    struct pollfd input = {.fd = epoll, .events = POLLIN};
    ppoll(&input, 1, &rest, NULL);
}

static void print_latencies(uint64_t now) {
    printf("{\"event\":\"published\",\"sent\":%llu,\"received\":%llu,\"slowest_ns\":%llu,"
           "\"wall_ns\":%llu,\"bits\":%d,\"buckets\":[",
           (unsigned long long)job.sent, (unsigned long long)job.received,
           (unsigned long long)job.slowest_ns, (unsigned long long)(now - job.start), BUCKET_BITS);
    const char *comma = "";
    for (int i = 0; i < LATENCY_BUCKETS; i++)
        if (latencies[i]) {
            printf("%s[%d,%llu]", comma, i, (unsigned long long)latencies[i]);
            comma = ",";
        }
    printf("]}\n");
}

static void begin_close(const char *line) {
    bool hard = arg_number(line, "hard", 0) != 0;
    static const unsigned char normal[2] = {1000 >> 8, 1000 & 0xff};
    for (uint32_t i = 0; i < slots; i++) {
        struct connection *c = &connections[i];
        if (c->state == FREE)
            continue;
        if (hard) {
            struct linger reset = {.l_onoff = 1, .l_linger = 0};
            setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
            drop(c);
        } else if (c->state != OPEN || !send_control(c, OP_CLOSE, normal, sizeof normal)) {
            drop(c);
        } else {
            c->state = CLOSING;
        }
    }
    begin(CLOSE, line, 30);
}

static void on_command(const char *line) {
    if (job.what != IDLE) {
        refuse("the last command is not answered yet");
    } else if (is_verb(line, "connect")) {
        begin_connect(line);
    } else if (is_verb(line, "reset")) {
        memset(&seen, 0, sizeof seen);
        print_counters("reset");
    } else if (is_verb(line, "expect")) {
        job.frames = (uint64_t)arg_number(line, "frames", 0);
        begin(EXPECT, line, 60);
    } else if (is_verb(line, "echo")) {
        begin_echo(line);
    } else if (is_verb(line, "publish")) {
        begin_publish(line);
    } else if (is_verb(line, "stats")) {
        print_counters("stats");
    } else if (is_verb(line, "close")) {
        begin_close(line);
    } else if (is_verb(line, "quit")) {
        exit(0);
    } else {
        refuse("unknown command");
    }
}

/* Push the job in hand on and answer it when it is done. */
static void work(void) {
    uint64_t now = now_ns();
    bool late = now >= job.deadline;
    switch (job.what) {
    case IDLE:
        return;
    case CONNECT: {
        double allowed = job.rate > 0 ? (double)(now - job.start) * 1e-9 * job.rate + 1 : 1e12;
        while (!late && job.started < job.wanted && job.started < allowed &&
               job.inflight < job.inflight_max)
            start_connection();
        if (job.finished + job.failed < job.wanted && !late)
            return;
        if (late)
            for (uint32_t i = 0; i < slots; i++)
                if (connections[i].state == CONNECTING || connections[i].state == UPGRADING)
                    fail_connect(&connections[i], "timeout", 7);
        printf("{\"event\":\"connected\",\"open\":%u,\"failed\":%u,\"reason\":\"%s\","
               "\"wall_ns\":%llu}\n",
               open_count, job.wanted - job.finished, job.reason,
               (unsigned long long)(now - job.start));
        break;
    }
    case EXPECT:
        if (seen.frames < job.frames && !late)
            return;
        print_counters(seen.frames < job.frames ? "timeout" : "received");
        break;
    case ECHO:
        if (now >= job.stop)
            job.sending = false;
        if (job.sending || (job.outstanding > 0 && !late))
            return;
        printf("{\"event\":\"echoed\",\"messages\":%llu,\"missing\":%llu,\"wrong\":%llu,"
               "\"wall_ns\":%llu}\n",
               (unsigned long long)job.received, (unsigned long long)job.outstanding,
               (unsigned long long)job.wrong, (unsigned long long)(now - job.start));
        break;
    case PUBLISH:
        if (!send_due(now)) {
            refuse("publish: the speaker cannot send");
            break;
        }
        if ((job.sent < job.total || job.received < job.total * job.receivers) && !late)
            return;
        print_latencies(now);
        break;
    case CLOSE: {
        uint32_t left = open_count;
        if (left > 0 && !late)
            return;
        for (uint32_t i = 0; i < slots; i++)
            if (connections[i].state != FREE)
                drop(&connections[i]);
        printf("{\"event\":\"closed\",\"unanswered\":%u,\"wall_ns\":%llu}\n", left,
               (unsigned long long)(now - job.start));
        break;
    }
    }
    job.what = IDLE;
}

static char *read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0)
        die(path);
    long size = ftell(file);
    char *text = malloc((size_t)size + 1);
    rewind(file);
    if (text == NULL || fread(text, 1, (size_t)size, file) != (size_t)size)
        die(path);
    fclose(file);
    text[size] = '\0';
    return text;
}

static void read_tokens(const char *path) {
    char *text = read_file(path);
    size_t lines = 0;
    for (const char *p = text; *p; p++)
        lines += *p == '\n';
    tokens = calloc(lines + 1, sizeof *tokens);
    if (tokens == NULL)
        die("calloc");
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n"))
        tokens[token_count++] = line;
}

int main(int argc, char **argv) {
    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: load HEAD_FILE [TOKEN_FILE]\n");
        return 2;
    }
    head_text = read_file(argv[1]);
    if (argc == 3)
        read_tokens(argv[2]);
    slots = raise_file_limit() - FILES_RESERVED;
    connections = calloc(slots, sizeof *connections);
    echo_frames = malloc(WINDOW_MAX * (ECHO_MAX + 8));
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (connections == NULL || echo_frames == NULL || epoll < 0)
        die("start");
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = STDIN_TAG};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event) < 0)
        die("stdin");
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("{\"event\":\"ready\",\"slots\":%u}\n", slots);
    for (;;) {
        struct epoll_event events[MAX_EVENTS];
        /* Some jobs are paced, some only have a deadline, and without one only input matters. */
        int wait = job.what == IDLE ? -1 : job.what == CONNECT || job.what == ECHO ? 1 : 20;
        if (job.what == PUBLISH) {
            wait_until_due();
            wait = 0;
        }
        int n = epoll_wait(epoll, events, MAX_EVENTS, wait);
        batch_ns = now_ns();
        for (int i = 0; i < n; i++) {
            char line[LINE_MAX_BYTES];
            if (events[i].data.u32 != STDIN_TAG)
                on_event(events[i].data.u32, events[i].events);
            else if (read_command(line))
                on_command(line);
        }
        work();
    }
}
