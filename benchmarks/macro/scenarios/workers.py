"""Workers: what a delivery costs in a node of two workers, next to processes with half the load.

The machine has no second core to spare for the server, so nothing is said about how much two
workers send at a time. What is said is what it costs them, in CPU, to do what two processes would
do: each worker has the load that the one process has. Two that need no more for a delivery carry
twice its load on two cores, as long as the node process between them keeps up; how many workers it
keeps up with follows from its own share. Nobody is pinned: three processes that take turns on one
CPU at every message would show what their caches cost each other, and that only.

A machine with two CPUs is full of two workers, a node process and a generator, and a delivery costs
anybody more there than on a machine that is half empty. So there is a third contender: two servers
that do not know each other, with half the rooms each, at the same time, and with a generator each.
What two workers need more than these is, but for the generators, what sharing costs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

from benchmarks.macro.contenders import Contender, Layout, start_falcon
from benchmarks.macro.errors import BenchmarkError
from benchmarks.macro.figures import Json, Spread, rounded
from benchmarks.macro.machine import Cores
from benchmarks.macro.open_loop import Window, connect, measure
from benchmarks.macro.report import Outcome, Table, Target
from benchmarks.macro.run import Run, enter_present, turns

QUESTION = "server CPU per delivery of two workers, next to processes with half the load"

#: Many deliveries a message, and few.
LAYOUTS = (Layout(10, 1000), Layout(400, 10))
QUICK = (Layout(4, 10),)
#: Deliveries a second for each process with connections: a tenth of what it carries, and a third.
RATES, QUICK_RATES = (15_000.0, 45_000.0), (200.0,)
WORKERS = 2
ONE, APART, MANY = "one process", "two apart", "two workers"
#: Deliveries within this time, or the load is too much to compare what it costs.
LIMIT_MS = 250.0
#: The load of two workers in terms of one's.
AHEAD = 1.8


@dataclass(slots=True)
class Samples:
    """What the repetitions of one contender, layout and load gave, in µs of CPU for a delivery."""

    serving: list[float] = field(default_factory=list)  # of the processes with connections
    node: list[float] = field(default_factory=list)  # of the node process
    p99: list[float] = field(default_factory=list)  # ms

    def add(self, windows: Sequence[Window]) -> str:
        """Add what was seen at one time; returns it as a text.

        Raises:
            BenchmarkError: Not every delivery came, or they came too late.
        """
        total = sum(window.deliveries.total for window in windows)
        lost = sum(window.lost for window in windows)
        p99 = max(window.p99 for window in windows)
        if lost or p99 > LIMIT_MS:
            raise BenchmarkError(f"{lost} deliveries did not come, the p99 is {p99:.0f} ms")
        # In a node of workers the process that was started first has no connections.
        idle = [window.cpu_each[0] for window in windows if len(window.cpu_each) > 1]
        serving = sum(window.cpu for window in windows) - sum(idle)
        self.serving.append(serving * 1e6 / total)
        self.node.append(sum(idle) * 1e6 / total)
        self.p99.append(p99)
        return f"{self.serving[-1]:.2f} + {self.node[-1]:.2f} µs, p99 {p99:.1f} ms"


Key = tuple[str, str, float]
"""Contender, layout, deliveries a second for each process."""


def measured(servers: Sequence[Contender], rate: float, seconds: float) -> list[Window]:
    """Return a window of each server, all taken at the same time, with this rate in all."""

    def window(who: Contender) -> Window:
        # What the other one of two does is no disturbance.
        enough = None if len(servers) == 1 else lambda _: True
        return measure(who, rate=rate / len(servers), seconds=seconds, enough=enough)

    with ThreadPoolExecutor(len(servers)) as pool:
        return list(pool.map(window, servers))


@contextmanager
def apart(run: Run, layout: Layout) -> Iterator[list[Contender]]:
    """Start as many servers as there are workers, each with its part of the rooms."""
    if layout.rooms % WORKERS:
        raise BenchmarkError(f"{layout.rooms} rooms cannot be shared by {WORKERS} servers")
    part = Layout(layout.rooms // WORKERS, layout.members)
    with ExitStack() as stack:
        yield [stack.enter_context(start_falcon(run, part, APART)) for _ in range(WORKERS)]


@contextmanager
def alone(
    run: Run, layout: Layout, name: str, settings: Mapping[str, str]
) -> Iterator[list[Contender]]:
    """Start one server for all rooms."""
    with start_falcon(run, layout, name, settings=settings) as who:
        yield [who]


def run(run: Run) -> Outcome:
    """Measure all in turns, with few large rooms and with many small ones."""
    repeats = run.pick(run.repeats, 5, 1)
    seconds = run.pick(None, 2.0, 0.5)
    layouts = QUICK if run.quick else LAYOUTS
    if run.layout is not None:
        layouts = (Layout(*run.layout),)
    rates = QUICK_RATES if run.quick else RATES
    everywhere = run.cores.server | run.cores.client
    run = replace(run, cores=Cores(everywhere, everywhere))
    outcome = Outcome(
        {
            "workers": WORKERS,
            "layouts": [layout.text() for layout in layouts],
            "deliveries_per_second_and_process": list(rates),
            "repeats": repeats,
            "seconds_of_a_window": seconds,
            "loop": run.loop,
        }
    )
    samples: defaultdict[Key, Samples] = defaultdict(Samples)
    for layout in layouts:
        starts = [
            (ONE, partial(alone, run, layout, ONE, {})),
            (APART, partial(apart, run, layout)),
            (MANY, partial(alone, run, layout, MANY, {"FALCON_WORKERS": str(WORKERS)})),
        ]
        with ExitStack() as stack:
            present = enter_present(stack, outcome, starts)
            for name, servers in list(present.items()):
                outcome.versions |= servers[0].server.versions
                run.say(f"workers {layout.text()}: {name} connects")
                pause = run.pick(None, 0.5, 0.2)
                present[name] = [connect(who, seconds=pause) for who in servers]
            for rate in rates:
                run.say(f"workers {layout.text()}, {rate:.0f} a process: {repeats} repetitions")
                for _, name in turns(list(present), repeats):
                    load = rate / layout.members * (1 if name == ONE else WORKERS)
                    windows = measured(present[name], load, seconds)
                    run.say(f"  {name}: {samples[name, layout.text(), rate].add(windows)}")
    summarise(outcome, layouts, rates, samples)
    return outcome


def summarise(
    outcome: Outcome,
    layouts: Sequence[Layout],
    rates: Sequence[float],
    samples: Mapping[Key, Samples],
) -> None:
    """Turn the samples into figures, a table and targets."""
    figures: dict[str, Json] = {}
    rows: list[list[str]] = []
    for layout, rate in product(layouts, rates):
        name = layout.text()
        one, two, many = (samples[who, name, rate] for who in (ONE, APART, MANY))
        # Each process of either has the same load: what counts is what a delivery costs.
        load = WORKERS * Spread.of_ratios(two.serving, many.serving).median
        to_one = WORKERS * Spread.of_ratios(one.serving, many.serving).median
        share = Spread.of_ratios(many.node, many.serving).median
        figures[f"{name}, {rate:.0f} a second and process"] = {
            "one_process_us_per_delivery": Spread.of(one.serving).json(),
            "two_apart_us_per_delivery": Spread.of(two.serving).json(),
            "workers_us_per_delivery": Spread.of(many.serving).json(),
            "node_process_us_per_delivery": Spread.of(many.node).json(),
            "load_of_two_workers_to_one_of_two_apart": rounded(load),
            "load_of_two_workers_to_one_process": rounded(to_one),
            "workers_one_node_process_serves": rounded(1 / share),
            "p99_ms": {
                who: Spread.of(samples[who, name, rate].p99).json() for who in (ONE, APART, MANY)
            },
        }
        if rate == rates[-1]:
            outcome.targets.append(
                Target(
                    f"load of two workers to that of one process apart, {name}, {rate:,.0f} each",
                    load,
                    AHEAD,
                    at_most=False,
                )
            )
        p99s = " / ".join(f"{Spread.of(kind.p99).median:.1f}" for kind in (one, two, many))
        rows.append(
            [
                name,
                f"{rate:,.0f}",
                Spread.of(one.serving).text(),
                Spread.of(two.serving).text(),
                Spread.of(many.serving).text(),
                Spread.of(many.node).text(),
                f"{load:.2f}",
                f"{to_one:.2f}",
                f"{1 / share:.0f}",
                p99s,
            ]
        )
    outcome.figures["layouts"] = figures
    outcome.tables.append(
        Table(
            "Two workers, and processes with half the load: median (quartiles)",
            [
                "rooms x members",
                "a second each",
                "one: µs CPU/delivery",
                "two apart",
                "two workers",
                "node process",
                "load, to one of two apart",
                "to one alone",
                "workers a node process serves",
                "p99 ms, one / apart / workers",
            ],
            rows,
        )
    )
