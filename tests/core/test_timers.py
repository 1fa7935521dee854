"""What comes due: pings, silence, stalled writes, expiries. The clock is turned by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from falcon_fast.codes import CloseReason

from ..support.core import CoreFactory, Event, Expired, Message, Peer, Rig, closed, said
from ..support.frames import PING, ServerFrame, ping, pong, says, text
from ..support.transport import FakeTransport
from .conftest import NATIVE

A_PING = ServerFrame(PING, b"")


def keepalive(make: CoreFactory, interval: float = 30.0, timeout: float = 60.0) -> Rig:
    """Return a rig that sends pings and closes the silent."""
    return Rig(make, {"ping_interval": interval, "ping_timeout": timeout})


def test_pings_are_spread_over_the_interval_and_then_regular(make: CoreFactory) -> None:
    rig = keepalive(make, 8.0, 1000.0)
    peers = [rig.connect(str(number)) for number in range(300)]
    times: dict[str, list[float]] = {peer.owner: [] for peer in peers}
    for _ in range(96):
        rig.wait(0.25)
        for peer in peers:
            frames = peer.frames()
            if frames:
                assert frames == [A_PING]
                times[peer.owner].append(rig.clock.monotonic())
    for moments in times.values():
        first = moments[0]
        assert moments == [first, first + 8.0, first + 16.0]
        assert 1000.0 < first <= 1008.0
    # 300 first pings in 32 ticks: about 9 a tick, were they not spread 300 in one.
    at_once = Counter(moments[0] for moments in times.values())
    assert max(at_once.values()) < 40
    assert len(at_once) > 20


def test_the_first_ping_of_a_connection_is_not_always_at_the_same_moment(make: CoreFactory) -> None:
    moments = set()
    for _ in range(10):
        rig = keepalive(make, 1000.0, 5000.0)
        peer = rig.connect()
        while not peer.frames():
            rig.wait(0.25)
        moments.add(rig.clock.monotonic())
    assert len(moments) > 3


def test_input_does_not_put_pings_off(make: CoreFactory) -> None:
    # Clients count on the heartbeat as much as the server does.
    rig = keepalive(make, 2.0, 4.0)
    peer = rig.connect()
    for _ in range(40):
        rig.wait(0.5)
        peer.feed(pong())
    assert peer.frames() == [A_PING] * 10


def test_without_an_interval_nobody_is_pinged_or_called_silent(make: CoreFactory) -> None:
    rig = keepalive(make, 0.0, 1.0)
    peer = rig.connect()
    rig.wait(200.0)
    assert peer.frames() == []
    assert peer.alive()


def test_a_peer_that_does_not_read_is_not_pinged(make: CoreFactory) -> None:
    rig = Rig(make, {"ping_interval": 1.0, "ping_timeout": 100.0, "write_timeout": 50.0})
    peer = rig.connect(transport=FakeTransport(high=0))
    peer.transport.stall()
    rig.core.send(peer.handle, b"taken by the transport")
    rig.turn()
    rig.core.send(peer.handle, b"queued")
    rig.turn()
    queued = rig.core.queued_bytes(peer.handle)
    rig.wait(20.0)
    assert rig.core.queued_bytes(peer.handle) == queued
    peer.transport.drain()
    rig.wait(1.0)
    assert peer.frames() == [says("taken by the transport"), says("queued"), A_PING]


@pytest.mark.parametrize("timeout", [60.0, 63.75, 64.0, 64.25, 90.0, 200.0])
def test_silence_closes_after_the_timeout(make: CoreFactory, timeout: float) -> None:
    rig = keepalive(make, 30.0, timeout)
    peer = rig.connect()
    rig.wait(7.0)
    peer.feed(pong())
    rig.wait(timeout - 0.25)
    assert rig.take() == []
    rig.wait(0.25)
    assert rig.take() == [closed("a", CloseReason.NO_PONG, 4001)]
    frames = peer.frames()
    assert frames[-1] == said(CloseReason.NO_PONG)
    assert set(frames[:-1]) == {A_PING}
    assert peer.transport.eof_written
    rig.wait(1.0)
    assert peer.dropped()


@pytest.mark.parametrize("life", [pong(), ping(b"x"), text("x"), b"\x81", text("x")[:4]])
def test_any_octet_is_a_sign_of_life(make: CoreFactory, life: bytes) -> None:
    rig = keepalive(make, 3.0, 10.0)
    peer = rig.connect()
    rig.wait(9.75)
    peer.feed(life[:1])
    rig.wait(9.75)
    assert peer.alive()
    peer.feed(life[1:])
    rig.wait(0.25 if life[1:] else 0.0)
    assert peer.alive()
    rig.wait(10.0)
    assert rig.take()[-1] == closed("a", CloseReason.NO_PONG)


def test_f07_a_frame_that_is_never_completed_is_ended_by_silence(make: CoreFactory) -> None:
    rig = keepalive(make)
    peer = rig.connect()
    peer.feed(text(b"x" * 65536)[:24])
    rig.wait(59.75)
    assert peer.alive()
    rig.wait(0.25)
    assert rig.take() == [closed("a", CloseReason.NO_PONG)]


def test_a_waiting_connection_is_not_called_silent_before_the_timeout(make: CoreFactory) -> None:
    rig = keepalive(make, 2.0, 5.0)
    peer = rig.connect(paused=True)
    rig.wait(4.75)
    assert peer.alive()
    rig.core.resume(peer.handle)
    peer.feed(text("x"))
    rig.wait(4.75)
    assert rig.take() == [Message("a", b"x", True)]


def test_p05_after_a_stall_of_the_loop_nobody_is_silent_before_he_was_heard(
    make: CoreFactory,
) -> None:
    rig = keepalive(make)
    talker = rig.connect("talker")
    rig.connect("mute")
    rig.wait(1.0)
    rig.clock.advance(70.0)  # the loop stood still; the peers did not
    rig.tick()
    rig.turn()
    assert rig.take() == []
    talker.feed(pong())
    rig.wait(4.75)
    assert rig.take() == []
    rig.wait(0.25)
    assert rig.take() == [closed("mute", CloseReason.NO_PONG)]
    rig.wait(54.75)
    assert talker.alive()
    rig.wait(0.25)
    assert rig.take() == [closed("talker", CloseReason.NO_PONG)]


def test_p05_a_short_stall_gives_no_grace(make: CoreFactory) -> None:
    rig = keepalive(make, 30.0, 60.0)
    rig.connect()
    rig.wait(58.25)
    rig.clock.advance(2.0)
    rig.tick()
    rig.turn()
    assert rig.take() == [closed("a", CloseReason.NO_PONG)]


def test_p05_stalls_longer_than_the_wheel_turns_lose_nothing(make: CoreFactory) -> None:
    rig = keepalive(make, 5.0, 1e6)
    peers = [rig.connect(str(number)) for number in range(50)]
    for number, peer in enumerate(peers):
        rig.core.set_expiry(peer.handle, 1000.0 + 10 * number)
    rig.clock.advance(700.0)
    rig.tick()
    rig.turn()
    assert sorted(event.owner for event in rig.take() if isinstance(event, Expired)) == sorted(
        peer.owner for peer in peers
    )
    # One ping for those that were missed, and from then on the usual number.
    assert [peer.frames() for peer in peers] == [[A_PING]] * 50
    rig.wait(50.0)
    assert {len(peer.frames()) for peer in peers} == {10}


@pytest.mark.parametrize("step", [0.1, 0.3, 0.6, 1.9])
def test_ticks_may_come_at_other_intervals(make: CoreFactory, step: float) -> None:
    rig = keepalive(make, 5.0, 12.0)
    peer = rig.connect()
    rig.core.set_expiry(peer.handle, 1009.0)
    while rig.clock.monotonic() < 1009.0 - 1e-6:
        assert rig.take() == []
        rig.wait(step, step=step)
    rig.wait(0.25)
    assert rig.take() == [Expired("a")]
    while rig.clock.monotonic() < 1012.0 - 1e-6:
        assert rig.take() == []
        rig.wait(step, step=step)
    rig.wait(0.25)
    assert rig.take() == [closed("a", CloseReason.NO_PONG)]


def stalled(make: CoreFactory, high: int = 0, **limits: float) -> tuple[Rig, FakeTransport, int]:
    """Return a rig with one connection that has taken nothing of what is queued for it."""
    rig = Rig(make, {"write_timeout": 10.0, **limits})
    transport = FakeTransport(high=high)
    peer = rig.connect(transport=transport)
    transport.stall()
    rig.core.send(peer.handle, b"x" * (high + 1))
    rig.turn()
    rig.core.send(peer.handle, b"queued")
    rig.turn()
    assert rig.core.queued_bytes(peer.handle) == 8
    return rig, transport, peer.handle


def test_r02_a_write_without_progress_closes(make: CoreFactory) -> None:
    rig, transport, handle = stalled(make)
    rig.wait(9.75)
    assert rig.take() == []
    rig.wait(0.25)
    assert rig.take() == [closed("a", CloseReason.SLOW_CONSUMER, 4000)]
    assert rig.core.queued_bytes(handle) == 0
    # It has no time but the lingering to take the Close.
    transport.drain()
    # What was queued is dropped: 1 octet and its header had been taken before.
    assert transport.sent == says("x").to_bytes() + said(CloseReason.SLOW_CONSUMER).to_bytes()
    assert transport.eof_written
    rig.wait(1.0)
    assert transport.aborted


def test_r02_a_peer_that_never_takes_anything_is_dropped(make: CoreFactory) -> None:
    rig, transport, _ = stalled(make)
    rig.wait(10.0)
    assert rig.take() == [closed("a", CloseReason.SLOW_CONSUMER)]
    rig.wait(1.0)
    assert transport.aborted
    assert not transport.eof_written


def test_r02_time_without_anything_queued_does_not_count(make: CoreFactory) -> None:
    rig = Rig(make, {"write_timeout": 10.0})
    peer = rig.connect(transport=FakeTransport(high=0))
    rig.wait(100.0)
    peer.transport.stall()
    rig.core.send(peer.handle, b"x")
    rig.turn()
    rig.core.send(peer.handle, b"y")
    rig.turn()
    rig.wait(9.75)
    assert peer.alive()


def test_r02_progress_gives_another_ten_seconds(make: CoreFactory) -> None:
    rig, transport, handle = stalled(make)
    for _ in range(5):
        rig.wait(9.75)
        transport.drain()
        rig.turn()
        transport.stall()
        rig.core.send(handle, b"z")
        rig.turn()
        rig.core.send(handle, b"queued")
        rig.turn()
    assert rig.take() == []
    rig.wait(10.0)
    assert rig.take() == [closed("a", CloseReason.SLOW_CONSUMER)]


def test_p05_a_stall_of_ours_is_not_the_peers_fault(make: CoreFactory) -> None:
    # The loop stood still for longer than the write timeout: the peer may have read all along.
    rig, transport, handle = stalled(make)
    rig.clock.advance(15.0)
    rig.tick()
    assert rig.take() == []
    transport.drain()
    rig.wait(20.0)
    assert rig.take() == []
    assert rig.core.queued_bytes(handle) == 0
    assert rig.core.count == 1


def test_r02_octets_leaving_the_transport_are_progress(make: CoreFactory) -> None:
    # A slow peer over TLS: the transport stays above its low-water mark, but its buffer shrinks.
    rig, transport, _ = stalled(make, high=60_000)
    for _ in range(8):
        rig.wait(5.0)
        transport.drain(4000)
        rig.wait(0.25)
    assert rig.take() == []
    rig.wait(9.5)
    assert rig.take() == []
    # How much has left is looked at when the time is up, so it may be noticed late.
    rig.wait(10.5)
    assert rig.take() == [closed("a", CloseReason.SLOW_CONSUMER)]


@pytest.mark.parametrize("after", [0.25, 1.0, 1.5, 7.75, 30.0, 63.75, 64.0, 64.25, 500.0, 3600.5])
def test_a13_expiry_is_told_at_its_time(make: CoreFactory, after: float) -> None:
    rig = keepalive(make, 20.0, 1e6)
    rig.wait(2.0)
    peer = rig.connect()
    rig.core.set_expiry(peer.handle, rig.clock.monotonic() + after)
    rig.wait(after - 0.25)
    assert rig.take() == []
    # Not a moment before its time; the core may round up to a whole second.
    rig.wait(1.25)
    assert rig.take() == [Expired("a")]
    rig.wait(100.0)
    assert rig.take() == []
    assert peer.alive()


@pytest.mark.parametrize("ago", [0.0, 0.5, 5.0, 1e4])
def test_a13_an_expiry_in_the_past_is_told_soon(rig: Rig, ago: float) -> None:
    rig.wait(3.0)
    peer = rig.connect()
    rig.core.set_expiry(peer.handle, rig.clock.monotonic() - ago)
    assert rig.take() == []
    rig.wait(1.0)
    assert rig.take() == [Expired("a")]


def test_a13_the_later_call_replaces_the_earlier(rig: Rig) -> None:
    one, other = rig.connect("one"), rig.connect("other")
    now = rig.clock.monotonic()
    rig.core.set_expiry(one.handle, now + 2)
    rig.core.set_expiry(one.handle, now + 5)
    rig.core.set_expiry(other.handle, now + 5)
    rig.core.set_expiry(other.handle, now + 2)
    rig.wait(4.0)
    assert rig.take() == [Expired("other")]
    rig.wait(2.0)
    assert rig.take() == [Expired("one")]


def test_a13_expiry_may_be_set_again_and_again_from_its_callback(rig: Rig) -> None:
    peer = rig.connect()

    def again(event: Event) -> None:
        rig.core.set_expiry(peer.handle, rig.clock.monotonic() + 3)

    rig.hook = again
    rig.core.set_expiry(peer.handle, rig.clock.monotonic() + 3)
    rig.wait(12.0)
    assert rig.take() == [Expired("a")] * 4


@pytest.mark.parametrize("how", ["close", "abort"])
def test_a13_expiry_may_close_the_connection(rig: Rig, how: str) -> None:
    peer = rig.connect()

    def end(event: Event) -> None:
        if isinstance(event, Expired):
            getattr(rig.core, how)(peer.handle, CloseReason.TOKEN_EXPIRED)
            rig.connect("next")

    rig.hook = end
    rig.core.send(peer.handle, b"x")
    rig.turn()
    rig.core.set_expiry(peer.handle, rig.clock.monotonic() + 1)
    rig.wait(1.0)
    assert rig.take() == [Expired("a"), closed("a", CloseReason.TOKEN_EXPIRED, 4401)]
    goodbye = [said(CloseReason.TOKEN_EXPIRED)] if how == "close" else []
    assert peer.frames() == [says("x"), *goodbye]
    rig.wait(5.0)
    assert rig.core.owners() == ["next"]


def test_a13_who_is_gone_does_not_expire(rig: Rig) -> None:
    one, other = rig.connect("one"), rig.connect("other")
    for peer in (one, other):
        rig.core.set_expiry(peer.handle, rig.clock.monotonic() + 2)
    rig.core.close(one.handle, CloseReason.NORMAL)
    other.link.connection_lost(None)
    newcomer = rig.connect("newcomer")  # perhaps in the same place
    rig.take()
    rig.wait(5.0)
    assert rig.take() == []
    assert newcomer.alive()


def test_timers_work_across_the_end_of_32_bits_of_milliseconds(make: CoreFactory) -> None:
    rig = Rig(make, {"ping_interval": 4.0, "ping_timeout": 10.0, "write_timeout": 9.0})
    rig.clock.advance(4_294_960.0)  # 49.7 days, 7.3 s before the end
    rig.tick()
    lively, slow = rig.connect("lively"), rig.connect("slow", transport=FakeTransport(high=0))
    rig.connect("mute")
    rig.core.set_expiry(lively.handle, rig.clock.monotonic() + 20.0)
    slow.transport.stall()
    for _ in range(2):
        rig.core.send(slow.handle, b"x")
        rig.turn()
    moments: dict[str, float] = {}
    for quarter in range(1, 121):
        rig.wait(0.25)
        lively.feed(pong())
        slow.feed(pong())
        moments.update({str(event): quarter / 4 for event in rig.take()})
        if quarter == 31:
            lingering = rig.connect("lingering")
            rig.core.close(lingering.handle, CloseReason.NORMAL)
            rig.take()
        if quarter == 32:
            assert not lingering.dropped()
        if quarter == 35:
            assert lingering.dropped()
    assert moments.pop(str(closed("slow", CloseReason.SLOW_CONSUMER))) == 9.0
    assert moments.pop(str(closed("mute", CloseReason.NO_PONG))) == 10.0
    assert 20.0 <= moments.pop(str(Expired("lively"))) <= 21.0
    assert moments == {}
    assert lively.frames() in ([A_PING] * 7, [A_PING] * 8)


def ping_moments(rig: Rig, peers: list[Peer], seconds: float) -> Counter[float]:
    """Let time pass; returns how many pings came when, in fractions of a second."""
    moments: Counter[float] = Counter()
    for _ in range(round(seconds * 4)):
        rig.wait(0.25)
        for peer in peers:
            moments[round(rig.clock.monotonic() % 1, 2)] += peer.frames().count(A_PING)
    return +moments


def test_an_idle_core_asks_for_a_tick_a_second() -> None:
    rig = Rig(NATIVE, {"ping_interval": 30.0, "ping_timeout": 1000.0})
    rig.clock.advance(0.1)
    peers = [rig.connect(str(number)) for number in range(600)]
    rig.wait(31.0)
    for peer in peers:
        peer.frames()
    before = rig.ticks
    # Pings are spread over the interval, yet all leave at whole seconds: one wake for twenty.
    assert ping_moments(rig, peers, 60.0) == {0.1: 1200}
    assert rig.ticks - before == 60


def test_many_are_pinged_more_often_in_smaller_parts() -> None:
    limits = {"ping_interval": 10.0, "ping_timeout": 90.0, "max_connections": 16384}
    for number, fractions in ((5000, {0.0}), (6000, {0.0, 0.5}), (11000, {0.0, 0.25, 0.5, 0.75})):
        rig = Rig(NATIVE, limits)
        peers = [rig.connect(str(each)) for each in range(number)]
        rig.wait(20.0)  # those that came first had their first ping when there were few
        for peer in peers:
            peer.frames()
        moments = ping_moments(rig, peers, 10.0)
        assert moments.keys() == fractions
        assert moments.total() == number
        # Those that came when there were few, too.
        assert max(moments.values()) <= number / len(fractions) + 1


def test_a_tick_is_hurried_for_what_comes_due_before_the_one_asked_for() -> None:
    rig = Rig(NATIVE, {})
    hurried: list[float] = []
    rig.wait(1.0)
    assert rig.core.tick() == 4
    rig.core.tell_hurry(lambda: hurried.append(rig.clock.monotonic()))
    peer = rig.connect()
    assert hurried == []
    rig.core.set_expiry(peer.handle, rig.clock.monotonic() + 0.75)
    assert hurried == [1001.0]
    rig.core.set_expiry(rig.connect().handle, rig.clock.monotonic() + 0.75)
    assert hurried == [1001.0]  # it is on its way
    rig.core.set_expiry(rig.connect().handle, rig.clock.monotonic() + 0.5)
    assert hurried == [1001.0] * 2
    rig.core.tell_hurry(None)
    rig.core.set_expiry(rig.connect().handle, rig.clock.monotonic() + 0.25)
    assert hurried == [1001.0] * 2
    for _ in range(3):
        rig.clock.advance(0.25)
        assert rig.core.tick() == 1
    assert len(rig.take()) == 4


def test_a_connection_that_is_closed_long_after_the_last_tick_lingers_as_others(rig: Rig) -> None:
    peer = rig.connect()
    rig.wait(10.0)
    rig.clock.advance(0.9)  # a core that has nothing to do may ask for so few ticks
    rig.core.close(peer.handle, CloseReason.NORMAL)
    rig.clock.advance(0.4)
    rig.tick()
    assert not peer.dropped()
    rig.wait(0.5)
    assert peer.dropped()
