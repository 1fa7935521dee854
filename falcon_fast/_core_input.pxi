# The way in: octets become frames, frames become messages, and messages are handed over.

cdef size_t header_needed(const uint8_t *header, size_t have) noexcept:
    """Return how many octets the header has in all, as far as `have` octets can tell."""
    cdef uint8_t size
    if have < 2:
        return 2
    if not header[1] & 0x80:
        return 2                # refused as soon as it is seen: the rest does not matter
    size = header[1] & 0x7f
    return 6 if size < 126 else (8 if size == 126 else 14)


cdef bint close_code_allowed(uint32_t code) noexcept:
    # RFC 6455 section 7.4 and the IANA registry: 1004 is reserved, 1005, 1006 and 1015 never appear
    # on the wire, 1012-1014 were registered later.
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


cdef class _Input(_End):
    """Reading, taking frames apart, handing messages over."""

    # ----------------------------------------------------------------------------------- octets

    @cython.final
    cdef int _read(self, uint32_t slot) except -1:
        cdef Conn *conn = &self.conns[slot]
        cdef ssize_t got = ff_recv(conn.fd, self.read_buffer, READ_SIZE)
        if got > 0:
            return self._received(slot, self.read_buffer, <size_t>got)
        if got == 0 or not ff_would_block():
            self._lose(slot, CONNECTION_LOST)
        return 0

    @cython.final
    cdef int _received(self, uint32_t slot, uint8_t *data, size_t size) except -1:
        cdef Conn *conn = &self.conns[slot]
        cdef Held *held
        cdef size_t before
        conn.last_seen = <uint32_t>self.now_ms
        self.counted.bytes_in += size
        if conn.state == OPEN:
            return self._feed(slot, data, size)
        if conn.state == HELD:
            # A transport may still hand over what it had read when it was paused.
            before = 0 if conn.held == NULL else conn.held.size
            if size > self.max_message_bytes - min(before, self.max_message_bytes):
                return self._close(slot, EARLY_DATA)
            held = <Held *>realloc(conn.held, sizeof(Held) + before + size)
            if held == NULL:
                raise MemoryError("no memory for early input")
            memcpy(held.data + before, data, size)
            held.size = <uint32_t>(before + size)
            conn.held = held
        return 0

    @cython.final
    cdef int _open(self, uint32_t slot) except -1:
        cdef Conn *conn = &self.conns[slot]
        cdef Held *held = conn.held
        conn.state = OPEN
        if held != NULL:
            conn.held = NULL
            try:
                self._feed(slot, held.data, held.size)
            finally:
                free(held)
        return 0

    # ----------------------------------------------------------------------------------- frames

    @cython.final
    cdef int _feed(self, uint32_t slot, uint8_t *data, size_t size) except -1:
        """Take input of an open connection apart into frames, and act on each."""
        cdef Conn *conn = &self.conns[slot]
        cdef uint32_t generation = conn.generation, refused = 0
        cdef Assembly *assembly
        cdef const uint8_t *header
        cdef size_t needed, take
        cdef uint64_t length = 0
        cdef uint8_t opcode
        cdef bint fin
        cdef int reason, pong_size = -1, pongs = 0
        cdef uint8_t pong[125]
        cdef bytes refusal = None, first_refused = None
        self.depth += 1
        try:
            while size and conn.state == OPEN and conn.generation == generation:
                assembly = conn.assembly
                if assembly != NULL and assembly.in_payload:
                    take = <size_t>min(assembly.missing, <uint64_t>size)
                    self._take(slot, data, take)
                    data += take
                    size -= take
                    if conn.state != OPEN or assembly.missing:
                        continue
                    assembly.in_payload = False
                    if assembly.opcode >= 8:
                        if assembly.opcode == OP_PING and pongs == PONGS_PER_READ:
                            pong_size = <int>assembly.arrived
                            memcpy(pong, assembly.control, pong_size)
                        elif assembly.opcode == OP_PING:
                            pongs += 1
                            self._pong(slot, assembly.control, <int>assembly.arrived)
                        else:
                            self._control(slot, assembly.opcode, assembly.control, assembly.arrived)
                    elif assembly.fin:
                        refusal = self._finish(slot, first_refused is not None)
                    if refusal is not None:
                        refused += 1
                        first_refused = refusal if first_refused is None else first_refused
                        refusal = None
                    continue
                if assembly != NULL and assembly.header_size:
                    needed = header_needed(assembly.header, assembly.header_size)
                    while size and assembly.header_size < needed:
                        assembly.header[assembly.header_size] = data[0]
                        assembly.header_size += 1
                        data += 1
                        size -= 1
                        needed = header_needed(assembly.header, assembly.header_size)
                    header = assembly.header
                    take = assembly.header_size
                else:
                    header = data
                    needed = header_needed(data, size)
                    take = min(needed, size)
                    data += take
                    size -= take
                if take >= 2:
                    reason = self._judge(conn, header)
                    if reason:
                        self._close(slot, reason)
                        break
                if take < needed:
                    if assembly == NULL:
                        assembly = new_assembly(conn)
                    if header != assembly.header:
                        memcpy(assembly.header, header, take)
                        assembly.header_size = <uint8_t>take
                    break
                reason = self._measure(conn, header, &length)
                if reason:
                    self._close(slot, reason)
                    break
                self.counted.frames_in += 1
                opcode = header[0] & 0x0f
                fin = header[0] >> 7
                if (
                    size >= length
                    and opcode != OP_CONTINUATION
                    and (fin or opcode >= 8)
                ):
                    # The whole frame is here and stands alone: nothing needs to be kept.
                    ff_unmask(data, <size_t>length, header + needed - 4, 0)
                    if assembly != NULL:
                        assembly.header_size = 0
                    if opcode == OP_PING and pongs == PONGS_PER_READ:
                        pong_size = <int>length
                        memcpy(pong, data, pong_size)
                    elif opcode == OP_PING:
                        pongs += 1
                        self._pong(slot, data, <int>length)
                    elif opcode >= 8:
                        self._control(slot, opcode, data, length)
                    else:
                        if header[0] & 0x40:
                            refusal = self._unpack(
                                slot, opcode, data, <size_t>length, first_refused is not None
                            )
                        else:
                            refusal = self._complete(slot, opcode, data, <size_t>length)
                        if refusal is not None:
                            refused += 1
                            first_refused = refusal if first_refused is None else first_refused
                            refusal = None
                    data += length
                    size -= <size_t>length
                    continue
                if assembly == NULL:
                    assembly = new_assembly(conn)
                assembly.opcode = opcode
                assembly.fin = fin
                memcpy(assembly.mask, header + needed - 4, 4)
                assembly.header_size = 0
                assembly.arrived = 0
                assembly.missing = length
                assembly.in_payload = True
                if opcode < 8:
                    if opcode != OP_CONTINUATION:
                        assembly.message_opcode = opcode
                        assembly.compressed = header[0] & 0x40
                        assembly.fragments = 0
                        assembly.utf8 = 0
                    assembly.fragments += 1
                if length == 0:
                    assembly.in_payload = False
                    if fin:
                        refusal = self._finish(slot, first_refused is not None)
                        if refusal is not None:
                            refused += 1
                            first_refused = refusal if first_refused is None else first_refused
                            refusal = None
        finally:
            self.depth -= 1
            self._schedule_pending()
        if conn.generation == generation and (conn.state == OPEN or conn.state == CLOSING):
            if conn.state == OPEN and pong_size >= 0:
                self._pong(slot, pong, pong_size)
            self._tidy(conn)
            if refused and conn.state == OPEN:
                self._tell_refused(slot, first_refused, refused)
        return 0

    @cython.final
    cdef int _judge(self, Conn *conn, const uint8_t *header) noexcept:
        """Judge a header by its first two octets; return a reason to close, or 0."""
        cdef uint8_t opcode = header[0] & 0x0f
        cdef bint in_message = conn.assembly != NULL and conn.assembly.message_opcode != 0
        if header[0] & 0x70 and (
            # RSV1 marks the first frame of a compressed message (RFC 7692 section 6), where that was
            # agreed on. Nothing defines the others.
            header[0] & 0x70 != 0x40
            or self.variant_of[conn - self.conns] == PLAIN
            or not 0 < opcode < 8
        ):
            return PROTOCOL_ERROR
        if not header[1] & 0x80:
            return PROTOCOL_ERROR       # section 5.1: frames from a client are masked
        if opcode >= 8:
            # Control frames are short and whole (section 5.5).
            if opcode > OP_PONG or not header[0] & 0x80 or (header[1] & 0x7f) > 125:
                return PROTOCOL_ERROR
        elif opcode > OP_BINARY or (opcode == OP_CONTINUATION) != in_message:
            return PROTOCOL_ERROR
        return 0

    @cython.final
    cdef int _measure(self, Conn *conn, const uint8_t *header, uint64_t *length) noexcept:
        """Read the length of a complete header and hold it against the limits."""
        cdef uint64_t size = header[1] & 0x7f, so_far = 0
        cdef uint32_t fragments = 1
        cdef bint compressed = header[0] & 0x40
        cdef int i
        if size == 126:
            size = <uint64_t>header[2] << 8 | header[3]
            if size < 126:
                return PROTOCOL_ERROR   # section 5.2: the shortest encoding must be used
        elif size == 127:
            size = 0
            for i in range(2, 10):
                size = size << 8 | header[i]
            if size >> 63 or size < 65536:
                return PROTOCOL_ERROR   # the most significant bit must be 0
        length[0] = size
        if header[0] & 0x08:
            return 0
        if header[0] & 0x0f == OP_CONTINUATION:
            so_far = conn.assembly.size
            fragments = conn.assembly.fragments + 1
            compressed = conn.assembly.compressed
        if size > (self._wire_limit() if compressed else self.max_message_bytes) - so_far:
            return MESSAGE_TOO_BIG
        if fragments > self.max_fragments:
            return TOO_MANY_FRAGMENTS
        return 0

    @cython.final
    cdef int _take(self, uint32_t slot, uint8_t *data, size_t size) except -1:
        """Take a piece of the current frame's payload."""
        cdef Assembly *assembly = self.conns[slot].assembly
        cdef uint8_t *grown
        cdef size_t capacity
        ff_unmask(data, size, assembly.mask, <size_t>(assembly.arrived & 3))
        if assembly.opcode >= 8:
            memcpy(assembly.control + assembly.arrived, data, size)
        else:
            if (
                assembly.message_opcode == OP_TEXT
                and not assembly.compressed
                and ff_utf8(&assembly.utf8, data, size)
            ):
                return self._close(slot, INVALID_PAYLOAD)
            if assembly.size + size > assembly.capacity:
                # Memory follows what has arrived, never what a header promises.
                capacity = max(assembly.size + size, assembly.capacity * 2, <size_t>LEAST_MESSAGE)
                grown = <uint8_t *>realloc(assembly.data, capacity)
                if grown == NULL:
                    raise MemoryError("no memory for a message")
                assembly.data = grown
                assembly.capacity = capacity
            memcpy(assembly.data + assembly.size, data, size)
            assembly.size += size
        assembly.arrived += size
        assembly.missing -= size
        return 0

    @cython.final
    cdef int _control(
        self, uint32_t slot, uint8_t opcode, const uint8_t *data, uint64_t size
    ) except -1:
        cdef uint32_t code, utf8 = 0
        if opcode != OP_CLOSE:
            return 0            # a pong: that it came is all it says
        if size == 0:
            return self._close_by_peer(slot, 1005, True)
        code = <uint32_t>data[0] << 8 | data[1] if size >= 2 else 0
        if not close_code_allowed(code):
            return self._close(slot, PROTOCOL_ERROR)
        if ff_utf8(&utf8, data + 2, <size_t>(size - 2)) or utf8:
            return self._close(slot, INVALID_PAYLOAD)
        return self._close_by_peer(slot, code, False)

    @cython.final
    cdef int _pong(self, uint32_t slot, const uint8_t *payload, int size) except -1:
        # RFC 6455 section 5.5.3: only the most recent ping needs an answer. A peer that does not
        # read is owed one pong, not a growing queue of them; one that floods gets a few a read.
        cdef Conn *conn = &self.conns[slot]
        cdef Assembly *assembly
        if conn.queue == NULL:
            return self._note_own(slot, OP_PONG, payload, size)
        assembly = new_assembly(conn) if conn.assembly == NULL else conn.assembly
        memcpy(assembly.pong, payload, size)
        assembly.pong_size = <uint8_t>size
        assembly.pong_owed = True
        return 0

    # --------------------------------------------------------------------------------- messages

    @cython.final
    cdef bytes _finish(self, uint32_t slot, bint told):
        """The last fragment is complete: hand the message over. Returns it when it was refused."""
        cdef Assembly *assembly = self.conns[slot].assembly
        cdef uint8_t opcode = assembly.message_opcode
        cdef uint8_t *data = assembly.data
        cdef size_t size = assembly.size
        cdef bytes payload
        if assembly.compressed:
            assembly.data = NULL
            assembly.size = assembly.capacity = 0
            assembly.message_opcode = 0
            assembly.compressed = False
            try:
                return self._unpack(slot, opcode, data, size, told)
            finally:
                free(data)
        if opcode == OP_TEXT and assembly.utf8:
            self._close(slot, INVALID_PAYLOAD)
            return None
        payload = PyBytes_FromStringAndSize(<const char *>data, size)
        free(data)
        assembly.data = NULL
        assembly.size = assembly.capacity = 0
        assembly.message_opcode = 0
        return self._message(slot, payload, opcode == OP_TEXT)

    @cython.final
    cdef bytes _complete(self, uint32_t slot, uint8_t opcode, const uint8_t *data, size_t size):
        """A message in one frame: hand it over. Returns it when it was refused."""
        cdef uint32_t utf8 = 0
        if opcode == OP_TEXT and (ff_utf8(&utf8, data, size) or utf8):
            self._close(slot, INVALID_PAYLOAD)
            return None
        return self._message(
            slot, PyBytes_FromStringAndSize(<const char *>data, size), opcode == OP_TEXT
        )

    @cython.final
    cdef bytes _unpack(
        self, uint32_t slot, uint8_t opcode, const uint8_t *data, size_t size, bint told
    ):
        """Inflate a message and hand it over. Returns it when it was refused."""
        cdef bytes payload
        cdef uint32_t utf8 = 0
        cdef int reason
        if told and self.message_rate > 0 and self._tokens(&self.conns[slot]) < 1000:
            # It will be refused, and not be the one that the peer is told of: not worth the work,
            # which could be a thousand times that of the octets that came.
            return self._message(slot, b"", opcode == OP_TEXT)
        reason = self._inflate(data, size)
        if reason == 0 and opcode == OP_TEXT and (
            ff_utf8(&utf8, self.inflated, self.inflated_size) or utf8
        ):
            reason = INVALID_PAYLOAD
        if reason:
            self._forget_inflated()
            self._close(slot, reason)
            return None
        payload = PyBytes_FromStringAndSize(<const char *>self.inflated, self.inflated_size)
        self._forget_inflated()
        return self._message(slot, payload, opcode == OP_TEXT)

    @cython.final
    cdef bytes _message(self, uint32_t slot, bytes payload, bint is_text):
        cdef Conn *conn = &self.conns[slot]
        cdef uint32_t generation = conn.generation
        cdef object owner
        if self.message_rate > 0 and not self._spend(conn):
            self.counted.refused += 1
            if conn.refused_at == 0 or <uint32_t>(
                <uint32_t>self.now_ms - conn.refused_at
            ) > REFUSING_GAP_MS:
                conn.refused_since = <uint32_t>self.now_ms
            # 0 means "never"; never later than now, or the difference above would wrap around.
            conn.refused_at = max(<uint32_t>self.now_ms, <uint32_t>1)
            if <uint32_t>(<uint32_t>self.now_ms - conn.refused_since) >= REFUSING_LIMIT_MS:
                self._close(slot, RATE_LIMITED)
            return payload
        self.counted.messages_in += 1
        owner = <object>conn.owner
        try:
            self.on_message(owner, payload, is_text)
        except Exception as error:
            self._failed(slot, generation, error)
        return None

    @cython.final
    cdef inline double _tokens(self, Conn *conn) noexcept:
        # A token bucket in thousandths of a message.
        cdef double tokens = conn.tokens + (
            <uint32_t>(<uint32_t>self.now_ms - conn.rate_at) * self.message_rate
        )
        return min(tokens, self.message_burst * 1000)

    @cython.final
    cdef bint _spend(self, Conn *conn) noexcept:
        cdef double tokens = self._tokens(conn)
        conn.rate_at = <uint32_t>self.now_ms
        if tokens < 1000:
            conn.tokens = <uint32_t>tokens
            return False
        conn.tokens = <uint32_t>(tokens - 1000)
        return True

    @cython.final
    cdef int _tell_refused(self, uint32_t slot, bytes first, uint32_t number) except -1:
        cdef uint32_t generation = self.conns[slot].generation
        try:
            self.on_refused(<object>self.conns[slot].owner, first, number)
        except Exception as error:
            self._failed(slot, generation, error)
        return 0

    # ------------------------------------------------------------- connections with a transport

    @cython.final
    cdef object link_buffer(self):
        return PyMemoryView_FromMemory(<char *>self.read_buffer, READ_SIZE, PyBUF_WRITE)

    @cython.final
    cdef int link_data(self, object handle, Py_ssize_t size) except -1:
        cdef uint32_t slot = 0
        if self._find(handle, &slot):
            self._touch_clock()
            self._received(slot, self.read_buffer, <size_t>size)
        return 0

    @cython.final
    cdef int link_lost(self, object handle) except -1:
        cdef uint64_t tag = handle
        cdef uint32_t slot = <uint32_t>(tag & 0xffff)
        if self.conns[slot].generation == <uint32_t>(tag >> 16) and self.conns[slot].state != FREE:
            self._touch_clock()
            self._lose(slot, CONNECTION_LOST)
        return 0

    @cython.final
    cdef int link_paused(self, object handle, bint paused) except -1:
        cdef uint64_t tag = handle
        cdef uint32_t slot = <uint32_t>(tag & 0xffff)
        cdef Conn *conn = &self.conns[slot]
        if conn.generation != <uint32_t>(tag >> 16) or conn.state == FREE:
            return 0
        self._touch_clock()
        if paused:
            conn.flags |= PAUSED
        else:
            conn.flags &= ~PAUSED
            self._drain(slot)
        return 0
