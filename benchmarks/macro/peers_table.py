"""The table of peers: comparisons of several runs put together, as JSON and as Markdown.

More contenders than fit into one run are measured in pieces, and the server takes part in each. So
a peer's numbers are kept with the server's numbers of the very same run, and the ratio in the table
is always one of two that were up at the same time.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TypedDict

from benchmarks.macro.contenders import NAMES, ROOFLINE, SUBJECT
from benchmarks.macro.figures import Json, rounded
from benchmarks.macro.report import Comparison, Outcome

Numbers = dict[str, float]


class Row(TypedDict):
    """A contender's numbers, and the server's of the same run."""

    values: Numbers
    beside: Numbers


class Part(TypedDict):
    """One comparison."""

    columns: dict[str, str]
    parameters: dict[str, Json]
    rows: dict[str, Row]
    targets: dict[str, Json]
    left_out: list[str]


class Document(TypedDict):
    """The whole file."""

    machine: dict[str, Json]
    versions: dict[str, Json]
    parts: dict[str, Part]


def merged(path: Path, outcome: Outcome, machine: dict[str, Json]) -> Document:
    """Return the table with the outcome of a run in it; its own rows replace older ones."""
    document: Document = {"machine": machine, "versions": {}, "parts": {}}
    if path.exists():
        document = json.loads(path.read_text())
        document["machine"] = machine
    document["versions"] = dict(sorted({**document["versions"], **outcome.versions}.items()))
    comparison = outcome.comparison
    if comparison is None or SUBJECT not in comparison.values:
        return document
    empty: Part = {"columns": {}, "parameters": {}, "rows": {}, "targets": {}, "left_out": []}
    part = document["parts"].setdefault(comparison.title, empty)
    part["columns"] = comparison.columns
    part["parameters"] = outcome.parameters
    for name, row in rows_of(comparison).items():
        # The server's own row is its median over all runs, and so needs all of them.
        part["rows"][name] = row
    for target in outcome.targets:
        part["targets"][target.name] = target.json()
    known = set(comparison.values)
    kept = [line for line in part["left_out"] if line.partition(":")[0] not in known]
    part["left_out"] = sorted({*kept, *outcome.skipped})
    return document


def rows_of(comparison: Comparison) -> dict[str, Row]:
    """Return the rows of one run."""
    beside = _rounded(comparison.values[SUBJECT])
    return {
        name: {"values": _rounded(values), "beside": beside}
        for name, values in comparison.values.items()
    }


def markdown(document: Document) -> str:
    """Return the table as Markdown: numbers, and in brackets their ratio to the server's."""
    lines: list[str] = []
    for title, part in document["parts"].items():
        columns = part["columns"]
        lines += [f"### {title}", ""]
        lines += ["| | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
        for name in (ROOFLINE, SUBJECT, *NAMES):
            row = part["rows"].get(name)
            if row is None:
                continue
            cells = [_cell(part, name, row, key) for key in columns]
            shown = f"**{name}**" if name == SUBJECT else name
            lines.append(f"| {shown} | " + " | ".join(cells) + " |")
        lines += ["", *(f"Left out: {line.splitlines()[0]}." for line in part["left_out"])]
        if part["left_out"]:
            lines.append("")
    return "\n".join(lines)


def _cell(part: Part, name: str, row: Row, key: str) -> str:
    if name == SUBJECT:
        others = [r["beside"][key] for n, r in part["rows"].items() if n not in (SUBJECT, ROOFLINE)]
        return _number(statistics.median(others or [row["values"][key]]))
    value, own = row["values"].get(key), row["beside"].get(key)
    if value is None:
        return "-"
    if not own or not value:
        return _number(value)
    ratio = value / own
    shown = f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2g}"
    return f"{_number(value)} ({shown} ×)"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == round(value) else f"{value:.3g}"


def _rounded(values: Numbers) -> Numbers:
    return {key: rounded(value) for key, value in values.items()}
