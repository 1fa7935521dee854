"""What the native core tells of itself: queues in all, and what ticks were like."""

from __future__ import annotations

from typing import cast

import pytest

from falcon_fast._core import Core

from ..support.core import CoreFactory, Rig
from ..support.transport import FakeTransport


def native() -> tuple[Rig, Core[str]]:
    rig = Rig(cast("CoreFactory", Core))
    return rig, cast("Core[str]", rig.core)


def stalled(rig: Rig, owner: str, queued: int) -> None:
    """Connect a peer that takes nothing, with so many messages of 100 octets in its queue."""
    peer = rig.connect(owner, transport=FakeTransport(high=0))
    peer.transport.stall()
    for _ in range(queued + 1):  # the first one goes to the transport, which then says stop
        rig.core.send(peer.handle, b"x" * 98)
        rig.turn()


def test_queues_are_added_up() -> None:
    rig, core = native()
    assert core.queue_totals() == (0, 0)
    rig.connect("quick")
    stalled(rig, "slow", 3)
    stalled(rig, "slower", 5)
    assert core.queue_totals() == (800, 2)
    core.shutdown()
    assert core.queue_totals() == (0, 0)


def test_a_core_that_said_nothing_has_empty_histograms() -> None:
    rig, core = native()
    rig.connect()
    core.flush()
    for bounds, counts, total in core.histograms():
        assert list(bounds) == sorted(set(bounds))
        assert counts == (0,) * (len(bounds) + 1)
        assert total == 0


@pytest.mark.parametrize(
    ("messages", "bucket"),
    [(1, 0), (2, 1), (3, 2), (4, 2), (1024, 10), (1025, 11), (16384, 12), (16385, 13)],
)
def test_messages_of_a_tick_are_counted_once_whatever_the_room(messages: int, bucket: int) -> None:
    rig, core = native()
    room = core.open_room()
    for owner in "abc":
        core.join(rig.connect(owner).handle, room)
    for _ in range(messages):
        core.fan_out(room, b"x")
    rig.turn()
    (bounds, counts, total), (_, times, _) = core.histograms()
    expected = [0] * len(counts)
    expected[bucket] = 1
    assert list(counts) == expected
    assert total == messages
    assert bucket == len(bounds) or messages <= bounds[bucket]
    assert sum(times) == core.flushes == 1


def test_the_time_of_a_tick_is_in_microseconds() -> None:
    rig, core = native()
    rig.connect()
    for _ in range(20):
        core.broadcast(b"x")
        rig.turn()
    _, (bounds, counts, total) = core.histograms()
    assert sum(counts) == 20
    # A send to a fake transport takes some microseconds, on any machine less than half a second.
    assert counts[len(bounds)] == 0
    assert 0 <= total < 20 * 500_000
