"""Octets of a client, cut at any place, into the core: callbacks or a documented close, no more.

The first octet chooses the limits and the way in, the second how the rest is cut; the rest is what
the client sends. On a transport the core is compared with its twin; on a socket, where there is no
twin, with itself on a transport.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from typing import Final

from falcon_fast._core import Core
from falcon_fast.codes import CloseReason

from ...model.core import Twin
from ...support.core import Closed, CoreFactory, Event, Expired, Failed, Message, Refused, Rig
from ...support.deflate import plain
from ...support.frames import BINARY, CLOSE, PONG, TEXT, ServerFrame, server_frames

NATIVE: Final[CoreFactory] = Core
TWIN: Final[CoreFactory] = Twin

MESSAGE_BYTES: Final = (16, 125, 1_000, 65_536)
FRAGMENTS: Final = (1, 2, 8, 128)
WINDOWS: Final = (15, 9)

MAX_INPUT: Final = 32_768
"""Octets; a socket takes so many without being read."""

FROM_INPUT: Final = frozenset(
    {
        CloseReason.PROTOCOL_ERROR,
        CloseReason.INVALID_PAYLOAD,
        CloseReason.TOO_MANY_FRAGMENTS,
        CloseReason.EARLY_DATA,
        CloseReason.MESSAGE_TOO_BIG,
        CloseReason.PEER_CLOSED,
        CloseReason.CONNECTION_LOST,
    }
)
"""Why a connection may end through what its client sends within one instant."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How one input is used.

    Attributes:
        limits: arguments of the core.
        reads: what arrives, piece by piece.
        held: whether the first piece arrives before the connection is admitted.
        on_socket: whether a real socket is used.
        deflate: the window that was agreed on for compression, or 0.
    """

    limits: dict[str, float]
    reads: tuple[bytes, ...]
    held: bool
    on_socket: bool
    deflate: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an input led to."""

    events: tuple[Event, ...]
    frames: tuple[ServerFrame, ...]

    @property
    def essence(self) -> tuple[Event | ServerFrame, ...]:
        """All but Pongs, of which a read with many Pings gets fewer."""
        return (*self.events, *[frame for frame in self.frames if frame.opcode != PONG])


def one_input(data: bytes) -> None:
    """Feed one input, and check what came of it."""
    plan = read_plan(data)
    outcome = on_socket(plan) if plan.on_socket else on_transport(plan, NATIVE)
    check(plan, outcome)
    if not plan.on_socket:
        assert outcome == on_transport(plan, TWIN), "the core and its twin differ"
    if not plan.held and "message_rate" not in plan.limits:
        whole = replace(plan, reads=(b"".join(plan.reads),), on_socket=False)
        assert outcome.essence == on_transport(whole, NATIVE).essence, "cuts make a difference"


def read_plan(data: bytes) -> Plan:
    """Take an input's first two octets as choices."""
    choices, cuts = data[:2].ljust(2, b"\0")
    limits: dict[str, float] = {
        "max_connections": 2,
        "max_message_bytes": MESSAGE_BYTES[choices & 3],
        "max_fragments": FRAGMENTS[choices >> 2 & 3],
        "deflate_min_bytes": 8,
    }
    if choices & 16:
        limits |= {"message_rate": 2.0, "message_burst": 3}
    reads = tuple(cut(data[2 : 2 + MAX_INPUT], cuts))
    return Plan(
        limits,
        reads,
        held=bool(choices & 32),
        on_socket=bool(choices & 64),
        deflate=WINDOWS[cuts & 1] if choices & 128 else 0,
    )


def cut(stream: bytes, cuts: int) -> list[bytes]:
    """Cut a stream: 0 not at all, otherwise into pieces of 1 to that many octets."""
    pieces, at, state = [], 0, cuts
    while at < len(stream):
        state = (state * 1_103_515_245 + 12_345) & 0x7FFF_FFFF
        size = 1 + (state >> 16) % cuts if cuts else len(stream)
        pieces.append(stream[at : at + size])
        at += size
    return pieces


def on_transport(plan: Plan, make: CoreFactory) -> Outcome:
    """Feed the pieces through a transport."""
    rig = Rig(make, plan.limits)
    reads = list(plan.reads)
    early = reads.pop(0) if plan.held and reads else b""
    peer = rig.connect(early=early, paused=plan.held, deflate=plan.deflate)
    echo(rig, peer.handle)
    rig.turn()
    if plan.held:
        if reads:
            peer.feed(reads.pop(0))
        rig.core.resume(peer.handle)
        rig.turn()
    peer.feed(*reads)
    peer.link.connection_lost(None)
    rig.turn()
    assert rig.core.count == 0, "a connection outlives its transport"
    frames = [plain(frame, window=plan.deflate or 15) for frame in peer.frames()]
    rig.core.shutdown()
    return Outcome(tuple(rig.events), tuple(frames))


def on_socket(plan: Plan) -> Outcome:
    """Feed the pieces through a socket."""
    rig = Rig(NATIVE, {**plan.limits, "epoll": True})
    reads = list(plan.reads)
    early = reads.pop(0) if plan.held and reads else b""
    said = bytearray()
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        handle = rig.core.adopt_socket(
            ours.detach(), "a", early=early, paused=plan.held, deflate=plan.deflate
        )
        echo(rig, handle)
        rig.turn()
        if plan.held:
            rig.core.resume(handle)
            rig.turn()
        for read in reads:
            try:
                theirs.sendall(read)
            except (BrokenPipeError, ConnectionResetError):
                break  # the core is done with this client
            rig.core.ready()
            rig.turn()
            drain(theirs, said)
        theirs.shutdown(socket.SHUT_WR)
        # What was sent is read first, the end after it.
        for _ in range(MAX_INPUT // 65_536 + 2):
            rig.core.ready()
            rig.turn()
            drain(theirs, said)
        assert rig.core.count == 0, "a connection outlives its socket"
        rig.core.shutdown()
        drain(theirs, said)
    frames = [plain(f, window=plan.deflate or 15) for f in server_frames(bytes(said))]
    return Outcome(tuple(rig.events), tuple(frames))


def drain(client: socket.socket, said: bytearray) -> None:
    """Read what a client can read now."""
    try:
        while got := client.recv(65_536):
            said += got
    except (BlockingIOError, ConnectionResetError):
        pass


def echo(rig: Rig, handle: int) -> None:
    """Let a rig send every message back, with its kind."""

    def send_back(event: Event) -> None:
        if isinstance(event, Message):
            rig.core.send(handle, event.payload, binary=not event.is_text)

    rig.hook = send_back


def check(plan: Plan, outcome: Outcome) -> None:
    """Check the rules that hold whatever was sent."""
    events = outcome.events
    closes = [event for event in events if isinstance(event, Closed)]
    assert len(closes) == 1, "told of the end exactly once"
    (closed,) = closes
    assert events[-1] is closed, "nothing comes after the end"
    assert closed.reason in FROM_INPUT
    for event in events[:-1]:
        assert not isinstance(event, Failed | Expired | Closed)
        payload = event.first if isinstance(event, Refused) else event.payload
        assert len(payload) <= plan.limits["max_message_bytes"]
        if isinstance(event, Message) and event.is_text:
            payload.decode()
    frames = outcome.frames
    ends = [frame for frame in frames if frame.opcode == CLOSE]
    assert len(ends) <= 1, "closed twice"
    if ends:
        (said,) = ends
        assert frames[-1] is said, "something was sent behind the Close"
        if closed.reason is CloseReason.PEER_CLOSED:
            assert said.code is None or said.code == closed.code
        else:
            assert said.code == closed.reason.code
            assert said.payload[2:] == closed.reason.text.encode()
    else:
        assert closed.reason is CloseReason.CONNECTION_LOST
    messages = [event.payload for event in events if isinstance(event, Message)]
    echoes = [frame.payload for frame in frames if frame.opcode in (TEXT, BINARY)]
    assert echoes == messages[: len(echoes)], "the echo of something that was not said"
    # What was noted in the tick of the Close may stay unsent, all before it must not.
    if closed.reason is CloseReason.CONNECTION_LOST:
        assert echoes == messages
