"""The Redis bus on a real redis-server: two nodes in one process, and what they tell of faults."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from falcon_fast.bus import Target
from falcon_fast.errors import BusUnavailable

from ..support.fault_proxy import FaultProxy, Side
from ..support.original_node import OriginalNode
from ..support.party import ROOM, party, until
from ..support.redis_server import RedisServer

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def proxy(redis: RedisServer) -> Iterator[FaultProxy]:
    with FaultProxy(redis.address) as proxy:
        yield proxy


async def test_messages_words_and_receipts_arrive_once_and_in_order(redis: RedisServer) -> None:
    async with party(redis.url) as ann, party(redis.url) as bob:
        for number in range(1000):
            ann.say(number)
        frame = orjson.dumps({"type": "notification", "data": {"user_id": "carl"}})
        bob.rooms.add("user:dora")
        ann.bus.publish(Target.USER, "dora", frame, receipt="r-1")
        ann.bus.publish(Target.USER, "nobody", frame, receipt="r-2")
        ann.bus.tell(b'{"to":"all"}')
        ann.bus.tell(b'{"to":"one"}', bob.id)
        await until(lambda: len(bob.told) == 2, "the words")
        assert bob.numbers == list(range(1000))
        assert bob.delivered[1000:] == [(Target.USER, "dora", frame)]
        assert bob.confirmed == [(ann.id, "r-1", 1), (ann.id, "r-2", 0)]
        assert bob.told == [(ann.id, b'{"to":"all"}'), (ann.id, b'{"to":"one"}')]
        assert bob.losses == ann.losses == []
        # What was said here was delivered here at once, and its echo was not.
        assert len(ann.delivered) == 1002
        assert ann.bus.statistics().received == 0


async def test_x03_subscribers_killed_what_was_missed_is_counted(redis: RedisServer) -> None:
    async with party(redis.url) as ann, party(redis.url) as bob:
        ann.say(0)
        await until(lambda: bob.numbers == [0], "a message")
        assert redis.kill_subscribers() == 2
        for number in range(1, 8):
            ann.say(number)
        await until(lambda: bob.losses, "the loss")
        assert (bob.missed, bob.losses[0].node_id) == (7, ann.id)
        ann.say(8)
        await until(lambda: bob.numbers == [0, 8], "the next message")
        await until(lambda: bob.bus.is_available and ann.bus.is_available, "all is well")
        assert bob.availability == [True, False, True]
        assert len(bob.losses) == 1
        assert bob.bus.statistics().lost == 7


async def test_x05_blackholed(redis: RedisServer, proxy: FaultProxy) -> None:
    async with party(redis.url_through(proxy.port)) as ann, party(redis.url) as bob:
        ann.say(0)
        bob.say(0)
        await until(lambda: ann.numbers == bob.numbers == [0, 0], "a message")
        proxy.blackhole()
        await until(lambda: not ann.bus.is_available, "degraded", 5.0)
        with pytest.raises(BusUnavailable):
            ann.say(1)
        assert ann.numbers == [0, 0, 1], "members here still hear it"
        bob.say(2)
        proxy.heal()
        await until(lambda: ann.bus.is_available, "back", 5.0)
        await until(lambda: ann.missed and bob.missed, "told of the loss", 5.0)
        assert (ann.missed, bob.missed) == (1, 1)


async def test_x02_redis_restarted(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with party(server.url) as ann, party(server.url) as bob, party(server.url) as carl:
            ann.say(0)
            await until(lambda: bob.numbers == carl.numbers == [0], "a message")
            await asyncio.to_thread(server.kill)
            await until(lambda: not ann.bus.is_available, "degraded")
            for number in (1, 2, 3):
                with pytest.raises(BusUnavailable):
                    ann.say(number)
            await asyncio.sleep(2.5)
            await asyncio.to_thread(server.start)
            for one in (bob, carl):
                await until(lambda one=one: one.missed, "told of the loss")  # type: ignore[misc]
            await until(lambda: ann.bus.is_available, "back")
            ann.say(4)
            await until(lambda: bob.numbers == carl.numbers == [0, 4], "the next message")
            assert [(loss.node_id, loss.number) for loss in bob.losses] == [(ann.id, 3)]
            assert [(loss.node_id, loss.number) for loss in carl.losses] == [(ann.id, 3)]
            assert ann.losses == []


async def test_x04_cut_for_reading_too_slowly(redis: RedisServer) -> None:
    async with party(redis.url) as ann:
        redis.limit_subscribers(100_000)
        try:
            ann.bus._main.listener.keeper.link._transport.pause_reading()  # type: ignore[union-attr]
            with redis.client() as client:
                noise = {"server_id": "node-1", "epoch": int(time.time() * 1000), "v": 1}
                message = {"type": "message", "data": {"x": "x" * 50_000}}
                for seq in range(1, 201):
                    envelope = {**noise, "seq": seq, "message": message}
                    client.publish("websocket:system", orjson.dumps(envelope))
                await until(lambda: not ann.bus.is_available, "the cut is noticed")
                await until(lambda: ann.bus.is_available, "back")
                envelope = {**noise, "seq": 201, "message": message}
                client.publish("websocket:system", orjson.dumps(envelope))
                await until(lambda: ann.losses, "the loss")
                assert ann.missed + len(ann.delivered) == 201
        finally:
            redis.limit_subscribers(33_554_432, 8_388_608, 60)


async def test_nodes_of_the_original_take_part(redis: RedisServer) -> None:
    with OriginalNode(redis) as old:
        member = old.connect("carl", ROOM)
        async with party(redis.url) as ann:
            ann.rooms.add("user:dora")
            ann.say(1)
            presence = b'{"type":"presence","data":{"status":"online"}}'
            ann.bus.publish(Target.USER, "carl", presence)
            ann.bus.publish(Target.ALL, "", b'{"type":"backend_status","data":{}}')
            await until(lambda: len(member.messages) == 3, "what is for it")
            assert [message["type"] for message in member.messages] == [
                *("message", "presence", "backend_status")
            ]
            ann.delivered.clear()
            old.send_to_room(ROOM, "message", {"n": 2})
            old.send_to_user("dora", "presence", {"status": "online"})
            old.broadcast("notification", {"n": 3})
            old.send_system("backend_status", {"n": 4})
            await until(lambda: len(ann.delivered) == 4, "what the original says")
            targets = [(target, ident) for target, ident, _ in ann.delivered]
            assert sorted(targets, key=str) == sorted(
                [(Target.ROOM, ROOM), (Target.USER, "dora"), (Target.ALL, ""), (Target.ALL, "")],
                key=str,
            )
            assert len(ann.bus.strangers()) == 1
            assert len(member.messages) >= 3


@pytest.mark.parametrize("towards", list(Side))
async def test_x06_one_way_only(redis: RedisServer, proxy: FaultProxy, towards: Side) -> None:
    async with party(redis.url_through(proxy.port)) as ann, party(redis.url) as bob:
        proxy.blackhole(towards=towards)
        await until(lambda: not ann.bus.is_available, "degraded", 5.0)
        bob.say(1)
        proxy.heal()
        await until(lambda: ann.bus.is_available and ann.missed == 1, "back, and told", 5.0)


async def test_x16_a_wrong_password_is_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with RedisServer(tmp_path, user="ann", password="hunter2") as server:
        wrong = server.url.replace("hunter2", "hunter3")
        async with party(wrong) as ann:
            assert not ann.bus.is_available
            with pytest.raises(BusUnavailable) as caught:
                ann.say(1)
        async with party(server.url) as ann:
            assert ann.bus.is_available
    assert "AuthenticationError" in "".join(str(vars(record)) for record in caplog.records)
    for text in (caplog.text, str(caught.value), *(str(vars(r)) for r in caplog.records)):
        assert "hunter" not in text
