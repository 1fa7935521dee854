"""Numbers and their spread: what scenarios compute and the report prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | dict[str, "Json"] | None
#: Significant digits kept in results: the spread is never finer than this.
DIGITS = 4


def rounded(value: float) -> float:
    """Round to the digits worth keeping."""
    return float(f"{value:.{DIGITS}g}")


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with its quartiles, of one quantity over the repetitions of a run."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise the samples (at least one)."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))

    @classmethod
    def of_ratios(cls, upper: Sequence[float], lower: Sequence[float]) -> Spread:
        """Summarise the ratios of samples taken side by side, pair by pair.

        Pairing removes what both saw alike (a busy neighbour, a clock step): the spread is that of
        the comparison, not that of the machine.
        """
        return cls.of([a / b for a, b in zip(upper, lower, strict=True)])

    def json(self) -> dict[str, Json]:
        """Return the form kept in a result file."""
        return {
            "median": rounded(self.median),
            "low": rounded(self.low),
            "high": rounded(self.high),
            "samples": self.samples,
        }

    def text(self, form: str = ".3g") -> str:
        """Return the form printed in a table: median, then the quartiles."""
        if self.samples == 1:
            return format(self.median, form)
        return f"{self.median:{form}} ({self.low:{form}}–{self.high:{form}})"
