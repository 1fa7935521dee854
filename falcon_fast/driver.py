"""A native core and an asyncio loop brought together: readiness, and the passing of time."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, Generic, TypeVar

from falcon_fast._core import Core

__all__ = ["CoreDriver"]

TICK: Final = 0.25
"""Seconds between two turns of the core's timer wheel."""

OwnerT = TypeVar("OwnerT")


class CoreDriver(Generic[OwnerT]):
    """Calls `ready` when the core's epoll set is readable, and `tick` four times a second."""

    def __init__(self, core: Core[OwnerT], loop: asyncio.AbstractEventLoop) -> None:
        self._core = core
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin; the loop must be the one the core's `schedule` belongs to."""
        if self._core.epoll_fd >= 0:
            self._loop.add_reader(self._core.epoll_fd, self._core.ready)
        self._timer = self._loop.call_later(TICK, self._tick)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK, self._tick)
        self._core.tick()

    def stop(self) -> None:
        """Stop, and shut the core down with all its connections. May be called more than once."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        if self._core.epoll_fd >= 0:
            with contextlib.suppress(ValueError, OSError):
                self._loop.remove_reader(self._core.epoll_fd)
        self._core.shutdown()
