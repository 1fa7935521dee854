"""Time: the port through which every part asks for it, so that tests can turn the clock."""

from __future__ import annotations

import time
from typing import Protocol

from falcon_fast._core import rfc3339

__all__ = ["Clock", "SystemClock", "rfc3339"]


class Clock(Protocol):
    """What the program knows of time."""

    def monotonic(self) -> float:
        """Return seconds from an arbitrary point, never going back: for timeouts and rates."""

    def time(self) -> float:
        """Return seconds since 1970 UTC, which may jump: for timestamps and token expiry."""


class SystemClock:
    """The clock of the machine."""

    __slots__ = ()

    def monotonic(self) -> float:
        """Return the machine's monotonic seconds."""
        return time.monotonic()

    def time(self) -> float:
        """Return the machine's seconds since 1970 UTC."""
        return time.time()
