"""The supervisor of workers: starts, deaths, back-off, giving up, drains, sums."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator

import pytest

from falcon_fast import crew
from falcon_fast.bus.hub import Hub
from falcon_fast.bus.memory import MemoryBus
from falcon_fast.bus.node_link import NodeLink
from falcon_fast.crew import Order, Report
from falcon_fast.errors import FalconError
from falcon_fast.metrics import Figures, Metrics
from falcon_fast.settings import Settings
from falcon_fast.statistics import Share, Statistics
from falcon_fast.workers import (
    DEATHS_WITHIN,
    MAX_DEATHS,
    REFRESH_TIMEOUT,
    RESTART_FIRST,
    RESTART_LAST,
    SILENT,
    START_TIMEOUT,
    STOP_TIMEOUT,
    Reservation,
    Workers,
)

from ..support.gateway import Node
from ..support.loop import FakeTimeLoop
from ..support.pipe import crossed, join

loop_factory = FakeTimeLoop

SETTINGS = Settings(
    jwt_secret="a secret of tests that is long enough",
    max_connections=10,
    workers=2,
    allowed_origins=("https://a.example", "https://b.example"),
    drain_timeout=8.0,
)
KILLED = -9


class FakeChild:
    """A process, and the worker in it as far as the node process can tell."""

    def __init__(self, number: int) -> None:
        self.pid = number
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.notes: list[tuple[str, bytes]] = []
        self.link = NodeLink(on_note=self._noted, on_end=lambda reason: self.end(0))
        self.obeys = True

    def _noted(self, what: str, body: bytes) -> None:
        self.notes.append((what, body))
        if self.obeys and what == crew.BEGIN:
            self.link.note(crew.READY)
        if self.obeys and what == crew.DRAIN:
            self.link.note(crew.DRAINED)
        if self.obeys and what == crew.STOP:
            self.end(0)

    @property
    def order(self) -> Order:
        [body] = [body for what, body in self.notes if what == crew.BEGIN]
        return crew.read_order(body)

    @property
    def share(self) -> Share:
        return crew.read_share([body for what, body in self.notes if what == crew.SHARE][-1])

    def report(self, report: Report) -> None:
        self.link.note(crew.REPORT, crew.write_report(report))

    def end(self, code: int) -> None:
        if not self.ended.done():
            self.ended.set_result(code)
            self.link.pipe.close()

    async def wait(self) -> int:
        return await self.ended

    def kill(self) -> None:
        self.end(KILLED)


class Yard:
    """Where fake workers come from."""

    def __init__(self) -> None:
        self.children: list[FakeChild] = []
        self.started_at: list[float] = []
        self.buried: list[str] = []
        self.obeys = True
        self.fails: OSError | None = None

    async def launch(self, pipe: asyncio.BufferedProtocol) -> FakeChild:
        self.started_at.append(asyncio.get_running_loop().time())
        if self.fails is not None:
            raise self.fails
        child = FakeChild(len(self.children) + 1)
        child.obeys = self.obeys
        self.children.append(child)
        join(pipe, child.link.pipe)
        return child

    async def bury(self, process_id: str) -> None:
        self.buried.append(process_id)


@pytest.fixture
def yard() -> Yard:
    return Yard()


@pytest.fixture
async def hub() -> Hub:
    return Hub(MemoryBus(), node_id="node")


@pytest.fixture
async def node() -> Node:
    return Node()


@pytest.fixture
async def workers(yard: Yard, hub: Hub) -> AsyncIterator[Workers]:
    made = Workers(SETTINGS, hub, node_id="node", launch=yard.launch)
    yield made
    await made.close()
    assert all(child.ended.done() for child in yard.children)


async def test_all_are_started_and_told_what_to_be(
    workers: Workers, yard: Yard, node: Node
) -> None:
    await workers.start(node.gateway, yard.bury)
    assert [child.order for child in yard.children] == [
        Order(SETTINGS, "node", "node.1"),
        Order(SETTINGS, "node", "node.2"),
    ]
    assert (workers.workers_up, workers.worker_restarts) == (2, 0)
    await workers.close()
    await workers.close()
    assert [child.ended.result() for child in yard.children] == [0, 0]
    assert yard.buried == []


@pytest.mark.parametrize(
    "settings",
    [
        Settings(jwt_secret="x" * 40, max_connections=1),
        Settings(
            jwt_secret="x" * 40,
            redis_url="redis://:secret@a",
            trusted_proxies=("10.0.0.0/8",),
            jwt_algorithms=("ES256", "ES384"),
            ping_interval=0.5,
            cookie_auth=False,
            port=4711,
        ),
    ],
)
def test_an_order_says_everything(settings: Settings) -> None:
    order = Order(settings, "node", "node.1", False)
    assert crew.read_order(crew.write_order(order)) == order


async def test_one_that_cannot_start_stops_the_start(
    workers: Workers, yard: Yard, node: Node
) -> None:
    yard.obeys = False
    start = asyncio.ensure_future(workers.start(node.gateway, yard.bury))
    await crossed()
    yard.children[0].link.note(crew.FAILED, b"cannot listen on :3000")
    await crossed()
    yard.children[0].end(1)
    with pytest.raises(FalconError, match="a worker cannot start: cannot listen on :3000"):
        await start
    assert len(yard.children) == 2


async def test_a_process_that_cannot_be_made_stops_the_start(
    workers: Workers, yard: Yard, node: Node
) -> None:
    yard.fails = OSError(11, "Resource temporarily unavailable")
    with pytest.raises(FalconError, match="cannot start: Resource temporarily unavailable"):
        await workers.start(node.gateway, yard.bury)


async def test_those_that_are_never_ready_stop_the_start(
    workers: Workers, yard: Yard, node: Node
) -> None:
    yard.obeys = False
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(FalconError, match="not ready within"):
        await workers.start(node.gateway, yard.bury)
    assert loop.time() == pytest.approx(began + START_TIMEOUT)
    # They do not obey, but end all the same.
    await workers.close()
    assert [child.ended.result() for child in yard.children] == [KILLED, KILLED]


async def test_p03_a_dead_worker_is_buried_and_another_takes_its_place(
    workers: Workers, yard: Yard, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    await workers.start(node.gateway, yard.bury)
    yard.children[0].report(Report(Statistics(7, 5, 3, 20, 30, 4.0)))
    await crossed()
    began = asyncio.get_running_loop().time()
    yard.children[0].kill()
    await crossed(8)
    assert yard.buried == ["node.1"]
    assert workers.workers_up == 1
    await asyncio.sleep(RESTART_FIRST + 0.01)
    assert yard.started_at[2] == pytest.approx(began + RESTART_FIRST)
    assert yard.children[2].order.process_id == "node.1-1"
    assert (workers.workers_up, workers.worker_restarts) == (2, 1)
    [death] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert (death.message, vars(death)["reason"]) == ("a worker died", "SIGKILL")
    # What it has done is not forgotten; what it had is.
    assert workers.share().statistics == Statistics(7, 0, 0, 20, 30, 4.0)
    yard.children[2].end(3)
    await asyncio.sleep(2 * RESTART_FIRST + 0.01)
    assert yard.children[3].order.process_id == "node.1-2"
    assert [vars(record)["reason"] for record in caplog.records if record.levelno >= logging.ERROR][
        1:
    ] == ["exit code 3"]


async def test_p03_a_crash_loop_is_given_up(
    workers: Workers, yard: Yard, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    await workers.start(node.gateway, yard.bury)
    yard.children[0].kill()
    for _ in range(MAX_DEATHS - 1):
        await asyncio.sleep(RESTART_LAST + 0.1)
        assert not workers.gave_up.is_set()
        yard.children[-1].end(99)
    await crossed(8)
    assert workers.gave_up.is_set()
    assert len(yard.children) == 2 + MAX_DEATHS - 1
    gaps = [
        late - early for early, late in zip(yard.started_at[1:], yard.started_at[2:], strict=False)
    ]
    assert max(gaps) <= 2.0  # P03, from one start to the next
    assert caplog.records[-1].levelno == logging.CRITICAL
    await asyncio.sleep(10)
    assert len(yard.children) == 2 + MAX_DEATHS - 1


async def test_deaths_that_are_far_apart_are_no_crash_loop(
    workers: Workers, yard: Yard, node: Node
) -> None:
    await workers.start(node.gateway, yard.bury)
    for _ in range(2 * MAX_DEATHS):
        yard.children[-1].kill()
        await asyncio.sleep(DEATHS_WITHIN / 2)
        for child in yard.children:
            child.report(Report())
    assert not workers.gave_up.is_set()
    assert workers.workers_up == 2


async def test_a_process_that_cannot_be_made_later_is_tried_again(
    workers: Workers, yard: Yard, node: Node
) -> None:
    await workers.start(node.gateway, yard.bury)
    yard.fails = OSError("no more processes")
    yard.children[0].kill()
    await asyncio.sleep(0.2)
    yard.fails = None
    await asyncio.sleep(1.0)
    assert workers.workers_up == 2
    assert yard.buried == ["node.1"]  # the one that was never there need not be


async def test_one_that_closes_its_pipe_and_stays_is_killed(
    workers: Workers, yard: Yard, node: Node
) -> None:
    await workers.start(node.gateway, yard.bury)
    child = yard.children[0]
    child.link._told_end = lambda reason: None
    child.link.pipe.close()
    await asyncio.sleep(5.0)
    assert child.ended.result() == KILLED
    assert workers.workers_up == 2


async def test_one_that_says_nothing_is_killed(
    workers: Workers, yard: Yard, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    await workers.start(node.gateway, yard.bury)
    stuck, well = yard.children
    for _ in range(int(SILENT) + 3):
        well.report(Report())
        await asyncio.sleep(1.0)
    assert stuck.ended.result() == KILLED
    assert not well.ended.done()
    [death] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert vars(death)["reason"] == f"it said nothing for {SILENT:g} s"


async def test_one_that_never_gets_ready_later_is_killed(
    workers: Workers, yard: Yard, node: Node
) -> None:
    await workers.start(node.gateway, yard.bury)
    yard.obeys = False
    yard.children[0].kill()
    await asyncio.sleep(1.0)
    yard.obeys = True
    hangs = yard.children[2]
    for _ in range(int(START_TIMEOUT) + 3):
        yard.children[1].report(Report())
        await asyncio.sleep(1.0)
    assert hangs.ended.result() == KILLED
    assert workers.workers_up == 2
    assert yard.buried == ["node.1", "node.1-1"]


async def test_a_burial_that_fails_is_told(
    workers: Workers, yard: Yard, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(process_id: str) -> None:
        raise LookupError(process_id)

    await workers.start(node.gateway, fail)
    yard.children[0].kill()
    await crossed(8)
    assert "a task failed" in caplog.messages


async def test_when_the_node_process_stood_still_nobody_is_killed(
    workers: Workers, yard: Yard, node: Node
) -> None:
    await workers.start(node.gateway, yard.bury)
    await asyncio.sleep(1.5)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FakeTimeLoop)
    loop.clock.advance(SILENT + 10)
    await asyncio.sleep(2.0)
    assert workers.workers_up == 2
    assert len(yard.children) == 2


async def test_a_strange_note_ends_the_worker(
    workers: Workers, yard: Yard, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    await workers.start(node.gateway, yard.bury)
    yard.children[0].link.note("hello")
    await asyncio.sleep(3.0)
    assert yard.buried == ["node.1"]
    assert workers.workers_up == 2


# ------------------------------------------------------------------------------------ the end


async def test_p01_all_are_drained(workers: Workers, yard: Yard, node: Node) -> None:
    await workers.start(node.gateway, yard.bury)
    slow = yard.children[1]
    slow.obeys = False
    drain = asyncio.ensure_future(workers.drain())
    await crossed()
    assert all(child.notes[-1][0] == crew.DRAIN for child in yard.children)
    assert not drain.done()
    slow.link.note(crew.DRAINED)
    await crossed()
    assert drain.done()
    # Nobody is started any more, and a death while leaving is no news.
    slow.kill()
    await asyncio.sleep(10)
    assert len(yard.children) == 2
    await workers.drain()


async def test_a_drain_ends_in_time(workers: Workers, yard: Yard, node: Node) -> None:
    await workers.start(node.gateway, yard.bury)
    yard.children[0].obeys = False
    loop = asyncio.get_running_loop()
    began = loop.time()
    await workers.drain()
    assert loop.time() == pytest.approx(began + SETTINGS.drain_timeout + 1)
    dies = yard.children[1]
    dies.kill()
    await crossed(6)
    yard.children[0].kill()
    await crossed(6)
    await workers.drain()  # nobody is left


async def test_those_that_do_not_end_are_killed(
    workers: Workers, yard: Yard, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    await workers.start(node.gateway, yard.bury)
    yard.children[0].obeys = False
    loop = asyncio.get_running_loop()
    began = loop.time()
    await workers.close()
    assert loop.time() == pytest.approx(began + STOP_TIMEOUT)
    assert [child.ended.result() for child in yard.children] == [KILLED, 0]
    assert [record.message for record in caplog.records] == ["a worker did not end"]


async def test_the_end_does_not_wait_for_a_restart(
    workers: Workers, yard: Yard, node: Node
) -> None:
    await workers.start(node.gateway, yard.bury)
    yard.children[0].kill()
    await crossed(6)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await workers.close()
    assert loop.time() == began
    assert len(yard.children) == 2


# ----------------------------------------------------------------------------------- the sums


async def test_each_process_knows_what_all_have_done(
    workers: Workers, yard: Yard, node: Node, hub: Hub
) -> None:
    await workers.start(node.gateway, yard.bury)
    one, other = yard.children
    one.link.follow("group:a")
    other.link.follow("group:a")
    other.link.follow("user:b")
    one.report(Report(Statistics(10, 4, 2, 100, 1000, 50.0), "degraded", "no keys"))
    other.report(Report(Statistics(1, 1, 1, 1, 1, None)))
    await crossed()
    assert other.share == Share(Statistics(10, 4, 0, 100, 1000, 50.0), 1, 1, "degraded", "no keys")
    assert one.share.statistics.total_connections in {0, 1}  # what was known when it reported
    one.report(Report(Statistics(10, 4, 2, 100, 1000, 50.0)))
    await crossed()
    assert one.share == Share(Statistics(1, 1, 0, 1, 1, None), 1, 1)
    assert workers.share() == Share(Statistics(11, 5, 0, 101, 1001, 50.0), 1, 1)


async def test_metrics_are_the_sums_of_all(yard: Yard, hub: Hub) -> None:
    workers = Workers(SETTINGS, hub, node_id="node", launch=yard.launch)
    node = Node(crew=workers)
    await workers.start(node.gateway, yard.bury)
    metrics = Metrics(node.gateway, loop="test", crew=workers)
    other = Metrics(Node().gateway, loop="test")
    figures = other.figures()

    def put(figures: Figures, metric: str, at: int, value: float) -> None:
        name, labels, _ = figures[metric][at]
        figures[metric][at] = (name, labels, value)

    put(figures, "falcon_connections", 0, 5)
    put(figures, "falcon_deliveries", 0, 100)
    put(figures, "falcon_event_loop_lag_seconds", 0, 3)
    figures["falcon_handshakes"] = [
        ("falcon_handshakes_total", {"result": "accepted"}, 7),
        ("falcon_handshakes_total", {"result": "no_token"}, 2),
    ]
    for child in yard.children:
        child.report(Report(Statistics(5, 5, 0, 0, 0, None), figures=figures))
    await crossed()
    for child in yard.children:
        child.report(Report(Statistics(5, 5, 0, 0, 0, None)))  # without, and they stay
    await crossed()

    def lines() -> set[str]:
        return set(metrics.render()[0].decode().splitlines())

    assert {
        "falcon_connections 10.0",
        "falcon_deliveries_total 200.0",
        'falcon_event_loop_lag_seconds_bucket{le="0.001"} 6.0',
        'falcon_handshakes_total{result="accepted"} 14.0',
        'falcon_handshakes_total{result="no_token"} 4.0',
        "falcon_workers 2.0",
        "falcon_worker_restarts_total 0.0",
    } <= lines()
    yard.children[0].kill()
    await asyncio.sleep(1.0)
    # A counter does not fall, a gauge does.
    assert {
        "falcon_connections 5.0",
        "falcon_deliveries_total 200.0",
        'falcon_event_loop_lag_seconds_bucket{le="0.001"} 6.0',
        "falcon_workers 2.0",
        "falcon_worker_restarts_total 1.0",
    } <= lines()
    await workers.close()


async def test_workers_are_asked_for_their_figures(
    workers: Workers, yard: Yard, node: Node
) -> None:
    await workers.refresh()  # there is nobody to ask
    await workers.start(node.gateway, yard.bury)
    metrics = Metrics(node.gateway, loop="test", crew=workers)

    def values(body: bytes) -> set[str]:
        return {line for line in body.decode().splitlines() if "falcon_deliveries" in line}

    def figures(number: float) -> Figures:
        return {"falcon_deliveries": [("falcon_deliveries_total", {}, number)]}

    scrapes = [asyncio.ensure_future(metrics.scrape()) for _ in range(2)]
    await crossed()
    for number, child in enumerate(yard.children):
        assert [what for what, _ in child.notes].count(crew.FIGURES) == 1
        assert not scrapes[0].done()
        child.report(Report())  # one that was under way, without figures
        child.report(Report(figures=figures(number + 1)))
        await crossed()
    for scrape in scrapes:
        assert "falcon_deliveries_total 3.0" in values((await scrape)[0])
    # Who does not answer in time is counted as it was, and who dies is not waited for.
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert "falcon_deliveries_total 3.0" in values((await metrics.scrape())[0])
    assert loop.time() == pytest.approx(began + REFRESH_TIMEOUT)
    began = loop.time()
    yard.children[1].report(Report(figures=figures(7)))
    scrapes = [asyncio.ensure_future(metrics.scrape())]
    await crossed()
    yard.children[0].kill()
    await crossed(8)
    assert scrapes[0].done()
    assert "falcon_deliveries_total 8.0" in values(scrapes[0].result()[0])


async def test_a_gateway_with_a_crew_speaks_for_the_node(yard: Yard, hub: Hub) -> None:
    workers = Workers(SETTINGS, hub, node_id="node", launch=yard.launch)
    node = Node(crew=workers, listens="nowhere", port=4711)
    await workers.start(node.gateway, yard.bury)
    await node.gateway.start()
    one, other = yard.children
    one.link.follow("group:a")
    one.report(Report(Statistics(10, 4, 2, 100, 1000, 50.0)))
    await crossed()
    gateway = node.gateway
    assert gateway.statistics() == Statistics(10, 4, 1, 100, 1000, 50.0)
    assert gateway.own_statistics() == Statistics(0, 0, 0, 0, 0, None)
    assert (gateway.health, gateway.problem, gateway.port) == ("healthy", None, 4711)
    assert gateway.url.endswith(":4711/websocket/connect")
    other.report(Report(health="degraded", problem="users and groups are unavailable"))
    await crossed()
    assert (gateway.health, gateway.own_health) == ("degraded", "healthy")
    assert gateway.problem == "users and groups are unavailable"
    assert gateway.status()["status"] == "degraded"
    await gateway.drain()
    assert one.notes[-1][0] == crew.DRAIN
    assert (gateway.health, gateway.problem) == ("unhealthy", "draining")
    await workers.close()
    await gateway.close()


# ------------------------------------------------------------------------------------ the port


def test_a_port_is_kept_and_not_listened_on() -> None:
    kept = Reservation("127.0.0.1", 0)
    try:
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", kept.port)) != 0
        with socket.socket() as sharing:
            sharing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sharing.bind(("127.0.0.1", kept.port))
            sharing.listen()
            with pytest.raises(OSError, match="in use"):
                Reservation("127.0.0.1", kept.port)
    finally:
        kept.close()
    kept.close()
    again = Reservation("127.0.0.1", kept.port)
    assert again.port == kept.port
    again.close()


def test_all_addresses_get_the_same_port() -> None:
    kept = Reservation("", 0)
    try:
        assert {one.getsockname()[1] for one in kept._sockets} == {kept.port}
        assert len(kept._sockets) >= 1
    finally:
        kept.close()
