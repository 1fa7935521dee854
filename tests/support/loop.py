"""An event loop in which time passes only when nothing else is left to do, and then at once."""

from __future__ import annotations

import asyncio
import selectors
from typing import Final

from .clock import FakeClock

LONGEST_TEST: Final = 86_400.0
"""Seconds of the fake clock after which a test is taken to be waiting for nothing."""


class _Impatient(selectors.SelectSelector):
    """Instead of sleeping it turns the clock."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock
        self._end = clock.monotonic() + LONGEST_TEST

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if timeout is None or self._clock.monotonic() > self._end:
            raise RuntimeError("nothing will ever happen any more")
        self._clock.advance(timeout)
        return events


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """Sleeps, timeouts and timers take no time; their order is that of the real loop.

    A test module chooses it with ``loop_factory = FakeTimeLoop``, see ``tests/unit/conftest.py``.

    Attributes:
        clock: what the loop and the program under test take for the time.
    """

    def __init__(self) -> None:
        self.clock = FakeClock()
        super().__init__(_Impatient(self.clock))

    def time(self) -> float:
        return self.clock.monotonic()


async def turns(number: int = 12) -> None:
    """Let everything happen that is ready to, without letting time pass."""
    for _ in range(number):
        await asyncio.sleep(0)
