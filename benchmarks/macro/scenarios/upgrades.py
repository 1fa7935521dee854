"""Upgrades: what it costs to let a client in, from the first byte to its rooms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

from benchmarks.macro.child import Child
from benchmarks.macro.figures import Json, Spread
from benchmarks.macro.load import Load
from benchmarks.macro.report import Outcome, Table, Target
from benchmarks.macro.run import Run, enter_present, turns
from benchmarks.macro.servers.real import PATH, Population, prepared, real_server

QUESTION = "authenticated upgrades per second of server CPU, in a storm and at a steady rate"

#: How clients arrive: connections started a second, 0 for as fast as their answers allow. A storm
#: keeps the server busy and is what the target is about; at a steady rate each upgrade wakes it
#: from idle and finds its caches cold.
ARRIVALS = {"storm": 0.0, "steady": 1500.0}
#: Upgrades on the way at a time.
INFLIGHT = 64
SUBJECT = "falcon_fast, rooms of their own"
#: Least authenticated upgrades a second of server CPU.
LIMIT = 6000.0


@dataclass(frozen=True, slots=True)
class Contender:
    """A server and a generator that has not connected yet."""

    server: Child
    load: Load


@dataclass(slots=True)
class Samples:
    """What the repetitions of one contender gave."""

    opened: list[float] = field(default_factory=list)  # upgrades a CPU second
    cycled: list[float] = field(default_factory=list)  # the same with the price of their end
    frames: list[float] = field(default_factory=list)  # messages an upgrade


@contextmanager
def falcon(run: Run, population: Population) -> Iterator[Contender]:
    """Start the real server with these users."""
    with (
        prepared(population) as ready,
        real_server(ready, cores=run.cores.server) as server,
        Load(server.port, cores=run.cores.client, path=PATH, tokens=ready.tokens) as load,
    ):
        yield Contender(server, load)


@contextmanager
def peer(run: Run, name: str, module: str) -> Iterator[Contender]:
    """Start a server of another maker, which authenticates nobody."""
    command = run.module(f"peers.{module}")
    with run.server(name, command) as server, Load(server.port, cores=run.cores.client) as load:
        yield Contender(server, load)


def sample(who: Contender, count: int, rate: float, into: Samples) -> None:
    """Connect `count` clients, wait until they have heard everything, and let them go again."""
    who.load.reset()
    start = who.server.cpu_seconds()
    who.load.connect(count, rate=rate, inflight=INFLIGHT)
    got = who.load.wait_quiet()
    opened = who.server.cpu_seconds()
    who.load.disconnect()
    who.load.wait_quiet()
    ended = who.server.cpu_seconds()
    into.opened.append(count / (opened - start))
    into.cycled.append(count / (ended - start))
    into.frames.append(got.frames / count)


def run(run: Run) -> Outcome:
    """Measure every contender that is present."""
    count = run.pick(run.connections, 2000, 50)
    repeats = run.pick(run.repeats, 7, 2)
    outcome = Outcome(
        {
            "connections": count,
            "arrivals_per_second": dict(ARRIVALS),
            "inflight": INFLIGHT,
            "repeats": repeats,
            "loop": run.loop,
        }
    )
    starts: list[tuple[str, Callable[[], AbstractContextManager[Contender]]]] = [
        (SUBJECT, lambda: falcon(run, Population(count, group_size=1))),
        ("falcon_fast, groups of 10", lambda: falcon(run, Population(count, group_size=10))),
        ("picows, no authentication", lambda: peer(run, "picows", "picows_loop")),
        (
            "websockets, no authentication",
            lambda: peer(run, "websockets", "websockets_broadcast"),
        ),
    ]
    samples: defaultdict[tuple[str, str], Samples] = defaultdict(Samples)
    with ExitStack() as stack:
        present = enter_present(stack, outcome, starts)
        for who in present.values():
            outcome.versions |= who.server.versions
            sample(who, min(count, 200), 0.0, Samples())  # warm-up
        for arrival, rate in ARRIVALS.items():
            run.say(f"upgrades: {arrival}, {repeats} repetitions of {count}")
            for _, name in turns(list(present), repeats):
                sample(present[name], count, rate, samples[name, arrival])
    summarise(outcome, list(present), samples)
    return outcome


def summarise(outcome: Outcome, names: list[str], samples: dict[tuple[str, str], Samples]) -> None:
    """Turn the samples into figures, a table and a target."""
    figures: dict[str, Json] = {}
    rows: list[list[str]] = []
    for name in names:
        for arrival in ARRIVALS:
            got = samples[name, arrival]
            opened, cycled, frames = (
                Spread.of(values) for values in (got.opened, got.cycled, got.frames)
            )
            figures[f"{name}, {arrival}"] = {
                "upgrades_per_cpu_second": opened.json(),
                "with_close_per_cpu_second": cycled.json(),
                "messages_per_upgrade": frames.json()["median"],
            }
            shown = [opened.text(",.0f"), cycled.text(",.0f"), f"{frames.median:.1f}"]
            rows.append([name, arrival, *shown])
            if name == SUBJECT and arrival == "storm":
                title = "authenticated upgrades per server CPU second, storm"
                outcome.targets.append(Target(title, opened.median, LIMIT, at_most=False))
    outcome.figures["upgrades"] = figures
    outcome.tables.append(
        Table(
            "Upgrades per second of server CPU: median (quartiles)",
            ["", "arrival", "to the last greeting", "and the end", "messages each"],
            rows,
        )
    )
