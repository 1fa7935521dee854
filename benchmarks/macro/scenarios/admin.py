"""Admin: what a delivery has to wait for while an operator lists every connection."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.macro.errors import BenchmarkError
from benchmarks.macro.figures import Json, Spread
from benchmarks.macro.load import Latencies, Load
from benchmarks.macro.machine import free_port
from benchmarks.macro.report import Outcome, Table, Target
from benchmarks.macro.run import Run, turns
from benchmarks.macro.servers.real import (
    FIRST_CHARACTER,
    PATH,
    Population,
    Prepared,
    prepared,
    real_server,
)

QUESTION = "p99 of delivery in a busy room, with and without somebody listing all connections"

#: Messages a second, sent by one member to its room.
RATE = 1000.0
#: Members of the room; all other connections are in other rooms.
MEMBERS = 20
#: Seconds of one window.
WINDOW = 6.0
#: Entries of a page: the API's own default.
PAGE = 100
ALONE, LISTING = "alone", "while listing"
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
#: Largest ratio of the p99 with listing to that without.
LIMIT = 1.2


class Operator:
    """Lists all connections, page by page on one HTTP connection, again and again.

    Args:
        port: of the admin listener.
        token: of a super administrator.
        total: connections that each listing must find.
    """

    def __init__(self, port: int, token: str, total: int) -> None:
        self.listings = 0
        self.pages: list[float] = []
        self._port = port
        self._headers = {"Authorization": f"Bearer {token}"}
        self._total = total
        self._stop = threading.Event()
        self._failure: Exception | None = None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """List for as long as the body runs.

        Raises:
            BenchmarkError: a page could not be had, or a listing was not complete.
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
            raise BenchmarkError(f"the listing failed: {self._failure!r}") from self._failure

    def _work(self) -> None:
        # The generator shares this CPU: what is measured there comes first. Niceness is not enough:
        # the scheduler lets a running thread finish its slice, about a millisecond, before another
        # of its class gets its turn. A thread of the idle class is taken off the CPU at once.
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
        http_connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            while not self._stop.is_set():
                self._list(http_connection)
        except (OSError, ValueError, LookupError, http.client.HTTPException) as error:
            self._failure = error
        finally:
            http_connection.close()

    def _list(self, http_connection: http.client.HTTPConnection) -> None:
        found, cursor = 0, ""
        while not self._stop.is_set():
            began = time.monotonic()
            path = f"/websocket/connections?limit={PAGE}{cursor}"
            http_connection.request("GET", path, headers=self._headers)
            answer = http_connection.getresponse()
            body = answer.read()
            self.pages.append(time.monotonic() - began)
            if answer.status != 200:
                raise ValueError(f"{answer.status}: {body[:200]!r}")
            page = json.loads(body)
            found += len(page["connections"])
            if "next_cursor" not in page:
                if found != self._total:
                    raise ValueError(f"{found} of {self._total} connections listed")
                self.listings += 1
                return
            cursor = f"&cursor={page['next_cursor']}"


@dataclass(slots=True)
class Samples:
    """What the windows of one kind gave."""

    all: Latencies = field(default_factory=lambda: Latencies({}, 0, 0))
    p99: list[float] = field(default_factory=list)  # ms, of each window
    cpu: list[float] = field(default_factory=list)  # share of the server's CPU


def appoint(ready: Prepared) -> str:
    """Make the last user a super administrator and return the token."""
    from falcon_fast.directory.sqlite_store import SqliteStore

    with SqliteStore(str(ready.database)) as store:
        group = store.add_group("Super Administrator", system_name="super_admin")
        store.add_member(group, FIRST_CHARACTER + len(ready.tokens) - 1)
    return ready.tokens[-1]


def run(run: Run) -> Outcome:
    """Measure windows of both kinds in turn."""
    count = run.pick(run.connections, 15_000, 60)
    repeats = run.pick(run.repeats, 9, 2)
    window = run.pick(None, WINDOW, 0.5)
    members = min(MEMBERS, count)
    outcome = Outcome(
        {
            "connections": count,
            "members": members,
            "messages_per_second": RATE,
            "page": PAGE,
            "seconds_per_window": window,
            "repeats": repeats,
        }
    )
    samples: defaultdict[str, Samples] = defaultdict(Samples)
    admin_port = free_port()
    settings = {
        "FALCON_ADMIN_PORT": str(admin_port),
        "FALCON_MESSAGE_RATE": "1000000",
        "FALCON_MESSAGE_BURST": "1000000",
    }
    with prepared(Population(count, members)) as ready:
        operator = Operator(admin_port, appoint(ready), count)
        with (
            real_server(ready, cores=run.cores.server, settings=settings) as server,
            Load(server.port, cores=run.cores.client, path=PATH, tokens=ready.tokens) as load,
        ):
            outcome.versions |= server.versions
            load.connect(count)
            load.wait_quiet()
            message = {"type": "message", "room": ready.rooms[0], "data": {"at": "{stamp}"}}
            text = json.dumps(message, separators=(",", ":"))

            def measure(kind: str) -> None:
                began, cpu = time.monotonic(), server.cpu_seconds()
                got = load.publish(text, rate=RATE, seconds=window, receivers=members)
                if kind == LISTING:
                    with operator.at_work():
                        latencies = got().deliveries
                else:
                    latencies = got().deliveries
                used = (server.cpu_seconds() - cpu) / (time.monotonic() - began)
                if latencies.total != latencies.wanted:
                    raise BenchmarkError(f"{latencies.total} of {latencies.wanted} deliveries came")
                into = samples[kind]
                into.all += latencies
                into.p99.append(latencies.quantile(0.99))
                into.cpu.append(used)

            for kind in (ALONE, LISTING):  # warm-up
                measure(kind)
            samples.clear()
            operator.listings = 0
            operator.pages.clear()
            run.say(f"admin: {repeats} repetitions of {window:g} s each way")
            for _, kind in turns([ALONE, LISTING], repeats):
                measure(kind)
    summarise(outcome, samples, operator)
    return outcome


def summarise(outcome: Outcome, samples: dict[str, Samples], operator: Operator) -> None:
    """Turn the windows into figures, a table and the target."""
    rows: list[list[str]] = []
    figures: dict[str, Json] = {}
    for kind in (ALONE, LISTING):
        got = samples[kind]
        pooled = {name: got.all.quantile(share) for name, share in QUANTILES.items()}
        p99, cpu = Spread.of(got.p99), Spread.of(got.cpu)
        figures[kind] = {
            "deliveries": got.all.total,
            "pooled_ms": {**pooled, "max": got.all.slowest * 1e-6},
            "p99_ms_of_windows": p99.json(),
            "server_cpu_share": cpu.json(),
        }
        shown = [f"{value:.2f}" for value in pooled.values()]
        rows.append([kind, *shown, f"{got.all.slowest * 1e-6:.1f}", p99.text(), cpu.text(".0%")])
    ratio = Spread.of_ratios(samples[LISTING].p99, samples[ALONE].p99)
    pages = Spread.of([seconds * 1000 for seconds in operator.pages])
    outcome.figures |= {
        "windows": figures,
        "p99_ratio": ratio.json(),
        "complete_listings": operator.listings,
        "page_ms": pages.json(),
    }
    outcome.tables.append(
        Table(
            "Milliseconds from the moment a message was due to each member",
            ["", *QUANTILES, "max", "p99 of windows", "server CPU"],
            rows,
        )
    )
    outcome.tables.append(
        Table(
            "Listing",
            ["", "pages", "complete listings", "ms a page", "p99 ratio"],
            [
                [
                    f"pages of {PAGE}",
                    str(len(operator.pages)),
                    str(operator.listings),
                    pages.text(),
                    ratio.text(".3f"),
                ]
            ],
        )
    )
    outcome.targets.append(Target("p99 while listing, to the p99 alone", ratio.median, LIMIT))
