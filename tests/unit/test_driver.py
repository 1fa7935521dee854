"""The core and the loop together: readiness, four ticks a second, and the end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import cast

import pytest

from falcon_fast._core import Core
from falcon_fast.driver import TICK, CoreDriver

from ..support.loop import FakeTimeLoop, turns

loop_factory = FakeTimeLoop


class FakeCore:
    """Counts what the driver asks of a core."""

    def __init__(self, epoll_fd: int = -1) -> None:
        self.epoll_fd = epoll_fd
        self.calls: list[str] = []
        self.hurry: Callable[[], object] | None = None  # what the driver said to call
        self.steps = 1

    def ready(self) -> None:
        self.calls.append("ready")

    def tick(self) -> int:
        self.calls.append("tick")
        return self.steps

    def tell_hurry(self, function: Callable[[], object] | None) -> None:
        self.hurry = function

    def shutdown(self) -> None:
        self.calls.append("shutdown")


def driver(core: FakeCore) -> CoreDriver[object]:
    return CoreDriver(cast("Core[object]", core), asyncio.get_running_loop())


async def test_four_ticks_a_second_until_stopped() -> None:
    core = FakeCore()
    driven = driver(core)
    driven.start()
    await asyncio.sleep(1.1)
    assert core.calls == ["tick"] * 4
    driven.stop()
    await asyncio.sleep(10 * TICK)
    assert core.calls == ["tick"] * 4 + ["shutdown"]
    driven.stop()
    assert core.calls.count("shutdown") == 1


async def test_a_loop_that_was_held_up_is_seen_in_the_lag() -> None:
    core = FakeCore()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FakeTimeLoop)
    driven = driver(core)
    driven.start()
    await asyncio.sleep(0.9)
    assert driven.lag.counts[0] == 3
    loop.clock.advance(0.18)  # the next tick is due in 0.1 s, and the loop does not get there
    await turns(2)
    driven.stop()
    late = [
        bound for bound, count in zip(driven.lag.bounds, driven.lag.counts, strict=False) if count
    ]
    assert late == [0.001, 0.1]
    assert driven.lag.sum == pytest.approx(0.08)


async def test_a_tick_comes_when_the_core_asked_for_it_or_hurries() -> None:
    core = FakeCore()
    loop = asyncio.get_running_loop()
    moments: list[float] = []

    def tick() -> int:
        moments.append(loop.time())
        return core.steps

    core.tick = tick  # type: ignore[method-assign]
    core.steps = 4
    driven = driver(core)
    driven.start()
    assert core.hurry is not None
    await asyncio.sleep(3.4)
    assert moments == pytest.approx([1000.25, 1001.25, 1002.25, 1003.25])
    core.hurry()
    core.hurry()
    await asyncio.sleep(1.0)
    assert moments[4:] == pytest.approx([1003.5])
    await asyncio.sleep(0.2)
    assert moments[5:] == pytest.approx([1004.5])
    driven.stop()
    assert core.hurry is None


async def test_a_hurry_right_before_a_step_is_for_that_step() -> None:
    core = FakeCore()
    loop = asyncio.get_running_loop()
    moments: list[float] = []

    def tick() -> int:
        moments.append(loop.time())
        return 4

    core.tick = tick  # type: ignore[method-assign]
    driven = driver(core)
    driven.start()
    await asyncio.sleep(0.495)
    assert core.hurry is not None
    core.hurry()
    await asyncio.sleep(0.995)  # 5 ms before the tick that is planned anyway
    core.hurry()
    await asyncio.sleep(0.2)
    driven.stop()
    assert moments == pytest.approx([1000.25, 1000.5, 1001.5])


async def test_a_core_that_hurries_within_its_tick_is_ticked_once() -> None:
    core = FakeCore()

    def tick() -> int:
        core.calls.append("tick")
        assert core.hurry is not None
        core.hurry()
        return 2

    core.tick = tick  # type: ignore[method-assign]
    driven = driver(core)
    driven.start()
    await asyncio.sleep(2.3)
    driven.stop()
    assert core.calls == ["tick"] * 5 + ["shutdown"]


async def test_a_core_that_is_stopped_within_its_tick_stays_so() -> None:
    core = FakeCore()
    driven = driver(core)

    def tick() -> int:
        driven.stop()
        return 1

    core.tick = tick  # type: ignore[method-assign]
    driven.start()
    await asyncio.sleep(2.0)
    assert core.calls == ["shutdown"]


async def test_stopping_before_the_start_does_nothing() -> None:
    core = FakeCore()
    driver(core).stop()
    assert core.calls == []


async def test_a_tick_that_fails_is_not_the_last_one() -> None:
    core = FakeCore()
    failed: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: failed.append(context["exception"])
    )

    def tick() -> int:
        core.calls.append("tick")
        raise ValueError("once")

    core.tick = tick  # type: ignore[method-assign]
    driven = driver(core)
    driven.start()
    await asyncio.sleep(0.6)
    driven.stop()
    assert core.calls == ["tick", "tick", "shutdown"]
    assert [str(error) for error in failed] == ["once", "once"]


async def test_ready_is_called_when_the_epoll_set_is_readable() -> None:
    reading, writing = os.pipe()
    core = FakeCore(reading)
    driven = driver(core)
    try:
        driven.start()
        await turns()
        assert core.calls == []
        os.write(writing, b"x")
        await turns(2)
        assert set(core.calls) == {"ready"}
        driven.stop()
        core.calls.clear()
        await turns()
        assert core.calls == []
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("error", [ValueError, OSError])
async def test_an_epoll_set_that_is_gone_already_does_not_keep_it_from_stopping(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    core = FakeCore(5)
    monkeypatch.setattr(loop, "add_reader", lambda fd, callback: None)

    def remove_reader(fd: int) -> bool:
        raise error("bad file descriptor")

    monkeypatch.setattr(loop, "remove_reader", remove_reader)
    driven = driver(core)
    driven.start()
    driven.stop()
    assert core.calls == ["shutdown"]
