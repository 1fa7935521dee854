"""Broadcast: single messages to one large room, each alone in its turn of the loop."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from dataclasses import replace

from benchmarks.macro.contenders import NAMES, ROOFLINE, SUBJECT, Contender, Layout, starts
from benchmarks.macro.figures import Json, Spread
from benchmarks.macro.load import MAX_CONNECTIONS
from benchmarks.macro.open_loop import Series, calibrate, measure
from benchmarks.macro.report import Comparison, Outcome, Table, Target
from benchmarks.macro.run import Run, enter_present, turns

QUESTION = "one message at a time to all of 1 000, 10 000, 15 000: CPU, time to the last client"

LEVELS = (1_000, 10_000, 15_000)
#: Deliveries a second that are asked for: so few that a message is done before the next is due, and
#: so many that what a server does by itself (pings, looks at its database) is a small part; that is
#: what `idle` is about.
DELIVERIES = 60_000
#: Largest ratio to the C loop, at the level of ten thousand.
LIMIT = 1.05
LIMIT_LEVEL = 10_000


def run(run: Run) -> Outcome:
    """Measure every contender at each level."""
    levels: tuple[int, ...] = LEVELS if not run.quick else (20,)
    if run.connections is not None:
        levels = (run.connections,)
    if max(levels) > MAX_CONNECTIONS:
        levels = tuple(level for level in levels if level <= MAX_CONNECTIONS)
    repeats = run.pick(run.repeats, 3, 1)
    seconds, settle = run.pick(None, 3.0, 0.3), run.pick(None, 0.5, 0.1)
    outcome = Outcome(
        {"levels": list(levels), "repeats": repeats, "seconds": seconds, "loop": run.loop}
    )
    samples: defaultdict[tuple[str, int], Series] = defaultdict(Series)
    with ExitStack() as stack:
        present = enter_present(
            stack, outcome, starts(run, Layout(1, max(levels)), run.peers), optional=NAMES
        )
        for who in present.values():
            outcome.versions |= who.server.versions
        opened = 0
        for level in levels:
            run.say(f"broadcast: to {level}, {repeats} repetitions")
            rate = max(1.0, min(60.0, DELIVERIES / level))
            ready: dict[str, Contender] = {}
            for name, who in present.items():
                with who.turn():
                    who.load.connect(level - opened, timeout=300)
                    who.load.wait_quiet(seconds=settle)
                fresh = replace(who, layout=Layout(1, level), pad=0)
                ready[name] = calibrate(fresh, seconds=settle)
            opened = level
            for _, name in turns(list(ready), repeats):
                window = measure(ready[name], rate=rate, seconds=seconds, patience=10.0)
                samples[name, level].windows.append(window)
    summarise(outcome, list(present), levels, samples)
    return outcome


def summarise(
    outcome: Outcome,
    names: list[str],
    levels: tuple[int, ...],
    samples: dict[tuple[str, int], Series],
) -> None:
    """Turn the windows into figures, a table and the target."""
    figures: dict[str, Json] = {}
    rows: list[list[str]] = []
    values: dict[str, dict[str, float]] = {}
    for name in names:
        per_level: dict[str, Json] = {}
        for level in levels:
            got = samples[name, level]
            base, own = samples[ROOFLINE, level].spread("cpu_us"), got.spread("cpu_us")
            ratio = Spread.of_ratios(
                [window.cpu_us for window in got.windows],
                [window.cpu_us for window in samples[ROOFLINE, level].windows],
            )
            last = Spread.of([w.published.last.quantile(0.5) for w in got.windows])
            lost = sum(window.lost for window in got.windows)
            per_level[str(level)] = {
                "cpu_us_per_delivery": own.json(),
                "ratio_to_c_relay": ratio.json(),
                "p99_ms": got.spread("p99").json(),
                "last_client_ms": last.json(),
                "lost": lost,
            }
            rows.append(
                [
                    name,
                    f"{level:,}",
                    own.text(),
                    ratio.text(".2f"),
                    got.spread("p99").text(),
                    last.text(),
                    f"{lost:,}",
                ]
            )
            if name == SUBJECT and level == LIMIT_LEVEL and base.median > 0:
                title = f"CPU per delivery to the C relay's, one message to {level:,}"
                outcome.targets.append(Target(title, ratio.median, LIMIT))
        figures[name] = per_level
        top = samples[name, max(levels)]
        values[name] = {
            "cpu": top.spread("cpu_us").median,
            "last": Spread.of([w.published.last.quantile(0.5) for w in top.windows]).median,
            "lost": float(sum(window.lost for window in top.windows)),
        }
    outcome.figures["contenders"] = figures
    outcome.comparison = Comparison(
        f"One message at a time to {max(levels):,}",
        {"cpu": "µs CPU/delivery", "last": "ms to the last client", "lost": "lost"},
        values,
    )
    outcome.tables.append(
        Table(
            "Isolated broadcast: median (quartiles)",
            ["", "members", "µs CPU/delivery", "ratio to C", "p99 ms", "ms to last", "lost"],
            rows,
        )
    )
