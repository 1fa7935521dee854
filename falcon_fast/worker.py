"""A worker: one of the processes that hold the connections of a node; see `workers`.

Started by the node process as `python -m falcon_fast.worker` with the number of a descriptor: its
end of the pipe, over which it is told what to be. It has its own connections on the shared public
port, its own view of users, groups and keys, and a bus that ends in the node process. When that is
gone, so is the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from functools import partial
from typing import Final, Protocol

from falcon_fast import crew
from falcon_fast.bus.node_link import NodeLink
from falcon_fast.bus.node_registry import NodeRegistry
from falcon_fast.clock import SystemClock, until_beat
from falcon_fast.crew import Order, Report
from falcon_fast.errors import FalconError
from falcon_fast.gateway import Gateway
from falcon_fast.listings import Listings
from falcon_fast.logs import set_up_logging
from falcon_fast.metrics import Metrics
from falcon_fast.process import (
    Place,
    Process,
    build,
    loop_factory,
    loop_name,
    redis_registry,
    secrets_of,
)
from falcon_fast.statistics import Share

__all__ = ["main"]

LAST_WORDS: Final = 1.0
"""Seconds in which what is said last is sent."""

_END: Final = "end"

log = logging.getLogger(__name__)


class _Tell(Protocol):
    """Reports to the node process."""

    def __call__(self, *, is_full: bool) -> None:
        """Report, with the figures for the metrics or without."""


class _Rest:
    """The other processes of the node, as the node process has told last; a `gateway.Crew`."""

    def __init__(self) -> None:
        self.latest = Share()

    def share(self) -> Share:
        return self.latest

    async def drain(self) -> None:
        pass  # the node process sees to all of them


class Worker:
    """One worker's life.

    Args:
        sock: its end of the pipe.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = _Rest()
        self._orders: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._link = NodeLink(on_note=self._noted, on_end=self._ended)
        self._drain: asyncio.Task[None] | None = None
        self._reporting: asyncio.TimerHandle | None = None
        self._reports = 0
        self._tell: _Tell | None = None  # once there is something to tell

    def _noted(self, what: str, body: bytes) -> None:
        if what == crew.SHARE:
            self._rest.latest = crew.read_share(body)
        elif what == crew.FIGURES:
            if self._tell is not None:
                self._tell(is_full=True)
        else:
            self._orders.put_nowait((what, body))

    def _ended(self, reason: str) -> None:
        self._orders.put_nowait((_END, reason.encode()))

    async def live(self) -> int:
        """Serve until told to stop, or until the node process is gone; returns the exit code."""
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self._link.pipe, sock=self._sock)
        what, body = await self._orders.get()
        if what != crew.BEGIN:
            return 1
        order = crew.read_order(body)
        settings = order.settings
        set_up_logging(
            log_format=settings.log_format,
            debug=settings.debug,
            secrets=secrets_of(settings),
            process_id=order.process_id,
        )
        code = 1
        try:
            async with contextlib.AsyncExitStack() as stack:
                process = await self._start(stack, order)
                code = await self._follow_orders(process)
        except (FalconError, OSError) as error:
            self._link.note(crew.FAILED, str(error).encode())
        await self._link.pipe.drained(LAST_WORDS)
        self._link.pipe.close()
        return code

    async def _start(self, stack: contextlib.AsyncExitStack, order: Order) -> Process:
        self._link.belongs_to(order.node_id)
        place = Place(
            bus=self._link,
            alone=False,
            node_id=order.node_id,
            process_id=order.process_id,
            registry=redis_registry(order.settings) or NodeRegistry(self._link),
            listens="shared",
            crew=self._rest,
        )
        process = await build(stack, order.settings, place, clock=SystemClock(), epoll=order.epoll)
        Listings(process.gateway)  # answers what the node process asks for operators
        await process.gateway.start()
        stack.callback(self._stop_reporting)
        metrics = Metrics(process.gateway, loop=loop_name())
        self._tell = partial(self._report, process.gateway, metrics)
        self._report_regularly()
        self._link.note(crew.READY)
        # What exists now lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        return process

    async def _follow_orders(self, process: Process) -> int:
        while True:
            what, body = await self._orders.get()
            if what == crew.DRAIN and self._drain is None:
                self._drain = asyncio.ensure_future(self._say_goodbye(process))
            elif what == crew.STOP:
                break
            elif what == _END:
                log.error("the node process is gone", extra={"reason": body.decode()})
                break
        if self._drain is not None:
            self._drain.cancel()
            await asyncio.gather(self._drain, return_exceptions=True)
        return 0

    async def _say_goodbye(self, process: Process) -> None:
        try:
            await process.gateway.drain()
        except Exception:
            log.exception("the drain failed")
        self._link.note(crew.DRAINED)

    def _report(self, gateway: Gateway, metrics: Metrics, *, is_full: bool) -> None:
        report = Report(
            gateway.own_statistics(),
            gateway.own_health,
            gateway.own_problem,
            metrics.figures() if is_full else None,
        )
        self._link.note(crew.REPORT, crew.write_report(report))

    def _report_regularly(self) -> None:
        if self._tell is not None:
            self._tell(is_full=self._reports % crew.FIGURES_EVERY == 0)
        self._reports += 1
        loop = asyncio.get_running_loop()
        wait = until_beat(loop.time(), crew.REPORT_EVERY)
        self._reporting = loop.call_later(wait, self._report_regularly)

    def _stop_reporting(self) -> None:
        self._tell = None
        if self._reporting is not None:
            self._reporting.cancel()


def main() -> int:
    """Live as a worker; the only argument is the number of a descriptor."""
    # Whoever stops the node signals all of its processes, or the node process alone: in both cases
    # that one sees to it that the clients are told.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sock = socket.socket(fileno=int(sys.argv[1]))

    async def live() -> int:
        return await Worker(sock).live()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(live())


if __name__ == "__main__":
    sys.exit(main())
