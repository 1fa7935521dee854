"""A native core and an asyncio loop brought together: readiness, and the passing of time."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, Generic, TypeVar

from falcon_fast._core import Core
from falcon_fast.clock import until_beat
from falcon_fast.statistics import Histogram

__all__ = ["CoreDriver"]

TICK: Final = 0.25
"""Seconds between two steps of the core's timer wheel."""

LAG_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Seconds, the buckets of the loop's lateness."""

OwnerT = TypeVar("OwnerT")


class CoreDriver(Generic[OwnerT]):
    """Calls `ready` when the core's epoll set is readable, and `tick` when something may be due.

    Attributes:
        lag: how late the ticks were, in seconds: what everything else had to wait for the loop.
    """

    def __init__(self, core: Core[OwnerT], loop: asyncio.AbstractEventLoop) -> None:
        self._core = core
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self.lag = Histogram(LAG_BOUNDS)

    def start(self) -> None:
        """Begin; the loop must be the one the core's `schedule` belongs to."""
        if self._core.epoll_fd >= 0:
            self._loop.add_reader(self._core.epoll_fd, self._core.ready)
        self._core.tell_hurry(self._hurry)
        self._wait(until_beat(self._loop.time(), TICK))

    def _wait(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = self._loop.time() + seconds
        self._timer = self._loop.call_later(seconds, self._tick)

    def _hurry(self) -> None:
        now = self._loop.time()
        # However near the next step is: what hurries may be due there.
        wait = TICK - now % TICK
        if now + wait < self._due:
            self._wait(wait)

    def _tick(self) -> None:
        # A loop may run a timer up to its clock's resolution early.
        self.lag.add(max(0.0, self._loop.time() - self._due))
        steps = 1
        try:
            steps = self._core.tick()
        finally:
            if self._timer is not None:
                self._wait(until_beat(self._loop.time(), TICK) + (steps - 1) * TICK)

    def stop(self) -> None:
        """Stop, and shut the core down with all its connections. May be called more than once."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        self._core.tell_hurry(None)
        if self._core.epoll_fd >= 0:
            with contextlib.suppress(ValueError, OSError):
                self._loop.remove_reader(self._core.epoll_fd)
        self._core.shutdown()
