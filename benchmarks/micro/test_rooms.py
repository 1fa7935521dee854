"""What does it cost to enter a room and to leave it again, by the room's size?"""

from __future__ import annotations

import random

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.micro.support import connect, make_core

#: Connections that come and go in one round.
ROUND = 100


# A room of a few members is in its struct, up to 4096 a sorted array, above a set of bits.
@pytest.mark.benchmark(group="join and leave, 100 of each")
@pytest.mark.parametrize("members", [0, 1_000, 4_000, 10_000])
def test_join_and_leave(benchmark: BenchmarkFixture, members: int) -> None:
    core = make_core()
    room = core.open_room()
    handles = [connect(core).handle for _ in range(members + ROUND)]
    random.Random(1).shuffle(handles)
    moving = handles[:ROUND]
    for handle in handles[ROUND:]:
        core.join(handle, room)

    def come_and_go() -> None:
        for handle in moving:
            core.join(handle, room)
        for handle in moving:
            core.leave(handle, room)

    benchmark.extra_info["moves"] = 2 * ROUND
    benchmark(come_and_go)
    assert core.member_count(room) == members
