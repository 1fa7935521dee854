# permessage-deflate (RFC 7692) without context takeover: every message is compressed by itself, so a
# connection has no state of zlib's, and all members that agreed on the same window share one result.
# A connection's variant is PLAIN, or its window's bits less 8; each variant is a form of its own.

cdef enum:
    MEMORY_LEVEL = 5            # as fast and small as 8 for messages, a tenth of the memory to reset
    LEAST_ROOM = 4096           # octets that inflating begins with

cdef enum:
    AS_IT_IS = 0xffffffff       # Packed.offset of a frame that does not get smaller

cdef uint8_t[4] EMPTY_BLOCK = [0x00, 0x00, 0xff, 0xff]    # section 7.2.1: not sent, taken as read


cdef size_t put_header(uint8_t *frame, uint8_t first, uint64_t size) noexcept nogil:
    """Write the header of a frame of ours; return how long it is."""
    cdef int i
    frame[0] = first
    if size < 126:
        frame[1] = <uint8_t>size
        return 2
    if size < 65536:
        frame[1] = 126
        frame[2] = <uint8_t>(size >> 8)
        frame[3] = <uint8_t>(size & 0xff)
        return 4
    frame[1] = 127
    for i in range(8):
        frame[2 + i] = <uint8_t>(size >> (56 - 8 * i))
    return 10


cdef class _Deflate(_Time):
    """Messages compressed and inflated."""

    def __dealloc__(self) -> None:
        cdef uint32_t variant
        for variant in range(<uint32_t>VARIANTS):
            if self.deflaters[variant] != NULL:
                deflateEnd(self.deflaters[variant])
                free(self.deflaters[variant])
            free(self.packed[variant])
        if self.inflater != NULL:
            inflateEnd(self.inflater)
            free(self.inflater)
        free(self.packed_arena)
        free(self.inflated)

    @cython.final
    cdef uint8_t _variant(self, int bits) except? 0xff:
        if bits != 0 and not 9 <= bits <= 15:
            raise ValueError(f"a window has 9 to 15 bits, or is 0 for none, not {bits}")
        return <uint8_t>(bits - 8) if bits else PLAIN

    # ---------------------------------------------------------------------------------- the way out

    @cython.final
    cdef z_stream *_deflater(self, uint32_t variant) except NULL:
        cdef z_stream *stream = self.deflaters[variant]
        cdef int status
        if stream == NULL:
            stream = <z_stream *>calloc(1, sizeof(z_stream))
            if stream == NULL:
                raise MemoryError("no memory to compress with")
            status = deflateInit2(
                stream, self.deflate_level, Z_DEFLATED, -<int>(variant + 8), MEMORY_LEVEL,
                Z_DEFAULT_STRATEGY,
            )
            if status != Z_OK:
                free(stream)
                raise MemoryError(f"zlib cannot compress (error {status})")
            self.deflaters[variant] = stream
        else:
            deflateReset(stream)
        return stream

    @cython.final
    cdef int _ready_packed(self, uint32_t variant) except -1:
        """Have a place for what each of the tick's frames becomes in a variant."""
        cdef Packed *packed
        if self.packed_capacity[variant] < self.entry_count:
            packed = <Packed *>realloc(
                self.packed[variant], self.entry_capacity * sizeof(Packed)
            )
            if packed == NULL:
                raise MemoryError("no memory for compressed messages")
            self.packed[variant] = packed
            self.packed_capacity[variant] = self.entry_capacity
        if self.packed_count[variant] < self.entry_count:
            memset(
                self.packed[variant] + self.packed_count[variant], 0,
                (self.entry_count - self.packed_count[variant]) * sizeof(Packed),
            )
            self.packed_count[variant] = self.entry_count
        return 0

    @cython.final
    cdef int _pack(self, uint32_t variant, uint32_t index) except -1:
        """Compress one of the tick's frames for a variant, once: the first time it is needed."""
        cdef Packed *packed = &self.packed[variant][index]
        cdef Entry *entry = &self.entries[index]
        cdef const uint8_t *frame = self.arena + entry.offset
        cdef uint8_t *arena
        cdef uint8_t *out
        cdef z_stream *stream
        cdef size_t header, size, capacity
        if packed.size:
            return 0
        packed.offset = AS_IT_IS
        packed.size = entry.size
        if frame[0] & 0x08:
            return 0            # section 6.1: control frames are never compressed
        header = 2 if frame[1] < 126 else (4 if frame[1] == 126 else 10)
        size = entry.size - header
        if size < self.deflate_min_bytes:
            return 0
        if self.packed_size + size + 14 > self.packed_arena_capacity:
            capacity = max(self.packed_arena_capacity * 2, self.packed_size + size + 14)
            arena = <uint8_t *>realloc(self.packed_arena, capacity)
            if arena == NULL:
                raise MemoryError("no memory for compressed messages")
            self.packed_arena = arena
            self.packed_arena_capacity = capacity
        stream = self._deflater(variant)
        arena = self.packed_arena + self.packed_size
        out = arena + 10        # the longest header
        stream.next_in = frame + header
        stream.avail_in = <uint32_t>size
        stream.next_out = out
        stream.avail_out = <uint32_t>size + 4
        self.counted.compressions += 1
        self.counted.compression_in += size
        # What fills all the room it has is not smaller than the message, whatever is still to come.
        if c_deflate(stream, Z_SYNC_FLUSH) != Z_OK or stream.avail_in or stream.avail_out == 0:
            self.counted.compression_out += size
            return 0
        size -= stream.avail_out                # less the empty block at its end
        header = put_header(arena, frame[0] | 0x40, size)
        memmove(arena + header, out, size)
        packed.offset = <uint32_t>self.packed_size
        packed.size = <uint32_t>(header + size)
        self.packed_size += header + size
        self.counted.compression_out += size
        return 0

    @cython.final
    cdef void _forget_packed(self) noexcept:
        cdef uint32_t variant
        for variant in range(1, <uint32_t>VARIANTS):
            self.packed_count[variant] = 0
        self.packed_size = 0
        if self.packed_arena_capacity > ARENA_KEEP:
            free(self.packed_arena)
            self.packed_arena = NULL
            self.packed_arena_capacity = 0

    # ----------------------------------------------------------------------------------- the way in

    @cython.final
    cdef uint64_t _wire_limit(self) noexcept:
        # A message of full size that does not compress is longer on the wire than by itself: nine
        # bits for an octet at worst, and the heads of its blocks.
        return self.max_message_bytes + (self.max_message_bytes >> 3) + 64

    @cython.final
    cdef z_stream *_inflater(self) except NULL:
        cdef int status
        if self.inflater == NULL:
            self.inflater = <z_stream *>calloc(1, sizeof(z_stream))
            if self.inflater == NULL:
                raise MemoryError("no memory to inflate with")
            # The largest window takes what was compressed with any.
            status = inflateInit2(self.inflater, -15)
            if status != Z_OK:
                free(self.inflater)
                self.inflater = NULL
                raise MemoryError(f"zlib cannot inflate (error {status})")
        else:
            inflateReset(self.inflater)
        return self.inflater

    @cython.final
    cdef int _inflate(self, const uint8_t *data, size_t size) except -1:
        """Inflate a message into `inflated`; return 0, or a reason to close.

        Not one octet more than the limit and one is ever made of it.
        """
        cdef z_stream *stream = self._inflater()
        cdef int part, status
        cdef uint64_t room
        self.inflated_size = 0
        self.counted.inflations += 1
        self.counted.inflation_in += size
        if size == 0:
            return 0            # section 7.2.3.6 wants one octet; some senders leave it out
        for part in range(2):
            stream.next_in = data if part == 0 else EMPTY_BLOCK
            stream.avail_in = <uint32_t>size if part == 0 else 4
            while True:
                if self.inflated_size == self.inflated_capacity:
                    self._grow_inflated(size)
                room = min(self.inflated_capacity - self.inflated_size, <size_t>0x40000000)
                stream.next_out = self.inflated + self.inflated_size
                stream.avail_out = <uint32_t>room
                status = c_inflate(stream, Z_SYNC_FLUSH)
                self.inflated_size += room - stream.avail_out
                if self.inflated_size > self.max_message_bytes:
                    return MESSAGE_TOO_BIG
                if status == Z_STREAM_END:
                    # A block that says it is the last one. Section 7.2.1 lets others follow it.
                    inflateReset(stream)
                    if stream.avail_in == 0:
                        if part == 0:
                            self.counted.inflation_out += self.inflated_size
                            return 0
                        return INVALID_PAYLOAD
                elif status != Z_OK and status != Z_BUF_ERROR:
                    if status == Z_MEM_ERROR:
                        raise MemoryError("no memory to inflate with")
                    return INVALID_PAYLOAD
                elif stream.avail_out:
                    break       # all input is taken, and all output that can be made of it is there
        # 128: at the end of a block; with all its bits used, and it was not the last one. Anything
        # else was cut off.
        if stream.data_type & 0xff != 128:
            return INVALID_PAYLOAD
        self.counted.inflation_out += self.inflated_size
        return 0

    @cython.final
    cdef int _grow_inflated(self, size_t size) except -1:
        cdef size_t capacity = max(self.inflated_capacity * 2, size * 2, <size_t>LEAST_ROOM)
        cdef uint8_t *inflated
        capacity = min(capacity, <size_t>self.max_message_bytes + 1)
        inflated = <uint8_t *>realloc(self.inflated, capacity)
        if inflated == NULL:
            raise MemoryError("no memory for a message")
        self.inflated = inflated
        self.inflated_capacity = capacity
        return 0

    @cython.final
    cdef void _forget_inflated(self) noexcept:
        if self.inflated_capacity > ARENA_KEEP:
            free(self.inflated)
            self.inflated = NULL
            self.inflated_capacity = 0
