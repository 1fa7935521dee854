"""Time: the port through which every part asks for it, so that tests can turn the clock."""

from __future__ import annotations

import time
from typing import Protocol

from falcon_fast._core import rfc3339

__all__ = ["Clock", "SystemClock", "rfc3339", "until_beat"]


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


def until_beat(now: float, every: float) -> float:
    """Return the seconds to wait until something that is done again and again is due.

    All that is done every so many seconds falls on multiples of them, and so into the same turns of
    the loop: what a process with nothing to do costs is how often it wakes, and hardly what it does
    then, for its code and its data have left the caches meanwhile.

    Args:
        now: the loop's time.
        every: seconds.

    Returns:
        Between 0.1 and 1.1 times `every`: a timer that fires a little early is not due twice.
    """
    wait = every - now % every
    return wait if wait >= every * 0.1 else wait + every
