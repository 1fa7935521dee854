/* What both C programs of the macro benchmarks share: the clock and the parsing of a command line.
 *
 * A command is one line on stdin, "verb key=value key=value"; every answer is one JSON object on
 * one line of stdout. The harness sends the next command only after the answer. */
#ifndef FALCON_BENCH_COMMON_H
#define FALCON_BENCH_COMMON_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* The key of the sample handshake in RFC 6455 section 1.3 and the answer given there: with one
 * constant key the answer can be checked without SHA-1. */
#define HANDSHAKE_KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define HANDSHAKE_ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

/* Longest command line, in bytes. */
#define LINE_MAX_BYTES 1024

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

/* The number after " key=" in the command, or the fallback. */
static inline double arg_number(const char *line, const char *key, double fallback) {
    size_t length = strlen(key);
    for (const char *p = strchr(line, ' '); p != NULL; p = strchr(p + 1, ' '))
        if (strncmp(p + 1, key, length) == 0 && p[1 + length] == '=')
            return strtod(p + 2 + length, NULL);
    return fallback;
}

/* Whether the command starts with this verb. */
static inline bool is_verb(const char *line, const char *verb) {
    size_t length = strlen(verb);
    return strncmp(line, verb, length) == 0 && (line[length] == '\0' || line[length] == ' ');
}

/* Read what stdin has; true with the line (without its newline) once a whole one is there.
 * End of input ends the program: the harness has gone. */
static inline bool read_command(char line[LINE_MAX_BYTES]) {
    static char held[LINE_MAX_BYTES];
    static size_t have;
    char *end = memchr(held, '\n', have);
    if (end == NULL) {
        ssize_t got = read(STDIN_FILENO, held + have, sizeof held - have);
        if (got <= 0)
            exit(0);
        have += (size_t)got;
        end = memchr(held, '\n', have);
        if (end == NULL) {
            if (have == sizeof held) {
                fprintf(stderr, "command line too long\n");
                exit(1);
            }
            return false;
        }
    }
    size_t length = (size_t)(end - held);
    memcpy(line, held, length);
    line[length] = '\0';
    have -= length + 1;
    memmove(held, end + 1, have);
    return true;
}

/* Raise the soft limit of open files to the hard one and return it. */
static inline unsigned raise_file_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        die("getrlimit");
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
        die("setrlimit");
    return limit.rlim_cur > 1u << 20 ? 1u << 20 : (unsigned)limit.rlim_cur;
}

#endif
