"""The link that listens: which channels it is subscribed to, and what comes out of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeAlias

from falcon_fast.bus.redis_keeper import Keeper
from falcon_fast.bus.redis_link import Link, LinkError, Opened, Split, pack
from falcon_fast.bus.redis_publisher import error_word

__all__ = ["Listener"]

AT_ONCE: Final = 64
"""Channels in one command."""

OnMessage: TypeAlias = Callable[[bytes, bytes], None]

log = logging.getLogger(__name__)


class Listener:
    """Listens to channels of one server.

    Args:
        name: for the log.
        connect: opens a connection.
        channels: that are always listened to.
        shards: channels that are listened to as well, at the time of the call.
        on_message: called with the channel and what came.
        split: takes most messages before that; see `redis_link.Link`.
        on_up: called when all channels are subscribed.
        on_down: called when the link ended.
        on_moved: called when the server no longer has a sharded channel.
        deadline: seconds for an attempt to connect and subscribe.

    Attributes:
        keeper: of the link.
        heard: sharded channels that are subscribed.
    """

    def __init__(
        self,
        name: str,
        *,
        connect: Callable[[], Awaitable[Opened]],
        channels: Iterable[bytes],
        shards: Callable[[], Iterable[bytes]],
        on_message: OnMessage,
        split: Split | None,
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        on_moved: Callable[[], None],
        deadline: float,
    ) -> None:
        self.heard: set[bytes] = set()
        self.keeper = Keeper(
            name,
            connect=connect,
            prepare=self._prepare,
            on_reply=self._take,
            on_up=on_up,
            on_down=self._down,
            deadline=deadline,
            split=split,
        )
        self._channels = tuple(channels)
        self._shards = shards
        self._on_message = on_message
        self._on_moved = on_moved
        self._told_down = on_down
        self._awaited: set[bytes] = set()
        self._ready: asyncio.Future[None] | None = None
        self._follows: dict[bytes, asyncio.Future[None]] = {}

    @property
    def is_up(self) -> bool:
        """Whether it is subscribed, as far as is known."""
        return self.keeper.link is not None

    def follow(self, channel: bytes) -> asyncio.Future[None]:
        """Subscribe to a sharded channel.

        Returns:
            Done when it is subscribed, or when the link has ended.
        """
        future = self._follows.get(channel)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            link = self.keeper.link
            if link is None or channel in self.heard:
                future.set_result(None)
            else:
                self._follows[channel] = future
                link.write(pack((b"SSUBSCRIBE", channel)))
        return future

    def unfollow(self, channel: bytes) -> None:
        """Unsubscribe from a sharded channel."""
        self.heard.discard(channel)
        if (future := self._follows.pop(channel, None)) is not None:
            future.set_result(None)
        if (link := self.keeper.link) is not None:
            link.write(pack((b"SUNSUBSCRIBE", channel)))

    async def _prepare(self, link: Link) -> None:
        self._ready = asyncio.get_running_loop().create_future()
        self.heard.clear()
        shards = list(self._shards())
        self._awaited = {*self._channels, *shards}
        commands = [
            (b"SUBSCRIBE", *self._channels[i : i + AT_ONCE])
            for i in range(0, len(self._channels), AT_ONCE)
        ]
        # A cluster takes in one command only sharded channels of one slot.
        commands += [(b"SSUBSCRIBE", channel) for channel in shards]
        link.write(b"".join(map(pack, commands)))
        if self._awaited:
            await self._ready

    def _take(self, reply: object) -> None:
        if type(reply) is list and len(reply) == 3:
            kind, channel, payload = reply
            if kind == b"message" or kind == b"smessage":
                self._on_message(channel, payload)
                return
            if kind in {b"subscribe", b"ssubscribe"}:
                self._subscribed(channel, is_shard=kind == b"ssubscribe")
                return
            if kind == b"sunsubscribe":
                # Also said without being asked for, when the slot went to another server.
                if channel in self.heard:
                    self.heard.discard(channel)
                    self._on_moved()
                return
        word = error_word(reply)
        if word != "MOVED":
            self._fail(f"Redis says {word}")
            return
        self._on_moved()
        if self.keeper.link is None:
            self._fail("a channel is on another server")

    def _subscribed(self, channel: bytes, *, is_shard: bool) -> None:
        if is_shard:
            self.heard.add(channel)
            if (future := self._follows.pop(channel, None)) is not None:
                future.set_result(None)
        self._awaited.discard(channel)
        if not self._awaited and self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    def _fail(self, text: str) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(LinkError(text))
        else:
            self.keeper.end(text)

    def _down(self, reason: str) -> None:
        self.heard.clear()
        follows, self._follows = self._follows, {}
        for future in follows.values():
            future.set_result(None)
        self._told_down(reason)
