"""Fan-out: what one delivery costs, next to a C loop over send(2) in the same run."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

from benchmarks.macro.build import program
from benchmarks.macro.child import Child
from benchmarks.macro.errors import BenchmarkError
from benchmarks.macro.figures import Json, Spread
from benchmarks.macro.load import Load
from benchmarks.macro.machine import softirq_seconds
from benchmarks.macro.report import Outcome, Table, Target
from benchmarks.macro.run import Run, enter_present, turns

QUESTION = "server CPU per delivery of a short message to one large room; 1, 16, 64 in a tick"

#: Payload of a message, in bytes.
SIZE = 100
#: Messages in one turn of the loop, and how often a sample repeats the fan-out for resolution.
ROUNDS = {1: 5, 16: 2, 64: 1}
ROOFLINE = "C send loop"
#: The same program a second time: the two ratios differ by noise only, and show how much there is.
AGAIN = "C send loop again"
SUBJECT = "falcon_fast core"
#: Largest ratio to the roofline, by messages in a tick.
LIMITS = {1: 1.15, 16: 1.3}


@dataclass(frozen=True, slots=True)
class Contender:
    """A server with all its members connected."""

    server: Child
    load: Load


@dataclass(slots=True)
class Samples:
    """What the repetitions of one contender and one batch size gave."""

    cpu: list[float] = field(default_factory=list)  # µs a delivery
    last: list[float] = field(default_factory=list)  # ms from command to the last client
    batch: list[float] = field(default_factory=list)  # messages a read of the client


@contextmanager
def contender(run: Run, name: str, command: list[str], members: int) -> Iterator[Contender]:
    """Start a server and connect the room."""
    with (
        run.server(name, command) as server,
        Load(server.port, cores=run.cores.client) as load,
    ):
        load.connect(members)
        yield Contender(server, load)


def sample(who: Contender, *, messages: int, members: int, rounds: int, into: Samples) -> None:
    """Measure one contender once: all members get the messages, `rounds` times in a row.

    Raises:
        BenchmarkError: Bytes came that are not the messages, or some did not come.
    """
    cpu = 0.0
    for _ in range(rounds):
        who.load.reset()
        received = who.load.expect(members * messages, timeout=120)
        before, started = who.server.cpu_seconds(), time.monotonic_ns()
        who.server.ask(f"fanout messages={messages} bytes={SIZE}", timeout=120)
        got = received()
        # What the server does once all has arrived (its own tidying up) is part of the price.
        cpu += who.server.cpu_seconds() - before
        if got.bytes != members * messages * SIZE or got.lost:
            raise BenchmarkError(f"{who.server.name}: not every member got exactly the messages")
        into.last.append((got.last_ns - started) * 1e-6)
        into.batch.append(got.frames / got.reads)
    into.cpu.append(cpu * 1e6 / (members * messages * rounds))


def run(run: Run) -> Outcome:
    """Measure every contender that is present."""
    members = run.pick(run.connections, 10_000, 50)
    repeats = run.pick(run.repeats, 7, 3)
    outcome = Outcome(
        {
            "members": members,
            "bytes": SIZE,
            "repeats": repeats,
            "loop": run.loop,
            "rounds": {str(messages): rounds for messages, rounds in ROUNDS.items()},
        }
    )
    commands = {
        ROOFLINE: [str(program("sendloop"))],
        SUBJECT: run.module("servers.fanout"),
        AGAIN: [str(program("sendloop"))],
        "picows, send in a loop": run.module("peers.picows_loop"),
        "websockets broadcast": run.module("peers.websockets_broadcast", "--no-keepalive"),
    }
    starts: list[tuple[str, Callable[[], AbstractContextManager[Contender]]]] = [
        (name, partial(contender, run, name, command, members))
        for name, command in commands.items()
    ]
    samples: defaultdict[tuple[str, int], Samples] = defaultdict(Samples)
    with ExitStack() as stack:
        present = enter_present(stack, outcome, starts)
        for who in present.values():
            outcome.versions |= who.server.versions
        for messages in ROUNDS:  # warm-up: buffers grown, code paged in
            for who in present.values():
                sample(who, messages=messages, members=members, rounds=1, into=Samples())
        softirq = softirq_seconds()
        for messages, rounds in ROUNDS.items():
            run.say(f"fanout: {messages} in a tick, {repeats} repetitions")
            for _, name in turns(list(present), repeats):
                sample(
                    present[name],
                    messages=messages,
                    members=members,
                    rounds=rounds,
                    into=samples[name, messages],
                )
        softirq = softirq_seconds() - softirq
    summarise(outcome, list(present), samples)
    outcome.figures["ksoftirqd_cpu_seconds"] = round(softirq, 3)
    return outcome


def summarise(outcome: Outcome, names: list[str], samples: dict[tuple[str, int], Samples]) -> None:
    """Turn the samples into figures, ratios, a table and targets."""
    figures: dict[str, Json] = {}
    ratios: dict[str, Json] = {}
    rows: list[list[str]] = []
    for name in names:
        for messages in ROUNDS:
            got = samples[name, messages]
            loops = zip(samples[ROOFLINE, messages].cpu, samples[AGAIN, messages].cpu, strict=True)
            ratio = Spread.of_ratios(got.cpu, [(one + other) / 2 for one, other in loops])
            cpu, last, batch = Spread.of(got.cpu), Spread.of(got.last), Spread.of(got.batch)
            key = f"{name}, {messages}"
            ratios[key] = ratio.json()
            figures[key] = {
                "cpu_us_per_delivery": cpu.json(),
                "last_client_ms": last.json(),
                "messages_per_read": batch.json()["median"],
            }
            rows.append(
                [name, str(messages), cpu.text(), ratio.text(".3f"), last.text(), batch.text(".1f")]
            )
            if name == SUBJECT and messages in LIMITS:
                outcome.targets.append(
                    Target(
                        f"ratio to the C send loop, {messages} in a tick",
                        ratio.median,
                        LIMITS[messages],
                    )
                )
    outcome.figures |= {"deliveries": figures, "ratios_to_send_loop": ratios}
    outcome.tables.append(
        Table(
            "Fan-out: median (quartiles)",
            ["", "in a tick", "µs CPU/delivery", "ratio to C", "ms to last client", "msgs/read"],
            rows,
        )
    )
