"""A rig for the native core and its twin: what both can do, and what they did when asked to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

from falcon_fast.codes import CloseReason, close_table

from .clock import FakeClock
from .frames import ServerFrame, server_frames
from .transport import FakeTransport

CLOSE_TABLE: Final = close_table()


class LinkApi(Protocol):
    """What a core gives to ``transport.set_protocol``."""

    @property
    def handle(self) -> int: ...
    def get_buffer(self, sizehint: int) -> memoryview: ...
    def buffer_updated(self, nbytes: int) -> None: ...
    def eof_received(self) -> bool: ...
    def connection_lost(self, exc: BaseException | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class CoreApi(Protocol):
    """What the native core and its twin have in common; owners are names here."""

    @property
    def count(self) -> int: ...
    @property
    def epoll_fd(self) -> int: ...
    @property
    def frames_in(self) -> int: ...
    @property
    def messages_in(self) -> int: ...
    @property
    def bytes_in(self) -> int: ...
    @property
    def bytes_out(self) -> int: ...
    @property
    def deliveries(self) -> int: ...
    @property
    def refused(self) -> int: ...
    @property
    def adopted(self) -> int: ...
    @property
    def deflating(self) -> int: ...
    @property
    def compressions(self) -> int: ...
    @property
    def compression_in(self) -> int: ...
    @property
    def compression_out(self) -> int: ...
    @property
    def compressed_deliveries(self) -> int: ...
    @property
    def inflations(self) -> int: ...
    @property
    def inflation_in(self) -> int: ...
    @property
    def inflation_out(self) -> int: ...
    def adopt_transport(
        self,
        transport: FakeTransport,
        owner: str,
        *,
        early: bytes = b"",
        paused: bool = False,
        deflate: int = 0,
    ) -> LinkApi: ...
    def adopt_socket(
        self,
        fd: int,
        owner: str,
        *,
        early: bytes = b"",
        paused: bool = False,
        deflate: int = 0,
        answer: bytes = b"",
        more: bool = False,
    ) -> int: ...
    def resume(self, conn: int) -> None: ...
    def close(self, conn: int, reason: int) -> None: ...
    def abort(self, conn: int, reason: int) -> None: ...
    def shutdown(self) -> None: ...
    def owner(self, conn: int) -> str | None: ...
    def last_seen(self, conn: int) -> float: ...
    def queued_bytes(self, conn: int) -> int: ...
    def queue_totals(self) -> tuple[int, int]: ...
    def set_expiry(self, conn: int, when: float) -> None: ...
    def open_room(self) -> int: ...
    def close_room(self, room: int) -> None: ...
    def join(self, conn: int, room: int) -> int: ...
    def leave(self, conn: int, room: int) -> bool: ...
    def is_member(self, conn: int, room: int) -> bool: ...
    def member_count(self, room: int) -> int: ...
    def members(self, room: int) -> list[str]: ...
    def owners(self) -> list[str]: ...
    def rooms_of(self, conn: int) -> list[int]: ...
    def room_count(self, conn: int) -> int: ...
    def fan_out(self, room: int, payload: bytes, *, binary: bool = False) -> int: ...
    def broadcast(self, payload: bytes) -> int: ...
    def send(self, conn: int, payload: bytes, *, binary: bool = False) -> int: ...
    def flush(self) -> None: ...
    def ready(self) -> None: ...
    def tell_hurry(self, function: Callable[[], object] | None) -> None: ...
    def tick(self) -> int: ...


CoreFactory: TypeAlias = Callable[..., CoreApi]
"""Makes a core; the arguments are those of ``falcon_fast._core.Core``."""


@dataclass(frozen=True, slots=True)
class Message:
    """on_message was called."""

    owner: str
    payload: bytes
    is_text: bool


@dataclass(frozen=True, slots=True)
class Closed:
    """on_close was called."""

    owner: str
    reason: CloseReason
    code: int


@dataclass(frozen=True, slots=True)
class Refused:
    """on_refused was called."""

    owner: str
    first: bytes
    number: int


@dataclass(frozen=True, slots=True)
class Expired:
    """on_expire was called."""

    owner: str


@dataclass(frozen=True, slots=True)
class Failed:
    """on_error was called."""

    error: str


Event: TypeAlias = Message | Closed | Refused | Expired | Failed


@dataclass(slots=True)
class Rig:
    """One core with everything it calls back recorded, and the loop around it played by hand.

    Args:
        make: the native core or its twin.
        limits: further arguments of the core.

    Attributes:
        events: what was called back, in order.
        hook: called within each callback, after it was recorded.
        scheduled: what was handed to ``schedule`` and has not run.
        clock: what the core takes for the time.
        ticks: how often the core was called because time had passed.
    """

    make: CoreFactory
    limits: dict[str, float] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    hook: Callable[[Event], None] | None = None
    scheduled: list[Callable[[], None]] = field(default_factory=list)
    clock: FakeClock = field(default_factory=FakeClock)
    ticks: int = 0
    core: CoreApi = field(init=False)
    _due: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.core = self.make(
            on_message=lambda owner, payload, text: self._note(Message(owner, payload, text)),
            on_close=lambda owner, reason, code: self._note(
                Closed(owner, CloseReason(reason), code)
            ),
            on_refused=lambda owner, first, number: self._note(Refused(owner, first, number)),
            on_expire=lambda owner: self._note(Expired(owner)),
            on_error=lambda error: self.events.append(Failed(repr(error))),
            schedule=self.scheduled.append,
            close_table=CLOSE_TABLE,
            clock=self.clock.monotonic,
            # Few places: a core with many takes a millisecond to make.
            **{"epoll": False, "ping_interval": 0.0, "max_connections": 1024, **self.limits},
        )
        self.core.tell_hurry(self._hurry)

    def _note(self, event: Event) -> None:
        self.events.append(event)
        if self.hook is not None:
            self.hook(event)

    def take(self) -> list[Event]:
        """Return the events since the last call."""
        events = list(self.events)
        self.events.clear()
        return events

    def turn(self) -> None:
        """Run what was scheduled, as the loop does when the current callback is over."""
        while self.scheduled:
            self.scheduled.pop()()

    def wait(self, seconds: float, *, step: float = 0.25) -> None:
        """Let time pass in steps, with a tick after those for which the core asked."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            if self.clock.monotonic() >= self._due or step != 0.25:
                self.tick()
            self.turn()

    def tick(self) -> None:
        """Tell the core that time has passed."""
        self._due = self._at(self.core.tick())
        self.ticks += 1

    def _hurry(self) -> None:
        self._due = self._at(1)

    def _at(self, steps: int) -> float:
        return (self.clock.monotonic() // 0.25 + steps) * 0.25

    def connect(
        self,
        owner: str = "a",
        *,
        early: bytes = b"",
        paused: bool = False,
        deflate: int = 0,
        transport: FakeTransport | None = None,
    ) -> Peer:
        """Adopt a connection on a fake transport."""
        transport = transport or FakeTransport()
        return Peer(self, owner, transport, early=early, paused=paused, deflate=deflate)


class Peer:
    """The other side of one connection."""

    def __init__(
        self,
        rig: Rig,
        owner: str,
        transport: FakeTransport,
        *,
        early: bytes,
        paused: bool,
        deflate: int,
    ) -> None:
        self.rig = rig
        self.owner = owner
        self.transport = transport
        self.link = rig.core.adopt_transport(
            transport, owner, early=early, paused=paused, deflate=deflate
        )
        transport.set_protocol(self.link)  # type: ignore[arg-type]  # BufferedProtocol by shape
        self.handle = self.link.handle
        self._seen = 0

    def put(self, data: bytes) -> None:
        """Let input arrive in one read for each buffer it fills; nothing is flushed."""
        while data:
            buffer = self.link.get_buffer(-1)
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            self.link.buffer_updated(size)
            data = data[size:]

    def feed(self, *reads: bytes) -> None:
        """Let input arrive, each read in a turn of the loop of its own."""
        for read in reads:
            self.put(read)
            self.rig.turn()

    def frames(self) -> list[ServerFrame]:
        """Return the frames written since the last call."""
        frames = server_frames(bytes(self.transport.written[self._seen :]))
        self._seen = len(self.transport.written)
        return frames

    def alive(self) -> bool:
        """Tell whether the connection is open as far as the application is concerned."""
        return self.rig.core.owner(self.handle) is not None

    def dropped(self) -> bool:
        """Tell whether the core has given the transport up."""
        return self.transport.aborted


def said(reason: CloseReason) -> ServerFrame:
    """Describe the Close that the core sends for a reason of its own."""
    code, words = CLOSE_TABLE[reason]
    return ServerFrame(8, code.to_bytes(2, "big") + words)


def closed(owner: str, reason: CloseReason, code: int | None = None) -> Closed:
    """Describe the callback for a close; the code is the reason's own by default."""
    return Closed(owner, reason, reason.code if code is None else code)


def by_owner(events: Sequence[Event]) -> dict[str, list[Event]]:
    """Sort events by connection: between connections no order is promised."""
    sorted_events: dict[str, list[Event]] = {}
    for event in events:
        name = "" if isinstance(event, Failed) else event.owner
        sorted_events.setdefault(name, []).append(event)
    return sorted_events
