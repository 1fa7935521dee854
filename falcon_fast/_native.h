/* Plain C under the core: the loops that run once per byte, and the system calls that exist on one
 * platform only. No Python here; every length is unsigned and compared before it is used. */
#ifndef FALCON_FAST_NATIVE_H
#define FALCON_FAST_NATIVE_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifdef FALCON_OWN_ZLIB_H
#include "_zlib.h"
#else
#define ZLIB_CONST
#include <zlib.h>
#endif

#ifdef __linux__
#include <sys/epoll.h>
#include <sys/syscall.h>
#define FF_HAVE_EPOLL 1
#else
/* Other systems keep the event loop's own transports; these names only let the core compile. */
#define FF_HAVE_EPOLL 0
#define EPOLLIN 1u
#define EPOLLOUT 4u
#define EPOLLERR 8u
#define EPOLLHUP 16u
#define EPOLL_CTL_ADD 1
#define EPOLL_CTL_DEL 2
#define EPOLL_CTL_MOD 3
typedef union { uint64_t u64; } epoll_data_t;
struct epoll_event { uint32_t events; epoll_data_t data; };
#endif

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif
#ifndef MSG_MORE
#define MSG_MORE 0
#endif

static inline int ff_epoll_create(void) {
#if FF_HAVE_EPOLL
    return epoll_create1(EPOLL_CLOEXEC);
#else
    errno = ENOSYS;
    return -1;
#endif
}

static inline int ff_epoll_ctl(int epoll_fd, int operation, int fd, uint32_t events, uint64_t tag) {
#if FF_HAVE_EPOLL
    struct epoll_event event;
    memset(&event, 0, sizeof event);
    event.events = events;
    event.data.u64 = tag;
    return epoll_ctl(epoll_fd, operation, fd, &event);
#else
    (void)epoll_fd; (void)operation; (void)fd; (void)events; (void)tag;
    errno = ENOSYS;
    return -1;
#endif
}

/* Never blocks: the asyncio loop has already said that the set is readable. */
static inline int ff_epoll_poll(int epoll_fd, struct epoll_event *events, int capacity) {
#if FF_HAVE_EPOLL
    return epoll_wait(epoll_fd, events, capacity, 0);
#else
    (void)epoll_fd; (void)events; (void)capacity;
    return 0;
#endif
}

/* With `more`, the kernel may wait a moment (200 ms) for what is sent next, and send both in one. */
static inline ssize_t ff_send(int fd, const uint8_t *data, size_t size, int more) {
    const int flags = MSG_DONTWAIT | MSG_NOSIGNAL | (more ? MSG_MORE : 0);
    ssize_t sent;
    do {
#if defined(__linux__) && defined(__LP64__)
        /* In a process with threads the library's send() is a place where a thread may be cancelled:
         * it says so before and after each call, which takes as long as all else that we do for one. */
        sent = (ssize_t)syscall(SYS_sendto, fd, data, size, flags, (void *)0, 0);
#else
        sent = send(fd, data, size, flags);
#endif
    } while (sent < 0 && errno == EINTR);
    return sent;
}

/* Accepts a connection, close-on-exec and not blocking; its address as text, "" for none. */
static inline int ff_accept(int listener, char *address, size_t size) {
#if FF_HAVE_EPOLL
    struct sockaddr_storage peer;
    socklen_t length;
    int fd;
    do {
        length = sizeof peer;
        memset(&peer, 0, sizeof peer);
        fd = accept4(listener, (struct sockaddr *)&peer, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
    } while (fd < 0 && errno == EINTR);
    address[0] = '\0';
    if (fd >= 0 && peer.ss_family == AF_INET) {
        (void)inet_ntop(AF_INET, &((struct sockaddr_in *)&peer)->sin_addr, address, (socklen_t)size);
    } else if (fd >= 0 && peer.ss_family == AF_INET6) {
        (void)inet_ntop(AF_INET6, &((struct sockaddr_in6 *)&peer)->sin6_addr, address,
                        (socklen_t)size);
    }
    return fd;
#else
    (void)listener; (void)address; (void)size;
    errno = ENOSYS;
    return -1;
#endif
}

static inline ssize_t ff_recv(int fd, uint8_t *data, size_t size) {
    ssize_t got;
    do {
        got = recv(fd, data, size, MSG_DONTWAIT);
    } while (got < 0 && errno == EINTR);
    return got;
}

static inline int ff_would_block(void) { return errno == EAGAIN || errno == EWOULDBLOCK; }

static inline uint64_t ff_monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* RFC 6455 section 5.3: octet i of the payload is XORed with octet (i MOD 4) of the key.
 * `phase` is the number of payload octets that were already unmasked. */
static inline void ff_unmask(uint8_t *data, size_t size, const uint8_t key[4], size_t phase) {
    uint8_t rotated[8];
    uint64_t wide, chunk;
    size_t i;
    for (i = 0; i < 8; i++) {
        rotated[i] = key[(phase + i) & 3];
    }
    memcpy(&wide, rotated, 8);
    for (i = 0; size - i >= 8; i += 8) {
        memcpy(&chunk, data + i, 8);
        chunk ^= wide;
        memcpy(data + i, &chunk, 8);
    }
    for (; i < size; i++) {
        data[i] ^= rotated[i & 7];
    }
}

/* UTF-8 as RFC 3629 defines it, one step at a time, so that a text can be judged while it arrives.
 * The state packs what the next octet must be: number of octets still owed, lowest and highest
 * value allowed for the next one. 0 means "between characters". Returns 0, or -1 when invalid. */
static inline int ff_utf8(uint32_t *state, const uint8_t *data, size_t size) {
    uint32_t owed = *state & 0xff, low = (*state >> 8) & 0xff, high = *state >> 16;
    uint64_t chunk;
    size_t i = 0;
    while (i < size) {
        uint8_t octet;
        if (owed == 0) {
            while (size - i >= 8) {
                memcpy(&chunk, data + i, 8);
                if (chunk & UINT64_C(0x8080808080808080)) {
                    break;
                }
                i += 8;
            }
            if (i == size) {
                break;
            }
        }
        octet = data[i++];
        if (owed) {
            if (octet < low || octet > high) {
                return -1;
            }
            owed--;
            low = 0x80;
            high = 0xbf;
        } else if (octet >= 0x80) {
            low = 0x80;
            high = 0xbf;
            if (octet >= 0xc2 && octet <= 0xdf) {
                owed = 1;
            } else if (octet >= 0xe0 && octet <= 0xef) {
                owed = 2;
                if (octet == 0xe0) {
                    low = 0xa0; /* overlong */
                } else if (octet == 0xed) {
                    high = 0x9f; /* surrogates */
                }
            } else if (octet >= 0xf0 && octet <= 0xf4) {
                owed = 3;
                if (octet == 0xf0) {
                    low = 0x90; /* overlong */
                } else if (octet == 0xf4) {
                    high = 0x8f; /* above U+10FFFF */
                }
            } else {
                return -1;
            }
        }
    }
    *state = owed ? (owed | low << 8 | high << 16) : 0;
    return 0;
}

enum {
    FF_JSON_OK = 0,
    FF_JSON_TOO_DEEP = 1,
    FF_JSON_INTEGER_TOO_LARGE = 2,
    FF_JSON_TOO_MANY_KEYS = 3
};

/* One pass over a JSON text for the three things the parser behind it would let pass: nesting and
 * numbers of keys that cost more than they may, and integers that it would round to a float. Not a validator: what is not
 * JSON at all is the parser's to refuse. */
static inline int ff_scan_json(const uint8_t *text, size_t size, size_t max_depth,
                               size_t max_keys) {
    static const char max_unsigned[] = "18446744073709551615";
    static const char min_signed[] = "9223372036854775808";
    size_t i = 0, depth = 0, keys = 0;
    while (i < size) {
        uint8_t octet = text[i];
        if (octet == '"') {
            i++;
            while (i < size && text[i] != '"') {
                i += text[i] == '\\' ? 2 : 1;
            }
            i++;
        } else if (octet == '{' || octet == '[') {
            if (++depth > max_depth) {
                return FF_JSON_TOO_DEEP;
            }
            i++;
        } else if (octet == '}' || octet == ']') {
            depth -= depth > 0;
            i++;
        } else if (octet == ':') {
            if (++keys > max_keys) {
                return FF_JSON_TOO_MANY_KEYS;
            }
            i++;
        } else if (octet == '-' || (octet >= '0' && octet <= '9')) {
            int negative = octet == '-', integer = 1;
            size_t start, digits;
            i += (size_t)negative;
            while (i < size && text[i] == '0') {
                i++;
            }
            start = i;
            while (i < size && text[i] >= '0' && text[i] <= '9') {
                i++;
            }
            digits = i - start;
            while (i < size && (text[i] == '.' || text[i] == 'e' || text[i] == 'E' ||
                                text[i] == '+' || text[i] == '-' ||
                                (text[i] >= '0' && text[i] <= '9'))) {
                integer = 0;
                i++;
            }
            if (integer) {
                const char *limit = negative ? min_signed : max_unsigned;
                size_t limit_digits = negative ? 19 : 20;
                if (digits > limit_digits ||
                    (digits == limit_digits && memcmp(text + start, limit, digits) > 0)) {
                    return FF_JSON_INTEGER_TOO_LARGE;
                }
            }
        } else {
            i++;
        }
    }
    return FF_JSON_OK;
}

/* A frame from another node that can be passed on as it is: strict JSON without white space, of the
 * shape {type, room, id?, from?, data?, timestamp?} in any order, each once, and nothing in it that
 * two readers could understand differently. It says "no" to much that is allowed (escapes like \u,
 * exponents, long numbers, many keys, deep nesting): that is then parsed, checked and written anew. */
enum { FF_PLAIN_DEPTH = 12, FF_PLAIN_KEYS = 16, FF_PLAIN_TEXT = 128, FF_PLAIN_SIZE = 65536 };

typedef struct {
    uint32_t at, size;  /* without the quotation marks */
} ff_span;

typedef struct {
    ff_span type, room;
} ff_plain;

/* Whether one of eight octets is a control character, a quotation mark or a backslash. */
static inline int ff_plain_stop(const uint8_t *text) {
    const uint64_t ones = UINT64_C(0x0101010101010101), tops = UINT64_C(0x8080808080808080);
    uint64_t chunk, quote, slash, erased;
    memcpy(&chunk, text, 8);
    quote = chunk ^ ones * '"';
    slash = chunk ^ ones * '\\';
    erased = chunk ^ ones * 0x7f;
    return (((chunk - ones * 0x20) & ~chunk) | ((quote - ones) & ~quote) |
            ((slash - ones) & ~slash) | ((erased - ones) & ~erased)) & tops ? 1 : 0;
}

/* The end of a string that begins at `at`, behind its quotation mark; 0 for one that is not plain.
 * Sets `escaped` if it holds a backslash. */
static inline size_t ff_plain_string(const uint8_t *text, size_t size, size_t at, int *escaped) {
    size_t i = at + 1, stop;
    while (i < size) {
        if (size - i >= 8 && !ff_plain_stop(text + i)) {
            i += 8;
            continue;
        }
        for (stop = size - i > 8 ? i + 8 : size; i < stop; i++) {
            uint8_t octet = text[i];
            if (octet == '"') {
                return i + 1;
            }
            if (octet < 0x20 || octet == 0x7f) {
                return 0;
            }
            if (octet == '\\') {
                *escaped = 1;
                i++;
                if (i >= size || memchr("\"\\/bfnrt", text[i], 8) == NULL) {
                    return 0;
                }
            }
        }
    }
    return 0;
}

/* The end of a number, true, false or null that begins at `at`; 0 for another one. */
static inline size_t ff_plain_scalar(const uint8_t *text, size_t size, size_t at) {
    size_t i = at, start;
    if (text[i] == 't') {
        return size - i > 4 && memcmp(text + i, "true", 4) == 0 ? i + 4 : 0;
    }
    if (text[i] == 'f') {
        return size - i > 5 && memcmp(text + i, "false", 5) == 0 ? i + 5 : 0;
    }
    if (text[i] == 'n') {
        return size - i > 4 && memcmp(text + i, "null", 4) == 0 ? i + 4 : 0;
    }
    i += text[i] == '-';
    start = i;
    while (i < size && text[i] >= '0' && text[i] <= '9') {
        i++;
    }
    if (i == start || i - start > 15 || (text[start] == '0' && i - start > 1)) {
        return 0;
    }
    if (start > at && text[start] == '0' && (i == size || text[i] != '.')) {
        return 0; /* "-0" is a whole number to some readers and a fraction to others */
    }
    if (i < size && text[i] == '.') {
        start = ++i;
        while (i < size && text[i] >= '0' && text[i] <= '9') {
            i++;
        }
        if (i == start || i - at > 16) {
            return 0;
        }
    }
    /* An exponent is followed by something that is neither a comma nor an end: refused there. */
    return i;
}

static inline int ff_plain_is(const uint8_t *text, size_t at, size_t size, const char *name) {
    return size == strlen(name) && memcmp(text + at, name, size) == 0;
}

/* 1 if a text is such a frame, else 0. */
static inline int ff_plain_frame(const uint8_t *text, size_t size, ff_plain *found) {
    struct {
        uint32_t key_at[FF_PLAIN_KEYS];
        uint32_t key_size[FF_PLAIN_KEYS];
        int keys;
        int is_object;
    } levels[FF_PLAIN_DEPTH], *level;
    int depth = 0, all = 0, high = 0, k;
    size_t i, end;
    if (size < 2 || size > FF_PLAIN_SIZE || text[0] != '{') {
        return 0;
    }
    found->type.size = found->room.size = 0;
    for (i = 0; i < size; i++) {
        high |= text[i];
    }
    if (high & 0x80) {
        uint32_t state = 0;
        if (ff_utf8(&state, text, size) != 0 || state != 0) {
            return 0;
        }
    }
    level = levels;
    level->is_object = 1;
    level->keys = 0;
    depth = 1;
    i = 1;
    if (text[1] == '}') {
        return 0;
    }
    for (;;) {
        size_t key_at = 0, key_size = 0;
        if (i >= size) {
            return 0;
        }
        if (level->is_object) {
            int escaped = 0;
            if (text[i] != '"' || (end = ff_plain_string(text, size, i, &escaped)) == 0 || escaped) {
                return 0;
            }
            key_at = i + 1;
            key_size = end - i - 2;
            if (level->keys == FF_PLAIN_KEYS || ++all > 1000) {
                return 0;
            }
            for (k = 0; k < level->keys; k++) {
                if (level->key_size[k] == key_size &&
                    memcmp(text + level->key_at[k], text + key_at, key_size) == 0) {
                    return 0;
                }
            }
            level->key_at[level->keys] = (uint32_t)key_at;
            level->key_size[level->keys++] = (uint32_t)key_size;
            if (end >= size || text[end] != ':') {
                return 0;
            }
            i = end + 1;
            if (i >= size) {
                return 0;
            }
        }
        /* A value. */
        if (depth == 1) {
            int is_data = ff_plain_is(text, key_at, key_size, "data");
            if ((text[i] == '{') != is_data || (text[i] == '"') == is_data) {
                return 0;
            }
        }
        if (text[i] == '"') {
            int escaped = 0;
            end = ff_plain_string(text, size, i, &escaped);
            if (end == 0) {
                return 0;
            }
            if (depth == 1) {
                ff_span span;
                span.at = (uint32_t)(i + 1);
                span.size = (uint32_t)(end - i - 2);
                if (escaped || span.size > FF_PLAIN_TEXT || span.size == 0) {
                    return 0;
                }
                if (ff_plain_is(text, key_at, key_size, "type")) {
                    found->type = span;
                } else if (ff_plain_is(text, key_at, key_size, "room")) {
                    found->room = span;
                } else if (!ff_plain_is(text, key_at, key_size, "id") &&
                           !ff_plain_is(text, key_at, key_size, "from") &&
                           !ff_plain_is(text, key_at, key_size, "timestamp")) {
                    return 0;
                }
            }
            i = end;
        } else if (text[i] == '{' || text[i] == '[') {
            uint8_t close = text[i] == '{' ? '}' : ']';
            if (i + 1 >= size) {
                return 0;
            }
            if (text[i + 1] == close) {
                i += 2;
            } else {
                if (depth == FF_PLAIN_DEPTH) {
                    return 0;
                }
                level = &levels[depth++];
                level->is_object = close == '}';
                level->keys = 0;
                i++;
                continue;
            }
        } else if ((i = ff_plain_scalar(text, size, i)) == 0) {
            return 0;
        }
        /* What follows a value. */
        while (i < size && text[i] == (level->is_object ? '}' : ']')) {
            i++;
            if (--depth == 0) {
                return i == size && found->type.size != 0 && found->room.size != 0;
            }
            level = &levels[depth - 1];
        }
        if (i >= size || text[i] != ',') {
            return 0;
        }
        i++;
    }
}

#endif
