"""A circuit breaker: after some failures in a row nobody waits for what will fail anyway."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

__all__ = ["Breaker"]

THRESHOLD: Final = 3
"""Failures in a row after which questions are refused without being asked."""

FIRST_DELAY: Final = 0.25
LAST_DELAY: Final = 10.0
"""Seconds, doubled from one failure to the next, until one question is let through again."""


class Breaker:
    """Counts failures in a row and says when the next attempt may be made.

    Args:
        now: Monotonic seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._failures = 0
        self._rounds = 0
        self._failed_at = float("-inf")
        self._until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether questions fail; also while one is let through to see if it is over."""
        return self._failures >= THRESHOLD

    @property
    def is_refusing(self) -> bool:
        """Whether a question is to be refused at once."""
        return self.is_open and self.wait() > 0.0

    def wait(self) -> float:
        """Return the seconds until something that can wait should be tried."""
        return max(0.0, self._until - self._now())

    def failed(self, began: float) -> None:
        """Note a failure; each further one lengthens the pause, with jitter.

        Args:
            began: When the question was asked. Of questions that were under way together only the
                first to fail lengthens the pause.
        """
        self._failures += 1
        if began < self._failed_at:
            return
        self._failed_at = self._now()
        delay = min(LAST_DELAY, FIRST_DELAY * 2.0 ** min(self._rounds, 16))
        self._rounds += 1
        self._until = self._failed_at + delay * random.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        """Note an answer: everything is as if nothing had happened."""
        self._failures = self._rounds = 0
        self._until = 0.0
