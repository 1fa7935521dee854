/* The load generator: thousands of WebSocket clients in one process, so cheap that the server is
 * what is measured.
 *
 * Usage: load HEAD_FILE [tokens=FILE] [rooms=FILE] [members=N] [setup=FILE] [pong=FILE]
 *
 * HEAD_FILE holds the request head, sent as it is except that "{token}" becomes the connection's
 * line of the tokens (connection i takes line i, modulo the number of lines) and "{room}" its line
 * of the rooms (connection i is one of the N members of room i / N). The key in the head must be
 * the sample key of RFC 6455: the 101's accept value is checked against it.
 * Each line of the setup is sent as a text message once a connection is open, with the same holes;
 * the pong's second line is sent whenever a message comes that is its first: protocols with pings
 * of their own need it. "\r" and "\n" in texts are what C means by them.
 * Connections come from many loopback addresses, so that neither the range of local ports nor a
 * limit per address is met. Pings are answered, a Close is echoed, every frame is parsed and
 * counted. Commands on stdin, JSON lines on stdout, one answer each:
 *
 *   connect port=P count=N [rate=R inflight=I sources=A timeout=T narrow=K]  open N more
 *                    connections, at most R a second (0: no bound) and I upgrades at a time, from A
 *                    addresses; each Kth gets the smallest receive buffer. The answer has the times
 *                    from the start of each to its 101
 *   reset            set the counters of received frames to zero
 *   expect frames=N [timeout=T]      answer once N messages have come since the last reset
 *   echo size=S window=W seconds=T [text=1]   closed loop: every connection keeps W messages of
 *                    S bytes on the way for T seconds, then all outstanding ones are awaited
 *   publish rate=R seconds=T receivers=N [rooms=M burst=K pad=B] text=TEMPLATE   open loop: R
 *                    times a second for T seconds the template (the rest of the line) is sent, by
 *                    the first member of each of M rooms in turn, K at a time in one piece.
 *                    "{stamp}" becomes the moment it was due, "{pad}" B letters, "{room}" the room;
 *                    N connections are to get each
 *   stall every=K    each Kth connection reads no more
 *   release          end the stalled connections, by reset
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
/* Longest message that comes in a ping of a protocol's own, in bytes. */
#define PONG_MAX 16
/* Longest message that is published, in bytes, and most of them in one go. */
#define PUBLISH_MAX (1024 * 1024)
#define PUBLISH_COUNT 4000000.0
/* Events after which a publisher looks at the clock: receiving must not hold up the schedule. */
#define EVENTS_BETWEEN_SENDS 16
/* The smallest receive buffer asked for, in bytes; the kernel has its own idea of the least. */
#define NARROW_BYTES 4096
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
    bool stalled;
    uint8_t start_have;       /* of the message in hand, as much as a ping may be long */
    char start[PONG_MAX];
    uint64_t began;           /* when it was started */
    unsigned char *unsent;    /* what a publisher's socket has not taken yet */
    size_t unsent_size;
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
    uint32_t narrow;
    /* publish; shares rate, stop, sent and received */
    uint32_t rooms, burst;
    uint64_t total, receivers, slowest_ns, strays, reads, bytes;
    size_t pad;
    char text[LINE_MAX_BYTES];
} job;

static uint64_t latencies[LATENCY_BUCKETS];
/* Of each message published: when its first and its last delivery came. Those of a burst have one
 * stamp, and one entry: the first of the first, the last of the last. */
static struct {
    uint64_t first_ns, last_ns;
} *published;

static int epoll;
static struct connection *connections;
static uint32_t slots, next_slot, open_count;
static uint64_t lost, broken, close_codes[CLOSE_CODES];
static uint64_t batch_ns; /* time at which the events in hand were fetched */
static unsigned char *echo_frames; /* WINDOW_MAX masked frames back to back */
static char *head_text;
/* Bits that no frame may have: RSV1 marks a compressed message, where compression is offered. */
static uint8_t reserved = 0x70;
static struct lines {
    char **line;
    size_t count;
} tokens, rooms, setup, pong;
static uint32_t room_members = 1;

static void drop(struct connection *c) {
    if (c->state == OPEN || c->state == CLOSING)
        open_count--;
    close(c->fd);
    free(c->answer);
    free(c->unsent);
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
    } else if (size > 65535) {
        out[n++] = 0x80 | 127;
        for (int shift = 56; shift >= 0; shift -= 8)
            out[n++] = (unsigned char)((uint64_t)size >> shift);
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

/* The name of a connection's room. */
static const char *room_of(uint32_t slot) {
    return rooms.count == 0 ? "" : rooms.line[slot / room_members % rooms.count];
}

/* Write a text with its holes filled: the connection's token and room, the stamp, the padding.
 * Returns its size, or the capacity where that is too small. */
static size_t fill(char *out, size_t capacity, const char *text, uint32_t slot, uint64_t stamp) {
    size_t n = 0;
    while (*text != '\0' && n < capacity) {
        char digits[STAMP_DIGITS + 2];
        const char *piece = NULL;
        if (*text == '{' && strncmp(text, "{token}", 7) == 0 && tokens.count > 0) {
            piece = tokens.line[slot % tokens.count];
            text += 7;
        } else if (*text == '{' && strncmp(text, "{room}", 6) == 0) {
            piece = room_of(slot);
            text += 6;
        } else if (*text == '{' && strncmp(text, STAMP_HOLE, strlen(STAMP_HOLE)) == 0) {
            snprintf(digits, sizeof digits, "%c%016llx", STAMP_MARK, (unsigned long long)stamp);
            piece = digits;
            text += strlen(STAMP_HOLE);
        } else if (*text == '{' && strncmp(text, "{pad}", 5) == 0) {
            size_t size = job.pad < capacity - n ? job.pad : capacity - n;
            memset(out + n, 'x', size);
            n += size;
            text += 5;
            continue;
        } else if (text[0] == '\\' && (text[1] == 'r' || text[1] == 'n')) {
            out[n++] = text[1] == 'r' ? '\r' : '\n';
            text += 2;
            continue;
        } else {
            out[n++] = *text++;
            continue;
        }
        size_t size = strlen(piece);
        if (size > capacity - n)
            return capacity;
        memcpy(out + n, piece, size);
        n += size;
    }
    return n;
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
        bool ping = pong.count == 2 && c->message == strlen(pong.line[0]) &&
                    memcmp(c->start, pong.line[0], c->start_have) == 0;
        c->message = 0;
        c->start_have = 0;
        if (ping) {
            char text[LINE_MAX_BYTES];
            seen.pings++;
            seen.frames--; /* not a message */
            size_t size = fill(text, sizeof text, pong.line[1], 0, 0);
            unsigned char frame[LINE_MAX_BYTES + 14];
            if (!send_all(c, frame, build_frame(frame, OP_TEXT, (unsigned char *)text, size))) {
                lose(c);
                return false;
            }
        }
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

static void count_time(uint64_t ns) {
    unsigned power = ns >> BUCKET_BITS ? 63 - (unsigned)__builtin_clzll(ns) : BUCKET_BITS;
    uint64_t step = ns >> (power - BUCKET_BITS);
    latencies[((power - BUCKET_BITS) << BUCKET_BITS) + step]++;
}

/* When message `number` is due: with its whole burst. */
static uint64_t due_at(uint64_t number) {
    return job.start + (uint64_t)((double)(number / job.burst * job.burst) / job.rate * 1e9);
}

static void count_latency(uint64_t due) {
    double number = due < job.start ? -1 : (double)(due - job.start) * job.rate * 1e-9 + 0.5;
    if (number < 0 || number >= (double)job.total || due_at((uint64_t)number) != due) {
        job.strays++; /* of an earlier window */
        return;
    }
    uint64_t ns = batch_ns > due ? batch_ns - due : 0;
    count_time(ns);
    if (ns > job.slowest_ns)
        job.slowest_ns = ns;
    job.received++;
    if (published[(uint64_t)number].first_ns == 0)
        published[(uint64_t)number].first_ns = batch_ns;
    published[(uint64_t)number].last_ns = batch_ns;
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
            if (c->header[1] & 0x80 || c->header[0] & reserved ||
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
        } else {
            if (pong.count == 2 && c->start_have < PONG_MAX) {
                size_t room = PONG_MAX - c->start_have, keep = take < room ? take : room;
                memcpy(c->start + c->start_have, data, keep);
                c->start_have += (uint8_t)keep;
            }
            if (job.what == PUBLISH)
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
    size_t have = fill(head, sizeof head, head_text, slot, 0);
    if (have >= sizeof head) {
        fail_connect(c, "request head too large", 22);
        return;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = slot};
    if (!send_all(c, head, have) || epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event) < 0) {
        fail_connect(c, "request head not sent", 21);
        return;
    }
    c->state = UPGRADING;
}

/* Send the messages that subscribe, in one piece. */
static bool send_setup(struct connection *c, uint32_t slot) {
    unsigned char frames[HEAD_MAX];
    size_t have = 0;
    for (size_t i = 0; i < setup.count; i++) {
        char text[LINE_MAX_BYTES];
        size_t size = fill(text, sizeof text, setup.line[i], slot, 0);
        if (have + size + 14 > sizeof frames)
            return false;
        have += build_frame(frames + have, OP_TEXT, (unsigned char *)text, size);
    }
    return have == 0 || send_all(c, frames, have);
}

static void on_answer(struct connection *c, uint32_t slot, const unsigned char *data,
                      size_t size) {
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
    if (!send_setup(c, slot)) {
        fail_connect(c, "setup not sent", 14);
        return;
    }
    count_time(now_ns() - c->began);
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
    if (job.what == PUBLISH)
        batch_ns = now_ns(); /* each delivery is timed by itself */
    if (c->state == UPGRADING)
        on_answer(c, slot, buffer, (size_t)got);
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
    if (job.narrow > 0 && slot % job.narrow == job.narrow - 1) {
        int bytes = NARROW_BYTES;
        setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    }
    uint32_t host = slot % job.sources;
    struct sockaddr_in source = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(0x7f010000u + (host / 250 << 8) + host % 250 + 1)};
    struct epoll_event event = {.events = EPOLLOUT, .data.u32 = slot};
    c->state = CONNECTING;
    c->began = now_ns();
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
    next_slot = 0; /* who went is replaced in the same room */
    job.wanted = (uint32_t)count;
    job.started = job.finished = job.failed = job.inflight = 0;
    job.inflight_max = (uint32_t)inflight;
    job.sources = (uint32_t)sources;
    job.rate = arg_number(line, "rate", 0);
    job.narrow = (uint32_t)arg_number(line, "narrow", 0);
    memset(latencies, 0, sizeof latencies);
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

/* The connection that speaks in a room: its first member. */
static struct connection *speaker_of(uint64_t number, uint32_t *slot) {
    *slot = (uint32_t)(number / job.burst % job.rooms) * room_members;
    return *slot < slots && connections[*slot].state == OPEN ? &connections[*slot] : NULL;
}

static void begin_publish(const char *line) {
    const char *text = strstr(line, " text=");
    double rate = arg_number(line, "rate", 1), seconds = arg_number(line, "seconds", 1);
    double pad = arg_number(line, "pad", 0);
    job.rooms = (uint32_t)arg_number(line, "rooms", 1);
    job.burst = (uint32_t)arg_number(line, "burst", 1);
    if (text == NULL || strstr(text, STAMP_HOLE) == NULL || rate <= 0 || rate * seconds < 1 ||
        rate * seconds > PUBLISH_COUNT || job.rooms < 1 || job.burst < 1 || pad < 0 || pad > PUBLISH_MAX / 2) {
        refuse("publish: rate, seconds, rooms, pad or text out of range");
        return;
    }
    for (uint32_t room = 0, slot; room < job.rooms; room++)
        if (speaker_of((uint64_t)room * job.burst, &slot) == NULL) {
            refuse("publish: nobody to send it");
            return;
        }
    snprintf(job.text, sizeof job.text, "%s", text + 6);
    job.rate = rate;
    job.pad = (size_t)pad;
    job.receivers = (uint64_t)arg_number(line, "receivers", 1);
    job.total = (uint64_t)(rate * seconds + 0.5);
    job.sent = job.received = job.slowest_ns = job.strays = 0;
    job.reads = seen.reads;
    job.bytes = seen.bytes;
    memset(latencies, 0, sizeof latencies);
    free(published);
    published = calloc(job.total, sizeof *published);
    if (published == NULL)
        die("calloc");
    for (uint32_t i = 0; i < slots; i++)
        connections[i].stamp_digits = 0;
    begin(PUBLISH, line, 0);
    /* Whatever has not come so long after the last was due counts as lost. */
    double patience = arg_number(line, "patience", 10);
    job.deadline = due_at(job.total) + (uint64_t)(patience * 1e9);
}

/* Send what a publisher's socket has refused before. False while it still refuses. */
static bool send_unsent(struct connection *c) {
    if (c->unsent_size == 0)
        return true;
    ssize_t sent = send(c->fd, c->unsent, c->unsent_size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0)
        return false;
    c->unsent_size -= (size_t)sent;
    memmove(c->unsent, c->unsent + sent, c->unsent_size);
    return c->unsent_size == 0;
}

/* Send what is due. The stamp is the moment a message was due, not that of its sending: a sender
 * that is held up, by us or by a server that reads no more, does not make the wait look shorter. */
static void send_due(void) {
    static char message[PUBLISH_MAX];
    static unsigned char frame[PUBLISH_MAX + 14];
    uint64_t now = now_ns();
    while (job.sent < job.total) {
        uint64_t due = due_at(job.sent);
        uint32_t slot;
        struct connection *c = speaker_of(job.sent, &slot);
        if (due > now || c == NULL || !send_unsent(c))
            return;
        size_t text = fill(message, sizeof message, job.text, slot, due), size = 0;
        uint64_t count = 0;
        do {
            size += build_frame(frame + size, OP_TEXT, (unsigned char *)message, text);
            count++;
        } while (count < job.burst && job.sent + count < job.total &&
                 size + text + 14 <= sizeof frame);
        ssize_t sent = send(c->fd, frame, size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0)
            return;
        if ((size_t)sent < size) {
            free(c->unsent);
            c->unsent_size = size - (size_t)sent;
            c->unsent = malloc(c->unsent_size);
            if (c->unsent == NULL)
                die("malloc");
            memcpy(c->unsent, frame + sent, c->unsent_size);
        }
        job.sent += count;
    }
    for (uint32_t room = 0, slot; room < job.rooms; room++) {
        struct connection *c = speaker_of((uint64_t)room * job.burst, &slot);
        if (c != NULL && c->unsent_size > 0)
            send_unsent(c);
    }
}

/* Sleep until something comes or the next message is due, finer than the milliseconds that
 * epoll_wait knows. */
static void wait_until_due(void) {
    uint64_t now = now_ns(), next = now + 20000000u;
    if (job.sent < job.total)
        next = due_at(job.sent);
    uint64_t left = next > now ? next - now : 0;
    struct timespec rest = {.tv_sec = (time_t)(left / 1000000000u),
                            .tv_nsec = (long)(left % 1000000000u)};
    struct pollfd input = {.fd = epoll, .events = POLLIN};
    ppoll(&input, 1, &rest, NULL);
}

static void print_buckets(const char *name) {
    printf("\"%s\":[", name);
    const char *comma = "";
    for (int i = 0; i < LATENCY_BUCKETS; i++)
        if (latencies[i]) {
            printf("%s[%d,%llu]", comma, i, (unsigned long long)latencies[i]);
            comma = ",";
        }
    printf("]");
}

/* Two more distributions, over messages: from due to the last delivery, and from the first to the
 * last. */
static void print_published(uint64_t now) {
    printf("{\"event\":\"published\",\"sent\":%llu,\"received\":%llu,\"strays\":%llu,"
           "\"slowest_ns\":%llu,\"wall_ns\":%llu,\"reads\":%llu,\"bytes\":%llu,\"bits\":%d,",
           (unsigned long long)job.sent, (unsigned long long)job.received,
           (unsigned long long)job.strays, (unsigned long long)job.slowest_ns,
           (unsigned long long)(now - job.start), (unsigned long long)(seen.reads - job.reads),
           (unsigned long long)(seen.bytes - job.bytes), BUCKET_BITS);
    print_buckets("buckets");
    memset(latencies, 0, sizeof latencies);
    for (uint64_t i = 0; i < job.total; i++)
        if (published[i].last_ns)
            count_time(published[i].last_ns - due_at(i));
    printf(",");
    print_buckets("last");
    memset(latencies, 0, sizeof latencies);
    for (uint64_t i = 0; i < job.total; i++)
        if (published[i].last_ns)
            count_time(published[i].last_ns - published[i].first_ns);
    printf(",");
    print_buckets("skew");
    printf("}\n");
}

static void begin_stall(const char *line) {
    uint32_t every = (uint32_t)arg_number(line, "every", 100), count = 0;
    for (uint32_t i = every - 1; every > 1 && i < slots; i += every)
        if (connections[i].state == OPEN &&
            epoll_ctl(epoll, EPOLL_CTL_DEL, connections[i].fd, NULL) == 0) {
            connections[i].stalled = true;
            count++;
        }
    printf("{\"event\":\"stalled\",\"count\":%u}\n", count);
}

static void release(void) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < slots; i++)
        if (connections[i].stalled) {
            struct linger reset = {.l_onoff = 1, .l_linger = 0};
            setsockopt(connections[i].fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
            drop(&connections[i]);
            count++;
        }
    printf("{\"event\":\"released\",\"count\":%u}\n", count);
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
    } else if (is_verb(line, "stall")) {
        begin_stall(line);
    } else if (is_verb(line, "release")) {
        release();
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
               "\"wall_ns\":%llu,\"bits\":%d,",
               open_count, job.wanted - job.finished, job.reason,
               (unsigned long long)(now - job.start), BUCKET_BITS);
        print_buckets("buckets");
        printf("}\n");
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
        send_due();
        if ((job.sent < job.total || job.received < job.total * job.receivers) && !late)
            return;
        print_published(now);
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

static void read_lines(const char *path, struct lines *into) {
    char *text = read_file(path);
    size_t count = 0;
    for (const char *p = text; *p; p++)
        count += *p == '\n';
    into->line = calloc(count + 1, sizeof *into->line);
    if (into->line == NULL)
        die("calloc");
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n"))
        into->line[into->count++] = line;
}

/* The value of an argument "name=value", or NULL when it has another name. */
static const char *value_of(const char *argument, const char *name) {
    size_t length = strlen(name);
    return strncmp(argument, name, length) == 0 && argument[length] == '=' ? argument + length + 1
                                                                           : NULL;
}

static void read_arguments(int argc, char **argv) {
    head_text = read_file(argv[1]);
    if (strstr(head_text, "permessage-deflate") != NULL)
        reserved = 0x30;
    for (int i = 2; i < argc; i++) {
        const char *value;
        if ((value = value_of(argv[i], "tokens")) != NULL) {
            read_lines(value, &tokens);
        } else if ((value = value_of(argv[i], "rooms")) != NULL) {
            read_lines(value, &rooms);
        } else if ((value = value_of(argv[i], "setup")) != NULL) {
            read_lines(value, &setup);
        } else if ((value = value_of(argv[i], "pong")) != NULL) {
            read_lines(value, &pong);
        } else if ((value = value_of(argv[i], "members")) != NULL) {
            room_members = (uint32_t)strtoul(value, NULL, 10);
        } else {
            fprintf(stderr, "unknown argument %s\n", argv[i]);
            exit(2);
        }
    }
    if (room_members == 0 || (pong.count == 2 && strlen(pong.line[0]) > PONG_MAX)) {
        fprintf(stderr, "members or pong out of range\n");
        exit(2);
    }
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: load HEAD_FILE [tokens|rooms|setup|pong=FILE] [members=N]\n");
        return 2;
    }
    read_arguments(argc, argv);
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
            if (job.what == PUBLISH && i % EVENTS_BETWEEN_SENDS == EVENTS_BETWEEN_SENDS - 1)
                send_due();
        }
        work();
    }
}
