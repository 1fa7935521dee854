"""Workers: what a delivery costs in a node of two workers, next to one process with half the load.

The machine has no second core to spare for the server, so nothing is said about how much two
workers send at a time. What is said is what it costs them, in CPU, to do what two processes would
do: each worker has the load that the one process has. Two that need no more for a delivery carry
twice its load on two cores, as long as the node process between them keeps up; how many workers it
keeps up with follows from its own share. Nobody is pinned: three processes that take turns on one
CPU at every message would show what their caches cost each other, and that only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from benchmarks.macro.contenders import Contender, Layout, start_falcon
from benchmarks.macro.errors import BenchmarkError
from benchmarks.macro.figures import Json, Spread, rounded
from benchmarks.macro.machine import Cores
from benchmarks.macro.open_loop import Window, connect, measure
from benchmarks.macro.report import Outcome, Table, Target
from benchmarks.macro.run import Run, enter_present, turns

QUESTION = "server CPU per delivery of two workers, next to one process with half the load"

#: Many deliveries a message, and few.
LAYOUTS = (Layout(10, 1000), Layout(400, 10))
QUICK = (Layout(4, 10),)
#: Deliveries a second for each process with connections: a fraction of what it carries.
RATE, QUICK_RATE = 15_000.0, 200.0
WORKERS = 2
ONE, MANY = "one process", "two workers"
#: Deliveries within this time, or the load is too much to compare what it costs.
LIMIT_MS = 250.0
#: The load of two workers in terms of one's.
AHEAD = 1.8


@dataclass(slots=True)
class Samples:
    """What the repetitions of one contender and layout gave, in µs of CPU for a delivery."""

    serving: list[float] = field(default_factory=list)  # of the processes with connections
    node: list[float] = field(default_factory=list)  # of the node process
    p99: list[float] = field(default_factory=list)  # ms


def sample(who: Contender, rate: float, seconds: float) -> tuple[Window, float, float]:
    """Take one window.

    Returns:
        The window, and µs of CPU for a delivery: of those who hold connections, and of the node
        process; for one process the first is all of it.

    Raises:
        BenchmarkError: Not every delivery came, or they came too late.
    """
    window = measure(who, rate=rate, seconds=seconds)
    if window.lost or window.p99 > LIMIT_MS:
        raise BenchmarkError(
            f"{who.name}: {window.lost} deliveries did not come, the p99 is {window.p99:.0f} ms"
        )
    first, *workers = [spent * 1e6 / window.deliveries.total for spent in window.cpu_each]
    return (window, sum(workers), first) if workers else (window, first, 0.0)


def run(run: Run) -> Outcome:
    """Measure both in turns, with few large rooms and with many small ones."""
    repeats = run.pick(run.repeats, 5, 1)
    seconds = run.pick(None, 2.0, 0.5)
    layouts = QUICK if run.quick else LAYOUTS
    if run.layout is not None:
        layouts = (Layout(*run.layout),)
    deliveries = QUICK_RATE if run.quick else RATE
    everywhere = run.cores.server | run.cores.client
    run = replace(run, cores=Cores(everywhere, everywhere))
    outcome = Outcome(
        {
            "workers": WORKERS,
            "layouts": [layout.text() for layout in layouts],
            "deliveries_per_second_and_process": deliveries,
            "repeats": repeats,
            "seconds_of_a_window": seconds,
            "loop": run.loop,
        }
    )
    samples: defaultdict[tuple[str, str], Samples] = defaultdict(Samples)
    for layout in layouts:
        rate = deliveries / layout.members
        starts = [
            (ONE, partial(start_falcon, run, layout)),
            (MANY, partial(start_falcon, run, layout, settings={"FALCON_WORKERS": str(WORKERS)})),
        ]
        with ExitStack() as stack:
            present = enter_present(stack, outcome, starts)
            for name, who in list(present.items()):
                outcome.versions |= who.server.versions
                run.say(f"workers {layout.text()}: {name} connects")
                present[name] = connect(who, seconds=run.pick(None, 0.5, 0.2))
            run.say(f"workers {layout.text()}: {repeats} repetitions")
            for _, name in turns(list(present), repeats):
                load = rate * (WORKERS if name == MANY else 1)
                window, serving, node = sample(present[name], load, seconds)
                run.say(f"  {name}: {serving:.2f} + {node:.2f} µs, p99 {window.p99:.1f} ms")
                into = samples[name, layout.text()]
                into.serving.append(serving)
                into.node.append(node)
                into.p99.append(window.p99)
    summarise(outcome, layouts, samples)
    return outcome


def summarise(
    outcome: Outcome, layouts: Sequence[Layout], samples: dict[tuple[str, str], Samples]
) -> None:
    """Turn the samples into figures, a table and targets."""
    figures: dict[str, Json] = {}
    rows: list[list[str]] = []
    for layout in layouts:
        one, many = samples[ONE, layout.text()], samples[MANY, layout.text()]
        ratios = Spread.of_ratios(one.serving, many.serving)
        load = WORKERS * ratios.median
        share = Spread.of_ratios(many.node, many.serving)
        figures[layout.text()] = {
            "one_process_us_per_delivery": Spread.of(one.serving).json(),
            "workers_us_per_delivery": Spread.of(many.serving).json(),
            "node_process_us_per_delivery": Spread.of(many.node).json(),
            "load_of_two_workers": rounded(load),
            "workers_one_node_process_serves": rounded(1 / share.median),
            "p99_ms": {ONE: Spread.of(one.p99).json(), MANY: Spread.of(many.p99).json()},
        }
        rows.append(
            [
                layout.text(),
                Spread.of(one.serving).text(),
                Spread.of(many.serving).text(),
                Spread.of(many.node).text(),
                f"{load:.2f}",
                f"{1 / share.median:.0f}",
                f"{Spread.of(one.p99).median:.1f} / {Spread.of(many.p99).median:.1f}",
            ]
        )
        outcome.targets.append(
            Target(
                f"load of two workers to that of one process, {layout.text()}",
                load,
                AHEAD,
                at_most=False,
            )
        )
    outcome.figures["layouts"] = figures
    outcome.tables.append(
        Table(
            "Two workers, and one process with half the load: median (quartiles)",
            [
                "rooms x members",
                "one: µs CPU/delivery",
                "two workers",
                "node process",
                "load, to one",
                "workers a node process serves",
                "p99 ms, one / two",
            ],
            rows,
        )
    )
