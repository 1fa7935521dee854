# The clock, how a time is written, and a wheel of timers: a connection is in the bucket of the
# earliest thing that may come due for it. What is done then, `Core._due` decides.

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
        cdef uint64_t step
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
        step = <uint64_t>at
        at = at % BUCKETS
        conn.wheel_bucket = <int16_t>at
        conn.wheel_previous = -1
        conn.wheel_next = self.wheel[at]
        if conn.wheel_next >= 0:
            self.conns[conn.wheel_next].wheel_previous = <int32_t>slot
        self.wheel[at] = <int32_t>slot
        if step < self.next_tick:
            self.next_tick = step
            if self.on_hurry is not None:
                self.on_hurry()
        return 0

    @cython.final
    cdef uint32_t _ping_moment(self, uint32_t slot, uint64_t at, bint is_first) noexcept:
        """Return when in the second of a time a connection is pinged: all at its beginning, for what
        is idle wakes once for all of them then, or if there are many, in two or four parts."""
        cdef uint32_t parts = 1
        if self.ping_interval < PING_GRIDS * PING_GRID_MS:
            return <uint32_t>at
        while parts < PING_GRID_MS // TICK_MS and (
            <uint64_t>self.open_count * PING_GRID_MS
            > <uint64_t>parts * PINGS_AT_ONCE * self.ping_interval
        ):
            parts *= 2
        if is_first:
            at += PING_GRID_MS - 1      # not before now
        at -= at % PING_GRID_MS
        return <uint32_t>(at + slot % parts * (PING_GRID_MS // parts))

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


cdef inline void put_digits(uint8_t *end, uint32_t number, int digits) noexcept nogil:
    """Write a number in front of a place, with leading zeros."""
    cdef int i
    for i in range(1, digits + 1):
        end[-i] = <uint8_t>(0x30 + number % 10)
        number //= 10


def rfc3339(unix: float) -> str:
    """Format a time as RFC 3339 in UTC with microseconds: ``2026-01-02T03:04:05.123456Z``.

    Args:
        unix: Seconds since 1970 UTC, before the year 10000.

    Returns:
        27 ASCII characters, so that sorting the strings sorts the times.

    Raises:
        ValueError: The time is before 1970, after 9999, or not a number.
    """
    cdef double seconds = unix
    cdef int64_t microseconds
    cdef uint32_t day, second, era_day, era, year_of_era, day_of_year, shifted
    cdef str text
    cdef uint8_t *out
    if not 0.0 <= seconds < 253402300800.0:
        raise ValueError("time is outside the years 1970 to 9999")
    microseconds = llrint(seconds * 1000000.0)
    second = <uint32_t>(microseconds // 1000000 % 86400)
    # Days since 1 March of the year 0, whose leap days come last: 400 years have 146 097 days, and
    # months from March on have (153 m + 2) / 5 days before them.
    day = <uint32_t>(microseconds // 86400000000) + 719468
    era = day // 146097
    era_day = day % 146097
    year_of_era = (era_day - era_day // 1460 + era_day // 36524 - era_day // 146096) // 365
    day_of_year = era_day - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    text = PyUnicode_New(27, 127)
    out = <uint8_t *>PyUnicode_1BYTE_DATA(text)
    memcpy(out, b"0000-00-00T00:00:00.000000Z", 27)
    put_digits(out + 4, year_of_era + era * 400 + (shifted >= 10), 4)
    put_digits(out + 7, shifted + 3 if shifted < 10 else shifted - 9, 2)
    put_digits(out + 10, day_of_year - (153 * shifted + 2) // 5 + 1, 2)
    put_digits(out + 13, second // 3600, 2)
    put_digits(out + 16, second // 60 % 60, 2)
    put_digits(out + 19, second % 60, 2)
    put_digits(out + 26, <uint32_t>(microseconds % 1000000), 6)
    return text
