"""The twin of the native core: the same rules in plain Python, for transports only.

It is what ``falcon_fast/_core.pyx`` is compared with, so every rule is written here the way one
would explain it, whatever it costs: each connection has a list of the frames that were noted for it
in this tick, a fan-out appends to the list of each member, a partly received frame is looked at
from its beginning again. Handles and room numbers are opaque and differ from the core's, and the
order among connections in one flush is nobody's business.

Both agree at ticks that come every 0.25 s. Only the moment of a connection's first ping is not the
same: it is random.
"""

from __future__ import annotations

import asyncio
import enum
import os
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from falcon_fast.codes import CloseReason

OwnerT = TypeVar("OwnerT")

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

LINGER_MS: Final = 450
"""How long the peer of a closed connection may take to end its side."""
STALL_MS: Final = 2_000
"""A gap between ticks after which nobody is called silent for GRACE_MS."""
GRACE_MS: Final = 5_000
TICK_LIMIT_BYTES: Final = 1 << 20
"""What is noted in one tick beyond this is not left until its end."""
REFUSING_GAP_MS: Final = 1_000
"""Refusals further apart than this are not one flood."""
REFUSING_LIMIT_MS: Final = 10_000
PONGS_PER_READ: Final = 15
"""Pings of one read that are answered one by one; of those that follow, only the last is."""
READ_BYTES: Final = 65_536
MEMORY_LEVEL: Final = 5
"""Of zlib."""
EMPTY_BLOCK: Final = b"\x00\x00\xff\xff"
"""RFC 7692 section 7.2.1: what ends a compressed message and is not sent."""


class Verdict(enum.IntEnum):
    """What became of a message handed to `Twin.send`."""

    SENT = 0
    QUEUED = 1
    SLOW = 2
    CLOSED = 3


class State(enum.Enum):
    """Of a connection: HELD -> OPEN -> CLOSING -> gone, or any of the first two -> gone."""

    HELD = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()


@dataclass(frozen=True, slots=True)
class Head:
    """The header of a frame."""

    opcode: int
    fin: bool
    size: int
    mask: bytes
    compressed: bool


@dataclass(slots=True)
class Partial:
    """A data message of which the last fragment has not arrived."""

    opcode: int
    compressed: bool = False
    fragments: int = 0
    data: bytes = b""


@dataclass(slots=True, eq=False)
class Noted:
    """A frame to be sent, and what it was compressed to for the windows that were asked for."""

    opcode: int
    payload: bytes
    packed: dict[int, bytes] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Connection(Generic[OwnerT]):
    """What is known of one connection; times are milliseconds since the twin was made."""

    handle: int
    owner: OwnerT
    transport: asyncio.Transport
    held: bytes
    last_seen: int
    progress: int
    next_ping: int
    rate_at: int
    tokens: float
    window: int
    state: State = State.HELD
    rooms: list[int] = field(default_factory=list)
    reading: bool = True
    paused: bool = False
    doomed: CloseReason | None = None
    write_ended: bool = False
    input: bytes = b""
    head: Head | None = None
    message: Partial | None = None
    noted: list[Noted] = field(default_factory=list)
    queue: list[list[bytes]] = field(default_factory=list)
    pong_owed: bytes | None = None
    backlog: int = 0
    linger_until: int = 0
    expires: float | None = None
    refused_at: int | None = None
    refused_since: int = 0

    @property
    def live(self) -> bool:
        """Whether the application still has this connection."""
        return self.state is not State.CLOSING

    @property
    def queued_bytes(self) -> int:
        """Return the octets that the transport would not take."""
        return sum(len(frame) for batch in self.queue for frame in batch)

    @property
    def queued_messages(self) -> int:
        """Return the frames that the transport would not take."""
        return sum(len(batch) for batch in self.queue)


class Link(asyncio.BufferedProtocol, Generic[OwnerT]):
    """The protocol that is given to the transport."""

    def __init__(self, twin: Twin[OwnerT], handle: int) -> None:
        self.handle = handle
        self._twin = twin
        self._buffer = bytearray(READ_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)

    def buffer_updated(self, nbytes: int) -> None:
        self._twin.link_data(self.handle, bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool:
        self._twin.link_lost(self.handle)
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        self._twin.link_lost(self.handle)

    def pause_writing(self) -> None:
        self._twin.link_paused(self.handle, True)

    def resume_writing(self) -> None:
        self._twin.link_paused(self.handle, False)


class Twin(Generic[OwnerT]):
    """The rules of `falcon_fast._core.Core`; see there for the arguments and methods."""

    epoll_fd = -1

    def __init__(
        self,
        *,
        on_message: Callable[[OwnerT, bytes, bool], None],
        on_close: Callable[[OwnerT, int, int], None],
        on_refused: Callable[[OwnerT, bytes, int], None],
        on_expire: Callable[[OwnerT], None],
        on_error: Callable[[BaseException], None],
        schedule: Callable[[Callable[[], None]], object],
        close_table: Sequence[tuple[int, bytes]],
        clock: Callable[[], float],
        max_connections: int = 65536,
        max_message_bytes: int = 65536,
        max_fragments: int = 128,
        max_queue_bytes: int = 1 << 20,
        max_queue_messages: int = 1024,
        write_timeout: float = 10.0,
        ping_interval: float = 30.0,
        ping_timeout: float = 60.0,
        message_rate: float = 0.0,
        message_burst: int = 0,
        max_rooms: int = 512,
        deflate_min_bytes: int = 512,
        deflate_level: int = 6,
        epoll: bool = False,
    ) -> None:
        assert not epoll, "the twin knows transports only"
        self._on_message = on_message
        self._on_close = on_close
        self._on_refused = on_refused
        self._on_expire = on_expire
        self._on_error = on_error
        self._schedule = schedule
        self._close_table = close_table
        self._clock = clock
        self._max_connections = max_connections
        self._max_message_bytes = max_message_bytes
        self._max_fragments = max_fragments
        self._max_queue_bytes = max_queue_bytes
        self._max_queue_messages = max_queue_messages
        self._write_timeout = round(write_timeout * 1000)
        self._ping_interval = round(ping_interval * 1000)
        self._ping_timeout = round(ping_timeout * 1000)
        self._message_rate = message_rate
        self._message_burst = max(message_burst, 1)
        self._max_rooms = max_rooms
        self._deflate_min_bytes = max(deflate_min_bytes, 1)
        self._deflate_level = deflate_level

        self._started = clock()
        self._last_tick = 0
        self._grace_until = 0
        self._connections: dict[int, Connection[OwnerT]] = {}
        self._next_handle = 1
        self._unusable = 0  # slots that are given back when the tick ends
        self._rooms: dict[int, list[Connection[OwnerT]]] = {}
        self._next_room = 1
        self._news: set[int] = set()  # rooms in which something was said in this tick
        self._tick_frames = 0
        self._tick_bytes = 0
        self._doomed: list[Connection[OwnerT]] = []
        self._depth = 0
        self._scheduled = False

        self.frames_in = 0
        self.messages_in = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.deliveries = 0
        self.refused = 0
        self.adopted = 0
        self.compressions = 0
        self.compression_in = 0
        self.compression_out = 0
        self.compressed_deliveries = 0
        self.inflations = 0
        self.inflation_in = 0
        self.inflation_out = 0

    @property
    def count(self) -> int:
        """Return the number of connections that the application has."""
        return len(self._live())

    @property
    def deflating(self) -> int:
        """Return how many of them agreed on permessage-deflate."""
        return sum(conn.window > 0 for conn in self._live())

    def _live(self) -> list[Connection[OwnerT]]:
        return [conn for conn in self._connections.values() if conn.live]

    def _find(self, handle: int) -> Connection[OwnerT] | None:
        conn = self._connections.get(handle)
        return conn if conn is not None and conn.live else None

    def _now(self) -> int:
        return round((self._clock() - self._started) * 1000)

    # Connections come and go.

    def adopt_socket(
        self,
        fd: int,
        owner: OwnerT,
        *,
        early: bytes = b"",
        paused: bool = False,
        deflate: int = 0,
        answer: bytes = b"",
        more: bool = False,
    ) -> int:
        """Refuse: there is no epoll set."""
        os.close(fd)
        raise ConnectionError("the twin knows transports only")

    def adopt_transport(
        self,
        transport: asyncio.Transport,
        owner: OwnerT,
        *,
        early: bytes = b"",
        paused: bool = False,
        deflate: int = 0,
    ) -> Link[OwnerT]:
        """Take over an upgraded connection together with its asyncio transport."""
        if deflate not in (0, 9, 10, 11, 12, 13, 14, 15):
            raise ValueError("no such window")
        if len(self._connections) + self._unusable >= self._max_connections:
            raise ConnectionError("all slots are taken")
        now = self._now()
        conn = Connection(
            handle=self._next_handle,
            owner=owner,
            transport=transport,
            held=early,
            last_seen=now,
            progress=now,
            # Pings are spread over the interval.
            next_ping=now + 1 + random.randrange(self._ping_interval or 1),
            rate_at=now,
            tokens=self._message_burst * 1000,
            window=deflate,
        )
        self._next_handle += 1
        self._connections[conn.handle] = conn
        self.adopted += 1
        transport.set_write_buffer_limits(high=65536)
        if paused:
            conn.reading = False
            transport.pause_reading()
        else:
            self._open(conn)
        return Link(self, conn.handle)

    def resume(self, handle: int) -> None:
        """Deliver the input that waited, and read on."""
        conn = self._find(handle)
        if conn is not None and conn.state is State.HELD:
            self._open(conn)
            if conn.live:
                self._read_on(conn)

    def _open(self, conn: Connection[OwnerT]) -> None:
        conn.state = State.OPEN
        held, conn.held = conn.held, b""
        if held:
            self._feed(conn, held)

    def _read_on(self, conn: Connection[OwnerT]) -> None:
        if not conn.reading:
            conn.reading = True
            if not conn.transport.is_closing():
                conn.transport.resume_reading()

    def close(self, handle: int, reason: int) -> None:
        """Send what is pending, then a Close frame with the reason's code and text."""
        self._check(reason)
        conn = self._find(handle)
        if conn is not None:
            self._close(conn, reason)

    def _check(self, reason: int) -> None:
        if not 0 <= reason < len(self._close_table):
            raise ValueError("no ordinal of a close reason")

    def _close(self, conn: Connection[OwnerT], reason: int) -> None:
        code, words = self._close_table[reason]
        self._say_last(conn, code.to_bytes(2, "big") + words)
        self._retire(conn, reason, code)

    def _close_slow(self, conn: Connection[OwnerT]) -> None:
        # The backlog is what the peer cannot take. A transport has taken whole frames, so there is
        # no begun one to finish.
        conn.noted.clear()
        conn.queue.clear()
        self._close(conn, CloseReason.SLOW_CONSUMER)

    def _say_last(self, conn: Connection[OwnerT], payload: bytes) -> None:
        self._send_noted(conn)
        if conn.doomed is CloseReason.SLOW_CONSUMER:
            # It is told why, at the cost of the backlog that it could not take anyway.
            conn.queue.clear()
        conn.state = State.CLOSING
        conn.doomed = None
        self._deliver(conn, [build(CLOSE, payload)])

    def _retire(self, conn: Connection[OwnerT], reason: int, code: int) -> None:
        """Take a connection out of all that the application sees; its transport lingers on."""
        for room in conn.rooms:
            self._rooms[room].remove(conn)
        conn.linger_until = self._now() + LINGER_MS
        self._read_on(conn)  # what comes is discarded, up to the peer's end
        if not conn.queue:
            self._end_write(conn, peer_is_done=reason == CloseReason.PEER_CLOSED)
        try:
            self._on_close(conn.owner, reason, code)
        except Exception as error:
            self._on_error(error)
        conn.rooms.clear()

    def _end_write(self, conn: Connection[OwnerT], *, peer_is_done: bool) -> None:
        if conn.write_ended:
            return
        conn.write_ended = True
        if conn.transport.can_write_eof():
            conn.transport.write_eof()
        elif peer_is_done:
            conn.transport.close()

    def abort(self, handle: int, reason: int) -> None:
        """End a connection without a Close frame."""
        self._check(reason)
        conn = self._find(handle)
        if conn is not None:
            self._lose(conn, reason)

    def _lose(self, conn: Connection[OwnerT], reason: int) -> None:
        if conn.live:
            conn.state = State.CLOSING
            conn.queue.clear()
            conn.noted.clear()
            conn.write_ended = True
            self._retire(conn, reason, self._close_table[reason][0])
        if conn.handle in self._connections:
            self._release(conn)

    def _release(self, conn: Connection[OwnerT]) -> None:
        del self._connections[conn.handle]
        self._unusable = self._unusable + 1 if self._tick_frames else 0
        conn.transport.abort()

    def shutdown(self) -> None:
        """Abort whatever is left."""
        for conn in list(self._connections.values()):
            self._lose(conn, CloseReason.GOING_AWAY)
        self._flush_sends()

    def owner(self, handle: int) -> OwnerT | None:
        """Return the owner of a live connection."""
        conn = self._find(handle)
        return None if conn is None else conn.owner

    def last_seen(self, handle: int) -> float:
        """Return when the peer was last heard of, in seconds of the clock."""
        conn = self._find(handle)
        return 0.0 if conn is None else self._started + conn.last_seen / 1000

    def queued_bytes(self, handle: int) -> int:
        """Return how many octets wait for the peer to take them."""
        conn = self._find(handle)
        return 0 if conn is None else conn.queued_bytes

    def queue_totals(self) -> tuple[int, int]:
        """Return the octets that wait on all connections, and on how many."""
        waiting = [conn.queued_bytes for conn in self._connections.values() if conn.queue]
        return sum(waiting), len(waiting)

    def set_expiry(self, handle: int, when: float) -> None:
        """Have `on_expire` called at `when`, in seconds of the clock."""
        conn = self._find(handle)
        if conn is not None:
            conn.expires = when

    # Rooms.

    def open_room(self) -> int:
        """Make an empty room and return its number."""
        self._next_room += 1
        self._rooms[self._next_room] = []
        return self._next_room

    def close_room(self, room: int) -> None:
        """Give an empty room back."""
        if self._room(room):
            raise ValueError("the room has members")
        if room in self._news:
            self._flush_sends()
        del self._rooms[room]

    def _room(self, room: int) -> list[Connection[OwnerT]]:
        if room not in self._rooms:
            raise ValueError("there is no such room")
        return self._rooms[room]

    def join(self, handle: int, room: int) -> int:
        """Put a connection into a room: 1; 0 when it was there or is gone; -1 at the limit."""
        members, conn = self._room(room), self._find(handle)
        if conn is None or conn in members:
            return 0
        if len(conn.rooms) >= self._max_rooms:
            return -1
        if room in self._news:
            self._send_noted(conn)
        members.append(conn)
        conn.rooms.append(room)
        return 1

    def leave(self, handle: int, room: int) -> bool:
        """Take a connection out of a room."""
        conn = self._find(handle)
        if conn is None or conn not in self._room(room):
            return False
        if room in self._news:
            self._send_noted(conn)
        self._rooms[room].remove(conn)
        conn.rooms.remove(room)
        return True

    def is_member(self, handle: int, room: int) -> bool:
        """Tell whether a live connection is in a room."""
        conn = self._find(handle)
        return conn is not None and conn in self._room(room)

    def member_count(self, room: int) -> int:
        """Return how many connections are in a room."""
        return len(self._room(room))

    def members(self, room: int) -> list[OwnerT]:
        """Return the owners of a room's members."""
        return [conn.owner for conn in self._room(room)]

    def owners(self) -> list[OwnerT]:
        """Return the owners of all connections."""
        return [conn.owner for conn in self._live()]

    def rooms_of(self, handle: int) -> list[int]:
        """Return the rooms of a connection, within `on_close` those it was in."""
        conn = self._connections.get(handle)
        return [] if conn is None else list(conn.rooms)

    def room_count(self, handle: int) -> int:
        """Return in how many rooms a live connection is."""
        conn = self._find(handle)
        return 0 if conn is None else len(conn.rooms)

    # Output.

    def fan_out(self, room: int, payload: bytes, *, binary: bool = False) -> int:
        """Note a message for every member of a room."""
        number = self._note(list(self._room(room)), BINARY if binary else TEXT, payload)
        if number:
            self._news.add(room)
        self.deliveries += number
        return number

    def broadcast(self, payload: bytes) -> int:
        """Note a message for every connection."""
        number = self._note(self._live(), TEXT, payload)
        self.deliveries += number
        return number

    def send(self, handle: int, payload: bytes, *, binary: bool = False) -> int:
        """Note a message for one connection and say what will become of it."""
        conn = self._find(handle)
        if conn is None:
            return Verdict.CLOSED
        if conn.doomed is not None:
            return Verdict.SLOW
        self.deliveries += self._note([conn], BINARY if binary else TEXT, payload)
        return Verdict.QUEUED if conn.queue else Verdict.SENT

    def _note(self, receivers: list[Connection[OwnerT]], opcode: int, payload: bytes) -> int:
        if not receivers:
            return 0
        if self._tick_bytes and self._tick_bytes + len(payload) + 10 > TICK_LIMIT_BYTES:
            self._flush_sends()
        noted = Noted(opcode, payload)
        for conn in receivers:
            conn.noted.append(noted)
        self._tick_frames += 1
        self._tick_bytes += len(build(opcode, payload))
        self._schedule_pending()
        return len(receivers)

    def _schedule_pending(self) -> None:
        pending = self._tick_frames or self._doomed
        if pending and not self._depth and not self._scheduled:
            self._scheduled = True
            self._schedule(self.flush)

    def flush(self) -> None:
        """End the tick: send what was noted, then close whom that showed to be slow."""
        if self._depth:
            return
        self._scheduled = False
        self._depth += 1
        self._flush_sends()
        for conn in self._doomed:  # grows while callbacks doom more
            if conn.doomed is CloseReason.CONNECTION_LOST:
                if conn.handle in self._connections:
                    self._lose(conn, conn.doomed)
            elif conn.live:
                self._close_slow(conn)
        self._doomed.clear()
        self._depth -= 1
        self._schedule_pending()

    def _flush_sends(self) -> None:
        for conn in self._live():
            self._send_noted(conn)
        self._news.clear()
        self._tick_frames = self._tick_bytes = self._unusable = 0

    def _send_noted(self, conn: Connection[OwnerT]) -> None:
        noted, conn.noted = conn.noted, []
        if not noted:
            return
        frames = [self._form(one, conn.window) for one in noted]
        if conn.doomed is None:
            self.compressed_deliveries += sum(frame[0] & 0x40 > 0 for frame in frames)
        self._deliver(conn, frames)

    def _form(self, noted: Noted, window: int) -> bytes:
        """Return a frame as it is for everybody with a window, or for those without one."""
        plain = build(noted.opcode, noted.payload)
        if not window or noted.opcode >= CLOSE or len(noted.payload) < self._deflate_min_bytes:
            return plain
        if window not in noted.packed:
            packed = self._deflate(noted.payload, window)
            smaller = len(packed) < len(noted.payload)
            self.compressions += 1
            self.compression_in += len(noted.payload)
            self.compression_out += len(packed if smaller else noted.payload)
            noted.packed[window] = build(0x40 | noted.opcode, packed) if smaller else plain
        return noted.packed[window]

    def _deflate(self, payload: bytes, window: int) -> bytes:
        compressor = zlib.compressobj(self._deflate_level, zlib.DEFLATED, -window, MEMORY_LEVEL)
        packed = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
        return packed.removesuffix(EMPTY_BLOCK)

    def _deliver(self, conn: Connection[OwnerT], frames: list[bytes]) -> None:
        if conn.doomed is not None:
            return
        if not conn.queue and not conn.paused:
            self._write(conn, frames)
            return
        if not conn.queue:
            conn.progress = self._now()
            conn.backlog = conn.transport.get_write_buffer_size()
        conn.queue.append(frames)
        if conn.live and (
            conn.queued_bytes > self._max_queue_bytes
            or conn.queued_messages > self._max_queue_messages
        ):
            self._doom(conn, CloseReason.SLOW_CONSUMER)

    def _doom(self, conn: Connection[OwnerT], reason: CloseReason) -> None:
        """Have a connection closed when all that was noted is sent."""
        if conn.doomed is None:
            conn.doomed = reason
            self._doomed.append(conn)
            self._schedule_pending()

    def _write(self, conn: Connection[OwnerT], frames: list[bytes]) -> None:
        data = b"".join(frames)
        self.bytes_out += len(data)
        try:
            conn.transport.write(data)
        except Exception as error:
            self._on_error(error)
            self._doom(conn, CloseReason.CONNECTION_LOST)

    def _drain(self, conn: Connection[OwnerT]) -> None:
        while conn.queue and not conn.paused:
            conn.progress = self._now()
            self._write(conn, conn.queue.pop(0))
        if conn.queue:
            return
        if not conn.live:
            self._end_write(conn, peer_is_done=False)
        elif conn.pong_owed is not None:
            self._note([conn], PONG, conn.pong_owed)
            conn.pong_owed = None

    # Input.

    def link_data(self, handle: int, data: bytes) -> None:
        """Take input from a transport."""
        conn = self._find(handle)
        if conn is None:
            return
        conn.last_seen = self._now()
        self.bytes_in += len(data)
        if conn.state is State.OPEN:
            self._feed(conn, data)
        elif len(conn.held) + len(data) > self._max_message_bytes:
            self._close(conn, CloseReason.EARLY_DATA)
        else:
            conn.held += data

    def link_lost(self, handle: int) -> None:
        """Take note that a transport is gone, or that its peer has ended its side."""
        conn = self._connections.get(handle)
        if conn is not None:
            self._lose(conn, CloseReason.CONNECTION_LOST)

    def link_paused(self, handle: int, paused: bool) -> None:
        """Take note that a transport can, or cannot, take more."""
        conn = self._connections.get(handle)
        if conn is not None:
            conn.paused = paused
            if not paused:
                self._drain(conn)

    def _feed(self, conn: Connection[OwnerT], data: bytes) -> None:
        conn.input += data
        answered = 0
        last_ping: bytes | None = None
        refused: list[bytes] = []
        self._depth += 1
        try:
            while conn.state is State.OPEN:
                frame = self._next_frame(conn)
                if frame is None:
                    break
                head, payload = frame
                if head.opcode == PING and answered < PONGS_PER_READ:
                    answered += 1
                    self._pong(conn, payload)
                elif head.opcode == PING:
                    last_ping = payload
                elif head.opcode == CLOSE:
                    self._peer_closes(conn, payload)
                elif head.opcode != PONG:
                    message = self._add(conn, head, payload)
                    if message is not None:
                        refused += self._take_message(conn, message, told=bool(refused))
        finally:
            self._depth -= 1
            self._schedule_pending()
        if conn.state is not State.OPEN:
            return
        if last_ping is not None:
            self._pong(conn, last_ping)
        if refused:
            try:
                self._on_refused(conn.owner, refused[0], len(refused))
            except Exception as error:
                self._failed(conn, error)

    def _pong(self, conn: Connection[OwnerT], payload: bytes) -> None:
        if conn.queue:
            conn.pong_owed = payload  # one in all while the peer does not take what there is
        else:
            self._note([conn], PONG, payload)

    def _next_frame(self, conn: Connection[OwnerT]) -> tuple[Head, bytes] | None:
        """Take a whole frame off the input; None when there is none, or when it is refused."""
        if conn.head is None:
            head = self._read_head(conn)
            if isinstance(head, CloseReason):
                self._close(conn, head)
                return None
            if head is None:
                return None
            self.frames_in += 1
            conn.head = head
            if head.opcode in (TEXT, BINARY):
                conn.message = Partial(head.opcode, head.compressed)
        head = conn.head
        payload = unmask(conn.input[: head.size], head.mask)
        if (
            head.opcode < CLOSE
            and conn.message is not None
            and conn.message.opcode == TEXT
            and not conn.message.compressed
            and not is_utf8(conn.message.data + payload, whole=False)
        ):
            self._close(conn, CloseReason.INVALID_PAYLOAD)
            return None
        if len(payload) < head.size:
            return None
        conn.input = conn.input[head.size :]
        conn.head = None
        return head, payload

    def _read_head(self, conn: Connection[OwnerT]) -> Head | CloseReason | None:
        """Take a header off the input; None while it is not complete, or why it is refused."""
        data = conn.input
        if len(data) < 2:
            return None
        fin, opcode, size = bool(data[0] & 0x80), data[0] & 0x0F, data[1] & 0x7F
        compressed = data[0] & 0x70 == 0x40 and conn.window > 0 and opcode in (TEXT, BINARY)
        if data[0] & 0x70 and not compressed:
            return CloseReason.PROTOCOL_ERROR  # reserved bits
        if not data[1] & 0x80:
            return CloseReason.PROTOCOL_ERROR  # not masked
        if opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            return CloseReason.PROTOCOL_ERROR
        if opcode >= CLOSE and (not fin or size > 125):
            return CloseReason.PROTOCOL_ERROR  # a fragmented or long control frame
        if opcode < CLOSE and (opcode == CONTINUATION) != (conn.message is not None):
            return CloseReason.PROTOCOL_ERROR  # nothing to continue, or something unfinished
        width = {126: 2, 127: 8}.get(size, 0)
        whole = 2 + width + 4
        if len(data) < whole:
            return None
        if width:
            size = int.from_bytes(data[2 : 2 + width], "big")
            if size < {2: 126, 8: 65536}[width] or size >= 1 << 63:
                return CloseReason.PROTOCOL_ERROR  # not the shortest form, or the top bit set
        if opcode < CLOSE:
            message = conn.message or Partial(opcode, compressed)
            limit = self._max_message_bytes
            if message.compressed:
                limit += limit // 8 + 64  # it may be longer than what it is inflated to
            if len(message.data) + size > limit:
                return CloseReason.MESSAGE_TOO_BIG
            if message.fragments + 1 > self._max_fragments:
                return CloseReason.TOO_MANY_FRAGMENTS
        conn.input = data[whole:]
        return Head(opcode, fin, size, data[whole - 4 : whole], compressed)

    def _add(self, conn: Connection[OwnerT], head: Head, payload: bytes) -> Partial | None:
        """Add a fragment to its message, which is returned when it is all there."""
        message = conn.message
        assert message is not None
        message.data += payload
        message.fragments += 1
        if not head.fin:
            return None
        conn.message = None
        return message

    def _take_message(
        self, conn: Connection[OwnerT], message: Partial, *, told: bool
    ) -> list[bytes]:
        """Inflate and check a message, and hand it over; return it when it is refused."""
        if message.compressed:
            if told and self._message_rate and self._earned(conn) < 1000:
                # It is not handled anyway, nor is it the one that the peer is told of.
                return self._hand_over(conn, Partial(message.opcode))
            self.inflations += 1
            self.inflation_in += len(message.data)
            inflated = inflate(message.data, self._max_message_bytes)
            if isinstance(inflated, CloseReason):
                self._close(conn, inflated)
                return []
            message.data = inflated
            self.inflation_out += len(inflated)
        if message.opcode == TEXT and not is_utf8(message.data, whole=True):
            self._close(conn, CloseReason.INVALID_PAYLOAD)
            return []
        return self._hand_over(conn, message)

    def _hand_over(self, conn: Connection[OwnerT], message: Partial) -> list[bytes]:
        """Hand a message to the application; return it when the rate does not allow it."""
        if self._message_rate and not self._spend(conn):
            now = self._now()
            self.refused += 1
            if conn.refused_at is None or now - conn.refused_at > REFUSING_GAP_MS:
                conn.refused_since = now
            conn.refused_at = now
            if now - conn.refused_since >= REFUSING_LIMIT_MS:
                self._close(conn, CloseReason.RATE_LIMITED)
            return [message.data]
        self.messages_in += 1
        try:
            self._on_message(conn.owner, message.data, message.opcode == TEXT)
        except Exception as error:
            self._failed(conn, error)
        return []

    def _spend(self, conn: Connection[OwnerT]) -> bool:
        """Take one message out of the token bucket, which is counted in thousandths."""
        conn.tokens = self._earned(conn)
        conn.rate_at = self._now()
        if conn.tokens < 1000:
            return False
        conn.tokens -= 1000
        return True

    def _earned(self, conn: Connection[OwnerT]) -> float:
        earned = (self._now() - conn.rate_at) * self._message_rate
        return min(conn.tokens + earned, self._message_burst * 1000)

    def _failed(self, conn: Connection[OwnerT], error: Exception) -> None:
        self._on_error(error)
        if conn.live:
            self._close(conn, CloseReason.INTERNAL_ERROR)

    def _peer_closes(self, conn: Connection[OwnerT], payload: bytes) -> None:
        code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 0
        if not payload:
            self._say_last(conn, b"")
            self._retire(conn, CloseReason.PEER_CLOSED, 1005)
        elif not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
            self._close(conn, CloseReason.PROTOCOL_ERROR)
        elif not is_utf8(payload[2:], whole=True):
            self._close(conn, CloseReason.INVALID_PAYLOAD)
        else:
            self._say_last(conn, payload[:2])
            self._retire(conn, CloseReason.PEER_CLOSED, code)

    # Time.

    def ready(self) -> None:
        """Do nothing: there are no sockets."""
        self.flush()

    def tell_hurry(self, function: Callable[[], object] | None) -> None:
        """Do nothing: every tick asks for the next step."""

    def tick(self) -> int:
        """Do what has come due; for all the twin knows, something may be at the next step."""
        now = self._now()
        if now - self._last_tick > STALL_MS:
            self._grace_until = now + GRACE_MS
        self._last_tick = now
        self._depth += 1
        for conn in list(self._connections.values()):
            if conn.live:
                self._due(conn, now)
            elif conn.handle in self._connections and now >= conn.linger_until:
                self._release(conn)
        self._depth -= 1
        self.flush()
        return 1

    def _due(self, conn: Connection[OwnerT], now: int) -> None:
        if conn.expires is not None and self._clock() >= conn.expires:
            conn.expires = None
            try:
                self._on_expire(conn.owner)
            except Exception as error:
                self._failed(conn, error)
            if not conn.live:
                return
        silent = self._ping_interval and now - conn.last_seen >= self._ping_timeout
        if silent and now >= self._grace_until:
            self._close(conn, CloseReason.NO_PONG)
            return
        if conn.queue:
            backlog = conn.transport.get_write_buffer_size()
            if backlog < conn.backlog:
                conn.progress = now
            conn.backlog = backlog
            if now - conn.progress >= self._write_timeout and now >= self._grace_until:
                self._close_slow(conn)
                return
        if self._ping_interval and now >= conn.next_ping:
            while conn.next_ping <= now:
                conn.next_ping += self._ping_interval
            if not conn.queue:
                self._note([conn], PING, b"")


def build(opcode: int, payload: bytes) -> bytes:
    """Build a frame of a server."""
    size = len(payload)
    if size < 126:
        length = bytes([size])
    elif size < 65536:
        length = bytes([126]) + size.to_bytes(2, "big")
    else:
        length = bytes([127]) + size.to_bytes(8, "big")
    return bytes([0x80 | opcode]) + length + payload


def unmask(data: bytes, key: bytes) -> bytes:
    """XOR octet i with octet i modulo 4 of the key."""
    return bytes([octet ^ key[i % 4] for i, octet in enumerate(data)])


def inflate(data: bytes, limit: int) -> bytes | CloseReason:
    """Inflate a message, or say why not; a block that says it is the last one need not be."""
    if not data:
        return b""
    inflater = zlib.decompressobj(-15)
    inflated = b""
    try:
        for part in (data, EMPTY_BLOCK):
            while True:
                inflated += inflater.decompress(part, limit + 1 - len(inflated))
                if len(inflated) > limit:
                    return CloseReason.MESSAGE_TOO_BIG
                part = inflater.unused_data or inflater.unconsumed_tail
                if inflater.eof:
                    inflater = zlib.decompressobj(-15)
                    if not part:
                        return inflated if data else CloseReason.INVALID_PAYLOAD
                elif not part:
                    break
            data = b""
        # Here it must be possible to go on with another block: "end", as it is, and the last one.
        rest = inflater.decompress(b"\x01\x03\x00\xfc\xffend")
    except zlib.error:
        return CloseReason.INVALID_PAYLOAD
    whole = rest == b"end" and inflater.eof and not inflater.unused_data
    return inflated if whole else CloseReason.INVALID_PAYLOAD


def is_utf8(data: bytes, *, whole: bool) -> bool:
    """Tell whether these octets are UTF-8, or, if they are not the whole, can still become it."""
    endings = [b""]
    if not whole:
        # The smallest and the largest octet that may follow; one of them suits every beginning.
        endings += [octet * number for octet in (b"\x80", b"\xbf") for number in (1, 2, 3)]
    return any(_decodes(data + ending) for ending in endings)


def _decodes(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
