"""The registry on real Redis servers: one, and a cluster of three."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import uvloop

from falcon_fast.bus.redis_address import RedisAddress
from falcon_fast.bus.redis_registry import RedisRegistry
from falcon_fast.errors import BusUnavailable
from falcon_fast.registry import Claim, Entry, RoomEntry

from ..support.fault_proxy import FaultProxy
from ..support.redis_server import RedisCluster, RedisServer

pytestmark = pytest.mark.integration

ROOM = "group:" + "1" * 24
NOW = "2026-01-02T03:04:05.000000Z"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(params=["one server", "a cluster"])
async def registry(request: pytest.FixtureRequest) -> AsyncIterator[RedisRegistry]:
    if request.param == "one server":
        server: RedisServer = request.getfixturevalue("alone")
        server.command("FLUSHALL")
        url = server.url
    else:
        cluster: RedisCluster = request.getfixturevalue("together")
        for one in cluster.servers:
            one.command("FLUSHALL")
        hosts = ",".join(f"{host}:{port}" for host, port in cluster.addresses)
        url = f"redis+cluster://{hosts}"
    made = RedisRegistry(RedisAddress(url))
    yield made
    await made.close()


def entry(ident: str, user_id: str, created_at: str = NOW) -> Entry:
    document = {"id": ident, "user_id": user_id, "created_at": created_at}
    return Entry(ident, user_id, json.dumps(document).encode())


def room(members: int, room_id: str = ROOM, created_at: str = NOW) -> RoomEntry:
    return RoomEntry(room_id, "group", "Group: Fleet", members, created_at, NOW)


async def get(registry: RedisRegistry, key: str) -> dict[str, object] | None:
    found = await registry._redis.get(key)
    return None if found is None else json.loads(found)


async def test_r01_a_user_has_as_many_connections_as_the_limit_allows(
    registry: RedisRegistry,
) -> None:
    claims = [Claim("ann", f"c{number}", 2) for number in (1, 1, 2, 3)]
    assert await registry.admit("n1", claims) == [True, True, True, False]
    assert await registry.admit("n2", [Claim("ann", "c4", 2), Claim("bob", "c5", 1)]) == [
        False,
        True,
    ]
    await registry.drop("n1", [("c1", "ann")])
    assert await registry.admit("n2", [Claim("ann", "c4", 2)]) == [True]
    assert await registry._redis.smembers("websocket:user:ann") == {b"c2", b"c4"}
    assert 3500 < await registry._redis.ttl("websocket:user:ann") <= 3600


async def test_r01_many_at_once_on_several_nodes(registry: RedisRegistry) -> None:
    answers = await asyncio.gather(
        *(
            registry.admit(f"n{node}", [Claim("ann", f"{node}-{i}", 10) for i in range(50)])
            for node in range(4)
        )
    )
    assert sum(map(sum, answers)) == 10


async def test_the_oldest_connection_is_found(registry: RedisRegistry) -> None:
    assert await registry.oldest("ann") is None
    await registry.put("n1", [entry("b", "ann", "2026-01-02"), entry("c", "ann", "2026-01-01")])
    await registry.admit("n1", [Claim("ann", "a", 9)])  # not written yet: the newest
    assert await registry.oldest("ann") == "c"


async def test_connections_are_written_under_the_names_that_others_know(
    registry: RedisRegistry,
) -> None:
    await registry.put("n1", [entry("a", "ann"), entry("b", "bob")])
    assert await get(registry, "websocket:connection:a") == {
        "id": "a",
        "user_id": "ann",
        "created_at": NOW,
    }
    assert 3500 < await registry._redis.ttl("websocket:connection:a") <= 3600
    await registry.drop("n1", [("a", "ann")])
    assert await get(registry, "websocket:connection:a") is None
    assert await registry._redis.exists("websocket:user:ann") == 0
    assert await registry._redis.smembers("websocket:user:bob") == {b"b"}


async def test_a_room_is_one_document_of_all_nodes(registry: RedisRegistry) -> None:
    await registry.put_rooms("n1", [room(2)])
    await registry.put_rooms("n2", [room(3, created_at="2025-12-31T00:00:00.000000Z")])
    assert await get(registry, f"websocket:room:{ROOM}") == {
        "id": ROOM,
        "type": "group",
        "name": "Group: Fleet",
        "nodes": {"n1": 2, "n2": 3},
        "member_count": 5,
        "created_at": "2025-12-31T00:00:00.000000Z",
        "updated_at": NOW,
    }
    assert 7100 < await registry._redis.ttl(f"websocket:room:{ROOM}") <= 7200
    await registry.put_rooms("n1", [room(0)])
    found = await get(registry, f"websocket:room:{ROOM}")
    assert found is not None
    assert (found["nodes"], found["member_count"]) == ({"n2": 3}, 3)
    await registry.put_rooms("n2", [room(0)])
    assert await get(registry, f"websocket:room:{ROOM}") is None


async def test_a_room_that_another_program_has_spoilt_is_written_anew(
    registry: RedisRegistry,
) -> None:
    for spoilt in (b"not json", b"[]", b'{"nodes":7,"created_at":7}', b'{"nodes":{"n9":"x"}}'):
        await registry._redis.set(f"websocket:room:{ROOM}", spoilt)
        await registry.put_rooms("n1", [room(2)])
        found = await get(registry, f"websocket:room:{ROOM}")
        assert found is not None
        assert (found["member_count"], found["created_at"]) == (2, NOW)


async def test_x14_a_node_is_cleared_up_after_by_one(registry: RedisRegistry) -> None:
    await registry.put("n1", [entry(f"c{number}", f"user{number}") for number in range(1_200)])
    await registry.put_rooms("n1", [room(9, f"group:{number:024}") for number in range(700)])
    await registry.put_rooms("n2", [room(1, "group:" + "0" * 24)])
    assert not await registry.beat("n1", b"{}")
    assert await registry.beat("n1", b'{"connections":1200}')
    assert await registry._redis.get("websocket:node:n1") == b'{"connections":1200}'
    assert await registry.dead(5) == []
    await asyncio.sleep(2.1)
    await registry.beat("n2", b"{}")
    claims = await asyncio.gather(*(registry.dead(1) for _ in range(5)))
    assert sorted(claims) == [[], [], [], [], ["n1"]]
    assert await registry.clear("n1") == 1_200
    await registry.forget("n1")
    assert await registry.clear("n1") == 0
    assert await registry._redis.exists("websocket:user:user7") == 0
    found = await get(registry, "websocket:room:group:" + "0" * 24)
    assert found is not None
    assert found["nodes"] == {"n2": 1}
    assert await registry._redis.zrange("websocket:nodes", 0, -1) == [b"n2"]
    assert await registry._redis.exists("websocket:node:n1") == 0


async def test_statistics_are_written(registry: RedisRegistry) -> None:
    await registry.put_statistics(b'{"total_connections":1}')
    assert await get(registry, "websocket:stats") == {"total_connections": 1}
    assert 3500 < await registry._redis.ttl("websocket:stats") <= 3600


async def test_x16_an_error_says_nothing_that_is_secret(tmp_path: Path) -> None:
    with RedisServer(tmp_path, password="right-and-secret") as server:
        url = server.url.replace("right-and-secret", "wrong-but-secret")
        registry = RedisRegistry(RedisAddress(url))
        for call in (registry.admit("n", [Claim("a", "b", 1)]), registry.clear("n")):
            with pytest.raises(BusUnavailable) as caught:
                await call
            assert "secret" not in str(caught.value)
            assert caught.value.__cause__ is None
        await registry.close()
        server.stop()
        registry = RedisRegistry(RedisAddress(url))
        with pytest.raises(BusUnavailable, match="does not answer"):
            await registry.beat("n", b"{}")
        await registry.close()


@pytest.mark.parametrize("loop", [uvloop.Loop, asyncio.SelectorEventLoop])
def test_a_connection_that_was_reset_is_out_of_reach_and_then_made_anew(
    alone: RedisServer, loop: type[asyncio.AbstractEventLoop]
) -> None:
    """With uvloop a write to a connection that is gone fails with what is no error of sockets."""

    async def claims(proxy: FaultProxy) -> list[str]:
        registry = RedisRegistry(RedisAddress(alone.url_through(proxy.port)))
        results = []
        try:
            for number in range(6):
                try:
                    claimed = await registry.admit("n1", [Claim("reset", f"c{number}", 100)])
                    results.append(str(claimed))
                except BusUnavailable as error:
                    results.append(type(error).__name__)
                if number % 2 == 0:
                    await asyncio.to_thread(proxy.cut)
        finally:
            await registry.close()
        return results

    with FaultProxy(alone.address) as proxy, asyncio.Runner(loop_factory=loop) as runner:
        results = runner.run(claims(proxy))
    assert set(results) <= {"[True]", "BusUnavailable"}
    assert results[0::2] == ["[True]"] * 3
