"""One worker's life, in this process: what it is told, what it answers, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from falcon_fast import crew, worker
from falcon_fast.bus.hub import Branch, Hub
from falcon_fast.bus.memory import MemoryBus
from falcon_fast.bus.node_registry import NodeCounts
from falcon_fast.crew import Order, Report
from falcon_fast.settings import Settings
from falcon_fast.statistics import Share, Statistics
from falcon_fast.workers import Reservation

pytestmark = pytest.mark.integration

WITHIN = 10.0


class Lived:
    """A worker and the node process' end of its pipe.

    Attributes:
        notes: that came from the worker.
        ended: the reason for which the pipe ended.
        life: ends with the worker, and has its exit code.
    """

    def __init__(self) -> None:
        self.hub = Hub(MemoryBus(), node_id="node")
        self.counts = NodeCounts(self.hub)
        self.notes: list[tuple[str, bytes]] = []
        self.ended: list[str] = []
        self.branch: Branch = self.hub.attach(
            "node.1",
            on_note=self._noted,
            on_end=self._ended,
        )
        self.news = asyncio.Event()

    def _noted(self, what: str, body: bytes) -> None:
        self.notes.append((what, body))
        self.news.set()

    def _ended(self, reason: str) -> None:
        self.ended.append(reason)
        self.news.set()

    async def start(self) -> None:
        near, far = socket.socketpair()
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self.branch.pipe, sock=near)
        self.life = asyncio.ensure_future(worker.Worker(far).live())

    def begin(self, settings: Settings) -> None:
        order = Order(settings, "node", "node.1", epoll=False)
        self.branch.note(crew.BEGIN, crew.write_order(order))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for notes until something is true."""
        async with asyncio.timeout(WITHIN):
            while not condition():
                self.news.clear()
                await self.news.wait()

    def got(self, what: str) -> list[bytes]:
        return [body for name, body in self.notes if name == what]

    async def end(self) -> int:
        async with asyncio.timeout(WITHIN):
            return await self.life


@pytest.fixture
async def lived(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lived]:
    # The log and the collector are those of the test run.
    monkeypatch.setattr(worker, "set_up_logging", lambda **_: None)
    for name in ("collect", "freeze", "set_threshold"):
        monkeypatch.setattr(f"falcon_fast.worker.gc.{name}", lambda *_: None)
    made = Lived()
    await made.start()
    yield made
    made.branch.pipe.close()
    made.life.cancel()
    await asyncio.gather(made.life, return_exceptions=True)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        jwt_secret="a secret of tests that is long enough",
        host="127.0.0.1",
        port=0,
        sqlite_path=str(tmp_path / "falcon.db"),
        max_connections=16,
        workers=2,
        drain_timeout=0.1,
    )


async def test_it_serves_reports_drains_and_stops(lived: Lived, settings: Settings) -> None:
    reservation = Reservation("127.0.0.1", 0)
    with contextlib.closing(reservation):
        lived.begin(replace(settings, port=reservation.port))
        await lived.until(lambda: bool(lived.got(crew.READY)))
        _, writer = await asyncio.open_connection("127.0.0.1", reservation.port)
        writer.close()
        await writer.wait_closed()
        first = crew.read_report(lived.got(crew.REPORT)[0])
        assert first.statistics == Share().statistics
        assert first.figures is not None
        assert "falcon_connections" in first.figures
        await lived.until(lambda: len(lived.got(crew.REPORT)) > 2)
        assert crew.read_report(lived.got(crew.REPORT)[1]).figures is None
        lived.branch.note(crew.FIGURES)
        await lived.until(
            lambda: any(crew.read_report(body).figures for body in lived.got(crew.REPORT)[1:])
        )
        share = Share(Statistics(9, 8, 0, 0, 0, None), health="degraded", problem="it is late")
        lived.branch.note(crew.SHARE, crew.write_share(share))
        lived.branch.note(crew.DRAIN)
        lived.branch.note(crew.DRAIN)
        await lived.until(lambda: bool(lived.got(crew.DRAINED)))
        assert len(lived.got(crew.DRAINED)) == 1
        await lived.until(
            lambda: crew.read_report(lived.got(crew.REPORT)[-1]).problem == "draining"
        )
        lived.branch.note(crew.STOP)
        assert await lived.end() == 0
        await lived.until(lambda: bool(lived.ended))


async def test_it_ends_with_the_node_process(
    lived: Lived, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    lived.begin(settings)
    await lived.until(lambda: bool(lived.got(crew.READY)))
    lived.branch.note(crew.FIGURES)
    lived.branch.pipe.end("killed")
    assert await lived.end() == 0
    assert "the node process is gone" in caplog.messages


async def test_a_drain_is_cut_short_by_the_end(lived: Lived, settings: Settings) -> None:
    lived.begin(replace(settings, drain_timeout=60.0))
    await lived.until(lambda: bool(lived.got(crew.READY)))
    lived.branch.note(crew.DRAIN)
    lived.branch.note(crew.STOP)
    assert await lived.end() == 0


async def test_a_drain_that_fails_is_over_all_the_same(
    lived: Lived,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(_: object) -> None:
        raise LookupError("no such thing")

    monkeypatch.setattr("falcon_fast.gateway.Gateway.drain", fail)
    lived.begin(settings)
    lived.branch.note(crew.DRAIN)
    await lived.until(lambda: bool(lived.got(crew.DRAINED)))
    assert "the drain failed" in caplog.messages
    lived.branch.note(crew.STOP)
    assert await lived.end() == 0


async def test_it_says_why_it_cannot_start(lived: Lived, settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        lived.begin(replace(settings, port=port))
        assert await lived.end() == 1
    await lived.until(lambda: bool(lived.ended))
    [reason] = lived.got(crew.FAILED)
    assert b"address already in use" in reason.lower()
    assert lived.got(crew.READY) == []


async def test_it_says_which_setting_cannot_be_used(lived: Lived, settings: Settings) -> None:
    lived.begin(replace(settings, tls_cert="/nowhere/cert.pem", tls_key="/nowhere/key.pem"))
    assert await lived.end() == 1
    await lived.until(lambda: bool(lived.ended))
    [reason] = lived.got(crew.FAILED)
    assert b"/nowhere/cert.pem" in reason


async def test_without_an_order_it_is_nothing(lived: Lived) -> None:
    lived.branch.note(crew.STOP)
    assert await lived.end() == 1


def test_a_report_survives_the_way() -> None:
    report = Report(
        Statistics(1, 2, 3, 4, 5, 6.5),
        "degraded",
        "no keys",
        {"falcon_x": [("falcon_x_total", {"a": "b"}, 1.0)]},
    )
    assert crew.read_report(crew.write_report(report)) == report
    assert crew.read_report(crew.write_report(Report())) == Report()


def test_signals_are_for_the_node_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ignored: dict[int, object] = {}
    monkeypatch.setattr(signal, "signal", ignored.setdefault)
    monkeypatch.setattr(worker, "loop_factory", lambda: None)
    near, far = socket.socketpair()
    monkeypatch.setattr("sys.argv", ["worker", str(far.detach())])
    near.close()  # the node process has died already
    assert worker.main() == 1
    assert ignored[signal.SIGTERM] == ignored[signal.SIGINT] == signal.SIG_IGN
