# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True, embedsignature=True
"""The native core: every byte between the 101 and the end of a connection passes through here.

One `Core` serves all connections of an event loop. It owns their sockets in an epoll set of its own
(the loop watches that set as one readable descriptor), parses and builds RFC 6455 frames, keeps the
members of every room as a set of slots, collects what is said during one tick of the loop and sends
it with one call per member, and keeps the time of pings, silence and stalled writes.

Connections that cannot give up their asyncio transport (TLS, systems without epoll) take part through
a `Link`: the same state, the same limits, only the bytes travel differently.

Parts: `_core.pxd` is the map of native state, `_native.h` holds the loops per byte,
`_core_sets.pxi` room membership, `_core_queue.pxi` the out-queue.

Rules that the rest of the program relies on:

* A receiver gets what was addressed to it in the order of the calls.
* Who joins a room hears nothing that was said in it before; who leaves hears everything until then
  and nothing after.
* Nothing is called back while messages are being sent: slow or vanished members are marked, and
  closed when the sending is over.
* `on_close` is called exactly once for each adopted connection, when it has left all rooms.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_WRITE
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.ref cimport Py_INCREF, Py_DECREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memcpy, memmove

import asyncio
import enum
import errno
import os
import socket

cdef extern from *:
    int __builtin_ctzll(unsigned long long value) nogil

cdef extern from "_native.h" nogil:
    const int FF_HAVE_EPOLL
    const uint32_t EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP
    const int EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int ff_epoll_create()
    int ff_epoll_ctl(int epoll_fd, int operation, int fd, uint32_t events, uint64_t tag)
    int ff_epoll_poll(int epoll_fd, epoll_event *events, int capacity)
    ssize_t ff_send(int fd, const uint8_t *data, size_t size)
    ssize_t ff_recv(int fd, uint8_t *data, size_t size)
    bint ff_would_block()
    uint64_t ff_monotonic_ns()
    void ff_unmask(uint8_t *data, size_t size, const uint8_t *key, size_t phase)
    int ff_utf8(uint32_t *state, const uint8_t *data, size_t size)
    int ff_scan_json(const uint8_t *text, size_t size, size_t max_depth, size_t max_keys)

cdef extern from "<sys/socket.h>" nogil:
    const int SHUT_WR
    int c_shutdown "shutdown" (int fd, int how)

cdef extern from "<unistd.h>" nogil:
    int c_close "close" (int fd)


class Verdict(enum.IntEnum):
    """What became of a message handed to `Core.send`: the loop is never made to wait for it."""

    SENT = 0  # goes out with this tick
    QUEUED = 1  # waits behind earlier messages that the peer has not taken yet
    SLOW = 2  # the peer is over its limits and about to be closed; not taken
    CLOSED = 3  # there is no such connection any more; not taken


cdef enum:
    READ_SIZE = 65536           # octets of one recv; one buffer for all connections
    EVENTS_PER_WAKE = 512       # readiness events fetched with one epoll_wait
    WAKE_BUDGET_NS = 5000000    # after 5 ms the loop gets its turn; the rest is served next time
    ARENA_LIMIT = 1048576       # octets of frames collected in a tick before they are sent early
    ARENA_KEEP = 262144         # a larger arena is given back after the tick
    TICK_MS = 250               # the timer wheel's step; `tick` is called this often
    BUCKETS = 256               # the wheel spans 64 s; what is due later is looked at again then
    LINGER_MS = 450             # how long a closed connection may take; with two ticks below 1 s
    STALL_MS = 2000             # a gap between ticks that counts as the loop having stood still
    GRACE_MS = 5000             # after which nobody is called silent before its input was read
    REFUSING_GAP_MS = 1000      # refusals further apart than this are not one flood
    REFUSING_LIMIT_MS = 10000   # a flood that lasts this long ends the connection
    TRANSPORT_HIGH = 65536      # octets an asyncio transport may hold before it is our queue's turn
    PONGS_PER_READ = 15         # pings of one read answered one by one; of the rest, only the last
    ALL = 0                     # the room every connection is in

cdef enum:                      # Conn.state
    FREE = 0
    HELD = 1                    # adopted; input waits until `resume`
    OPEN = 2
    CLOSING = 3                 # our Close is on its way; input is discarded
    DEAD = 4                    # released; the slot is reused after the tick

cdef enum:                      # Conn.flags
    WRITE_ARMED = 1
    DOOMED_FLAG = 2
    PAUSED = 4                  # the asyncio transport asked us to stop writing
    WRITE_ENDED = 8
    PRIVATE = 16                # has something of its own to be sent in this tick
    GONE = 64                   # its socket is dead; nothing can be said to it
    NOT_READING = 32            # the asyncio transport was told not to read until `resume`

cdef enum:                      # ordinals of codes.CloseReason that the core raises itself
    PROTOCOL_ERROR = 2
    INVALID_PAYLOAD = 4
    TOO_MANY_FRAGMENTS = 6
    EARLY_DATA = 8
    MESSAGE_TOO_BIG = 9
    INTERNAL_ERROR = 10
    GOING_AWAY = 1
    SLOW_CONSUMER = 13
    NO_PONG = 14
    RATE_LIMITED = 16
    PEER_CLOSED = 24
    CONNECTION_LOST = 25

REASONS_RAISED = {
    "PROTOCOL_ERROR": PROTOCOL_ERROR,
    "INVALID_PAYLOAD": INVALID_PAYLOAD,
    "TOO_MANY_FRAGMENTS": TOO_MANY_FRAGMENTS,
    "EARLY_DATA": EARLY_DATA,
    "MESSAGE_TOO_BIG": MESSAGE_TOO_BIG,
    "INTERNAL_ERROR": INTERNAL_ERROR,
    "GOING_AWAY": GOING_AWAY,
    "SLOW_CONSUMER": SLOW_CONSUMER,
    "NO_PONG": NO_PONG,
    "RATE_LIMITED": RATE_LIMITED,
    "PEER_CLOSED": PEER_CLOSED,
    "CONNECTION_LOST": CONNECTION_LOST,
}

cdef enum:                      # opcodes, RFC 6455 section 5.2
    OP_CONTINUATION = 0
    OP_TEXT = 1
    OP_BINARY = 2
    OP_CLOSE = 8
    OP_PING = 9
    OP_PONG = 10

include "_core_sets.pxi"
include "_core_queue.pxi"


# What a tick held and how long it took to send it: noted once a tick, read when metrics are.
cdef uint32_t[HISTOGRAM_BOUNDS] TICK_MESSAGES = [
    1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384
]
cdef uint32_t[HISTOGRAM_BOUNDS] FLUSH_MICROSECONDS = [
    10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 25000, 100000, 500000
]


cdef void histogram_add(
    Histogram *histogram, const uint32_t *bounds, uint64_t value
) noexcept nogil:
    cdef int i = 0
    while i < HISTOGRAM_BOUNDS and value > bounds[i]:
        i += 1
    histogram.counts[i] += 1
    histogram.sum += value


cdef tuple histogram_read(const Histogram *histogram, const uint32_t *bounds):
    cdef int i
    return (
        tuple([bounds[i] for i in range(HISTOGRAM_BOUNDS)]),
        tuple([histogram.counts[i] for i in range(HISTOGRAM_BOUNDS + 1)]),
        histogram.sum,
    )


cdef int compare_indexes(const void *left, const void *right) noexcept nogil:
    cdef uint32_t a = (<const uint32_t *>left)[0], b = (<const uint32_t *>right)[0]
    return (a > b) - (a < b)


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


def scan_json(payload: bytes, max_depth: int, max_keys: int = 0xffffffff) -> int:
    """Look through a JSON text for what the JSON parser would silently let pass.

    Args:
        payload: UTF-8 text; need not be valid JSON.
        max_depth: how many arrays and objects may be open at once.
        max_keys: how many keys all its objects may have together.

    Returns:
        0 when nothing was found, 1 when it is nested deeper, 2 when it has an integer outside
        -2**63 ... 2**64-1, which orjson would round to a float, 3 when it has more keys.
    """
    return ff_scan_json(
        <const uint8_t *>PyBytes_AS_STRING(payload),
        <size_t>PyBytes_GET_SIZE(payload),
        max_depth,
        max_keys,
    )


cdef class Core:
    """The connections of one event loop. See the module's docstring for the rules.

    Args:
        on_message: called with (owner, payload, is_text) for each complete message.
        on_close: called with (owner, ordinal of the close reason, close code) once per connection.
        on_refused: called with (owner, first refused payload, number refused) when a read held more
            messages than the connection may send.
        on_expire: called with (owner) when the time given to `set_expiry` has come.
        on_error: called with an exception that one of the callbacks above raised; the connection
            it was raised for is closed with 1011.
        schedule: runs a callable soon, after the current callback of the loop (`loop.call_soon`).
        close_table: (code, reason text) for each ordinal of the close reasons.
        clock: monotonic seconds; None for the system's clock.
        max_connections: slots, at most 65 536.
        max_message_bytes: of a message from a client, over all its fragments.
        max_fragments: frames of one message.
        max_queue_bytes: of messages a peer has not taken yet.
        max_queue_messages: the same, counted.
        write_timeout: seconds a peer may take nothing while something is queued.
        ping_interval: seconds between pings; 0 sends none and never calls a peer silent.
        ping_timeout: seconds of silence that end a connection.
        message_rate: messages a second a connection may send on average; 0 for any number.
        message_burst: how many it may send at once.
        max_rooms: rooms of one connection.
        epoll: False to do without an epoll set where there could be one.
    """

    cdef:
        object on_message, on_close, on_refused, on_expire, on_error, schedule, clock
        list close_frames       #: list[bytes]
        list close_codes        #: list[int]
        readonly int epoll_fd
        uint32_t max_connections, words, max_fragments, max_queue_bytes, max_queue_messages
        uint32_t max_rooms, write_timeout, ping_interval, ping_timeout
        uint64_t max_message_bytes
        double message_rate, message_burst

        Conn *conns
        uint32_t *free_slots
        uint32_t free_count
        uint32_t fresh_slot     # slots from here on were never used
        uint32_t *dead_slots
        uint32_t dead_count
        readonly uint32_t count

        Room *rooms
        uint32_t room_capacity, room_used
        list free_rooms         #: list[int]

        uint8_t *read_buffer
        epoll_event events[EVENTS_PER_WAKE]
        int event_at, event_count

        int32_t wheel[BUCKETS]
        uint64_t started_ns, now_ms, wheel_at, grace_until
        double started

        uint8_t *arena
        size_t arena_size, arena_capacity
        Entry *entries
        uint32_t entry_count, entry_capacity
        uint32_t *dirty
        uint32_t dirty_count, dirty_capacity
        uint32_t *private_slots
        uint32_t private_count
        int32_t *own_first      # entries for one connection only, by slot
        int32_t *own_last
        uint32_t *cursor        # entries below this one were already sent to the slot
        uint32_t *mix_of
        uint16_t *touched
        uint16_t *sorted_slots
        Mix *mixes
        uint32_t mix_count, mix_capacity, stamp
        uint32_t *indexes
        uint32_t index_count, index_capacity
        uint8_t *scratch
        size_t scratch_capacity
        const uint8_t *out
        size_t out_size
        uint32_t out_messages
        Block *out_block
        object out_bytes

        Doomed *doomed
        uint32_t doomed_count, doomed_capacity
        int depth
        bint flushing, scheduled
        uint32_t random

        readonly uint64_t frames_in, messages_in, bytes_in, bytes_out
        readonly uint64_t deliveries, sends, flushes, refused, adopted
        Histogram tick_messages, flush_microseconds

    def __cinit__(self, *args: object, **kwargs: object) -> None:
        self.epoll_fd = -1

    def __init__(
        self,
        *,
        on_message: object,
        on_close: object,
        on_refused: object,
        on_expire: object,
        on_error: object,
        schedule: object,
        close_table: object,
        clock: object = None,
        max_connections: int = 65536,
        max_message_bytes: int = 65536,
        max_fragments: int = 128,
        max_queue_bytes: int = 1048576,
        max_queue_messages: int = 1024,
        write_timeout: float = 10.0,
        ping_interval: float = 30.0,
        ping_timeout: float = 60.0,
        message_rate: float = 0.0,
        message_burst: int = 0,
        max_rooms: int = 512,
        epoll: bool = True,
    ) -> None:
        cdef uint32_t i
        if self.conns != NULL:
            raise RuntimeError("a core is initialised once")
        if not 1 <= max_connections <= 65536:
            raise ValueError(f"max_connections must be 1 to 65536, not {max_connections}")
        if len(close_table) <= CONNECTION_LOST or any(len(text) > 123 for _, text in close_table):
            raise ValueError("close_table needs all reasons, each with a text of at most 123 octets")
        self.on_message = on_message
        self.on_close = on_close
        self.on_refused = on_refused
        self.on_expire = on_expire
        self.on_error = on_error
        self.schedule = schedule
        self.clock = clock
        self.close_codes = [code for code, _ in close_table]
        self.close_frames = [
            bytes([0x88, 2 + len(text)]) + code.to_bytes(2, "big") + text
            for code, text in close_table
        ]
        self.max_connections = max_connections
        self.words = (max_connections + 63) // 64
        self.max_message_bytes = max_message_bytes
        self.max_fragments = max_fragments
        self.max_queue_bytes = max_queue_bytes
        self.max_queue_messages = max_queue_messages
        self.write_timeout = <uint32_t>(write_timeout * 1000)
        self.ping_interval = <uint32_t>(ping_interval * 1000)
        self.ping_timeout = <uint32_t>(ping_timeout * 1000)
        self.message_rate = message_rate
        self.message_burst = max(message_burst, 1)
        self.max_rooms = max_rooms
        self.random = int.from_bytes(os.urandom(4), "big") | 1

        # Zeroed pages cost nothing until a slot is used for the first time.
        self.conns = <Conn *>calloc(max_connections, sizeof(Conn))
        self.free_slots = <uint32_t *>calloc(max_connections, sizeof(uint32_t))
        self.dead_slots = <uint32_t *>calloc(max_connections, sizeof(uint32_t))
        self.private_slots = <uint32_t *>calloc(max_connections, sizeof(uint32_t))
        self.own_first = <int32_t *>calloc(max_connections, sizeof(int32_t))
        self.own_last = <int32_t *>calloc(max_connections, sizeof(int32_t))
        self.cursor = <uint32_t *>calloc(max_connections, sizeof(uint32_t))
        self.mix_of = <uint32_t *>calloc(max_connections, sizeof(uint32_t))
        self.touched = <uint16_t *>calloc(max_connections, sizeof(uint16_t))
        self.sorted_slots = <uint16_t *>calloc(max_connections, sizeof(uint16_t))
        self.read_buffer = <uint8_t *>malloc(READ_SIZE)
        if (
            self.conns == NULL or self.free_slots == NULL or self.dead_slots == NULL
            or self.private_slots == NULL or self.own_first == NULL or self.own_last == NULL
            or self.cursor == NULL or self.mix_of == NULL or self.touched == NULL
            or self.sorted_slots == NULL or self.read_buffer == NULL
        ):
            raise MemoryError(f"no memory for {max_connections} connection slots")
        for i in range(<uint32_t>BUCKETS):
            self.wheel[i] = -1
        self.free_rooms = []
        self._make_room()       # ALL
        self.started_ns = ff_monotonic_ns()
        self.started = clock() if clock is not None else self.started_ns / 1e9
        self._touch_clock()
        self.wheel_at = self.now_ms // TICK_MS
        if epoll and FF_HAVE_EPOLL:
            self.epoll_fd = ff_epoll_create()
            if self.epoll_fd < 0:
                raise OSError(errno.EMFILE, "cannot create an epoll set")

    def __dealloc__(self) -> None:
        cdef uint32_t i
        if self.conns != NULL:
            for i in range(self.fresh_slot):
                if self.conns[i].state != FREE and self.conns[i].state != DEAD:
                    self._drop_memory(i)
        for i in range(self.room_used):
            room_clear(&self.rooms[i])
        free(self.conns)
        free(self.free_slots)
        free(self.dead_slots)
        free(self.private_slots)
        free(self.own_first)
        free(self.own_last)
        free(self.cursor)
        free(self.mix_of)
        free(self.touched)
        free(self.sorted_slots)
        free(self.read_buffer)
        free(self.rooms)
        free(self.arena)
        free(self.entries)
        free(self.dirty)
        free(self.mixes)
        free(self.indexes)
        free(self.scratch)
        free(self.doomed)
        if self.epoll_fd >= 0:
            c_close(self.epoll_fd)

    # ------------------------------------------------------------------ connections come and go

    def adopt_socket(
        self, fd: int, owner: object, *, early: bytes = b"", paused: bool = False
    ) -> int:
        """Take over a connected, upgraded socket.

        Args:
            fd: the descriptor; it belongs to the core from now on, also when this raises.
            owner: what callbacks are given for this connection.
            early: octets that arrived behind the opening handshake.
            paused: leave input unread until `resume`.

        Returns:
            The connection's handle: generation << 16 | slot, never reused.

        Raises:
            ConnectionError: no free slot, or the descriptor cannot be watched.
        """
        cdef uint32_t slot
        cdef Conn *conn
        try:
            if self.epoll_fd < 0:
                raise ConnectionError("there is no epoll set to put a socket into")
            os.set_blocking(fd, False)
            slot = self._new_slot(owner, early)
        except BaseException:
            os.close(fd)
            raise
        conn = &self.conns[slot]
        conn.fd = fd
        if ff_epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, fd, 0 if paused else EPOLLIN, self._tag(slot)):
            self._release(slot)
            raise ConnectionError("the socket cannot be watched")
        handle = self._handle(slot)
        self._begin(slot, paused)       # early input may already be the end of it
        return handle

    def adopt_transport(
        self,
        transport: asyncio.Transport,
        owner: object,
        *,
        early: bytes = b"",
        paused: bool = False,
    ) -> object:
        """Take over an upgraded connection together with its asyncio transport.

        Returns:
            The protocol the caller gives to `transport.set_protocol`; its `handle` is the
            connection's.

        Raises:
            ConnectionError: no free slot.
        """
        cdef uint32_t slot = self._new_slot(owner, early)
        link = Link(self, transport, self._handle(slot))
        Py_INCREF(link)
        self.conns[slot].link = <PyObject *>link
        transport.set_write_buffer_limits(high=TRANSPORT_HIGH)
        if paused:
            transport.pause_reading()
            self.conns[slot].flags |= NOT_READING
        self._begin(slot, paused)
        return link

    cdef uint32_t _new_slot(self, object owner, bytes early) except? 0xffffffff:
        cdef uint32_t slot
        cdef Conn *conn
        cdef uint8_t *held = NULL
        if self.free_count:
            slot = self.free_slots[self.free_count - 1]
        elif self.fresh_slot < self.max_connections:
            slot = self.fresh_slot
        else:
            raise ConnectionError(f"all {self.max_connections} connection slots are taken")
        if early:
            held = <uint8_t *>malloc(PyBytes_GET_SIZE(early))
            if held == NULL:
                raise MemoryError("no memory for early input")
            memcpy(held, PyBytes_AS_STRING(early), PyBytes_GET_SIZE(early))
        if self.free_count:
            self.free_count -= 1
        else:
            self.fresh_slot += 1
        conn = &self.conns[slot]
        conn.fd = -1
        conn.state = HELD
        conn.flags = 0
        conn.wheel_bucket = -1
        conn.held = held
        conn.held_size = <uint32_t>PyBytes_GET_SIZE(early)
        conn.expires = 0
        conn.tokens = <uint32_t>(self.message_burst * 1000)
        conn.refused_at = 0
        conn.transport_backlog = 0
        Py_INCREF(owner)
        conn.owner = <PyObject *>owner
        return slot

    cdef int _begin(self, uint32_t slot, bint paused) except -1:
        cdef Conn *conn = &self.conns[slot]
        self._touch_clock()
        conn.last_seen = conn.progress_at = conn.rate_at = <uint32_t>self.now_ms
        # The first ping comes at a random moment of the interval, or all clients of a reconnect
        # storm would be pinged in the same tick for ever.
        if self.ping_interval:
            self.random ^= self.random << 13
            self.random ^= self.random >> 17
            self.random ^= self.random << 5
            conn.next_ping = <uint32_t>self.now_ms + 1 + self.random % self.ping_interval
        self.count += 1
        self.adopted += 1
        self._enter(slot, ALL)
        self._arm(slot)
        if not paused:
            self._open(slot)
        return 0

    def resume(self, conn: int) -> None:
        """Deliver the input that waited since the adoption, and read on. A stale handle is ignored."""
        cdef uint32_t slot = 0
        if self._find(conn, &slot) and self.conns[slot].state == HELD:
            self._open(slot)
            if self.conns[slot].state == OPEN:
                self._read_on(slot)

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

    cdef int _open(self, uint32_t slot) except -1:
        cdef Conn *conn = &self.conns[slot]
        cdef uint8_t *held = conn.held
        cdef uint32_t size = conn.held_size
        conn.state = OPEN
        if held != NULL:
            conn.held = NULL
            conn.held_size = 0
            try:
                self._feed(slot, held, size)
            finally:
                free(held)
        return 0

    def close(self, conn: int, reason: int) -> None:
        """Send what is pending, then a Close frame with the reason's code and text.

        The connection has left all rooms and `on_close` has been called when this returns. A stale
        handle is ignored.
        """
        cdef uint32_t slot = 0
        self._check_reason(reason)
        if self._find(conn, &slot):
            self._close(slot, reason)

    def abort(self, conn: int, reason: int) -> None:
        """End a connection without a Close frame: for peers that are beyond talking to."""
        cdef uint32_t slot = 0
        self._check_reason(reason)
        if self._find(conn, &slot):
            self._lose(slot, reason)

    cdef int _check_reason(self, int reason) except -1:
        if not 0 <= reason < <int>len(self.close_codes):
            raise ValueError(f"{reason} is not the ordinal of a close reason")
        return 0

    def shutdown(self) -> None:
        """Abort whatever is left and give the epoll set back. The core is of no use afterwards."""
        cdef uint32_t slot
        for slot in range(self.fresh_slot):
            if self.conns[slot].state == HELD or self.conns[slot].state == OPEN:
                self._lose(slot, GOING_AWAY)
            elif self.conns[slot].state == CLOSING:
                self._release(slot)
        self._flush_sends()
        if self.epoll_fd >= 0:
            c_close(self.epoll_fd)
            self.epoll_fd = -1

    cdef int _close(self, uint32_t slot, int reason) except -1:
        cdef Conn *conn = &self.conns[slot]
        cdef bytes frame
        if conn.state != HELD and conn.state != OPEN:
            return 0
        frame = <bytes>self.close_frames[reason]
        self._say_last(slot, <const uint8_t *>PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
        return self._retire(slot, reason, self.close_codes[reason])

    cdef int _close_by_peer(self, uint32_t slot, int code, bint empty) except -1:
        # RFC 6455 section 5.5.1: the answer echoes the status code; an empty Close, an empty one.
        cdef uint8_t frame[4]
        frame[0] = 0x88
        frame[1] = 0 if empty else 2
        frame[2] = <uint8_t>(code >> 8)
        frame[3] = <uint8_t>(code & 0xff)
        self._say_last(slot, frame, 2 if empty else 4)
        return self._retire(slot, PEER_CLOSED, code)

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

    cdef int _retire(self, uint32_t slot, int reason, int code) except -1:
        """Take a connection out of everything the application sees; only its socket lingers on."""
        cdef Conn *conn = &self.conns[slot]
        cdef uint32_t i, generation = conn.generation
        for i in range(conn.room_count):
            self._unlist(slot, conn.rooms[i])
        self._unlist(slot, ALL)
        free_assembly(conn)
        free(conn.held)
        conn.held = NULL
        conn.linger_until = <uint32_t>self.now_ms + LINGER_MS
        self.count -= 1
        self._arm(slot)
        self._read_on(slot)     # to discard what comes, and to see the peer's end
        if conn.queue_head == NULL:
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
            free(conn.rooms)
            conn.rooms = NULL
            conn.room_count = 0
            conn.room_capacity = 0
        return 0

    cdef int _end_write(self, uint32_t slot, bint peer_is_done) except -1:
        # Only the writing half: closing while the peer's octets are still unread would make the
        # kernel send a reset, which can destroy our Close frame on the other side.
        cdef Conn *conn = &self.conns[slot]
        if conn.flags & WRITE_ENDED:
            return 0
        conn.flags |= WRITE_ENDED
        if conn.fd >= 0:
            c_shutdown(conn.fd, SHUT_WR)
        elif conn.link != NULL:
            transport = (<object>conn.link).transport
            if transport.can_write_eof():
                transport.write_eof()
            elif peer_is_done:
                transport.close()
        return 0

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

    cdef int _release(self, uint32_t slot) except -1:
        """Give back the socket and the slot. What was queued and not taken is dropped."""
        cdef Conn *conn = &self.conns[slot]
        cdef PyObject *owner = conn.owner
        cdef PyObject *link = conn.link
        self._wheel_remove(slot)
        if conn.fd >= 0:
            ff_epoll_ctl(self.epoll_fd, EPOLL_CTL_DEL, conn.fd, 0, 0)
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

    cdef void _drop_memory(self, uint32_t slot) noexcept:
        cdef Conn *conn = &self.conns[slot]
        if conn.fd >= 0:
            c_close(conn.fd)
            conn.fd = -1
        queue_clear(conn)
        free_assembly(conn)
        free(conn.held)
        conn.held = NULL
        free(conn.rooms)
        conn.rooms = NULL
        conn.room_count = 0
        conn.room_capacity = 0
        if conn.owner != NULL:
            Py_DECREF(<object>conn.owner)
            conn.owner = NULL
        if conn.link != NULL:
            Py_DECREF(<object>conn.link)
            conn.link = NULL

    cdef void _recycle(self) noexcept:
        cdef uint32_t i
        for i in range(self.dead_count):
            self.conns[self.dead_slots[i]].state = FREE
            self.free_slots[self.free_count] = self.dead_slots[i]
            self.free_count += 1
        self.dead_count = 0

    cdef inline uint64_t _tag(self, uint32_t slot) noexcept:
        return <uint64_t>self.conns[slot].generation << 16 | slot

    cdef inline object _handle(self, uint32_t slot):
        return self._tag(slot)

    cdef bint _find(self, object handle, uint32_t *slot) except -1:
        """Find the slot of a connection that is held or open; False for any other handle."""
        cdef uint64_t tag = handle
        slot[0] = <uint32_t>(tag & 0xffff)
        if slot[0] >= self.fresh_slot or self.conns[slot[0]].generation != <uint32_t>(tag >> 16):
            return False
        return self.conns[slot[0]].state == HELD or self.conns[slot[0]].state == OPEN

    def owner(self, conn: int) -> object:
        """Return the owner of a live connection, or None."""
        cdef uint32_t slot = 0
        return <object>self.conns[slot].owner if self._find(conn, &slot) else None

    def last_seen(self, conn: int) -> float:
        """Return when the peer was last heard of, in seconds of the core's clock; 0.0 when stale."""
        cdef uint32_t slot = 0
        if not self._find(conn, &slot):
            return 0.0
        self._touch_clock()
        ago = <uint32_t>(<uint32_t>self.now_ms - self.conns[slot].last_seen)
        return self.started + (self.now_ms - ago) / 1000.0

    def queued_bytes(self, conn: int) -> int:
        """Return how many octets wait for the peer to take them."""
        cdef uint32_t slot = 0
        return self.conns[slot].queue_bytes if self._find(conn, &slot) else 0

    def queue_totals(self) -> tuple:
        """Return the octets that wait on all connections, and on how many; walks every slot."""
        cdef uint32_t slot, waiting = 0
        cdef uint64_t octets = 0
        for slot in range(self.fresh_slot):
            if self.conns[slot].queue_head != NULL:
                octets += self.conns[slot].queue_bytes
                waiting += 1
        return octets, waiting

    def histograms(self) -> tuple:
        """Return what ticks were like so far: messages in them, microseconds to send them.

        A tick in which nothing was said is not counted. The time is that of handing everything to
        the kernel: it grows with the members of the rooms.

        Returns:
            Twice a tuple: the upper bounds of the buckets, the counts in the buckets (one more
            than bounds, and not cumulative), the sum of all values.
        """
        return (
            histogram_read(&self.tick_messages, TICK_MESSAGES),
            histogram_read(&self.flush_microseconds, FLUSH_MICROSECONDS),
        )

    def set_expiry(self, conn: int, when: float) -> None:
        """Have `on_expire` called at `when`, in seconds of the core's clock. Replaces an earlier time."""
        cdef uint32_t slot = 0
        cdef double left
        if self._find(conn, &slot):
            # To the millisecond, then up to the tick that is not before it.
            left = min(max((when - self.started) * 1000 + 0.5, 1.0), 1e12)
            self.conns[slot].expires = <uint32_t>((<uint64_t>left + TICK_MS - 1) // TICK_MS)
            self._arm(slot)

    # ------------------------------------------------------------------------------------- rooms

    def open_room(self) -> int:
        """Make an empty room and return its number."""
        cdef uint32_t number = self.free_rooms.pop() if self.free_rooms else self._make_room()
        self.rooms[number].open = True
        return number

    cdef uint32_t _make_room(self) except? 0xffffffff:
        cdef Room *rooms
        cdef Room *room
        cdef uint32_t capacity
        if self.room_used == self.room_capacity:
            capacity = max(self.room_capacity * 2, 64)
            rooms = <Room *>realloc(self.rooms, capacity * sizeof(Room))
            if rooms == NULL:
                raise MemoryError("no memory for another room")
            self.rooms = rooms
            self.room_capacity = capacity
        room = &self.rooms[self.room_used]
        room.members = NULL
        room.bits = NULL
        room.count = 0
        room.capacity = 4
        room.first_entry = room.last_entry = -1
        room.open = True
        self.room_used += 1
        return self.room_used - 1

    def close_room(self, room: int) -> None:
        """Give the number of an empty room back.

        Raises:
            ValueError: it has members, or there is no such room.
        """
        if self._room(room).count:
            raise ValueError(f"room {room} has members")
        if self._room(room).first_entry >= 0:
            self._flush_sends()     # its last members were told on their way out; the rest is for nobody
        self._room(room).open = False
        self.free_rooms.append(room)

    cdef Room *_room(self, object number) except NULL:
        cdef int64_t index = number
        if not 0 < index < self.room_used or not self.rooms[index].open:
            raise ValueError(f"there is no room {number}")
        return &self.rooms[index]

    def join(self, conn: int, room: int) -> int:
        """Put a connection into a room.

        Returns:
            1, or 0 when it was a member or is gone, or -1 when it is in `max_rooms` rooms.
        """
        cdef uint32_t slot = 0
        cdef Conn *state
        cdef uint32_t *rooms
        cdef uint32_t number = room
        cdef uint16_t capacity
        cdef Room *target = self._room(room)
        if not self._find(conn, &slot) or room_has(target, <uint16_t>slot):
            return 0
        state = &self.conns[slot]
        if state.room_count >= self.max_rooms:
            return -1
        if state.room_count == state.room_capacity:
            capacity = state.room_capacity * 2 if state.room_capacity else 4
            rooms = <uint32_t *>realloc(state.rooms, capacity * sizeof(uint32_t))
            if rooms == NULL:
                raise MemoryError("no memory for a connection's rooms")
            state.rooms = rooms
            state.room_capacity = capacity
        self._enter(slot, number)
        state.rooms[state.room_count] = number
        state.room_count += 1
        return 1

    def leave(self, conn: int, room: int) -> bool:
        """Take a connection out of a room; False when it was no member."""
        cdef uint32_t slot = 0, i
        cdef uint32_t number = room
        cdef Conn *state
        if not self._find(conn, &slot) or not room_has(self._room(room), <uint16_t>slot):
            return False
        if self.rooms[number].first_entry >= 0:
            self._flush_one(slot)
        state = &self.conns[slot]
        for i in range(state.room_count):
            if state.rooms[i] == number:
                state.room_count -= 1
                memmove(
                    state.rooms + i, state.rooms + i + 1, (state.room_count - i) * sizeof(uint32_t)
                )
                break
        self._unlist(slot, number)
        return True

    cdef int _enter(self, uint32_t slot, uint32_t number) except -1:
        if self.rooms[number].first_entry >= 0:
            # What was said before must not reach the newcomer: it gets its own earlier messages
            # now, and only later ones when the tick ends.
            self._flush_one(slot)
        return room_add(&self.rooms[number], <uint16_t>slot, self.words)

    cdef int _unlist(self, uint32_t slot, uint32_t number) except -1:
        return room_remove(&self.rooms[number], <uint16_t>slot, self.words)

    def is_member(self, conn: int, room: int) -> bool:
        """Tell whether a live connection is in a room."""
        cdef uint32_t slot = 0
        return self._find(conn, &slot) and room_has(self._room(room), <uint16_t>slot)

    def member_count(self, room: int) -> int:
        """Return how many connections are in a room."""
        return self._room(room).count

    def members(self, room: int) -> list:
        """Return the owners of a room's members, in slot order."""
        return self._owners(self._room(room))

    def owners(self) -> list:
        """Return the owners of all connections, in slot order."""
        return self._owners(&self.rooms[ALL])

    def owners_from(self, slot: int, limit: int) -> tuple:
        """Return some owners in slot order, and where to go on: for paging.

        A connection keeps its slot, so whoever stays from the first page to the last is seen once,
        however many others come and go meanwhile.

        Args:
            slot: where to begin, 0 for the first page.
            limit: how many at most.

        Returns:
            The owners, and the slot to go on with, or -1 when there are no more.
        """
        cdef list found = []
        cdef uint32_t at = min(max(slot, 0), self.fresh_slot)
        cdef Py_ssize_t most = limit
        while at < self.fresh_slot:
            if self.conns[at].state == HELD or self.conns[at].state == OPEN:
                if len(found) == most:
                    return found, at
                found.append(<object>self.conns[at].owner)
            at += 1
        return found, -1

    cdef list _owners(self, Room *room):
        cdef list found = []
        cdef uint32_t i, word
        cdef uint64_t left
        cdef uint16_t *slots
        if room.bits != NULL:
            for word in range(self.words):
                left = room.bits[word]
                while left:
                    i = (word << 6) + <uint32_t>__builtin_ctzll(left)
                    left &= left - 1
                    found.append(<object>self.conns[i].owner)
        else:
            slots = room_slots(room)
            for i in range(room.count):
                found.append(<object>self.conns[slots[i]].owner)
        return found

    def rooms_of(self, conn: int) -> list:
        """Return the numbers of the rooms a connection is in, in the order it joined them.

        Within `on_close` these are the rooms it has just been taken out of.
        """
        cdef uint64_t tag = conn
        cdef uint32_t slot = <uint32_t>(tag & 0xffff), i
        if slot >= self.fresh_slot or self.conns[slot].generation != <uint32_t>(tag >> 16):
            return []
        return [self.conns[slot].rooms[i] for i in range(self.conns[slot].room_count)]

    def room_count(self, conn: int) -> int:
        """Return in how many rooms a live connection is."""
        cdef uint32_t slot = 0
        return self.conns[slot].room_count if self._find(conn, &slot) else 0

    # ------------------------------------------------------------------------------------ output

    def fan_out(self, room: int, payload: bytes, *, binary: bool = False) -> int:
        """Note a message for every member of a room; it leaves at the end of the tick.

        Returns:
            The number of members.
        """
        return self._fan_out(
            self._room(room) - self.rooms, payload, OP_BINARY if binary else OP_TEXT
        )

    def broadcast(self, payload: bytes) -> int:
        """Note a message for every connection; see `fan_out`."""
        return self._fan_out(ALL, payload, OP_TEXT)

    cdef uint32_t _fan_out(self, uint32_t number, bytes payload, uint8_t opcode) except? 0xffffffff:
        cdef Room *room
        cdef uint32_t *dirty
        cdef uint32_t capacity
        cdef int32_t index
        if self.rooms[number].count == 0:
            return 0
        index = self._note(
            opcode, <const uint8_t *>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload)
        )
        room = &self.rooms[number]
        if room.first_entry < 0:
            if self.dirty_count == self.dirty_capacity:
                capacity = max(self.dirty_capacity * 2, 64)
                dirty = <uint32_t *>realloc(self.dirty, capacity * sizeof(uint32_t))
                if dirty == NULL:
                    raise MemoryError("no memory for a tick's rooms")
                self.dirty = dirty
                self.dirty_capacity = capacity
            self.dirty[self.dirty_count] = number
            self.dirty_count += 1
            room.first_entry = index
        else:
            self.entries[room.last_entry].next = index
        room.last_entry = index
        self.deliveries += room.count
        return room.count

    def send(self, conn: int, payload: bytes, *, binary: bool = False) -> int:
        """Note a message for one connection; it leaves at the end of the tick.

        Returns:
            A `Verdict`.
        """
        cdef uint32_t slot = 0
        cdef Conn *state
        if not self._find(conn, &slot):
            return 3            # Verdict.CLOSED
        state = &self.conns[slot]
        if state.flags & DOOMED_FLAG:
            return 2            # Verdict.SLOW
        self._note_own(
            slot,
            OP_BINARY if binary else OP_TEXT,
            <const uint8_t *>PyBytes_AS_STRING(payload),
            PyBytes_GET_SIZE(payload),
        )
        self.deliveries += 1
        return 1 if state.queue_head != NULL else 0

    cdef int _note_own(
        self, uint32_t slot, uint8_t opcode, const uint8_t *payload, size_t size
    ) except -1:
        cdef int32_t index = self._note(opcode, payload, size)
        self._mark_private(slot)
        # Stored plus one, so that zeroed memory means "none".
        if self.own_first[slot] == 0:
            self.own_first[slot] = index + 1
        else:
            self.entries[self.own_last[slot] - 1].next = index
        self.own_last[slot] = index + 1
        return 0

    cdef inline void _mark_private(self, uint32_t slot) noexcept:
        if not self.conns[slot].flags & PRIVATE:
            self.conns[slot].flags |= PRIVATE
            self.private_slots[self.private_count] = slot
            self.private_count += 1

    cdef int32_t _note(self, uint8_t opcode, const uint8_t *payload, size_t size) except -1:
        """Build a frame in the tick's arena and return the number of its entry."""
        cdef size_t needed = size + 10, capacity
        cdef uint8_t *arena
        cdef Entry *entries
        cdef Entry *entry
        cdef uint8_t *frame
        cdef int i
        if self.flushing:
            raise RuntimeError("nothing may be sent while messages are being sent")
        if self.arena_size and self.arena_size + needed > ARENA_LIMIT:
            self._flush_sends()
        if self.arena_size + needed > self.arena_capacity:
            capacity = max(self.arena_capacity * 2, self.arena_size + needed, <size_t>4096)
            arena = <uint8_t *>realloc(self.arena, capacity)
            if arena == NULL:
                raise MemoryError("no memory for a message")
            self.arena = arena
            self.arena_capacity = capacity
        if self.entry_count == self.entry_capacity:
            capacity = max(self.entry_capacity * 2, 64)
            entries = <Entry *>realloc(self.entries, capacity * sizeof(Entry))
            if entries == NULL:
                raise MemoryError("no memory for a message")
            self.entries = entries
            self.entry_capacity = <uint32_t>capacity
        frame = self.arena + self.arena_size
        frame[0] = 0x80 | opcode
        if size < 126:
            frame[1] = <uint8_t>size
            needed = 2
        elif size < 65536:
            frame[1] = 126
            frame[2] = <uint8_t>(size >> 8)
            frame[3] = <uint8_t>(size & 0xff)
            needed = 4
        else:
            frame[1] = 127
            for i in range(8):
                frame[2 + i] = <uint8_t>(<uint64_t>size >> (56 - 8 * i))
            needed = 10
        if size:
            memcpy(frame + needed, payload, size)
        entry = &self.entries[self.entry_count]
        entry.offset = <uint32_t>self.arena_size
        entry.size = <uint32_t>(needed + size)
        entry.next = -1
        self.arena_size += needed + size
        self.entry_count += 1
        self._schedule_pending()
        return <int32_t>(self.entry_count - 1)

    cdef int _schedule_pending(self) except -1:
        if self.depth == 0 and (self.entry_count or self.doomed_count) and not self.scheduled:
            self._schedule()
        return 0

    cdef int _schedule(self) except -1:
        self.scheduled = True
        self.schedule(self.flush)
        return 0

    def flush(self) -> None:
        """End the tick: send what was noted, then close whom that showed to be slow or gone."""
        if self.depth:
            return              # the outermost call of the core does it when it is done
        self.scheduled = False
        self.depth += 1
        try:
            self._flush_sends()
            self._sweep()
        finally:
            self.depth -= 1
        self._schedule_pending()

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

    cdef int _doom(self, uint32_t slot, int reason) except -1:
        cdef Doomed *doomed
        cdef uint32_t capacity
        if self.conns[slot].flags & DOOMED_FLAG:
            return 0
        if self.doomed_count == self.doomed_capacity:
            capacity = max(self.doomed_capacity * 2, 64)
            doomed = <Doomed *>realloc(self.doomed, capacity * sizeof(Doomed))
            if doomed == NULL:
                raise MemoryError("no memory for the list of slow members")
            self.doomed = doomed
            self.doomed_capacity = capacity
        self.conns[slot].flags |= DOOMED_FLAG
        if reason == CONNECTION_LOST:
            self.conns[slot].flags |= GONE
        self.doomed[self.doomed_count].slot = slot
        self.doomed[self.doomed_count].generation = self.conns[slot].generation
        self.doomed[self.doomed_count].reason = reason
        self.doomed_count += 1
        self._schedule_pending()
        return 0

    cdef int _flush_sends(self) except -1:
        """Send the tick's messages: one call per member, whatever the number of messages.

        Members are sorted by the set of rooms with news that they are in (their mix). All members
        of a mix get the same messages in the same order, so these are put in one piece once.
        """
        cdef uint32_t i, k, slot, mix
        cdef uint64_t began
        if self.entry_count == 0:
            self._recycle()
            return 0
        began = ff_monotonic_ns()
        self.flushing = True
        try:
            self._sort_members()
            for mix in range(1, self.mix_count):
                if self.mixes[mix].count == 0:
                    continue
                self._gather(mix, 0, 0)
                for k in range(self.mixes[mix].start, self.mixes[mix].start + self.mixes[mix].count):
                    self._deliver(self.sorted_slots[k])
            for i in range(self.private_count):
                slot = self.private_slots[i]
                if self.conns[slot].state == HELD or self.conns[slot].state == OPEN:
                    self._gather(self.mix_of[slot], self.cursor[slot], self.own_first[slot])
                    self._deliver(slot)
        except BaseException:
            for slot in range(self.fresh_slot):
                self.mix_of[slot] = 0
            raise
        finally:
            histogram_add(&self.tick_messages, TICK_MESSAGES, self.entry_count)
            histogram_add(
                &self.flush_microseconds, FLUSH_MICROSECONDS, (ff_monotonic_ns() - began) // 1000
            )
            self._end_tick()
        return 0

    cdef int _sort_members(self) except -1:
        cdef uint32_t i, k, slot, word, mix, start = 0, touched = 0
        cdef uint64_t left
        cdef Room *room
        cdef uint16_t *slots
        self.mix_count = 0
        self.stamp = 0          # all mixes are new: a stamp that wrapped around would meet theirs
        self._new_mix(0, 0)     # mix 0: no news
        for i in range(self.dirty_count):
            room = &self.rooms[self.dirty[i]]
            self.stamp += 1
            if room.bits != NULL:
                for word in range(self.words):
                    left = room.bits[word]
                    while left:
                        slot = (word << 6) + <uint32_t>__builtin_ctzll(left)
                        left &= left - 1
                        if self.mix_of[slot] == 0:
                            self.touched[touched] = <uint16_t>slot
                            touched += 1
                        self._remix(slot, self.dirty[i])
            else:
                slots = room_slots(room)
                for k in range(room.count):
                    slot = slots[k]
                    if self.mix_of[slot] == 0:
                        self.touched[touched] = <uint16_t>slot
                        touched += 1
                    self._remix(slot, self.dirty[i])
        # A counting sort by mix. Who has something private is served by itself.
        for i in range(touched):
            slot = self.touched[i]
            if not self.conns[slot].flags & PRIVATE:
                self.mixes[self.mix_of[slot]].count += 1
        for mix in range(1, self.mix_count):
            self.mixes[mix].start = start
            start += self.mixes[mix].count
            self.mixes[mix].count = 0
        for i in range(touched):
            slot = self.touched[i]
            mix = self.mix_of[slot]
            if not self.conns[slot].flags & PRIVATE:
                self.sorted_slots[self.mixes[mix].start + self.mixes[mix].count] = <uint16_t>slot
                self.mixes[mix].count += 1
                self.mix_of[slot] = 0
        return 0

    cdef inline int _remix(self, uint32_t slot, uint32_t room) except -1:
        cdef uint32_t mix = self.mix_of[slot], child
        if self.mixes[mix].stamp != self.stamp:
            child = self._new_mix(mix, room)
            self.mixes[mix].stamp = self.stamp
            self.mixes[mix].child = child
        self.mix_of[slot] = self.mixes[mix].child
        return 0

    cdef uint32_t _new_mix(self, uint32_t parent, uint32_t room) except? 0xffffffff:
        cdef Mix *mixes
        cdef Mix *mix
        cdef uint32_t capacity
        if self.mix_count == self.mix_capacity:
            capacity = max(self.mix_capacity * 2, 64)
            mixes = <Mix *>realloc(self.mixes, capacity * sizeof(Mix))
            if mixes == NULL:
                raise MemoryError("no memory to sort a tick's members")
            self.mixes = mixes
            self.mix_capacity = capacity
        mix = &self.mixes[self.mix_count]
        mix.parent = parent
        mix.room = room
        mix.stamp = 0
        mix.count = 0
        mix.start = 0
        self.mix_count += 1
        return self.mix_count - 1

    cdef int _index(self, int32_t first, uint32_t since) except -1:
        cdef uint32_t *indexes
        cdef int32_t entry = first
        if self.index_capacity < self.entry_count:
            indexes = <uint32_t *>realloc(self.indexes, self.entry_capacity * sizeof(uint32_t))
            if indexes == NULL:
                raise MemoryError("no memory to sort a tick's messages")
            self.indexes = indexes
            self.index_capacity = self.entry_capacity
        while entry >= 0:
            if <uint32_t>entry >= since:
                self.indexes[self.index_count] = <uint32_t>entry
                self.index_count += 1
            entry = self.entries[entry].next
        return 0

    cdef int _gather(self, uint32_t mix, uint32_t since, int32_t own) except -1:
        """Put together what members of a mix get, from entry `since` on, with own entries mixed in."""
        cdef uint32_t sources = 0
        self.index_count = 0
        while mix:
            self._index(self.rooms[self.mixes[mix].room].first_entry, since)
            mix = self.mixes[mix].parent
            sources += 1
        if own:
            self._index(own - 1, 0)
            sources += 1
        return self._join_up(sources)

    cdef int _join_up(self, uint32_t sources) except -1:
        cdef uint32_t i
        cdef size_t size = 0, capacity
        cdef Entry *entry
        cdef uint8_t *scratch
        cdef bint in_one_piece = True
        if self.out_block != NULL:
            block_release(self.out_block)
            self.out_block = NULL
        self.out_bytes = None
        self.out_messages = self.index_count
        self.out_size = 0
        if self.index_count == 0:
            return 0
        if sources > 1:
            qsort(self.indexes, self.index_count, sizeof(uint32_t), compare_indexes)
        for i in range(self.index_count):
            entry = &self.entries[self.indexes[i]]
            in_one_piece = in_one_piece and (
                i == 0 or entry.offset == self.entries[self.indexes[0]].offset + size
            )
            size += entry.size
        self.out_size = size
        if in_one_piece:
            self.out = self.arena + self.entries[self.indexes[0]].offset
            return 0
        if size > self.scratch_capacity:
            capacity = max(size, self.scratch_capacity * 2)
            scratch = <uint8_t *>realloc(self.scratch, capacity)
            if scratch == NULL:
                raise MemoryError("no memory to join a tick's messages")
            self.scratch = scratch
            self.scratch_capacity = capacity
        size = 0
        for i in range(self.index_count):
            entry = &self.entries[self.indexes[i]]
            memcpy(self.scratch + size, self.arena + entry.offset, entry.size)
            size += entry.size
        self.out = self.scratch
        return 0

    cdef void _end_tick(self) noexcept:
        cdef uint32_t i, slot
        for i in range(self.dirty_count):
            self.rooms[self.dirty[i]].first_entry = -1
            self.rooms[self.dirty[i]].last_entry = -1
        self.dirty_count = 0
        for i in range(self.private_count):
            slot = self.private_slots[i]
            self.conns[slot].flags &= ~PRIVATE
            self.cursor[slot] = 0
            self.own_first[slot] = self.own_last[slot] = 0
            self.mix_of[slot] = 0
        self.private_count = 0
        self.entry_count = 0
        self.arena_size = 0
        if self.out_block != NULL:
            block_release(self.out_block)
            self.out_block = NULL
        self.out_bytes = None
        if self.arena_capacity > ARENA_KEEP:
            free(self.arena)
            self.arena = NULL
            self.arena_capacity = 0
        if self.scratch_capacity > ARENA_KEEP:
            free(self.scratch)
            self.scratch = NULL
            self.scratch_capacity = 0
        self.flushing = False
        self.flushes += 1
        self._recycle()

    cdef void _forget_own(self, uint32_t slot) noexcept:
        if self.entry_count:
            self._mark_private(slot)
            self.own_first[slot] = self.own_last[slot] = 0
            self.cursor[slot] = self.entry_count

    cdef int _flush_one(self, uint32_t slot) except -1:
        """Send one connection what is pending for it now, ahead of the end of the tick."""
        cdef Conn *conn = &self.conns[slot]
        cdef uint32_t i, sources = 0
        if self.entry_count == 0:
            return 0
        self.index_count = 0
        for i in range(conn.room_count):
            if self.rooms[conn.rooms[i]].first_entry >= 0:
                self._index(self.rooms[conn.rooms[i]].first_entry, self.cursor[slot])
                sources += 1
        if self.rooms[ALL].first_entry >= 0 and room_has(&self.rooms[ALL], <uint16_t>slot):
            self._index(self.rooms[ALL].first_entry, self.cursor[slot])
            sources += 1
        if self.own_first[slot]:
            self._index(self.own_first[slot] - 1, 0)
            sources += 1
        self._join_up(sources)
        self._deliver(slot)
        self._forget_own(slot)
        return 0

    cdef inline int _deliver(self, uint32_t slot) except -1:
        cdef Conn *conn = &self.conns[slot]
        cdef ssize_t sent = 0
        if self.out_size == 0 or conn.flags & DOOMED_FLAG:
            return 0
        if conn.queue_head == NULL and conn.fd >= 0:
            sent = ff_send(conn.fd, self.out, self.out_size)
            self.sends += 1
            if sent == <ssize_t>self.out_size:
                self.bytes_out += self.out_size
                return 0
            if sent < 0:
                if not ff_would_block():
                    return self._doom(slot, CONNECTION_LOST)
                sent = 0
            self.bytes_out += <size_t>sent
        elif conn.queue_head == NULL and not conn.flags & PAUSED:
            if self.out_bytes is None:
                self.out_bytes = PyBytes_FromStringAndSize(<const char *>self.out, self.out_size)
            self.sends += 1
            self.bytes_out += self.out_size
            return self._write(slot, self.out_bytes)
        if self.out_block == NULL:
            self.out_block = block_new(self.out, self.out_size)
        return self._enqueue(
            slot,
            self.out_block,
            <uint32_t>sent,
            frames_after(self.out_block, <uint32_t>sent) if sent else self.out_messages,
        )

    cdef int _write(self, uint32_t slot, bytes data) except -1:
        # One broken transport must not keep the others from their messages.
        try:
            (<object>self.conns[slot].link).transport.write(data)
        except Exception as error:
            self.on_error(error)
            self._doom(slot, CONNECTION_LOST)
        return 0

    cdef int _put(
        self, uint32_t slot, const uint8_t *data, size_t size, uint32_t messages
    ) except -1:
        """Send or queue octets that are not part of the tick (a Close frame)."""
        if self.out_block != NULL:
            block_release(self.out_block)
            self.out_block = NULL
        self.out_bytes = None
        self.out = data
        self.out_size = size
        self.out_messages = messages
        try:
            self._deliver(slot)
        finally:
            if self.out_block != NULL:
                block_release(self.out_block)
                self.out_block = NULL
            self.out_bytes = None
            self.out_size = 0
        return 0

    cdef int _enqueue(self, uint32_t slot, Block *block, uint32_t offset, uint32_t messages) except -1:
        cdef Conn *conn = &self.conns[slot]
        cdef bint first = conn.queue_head == NULL
        queue_push(conn, block, offset, messages)
        if first:
            conn.progress_at = <uint32_t>self.now_ms
            if conn.fd >= 0:
                self._watch(slot)
            else:
                conn.transport_backlog = (<object>conn.link).transport.get_write_buffer_size()
            self._arm(slot)
        if conn.state != CLOSING and (
            conn.queue_bytes > self.max_queue_bytes
            or conn.queue_messages > self.max_queue_messages
        ):
            self._doom(slot, SLOW_CONSUMER)
        return 0

    cdef int _watch(self, uint32_t slot) except -1:
        cdef Conn *conn = &self.conns[slot]
        cdef uint32_t interest = 0
        if conn.state != HELD:
            interest |= EPOLLIN
        if conn.queue_head != NULL:
            interest |= EPOLLOUT
        ff_epoll_ctl(self.epoll_fd, EPOLL_CTL_MOD, conn.fd, interest, self._tag(slot))
        return 0

    cdef int _drain(self, uint32_t slot) except -1:
        """Give the kernel, or the transport, more of the queue."""
        cdef Conn *conn = &self.conns[slot]
        cdef Queued *node
        cdef uint32_t left
        cdef ssize_t sent
        while conn.queue_head != NULL:
            node = conn.queue_head
            left = node.block.size - node.offset
            if conn.fd >= 0:
                sent = ff_send(conn.fd, node.block.data + node.offset, left)
                self.sends += 1
                if sent < 0:
                    if not ff_would_block():
                        return self._doom(slot, CONNECTION_LOST)
                    break
            else:
                if conn.flags & PAUSED:
                    break
                self._write(
                    slot,
                    PyBytes_FromStringAndSize(<const char *>node.block.data + node.offset, left),
                )
                sent = left
            conn.progress_at = <uint32_t>self.now_ms
            self.bytes_out += <size_t>sent
            if <uint32_t>sent < left:
                node.offset += <uint32_t>sent
                conn.queue_bytes -= <uint32_t>sent
                if node.messages > 1:   # one may be the rest of a cut frame: nothing to walk along
                    left = frames_after(node.block, node.offset)
                    conn.queue_messages -= node.messages - left
                    node.messages = left
                break
            queue_pop(conn)
        if conn.queue_head == NULL:
            if conn.fd >= 0:
                self._watch(slot)
            if conn.state == CLOSING:
                self._end_write(slot, False)
            elif conn.assembly != NULL and conn.assembly.pong_owed:
                conn.assembly.pong_owed = False
                self._note_own(slot, OP_PONG, conn.assembly.pong, conn.assembly.pong_size)
                self._tidy(conn)
        return 0

    # ------------------------------------------------------------------------------------- input

    def ready(self) -> None:
        """Serve the sockets that became readable or writable, for a few milliseconds at most."""
        cdef epoll_event *event
        cdef uint32_t slot, served = 0
        cdef uint64_t began
        cdef Conn *conn
        if self.event_at == self.event_count:
            self.event_at = 0
            self.event_count = max(ff_epoll_poll(self.epoll_fd, self.events, EVENTS_PER_WAKE), 0)
        self._touch_clock()
        began = ff_monotonic_ns()
        self.depth += 1
        try:
            while self.event_at < self.event_count:
                event = &self.events[self.event_at]
                self.event_at += 1
                slot = <uint32_t>(event.data.u64 & 0xffff)
                conn = &self.conns[slot]
                if conn.generation != <uint32_t>(event.data.u64 >> 16) or conn.fd < 0:
                    continue
                if event.events & EPOLLOUT:
                    self._drain(slot)
                if conn.state == HELD:
                    if event.events & (EPOLLERR | EPOLLHUP):
                        self._doom(slot, CONNECTION_LOST)
                elif event.events & (EPOLLIN | EPOLLERR | EPOLLHUP):
                    self._read(slot)
                served += 1
                # Level triggered: what is not reached now is still readable at the next call, and
                # comes before anything new.
                if (served & 7) == 0 and ff_monotonic_ns() - began > WAKE_BUDGET_NS:
                    break
        finally:
            self.depth -= 1
        self.flush()

    cdef int _read(self, uint32_t slot) except -1:
        cdef Conn *conn = &self.conns[slot]
        cdef ssize_t got = ff_recv(conn.fd, self.read_buffer, READ_SIZE)
        if got > 0:
            return self._received(slot, self.read_buffer, <size_t>got)
        if got == 0 or not ff_would_block():
            self._lose(slot, CONNECTION_LOST)
        return 0

    cdef int _received(self, uint32_t slot, uint8_t *data, size_t size) except -1:
        cdef Conn *conn = &self.conns[slot]
        cdef uint8_t *held
        conn.last_seen = <uint32_t>self.now_ms
        self.bytes_in += size
        if conn.state == OPEN:
            return self._feed(slot, data, size)
        if conn.state == HELD:
            # A transport may still hand over what it had read when it was paused.
            if size > self.max_message_bytes - min(conn.held_size, self.max_message_bytes):
                return self._close(slot, EARLY_DATA)
            held = <uint8_t *>realloc(conn.held, conn.held_size + size)
            if held == NULL:
                raise MemoryError("no memory for early input")
            memcpy(held + conn.held_size, data, size)
            conn.held = held
            conn.held_size += <uint32_t>size
        return 0

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
                        refusal = self._finish(slot)
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
                self.frames_in += 1
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
                        assembly.fragments = 0
                        assembly.utf8 = 0
                    assembly.fragments += 1
                if length == 0:
                    assembly.in_payload = False
                    if fin:
                        refusal = self._finish(slot)
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

    cdef int _pong(self, uint32_t slot, const uint8_t *payload, int size) except -1:
        # RFC 6455 section 5.5.3: only the most recent ping needs an answer. A peer that does not
        # read is owed one pong, not a growing queue of them; one that floods gets a few a read.
        cdef Conn *conn = &self.conns[slot]
        cdef Assembly *assembly
        if conn.queue_head == NULL:
            return self._note_own(slot, OP_PONG, payload, size)
        assembly = new_assembly(conn) if conn.assembly == NULL else conn.assembly
        memcpy(assembly.pong, payload, size)
        assembly.pong_size = <uint8_t>size
        assembly.pong_owed = True
        return 0

    cdef int _judge(self, Conn *conn, const uint8_t *header) noexcept:
        """Judge a header by its first two octets; return a reason to close, or 0."""
        cdef uint8_t opcode = header[0] & 0x0f
        cdef bint in_message = conn.assembly != NULL and conn.assembly.message_opcode != 0
        if header[0] & 0x70:
            return PROTOCOL_ERROR       # reserved bits without an extension that defines them
        if not header[1] & 0x80:
            return PROTOCOL_ERROR       # section 5.1: frames from a client are masked
        if opcode >= 8:
            # Control frames are short and whole (section 5.5).
            if opcode > OP_PONG or not header[0] & 0x80 or (header[1] & 0x7f) > 125:
                return PROTOCOL_ERROR
        elif opcode > OP_BINARY or (opcode == OP_CONTINUATION) != in_message:
            return PROTOCOL_ERROR
        return 0

    cdef int _measure(self, Conn *conn, const uint8_t *header, uint64_t *length) noexcept:
        """Read the length of a complete header and hold it against the limits."""
        cdef uint64_t size = header[1] & 0x7f, so_far = 0
        cdef uint32_t fragments = 1
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
        if size > self.max_message_bytes - so_far:
            return MESSAGE_TOO_BIG
        if fragments > self.max_fragments:
            return TOO_MANY_FRAGMENTS
        return 0

    cdef int _take(self, uint32_t slot, uint8_t *data, size_t size) except -1:
        """Take a piece of the current frame's payload."""
        cdef Assembly *assembly = self.conns[slot].assembly
        cdef uint8_t *grown
        cdef size_t capacity
        ff_unmask(data, size, assembly.mask, <size_t>(assembly.arrived & 3))
        if assembly.opcode >= 8:
            memcpy(assembly.control + assembly.arrived, data, size)
        else:
            if assembly.message_opcode == OP_TEXT and ff_utf8(&assembly.utf8, data, size):
                return self._close(slot, INVALID_PAYLOAD)
            if assembly.size + size > assembly.capacity:
                # Memory follows what has arrived, never what a header promises.
                capacity = max(assembly.size + size, assembly.capacity * 2)
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

    cdef bytes _finish(self, uint32_t slot):
        """The last fragment is complete: hand the message over. Returns it when it was refused."""
        cdef Assembly *assembly = self.conns[slot].assembly
        cdef uint8_t opcode = assembly.message_opcode
        cdef bytes payload
        if opcode == OP_TEXT and assembly.utf8:
            self._close(slot, INVALID_PAYLOAD)
            return None
        payload = PyBytes_FromStringAndSize(<const char *>assembly.data, assembly.size)
        free(assembly.data)
        assembly.data = NULL
        assembly.size = assembly.capacity = 0
        assembly.message_opcode = 0
        return self._message(slot, payload, opcode == OP_TEXT)

    cdef bytes _complete(self, uint32_t slot, uint8_t opcode, const uint8_t *data, size_t size):
        """A message in one frame: hand it over. Returns it when it was refused."""
        cdef uint32_t utf8 = 0
        if opcode == OP_TEXT and (ff_utf8(&utf8, data, size) or utf8):
            self._close(slot, INVALID_PAYLOAD)
            return None
        return self._message(
            slot, PyBytes_FromStringAndSize(<const char *>data, size), opcode == OP_TEXT
        )

    cdef bytes _message(self, uint32_t slot, bytes payload, bint is_text):
        cdef Conn *conn = &self.conns[slot]
        cdef uint32_t generation = conn.generation
        cdef object owner
        if self.message_rate > 0 and not self._spend(conn):
            self.refused += 1
            if conn.refused_at == 0 or <uint32_t>(
                <uint32_t>self.now_ms - conn.refused_at
            ) > REFUSING_GAP_MS:
                conn.refused_since = <uint32_t>self.now_ms
            # 0 means "never"; never later than now, or the difference above would wrap around.
            conn.refused_at = max(<uint32_t>self.now_ms, <uint32_t>1)
            if <uint32_t>(<uint32_t>self.now_ms - conn.refused_since) >= REFUSING_LIMIT_MS:
                self._close(slot, RATE_LIMITED)
            return payload
        self.messages_in += 1
        owner = <object>conn.owner
        try:
            self.on_message(owner, payload, is_text)
        except Exception as error:
            self._failed(slot, generation, error)
        return None

    cdef bint _spend(self, Conn *conn) noexcept:
        # A token bucket in thousandths of a message.
        cdef double tokens = conn.tokens + (
            <uint32_t>(<uint32_t>self.now_ms - conn.rate_at) * self.message_rate
        )
        tokens = min(tokens, self.message_burst * 1000)
        conn.rate_at = <uint32_t>self.now_ms
        if tokens < 1000:
            conn.tokens = <uint32_t>tokens
            return False
        conn.tokens = <uint32_t>(tokens - 1000)
        return True

    cdef int _tell_refused(self, uint32_t slot, bytes first, uint32_t number) except -1:
        cdef uint32_t generation = self.conns[slot].generation
        try:
            self.on_refused(<object>self.conns[slot].owner, first, number)
        except Exception as error:
            self._failed(slot, generation, error)
        return 0

    cdef int _failed(self, uint32_t slot, uint32_t generation, object error) except -1:
        self.on_error(error)
        # The callback may have ended its connection, and the slot may be somebody else's by now.
        if self.conns[slot].generation != generation:
            return 0
        return self._close(slot, INTERNAL_ERROR)

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

    cdef void _tidy(self, Conn *conn) noexcept:
        cdef Assembly *assembly = conn.assembly
        if assembly != NULL and not (
            assembly.header_size or assembly.in_payload or assembly.message_opcode
            or assembly.pong_owed
        ):
            free_assembly(conn)

    # ------------------------------------------------------------- connections with a transport

    cdef object link_buffer(self):
        return PyMemoryView_FromMemory(<char *>self.read_buffer, READ_SIZE, PyBUF_WRITE)

    cdef int link_data(self, object handle, Py_ssize_t size) except -1:
        cdef uint32_t slot = 0
        if self._find(handle, &slot):
            self._touch_clock()
            self._received(slot, self.read_buffer, <size_t>size)
        return 0

    cdef int link_lost(self, object handle) except -1:
        cdef uint64_t tag = handle
        cdef uint32_t slot = <uint32_t>(tag & 0xffff)
        if self.conns[slot].generation == <uint32_t>(tag >> 16) and self.conns[slot].state != FREE:
            self._touch_clock()
            self._lose(slot, CONNECTION_LOST)
        return 0

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

    # -------------------------------------------------------------------------------------- time

    cdef int _touch_clock(self) except -1:
        if self.clock is None:
            self.now_ms = (ff_monotonic_ns() - self.started_ns) // 1000000
        else:
            self.now_ms = <uint64_t>((<double>self.clock() - self.started) * 1000 + 0.5)
        return 0

    def tick(self) -> None:
        """Do what has come due: pings, silence, stalled writes, expiries, lingering closes.

        To be called every 0.25 s; a late call catches up.
        """
        cdef uint64_t current, bucket
        cdef int32_t slot
        self._touch_clock()
        current = self.now_ms // TICK_MS
        if (current - self.wheel_at) * TICK_MS > STALL_MS:
            self.grace_until = self.now_ms + GRACE_MS
        self.depth += 1
        try:
            while self.wheel_at < current:
                self.wheel_at += 1
                bucket = self.wheel_at % BUCKETS
                if current - self.wheel_at >= BUCKETS:
                    continue    # the same bucket comes again before `current` is reached
                while self.wheel[bucket] >= 0:
                    slot = self.wheel[bucket]
                    self._wheel_remove(slot)
                    self._due(slot)
        finally:
            self.depth -= 1
        self.flush()

    cdef int _due(self, uint32_t slot) except -1:
        cdef Conn *conn = &self.conns[slot]
        cdef uint32_t now = <uint32_t>self.now_ms, generation = conn.generation
        cdef uint32_t backlog
        if conn.state == CLOSING:
            if <int32_t>(now - conn.linger_until) >= 0:
                return self._release(slot)
            return self._arm(slot)
        if conn.expires and self.now_ms >= <uint64_t>conn.expires * TICK_MS:
            conn.expires = 0
            try:
                self.on_expire(<object>conn.owner)
            except Exception as error:
                self._failed(slot, generation, error)
            if conn.generation != generation or conn.state == CLOSING:
                return 0
        if self.ping_interval and now - conn.last_seen >= self.ping_timeout:
            if self.now_ms >= self.grace_until:
                return self._close(slot, NO_PONG)
        if conn.queue_head != NULL:
            if conn.link != NULL:
                backlog = (<object>conn.link).transport.get_write_buffer_size()
                if backlog < conn.transport_backlog:
                    conn.progress_at = now
                conn.transport_backlog = backlog
            # After a stall of ours the kernel may have room that nobody has looked at yet.
            if now - conn.progress_at >= self.write_timeout and self.now_ms >= self.grace_until:
                return self._close_slow(slot)
        if self.ping_interval and <int32_t>(now - conn.next_ping) >= 0:
            conn.next_ping += self.ping_interval
            if <int32_t>(now - conn.next_ping) >= 0:
                conn.next_ping = now + self.ping_interval
            if conn.queue_head == NULL:
                self._note_own(slot, OP_PING, NULL, 0)
        return self._arm(slot)

    cdef int _arm(self, uint32_t slot) except -1:
        """Put a connection into the bucket of the earliest thing that may come due for it."""
        cdef Conn *conn = &self.conns[slot]
        cdef uint32_t now = <uint32_t>self.now_ms
        cdef int64_t wait = (BUCKETS - 1) * TICK_MS, at
        if conn.state == CLOSING:
            wait = min(wait, <int32_t>(conn.linger_until - now))
        else:
            if self.ping_interval:
                wait = min(wait, <int32_t>(conn.next_ping - now))
                at = <int32_t>(conn.last_seen + self.ping_timeout - now)
                if at <= 0:
                    at = <int64_t>self.grace_until - <int64_t>self.now_ms
                wait = min(wait, at)
            if conn.queue_head != NULL:
                at = <int32_t>(conn.progress_at + self.write_timeout - now)
                if at <= 0:
                    at = <int64_t>self.grace_until - <int64_t>self.now_ms
                wait = min(wait, at)
            if conn.expires:
                wait = min(wait, <int64_t>conn.expires * TICK_MS - <int64_t>self.now_ms)
        self._wheel_remove(slot)
        at = (<int64_t>self.now_ms + max(wait, 1) + TICK_MS - 1) // TICK_MS
        at = min(max(at, <int64_t>self.wheel_at + 1), <int64_t>self.wheel_at + BUCKETS - 1)
        at = at % BUCKETS
        conn.wheel_bucket = <int32_t>at
        conn.wheel_previous = -1
        conn.wheel_next = self.wheel[at]
        if conn.wheel_next >= 0:
            self.conns[conn.wheel_next].wheel_previous = <int32_t>slot
        self.wheel[at] = <int32_t>slot
        return 0

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


class Link(asyncio.BufferedProtocol):
    """The core's end of a connection that keeps its asyncio transport."""

    __slots__ = ("_core", "handle", "transport")

    def __init__(self, core: Core, transport: asyncio.Transport, handle: int) -> None:
        self._core = core
        self.transport = transport
        self.handle = handle

    def get_buffer(self, sizehint: int) -> memoryview:
        return (<Core>self._core).link_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        (<Core>self._core).link_data(self.handle, nbytes)

    def eof_received(self) -> bool:
        (<Core>self._core).link_lost(self.handle)
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        (<Core>self._core).link_lost(self.handle)

    def pause_writing(self) -> None:
        (<Core>self._core).link_paused(self.handle, True)

    def resume_writing(self) -> None:
        (<Core>self._core).link_paused(self.handle, False)


cdef Assembly *new_assembly(Conn *conn) except NULL:
    conn.assembly = <Assembly *>calloc(1, sizeof(Assembly))
    if conn.assembly == NULL:
        raise MemoryError("no memory for a message")
    return conn.assembly


cdef void free_assembly(Conn *conn) noexcept:
    if conn.assembly != NULL:
        free(conn.assembly.data)
        free(conn.assembly)
        conn.assembly = NULL
