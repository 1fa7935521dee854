"""The Redis bus on a real redis-server: two nodes in one process, and what they tell of faults."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import orjson
import pytest

from falcon_fast.bus import Target
from falcon_fast.bus.redis import RedisBus
from falcon_fast.bus.redis_address import RedisAddress
from falcon_fast.clock import SystemClock
from falcon_fast.errors import BusUnavailable
from falcon_fast.identity import new_id

from ..support.bus import FakeReceiver
from ..support.fault_proxy import FaultProxy, Side
from ..support.redis_server import RedisServer

pytestmark = pytest.mark.integration

ROOM = "group:" + "0" * 23 + "1"
SECRET = b"a secret of the cluster, 32 bytes"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def proxy(redis: RedisServer) -> Iterator[FaultProxy]:
    with FaultProxy(redis.address) as proxy:
        yield proxy


class Party(FakeReceiver):
    """A node's bus and what it was told."""

    def __init__(self, url: str, secret: bytes = SECRET) -> None:
        super().__init__(ROOM)
        self.id = new_id()
        self.bus = RedisBus(
            RedisAddress(url), node_id=self.id, clock=SystemClock(), secrets=[secret]
        )

    def say(self, number: int) -> None:
        frame = orjson.dumps({"type": "message", "room": ROOM, "data": {"n": number}})
        self.bus.publish(Target.ROOM, ROOM, frame)

    @property
    def numbers(self) -> list[int]:
        frames = [orjson.loads(frame)["data"] for _, _, frame in self.delivered]
        return [data["n"] for data in frames if "n" in data]

    @property
    def missed(self) -> int:
        return sum(loss.number for loss in self.losses)


@contextlib.asynccontextmanager
async def party(url: str, **kwargs: bytes) -> AsyncIterator[Party]:
    one = Party(url, **kwargs)
    await one.bus.start(one)
    try:
        yield one
    finally:
        await one.bus.close()


async def until(condition: Callable[[], object], what: str, within: float = 5.0) -> float:
    """Wait for something; returns the seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within, f"{what}: not within {within} s"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


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
