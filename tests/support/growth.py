"""How the cost of a function grows with its input, measured so that it does not flake."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

#: Between the 8 of linear and the 64 of quadratic work for :func:`growth`, far from both.
LINEAR: Final = 28.0


def growth(work: Callable[[int], object], small: int) -> float:
    """Return how many times longer an eight times larger input takes.

    The best of several runs is taken on both sides: a busy machine only ever adds time.

    Args:
        work: Does the work for an input of the given size.
        small: The smaller size; the work on it should take microseconds at least.
    """

    def best(size: int, runs: int) -> int:
        times = []
        for _ in range(runs):
            start = time.perf_counter_ns()
            work(size)
            times.append(time.perf_counter_ns() - start)
        return min(times)

    best(small, 1)
    large = best(8 * small, 3)
    return large / best(small, 7)
