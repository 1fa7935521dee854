"""Time: the port through which every part asks for it, so that tests can turn the clock."""

from __future__ import annotations

import functools
import time
from typing import Final, Protocol

__all__ = ["Clock", "SystemClock", "rfc3339"]

_MICROSECONDS: Final = 1_000_000
_YEAR_10000: Final = 253_402_300_800
"""Seconds from 1970 to the year 10000; RFC 3339 has four digits for the year."""


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


def rfc3339(unix: float) -> str:
    """Format a time as RFC 3339 in UTC with microseconds: ``2026-01-02T03:04:05.123456Z``.

    Args:
        unix: Seconds since 1970 UTC, before the year 10000.

    Returns:
        27 ASCII characters, so that sorting the strings sorts the times.

    Raises:
        ValueError: The time is before 1970, after 9999, or not a number.
    """
    if not 0.0 <= unix < _YEAR_10000:
        raise ValueError("time is outside the years 1970 to 9999")
    seconds, microseconds = divmod(round(unix * _MICROSECONDS), _MICROSECONDS)
    return f"{_to_the_second(seconds)}.{microseconds:06d}Z"


# Several frames a millisecond share their second, and the calendar is the costly part. Many
# entries, because a listing shows when each of thousands of connections was made.
@functools.lru_cache(maxsize=1024)
def _to_the_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
