# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True, embedsignature=True
"""The native core: every byte between the 101 and the end of a connection passes through here.

One `Core` serves all connections of an event loop. It owns their sockets in an epoll set of its own
(the loop watches that set as one readable descriptor), parses and builds RFC 6455 frames, keeps the
members of every room as a set of slots, collects what is said during one tick of the loop and sends
it with one call per member, and keeps the time of pings, silence and stalled writes.

Connections that cannot give up their asyncio transport (TLS, systems without epoll) take part through
a `Link`: the same state, the same limits, only the bytes travel differently.

Parts: `_core.pxd` is the map of native state, `_native.h` holds the loops per byte. A class body
cannot be put together from files, so `Core` is a chain of classes, a part each. A part calls only
itself and the parts above it, and nothing is overridden, so every call is a direct one.

    _core_sets.pxi      a room's set of slots
    _core_queue.pxi     a connection's out-queue
    _core_state.pxi     _State: attributes, memory, slots, handles
    _core_time.pxi      _Time: the clock and the timer wheel
    _core_deflate.pxi   _Deflate: messages compressed and inflated
    _core_output.pxi    _Output: from a message noted to octets sent or queued
    _core_rooms.pxi     _Rooms: rooms and their members
    _core_end.pxi       _End: how connections end
    _core_input.pxi     _Input: from octets received to a message handed over
    _core_envelope.pxi  the outside of a message from another node; not of the chain
    _core_head.pxi      how a client comes in; not of the chain
    _core_seats.pxi     what is kept of a connection beside all that; not of the chain
    _core_pipe.pxi      what crosses between the processes of a node; not of the chain
    _core.pyx           Core: all that Python code can call, and what comes due

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
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memcpy, memmove, memset

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
    int ff_accept(int listener, char *address, size_t size)
    ssize_t ff_send(int fd, const uint8_t *data, size_t size, bint more)
    ssize_t ff_recv(int fd, uint8_t *data, size_t size)
    bint ff_would_block()
    uint64_t ff_monotonic_ns()
    void ff_unmask(uint8_t *data, size_t size, const uint8_t *key, size_t phase)
    int ff_utf8(uint32_t *state, const uint8_t *data, size_t size)
    ctypedef struct ff_span:
        uint32_t at
        uint32_t size
    ctypedef struct ff_plain:
        ff_span type
        ff_span room
    bint ff_plain_frame(const uint8_t *text, size_t size, ff_plain *found)
    int ff_scan_json(const uint8_t *text, size_t size, size_t max_depth, size_t max_keys)

cdef extern from "_native.h" nogil:      # what <zlib.h> declares, ZLIB_CONST defined
    ctypedef struct z_stream:
        const uint8_t *next_in
        uint32_t avail_in
        uint8_t *next_out
        uint32_t avail_out
        int data_type
    const int Z_OK, Z_STREAM_END, Z_BUF_ERROR, Z_MEM_ERROR
    const int Z_SYNC_FLUSH, Z_DEFLATED, Z_DEFAULT_STRATEGY
    const char *zlibVersion()
    int deflateInit2(z_stream *stream, int level, int method, int bits, int memory, int strategy)
    int deflateReset(z_stream *stream)
    int c_deflate "deflate" (z_stream *stream, int flush)
    int deflateEnd(z_stream *stream)
    int inflateInit2(z_stream *stream, int bits)
    int inflateReset(z_stream *stream)
    int c_inflate "inflate" (z_stream *stream, int flush)
    int inflateEnd(z_stream *stream)

cdef extern from "<math.h>" nogil:
    long long llrint(double number)

cdef extern from "Python.h":
    str PyUnicode_New(Py_ssize_t size, Py_UCS4 largest)
    void *PyUnicode_1BYTE_DATA(str text)

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
    TICK_MS = 250               # the timer wheel's step: how exactly things come due
    TICKS_AHEAD = 4             # every fourth step, at whole seconds, has a tick in any case
    PING_GRID_MS = 1000         # pings leave at whole seconds
    PING_GRIDS = 10             # if so many of them are no more than the ping interval
    PINGS_AT_ONCE = 512         # more would hold up the loop: they leave in parts then
    BUCKETS = 256               # the wheel spans 64 s; what is due later is looked at again then
    LINGER_MS = 450             # how long a closed connection may take; with two ticks below 1 s
    STALL_MS = 2000             # a tick as late as this means that the loop stood still
    GRACE_MS = 5000             # after which nobody is called silent before its input was read
    REFUSING_GAP_MS = 1000      # refusals further apart than this are not one flood
    REFUSING_LIMIT_MS = 10000   # a flood that lasts this long ends the connection
    LEAST_MESSAGE = 256         # octets made room for when a message does not come in one piece
    TRANSPORT_HIGH = 65536      # octets an asyncio transport may hold before it is our queue's turn
    PONGS_PER_READ = 15         # pings of one read answered one by one; of the rest, only the last
    ALL = 0                     # the room every connection is in
    PLAIN = 0                   # the variant of a connection that gets everything as it is
    VARIANTS = 8                # PLAIN, and windows of 2**9 ... 2**15 octets; zlib knows no 2**8

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

ZLIB_VERSION = zlibVersion().decode("ascii")     # that messages are compressed with

cdef enum:                      # opcodes, RFC 6455 section 5.2
    OP_CONTINUATION = 0
    OP_TEXT = 1
    OP_BINARY = 2
    OP_CLOSE = 8
    OP_PING = 9
    OP_PONG = 10

include "_core_sets.pxi"
include "_core_queue.pxi"
include "_core_state.pxi"
include "_core_time.pxi"
include "_core_deflate.pxi"
include "_core_output.pxi"
include "_core_rooms.pxi"
include "_core_end.pxi"
include "_core_input.pxi"
include "_core_envelope.pxi"
include "_core_head.pxi"
include "_core_seats.pxi"
include "_core_pipe.pxi"


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


cdef class Core(_Input):
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
        deflate_min_bytes: a shorter message is not compressed.
        deflate_level: zlib's, 1 (fast) to 9 (small).
        epoll: False to do without an epoll set where there could be one.
    """

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
        deflate_min_bytes: int = 512,
        deflate_level: int = 6,
        epoll: bool = True,
    ) -> None:
        if self.conns != NULL:
            raise RuntimeError("a core is initialised once")
        if not 1 <= max_connections <= 65536:
            raise ValueError(f"max_connections must be 1 to 65536, not {max_connections}")
        if not 1 <= deflate_level <= 9:
            raise ValueError(f"deflate_level must be 1 to 9, not {deflate_level}")
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
        self.deflate_min_bytes = max(deflate_min_bytes, 1)
        self.deflate_level = deflate_level
        self.random = int.from_bytes(os.urandom(4), "big") | 1

        self._allocate()
        self._make_room()       # ALL
        # The wheel's steps are those of the clock: whoever wakes at whole seconds wakes for it too.
        self.started_ns = ff_monotonic_ns() // 1000000000 * 1000000000
        self.started = clock() // 1 if clock is not None else self.started_ns / 1e9
        self._touch_clock()
        self.wheel_at = self.now_ms // TICK_MS
        self.next_tick = self.wheel_at + 1
        if epoll and FF_HAVE_EPOLL:
            self.poll_fd = ff_epoll_create()
            if self.poll_fd < 0:
                raise OSError(errno.EMFILE, "cannot create an epoll set")

    # ------------------------------------------------------------------ connections come and go

    def adopt_socket(
        self,
        fd: int,
        owner: object,
        *,
        early: bytes = b"",
        paused: bool = False,
        deflate: int = 0,
        answer: bytes = b"",
        more: bool = False,
    ) -> int:
        """Take over a connected, upgraded socket.

        Args:
            fd: the descriptor; it belongs to the core from now on, also when this raises.
            owner: what callbacks are given for this connection.
            early: octets that arrived behind the opening handshake.
            paused: leave input unread until `resume`.
            deflate: 9 to 15, the bits of the window that was agreed on for permessage-deflate
                without context takeover; 0 for none.
            answer: the end of the opening handshake, if that has not left yet.
            more: something is sent right behind it, with which the kernel may send it.

        Returns:
            The connection's handle: generation << 16 | slot, never reused.

        Raises:
            ConnectionError: no free slot, the descriptor cannot be watched, or the kernel does not
                take the answer.
        """
        cdef uint32_t slot
        cdef uint8_t variant
        cdef Conn *conn
        try:
            variant = self._variant(deflate)
            if self.poll_fd < 0:
                raise ConnectionError("there is no epoll set to put a socket into")
            slot = self._new_slot(owner, early)
        except BaseException:
            os.close(fd)
            raise
        conn = &self.conns[slot]
        conn.fd = fd
        self.variant_of[slot] = variant
        if ff_epoll_ctl(self.poll_fd, EPOLL_CTL_ADD, fd, 0 if paused else EPOLLIN, self._tag(slot)):
            self._release(slot)
            raise ConnectionError("the socket cannot be watched")
        # The send buffer of a new socket is empty, and has room for an answer.
        if answer and ff_send(
            fd, <const uint8_t *>PyBytes_AS_STRING(answer), PyBytes_GET_SIZE(answer), more
        ) != PyBytes_GET_SIZE(answer):
            self._release(slot)
            raise ConnectionError("the answer to the opening handshake was not taken")
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
        deflate: int = 0,
    ) -> object:
        """Take over an upgraded connection together with its asyncio transport.

        Returns:
            The protocol the caller gives to `transport.set_protocol`; its `handle` is the
            connection's.

        Raises:
            ConnectionError: no free slot.
        """
        cdef uint8_t variant = self._variant(deflate)
        cdef uint32_t slot = self._new_slot(owner, early)
        self.variant_of[slot] = variant
        link = Link(self, transport, self._handle(slot))
        Py_INCREF(link)
        self.conns[slot].link = <PyObject *>link
        transport.set_write_buffer_limits(high=TRANSPORT_HIGH)
        if paused:
            transport.pause_reading()
            self.conns[slot].flags |= NOT_READING
        self._begin(slot, paused)
        return link

    @cython.final
    cdef int _begin(self, uint32_t slot, bint paused) except -1:
        cdef Conn *conn = &self.conns[slot]
        self._touch_clock()
        conn.last_seen = conn.rate_at = <uint32_t>self.now_ms
        # The first ping comes at a random moment of the interval, or all clients of a reconnect
        # storm would be pinged in the same tick for ever.
        if self.ping_interval:
            self.random ^= self.random << 13
            self.random ^= self.random >> 17
            self.random ^= self.random << 5
            conn.alarm = self._ping_moment(
                slot, self.now_ms + 1 + self.random % self.ping_interval, True
            )
        self.open_count += 1
        self.deflate_count += self.variant_of[slot] != PLAIN
        self.counted.adopted += 1
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

    @cython.final
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
        if self.poll_fd >= 0:
            c_close(self.poll_fd)
            self.poll_fd = -1

    # -------------------------------------------------------------------- what is known of them

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
        if not self._find(conn, &slot) or self.conns[slot].queue == NULL:
            return 0
        return self.conns[slot].queue.bytes

    # ------------------------------------------------------------------------------------ rooms

    def open_room(self) -> int:
        """Make an empty room and return its number."""
        cdef uint32_t number = self.free_rooms.pop() if self.free_rooms else self._make_room()
        self.rooms[number].first_entry = NO_ENTRY
        return number

    def close_room(self, room: int) -> None:
        """Give the number of an empty room back.

        Raises:
            ValueError: it has members, or there is no such room.
        """
        if self._room(room).count:
            raise ValueError(f"room {room} has members")
        if self._room(room).first_entry >= 0:
            self._flush_sends()     # its last members were told on their way out; the rest is for nobody
        self._room(room).first_entry = NOT_OPEN
        self.free_rooms.append(room)

    def join(self, conn: int, room: int) -> int:
        """Put a connection into a room.

        Returns:
            1, or 0 when it was a member or is gone, or -1 when it is in `max_rooms` rooms.
        """
        cdef uint32_t slot = 0
        cdef Conn *state
        cdef uint32_t number = room
        cdef Room *target = self._room(room)
        if not self._find(conn, &slot) or room_has(target, <uint16_t>slot):
            return 0
        state = &self.conns[slot]
        if state.room_count >= self.max_rooms:
            return -1
        self._enter(slot, number)
        try:
            add_room(state, number)
        except MemoryError:
            self._unlist(slot, number)
            raise
        return 1

    def leave(self, conn: int, room: int) -> bool:
        """Take a connection out of a room; False when it was no member."""
        cdef uint32_t slot = 0, i
        cdef uint32_t number = room
        cdef uint32_t *rooms
        cdef Conn *state
        if not self._find(conn, &slot) or not room_has(self._room(room), <uint16_t>slot):
            return False
        if self.rooms[number].first_entry >= 0:
            self._flush_one(slot)
        state = &self.conns[slot]
        rooms = rooms_in(state)
        for i in range(state.room_count):
            if rooms[i] == number:
                state.room_count -= 1
                memmove(rooms + i, rooms + i + 1, (state.room_count - i) * sizeof(uint32_t))
                break
        self._unlist(slot, number)
        return True

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

    def rooms_of(self, conn: int) -> list:
        """Return the numbers of the rooms a connection is in, in the order it joined them.

        Within `on_close` these are the rooms it has just been taken out of.
        """
        cdef uint64_t tag = conn
        cdef uint32_t slot = <uint32_t>(tag & 0xffff), i
        cdef uint32_t *rooms
        if slot >= self.fresh_slot or self.conns[slot].generation != <uint32_t>(tag >> 16):
            return []
        rooms = rooms_in(&self.conns[slot])
        return [rooms[i] for i in range(self.conns[slot].room_count)]

    def room_count(self, conn: int) -> int:
        """Return in how many rooms a live connection is."""
        cdef uint32_t slot = 0
        return self.conns[slot].room_count if self._find(conn, &slot) else 0

    # ----------------------------------------------------------------------------------- output

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
        self.counted.deliveries += 1
        return 1 if state.queue != NULL else 0

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

    # ------------------------------------------------------------------------------------ input

    def ready(self) -> None:
        """Serve the sockets that became readable or writable, for a few milliseconds at most."""
        cdef epoll_event *event
        cdef uint32_t slot, served = 0
        cdef uint64_t began
        cdef Conn *conn
        if self.event_at == self.event_count:
            self.event_at = 0
            self.event_count = max(ff_epoll_poll(self.poll_fd, self.events, EVENTS_PER_WAKE), 0)
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

    # ------------------------------------------------------------------------------------- time

    def set_expiry(self, conn: int, when: float) -> None:
        """Have `on_expire` called at `when`, in seconds of the core's clock. Replaces an earlier time."""
        cdef uint32_t slot = 0
        cdef double left
        if self._find(conn, &slot):
            # To the millisecond, then up to the tick that is not before it.
            left = min(max((when - self.started) * 1000 + 0.5, 1.0), 1e12)
            self.conns[slot].expires = <uint32_t>((<uint64_t>left + TICK_MS - 1) // TICK_MS)
            self._arm(slot)

    def tell_hurry(self, function: object) -> None:
        """Say what is called when something will be due earlier than the last `tick` asked for.

        The next tick is to come at the next multiple of 0.25 s then.

        Args:
            function: called without arguments from within other calls; it must not use the core.
                None for nothing, as at first.
        """
        self.on_hurry = function

    def tick(self) -> int:
        """Do what has come due: pings, silence, stalled writes, expiries, lingering closes.

        To be called when the clock passes the multiples of 0.25 s; a late call catches up.

        Returns:
            In how many of these steps something may be due again, at the next whole second at the
            latest: 1 to 4. See `tell_hurry`.
        """
        cdef uint64_t current, bucket
        cdef int32_t slot
        self._touch_clock()
        current = self.now_ms // TICK_MS
        if current >= self.next_tick + STALL_MS // TICK_MS:
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
        self.next_tick = self.wheel_at + 1
        while self.next_tick % TICKS_AHEAD and self.wheel[self.next_tick % BUCKETS] < 0:
            self.next_tick += 1
        return self.next_tick - self.wheel_at

    @cython.final
    cdef int _due(self, uint32_t slot) except -1:
        cdef Conn *conn = &self.conns[slot]
        cdef uint32_t now = <uint32_t>self.now_ms, generation = conn.generation
        cdef uint32_t backlog, late
        if conn.state == CLOSING:
            if <int32_t>(now - conn.alarm) >= 0:
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
        if conn.queue != NULL:
            if conn.link != NULL:
                backlog = (<object>conn.link).transport.get_write_buffer_size()
                if backlog < conn.queue.transport_backlog:
                    conn.queue.progress_at = now
                conn.queue.transport_backlog = backlog
            # After a stall of ours the kernel may have room that nobody has looked at yet.
            if now - conn.queue.progress_at >= self.write_timeout and self.now_ms >= self.grace_until:
                return self._close_slow(slot)
        if self.ping_interval and <int32_t>(now - conn.alarm) >= 0:
            late = now - conn.alarm
            conn.alarm = self._ping_moment(
                slot,
                self.now_ms + self.ping_interval - (late if late < self.ping_interval else 0),
                False,
            )
            if conn.queue == NULL:
                self._note_own(slot, OP_PING, NULL, 0)
        return self._arm(slot)

    # --------------------------------------------------------------------------------- counters

    def queue_totals(self) -> tuple:
        """Return the octets that wait on all connections, and on how many; walks every slot."""
        cdef uint32_t slot, waiting = 0
        cdef uint64_t octets = 0
        for slot in range(self.fresh_slot):
            if self.conns[slot].queue != NULL:
                octets += self.conns[slot].queue.bytes
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

    @property
    def epoll_fd(self) -> int:
        return self.poll_fd

    @property
    def count(self) -> int:
        return self.open_count

    @property
    def frames_in(self) -> int:
        return self.counted.frames_in

    @property
    def messages_in(self) -> int:
        return self.counted.messages_in

    @property
    def bytes_in(self) -> int:
        return self.counted.bytes_in

    @property
    def bytes_out(self) -> int:
        return self.counted.bytes_out

    @property
    def deliveries(self) -> int:
        return self.counted.deliveries

    @property
    def sends(self) -> int:
        return self.counted.sends

    @property
    def flushes(self) -> int:
        return self.counted.flushes

    @property
    def refused(self) -> int:
        return self.counted.refused

    @property
    def adopted(self) -> int:
        return self.counted.adopted

    @property
    def deflating(self) -> int:
        return self.deflate_count

    @property
    def compressions(self) -> int:
        return self.counted.compressions

    @property
    def compression_in(self) -> int:
        return self.counted.compression_in

    @property
    def compression_out(self) -> int:
        return self.counted.compression_out

    @property
    def compressed_deliveries(self) -> int:
        return self.counted.compressed_deliveries

    @property
    def inflations(self) -> int:
        return self.counted.inflations

    @property
    def inflation_in(self) -> int:
        return self.counted.inflation_in

    @property
    def inflation_out(self) -> int:
        return self.counted.inflation_out


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
