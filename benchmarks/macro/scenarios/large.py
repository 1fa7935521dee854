"""Large: messages of tens of kilobytes to a room, where copying counts."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack

from benchmarks.macro.contenders import NAMES, ROOFLINE, Layout, starts
from benchmarks.macro.errors import BenchmarkError
from benchmarks.macro.figures import Json, Spread, rounded
from benchmarks.macro.open_loop import Series, connect, measure
from benchmarks.macro.report import Comparison, Outcome, Table
from benchmarks.macro.run import Run, enter_present, turns

QUESTION = "messages of 60 000 bytes to a room of 100: CPU for each MiB that is delivered"

#: Payload of a delivery, in bytes: below the 64 KiB that a message may have by default.
SIZE = 60_000
#: Messages a second.
RATE = 20.0


def run(run: Run) -> Outcome:
    """Measure every contender that is present."""
    layout = Layout(1, run.pick(run.connections, 100, 5))
    repeats = run.pick(run.repeats, 5, 1)
    seconds = run.pick(None, 2.0, 0.2)
    outcome = Outcome(
        {
            "members": layout.members,
            "bytes": SIZE,
            "messages_per_second": RATE,
            "seconds": seconds,
            "repeats": repeats,
            "loop": run.loop,
        }
    )
    samples: defaultdict[str, Series] = defaultdict(Series)
    with ExitStack() as stack:
        present = enter_present(stack, outcome, starts(run, layout, run.peers), optional=NAMES)
        for name, who in list(present.items()):
            outcome.versions |= who.server.versions
            try:
                present[name] = connect(who, size=SIZE, seconds=run.pick(None, 0.5, 0.1))
            except BenchmarkError as error:
                outcome.skipped.append(f"{name}: {error}")
                del present[name]
        run.say(f"large: {repeats} repetitions")
        for _, name in turns(list(present), repeats):
            window = measure(present[name], rate=RATE, seconds=seconds)
            samples[name].windows.append(window)
    summarise(outcome, {name: samples[name] for name in present})
    return outcome


def summarise(outcome: Outcome, samples: dict[str, Series]) -> None:
    """Turn the windows into figures and a table."""
    figures: dict[str, Json] = {}
    rows: list[list[str]] = []
    values: dict[str, dict[str, float]] = {}

    def per_mib(series: Series) -> list[float]:
        return [window.cpu * 1e6 * 2**20 / window.published.bytes for window in series.windows]

    for name, got in samples.items():
        cost = Spread.of(per_mib(got))
        ratio = Spread.of_ratios(per_mib(got), per_mib(samples[ROOFLINE]))
        lost = sum(window.lost for window in got.windows)
        p99 = got.pooled().quantile(0.99)
        figures[name] = {
            "cpu_us_per_mib": cost.json(),
            "ratio_to_c_relay": ratio.json(),
            "p99_ms": rounded(p99),
            "lost": lost,
        }
        rows.append([name, cost.text(), ratio.text(".2f"), f"{p99:.1f}", f"{lost:,}"])
        values[name] = {"cpu": cost.median, "p99": p99, "lost": float(lost)}
    outcome.figures["contenders"] = figures
    outcome.tables.append(
        Table(
            f"Messages of {SIZE:,} bytes: median (quartiles)",
            ["", "µs CPU/MiB", "ratio to C", "p99 ms", "lost"],
            rows,
        )
    )
    outcome.comparison = Comparison(
        f"{SIZE:,} bytes to {outcome.parameters['members']}",
        {"cpu": "µs CPU/MiB", "p99": "p99 ms", "lost": "lost"},
        values,
    )
