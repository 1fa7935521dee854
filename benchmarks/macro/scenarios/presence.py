"""Presence: people come and go all the time, and everybody in their rooms is told."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.macro.contenders import OPEN_LIMITS, SUBJECT, Contender, Layout, falcon_message
from benchmarks.macro.errors import BenchmarkError
from benchmarks.macro.figures import Spread, rounded
from benchmarks.macro.load import Clients, Latencies, Load
from benchmarks.macro.open_loop import measure
from benchmarks.macro.report import Outcome, Table
from benchmarks.macro.run import Run, turns
from benchmarks.macro.servers.real import PATH, Population, prepared, real_server

QUESTION = "p99 of messages, and CPU for each who comes and goes, while 500 a second do"

#: Members of a group; half of them stay, the others come and go.
MEMBERS = 50
#: Connections that are made in a second, and how many come before they go again.
CHURN_RATE = 500.0
WAVE = 250
#: Messages a second, over all rooms.
RATE = 200.0
WINDOW = 5.0
ALONE, CHURN = "nobody moves", "churn"


@dataclass(slots=True)
class Samples:
    """What the windows of one kind showed."""

    p99: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # share of the time
    all: Latencies = field(default_factory=lambda: Latencies({}))
    cycles: int = 0
    events: int = 0
    spent: float = 0.0
    seconds: float = 0.0


class Crowd:
    """Connects a wave of clients, lets them go, and again, in a thread."""

    def __init__(self, load: Load, wave: int) -> None:
        self.cycles = 0
        self._load = load
        self._wave = wave
        self._stop = threading.Event()
        self._failure: BenchmarkError | None = None

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Do so for as long as the body runs.

        Raises:
            BenchmarkError: Somebody was not let in.
        """
        self._stop.clear()
        thread = threading.Thread(target=self._work)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                self._load.connect(self._wave, rate=CHURN_RATE)
                self._load.disconnect()
                self.cycles += self._wave
        except BenchmarkError as error:
            self._failure = error


def run(run: Run) -> Outcome:
    """Measure windows of both kinds in turn."""
    users = run.pick(run.connections, 5_000, 100)
    members = min(MEMBERS, users)
    repeats = run.pick(run.repeats, 7, 1)
    seconds = run.pick(None, WINDOW, 0.5)
    wave = run.pick(None, WAVE, 10)
    staying = members // 2
    outcome = Outcome(
        {
            "users": users,
            "members": members,
            "staying": staying,
            "churn_per_second": CHURN_RATE,
            "messages_per_second": RATE,
            "seconds_of_a_window": seconds,
            "repeats": repeats,
        }
    )
    samples: defaultdict[str, Samples] = defaultdict(Samples)
    with prepared(Population(users, members)) as ready:
        tokens = list(enumerate(ready.tokens))
        stay = [token for number, token in tokens if number % members < staying]
        move = [token for number, token in tokens if number % members >= staying]
        clients = Clients(path=PATH, tokens=stay, rooms=ready.rooms, members=staying)
        # Members of one room would tell each other mostly: movers come from all rooms in turn.
        spread = sorted(range(len(move)), key=lambda index: index % (members - staying))
        movers = Clients(path=PATH, tokens=[move[index] for index in spread])
        settings = {**OPEN_LIMITS}
        with (
            real_server(ready, cores=run.cores.server, settings=settings) as server,
            Load(server.port, cores=run.cores.client, clients=clients) as load,
            Load(server.port, cores=run.cores.client, clients=movers) as others,
        ):
            outcome.versions |= server.versions
            layout = Layout(len(ready.rooms), staying)
            who = Contender(SUBJECT, server, load, layout, falcon_message())
            load.connect(layout.connections)
            load.wait_quiet()
            crowd = Crowd(others, wave)

            def window(kind: str) -> None:
                into = samples[kind]
                began, cpu, frames = time.monotonic(), server.cpu_seconds(), load.stats().frames
                cycles = crowd.cycles
                if kind == CHURN:
                    with crowd.moving():
                        got = measure(who, rate=RATE, seconds=seconds)
                    load.wait_quiet(seconds=0.2)
                else:
                    got = measure(who, rate=RATE, seconds=seconds)
                if got.lost:
                    raise BenchmarkError(f"{got.lost} deliveries did not come")
                into.p99.append(got.p99)
                into.all += got.deliveries
                into.cpu.append(got.server_busy)
                into.cycles += crowd.cycles - cycles
                into.events += load.stats().frames - frames - got.deliveries.total
                into.spent += server.cpu_seconds() - cpu
                into.seconds += time.monotonic() - began

            for kind in (ALONE, CHURN):  # warm-up
                window(kind)
            samples.clear()
            run.say(f"presence: {repeats} repetitions of {seconds:g} s each way")
            for _, kind in turns([ALONE, CHURN], repeats):
                window(kind)
    summarise(outcome, samples)
    return outcome


def summarise(outcome: Outcome, samples: dict[str, Samples]) -> None:
    """Turn the windows into figures and a table."""
    alone, churn = samples[ALONE], samples[CHURN]
    ratio = Spread.of_ratios(churn.p99, alone.p99)
    # What the messages alone cost in the same time is not the price of coming and going.
    extra = churn.spent - alone.spent / alone.seconds * churn.seconds
    cost = extra * 1e6 / max(1, churn.cycles)
    outcome.figures |= {
        "p99_ratio": ratio.json(),
        "p99_ms": {kind: rounded(got.all.quantile(0.99)) for kind, got in samples.items()},
        "cycles": churn.cycles,
        "cpu_us_per_cycle": rounded(cost),
        "events_per_cycle": rounded(churn.events / max(1, churn.cycles)),
    }
    outcome.tables.append(
        Table(
            "Presence churn",
            ["", "p99 ms", "server CPU", "came and went", "µs CPU each", "events told each"],
            [
                [
                    kind,
                    f"{got.all.quantile(0.99):.2f}",
                    Spread.of(got.cpu).text(".0%"),
                    f"{got.cycles:,}",
                    f"{cost:.0f}" if kind == CHURN else "-",
                    f"{got.events / max(1, got.cycles):.1f}" if kind == CHURN else "-",
                ]
                for kind, got in samples.items()
            ],
        )
    )
