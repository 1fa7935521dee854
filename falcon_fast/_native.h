/* Plain C under the core: the loops that run once per byte, and the system calls that exist on one
 * platform only. No Python here; every length is unsigned and compared before it is used. */
#ifndef FALCON_FAST_NATIVE_H
#define FALCON_FAST_NATIVE_H

#include <errno.h>
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

static inline ssize_t ff_send(int fd, const uint8_t *data, size_t size) {
    ssize_t sent;
    do {
        sent = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    return sent;
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

#endif
