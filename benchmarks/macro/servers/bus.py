"""Takes messages from Redis up to the fan-out, in three ways, and publishes them in one.

Usage: python -m benchmarks.macro.servers.bus --redis PORT --way falcon|redis-py|hiredis [--loop …]

`falcon` is the project's bus. `redis-py` is that library's asyncio `listen()` with hiredis, and
behind it the same decoding by the same function. `hiredis` only splits the stream into replies and
throws them away: what the socket and the parser cost in any case.
"""

from __future__ import annotations

import argparse
import asyncio
import time

import hiredis

from benchmarks.macro import control
from benchmarks.macro.control import Arguments
from benchmarks.macro.figures import Json

#: A room with members here, one without.
HERE = "group:" + "a" * 24
ELSEWHERE = "group:" + "b" * 24
CHANNEL = b"websocket:rooms"
#: Octets given to the parser at once, as the bus does.
SLICE = 16_384


class Counter:
    """What a gateway is to the bus: it knows one room and counts what is for it."""

    def __init__(self) -> None:
        self.rooms = {HERE}
        self.delivered = 0

    def deliver(self, _target: object, _ident: str, _frame: bytes) -> int:
        """Count a message."""
        self.delivered += 1
        return 1

    def counted(self, *_: object) -> None:
        """Nothing of this is sent here."""

    confirm = heard = lost = counted

    def changed(self, *, is_available: bool) -> None:
        """Nothing depends on it."""


class Falcon:
    """The bus under test."""

    def __init__(self, port: int) -> None:
        from falcon_fast.bus.redis import RedisBus
        from falcon_fast.bus.redis_address import RedisAddress
        from falcon_fast.clock import SystemClock

        self.counter = Counter()
        self.bus = RedisBus(
            RedisAddress(f"redis://127.0.0.1:{port}"), node_id="falcon", clock=SystemClock()
        )

    async def start(self) -> None:
        """Connect and subscribe."""
        await self.bus.start(self.counter)

    @property
    def taken(self) -> int:
        """Messages taken so far."""
        return self.bus.statistics().received

    def publish(self, arguments: Arguments) -> dict[str, Json]:
        """Publish messages within one turn of the loop."""
        from falcon_fast.bus import Target

        frame = b'{"type":"message","room":"%b","data":{"x":"%b"}}' % (
            HERE.encode(),
            b"x" * arguments["bytes"],
        )
        for _ in range(arguments["messages"]):
            self.bus.publish(Target.ROOM, HERE, frame)
        began = time.perf_counter()
        publisher = self.bus._main.publisher
        octets, writes = publisher.keeper.octets[1], 0
        publisher.flush()
        writes += publisher.keeper.octets[1] > octets
        asyncio.get_running_loop().create_task(self._answered(began))
        self.answered: float | None = None
        return {"writes": writes}

    async def _answered(self, began: float) -> None:
        await self.bus._main.publisher.drained()
        self.answered = time.perf_counter() - began

    def answers(self, _arguments: Arguments) -> dict[str, Json]:
        """Say how long it took until all that was published was answered, if it is."""
        return {"seconds": self.answered}


class RedisPy:
    """redis-py's own way, and the same decoding."""

    def __init__(self, port: int) -> None:
        from falcon_fast._core import Sifter
        from falcon_fast.bus.positions import Positions
        from falcon_fast.bus.redis_address import RedisAddress
        from falcon_fast.bus.redis_wire import ROOMS
        from falcon_fast.envelope import BROADCAST_TYPES

        self.client = RedisAddress(f"redis://127.0.0.1:{port}").client()
        self.counter = Counter()
        self.positions = Positions(4, ordered=4)
        self.sifter = Sifter(
            own=b"redis-py",
            streams={CHANNEL: ROOMS},
            records=self.positions.records,
            types=BROADCAST_TYPES,
            passed=self.passed,
            left=self.left,
        )
        self.sifter.rooms = self.counter.rooms
        self.taken = 0

    def passed(self, _channel: bytes, room: str, frame: bytes) -> None:
        """Take what was decoded."""
        self.counter.deliver(None, room, frame)

    def left(self, _channel: bytes, payload: bytes, found: object) -> None:
        """Begin with the first number that comes; nothing else is left here."""
        from falcon_fast.bus.redis_wire import ROOMS

        assert isinstance(found, tuple)
        assert self.positions.get(found[1]) is None
        self.positions.take(found[1], ROOMS, found[3], found[2])

    async def start(self) -> None:
        """Connect and subscribe."""
        from redis.asyncio import Redis

        assert isinstance(self.client, Redis)
        self.pubsub = self.client.pubsub(ignore_subscribe_messages=True)
        await self.pubsub.subscribe(CHANNEL)
        self.task = asyncio.create_task(self.listen())

    async def listen(self) -> None:
        """Take messages for ever."""
        async for message in self.pubsub.listen():
            self.taken += 1
            self.sifter.take(message["channel"], message["data"])


class Hiredis(asyncio.Protocol):
    """The parser and nothing behind it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.counter = Counter()
        self.reader = hiredis.Reader()
        self.taken = -1  # the answer to SUBSCRIBE

    async def start(self) -> None:
        """Connect and subscribe."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: self, "127.0.0.1", self.port)
        transport.write(b"*2\r\n$9\r\nSUBSCRIBE\r\n$15\r\n%b\r\n" % CHANNEL)

    def data_received(self, data: bytes) -> None:
        """Count replies."""
        for at in range(0, len(data), SLICE):
            self.reader.feed(data, at, min(SLICE, len(data) - at))
            while self.reader.gets() is not False:
                self.taken += 1


WAYS: dict[str, type[Falcon | RedisPy | Hiredis]] = {
    "falcon": Falcon,
    "redis-py": RedisPy,
    "hiredis": Hiredis,
}


async def serve(options: argparse.Namespace) -> None:
    """Take messages and obey the harness."""
    way = WAYS[options.way](options.redis)
    await way.start()

    def count(_arguments: Arguments) -> dict[str, Json]:
        return {"taken": way.taken, "delivered": way.counter.delivered}

    handlers: dict[str, control.Handler] = {"count": count, "settle": control.settle}
    if isinstance(way, Falcon):
        handlers |= {"publish": way.publish, "answers": way.answers}
    control.say(
        "ready", versions={**control.server_versions(), **control.require(["redis", "hiredis"])}
    )
    await control.obey(handlers)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis", type=int, required=True)
    parser.add_argument("--way", choices=list(WAYS), required=True)
    parser.add_argument("--loop", choices=control.LOOPS, default="uvloop")
    options = parser.parse_args()

    async def body() -> None:
        await serve(options)

    control.run(body, options.loop)


if __name__ == "__main__":
    main()
