"""A clock that tests turn by hand."""

from __future__ import annotations


class FakeClock:
    """A :class:`falcon_fast.clock.Clock` that stands still until it is advanced.

    Args:
        start: Seconds since 1970 UTC at which it starts; the monotonic reading starts at 1000.
    """

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._time = start
        self._monotonic = 1_000.0

    def monotonic(self) -> float:
        return self._monotonic

    def time(self) -> float:
        return self._time

    def advance(self, seconds: float) -> None:
        """Let time pass on both readings.

        Raises:
            ValueError: ``seconds`` is negative; a monotonic clock never goes back.
        """
        if seconds < 0:
            raise ValueError("time does not go back")
        self._time += seconds
        self._monotonic += seconds

    def step(self, seconds: float) -> None:
        """Move the wall clock alone, forward or back, as when the machine's time is set."""
        self._time += seconds
