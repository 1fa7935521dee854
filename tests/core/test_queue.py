"""What is sent: order, batches, the out-queue with its caps, and what becomes of slow peers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from falcon_fast._core import Verdict
from falcon_fast.codes import CloseReason

from ..support.core import Closed, CoreFactory, Event, Message, Peer, Rig, closed, said
from ..support.frames import BINARY, ServerFrame, says, text
from ..support.transport import FakeTransport
from .conftest import NATIVE

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Hall:
    """A room with one peer that takes nothing and two that take everything."""

    rig: Rig
    room: int
    slow: Peer
    good: list[Peer]

    def say(self, payload: bytes) -> None:
        assert self.rig.core.fan_out(self.room, payload) == self.rig.core.member_count(self.room)
        self.rig.turn()

    def heard(self) -> list[list[ServerFrame]]:
        return [peer.frames() for peer in self.good]


def hall(make: CoreFactory, **limits: float) -> Hall:
    rig = Rig(make, dict(limits))
    peers = [rig.connect("good 1"), rig.connect("slow", transport=FakeTransport(high=0))]
    peers.append(rig.connect("good 2"))
    room = rig.core.open_room()
    for peer in peers:
        rig.core.join(peer.handle, room)
    peers[1].transport.stall()
    # The transport takes this one and asks for a pause.
    assert rig.core.send(peers[1].handle, b"") == Verdict.SENT
    rig.turn()
    return Hall(rig, room, peers[1], [peers[0], peers[2]])


def test_the_tick_s_messages_leave_in_one_write(rig: Rig) -> None:
    room, other = rig.core.open_room(), rig.core.open_room()
    peers = [rig.connect(str(number)) for number in range(4)]
    for peer in peers[:3]:
        rig.core.join(peer.handle, room)
    for peer in peers[1:]:
        rig.core.join(peer.handle, other)
    rig.core.fan_out(room, b"1")
    rig.core.send(peers[1].handle, b"2")
    rig.core.fan_out(other, b"3", binary=True)
    rig.core.broadcast(b"4")
    rig.core.fan_out(room, b"5")
    rig.core.send(peers[3].handle, b"6", binary=True)
    assert not any(peer.transport.written for peer in peers)
    rig.turn()
    third = ServerFrame(BINARY, b"3")
    assert [peer.frames() for peer in peers] == [
        [says("1"), says("4"), says("5")],
        [says("1"), says("2"), third, says("4"), says("5")],
        [says("1"), third, says("4"), says("5")],
        [third, says("4"), ServerFrame(BINARY, b"6")],
    ]
    assert [peer.transport.writes for peer in peers] == [1, 1, 1, 1]
    assert rig.core.deliveries == 3 + 1 + 3 + 4 + 3 + 1
    assert rig.core.bytes_out == sum(len(peer.transport.written) for peer in peers)


def test_counts_and_verdicts_of_a_healthy_peer(rig: Rig) -> None:
    room, peer = rig.core.open_room(), rig.connect()
    assert rig.core.fan_out(room, b"nobody") == 0
    assert rig.core.join(peer.handle, room) == 1
    assert rig.core.fan_out(room, b"x") == 1
    assert rig.core.broadcast(b"y") == 1
    assert rig.core.send(peer.handle, b"z") == Verdict.SENT
    rig.turn()
    assert peer.frames() == [says("x"), says("y"), says("z")]


def test_broadcast_to_nobody(rig: Rig) -> None:
    assert rig.core.broadcast(b"x") == 0
    assert rig.scheduled == []


def test_one_flush_is_scheduled_whatever_is_said(rig: Rig) -> None:
    peer = rig.connect()
    for _ in range(3):
        for _ in range(5):
            rig.core.send(peer.handle, b"x")
            assert len(rig.scheduled) == 1
        rig.turn()
        assert rig.scheduled == []
    # Nothing to do is nothing to schedule.
    rig.core.flush()
    rig.tick()
    assert rig.scheduled == []


def test_a_flush_by_hand_leaves_nothing_for_the_scheduled_one(rig: Rig) -> None:
    peer = rig.connect()
    rig.core.send(peer.handle, b"x")
    rig.core.flush()
    assert peer.frames() == [says("x")]
    rig.turn()
    assert peer.frames() == []


def test_what_is_said_within_a_callback_leaves_after_it(rig: Rig) -> None:
    peer, room = rig.connect(), rig.core.open_room()
    rig.core.join(peer.handle, room)
    sizes: list[int] = []

    def answer(event: Event) -> None:
        assert isinstance(event, Message)
        rig.core.send(peer.handle, b"to " + event.payload)
        rig.core.fan_out(room, b"all")
        rig.core.flush()
        sizes.append(len(peer.transport.written))

    rig.hook = answer
    peer.put(text("1") + text("2"))
    rig.turn()
    assert sizes == [0, 0]
    assert peer.frames() == [says("to 1"), says("all"), says("to 2"), says("all")]
    assert peer.transport.writes == 1


def test_verdicts_of_a_peer_that_takes_nothing(make: CoreFactory) -> None:
    rig = Rig(make, {"max_queue_messages": 3})
    peer = rig.connect(transport=FakeTransport(high=0))
    peer.transport.stall()
    assert rig.core.send(peer.handle, b"0") == Verdict.SENT
    assert rig.core.send(peer.handle, b"1") == Verdict.SENT
    rig.turn()
    assert rig.core.send(peer.handle, b"2") == Verdict.SENT  # nothing is queued so far
    rig.turn()
    assert rig.core.send(peer.handle, b"3") == Verdict.QUEUED
    assert rig.core.send(peer.handle, b"4") == Verdict.QUEUED
    rig.turn()
    assert rig.core.queued_bytes(peer.handle) == 9
    assert rig.take() == []
    assert rig.core.send(peer.handle, b"5") == Verdict.QUEUED
    rig.turn()
    assert rig.take() == [closed("a", CloseReason.SLOW_CONSUMER)]
    assert rig.core.send(peer.handle, b"6") == Verdict.CLOSED
    peer.transport.drain()
    assert peer.frames() == [says("0"), says("1"), said(CloseReason.SLOW_CONSUMER)]


def test_the_queue_drains_in_order_and_is_forgotten(make: CoreFactory) -> None:
    scene = hall(make)
    slow, rig = scene.slow, scene.rig
    for number in range(50):
        scene.say(b"%d" % number)
    assert rig.core.queued_bytes(slow.handle) == 10 * 3 + 40 * 4
    slow.transport.drain()
    assert rig.core.queued_bytes(slow.handle) == 0
    assert slow.frames() == [says(""), *[says(str(number)) for number in range(50)]]
    assert rig.core.send(slow.handle, b"again") == Verdict.SENT
    rig.turn()
    assert slow.frames() == [says("again")]


def test_totals_of_what_waits(rig: Rig) -> None:
    peers = [rig.connect(str(n), transport=FakeTransport(high=0)) for n in range(3)]
    assert rig.core.queue_totals() == (0, 0)
    for peer in peers[:2]:
        peer.transport.stall()
    for _ in range(2):
        rig.core.broadcast(b"1234")
        rig.turn()
    rig.core.send(peers[0].handle, b"5678")
    assert rig.core.queue_totals() == (12, 2)
    rig.turn()
    assert rig.core.queue_totals() == (18, 2)
    peers[1].transport.drain()
    assert rig.core.queue_totals() == (12, 1)
    peers[0].link.connection_lost(None)
    assert rig.core.queue_totals() == (0, 0)


def test_r02_a_full_mebibyte_is_still_allowed(make: CoreFactory) -> None:
    scene = hall(make)
    piece = b"x" * (65536 - 4 - 6)  # 16 of them with their headers are 1 MiB less 96 octets
    for _ in range(16):
        scene.say(piece)
    scene.say(b"y" * (96 - 2))
    assert scene.rig.core.queued_bytes(scene.slow.handle) == MIB
    assert scene.rig.take() == []
    assert [len(frames) for frames in scene.heard()] == [17, 17]
    scene.say(b"")
    assert scene.rig.take() == [closed("slow", CloseReason.SLOW_CONSUMER, 4000)]
    assert scene.heard() == [[says("")]] * 2
    assert scene.rig.core.member_count(scene.room) == 2
    scene.say(b"after")
    assert scene.heard() == [[says("after")]] * 2
    scene.slow.transport.drain()
    assert scene.slow.frames() == [says(""), said(CloseReason.SLOW_CONSUMER)]
    assert scene.slow.transport.eof_written


def test_r02_1024_messages_are_still_allowed(make: CoreFactory) -> None:
    scene = hall(make)
    for number in range(1024):
        scene.rig.core.fan_out(scene.room, b"%d" % number)
        if number % 100 == 0:
            scene.rig.turn()
    scene.rig.turn()
    assert scene.rig.take() == []
    scene.say(b"one more")
    assert scene.rig.take() == [closed("slow", CloseReason.SLOW_CONSUMER, 4000)]
    expected = [*[says(str(number)) for number in range(1024)], says("one more")]
    assert scene.heard() == [expected, expected]


def test_r02_too_much_in_a_single_tick(make: CoreFactory) -> None:
    scene = hall(make, max_queue_bytes=1000)
    for number in range(100):
        scene.rig.core.fan_out(scene.room, b"%03d" % number * 10)
    scene.rig.turn()
    assert scene.rig.take() == [closed("slow", CloseReason.SLOW_CONSUMER)]
    assert [len(frames) for frames in scene.heard()] == [100, 100]


def test_r02_slow_peers_are_closed_when_the_sending_is_over(make: CoreFactory) -> None:
    scene = hall(make, max_queue_messages=2)
    rig = scene.rig
    seen: list[list[int]] = []

    def told(event: Event) -> None:
        assert isinstance(event, Closed)
        seen.append([len(peer.transport.written) for peer in scene.good])
        assert rig.core.members(scene.room) == ["good 1", "good 2"]
        assert rig.core.fan_out(scene.room, b"slow has left") == 2

    rig.hook = told
    for payload in (b"1", b"2", b"3"):
        scene.say(payload)
    assert seen == [[9, 9]]
    everything = [says("1"), says("2"), says("3"), says("slow has left")]
    assert scene.heard() == [everything, everything]


def test_r02_slow_peers_closed_for_what_is_said_of_slow_peers(make: CoreFactory) -> None:
    rig = Rig(make, {"max_queue_messages": 1})
    room = rig.core.open_room()
    peers = [rig.connect(str(n), transport=FakeTransport(high=0)) for n in range(4)]
    for peer in peers:
        peer.transport.stall()
        rig.core.send(peer.handle, b"")
        rig.core.join(peer.handle, room)
    rig.turn()

    def told(event: Event) -> None:
        for _ in range(2):
            rig.core.fan_out(room, b"gone")

    rig.hook = told
    rig.core.send(peers[2].handle, b"1")
    rig.core.send(peers[2].handle, b"2")
    rig.turn()
    assert rig.scheduled == []
    assert rig.take()[0] == closed("2", CloseReason.SLOW_CONSUMER)
    assert rig.core.count == 0


def test_r02_what_is_already_queued_is_shared_not_lost(make: CoreFactory) -> None:
    # Several slow members at once: each keeps its own place in what they share.
    rig = Rig(make)
    room = rig.core.open_room()
    peers = [rig.connect(str(n), transport=FakeTransport(high=0)) for n in range(5)]
    for peer in peers:
        rig.core.join(peer.handle, room)
    expected: list[list[ServerFrame]] = [[] for _ in peers]
    for turn in range(20):
        for number, peer in enumerate(peers):
            if turn % 5 == number:
                peer.transport.stall()
            if turn % 7 == number:
                peer.transport.drain()
        rig.core.fan_out(room, b"%d" % turn)
        rig.core.send(peers[turn % 5].handle, b"for you")
        for number, frames in enumerate(expected):
            frames.append(says(str(turn)))
            if turn % 5 == number:
                frames.append(says("for you"))
        rig.turn()
    for peer in peers:
        peer.transport.drain()
    assert [peer.frames() for peer in peers] == expected


def test_more_than_a_mebibyte_in_one_tick_is_sent_early(rig: Rig) -> None:
    room, peer = rig.core.open_room(), rig.connect()
    rig.core.join(peer.handle, room)
    for number in range(40):
        rig.core.fan_out(room, b"%d" % (number % 10) * 100_000)
        rig.core.send(peer.handle, b"mine")
    assert MIB < len(peer.transport.written) < 40 * 100_000
    rig.turn()
    expected: list[ServerFrame] = []
    for number in range(40):
        expected += [says(b"%d" % (number % 10) * 100_000), says("mine")]
    assert peer.frames() == expected


def test_one_message_larger_than_everything_is_sent_whole(rig: Rig) -> None:
    peer = rig.connect()
    rig.core.send(peer.handle, b"before")
    rig.core.send(peer.handle, b"x" * (3 * MIB))
    rig.core.send(peer.handle, b"after")
    rig.turn()
    assert peer.frames() == [says("before"), says(b"x" * (3 * MIB)), says("after")]


def crossing(make: CoreFactory) -> tuple[Hall, int]:
    """Return a hall in which the slow member is over its caps, but not closed yet.

    Leaving a room sends what is pending for it ahead of the tick's end, so the cap is crossed in
    the middle of the tick.
    """
    scene = hall(make, max_queue_messages=2)
    other = scene.rig.core.open_room()
    scene.rig.core.join(scene.slow.handle, other)
    for number in range(3):
        scene.rig.core.fan_out(scene.room, b"%d" % number)
    assert scene.rig.core.leave(scene.slow.handle, scene.room)
    return scene, other


def test_r02_a_doomed_peer_takes_nothing_more(make: CoreFactory) -> None:
    scene, other = crossing(make)
    assert scene.rig.take() == []
    assert scene.rig.core.send(scene.slow.handle, b"x") == Verdict.SLOW
    assert scene.rig.core.fan_out(other, b"x") == 1
    scene.rig.turn()
    assert scene.rig.take() == [closed("slow", CloseReason.SLOW_CONSUMER)]
    scene.slow.transport.drain()
    assert scene.slow.frames() == [says(""), said(CloseReason.SLOW_CONSUMER)]


def test_r02_a_doomed_peer_that_is_closed_is_told_why(make: CoreFactory) -> None:
    scene, _ = crossing(make)
    scene.rig.core.close(scene.slow.handle, CloseReason.KICKED)
    assert scene.rig.take() == [closed("slow", CloseReason.KICKED)]
    scene.rig.turn()
    assert scene.rig.take() == []
    scene.slow.transport.drain()
    # Its backlog may be dropped or not, but no Close would leave it guessing: 1006, come again.
    assert scene.slow.frames()[-1] == said(CloseReason.KICKED)
    assert scene.slow.transport.eof_written


def test_r02_a_close_whose_last_words_cross_the_cap_is_still_a_close(make: CoreFactory) -> None:
    scene = hall(make, max_queue_messages=2)
    for number in range(3):
        scene.rig.core.send(scene.slow.handle, b"%d" % number)
    scene.rig.core.close(scene.slow.handle, CloseReason.SERVICE_RESTART)
    scene.rig.turn()
    assert scene.rig.take() == [closed("slow", CloseReason.SERVICE_RESTART)]
    scene.slow.transport.drain()
    assert scene.slow.frames()[-1] == said(CloseReason.SERVICE_RESTART)


def test_r02_a_doomed_peer_that_vanishes_is_closed_once(make: CoreFactory) -> None:
    scene, _ = crossing(make)
    scene.slow.link.connection_lost(None)
    newcomer = scene.rig.connect("newcomer")
    scene.rig.turn()
    assert scene.rig.take() == [closed("slow", CloseReason.CONNECTION_LOST)]
    assert newcomer.alive()


def test_a_write_that_makes_the_transport_pause_is_not_sent_twice(make: CoreFactory) -> None:
    rig = Rig(make)
    peer = rig.connect(transport=FakeTransport(high=10))
    peer.transport.stall()
    for number in range(10):
        rig.core.send(peer.handle, b"%d" % number * 8)
        rig.turn()
    # Draining a little at a time: each resumption fills the transport up to its mark again.
    for _ in range(20):
        peer.transport.drain(7)
        peer.transport.stall()
    peer.transport.drain()
    while peer.transport.get_write_buffer_size():
        peer.transport.drain()
    assert peer.frames() == [says(str(number) * 8) for number in range(10)]


@pytest.mark.parametrize("payload", [bytearray(b"x"), memoryview(b"x"), "x", None])
def test_only_bytes_can_be_sent(payload: bytes) -> None:
    rig = Rig(NATIVE)
    peer, room = rig.connect(), rig.core.open_room()
    rig.core.join(peer.handle, room)
    with pytest.raises(TypeError):
        rig.core.send(peer.handle, payload)
    with pytest.raises(TypeError):
        rig.core.fan_out(room, payload)
    with pytest.raises(TypeError):
        rig.core.broadcast(payload)
    assert rig.scheduled == []
