"""The node process's part in a node of several processes: it starts workers and looks after them.

The node process holds what a node has once: the link to other nodes, the admin API, the metrics,
and the public port, which it keeps without listening. Each worker listens on that port with
`SO_REUSEPORT`, so that the kernel spreads new connections over them. A worker that dies takes its
own connections with it and nothing else: everybody is told at once, and another one takes its
place, under another id. One that dies again and again is given up, and the node with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, TypeAlias, TypeVar

from falcon_fast import crew
from falcon_fast.bus.hub import Branch, Hub
from falcon_fast.clock import until_beat
from falcon_fast.crew import Order, Report
from falcon_fast.errors import FalconError
from falcon_fast.gateway import Gateway
from falcon_fast.metrics import Figures, add_figures, lasting
from falcon_fast.settings import Settings
from falcon_fast.statistics import Health, Share, Statistics, worst

__all__ = ["Child", "Launch", "Reservation", "Workers", "launch"]

START_TIMEOUT: Final = 60.0
"""Seconds a worker has to get ready."""

RESTART_FIRST: Final = 0.1
RESTART_LAST: Final = 1.0
"""Seconds between a worker's death and the start of the next one; doubled with each death."""

MAX_DEATHS: Final = 5
DEATHS_WITHIN: Final = 30.0
"""So many deaths in one place within so many seconds, and it is given up."""

SILENT: Final = 20.0
"""Seconds without a report after which a worker is taken for stuck and killed."""

LOOK: Final = 1.0
"""Seconds between two looks at whether they report."""

EXIT_TIMEOUT: Final = 2.0
"""Seconds between the end of a worker's pipe and the end of its process."""

REFRESH_TIMEOUT: Final = 1.0
"""Seconds workers have to report figures for the metrics; if one does not, its last ones count."""

STOP_TIMEOUT: Final = 5.0
"""Seconds in which workers end that are told to."""

ResultT = TypeVar("ResultT")

log = logging.getLogger(__name__)


class Child(Protocol):
    """A process that was started."""

    @property
    def pid(self) -> int:
        """Its number."""

    async def wait(self) -> int:
        """Wait for its end and return its exit code, negative for a signal."""

    def kill(self) -> None:
        """End it at once; does nothing when it has ended."""


Launch: TypeAlias = Callable[[asyncio.BufferedProtocol], Awaitable[Child]]
"""Starts a worker whose pipe has this protocol at its other end; raises OSError."""


async def launch(pipe: asyncio.BufferedProtocol) -> Child:
    """Start a worker; see `Launch`.

    Nothing secret is in its arguments or its environment beyond what the node process has there.
    """
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    with far:
        await loop.create_unix_connection(lambda: pipe, sock=near)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "falcon_fast.worker",
            str(far.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=[far.fileno()],
            # The same code is found by the worker, wherever this process has found it.
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "PYTHONSAFEPATH": "1",
            },
            # A Ctrl-C on the terminal is for the node process, which drains the workers.
            start_new_session=True,
        )
    return _Process(process)


@dataclass(frozen=True, slots=True)
class _Process:
    """A `Child` that is real."""

    process: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        return self.process.pid

    async def wait(self) -> int:
        return await self.process.wait()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()


class Reservation:
    """The public port, kept for the workers.

    The sockets are bound and do not listen, so the kernel gives them no connections. Who has the
    port already is found out with sockets that do not share: another server of the same user that
    shares it too would take half of the clients without anybody noticing.

    Args:
        host: the address; an empty string for all of them.
        port: the port; 0 for any free one.

    Attributes:
        port: the port in use.

    Raises:
        OSError: it cannot be bound.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = port
        self._sockets: list[socket.socket] = []
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        try:
            for family, _, _, _, address in dict.fromkeys(found):
                self._bind(family, address)
        except BaseException:
            self.close()
            raise

    def _bind(self, family: socket.AddressFamily, address: tuple[object, ...]) -> None:
        host, _, *rest = address
        for is_shared in (False, True) if self.port else (True,):
            one = socket.socket(family, socket.SOCK_STREAM)
            try:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                if is_shared:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                one.bind((host, self.port, *rest))
            except BaseException:
                one.close()
                raise
            if is_shared:
                self._sockets.append(one)
                self.port = one.getsockname()[1]
            else:
                one.close()

    def close(self) -> None:
        """Let the port go."""
        for one in self._sockets:
            one.close()
        self._sockets.clear()


@dataclass(slots=True)
class _Worker:
    """A worker that lives, or is about to.

    Attributes:
        process_id: its id.
        ready: done when it serves clients, or cannot.
        drained: done when its connections were closed, or it has ended.
        gone: done when its pipe has ended.
        report: its latest.
        figures: the latest that it has reported.
        asked: done when it has reported them anew.
        reported_at: when that was, or when it was started, by the loop's clock.
    """

    process_id: str
    ready: asyncio.Future[None]
    drained: asyncio.Future[None]
    gone: asyncio.Future[str]
    branch: Branch | None = None
    child: Child | None = None
    is_up: bool = False
    failure: str | None = None
    report: Report = field(default_factory=Report)
    figures: Figures = field(default_factory=dict)
    asked: asyncio.Future[None] | None = None
    reported_at: float = 0.0

    def note(self, what: str, body: bytes = b"") -> None:
        if self.branch is not None:
            self.branch.note(what, body)

    def kill(self) -> None:
        if self.child is not None:
            self.child.kill()


class Workers:
    """The workers of a node.

    Args:
        settings: of the node, with the port in use.
        hub: joins them.
        node_id: of the node.
        launch: starts one.
        epoll: False to leave all connections on their asyncio transports.

    Attributes:
        gave_up: set when workers die again and again, so that the node had better end.
    """

    def __init__(
        self,
        settings: Settings,
        hub: Hub,
        *,
        node_id: str,
        launch: Launch = launch,
        epoll: bool = True,
    ) -> None:
        self.gave_up = asyncio.Event()
        self._settings = settings
        self._hub = hub
        self._node_id = node_id
        self._launch = launch
        self._epoll = epoll
        self._gateway: Gateway | None = None
        self._on_death: Callable[[str], Awaitable[None]] | None = None
        self._live: dict[str, _Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._statistics = Share().statistics  # of workers that have ended
        self._figures: Figures = {}  # likewise
        self._restarts = 0
        self._has_started = False
        self._leaving = False
        self._over = asyncio.Event()
        self._look: asyncio.TimerHandle | None = None
        self._looked_at = 0.0

    # --------------------------------------------------------------------------- start and stop

    async def start(self, gateway: Gateway, on_death: Callable[[str], Awaitable[None]]) -> None:
        """Start all workers, and return when all of them serve clients.

        Args:
            gateway: the node process's own, whose state belongs to the node's.
            on_death: clears up after a worker, given its id.

        Raises:
            FalconError: one cannot; the text says why.
        """
        self._gateway, self._on_death = gateway, on_death
        loop = asyncio.get_running_loop()
        first = []
        for number in range(1, self._settings.workers + 1):
            worker = self._enlist(f"{self._node_id}.{number}")
            first.append(worker.ready)
            self._keepers.append(loop.create_task(self._keep(number, worker)))
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await asyncio.gather(*first)
        except TimeoutError:
            raise FalconError(f"the workers were not ready within {START_TIMEOUT:g} s") from None
        finally:
            for ready in first:
                ready.cancel()
        self._has_started = True
        self._looked_at = loop.time()
        self._look_at_them()

    async def drain(self) -> None:
        """Have all workers ask their clients to come back elsewhere; see `Gateway.drain`."""
        self._leaving = True
        waits = [worker.drained for worker in self._live.values()]
        for worker in self._live.values():
            worker.note(crew.DRAIN)
        if waits:
            await asyncio.wait(waits, timeout=self._settings.drain_timeout + 1.0)

    async def close(self) -> None:
        """End all workers. May be called more than once."""
        self._leaving = True
        self._over.set()
        if self._look is not None:
            self._look.cancel()
            self._look = None
        for worker in self._live.values():
            worker.note(crew.STOP)
        if self._keepers:
            await asyncio.wait(self._keepers, timeout=STOP_TIMEOUT)
            for worker in self._live.values():
                log.warning("a worker did not end", extra={"process_id": worker.process_id})
                worker.kill()
            await asyncio.gather(*self._keepers, return_exceptions=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ----------------------------------------------------------------------------- one worker

    def _enlist(self, process_id: str) -> _Worker:
        loop = asyncio.get_running_loop()
        worker = _Worker(
            process_id, loop.create_future(), loop.create_future(), loop.create_future()
        )
        worker.reported_at = loop.time()
        worker.branch = self._hub.attach(
            process_id,
            on_note=lambda what, body: self._noted(worker, what, body),
            on_end=lambda reason: _settle(worker.gone, reason),
        )
        self._live[process_id] = worker
        order = Order(self._settings, self._node_id, process_id, self._epoll)
        worker.note(crew.BEGIN, crew.write_order(order))
        return worker

    async def _keep(self, number: int, worker: _Worker) -> None:
        """See to it that there is a worker in one place, for as long as the node lives."""
        loop = asyncio.get_running_loop()
        deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        for start in range(1, sys.maxsize):
            began = loop.time()
            end = await self._watch(worker)
            self._bury(worker)
            if self._leaving:
                return
            if not self._has_started:
                if not worker.ready.done():
                    worker.ready.set_exception(FalconError(f"a worker cannot start: {end}"))
                return
            deaths.append(loop.time())
            log.error(
                "a worker died",
                extra={
                    "process_id": worker.process_id,
                    "reason": end,
                    "seconds": round(loop.time() - began, 3),
                    "connections": worker.report.statistics.active_connections,
                },
            )
            recent = sum(then > loop.time() - DEATHS_WITHIN for then in deaths)
            if recent == MAX_DEATHS:
                log.critical("workers die again and again; this node gives up")
                self.gave_up.set()
                return
            delay = min(RESTART_LAST, RESTART_FIRST * 2.0 ** (recent - 1))
            if await self._is_over_within(delay):
                return
            self._restarts += 1
            # Under another id: nothing that is still said of the dead is taken for the new one's.
            worker = self._enlist(f"{self._node_id}.{number}-{start}")

    async def _is_over_within(self, delay: float) -> bool:
        """Wait; True when no worker is to be started any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._over.wait()
        return self._leaving

    async def _watch(self, worker: _Worker) -> str:
        """Start a worker and wait for its end; returns what is known of why."""
        branch = worker.branch
        if branch is None:
            raise LookupError("a worker without a place in the hub")
        try:
            child = worker.child = await self._launch(branch.pipe)
        except OSError as error:
            return error.strerror or str(error)
        ended = asyncio.ensure_future(child.wait())
        both: set[asyncio.Future[int] | asyncio.Future[str]] = {ended, worker.gone}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            # Whichever came first, the other follows: last words, or the end of the process.
            await asyncio.wait(both, timeout=EXIT_TIMEOUT)
            if self._leaving:
                await asyncio.wait({ended}, timeout=STOP_TIMEOUT)
            child.kill()
            code = await ended
        except BaseException:
            child.kill()
            raise
        branch.pipe.end("its process has ended")
        if worker.failure is not None:
            return worker.failure
        if code < 0:
            with contextlib.suppress(ValueError):
                return signal.Signals(-code).name
        return f"exit code {code}"

    def _bury(self, worker: _Worker) -> None:
        """Forget a worker that has ended, but for what it has done."""
        if worker.branch is not None:
            self._hub.detach(worker.branch)
        del self._live[worker.process_id]
        _settle(worker.drained, None)
        if worker.asked is not None:
            _settle(worker.asked, None)
        worker.is_up = False
        # What it has done stays in the sums; what it had is gone.
        add_figures(self._figures, lasting(worker.figures))
        statistics = self._statistics + worker.report.statistics
        self._statistics = replace(statistics, active_connections=0, total_rooms=0)
        # One that was told to stop has said goodbye by itself.
        has_lived = worker.child is not None
        if has_lived and self._on_death is not None and not self._over.is_set():
            self._spawn(self._on_death(worker.process_id))

    def _spawn(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            await work

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("a task failed", exc_info=error)

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(done)

    def _noted(self, worker: _Worker, what: str, body: bytes) -> None:
        if what == crew.REPORT:
            worker.report = crew.read_report(body)
            if worker.report.figures is not None:
                worker.figures = worker.report.figures
                if worker.asked is not None:
                    _settle(worker.asked, None)
                    worker.asked = None
            worker.reported_at = asyncio.get_running_loop().time()
            worker.note(crew.SHARE, crew.write_share(self._share_for(worker)))
        elif what == crew.READY:
            worker.is_up = True
            worker.reported_at = asyncio.get_running_loop().time()
            _settle(worker.ready, None)
            pid = None if worker.child is None else worker.child.pid
            log.info("a worker is ready", extra={"process_id": worker.process_id, "pid": pid})
        elif what == crew.FAILED:
            worker.failure = body.decode()
        elif what == crew.DRAINED:
            _settle(worker.drained, None)
        else:
            raise ValueError(f"a worker sent a note called {what!r}")

    def _look_at_them(self) -> None:
        """Kill workers that are stuck: their clients come back to one that is not."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._look = loop.call_later(until_beat(now, LOOK), self._look_at_them)
        if now - self._looked_at > 2 * LOOK:
            # It was us who stood still: their reports are still on the way.
            for worker in self._live.values():
                worker.reported_at = now
        self._looked_at = now
        for worker in self._live.values():
            patience = SILENT if worker.is_up else START_TIMEOUT
            if now - worker.reported_at > patience:
                worker.failure = f"it said nothing for {patience:g} s"
                worker.kill()

    # ------------------------------------------------------------------------- the node as a whole

    @property
    def workers_up(self) -> int:
        """See `metrics.Crew`."""
        return sum(worker.is_up for worker in self._live.values())

    @property
    def worker_restarts(self) -> int:
        """See `metrics.Crew`."""
        return self._restarts

    async def refresh(self) -> None:
        """See `metrics.Crew`."""
        loop = asyncio.get_running_loop()
        waits = []
        for worker in self._live.values():
            if worker.is_up:
                if worker.asked is None:
                    worker.asked = loop.create_future()
                    worker.note(crew.FIGURES)
                waits.append(worker.asked)
        if waits:
            await asyncio.wait(waits, timeout=REFRESH_TIMEOUT)

    def figures(self) -> Figures:
        """See `metrics.Crew`."""
        total: Figures = {}
        for figures in (self._figures, *(worker.figures for worker in self._live.values())):
            add_figures(total, figures)
        return total

    def share(self) -> Share:
        """See `gateway.Crew`."""
        return self._sum([worker.report for worker in self._live.values()])

    def _share_for(self, worker: _Worker) -> Share:
        """Return what a worker has to know: what all others have done, the node process too."""
        reports = [one.report for one in self._live.values() if one is not worker]
        gateway = self._gateway
        if gateway is not None:
            reports.append(
                Report(gateway.own_statistics(), gateway.own_health, gateway.own_problem)
            )
        return self._sum(reports)

    def _sum(self, reports: Iterable[Report]) -> Share:
        statistics: Statistics = self._statistics
        health: Health = "healthy"
        problem: str | None = None
        for report in reports:
            statistics += report.statistics
            health = worst(health, report.health)
            problem = problem or report.problem
        personal, groups = self._hub.count_rooms()
        return Share(replace(statistics, total_rooms=0), personal, groups, health, problem)


def _settle(future: asyncio.Future[ResultT], result: ResultT) -> None:
    if not future.done():
        future.set_result(result)
