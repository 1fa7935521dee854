"""A connection's life apart from its frames: adoption, waiting, closing, callbacks that fail."""

from __future__ import annotations

import pytest

from falcon_fast.codes import CloseReason

from ..support.core import (
    CoreFactory,
    Event,
    Failed,
    Message,
    Refused,
    Rig,
    closed,
    said,
)
from ..support.frames import PONG, ServerFrame, close, ping, says, text
from ..support.transport import FakeTransport


def test_an_adopted_connection_has_an_owner_and_nothing_else(rig: Rig) -> None:
    peer = rig.connect("someone")
    core = rig.core
    assert core.count == core.adopted == 1
    assert core.owner(peer.handle) == "someone"
    assert core.owners() == ["someone"]
    assert core.rooms_of(peer.handle) == []
    assert core.room_count(peer.handle) == core.queued_bytes(peer.handle) == 0
    assert core.last_seen(peer.handle) == rig.clock.monotonic()
    assert not peer.transport.written
    assert rig.scheduled == []


def test_last_seen_moves_with_input_of_any_kind(rig: Rig) -> None:
    peer = rig.connect()
    for data in (b"\x81", ping()[:1], ping()[1:]):
        rig.clock.advance(1.5)
        if not peer.alive():
            break
        peer.feed(data if data != b"\x81" else text("x"))
        assert rig.core.last_seen(peer.handle) == rig.clock.monotonic()
    rig.wait(3.0)
    assert rig.core.last_seen(peer.handle) == rig.clock.monotonic() - 3.0


def test_h12_early_input_is_delivered_at_once_when_not_paused(rig: Rig) -> None:
    peer = rig.connect(early=text("early") + ping(b"p")[:3])
    assert rig.take() == [Message("a", b"early", True)]
    peer.feed(ping(b"p")[3:])
    assert peer.frames() == [ServerFrame(PONG, b"p")]


def test_h12_input_waits_for_resume(rig: Rig) -> None:
    peer = rig.connect(early=text("one") + text("two")[:2], paused=True)
    assert not peer.transport.reading
    # What the transport had already read when it was paused.
    peer.feed(text("two")[2:] + ping(b"p"), text("three") + text("fo")[:1])
    assert rig.take() == []
    assert peer.frames() == []
    rig.core.resume(peer.handle)
    rig.turn()
    assert rig.take() == [Message("a", words, True) for words in (b"one", b"two", b"three")]
    assert peer.frames() == [ServerFrame(PONG, b"p")]
    assert peer.transport.is_reading()
    peer.feed(text("fo")[1:])
    assert rig.take() == [Message("a", b"fo", True)]
    rig.core.resume(peer.handle)
    assert rig.take() == []


def test_h12_a_waiting_connection_can_be_talked_to(rig: Rig) -> None:
    peer = rig.connect(paused=True)
    room = rig.core.open_room()
    assert rig.core.join(peer.handle, room) == 1
    rig.core.send(peer.handle, b"welcome")
    rig.core.fan_out(room, b"news")
    rig.core.broadcast(b"all")
    rig.turn()
    assert peer.frames() == [says("welcome"), says("news"), says("all")]


@pytest.mark.parametrize("early", [0, 1, 999, 1000])
def test_h12_waiting_input_is_bounded(make: CoreFactory, early: int) -> None:
    rig = Rig(make, {"max_message_bytes": 1000})
    peer = rig.connect(early=text(b"x" * 1000)[:early], paused=True)
    peer.feed(*[b"y"] * (1000 - early))
    assert rig.take() == []
    peer.feed(b"z")
    assert rig.take() == [closed("a", CloseReason.EARLY_DATA, 1008)]
    assert peer.frames() == [said(CloseReason.EARLY_DATA)]
    # From here on input is read, to be discarded: closing with unread input would be a reset.
    assert peer.transport.is_reading()
    rig.core.resume(peer.handle)
    peer.feed(text("late"))
    assert rig.take() == []


def test_a_waiting_connection_can_be_closed(rig: Rig) -> None:
    peer = rig.connect(early=text("never"), paused=True)
    rig.core.close(peer.handle, CloseReason.CONNECTION_LIMIT)
    assert rig.take() == [closed("a", CloseReason.CONNECTION_LIMIT, 4409)]
    assert peer.frames() == [said(CloseReason.CONNECTION_LIMIT)]
    assert peer.transport.is_reading()


@pytest.mark.parametrize("reason", [r for r in CloseReason if r.code != 1006])
def test_close_sends_code_and_text_of_the_reason(rig: Rig, reason: CloseReason) -> None:
    peer = rig.connect()
    room = rig.core.open_room()
    rig.core.join(peer.handle, room)
    rig.core.send(peer.handle, b"first")
    rig.core.close(peer.handle, reason)
    rig.core.close(peer.handle, CloseReason.INTERNAL_ERROR)
    assert rig.take() == [closed("a", reason)]
    frame = reason.code.to_bytes(2, "big") + reason.text.encode()
    assert peer.frames() == [says("first"), ServerFrame(8, frame)]
    assert peer.transport.eof_written
    assert rig.core.member_count(room) == rig.core.count == 0
    rig.turn()
    assert peer.frames() == []


def test_close_lingers_less_than_a_second_then_drops(rig: Rig) -> None:
    for phase in (0.0, 0.05, 0.1, 0.2, 0.249):
        rig.wait(phase, step=phase or 1)
        peer = rig.connect()
        rig.core.close(peer.handle, CloseReason.NORMAL)
        rig.wait(0.25)
        assert not peer.dropped()
        rig.wait(0.75)
        assert peer.dropped()


@pytest.mark.parametrize("phase", [0.0, 0.001, 0.1, 0.249])
@pytest.mark.parametrize("late", [0.0, 0.002, 0.125, 0.249])
def test_close_lingers_less_than_a_second_whenever_it_comes(
    rig: Rig, phase: float, late: float
) -> None:
    # Ticks come every 0.25 s, at any phase, and closes between them.
    rig.clock.advance(phase)
    rig.tick()
    rig.clock.advance(late)
    peer = rig.connect()
    peer.feed(close(1000))
    rig.clock.advance(0.25 - late)
    rig.tick()
    assert not peer.dropped()
    rig.wait(0.75)
    assert peer.dropped()


def test_close_on_a_transport_that_cannot_end_its_writing_half(rig: Rig) -> None:
    # TLS: when the peer has sent its Close there is nothing to wait for.
    ours = rig.connect("ours", transport=FakeTransport(eof=False))
    theirs = rig.connect("theirs", transport=FakeTransport(eof=False))
    rig.core.close(ours.handle, CloseReason.NORMAL)
    assert not ours.transport.is_closing()
    theirs.feed(close(1000))
    assert theirs.transport.is_closing()
    assert not theirs.dropped()
    rig.wait(1.0)
    assert ours.dropped()
    assert theirs.dropped()


def test_close_waits_for_what_the_transport_has_not_taken(rig: Rig) -> None:
    peer = rig.connect(transport=FakeTransport(high=0))
    peer.transport.stall()
    rig.core.send(peer.handle, b"one")
    rig.turn()
    rig.core.send(peer.handle, b"two")
    rig.core.close(peer.handle, CloseReason.KICKED)
    assert rig.take() == [closed("a", CloseReason.KICKED)]
    assert not peer.transport.eof_written
    peer.transport.drain()
    assert peer.frames() == [says("one"), says("two"), said(CloseReason.KICKED)]
    assert peer.transport.eof_written


def test_abort_says_nothing(rig: Rig) -> None:
    peer = rig.connect()
    room = rig.core.open_room()
    rig.core.join(peer.handle, room)
    rig.core.send(peer.handle, b"lost")
    rig.core.abort(peer.handle, CloseReason.SLOW_CONSUMER)
    rig.core.abort(peer.handle, CloseReason.NORMAL)
    rig.turn()
    assert rig.take() == [closed("a", CloseReason.SLOW_CONSUMER, 4000)]
    assert peer.dropped()
    assert not peer.transport.written
    assert rig.core.member_count(room) == 0


def test_shutdown_drops_everyone(rig: Rig) -> None:
    held, busy, lingering = rig.connect("h", paused=True), rig.connect("b"), rig.connect("l")
    rig.core.close(lingering.handle, CloseReason.NORMAL)
    rig.core.broadcast(b"news")
    rig.take()
    rig.core.shutdown()
    assert sorted(rig.take(), key=str) == [
        closed("b", CloseReason.GOING_AWAY, 1001),
        closed("h", CloseReason.GOING_AWAY, 1001),
    ]
    assert held.dropped()
    assert busy.dropped()
    assert lingering.dropped()
    assert rig.core.count == 0


def test_a_stale_handle_means_nothing(rig: Rig) -> None:
    stale, room = rig.connect("old").handle, rig.core.open_room()
    core = rig.core
    core.abort(stale, CloseReason.NORMAL)
    newcomer = rig.connect("new")
    rig.take()
    assert newcomer.handle != stale
    assert core.owner(stale) is None
    assert core.send(stale, b"x") == 3
    assert core.join(stale, room) == 0
    assert core.leave(stale, room) is False
    assert core.is_member(stale, room) is False
    assert core.rooms_of(stale) == []
    assert core.room_count(stale) == core.queued_bytes(stale) == 0
    assert core.last_seen(stale) == 0.0
    core.resume(stale)
    core.set_expiry(stale, rig.clock.monotonic())
    core.close(stale, CloseReason.NORMAL)
    core.abort(stale, CloseReason.NORMAL)
    rig.wait(2.0)
    assert rig.take() == []
    assert newcomer.alive()
    assert not newcomer.transport.written


def test_a_lingering_connection_is_gone_for_the_application(rig: Rig) -> None:
    peer, room = rig.connect(), rig.core.open_room()
    rig.core.close(peer.handle, CloseReason.NORMAL)
    peer.frames()
    assert rig.core.owner(peer.handle) is None
    assert rig.core.owners() == []
    assert rig.core.send(peer.handle, b"x") == 3
    assert rig.core.join(peer.handle, room) == 0
    assert rig.core.broadcast(b"x") == 0
    rig.turn()
    assert peer.frames() == []


def test_handles_are_never_reused_though_places_are(make: CoreFactory) -> None:
    rig = Rig(make, {"max_connections": 2})
    seen = set()
    for number in range(20):
        peer = rig.connect(str(number))
        seen.add(peer.handle)
        rig.core.abort(peer.handle, CloseReason.NORMAL)
    assert len(seen) == 20
    assert rig.core.adopted == 20


def test_all_places_taken(make: CoreFactory) -> None:
    rig = Rig(make, {"max_connections": 2})
    one, _two = rig.connect("1"), rig.connect("2")
    with pytest.raises(ConnectionError):
        rig.connect("3")
    # One that lingers still has its place, and gives it back when it is gone.
    rig.core.close(one.handle, CloseReason.NORMAL)
    with pytest.raises(ConnectionError):
        rig.connect("3")
    one.link.eof_received()
    assert rig.connect("3").alive()
    assert rig.core.owners() == ["3", "2"] or rig.core.owners() == ["2", "3"]


def test_a_place_is_not_reused_before_the_tick_ends(make: CoreFactory) -> None:
    rig = Rig(make, {"max_connections": 1})
    peer, room = rig.connect("old"), rig.core.open_room()
    rig.core.join(peer.handle, room)
    rig.core.fan_out(room, b"for the old one")
    rig.core.abort(peer.handle, CloseReason.NORMAL)
    with pytest.raises(ConnectionError):
        rig.connect("new")
    rig.turn()
    newcomer = rig.connect("new")
    rig.turn()
    assert newcomer.frames() == []


def test_p06_an_exception_in_on_message_ends_only_that_connection(rig: Rig) -> None:
    one, other = rig.connect("one"), rig.connect("other")

    def hook(event: Event) -> None:
        if isinstance(event, Message) and event.payload == b"boom":
            raise ValueError("no good")

    rig.hook = hook
    one.feed(text("ok") + text("boom") + text("never"))
    other.feed(text("ok"))
    assert rig.take() == [
        Message("one", b"ok", True),
        Message("one", b"boom", True),
        Failed("ValueError('no good')"),
        closed("one", CloseReason.INTERNAL_ERROR, 1011),
        Message("other", b"ok", True),
    ]
    assert one.frames() == [said(CloseReason.INTERNAL_ERROR)]
    assert other.alive()


def test_p06_an_exception_in_on_close_is_told(rig: Rig) -> None:
    peer, room = rig.connect(), rig.core.open_room()
    rig.core.join(peer.handle, room)

    def hook(event: Event) -> None:
        raise KeyError("gone")

    rig.hook = hook
    rig.core.close(peer.handle, CloseReason.NORMAL)
    assert rig.take() == [closed("a", CloseReason.NORMAL), Failed("KeyError('gone')")]
    assert rig.core.member_count(room) == 0
    rig.wait(1.0)
    assert peer.dropped()


def test_p06_an_exception_after_the_callback_has_closed(rig: Rig) -> None:
    peer = rig.connect()

    def hook(event: Event) -> None:
        if isinstance(event, Message):
            rig.core.close(peer.handle, CloseReason.FORBIDDEN)
            raise OSError("no good")

    rig.hook = hook
    peer.feed(text("x") + text("y"))
    assert rig.take() == [
        Message("a", b"x", True),
        closed("a", CloseReason.FORBIDDEN),
        Failed("OSError('no good')"),
    ]
    assert peer.frames() == [said(CloseReason.FORBIDDEN)]


def test_p06_a_broken_transport_keeps_nobody_from_their_messages(rig: Rig) -> None:
    class Broken(FakeTransport):
        def write(self, data: bytes | bytearray | memoryview) -> None:
            raise RuntimeError("the handler is closed")

    room = rig.core.open_room()
    peers = [rig.connect("0"), rig.connect("1", transport=Broken()), rig.connect("2")]
    for peer in peers:
        rig.core.join(peer.handle, room)
    rig.core.fan_out(room, b"news")
    rig.turn()
    assert rig.take() == [
        Failed("RuntimeError('the handler is closed')"),
        closed("1", CloseReason.CONNECTION_LOST, 1006),
    ]
    assert [peer.frames() for peer in (peers[0], peers[2])] == [[says("news")]] * 2
    assert peers[1].dropped()


@pytest.mark.parametrize("how", ["close", "abort"])
def test_closing_within_on_message_stops_the_rest_of_the_read(rig: Rig, how: str) -> None:
    peer = rig.connect()

    def hook(event: Event) -> None:
        if isinstance(event, Message):
            getattr(rig.core, how)(peer.handle, CloseReason.KICKED)
            rig.connect("next")  # may get the same place

    rig.hook = hook
    peer.feed(ping(b"p") + text("x", fin=False) + ping() + b"\x80\x80\x37\xfa\x21\x3d" + text("y"))
    assert rig.take() == [Message("a", b"x", True), closed("a", CloseReason.KICKED)]
    assert rig.core.owners() == ["next"]


def test_rooms_can_be_seen_within_on_close(rig: Rig) -> None:
    rooms = [rig.core.open_room() for _ in range(5)]
    peer, other = rig.connect("a"), rig.connect("b")
    seen: list[tuple[list[int], bool, int]] = []

    def hook(event: Event) -> None:
        core = rig.core
        seen.append((core.rooms_of(peer.handle), core.is_member(peer.handle, rooms[0]), core.count))
        core.fan_out(rooms[0], b"a has left")

    for room in rooms:
        rig.core.join(peer.handle, room)
        rig.core.join(other.handle, room)
    rig.core.leave(peer.handle, rooms[2])
    rig.hook = hook
    rig.core.close(peer.handle, CloseReason.NORMAL)
    rig.turn()
    assert seen == [([rooms[i] for i in (0, 1, 3, 4)], False, 1)]
    assert rig.core.rooms_of(peer.handle) == []
    assert peer.frames() == [said(CloseReason.NORMAL)]
    assert other.frames() == [says("a has left")]


def test_message_rate_refuses_what_is_too_much(make: CoreFactory) -> None:
    rig = Rig(make, {"message_rate": 2, "message_burst": 3})
    peer = rig.connect()
    peer.feed(b"".join([text(str(i)) for i in range(6)]))
    assert rig.take() == [
        *[Message("a", b"%d" % i, True) for i in range(3)],
        Refused("a", b"3", 3),
    ]
    rig.wait(0.5)
    peer.feed(text("x"), text("y"))
    assert rig.take() == [Message("a", b"x", True), Refused("a", b"y", 1)]
    # No more is saved up than the burst.
    rig.wait(60.0)
    peer.feed(*[text(str(i)) for i in range(4)])
    assert rig.take() == [*[Message("a", b"%d" % i, True) for i in range(3)], Refused("a", b"3", 1)]
    assert rig.core.refused == 5
    assert rig.core.messages_in == 7


def test_message_rate_tells_the_first_refused_even_when_it_is_empty(make: CoreFactory) -> None:
    rig = Rig(make, {"message_rate": 1, "message_burst": 1})
    peer = rig.connect()
    peer.feed(text("taken") + text("") + text("second") + text("third"))
    assert rig.take() == [Message("a", b"taken", True), Refused("a", b"", 3)]


def test_message_rate_counts_messages_not_frames(make: CoreFactory) -> None:
    rig = Rig(make, {"message_rate": 1, "message_burst": 1})
    peer = rig.connect()
    peer.feed(text("a", fin=False) + ping() + text("b")[:0] + b"\x80\x80\x37\xfa\x21\x3d")
    assert rig.take() == [Message("a", b"a", True)]
    peer.feed(text("b", fin=False), b"\x80\x80\x37\xfa\x21\x3d")
    assert rig.take() == [Refused("a", b"b", 1)]


def test_message_rate_says_nothing_of_refusals_when_the_read_ends_in_a_close(
    make: CoreFactory,
) -> None:
    rig = Rig(make, {"message_rate": 1, "message_burst": 1})
    peer = rig.connect()
    peer.feed(text("a") + text("b") + close(1000))
    assert rig.take() == [
        Message("a", b"a", True),
        closed("a", CloseReason.PEER_CLOSED, 1000),
    ]


@pytest.mark.parametrize("each_read", [1, 2, 5])
@pytest.mark.parametrize("offset", [0.0, 0.001])
def test_message_rate_a_flood_of_ten_seconds_closes(
    make: CoreFactory, each_read: int, offset: float
) -> None:
    rig = Rig(make, {"message_rate": 1, "message_burst": 1})
    rig.wait(offset, step=offset or 1)
    peer = rig.connect()
    peer.feed(text("taken") + text("refused") * each_read)
    for _ in range(39):
        rig.wait(0.25)
        peer.feed(text("x") * (1 + each_read))
    assert peer.alive()
    rig.wait(0.25)
    peer.feed(text("x") * (1 + each_read))
    assert rig.take()[-1] == closed("a", CloseReason.RATE_LIMITED, 4003)
    assert peer.frames() == [said(CloseReason.RATE_LIMITED)]


def test_message_rate_a_pause_ends_the_flood(make: CoreFactory) -> None:
    rig = Rig(make, {"message_rate": 1, "message_burst": 1})
    peer = rig.connect()
    for _ in range(4):
        for _ in range(36):
            peer.feed(text("x") * 2)
            rig.wait(0.25)
        rig.wait(1.0)
    assert peer.alive()
    assert not peer.transport.written


@pytest.mark.parametrize("reason", [-1, 26, 1000])
def test_a_reason_that_does_not_exist_is_refused(rig: Rig, reason: int) -> None:
    peer = rig.connect()
    with pytest.raises(ValueError):
        rig.core.close(peer.handle, reason)
    with pytest.raises(ValueError):
        rig.core.abort(peer.handle, reason)
    assert peer.alive()


def test_an_exception_in_on_refused_and_on_expire(make: CoreFactory) -> None:
    rig = Rig(make, {"message_rate": 1, "message_burst": 1})
    one, other = rig.connect("one"), rig.connect("other")

    def hook(event: Event) -> None:
        if not isinstance(event, Message):
            raise OSError("x")

    rig.hook = hook
    one.feed(text("a") + text("b"))
    assert rig.take()[1:] == [
        Refused("one", b"b", 1),
        Failed("OSError('x')"),
        closed("one", CloseReason.INTERNAL_ERROR),
        Failed("OSError('x')"),
    ]
    rig.core.set_expiry(other.handle, rig.clock.monotonic() + 1)
    rig.wait(2.0)
    assert [str(event) for event in rig.take()] == [
        "Expired(owner='other')",
        "Failed(error=\"OSError('x')\")",
        str(closed("other", CloseReason.INTERNAL_ERROR)),
        "Failed(error=\"OSError('x')\")",
    ]
