"""Compression: what a delivery costs deflated and plain, and what is left of its bytes."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks.macro.child import Child
from benchmarks.macro.errors import BenchmarkError
from benchmarks.macro.figures import Json, Spread
from benchmarks.macro.load import Clients, Load
from benchmarks.macro.report import Outcome, Table, Target
from benchmarks.macro.run import Run, turns

QUESTION = "server CPU per delivery of 1 KiB JSON to one room, deflated and plain; bytes"

#: Least bytes of a message, before compression; at most one of its orders more.
SIZE = 1024
#: Window that the clients of the deflated room agreed on, in bits.
WINDOW = 15
#: Messages in one turn of the loop, and how often a sample repeats that for resolution.
ROUNDS = {1: 5, 16: 1}
PLAIN = "plain"
DEFLATED = "deflated"
#: Largest ratio of the CPU of a delivery, deflated to plain, and of its bytes.
CPU_LIMIT, BYTES_LIMIT = 1.3, 0.4


@dataclass(slots=True)
class Samples:
    """What the repetitions of one contender, room and batch size gave."""

    cpu: list[float] = field(default_factory=list)  # µs a delivery
    bytes: list[float] = field(default_factory=list)  # of payload, a delivery
    compressions: list[float] = field(default_factory=list)  # a message


class Room:
    """A server with one room, and its members."""

    def __init__(self, run: Run, stack: ExitStack, name: str, arguments: list[str]) -> None:
        command = run.module("servers.fanout", *arguments)
        self.name = name
        self.server: Child = stack.enter_context(run.server(name, command))
        offer = "permessage-deflate" if name == DEFLATED else ""
        load = Load(self.server.port, cores=run.cores.client, clients=Clients(offer=offer))
        self.load = stack.enter_context(load)
        self.members = 0

    def grow(self, members: int) -> None:
        """Connect more members, up to so many."""
        self.load.connect(members - self.members)
        self.members = members

    def compressions(self) -> int:
        """Return how often the server has compressed something."""
        done = self.server.ask("count")["compressions"]
        if not isinstance(done, int):
            raise BenchmarkError(f"{self.name} does not count its compressions")
        return done

    def sample(self, messages: int, rounds: int, into: Samples) -> None:
        """Send so many messages to all members, `rounds` times in a row."""
        cpu = octets = 0.0
        already = self.compressions()
        for _ in range(rounds):
            self.load.reset()
            received = self.load.expect(self.members * messages, timeout=120)
            before = self.server.cpu_seconds()
            self.server.ask(f"fanout messages={messages} bytes={SIZE} orders=1", timeout=120)
            got = received()
            cpu += self.server.cpu_seconds() - before
            if got.lost:
                raise BenchmarkError(f"{self.name}: not every member got the messages")
            octets += got.bytes
        compressions = self.compressions() - already
        deliveries = self.members * messages * rounds
        into.cpu.append(cpu * 1e6 / deliveries)
        into.bytes.append(octets / deliveries)
        into.compressions.append(compressions / (messages * rounds))


def run(run: Run) -> Outcome:
    """Measure both, in rooms of two sizes."""
    sizes = [run.connections] if run.connections else run.pick(None, [1_000, 10_000], [50])
    repeats = run.pick(run.repeats, 7, 3)
    outcome = Outcome(
        {"members": [*sizes], "bytes": SIZE, "repeats": repeats, "loop": run.loop, "window": WINDOW}
    )
    samples: defaultdict[tuple[str, int, int], Samples] = defaultdict(Samples)
    with ExitStack() as stack:
        rooms = {
            PLAIN: Room(run, stack, PLAIN, []),
            DEFLATED: Room(run, stack, DEFLATED, ["--window", str(WINDOW)]),
        }
        for room in rooms.values():
            outcome.versions |= room.server.versions
        for members in sizes:
            for room in rooms.values():
                room.grow(members)
                room.sample(16, 1, Samples())  # warm-up
            for messages, rounds in ROUNDS.items():
                # A small room needs more of it for the same resolution.
                often = rounds * min(4, max(1, 10_000 // members)) if not run.quick else rounds
                run.say(f"deflate: {messages} in a tick to {members}, {repeats} repetitions")
                for _, name in turns(list(rooms), repeats):
                    rooms[name].sample(messages, often, samples[name, members, messages])
    summarise(outcome, sizes, samples)
    return outcome


def summarise(
    outcome: Outcome, sizes: list[int], samples: dict[tuple[str, int, int], Samples]
) -> None:
    """Turn the samples into figures, a table and targets."""
    figures: dict[str, Json] = {}
    rows: list[list[str]] = []
    for members in sizes:
        for messages in ROUNDS:
            plain = samples[PLAIN, members, messages]
            deflated = samples[DEFLATED, members, messages]
            cpu = Spread.of_ratios(deflated.cpu, plain.cpu)
            octets = Spread.of_ratios(deflated.bytes, plain.bytes)
            once = Spread.of(deflated.compressions)
            for name, got in ((PLAIN, plain), (DEFLATED, deflated)):
                figures[f"{name}, {members} members, {messages} in a tick"] = {
                    "cpu_us_per_delivery": Spread.of(got.cpu).json(),
                    "bytes_per_delivery": Spread.of(got.bytes).json(),
                    "compressions_per_message": Spread.of(got.compressions).json(),
                }
            rows.append(
                [
                    str(members),
                    str(messages),
                    Spread.of(plain.cpu).text(),
                    Spread.of(deflated.cpu).text(),
                    cpu.text(".3f"),
                    octets.text(".3f"),
                    once.text(".0f"),
                ]
            )
            what = f"{members} members, {messages} in a tick"
            outcome.targets += [
                Target(f"CPU, deflated to plain, {what}", cpu.median, CPU_LIMIT),
                Target(f"bytes, deflated to plain, {what}", octets.median, BYTES_LIMIT),
                Target(f"compressions a message, {what}", once.high, 1.0),
            ]
    outcome.figures |= {"deliveries": figures}
    outcome.tables.append(
        Table(
            "Compression: median (quartiles)",
            [
                *("members", "in a tick", "plain, µs CPU", "deflated, µs CPU"),
                *("CPU ratio", "bytes ratio", "compressions/message"),
            ],
            rows,
        )
    )
