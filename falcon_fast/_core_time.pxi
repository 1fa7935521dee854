# The clock, and a wheel of timers: a connection is in the bucket of the earliest thing that may come
# due for it. What is done then, `Core._due` decides.

cdef class _Time(_State):
    """The clock and the timer wheel."""

    @cython.final
    cdef int _touch_clock(self) except -1:
        if self.clock is None:
            self.now_ms = (ff_monotonic_ns() - self.started_ns) // 1000000
        else:
            self.now_ms = <uint64_t>((<double>self.clock() - self.started) * 1000 + 0.5)
        return 0

    @cython.final
    cdef int _arm(self, uint32_t slot) except -1:
        """Put a connection into the bucket of the earliest thing that may come due for it."""
        cdef Conn *conn = &self.conns[slot]
        cdef uint32_t now = <uint32_t>self.now_ms
        cdef int64_t wait = (BUCKETS - 1) * TICK_MS, at
        if conn.state == CLOSING:
            wait = min(wait, <int32_t>(conn.alarm - now))
        else:
            if self.ping_interval:
                wait = min(wait, <int32_t>(conn.alarm - now))
                at = <int32_t>(conn.last_seen + self.ping_timeout - now)
                if at <= 0:
                    at = <int64_t>self.grace_until - <int64_t>self.now_ms
                wait = min(wait, at)
            if conn.queue != NULL:
                at = <int32_t>(conn.queue.progress_at + self.write_timeout - now)
                if at <= 0:
                    at = <int64_t>self.grace_until - <int64_t>self.now_ms
                wait = min(wait, at)
            if conn.expires:
                wait = min(wait, <int64_t>conn.expires * TICK_MS - <int64_t>self.now_ms)
        self._wheel_remove(slot)
        at = (<int64_t>self.now_ms + max(wait, 1) + TICK_MS - 1) // TICK_MS
        at = min(max(at, <int64_t>self.wheel_at + 1), <int64_t>self.wheel_at + BUCKETS - 1)
        at = at % BUCKETS
        conn.wheel_bucket = <int16_t>at
        conn.wheel_previous = -1
        conn.wheel_next = self.wheel[at]
        if conn.wheel_next >= 0:
            self.conns[conn.wheel_next].wheel_previous = <int32_t>slot
        self.wheel[at] = <int32_t>slot
        return 0

    @cython.final
    cdef void _wheel_remove(self, uint32_t slot) noexcept:
        cdef Conn *conn = &self.conns[slot]
        if conn.wheel_bucket < 0:
            return
        if conn.wheel_previous >= 0:
            self.conns[conn.wheel_previous].wheel_next = conn.wheel_next
        else:
            self.wheel[conn.wheel_bucket] = conn.wheel_next
        if conn.wheel_next >= 0:
            self.conns[conn.wheel_next].wheel_previous = conn.wheel_previous
        conn.wheel_bucket = -1
