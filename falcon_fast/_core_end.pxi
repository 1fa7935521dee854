# How connections end: with a Close frame, without one, or as a slow member after the sending; and
# what the application and the slot see of it.

cdef class _End(_Rooms):
    """The ends of connections."""

    @cython.final
    cdef int _close(self, uint32_t slot, int reason) except -1:
        cdef Conn *conn = &self.conns[slot]
        cdef bytes frame
        if conn.state != HELD and conn.state != OPEN:
            return 0
        frame = <bytes>self.close_frames[reason]
        self._say_last(slot, <const uint8_t *>PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
        return self._retire(slot, reason, self.close_codes[reason])

    @cython.final
    cdef int _close_by_peer(self, uint32_t slot, int code, bint empty) except -1:
        # RFC 6455 section 5.5.1: the answer echoes the status code; an empty Close, an empty one.
        cdef uint8_t frame[4]
        frame[0] = 0x88
        frame[1] = 0 if empty else 2
        frame[2] = <uint8_t>(code >> 8)
        frame[3] = <uint8_t>(code & 0xff)
        self._say_last(slot, frame, 2 if empty else 4)
        return self._retire(slot, PEER_CLOSED, code)

    @cython.final
    cdef int _close_slow(self, uint32_t slot) except -1:
        # The backlog is what it cannot take: what remains is the frame it has begun to receive, and
        # the Close that says why.
        cdef Conn *conn = &self.conns[slot]
        cdef bytes frame = <bytes>self.close_frames[SLOW_CONSUMER]
        if conn.state != HELD and conn.state != OPEN:
            return 0
        self._forget_own(slot)
        queue_cut(conn)
        conn.state = CLOSING
        conn.flags &= ~DOOMED_FLAG
        self._put(slot, <const uint8_t *>PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame), 1)
        return self._retire(slot, SLOW_CONSUMER, self.close_codes[SLOW_CONSUMER])

    @cython.final
    cdef int _say_last(self, uint32_t slot, const uint8_t *frame, size_t size) except -1:
        cdef Conn *conn = &self.conns[slot]
        self._flush_one(slot)
        if conn.flags & DOOMED_FLAG and not conn.flags & GONE:
            # It is told why, at the cost of the backlog that it could not take anyway.
            queue_cut(conn)
            conn.flags &= ~DOOMED_FLAG
        conn.state = CLOSING
        self._put(slot, frame, size, 1)
        return 0

    @cython.final
    cdef int _lose(self, uint32_t slot, int reason) except -1:
        """The peer is gone, or is given up: no Close frame, no lingering."""
        cdef Conn *conn = &self.conns[slot]
        cdef uint32_t generation = conn.generation
        if conn.state == HELD or conn.state == OPEN:
            conn.state = CLOSING
            queue_clear(conn)
            conn.flags |= WRITE_ENDED
            self._retire(slot, reason, self.close_codes[reason])
        if conn.state == CLOSING and conn.generation == generation:
            self._release(slot)
        return 0

    @cython.final
    cdef int _failed(self, uint32_t slot, uint32_t generation, object error) except -1:
        self.on_error(error)
        # The callback may have ended its connection, and the slot may be somebody else's by now.
        if self.conns[slot].generation != generation:
            return 0
        return self._close(slot, INTERNAL_ERROR)

    @cython.final
    cdef int _sweep(self) except -1:
        cdef uint32_t i = 0
        cdef Doomed doomed
        # The callbacks may doom further members: they are appended and handled in the same sweep.
        while i < self.doomed_count:
            doomed = self.doomed[i]
            i += 1
            if self.conns[doomed.slot].generation != doomed.generation:
                continue
            if doomed.reason == SLOW_CONSUMER:
                self._close_slow(doomed.slot)
            else:
                self._lose(doomed.slot, doomed.reason)
        self.doomed_count = 0
        return 0

    @cython.final
    cdef int _retire(self, uint32_t slot, int reason, int code) except -1:
        """Take a connection out of everything the application sees; only its socket lingers on."""
        cdef Conn *conn = &self.conns[slot]
        cdef uint32_t *rooms = rooms_in(conn)
        cdef uint32_t i, generation = conn.generation
        for i in range(conn.room_count):
            self._unlist(slot, rooms[i])
        self._unlist(slot, ALL)
        free_assembly(conn)
        free(conn.held)
        conn.held = NULL
        self._touch_clock()
        conn.alarm = <uint32_t>self.now_ms + LINGER_MS
        self.open_count -= 1
        self.deflate_count -= self.variant_of[slot] != PLAIN
        self._arm(slot)
        self._read_on(slot)     # to discard what comes, and to see the peer's end
        if conn.queue == NULL:
            self._end_write(slot, reason == PEER_CLOSED)
        self.depth += 1         # a flush in the callback waits: it could release this very slot
        try:
            self.on_close(<object>conn.owner, reason, code)
        except Exception as error:
            self.on_error(error)
        finally:
            self.depth -= 1
            self._schedule_pending()
        if conn.generation == generation:   # else shut down in the callback, and maybe taken again
            forget_rooms(conn)
        return 0

    @cython.final
    cdef int _read_on(self, uint32_t slot) except -1:
        cdef Conn *conn = &self.conns[slot]
        if conn.fd >= 0:
            self._watch(slot)
        elif conn.flags & NOT_READING:
            conn.flags &= ~NOT_READING
            transport = (<object>conn.link).transport
            if not transport.is_closing():
                transport.resume_reading()
        return 0

    @cython.final
    cdef int _release(self, uint32_t slot) except -1:
        """Give back the socket and the slot. What was queued and not taken is dropped."""
        cdef Conn *conn = &self.conns[slot]
        cdef PyObject *owner = conn.owner
        cdef PyObject *link = conn.link
        self._wheel_remove(slot)
        if conn.fd >= 0:
            ff_epoll_ctl(self.poll_fd, EPOLL_CTL_DEL, conn.fd, 0, 0)
        conn.owner = NULL
        conn.link = NULL
        self._drop_memory(slot)
        conn.state = DEAD
        conn.generation += 1
        self.dead_slots[self.dead_count] = slot
        self.dead_count += 1
        if self.entry_count == 0 and not self.flushing:
            self._recycle()
        Py_DECREF(<object>owner)
        if link != NULL:
            (<object>link).transport.abort()
            Py_DECREF(<object>link)
        return 0
