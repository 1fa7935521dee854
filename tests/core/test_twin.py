"""The native core against its twin: whatever is done to both, both do the same."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from falcon_fast._core import ZLIB_VERSION
from falcon_fast.codes import CloseReason

from ..support import FUZZ_EXAMPLES, missing
from ..support.core import CoreFactory, Event, Message, Peer, Rig, by_owner
from ..support.deflate import deflated, deflated_final, packed_binary, packed_text, plain
from ..support.frames import (
    BINARY,
    PING,
    TEXT,
    ServerFrame,
    binary,
    client_frame,
    close,
    cut,
    more,
    ping,
    pong,
    server_frames,
    text,
)
from ..support.transport import FakeTransport
from .conftest import NATIVE, TWIN
from .strategies import BLOCKS, deflate_streams, streams

T = TypeVar("T")

SMALL: Final[dict[str, float]] = {
    "max_connections": 5,
    "max_message_bytes": 150,
    "max_fragments": 4,
    "max_queue_bytes": 200,
    "max_queue_messages": 6,
    "write_timeout": 3.0,
    # The first ping comes at a random moment of the interval, so hardly ever.
    "ping_interval": 1_000_000.0,
    "ping_timeout": 20.0,
    "message_rate": 4.0,
    "message_burst": 8,
    "max_rooms": 3,
    "deflate_min_bytes": 40,
}
"""Limits so small that random doings cross them."""


def outcome(
    make: CoreFactory, reads: list[bytes], *, turns: bool, deflate: int = 0
) -> tuple[list[Event], bytes]:
    """Feed an echoing connection and return what was called back and what was written."""
    limits = {"max_message_bytes": 400, "max_fragments": 6, "max_connections": 1}
    rig = Rig(make, {**limits, "deflate_min_bytes": 10})
    peer = rig.connect(deflate=deflate)

    def echo(event: Event) -> None:
        if isinstance(event, Message):
            rig.core.send(peer.handle, event.payload, binary=not event.is_text)

    rig.hook = echo
    for read in reads:
        peer.put(read)
        if turns:
            rig.turn()
    rig.turn()
    return rig.events, bytes(peer.transport.written)


@settings(max_examples=FUZZ_EXAMPLES or 150, deadline=None)
@given(stream=streams, places=st.lists(st.integers(0, 800), max_size=12))
def test_f11_the_cuts_make_no_difference(stream: bytes, places: list[int]) -> None:
    events, written = outcome(NATIVE, [stream], turns=False)
    assert outcome(NATIVE, cut(stream, range(len(stream))), turns=True) == (events, written)
    for turns in (False, True):
        assert outcome(NATIVE, cut(stream, places), turns=turns) == (events, written)
    assert outcome(TWIN, cut(stream, places), turns=True) == (events, written)
    server_frames(written)


@settings(max_examples=FUZZ_EXAMPLES or 150, deadline=None)
@given(stream=deflate_streams, places=st.lists(st.integers(0, 800), max_size=12))
def test_compressed_messages_are_judged_alike(stream: bytes, places: list[int]) -> None:
    events, written = outcome(NATIVE, [stream], turns=False, deflate=15)
    for window in (15, 9):
        for make in (NATIVE, TWIN):
            got = outcome(make, cut(stream, places), turns=True, deflate=window)
            assert got[0] == events
            assert forms(got[1], window) == forms(written, 15)


def forms(stream: bytes, window: int) -> list[ServerFrame]:
    """Return the frames of a stream as they were before compression."""
    return [plain(frame, window=window) for frame in server_frames(stream)]


@settings(max_examples=FUZZ_EXAMPLES or 300, deadline=None)
@given(data=st.binary(max_size=60), head=st.sampled_from(BLOCKS), tail=st.sampled_from(BLOCKS))
def test_d05_junk_in_a_compressed_message_is_judged_alike(
    data: bytes, head: bytes, tail: bytes
) -> None:
    frame = client_frame(BINARY, head + data + tail, rsv=4)
    native = outcome(NATIVE, [frame], turns=True, deflate=15)
    twin = outcome(TWIN, [frame], turns=True, deflate=15)
    assert native[0] == twin[0]


@settings(max_examples=FUZZ_EXAMPLES or 25, deadline=None)
@given(stream=streams)
def test_f20_every_cut_in_two_makes_no_difference(stream: bytes) -> None:
    whole = outcome(NATIVE, [stream], turns=True)
    assert outcome(TWIN, [stream], turns=True) == whole
    for place in range(1, len(stream)):
        assert outcome(NATIVE, [stream[:place], stream[place:]], turns=True) == whole


@settings(max_examples=FUZZ_EXAMPLES or 100, deadline=None)
@given(junk=st.binary(max_size=300), places=st.lists(st.integers(0, 300), max_size=5))
def test_junk_is_judged_alike(junk: bytes, places: list[int]) -> None:
    reads = cut(b"".join([text("first"), junk]), places)
    assert outcome(NATIVE, reads, turns=True) == outcome(TWIN, reads, turns=True)


COUNTERS: Final = (
    *("count", "frames_in", "messages_in", "bytes_in", "deliveries", "refused", "deflating"),
    *("compressions", "compression_in", "compression_out", "compressed_deliveries"),
    *("inflations", "inflation_in", "inflation_out"),
)

PIECES: Final = [
    *[text(word) for word in ("hello", "", "echo", "all", "out", "in") * 3],
    *[text(word) for word in ("bye", "gone", "boom")],
    binary(b"\x00" * 100),
    text("€"),
    text("part", fin=False),
    binary(b"part", fin=False),
    more(b"more"),
    more(b"", fin=True),
    ping(b"ping"),
    ping(b""),
    ping(b"p") * 20,
    text("flood") * 12,
    *[packed_text(word) for word in ("packed", "echo", "all")],
    packed_text("echo" * 40),
    packed_text("flood, and packed") * 12,
    packed_text("z" * 150),
    packed_text("z" * 151),
    packed_binary(bytes(range(150))),
    client_frame(BINARY, deflated_final(b"the last block"), rsv=4),
    client_frame(TEXT, deflated(b"half of" + b"it")[:5], fin=False, rsv=4),
    client_frame(TEXT, b"", rsv=4),
    client_frame(TEXT, deflated(b"\xff"), rsv=4),
    client_frame(TEXT, b"\xff\xff", rsv=4),
    close(1000, b"bye"),
    close(),
    close(1006),
    client_frame(10, b"pong"),
    client_frame(1, b"unmasked", mask=None),
    client_frame(1, b"x", rsv=4),
    client_frame(3),
    client_frame(2, declared=151),
    text(b"\xff"),
    text(b"\xe2\x82", fin=False),
]


SAME_ZLIB: Final = ZLIB_VERSION == zlib.ZLIB_RUNTIME_VERSION
"""Two versions may compress to different sizes, and the queue's limits count them."""


def test_core_and_twin_compress_with_the_same_zlib() -> None:
    if not SAME_ZLIB:
        missing(
            f"a Python with zlib {ZLIB_VERSION}, as the core has",
            hint=f"this one has {zlib.ZLIB_RUNTIME_VERSION}; they are compared uncompressed",
        )


class CoreAndTwin(RuleBasedStateMachine):
    """Does the same to both and compares everything that can be seen of them."""

    def __init__(self) -> None:
        super().__init__()
        self.rigs = [Rig(make, dict(SMALL)) for make in (NATIVE, TWIN)]
        self.peers: dict[str, list[Peer]] = {}
        self.rooms: dict[int, list[int]] = {}
        self.born = 0
        for index, rig in enumerate(self.rigs):
            rig.hook = self._hook(index)
            rig.wait(1.0)  # the core knows no expiry earlier than a second after it was made

    def _hook(self, index: int) -> Callable[[Event], None]:
        """What the application does within its callbacks is said by the messages."""

        def act(event: Event) -> None:
            core = self.rigs[index].core
            owner = getattr(event, "owner", "")
            if not isinstance(event, Message) or owner not in self.peers:
                return
            handle = self.peers[owner][index].handle
            rooms = [numbers[index] for numbers in self.rooms.values()]
            if event.payload == b"echo":
                core.send(handle, b"echo of " + owner.encode())
            elif event.payload == b"echo" * 40:
                core.send(handle, event.payload)
            elif event.payload == b"all":
                core.broadcast(b"from " + owner.encode())
                for room in rooms:
                    core.fan_out(room, b"to the room")
            elif event.payload == b"bye":
                core.close(handle, CloseReason.KICKED)
            elif event.payload == b"gone":
                core.abort(handle, CloseReason.FORBIDDEN)
            elif event.payload == b"boom":
                raise OSError("boom")
            elif event.payload == b"out" and rooms:
                core.leave(handle, rooms[0])
            elif event.payload == b"in" and rooms:
                core.join(handle, rooms[0])

        return act

    def both(self, call: Callable[[int], T]) -> T | str:
        """Make a call on both; they must return the same, or fail alike."""
        results: list[T | str] = []
        for index in range(2):
            try:
                results.append(call(index))
            except (ConnectionError, ValueError) as error:
                results.append(type(error).__name__)
        assert results[0] == results[1]
        return results[0]

    def pick(self, data: st.DataObject) -> list[Peer]:
        # Mostly one that is still there: what is gone stays gone.
        names = sorted(self.peers)
        names += [name for name in names if self.peers[name][0].alive()] * 4
        return self.peers[data.draw(st.sampled_from(names), label="peer")]

    def pick_room(self, data: st.DataObject) -> list[int]:
        return self.rooms[data.draw(st.sampled_from(sorted(self.rooms)), label="room")]

    @initialize(highs=st.lists(st.sampled_from([0, 20, 65536]), min_size=1, max_size=3))
    def begin(self, highs: list[int]) -> None:
        """Begin with some connections in two rooms, or nothing would happen for long."""
        self.open_room()
        self.open_room()
        for high in highs:
            self._adopt(high=high, stalled=high != 65536, deflate=15)
            for index, side in enumerate(self.peers[str(self.born)]):
                for room in self.rooms.values():
                    self.rigs[index].core.join(side.handle, room[index])

    @precondition(lambda self: self.rigs[0].core.count < 4 or self.born % 8 == 0)
    @rule(
        paused=st.sampled_from([False, False, True]),
        early=st.sampled_from([b"", b"", text("early"), text("echo") + ping(b"e"), text(b"\xff")]),
        high=st.sampled_from([0, 20, 65536]),
        eof=st.booleans(),
        stalled=st.booleans(),
        deflate=st.sampled_from([0, 0, 15, 9]),
    )
    def adopt(
        self, paused: bool, early: bytes, high: int, eof: bool, stalled: bool, deflate: int
    ) -> None:
        self._adopt(
            paused=paused, early=early, high=high, eof=eof, stalled=stalled, deflate=deflate
        )

    def _adopt(
        self,
        *,
        paused: bool = False,
        early: bytes = b"",
        high: int,
        eof: bool = True,
        stalled: bool,
        deflate: int = 0,
    ) -> None:
        self.born += 1
        owner = str(self.born)
        made: list[Peer] = []

        def connect(index: int) -> bool:
            transport = FakeTransport(high=high, eof=eof)
            rig = self.rigs[index]
            window = deflate if SAME_ZLIB else 0
            made.append(
                rig.connect(owner, early=early, paused=paused, deflate=window, transport=transport)
            )
            return True

        if self.both(connect) is True:
            self.peers[owner] = made
            for side in made:
                if stalled and not side.transport.is_closing():
                    side.transport.stall()

    @rule()
    def open_room(self) -> None:
        if len(self.rooms) < 5:
            self.rooms[len(self.rooms)] = [rig.core.open_room() for rig in self.rigs]

    @precondition(lambda self: self.peers and self.rooms)
    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        peer, room = self.pick(data), self.pick_room(data)
        self.both(lambda i: self.rigs[i].core.join(peer[i].handle, room[i]))

    @precondition(lambda self: self.peers and self.rooms)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        peer, room = self.pick(data), self.pick_room(data)
        self.both(lambda i: self.rigs[i].core.leave(peer[i].handle, room[i]))

    @precondition(lambda self: self.rooms)
    @rule(data=st.data())
    def reopen_room(self, data: st.DataObject) -> None:
        room = self.pick_room(data)

        def reopen(index: int) -> bool:
            self.rigs[index].core.close_room(room[index])
            room[index] = self.rigs[index].core.open_room()
            return True

        self.both(reopen)

    @precondition(lambda self: self.rooms)
    @rule(data=st.data(), size=st.sampled_from([0, 5, 60, 190]), number=st.integers(1, 4))
    def fan_out(self, data: st.DataObject, size: int, number: int) -> None:
        room = self.pick_room(data)
        for _ in range(number):
            self.both(lambda i: self.rigs[i].core.fan_out(room[i], b"f" * size))

    @rule(binary=st.booleans())
    def broadcast(self, binary: bool) -> None:
        self.both(lambda i: self.rigs[i].core.broadcast(b"b" * (3 + binary)))

    @precondition(lambda self: self.peers)
    @rule(
        data=st.data(),
        size=st.sampled_from([0, 5, 100]),
        binary=st.booleans(),
        number=st.integers(1, 4),
    )
    def send(self, data: st.DataObject, size: int, binary: bool, number: int) -> None:
        peer = self.pick(data)
        for _ in range(number):
            self.both(lambda i: self.rigs[i].core.send(peer[i].handle, b"s" * size, binary=binary))

    @precondition(lambda self: self.peers)
    @rule(data=st.data(), how=st.sampled_from(["close", "drained", "abort", "eof", "lost"]))
    def end(self, data: st.DataObject, how: str) -> None:
        for rig, side in zip(self.rigs, self.pick(data), strict=True):
            if how == "close":
                rig.core.close(side.handle, CloseReason.REVOKED)
            elif how == "drained" and not side.transport.is_closing():
                rig.core.close(side.handle, CloseReason.KICKED)
                side.transport.drain()  # in time to see how it was closed
            elif how == "abort":
                rig.core.abort(side.handle, CloseReason.FORBIDDEN)
            elif how == "eof" and not side.transport.is_closing():
                assert side.link.eof_received() is False
            else:
                side.link.connection_lost(None)

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        peer = self.pick(data)
        for rig, side in zip(self.rigs, peer, strict=True):
            rig.core.resume(side.handle)

    @precondition(lambda self: self.peers)
    @rule(
        data=st.data(),
        frames=st.lists(st.sampled_from(PIECES), min_size=1, max_size=4),
        places=st.lists(st.integers(1, 60), max_size=3),
        turns=st.booleans(),
    )
    def feed(
        self, data: st.DataObject, frames: list[bytes], places: list[int], turns: bool
    ) -> None:
        peer = self.pick(data)
        for read in cut(b"".join(frames), places):
            for rig, side in zip(self.rigs, peer, strict=True):
                if not side.transport.is_closing():
                    side.put(read)
                if turns:
                    rig.turn()

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def stall(self, data: st.DataObject) -> None:
        for side in self.pick(data):
            side.transport.stall()

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        for side in self.pick(data):
            if not side.transport.is_closing():
                side.transport.drain()

    @precondition(lambda self: self.peers)
    @rule(data=st.data(), seconds=st.integers(-1, 6))
    def expire(self, data: st.DataObject, seconds: int) -> None:
        # Whole seconds after the core was made: there it knows no fractions.
        peer = self.pick(data)
        for rig, side in zip(self.rigs, peer, strict=True):
            rig.core.set_expiry(side.handle, float(int(rig.clock.monotonic()) + seconds))

    @rule(
        quarters=st.sampled_from([1, 1, 4, 12, 20]),
        stalls=st.sampled_from([0] * 9 + [1, 3, 70]),
        lively=st.sampled_from([True, True, False]),
    )
    def time_passes(self, quarters: int, stalls: int, lively: bool) -> None:
        """Let time pass, after the loop stood still or not, with everybody alive or not."""
        for index, rig in enumerate(self.rigs):
            rig.clock.advance(stalls)
            rig.wait(quarters / 4)
            for sides in self.peers.values():
                if lively and not sides[index].transport.is_closing():
                    sides[index].put(pong())

    @rule()
    def flush(self) -> None:
        for rig in self.rigs:
            rig.turn()
        # What the loop does a little later with transports that were closed.
        for owner, sides in list(self.peers.items()):
            for side in sides:
                if side.transport.is_closing():
                    side.link.connection_lost(None)
            if len(self.peers) > 8 and not sides[0].alive() and sides[0].dropped():
                del self.peers[owner]

    @invariant()
    def same(self) -> None:
        native, twin = self.rigs
        assert by_owner(native.events) == by_owner(twin.events)
        for rig in self.rigs:
            rig.events.clear()
        for name in COUNTERS:
            assert getattr(native.core, name) == getattr(twin.core, name), name
        assert native.core.queue_totals() == twin.core.queue_totals()
        assert bool(native.scheduled) == bool(twin.scheduled)
        for room in self.rooms.values():
            members = [sorted(self.rigs[i].core.members(room[i])) for i in range(2)]
            assert members[0] == members[1]
            assert self.rigs[0].core.member_count(room[0]) == len(members[0])
        for sides in self.peers.values():
            seen = [self.view(index, side) for index, side in enumerate(sides)]
            assert seen[0] == seen[1]
            mine, other = (bytes(side.transport.written) for side in sides)
            if mine != other:
                assert without_pings(mine) == without_pings(other)

    def view(self, index: int, side: Peer) -> dict[str, object]:
        """Return what can be seen of one connection; rooms by the names both know them by."""
        core, transport, handle = self.rigs[index].core, side.transport, side.handle
        names = {numbers[index]: name for name, numbers in self.rooms.items()}
        return {
            "owner": core.owner(handle),
            "rooms": [names[room] for room in core.rooms_of(handle)],
            "room_count": core.room_count(handle),
            "queued": core.queued_bytes(handle),
            "seen": core.last_seen(handle),
            "aborted": transport.aborted,
            "closing": transport.is_closing(),
            "ended": transport.eof_written,
            "reading": transport.reading,
            "buffered": transport.get_write_buffer_size(),
        }

    def teardown(self) -> None:
        for rig in self.rigs:
            rig.wait(20.0)
            rig.core.shutdown()
        self.same()
        assert self.rigs[0].core.count == 0


def without_pings(stream: bytes) -> bytes:
    return b"".join([f.to_bytes() for f in server_frames(stream) if f.opcode != PING])


CoreAndTwin.TestCase.settings = settings(
    max_examples=FUZZ_EXAMPLES or 100, stateful_step_count=40, deadline=None
)
TestCoreAndTwin = pytest.mark.filterwarnings("default")(CoreAndTwin.TestCase)
