"""The Redis bus of a node without a gateway: what it is told is written down."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, Literal

import orjson

from falcon_fast.bus import Target
from falcon_fast.bus.redis import RedisBus
from falcon_fast.bus.redis_address import RedisAddress
from falcon_fast.clock import SystemClock
from falcon_fast.identity import new_id

from .bus import FakeReceiver

ROOM: Final = "group:" + "0" * 23 + "1"
SECRET: Final = b"a secret of the cluster, 32 bytes"


class Party(FakeReceiver):
    """A node's bus and what it was told."""

    def __init__(
        self,
        url: str,
        *,
        routing: Literal["compatible", "sharded"] = "compatible",
        secrets: Sequence[bytes] = (SECRET,),
    ) -> None:
        super().__init__(ROOM)
        self.id = new_id()
        self.bus = RedisBus(
            RedisAddress(url),
            node_id=self.id,
            clock=SystemClock(),
            secrets=secrets,
            routing=routing,
        )

    def say(self, number: int, room: str = ROOM) -> None:
        """Publish a numbered message to a room."""
        frame = orjson.dumps({"type": "message", "room": room, "data": {"n": number}})
        self.bus.publish(Target.ROOM, room, frame)

    @property
    def numbers(self) -> list[int]:
        """The numbers that were delivered here."""
        frames = [orjson.loads(frame)["data"] for _, _, frame in self.delivered]
        return [data["n"] for data in frames if "n" in data]

    @property
    def missed(self) -> int:
        """How many were told as lost, as far as that is known."""
        return sum(loss.number for loss in self.losses)


@contextlib.asynccontextmanager
async def party(
    url: str,
    *,
    routing: Literal["compatible", "sharded"] = "compatible",
    secrets: Sequence[bytes] = (SECRET,),
) -> AsyncIterator[Party]:
    """Start a bus and close it in the end."""
    one = Party(url, routing=routing, secrets=secrets)
    await one.bus.start(one)
    try:
        yield one
    finally:
        await one.bus.close()


async def until(condition: Callable[[], object], what: str, within: float = 5.0) -> None:
    """Wait for something that other programs bring about."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {within} s"
        await asyncio.sleep(0.01)
