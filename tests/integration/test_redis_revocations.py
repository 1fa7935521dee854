"""Revocations on real Redis servers: kept, heard on all nodes, through outages and losses."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from falcon_fast.errors import BusUnavailable
from falcon_fast.process import revocation_store
from falcon_fast.revocation import Revocation
from falcon_fast.revocations import RevocationStore, redis
from falcon_fast.revocations.redis import NAME
from falcon_fast.settings import Settings

from ..support.admin import Admin
from ..support.redis_server import RedisCluster, RedisServer
from ..support.server import serving

pytestmark = pytest.mark.integration

NOTICED_WITHIN = 1.0
"""Seconds in which every node must know, by the contract."""

SLACK = 2.0

ENDS = int(time.time()) + 86_400
RULE = Revocation(
    id="rule-1", kind="user", target="ann", issued_before=7, expires_at=ENDS, created_at=5
)


class Node:
    """What a node knows."""

    def __init__(self, store: RevocationStore) -> None:
        self.store = store
        self.rules: dict[str, Revocation] = {}
        self.compared = 0

    def heard(self, rules: Collection[Revocation]) -> None:
        self.rules.update({rule.id: rule for rule in rules})

    def compare(self, rules: Sequence[Revocation]) -> None:
        self.rules = {rule.id: rule for rule in rules}
        self.compared += 1

    async def knows(self, *rules: Revocation, within: float = NOTICED_WITHIN + SLACK) -> float:
        """Wait until it knows exactly these rules; return after how many seconds."""
        start = time.monotonic()
        wanted = {rule.id: rule for rule in rules}
        while self.rules != wanted:
            assert time.monotonic() - start < within, (self.rules, wanted)
            await asyncio.sleep(0.005)
        return time.monotonic() - start


Join = Callable[[str], Node]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as running:
        yield running


@pytest.fixture
async def join() -> AsyncIterator[Join]:
    """Return a function that makes a node, built as the server builds it."""
    nodes: list[Node] = []
    async with AsyncExitStack() as stack:

        def made(url: str) -> Node:
            nodes.append(Node(revocation_store(Settings(redis_url=url), stack)))
            return nodes[-1]

        yield made
        for node in nodes:
            await node.store.close()
            await node.store.close()


async def start(*nodes: Node) -> None:
    for node in nodes:
        await node.store.start(node)


async def test_every_node_hears_of_it_within_a_second_A14(server: RedisServer, join: Join) -> None:
    one, two = join(server.url), join(server.url)
    await start(one, two)
    await one.store.save(RULE)
    assert await two.knows(RULE) < NOTICED_WITHIN
    assert await one.knows(RULE) < NOTICED_WITHIN
    withdrawn = replace(RULE, withdrawn=True)
    await two.store.save(withdrawn)
    assert await one.knows(withdrawn) < NOTICED_WITHIN
    # It is not put back by who has not heard of it.
    await one.store.save(RULE)
    assert json.loads(server.command("HGET", NAME, RULE.id))["withdrawn"] is True
    await one.store.forget([RULE.id, "unheard-of"])
    assert server.command("HGETALL", NAME) == {}


async def test_a_node_that_starts_later_knows_older_rules(server: RedisServer, join: Join) -> None:
    rules = [replace(RULE, id=f"rule-{number}") for number in range(1_200)]
    fields = [part for rule in rules for part in (rule.id, rule.to_json())]
    server.command("HSET", NAME, *fields)
    node = join(server.url)
    await start(node)
    assert node.rules == {rule.id: rule for rule in rules}


async def test_another_program_revokes(
    server: RedisServer, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    node = join(server.url)
    await start(node)
    document = {"token_id": "stolen", "expires_at": ENDS}
    server.command("HSET", NAME, "by-hand", json.dumps(document))
    assert server.publish(NAME, "by-hand") == 1
    rule = Revocation(
        id="by-hand",
        kind="token",
        target="stolen",
        issued_before=0,
        expires_at=ENDS,
        created_at=0,
    )
    assert await node.knows(rule) < NOTICED_WITHIN
    # What is no rule harms nothing, and is told.
    server.command("HSET", NAME, "nonsense", "hunter2", "b d", json.dumps(document))
    for message in ("nonsense", "b d", "unheard of", "", "\n", b"\xff", "x" * 100_000):
        server.publish(NAME, message)
    server.publish(NAME, "by-hand")
    await asyncio.sleep(0.2)
    await node.knows(rule)
    told = [record.getMessage() for record in caplog.records]
    assert sorted(set(told)) == [
        "a field of websocket:revocations is no rule: it is not a JSON object",
        "a field of websocket:revocations is no rule: its id is malformed",
    ]
    assert "hunter2" not in str([record.__dict__ for record in caplog.records])


async def test_many_at_once(server: RedisServer, join: Join) -> None:
    node = join(server.url)
    await start(node)
    rules = [replace(RULE, id=f"rule-{number}") for number in range(2_000)]
    server.command("HSET", NAME, *[part for r in rules for part in (r.id, r.to_json())])
    with server.client() as client, client.pipeline(transaction=False) as pipe:
        for rule in rules:
            pipe.publish(NAME, rule.id)
        pipe.execute()
    await node.knows(*rules)


async def test_without_redis_and_when_it_is_back(server: RedisServer, join: Join) -> None:
    node, other = join(server.url), join(server.url)
    await start(node, other)
    compared = node.compared
    server.stop(keep_data=True)
    for work in (node.store.save(RULE), node.store.forget(["x"])):
        begin = time.monotonic()
        with pytest.raises(BusUnavailable, match=r"^Redis: [A-Za-z]+$"):
            await work
        assert time.monotonic() - begin < 3
    server.start()
    await asyncio.to_thread(server.wait_for_subscribers, NAME, 2)
    await node.store.save(RULE)
    await other.knows(RULE)
    assert node.compared > compared


async def test_a_listener_that_is_cut_off_reads_everything_again(
    server: RedisServer, join: Join
) -> None:
    node = join(server.url)
    await start(node)
    # Published while nobody listened: nothing tells of it but the hash.
    server.kill_subscribers()
    server.command("HSET", NAME, RULE.id, RULE.to_json())
    server.publish(NAME, RULE.id)
    await node.knows(RULE)


async def test_a_message_that_was_lost_is_made_up_for(
    server: RedisServer, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "READ_AGAIN", 0.5)
    monkeypatch.setattr(redis, "PING_INTERVAL", 0.2)
    node = join(server.url)
    await start(node)
    server.command("HSET", NAME, RULE.id, RULE.to_json())
    await node.knows(RULE)
    assert node.compared >= 2


async def test_a_redis_that_stands_still_is_noticed(
    server: RedisServer, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection stays, and nobody answers: without asking that would not be seen."""
    monkeypatch.setattr(redis, "PING_INTERVAL", 0.1)
    monkeypatch.setattr(redis, "REPLY_TIMEOUT", 0.3)
    node = join(server.url)
    await start(node)
    compared = node.compared
    server.freeze()
    with pytest.raises(BusUnavailable):
        await node.store.save(RULE)
    await asyncio.sleep(0.8)
    server.thaw()
    await asyncio.sleep(0.1)
    await node.store.save(RULE)
    await node.knows(RULE)
    assert node.compared > compared


async def test_a_start_without_redis(
    server: RedisServer, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "START_TIMEOUT", 0.3)
    server.stop()
    node = join(server.url)
    begin = time.monotonic()
    await start(node)
    assert time.monotonic() - begin < 2
    assert node.compared == 0
    server.start()
    server.command("HSET", NAME, RULE.id, RULE.to_json())
    await node.knows(RULE, within=10)


async def test_a_password_that_is_wrong_is_not_told(
    tmp_path: Path, join: Join, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "START_TIMEOUT", 0.3)
    with RedisServer(tmp_path / "locked", password="correct-horse") as server:
        good = join(server.url)
        await start(good)
        bad = join(server.url.replace("correct-horse", "hunter2"))
        await start(bad)
        assert (good.compared, bad.compared) == (1, 0)
        with pytest.raises(BusUnavailable) as caught:
            await bad.store.save(RULE)
        told = str(caught.value) + str([record.__dict__ for record in caplog.records])
        assert "hunter2" not in told
        assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


async def test_a_cluster(tmp_path: Path, join: Join) -> None:
    """What is published at one server is heard at every other."""
    with RedisCluster(tmp_path / "cluster") as cluster:
        hosts = ",".join([f"{host}:{port}" for host, port in cluster.addresses])
        url = f"redis+cluster://{hosts}"
        nodes = [join(url) for _ in range(4)]
        await start(*nodes)
        await nodes[0].store.save(RULE)
        for node in nodes:
            assert await node.knows(RULE) < NOTICED_WITHIN + SLACK
        await nodes[3].store.forget([RULE.id])
        late = join(url)
        await start(late)
        assert late.rules == {}


def test_two_servers_A14(tmp_path: Path, server: RedisServer) -> None:
    """Revoked at one, closed at the other; while Redis is away here only, and there later."""
    settings = {"REDIS_URL": server.url}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with (
        serving(tmp_path / "one", settings) as one,
        serving(tmp_path / "two", settings) as two,
    ):
        admin = Admin(one)
        ann, bob, bob_there = two.connect("ann"), one.connect("bob"), two.connect("bob")
        begin = time.monotonic()
        assert admin.post("/websocket/revocations", {"user_id": "ann"}).status == 200
        assert ann.closing(within=NOTICED_WITHIN + SLACK) == (4403, "access revoked")
        assert time.monotonic() - begin < NOTICED_WITHIN
        server.stop(keep_data=True)
        answer = admin.post("/websocket/revocations", {"user_id": "bob"})
        assert answer.status == 503
        assert answer.detail.startswith("In force on this node, but not kept: ")
        assert bob.closing(within=NOTICED_WITHIN) == (4403, "access revoked")
        bob_there.sync()
        server.start()
        assert bob_there.closing(within=30) == (4403, "access revoked")
        assert admin.get("/websocket/revocations").json["total"] == 2
