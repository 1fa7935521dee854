"""What a scenario hands back, printed as tables and kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.macro.figures import Json, rounded


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a title."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Return the table with aligned columns: the first to the left, the others right."""
        lines = [self.headers, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.headers))]

        def aligned(line: Sequence[str]) -> str:
            first, *rest = (
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            return "  ".join([first, *rest]).rstrip()

        rule = "  ".join("-" * width for width in widths)
        return "\n".join(
            [self.title, aligned(self.headers), rule, *(aligned(row) for row in self.rows)]
        )


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that was promised, and what came of it."""

    name: str
    value: float
    limit: float
    at_most: bool = True

    @property
    def met(self) -> bool:
        """Whether the promise was kept."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def text(self) -> str:
        """Return one line for the reader."""
        relation = "at most" if self.at_most else "at least"
        verdict = "met" if self.met else "MISSED"
        return f"{verdict}: {self.name}: {self.value:.4g} ({relation} {self.limit:g})"

    def json(self) -> dict[str, Json]:
        """Return the form kept in a result file."""
        return {
            "name": self.name,
            "value": rounded(self.value),
            "at_most" if self.at_most else "at_least": self.limit,
            "met": self.met,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a scenario has to say about each contender in a few numbers, for the table of peers.

    Attributes:
        title: of the comparison; results of one title belong together.
        columns: headings by key.
        values: numbers by contender and key.
    """

    title: str
    columns: dict[str, str]
    values: dict[str, dict[str, float]]


@dataclass(slots=True)
class Outcome:
    """Everything one run of a scenario found out."""

    parameters: dict[str, Json]
    figures: dict[str, Json] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    versions: dict[str, Json] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    comparison: Comparison | None = None

    def text(self) -> str:
        """Return the report for the terminal."""
        parts = [table.text() for table in self.tables]
        notes = [target.text() for target in self.targets]
        notes += [f"left out: {reason}" for reason in self.skipped]
        return "\n\n".join([*parts, "\n".join(notes)] if notes else parts)

    def json(self) -> dict[str, Json]:
        """Return what goes into the result file."""
        return {
            "parameters": self.parameters,
            "versions": dict(sorted(self.versions.items())),
            "figures": self.figures,
            "targets": [target.json() for target in self.targets],
            "skipped": self.skipped,
        }


def save(path: Path, document: dict[str, Json]) -> None:
    """Write a result file, with its keys in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
