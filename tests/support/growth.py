"""How the cost of a function grows with its input, measured so that it does not flake."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

#: Between the 8 of linear and the 64 of quadratic work for :func:`growth`, far from both.
LINEAR: Final = 28.0


ATTEMPTS: Final = 4
"""Quadratic work stays quadratic in all of them."""


def growth(work: Callable[[int], object], small: int) -> float:
    """Return how many times longer an eight times larger input takes.

    The best of several runs is taken on both sides, in the thread's own CPU time: a busy machine
    only ever adds time. What it adds to all runs of one size, as by taking the caches away, is seen
    by measuring again when the result is bad.

    Args:
        work: Does the work for an input of the given size.
        small: The smaller size; the work on it should take microseconds at least.
    """

    def best(size: int, runs: int) -> int:
        times = []
        for _ in range(runs):
            start = time.thread_time_ns()
            work(size)
            times.append(time.thread_time_ns() - start)
        return max(1, min(times))

    best(small, 1)
    found = []
    for _ in range(ATTEMPTS):
        large = best(8 * small, 3)
        found.append(large / best(small, 7))
        if found[-1] < LINEAR:
            break
    return min(found)
