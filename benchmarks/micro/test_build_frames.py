"""What does it cost to build a frame and to note it, before anybody is sent to?"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.micro.support import connect, make_core

#: Messages of one round; their frames stay below the size at which the core sends early.
ROUND = 64


@pytest.mark.benchmark(group="build frames, 64 to one connection")
@pytest.mark.parametrize("size", [64, 1024, 8192])
def test_note_and_send(benchmark: BenchmarkFixture, size: int) -> None:
    core = make_core()
    handle = connect(core).handle
    payload = b"x" * size

    def tick() -> None:
        for _ in range(ROUND):
            core.send(handle, payload)
        core.flush()

    benchmark.extra_info["frames"] = ROUND
    benchmark(tick)
    assert core.deliveries == ROUND * core.sends
