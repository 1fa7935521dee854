"""Two links to one server, one that listens and one that speaks, and the probe that goes round.

A socket can look well and carry nothing, in one direction or in both. So every second something is
published through the one link and expected from the other: messages take the same way.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from falcon_fast.bus.redis_link import Opened, Split
from falcon_fast.bus.redis_listener import Listener, OnMessage
from falcon_fast.bus.redis_publisher import NO_ANSWER, Publisher, role_problem

__all__ = ["PROBE", "Pair"]

PROBE: Final = b"probe "
"""How a probe begins; nothing else on its channel does, since all else is JSON."""

PROBE_INTERVAL: Final = 1.0
"""Seconds between two probes."""

PROBE_DEADLINE: Final = 2.0
"""Seconds until a probe is back, or both links are ended."""

ROLE_INTERVAL: Final = 5.0
"""Seconds between two questions whether the server still is the master."""


class Pair:
    """Listens and speaks to one server.

    Args:
        name: for the log.
        connect: opens a connection to the server.
        channels: that are always listened to.
        probe_channel: one of them, which nobody else listens to.
        shards: channels that are listened to as well, at the time of the call.
        on_message: called with channel and payload of what comes; give probes to `probed`.
        split: takes most messages before that; see `redis_link.Link`.
        on_change: called when a link came or went.
        on_moved: called when the server no longer has a sharded channel.
        deadline: seconds for an attempt to connect.

    Attributes:
        listener: the link that listens.
        publisher: the link that speaks.
        probe_seconds: how long the latest probe took, None before the first.
    """

    def __init__(
        self,
        name: str,
        *,
        connect: Callable[[], Awaitable[Opened]],
        channels: Iterable[bytes],
        probe_channel: bytes,
        shards: Callable[[], Iterable[bytes]],
        on_message: OnMessage,
        split: Split | None,
        on_change: Callable[[Pair], None],
        on_moved: Callable[[], None],
        deadline: float,
    ) -> None:
        self.probe_seconds: float | None = None
        self._probe_channel = probe_channel
        self._on_change = on_change
        self._probe = b""
        self._probed_at = 0.0
        self._probe_left = 0.0
        self._asked_role_at = 0.0
        self._octets_in = 0
        self._alone_since: float | None = None
        self.listener = Listener(
            f"{name}, listening",
            connect=connect,
            channels=channels,
            shards=shards,
            on_message=on_message,
            split=split,
            on_up=self._changed,
            on_down=self._deaf,
            on_moved=on_moved,
            deadline=deadline,
        )
        self.publisher = Publisher(
            f"{name}, speaking",
            connect=connect,
            on_up=self._changed,
            on_down=self._mute,
            on_moved=on_moved,
            deadline=deadline,
        )

    @property
    def is_up(self) -> bool:
        """Whether both links are up, as far as is known."""
        return self.listener.is_up and self.publisher.is_up

    def start(self) -> None:
        """Begin."""
        self.listener.keeper.start()
        self.publisher.keeper.start()

    async def tried(self) -> None:
        """Wait until both links were tried to be made once."""
        await self.listener.keeper.tried()
        await self.publisher.keeper.tried()

    def end(self, reason: str) -> None:
        """End both links; they are made again."""
        self.listener.keeper.end(reason)
        self.publisher.keeper.end(reason)

    async def close(self) -> None:
        """End both links for good."""
        await self.publisher.keeper.close()
        await self.listener.keeper.close()

    def turn(self, now: float) -> None:
        """Look after the links; called several times a second."""
        self.publisher.check(now)
        if self._probe and now - self._probed_at > PROBE_DEADLINE:
            self._probe = b""
            self.end("what was published does not come back")
            return
        if self.publisher.keeper.link is None:
            self._look_at_the_listener(now)
            return
        self._alone_since = None
        if now - self._asked_role_at >= ROLE_INTERVAL:
            self._asked_role_at = now
            self.publisher.send(b"ROLE", on_result=self._role)
        if self.listener.is_up and not self._probe and now - self._probed_at >= PROBE_INTERVAL:
            self._probe = PROBE + secrets.token_hex(8).encode()
            self._probed_at = now
            # The loop's own clock may have steps of a millisecond.
            self._probe_left = time.perf_counter()
            self.publisher.send(
                b"PUBLISH", self._probe_channel, self._probe, on_result=lambda _: None
            )

    def _look_at_the_listener(self, now: float) -> None:
        """With nothing to probe it by, a listener that hears nothing is as good as none."""
        octets, _ = self.listener.keeper.octets
        if self._alone_since is None or octets != self._octets_in:
            self._alone_since = now
            self._octets_in = octets
        elif now - self._alone_since > PROBE_DEADLINE and self.listener.is_up:
            self.listener.keeper.end("nothing is heard, and nothing can be sent")

    def _role(self, reply: object) -> None:
        if problem := role_problem(reply):
            self.end(problem)

    def probed(self, payload: bytes) -> None:
        """Take what begins with PROBE; only the latest one of this pair means something."""
        if payload == self._probe:
            self._probe = b""
            self.probe_seconds = time.perf_counter() - self._probe_left

    def _changed(self) -> None:
        self._on_change(self)

    def _deaf(self, reason: str) -> None:
        self._probe = b""
        self._on_change(self)

    def _mute(self, reason: str) -> None:
        # A probe may have gone down with the link. But from a server that is silent, nothing will
        # be heard either.
        self._probe = b""
        if reason == NO_ANSWER:
            self.listener.keeper.end(reason)
        self._on_change(self)
