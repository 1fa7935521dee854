"""Density: resident memory of an idle connection, as the slope between two counts of them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

from benchmarks.macro.child import Child
from benchmarks.macro.errors import BenchmarkError, PeerMissing
from benchmarks.macro.figures import Json, Spread, rounded
from benchmarks.macro.load import MAX_CONNECTIONS, Load
from benchmarks.macro.machine import slab_bytes
from benchmarks.macro.report import Outcome, Table, Target
from benchmarks.macro.run import Run, turns
from benchmarks.macro.servers.real import PATH, Population, Prepared, prepared, real_server

QUESTION = "resident bytes per idle connection (slope), and their growth with --soak SECONDS"

SUBJECT = "falcon_fast, authenticated, 3 rooms"
#: Members of a group: a connection is in two groups and its personal room.
GROUP_SIZE = 50
#: Characters of a peer's token: that of a real one, since a server may keep its request.
TOKEN_LENGTH = 361
#: Largest slope, in bytes.
LIMIT = 768.0
#: Seconds between the pings of a connection during a soak: many lives in a short time.
SOAK_PING_INTERVAL = 2.0
#: Most samples of a soak kept in the result.
SOAK_SAMPLES = 20
#: Growth over a soak that counts as none, in bytes a connection: under a page for every 400.
SOAK_LIMIT = 10.0


@dataclass(frozen=True, slots=True)
class Contender:
    """A server and a generator that has not connected yet."""

    server: Child
    load: Load


@dataclass(slots=True)
class Samples:
    """What the repetitions of one contender gave."""

    slope: list[float] = field(default_factory=list)  # bytes a connection, after settling
    untrimmed: list[float] = field(default_factory=list)  # the same, memory as it was found
    slab: list[float] = field(default_factory=list)  # kernel memory a connection, both ends
    levels: dict[int, int] = field(default_factory=dict)  # connections -> resident bytes


class Users:
    """The directory of the real server: filled when first asked for, then used again."""

    def __init__(self, stack: ExitStack, users: int) -> None:
        self._stack = stack
        self._population = Population(users, group_size=min(GROUP_SIZE, users))
        self._ready: Prepared | None = None

    def ready(self) -> Prepared:
        """Return the directory; it lives as long as the stack."""
        if self._ready is None:
            self._ready = self._stack.enter_context(prepared(self._population))
        return self._ready


@contextmanager
def falcon(run: Run, users: Users, settings: dict[str, str] | None = None) -> Iterator[Contender]:
    """Start the real server."""
    ready = users.ready()
    with (
        real_server(ready, cores=run.cores.server, settings=settings) as server,
        Load(server.port, cores=run.cores.client, path=PATH, tokens=ready.tokens) as load,
    ):
        yield Contender(server, load)


@contextmanager
def peer(run: Run, name: str, module: str, *arguments: str) -> Iterator[Contender]:
    """Start a server of another maker; its clients send the same head, with a token for nobody."""
    command = run.module(f"peers.{module}", *arguments)
    with (
        run.server(name, command) as server,
        Load(server.port, cores=run.cores.client, path=PATH, tokens=["x" * TOKEN_LENGTH]) as load,
    ):
        yield Contender(server, load)


def measure(who: Contender, levels: list[int], into: Samples) -> None:
    """Connect up to each level in turn and read the memory there."""
    found: list[int] = []
    slabs: list[int] = []
    opened = 0
    for level in levels:
        who.load.connect(level - opened, timeout=300)
        opened = level
        who.load.wait_quiet(seconds=2.0)
        found.append(who.server.resident_bytes())
        who.server.ask("settle", timeout=120)
        into.levels[level] = who.server.resident_bytes()
        slabs.append(slab_bytes())
    if who.load.stats().open != opened:
        raise BenchmarkError(f"{who.server.name} closed idle connections")
    step = levels[-1] - levels[0]
    into.slope.append((into.levels[levels[-1]] - into.levels[levels[0]]) / step)
    into.untrimmed.append((found[-1] - found[0]) / step)
    into.slab.append((slabs[-1] - slabs[0]) / step)


def run(run: Run) -> Outcome:
    """Measure every contender that is present, one after the other, and soak if asked to."""
    with ExitStack() as stack:
        return compare(run, stack)


def compare(run: Run, stack: ExitStack) -> Outcome:
    """Do so with a directory that lives as long as the stack."""
    most = run.pick(run.connections, 15_000, 300)
    if most > MAX_CONNECTIONS:
        raise BenchmarkError(f"one generator process holds at most {MAX_CONNECTIONS} connections")
    levels = [most // 3, most * 2 // 3, most]
    repeats = run.pick(run.repeats, 3, 1)
    outcome = Outcome(
        {
            "levels": levels,
            "repeats": repeats,
            "loop": run.loop,
            "rooms": 3,
            "group_size": GROUP_SIZE,
        }
    )
    users = Users(stack, most)
    starts: dict[str, Callable[[], AbstractContextManager[Contender]]] = {
        SUBJECT: lambda: falcon(run, users),
        "picows, as it comes": lambda: peer(run, "picows", "picows_loop"),
        "picows, tuned": lambda: peer(run, "picows", "picows_loop", "--tuned"),
        "websockets, no compression": lambda: peer(run, "websockets", "websockets_broadcast"),
    }
    samples: defaultdict[str, Samples] = defaultdict(Samples)
    missing: set[str] = set()
    for repetition, name in turns(list(starts), repeats):
        if name in missing:
            continue
        run.say(f"density: {name}, {repetition + 1} of {repeats}")
        try:
            with starts[name]() as who:
                outcome.versions |= who.server.versions
                measure(who, levels, samples[name])
        except PeerMissing as reason:
            missing.add(name)
            outcome.skipped.append(str(reason))
    summarise(outcome, {name: samples[name] for name in starts if name not in missing})
    if run.soak > 0:
        soak(run, users, most, outcome)
    return outcome


def summarise(outcome: Outcome, samples: dict[str, Samples]) -> None:
    """Turn the samples into figures, a table and a target."""
    figures: dict[str, Json] = {}
    rows: list[list[str]] = []
    for name, got in samples.items():
        slope, untrimmed, slab = (
            Spread.of(values) for values in (got.slope, got.untrimmed, got.slab)
        )
        figures[name] = {
            "resident_bytes_per_connection": slope.json(),
            "before_trim": untrimmed.json(),
            "slab_both_ends": slab.json(),
            "resident_mib": {
                str(level): round(size / 2**20, 2) for level, size in got.levels.items()
            },
        }
        top = max(got.levels)
        rows.append(
            [
                name,
                slope.text(",.0f"),
                untrimmed.text(",.0f"),
                slab.text(",.0f"),
                f"{got.levels[top] / 2**20:.1f}",
            ]
        )
        if name == SUBJECT:
            title = "resident bytes per idle authenticated connection"
            outcome.targets.append(Target(title, slope.median, LIMIT))
    outcome.figures["density"] = figures
    outcome.tables.append(
        Table(
            "Density: bytes a connection, median (quartiles)",
            ["", "resident", "before trim", "slab, both ends", "MiB at the top"],
            rows,
        )
    )


def soak(run: Run, users: Users, connections: int, outcome: Outcome) -> None:
    """Watch the memory of idle connections that are pinged again and again."""
    settings = {
        "FALCON_PING_INTERVAL": str(SOAK_PING_INTERVAL),
        "FALCON_PING_TIMEOUT": str(SOAK_PING_INTERVAL * 30),
    }
    run.say(f"density: soak of {connections} connections, {run.soak:g} s")
    try:
        with falcon(run, users, settings) as who:
            who.load.connect(connections, timeout=300)
            who.load.wait_quiet(seconds=2.0)
            # The first round of pings may allocate once; growth is what comes after it.
            time.sleep(min(2 * SOAK_PING_INTERVAL, run.soak / 4))
            who.server.ask("settle")
            start, pings, cpu = time.monotonic(), who.load.stats().pings, who.server.cpu_seconds()
            points = [(0.0, who.server.resident_bytes())]
            while (passed := time.monotonic() - start) < run.soak:
                time.sleep(min(run.soak / SOAK_SAMPLES, run.soak - passed))
                points.append((time.monotonic() - start, who.server.resident_bytes()))
            cpu = who.server.cpu_seconds() - cpu
            stats = who.load.stats()
            who.server.ask("settle")
            growth = (who.server.resident_bytes() - points[0][1]) / connections
    except PeerMissing as reason:
        outcome.skipped.append(f"soak: {reason}")
        return
    if stats.open != connections or stats.lost:
        raise BenchmarkError("the soak lost connections")
    answered = stats.pings - pings
    outcome.figures["soak"] = {
        "connections": connections,
        "seconds": rounded(run.soak),
        "ping_interval": SOAK_PING_INTERVAL,
        "pings": answered,
        "cpu_us_per_ping": rounded(cpu * 1e6 / max(1, answered)),
        "growth_bytes_per_connection": rounded(growth),
        "resident_mib": [[round(at, 1), round(size / 2**20, 2)] for at, size in points],
    }
    outcome.tables.append(
        Table(
            f"Soak: {connections} connections, a ping each {SOAK_PING_INTERVAL:g} s",
            ["", "seconds", "pings", "MiB at first", "MiB at last", "growth, bytes a connection"],
            [
                [
                    "falcon_fast",
                    f"{run.soak:g}",
                    f"{answered:,}",
                    f"{points[0][1] / 2**20:.2f}",
                    f"{points[-1][1] / 2**20:.2f}",
                    f"{growth:.1f}",
                ]
            ],
        )
    )
    outcome.targets.append(Target("growth over the soak, bytes a connection", growth, SOAK_LIMIT))
