/* What the core uses of zlib, for machines that have the library, as every Python needs it, but not
 * its header. Layouts and numbers are those of zlib 1.x (https://zlib.net/manual.html), which has
 * not changed them since 1995; zlib itself compares the size of z_stream with its own. */
#ifndef FALCON_FAST_ZLIB_H
#define FALCON_FAST_ZLIB_H

typedef struct z_stream_s {
    const unsigned char *next_in;
    unsigned int avail_in;
    unsigned long total_in;
    unsigned char *next_out;
    unsigned int avail_out;
    unsigned long total_out;
    const char *msg;
    void *state;
    void *(*zalloc)(void *, unsigned int, unsigned int);
    void (*zfree)(void *, void *);
    void *opaque;
    int data_type;
    unsigned long adler;
    unsigned long reserved;
} z_stream;

#define Z_OK 0
#define Z_STREAM_END 1
#define Z_MEM_ERROR (-4)
#define Z_BUF_ERROR (-5)
#define Z_SYNC_FLUSH 2
#define Z_DEFLATED 8
#define Z_DEFAULT_STRATEGY 0

extern const char *zlibVersion(void);
extern int deflateInit2_(z_stream *, int, int, int, int, int, const char *, int);
extern int deflateReset(z_stream *);
extern int deflate(z_stream *, int);
extern int deflateEnd(z_stream *);
extern int inflateInit2_(z_stream *, int, const char *, int);
extern int inflateReset(z_stream *);
extern int inflate(z_stream *, int);
extern int inflateEnd(z_stream *);

#define deflateInit2(stream, level, method, bits, memory, strategy) \
    deflateInit2_(stream, level, method, bits, memory, strategy, "1.2.0", (int)sizeof(z_stream))
#define inflateInit2(stream, bits) inflateInit2_(stream, bits, "1.2.0", (int)sizeof(z_stream))

#endif
