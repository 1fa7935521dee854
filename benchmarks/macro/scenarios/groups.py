"""Storm of groups: all clients come back at once, and each needs its groups from MongoDB."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.macro.child import Child
from benchmarks.macro.errors import BenchmarkError, PeerMissing
from benchmarks.macro.figures import Json, Spread
from benchmarks.macro.load import Load
from benchmarks.macro.report import Outcome, Table, Target
from benchmarks.macro.run import Run
from benchmarks.macro.servers.real import (
    FIRST_CHARACTER,
    PATH,
    TOKEN_TTL,
    Prepared,
    real_server,
    user_id,
)

QUESTION = "10 000 clients back within 10 s, groups from MongoDB 20 ms away: time, and questions"

#: Seconds each answer of the database takes.
LATENCY = 0.02
#: Seconds within which the clients come.
ARRIVAL = 10.0
#: Seconds after which the last of them is to be in its rooms.
TIME_LIMIT = 15.0
#: Most questions about groups in that time.
QUESTION_LIMIT = 200.0
#: Seconds between two storms: answers are remembered for two.
BETWEEN = 3.0
#: Frames a client gets: the greeting, and its rooms. One more would say that it had to wait.
FRAMES = 2
DRIVERS = ("motor", "pymongo")


@dataclass(frozen=True, slots=True)
class Storm:
    """What came of one storm."""

    seconds: float
    questions: int
    cpu_seconds: float


def tokens(count: int, secret: str) -> list[str]:
    """Issue a token for each user."""
    from falcon_fast.auth import issue_token

    now = int(time.time())
    return [
        issue_token(
            secret,
            user_id=user_id(number),
            character_id=FIRST_CHARACTER + number,
            character_name=f"Pilot {number}",
            ttl=TOKEN_TTL,
            now=now,
        )
        for number in range(count)
    ]


@contextmanager
def prepared(count: int) -> Iterator[Prepared]:
    """Make tokens; users and groups are the database's affair.

    Raises:
        PeerMissing: The server is not there.
    """
    try:
        from falcon_fast.auth import generate_secret
    except ImportError as error:
        raise PeerMissing(f"falcon_fast: no module {error.name!r}") from error
    secret = generate_secret()
    with tempfile.TemporaryDirectory(prefix="falcon-bench-") as directory:
        yield Prepared(Path(directory, "unused.db"), secret, tokens(count, secret), [])


def storm(server: Child, database: Child, load: Load, count: int, seconds: float) -> Storm:
    """Let everybody come within so many seconds, wait until all are in their rooms, let them go.

    Raises:
        BenchmarkError: Somebody got more or fewer frames than a greeting and its rooms.
    """
    load.reset()
    before = questions(database)
    cpu = server.cpu_seconds()
    load.connect(count, rate=count / seconds, inflight=256)
    got = load.wait_quiet()
    if got.frames != FRAMES * count:
        raise BenchmarkError(f"{count} clients got {got.frames} frames, not {FRAMES * count}")
    outcome = Storm(
        (got.last_ns - got.first_ns) * 1e-9,
        questions(database) - before,
        server.cpu_seconds() - cpu,
    )
    load.disconnect()
    load.wait_quiet()
    return outcome


def questions(database: Child) -> int:
    """Return how many questions about groups there have been."""
    number = database.ask("count").get("groups")
    if not isinstance(number, int):
        raise BenchmarkError("the database does not say how often it was asked")
    return number


def run(run: Run) -> Outcome:
    """Measure both drivers."""
    count = run.pick(run.connections, 10_000, 60)
    repeats = run.pick(run.repeats, 3, 1)
    arrival = 0.5 if run.quick else ARRIVAL
    outcome = Outcome(
        {
            "connections": count,
            "arrival_seconds": arrival,
            "latency_ms": LATENCY * 1000,
            "repeats": repeats,
        }
    )
    drivers = DRIVERS[:1] if run.quick else DRIVERS
    storms: dict[str, list[Storm]] = {driver: [] for driver in drivers}
    for driver in drivers:
        with ExitStack() as stack:
            ready = stack.enter_context(prepared(count))
            database = stack.enter_context(
                run.server("the database", run.module("servers.mongo", "--latency", str(LATENCY)))
            )
            settings = {
                "MONGODB_URI": f"mongodb://127.0.0.1:{database.port}/?directConnection=true",
                "FALCON_MONGO_DRIVER": driver,
            }
            server = stack.enter_context(
                real_server(ready, cores=run.cores.server, settings=settings)
            )
            load = stack.enter_context(
                Load(server.port, cores=run.cores.client, path=PATH, tokens=ready.tokens)
            )
            outcome.versions |= {**database.versions, **server.versions}
            storm(server, database, load, min(count, 200), 1.0)  # warm-up
            for number in range(repeats):
                run.say(f"groups: {driver}, storm {number + 1} of {repeats}, {count} clients")
                time.sleep(BETWEEN)
                storms[driver].append(storm(server, database, load, count, arrival))
    summarise(outcome, storms)
    return outcome


def summarise(outcome: Outcome, storms: dict[str, list[Storm]]) -> None:
    """Turn storms into figures, a table and targets."""
    figures: dict[str, Json] = {}
    rows: list[list[str]] = []
    for driver, got in storms.items():
        seconds = Spread.of([one.seconds for one in got])
        cpu = Spread.of([one.cpu_seconds for one in got])
        asked = Spread.of([float(one.questions) for one in got])
        figures[driver] = {
            "seconds": seconds.json(),
            "questions": asked.json(),
            "server_cpu_seconds": cpu.json(),
        }
        rows.append([driver, seconds.text(".2f"), asked.text(".0f"), cpu.text(".2f")])
        slowest, most = max(one.seconds for one in got), max(one.questions for one in got)
        outcome.targets.append(
            Target(f"seconds until the last is in its rooms, {driver}", slowest, TIME_LIMIT)
        )
        outcome.targets.append(
            Target(f"questions about groups, {driver}", float(most), QUESTION_LIMIT)
        )
    outcome.figures["storms"] = figures
    outcome.tables.append(
        Table(
            "From the first greeting until the last client is in its rooms: median (quartiles)",
            ["", "seconds", "questions", "server CPU s"],
            rows,
        )
    )
