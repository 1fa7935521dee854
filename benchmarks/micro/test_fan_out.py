"""What does a message to a room cost the core, from the payload to one write per member?

The members' transports do nothing, so this is what falcon_fast adds to the kernel's price: building
the frame, sorting the members, and one call of a Python method each, from which plain sockets are
spared.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.micro.support import connect, make_core

PAYLOAD = b"x" * 100


@pytest.mark.benchmark(group="fan-out, one tick")
@pytest.mark.parametrize("messages", [1, 16])
@pytest.mark.parametrize("members", [10, 1_000, 10_000])
def test_one_room(benchmark: BenchmarkFixture, members: int, messages: int) -> None:
    core = make_core()
    room = core.open_room()
    for _ in range(members):
        core.join(connect(core).handle, room)

    def tick() -> None:
        for _ in range(messages):
            core.fan_out(room, PAYLOAD)
        core.flush()

    benchmark.extra_info["deliveries"] = members * messages
    benchmark(tick)
    assert core.deliveries == core.sends * messages
    assert core.sends == members * core.flushes


@pytest.mark.benchmark(group="fan-out, one tick")
def test_members_of_many_rooms(benchmark: BenchmarkFixture) -> None:
    """Each of 1000 connections is in one of 100 rooms and in a common one; all have news."""
    core = make_core()
    rooms = [core.open_room() for _ in range(100)]
    common = core.open_room()
    for number in range(1_000):
        handle = connect(core).handle
        core.join(handle, rooms[number % 100])
        core.join(handle, common)

    def tick() -> None:
        core.fan_out(common, PAYLOAD)
        for room in rooms:
            core.fan_out(room, PAYLOAD)
        core.flush()

    benchmark.extra_info["deliveries"] = 2_000
    benchmark(tick)
    assert core.sends == 1_000 * core.flushes
