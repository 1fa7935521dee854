"""Echo: small messages that come back, closed loop; what a message costs on the way in and out."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

from benchmarks.macro.child import Child
from benchmarks.macro.contenders import PEERS, PLAIN, Peer, environment
from benchmarks.macro.control import LOOPS, LoopName
from benchmarks.macro.errors import BenchmarkError
from benchmarks.macro.figures import Json, Spread
from benchmarks.macro.load import Load
from benchmarks.macro.machine import free_port
from benchmarks.macro.report import Comparison, Outcome, Table, Target
from benchmarks.macro.run import Run, enter_present, turns
from benchmarks.macro.servers.real import hosted

QUESTION = "messages echoed per second of server CPU; 64 bytes, 256 connections, closed loop"

#: Payload of a message, in bytes.
SIZE = 64
#: Messages a connection keeps on the way.
WINDOW = 1
SUBJECT = "falcon_fast"
BASELINE = "picows"
#: Least ratio to picows on the same loop.
LIMIT = 1.2


@dataclass(frozen=True, slots=True)
class Contender:
    """An echo server with its connections."""

    server: Child
    load: Load
    pauses: bool = False


@dataclass(slots=True)
class Samples:
    """What the repetitions of one contender gave."""

    rate: list[float] = field(default_factory=list)  # messages a CPU second of the server
    busy: list[float] = field(default_factory=list)  # share of the time the server was on its CPU


@contextmanager
def falcon(run: Run, loop: LoopName) -> Iterator[Child]:
    """Start the project's own echo server."""
    port = free_port()
    arguments = ["--echo", "--port", str(port)]
    if loop == "uvloop":
        arguments.append("--uvloop")
    with hosted(
        SUBJECT, "falcon_fast.testing", arguments, port=port, cores=run.cores.server
    ) as child:
        yield child


def peer(run: Run, name: str, module: str, loop: LoopName) -> Child:
    """Start an echo server of another maker."""
    command = [sys.executable, "-m", f"benchmarks.macro.peers.{module}", "--loop", loop]
    return run.server(name, command)


def other(run: Run, peer: Peer) -> Child:
    """Start one of the servers that only the table of peers compares with."""
    command = peer.command(run)
    return Child(peer.name, command, cores=run.cores.server, environment=environment())


@contextmanager
def connected(
    run: Run,
    start: Callable[[], AbstractContextManager[Child]],
    connections: int,
    pauses: bool = False,
) -> Iterator[Contender]:
    """Add the connections to a server."""
    with start() as server, Load(server.port, cores=run.cores.client) as load:
        load.connect(connections)
        yield Contender(server, load, pauses)


def sample(who: Contender, *, seconds: float, text: bool, into: Samples) -> None:
    """Measure one contender once.

    Raises:
        BenchmarkError: An echo was lost or had another size.
    """
    if who.pauses:  # and would take the CPU from those whose turn it is
        who.server.resume()
    before = who.server.cpu_seconds()
    done = who.load.echo(size=SIZE, window=WINDOW, seconds=seconds, text=text)
    cpu = who.server.cpu_seconds() - before
    if who.pauses:
        who.server.pause()
    if done.missing or done.wrong:
        raise BenchmarkError(f"{who.server.name}: {done.missing} lost, {done.wrong} wrong echoes")
    into.rate.append(done.messages / cpu)
    into.busy.append(cpu / done.seconds)


def run(run: Run) -> Outcome:
    """Measure every contender that is present, on both loops."""
    connections = run.pick(run.connections, 256, 16)
    repeats = run.pick(run.repeats, 7, 2)
    seconds = run.pick(None, 3.0, 0.2)
    outcome = Outcome(
        {
            "connections": connections,
            "bytes": SIZE,
            "window": WINDOW,
            "seconds": seconds,
            "repeats": repeats,
            "loop": run.loop,
        }
    )
    starts: list[tuple[str, Callable[[], AbstractContextManager[Contender]]]] = []
    for loop in LOOPS:
        servers: dict[str, Callable[[], AbstractContextManager[Child]]] = {
            SUBJECT: partial(falcon, run, loop),
            BASELINE: partial(peer, run, BASELINE, "picows_loop", loop),
            "websockets": partial(peer, run, "websockets", "websockets_broadcast", loop),
        }
        for name, start in servers.items():
            starts.append((f"{name}, {loop}", partial(connected, run, start, connections)))
    both = {BASELINE, "websockets"}
    for which in PEERS:
        wanted = run.peers is None or which.name in run.peers
        if wanted and which.name not in both and which.dialect == PLAIN:
            begin = partial(connected, run, partial(other, run, which), connections, which.pauses)
            starts.append((which.name, begin))
    samples: defaultdict[tuple[str, bool], Samples] = defaultdict(Samples)
    with ExitStack() as stack:
        optional = [which.name for which in PEERS]
        present = enter_present(stack, outcome, starts, optional=optional)
        for who in present.values():
            outcome.versions |= who.server.versions
            sample(who, seconds=min(seconds, 0.5), text=False, into=Samples())  # warm-up
        for text in (False, True):
            run.say(f"echo: {'text' if text else 'binary'}, {repeats} repetitions")
            for _, name in turns(list(present), repeats):
                sample(present[name], seconds=seconds, text=text, into=samples[name, text])
    summarise(outcome, list(present), samples)
    return outcome


def other_loop(outcome: Outcome) -> str:
    """Return the loop that is not the run's."""
    return next(loop for loop in LOOPS if loop != outcome.parameters["loop"])


def summarise(outcome: Outcome, names: list[str], samples: dict[tuple[str, bool], Samples]) -> None:
    """Turn the samples into figures, ratios, a table and targets."""
    figures: dict[str, Json] = {}
    ratios: dict[str, Json] = {}
    rows: list[list[str]] = []
    for name in names:
        for text in (False, True):
            kind = "text" if text else "binary"
            got = samples[name, text]
            baseline = f"{BASELINE}, {name.rpartition(', ')[2]}"
            rate, busy = Spread.of(got.rate), Spread.of(got.busy)
            figures[f"{name}, {kind}"] = {
                "messages_per_cpu_second": rate.json(),
                "server_busy": busy.json()["median"],
            }
            shown = "-"
            if baseline in names:
                ratio = Spread.of_ratios(got.rate, samples[baseline, text].rate)
                ratios[f"{name}, {kind}"] = ratio.json()
                shown = ratio.text(".2f")
                if name.startswith(SUBJECT):
                    title = f"ratio to {baseline}, {kind}"
                    outcome.targets.append(Target(title, ratio.median, LIMIT, at_most=False))
            rows.append([name, kind, rate.text(",.0f"), shown, f"{busy.median:.0%}"])
    outcome.comparison = Comparison(
        "Echo of 64 bytes, 256 connections",
        {"rate": "echoes/CPU second"},
        {
            name.removesuffix(f", {outcome.parameters['loop']}"): {
                "rate": Spread.of(samples[name, False].rate).median
            }
            for name in names
            if not name.endswith(f", {other_loop(outcome)}")
        },
    )
    outcome.figures |= {"echoes": figures, "ratios_to_picows": ratios}
    outcome.tables.append(
        Table(
            "Echo: median (quartiles)",
            ["", "kind", "messages/CPU second", "ratio to picows", "server busy"],
            rows,
        )
    )
