"""One link kept alive: made, watched, and made again with pauses that grow and are never equal."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

from redis.exceptions import RedisError

from falcon_fast.bus.redis_address import describe_error
from falcon_fast.bus.redis_link import Link, LinkError, Opened, Replies, Split
from falcon_fast.tasks import end_tasks

__all__ = ["Keeper"]

FIRST_PAUSE: Final = 0.1
"""Seconds, at most, before the first attempt after an end."""

LONGEST_PAUSE: Final = 1.5
"""Seconds, at most, between two attempts: with one attempt and the answers of the others it leaves
all that was lost told within five seconds of Redis' return."""

STEADY: Final = 5.0
"""Seconds after which a link counts as good, so that the pauses begin anew."""

log = logging.getLogger(__name__)


class Keeper:
    """Keeps one link.

    Args:
        name: for the log.
        connect: opens a connection that is logged in.
        prepare: called with the fresh link; what it raises ends the attempt.
        on_reply: takes the link's replies, also while it is prepared.
        on_up: called when it is prepared.
        on_down: called when a link ended that was up, with the reason.
        deadline: seconds for one attempt.
        split: see `redis_link.Link`.

    Attributes:
        link: the link while it is up.
        attempts: how often one was tried to be made.
        made: how often one was made.
        problem: why there is none, in few words; empty while there is one.
    """

    def __init__(
        self,
        name: str,
        *,
        connect: Callable[[], Awaitable[Opened]],
        prepare: Callable[[Link], Awaitable[None]],
        on_reply: Replies,
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        deadline: float,
        split: Split | None = None,
    ) -> None:
        self.link: Link | None = None
        self.attempts = 0
        self.made = 0
        self.problem = ""
        self._name = name
        self._connect = connect
        self._prepare = prepare
        self._on_reply = on_reply
        self._on_up = on_up
        self._on_down = on_down
        self._deadline = deadline
        self._split = split
        self._octets = [0, 0]
        self._current: Link | None = None
        self._ended: asyncio.Future[str] | None = None
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def octets(self) -> tuple[int, int]:
        """Octets read and written by all links so far."""
        read, written = self._octets
        if self._current is None:
            return read, written
        return read + self._current.octets_in, written + self._current.octets_out

    def start(self) -> None:
        """Begin to keep a link."""
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def tried(self) -> None:
        """Wait until the first attempt has succeeded or failed."""
        await self._tried.wait()

    def end(self, reason: str) -> None:
        """End the link if there is one; another is made."""
        if self._current is not None:
            self._current.end(reason)

    async def close(self) -> None:
        """End the link for good."""
        task, self._task = self._task, None
        if task is not None:
            await end_tasks([task])
        self._tried.set()

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE
        try:
            while True:
                began = loop.time()
                try:
                    await self._once()
                except Exception:
                    # A fault of ours shall cost one link, not all that would follow.
                    log.exception("a link to Redis failed", extra={"link": self._name})
                    self.end("failed")
                if loop.time() - began > STEADY:
                    pause = FIRST_PAUSE
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, LONGEST_PAUSE)
        finally:
            self.end("closed")

    async def _once(self) -> None:
        """Make a link and return when it has ended, or could not be made."""
        self.attempts += 1
        ended = asyncio.get_running_loop().create_future()
        self._ended = ended
        try:
            async with asyncio.timeout(self._deadline):
                link = Link(
                    await self._connect(),
                    on_reply=self._on_reply,
                    on_end=self._end,
                    split=self._split,
                )
                self._current = link
                preparing = asyncio.ensure_future(self._prepare(link))
                try:
                    await asyncio.wait({preparing, ended}, return_when=asyncio.FIRST_COMPLETED)
                    if not preparing.done():
                        raise LinkError(ended.result())
                    preparing.result()
                finally:
                    preparing.cancel()
            if ended.done():
                raise LinkError(ended.result())
        except (RedisError, LinkError, OSError) as error:
            # asyncio's TimeoutError is an OSError.
            text = str(error) if isinstance(error, LinkError) else describe_error(error)
            self._failed(text)
            self.end(text)
            return
        finally:
            self._tried.set()
        self.link = link
        self.made += 1
        self.problem = ""
        self._on_up()
        reason = await ended
        # Who ends it from within its own doing is told when that is over.
        log.warning("a link to Redis ended", extra={"link": self._name, "reason": reason})
        self.problem = reason
        self._on_down(reason)

    def _failed(self, text: str) -> None:
        if text != self.problem:
            log.warning("no link to Redis", extra={"link": self._name, "reason": text})
        self.problem = text

    def _end(self, reason: str) -> None:
        link, self._current = self._current, None
        self.link = None
        if link is not None:
            self._octets[0] += link.octets_in
            self._octets[1] += link.octets_out
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(reason)
