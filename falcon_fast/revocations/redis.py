"""Revoked tokens in Redis: a hash that keeps them, and a channel that says which one is new.

The hash ``websocket:revocations`` has a rule's id as field and the rule as JSON. Whoever writes a
rule publishes its id on the channel of the same name, so an outside program revokes with HSET and
PUBLISH. Each process listens on a connection of its own, and reads the whole hash again when that
connection was made anew, and every 30 seconds, since Redis does not tell what a listener missed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, Final

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import AbstractConnection as Connection
from redis.exceptions import RedisError

from falcon_fast.errors import BusUnavailable
from falcon_fast.revocation import Revocation
from falcon_fast.revocations import Listener
from falcon_fast.tasks import end_tasks

__all__ = ["NAME", "Connection", "RedisRevocations"]

log = logging.getLogger(__name__)

NAME: Final = "websocket:revocations"
"""Of the hash, and of the channel."""

START_TIMEOUT: Final = 5.0
"""Seconds that a start waits for the rules; without them it goes on, and is not ready."""

READ_AGAIN: Final = 30.0
"""Seconds between two readings of the whole hash."""

PING_INTERVAL: Final = 5.0
"""Seconds of silence on the channel's connection after which it is asked whether it stands."""

REPLY_TIMEOUT: Final = 2.0
"""Seconds for one answer."""

RETRY_FIRST: Final = 0.1
RETRY_LAST: Final = 5.0
"""Seconds between attempts to connect, with jitter."""

PAGE: Final = 500
"""Rules read in one go: the loop gets its turn between two."""

MAX_IDENT_BYTES: Final = 128

Connect = Callable[[], Awaitable[Connection]]
"""Opens a connection for the channel; raises RedisError."""

_BROKEN: Final = (RedisError, OSError, TimeoutError, ValueError)
"""What a connection that does not work any more raises, or makes of what came."""


class RedisRevocations:
    """A `RevocationStore` on Redis.

    Args:
        client: For commands, with deadlines of its own; belongs to the caller.
        connect: Opens connections for the channel.
    """

    def __init__(self, client: Redis | RedisCluster, connect: Connect) -> None:
        self._client = client
        self._connect = connect
        self._loaded = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    async def start(self, listener: Listener) -> None:
        """See `RevocationStore.start`."""
        self._task = asyncio.create_task(self._follow(listener), name="revocations-follow")
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await self._loaded.wait()
        except TimeoutError:
            log.warning("Redis does not say yet which tokens are revoked")

    async def save(self, rule: Revocation) -> None:
        """See `RevocationStore.save`."""
        # Only a withdrawal may take the place of what is there.
        command = "HSET" if rule.withdrawn else "HSETNX"
        await self._do(command, NAME, rule.id, rule.to_json())
        await self._do("PUBLISH", NAME, rule.id)

    async def forget(self, idents: Collection[str]) -> None:
        """See `RevocationStore.forget`."""
        await self._do("HDEL", NAME, *idents)

    async def close(self) -> None:
        """See `RevocationStore.close`."""
        task, self._task = self._task, None
        if task is not None:
            await end_tasks([task])

    async def _do(self, *command: str | bytes | int) -> Any:  # noqa: ANN401
        """Carry out a command, whose answer has a type of its own."""
        try:
            async with asyncio.timeout(REPLY_TIMEOUT):
                return await self._client.execute_command(*command)
        except _BROKEN as error:
            raise BusUnavailable(f"Redis: {type(error).__name__}") from error

    # --- following -------------------------------------------------------------------------------

    async def _follow(self, listener: Listener) -> None:
        delay = RETRY_FIRST
        while True:
            try:
                connection = await self._connect()
                try:
                    await self._subscribe(connection)
                    await self._compare(listener)
                    self._works()
                    delay = RETRY_FIRST
                    await self._listen(connection, listener)
                finally:
                    await _hang_up(connection)
            except (*_BROKEN, BusUnavailable) as error:
                if not self._failing:
                    # Its text may hold what it was given.
                    reason = type(error.__cause__ or error).__name__
                    log.warning("revoked tokens cannot be followed", extra={"error": reason})
                self._failing = True
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(RETRY_LAST, delay * 2)

    def _works(self) -> None:
        self._loaded.set()
        if self._failing:
            log.info("revoked tokens are followed again")
        self._failing = False

    async def _subscribe(self, connection: Connection) -> None:
        await connection.send_command("SUBSCRIBE", NAME)
        # What is published from here on waits in the connection while the hash is read.
        await _next(connection, REPLY_TIMEOUT)

    async def _listen(self, connection: Connection, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        read_at = loop.time() + READ_AGAIN
        is_asked = False
        while True:
            reply = await _next(connection, REPLY_TIMEOUT if is_asked else PING_INTERVAL)
            if reply is not None:
                is_asked = False
                await self._read(await _gathered(reply, connection), listener)
            elif is_asked:
                raise TimeoutError
            else:
                await connection.send_command("PING")
                is_asked = True
            if loop.time() >= read_at:
                await self._compare(listener)
                read_at = loop.time() + READ_AGAIN

    async def _read(self, idents: Collection[str], listener: Listener) -> None:
        """Read the rules that the channel has named."""
        if idents:
            documents: list[object] = await self._do("HMGET", NAME, *idents)
            listener.heard(_rules(zip(idents, documents, strict=True)))

    async def _compare(self, listener: Listener) -> None:
        """Read the whole hash."""
        rules: list[Revocation] = []
        cursor = 0
        while True:
            found: tuple[int, dict[bytes, object]] = await self._do(
                "HSCAN", NAME, cursor, "COUNT", PAGE
            )
            cursor, page = found
            rules += _rules((_text(ident), document) for ident, document in page.items())
            if cursor == 0:
                break
        listener.compare(rules)


def _rules(found: Iterable[tuple[str, object]]) -> list[Revocation]:
    rules = []
    for ident, document in found:
        if not isinstance(document, bytes):
            continue  # named, but not there
        rule = Revocation.read(ident, document)
        if isinstance(rule, Revocation):
            rules.append(rule)
        else:
            # Somebody believes that tokens are revoked, and they are not.
            log.error("a field of %s is no rule: %s", NAME, rule, extra={"kind": "revocation"})
    return rules


async def _next(connection: Connection, timeout: float) -> object:
    """Return what comes next, None if nothing comes in time."""
    reply: object = await connection.read_response(timeout=timeout)
    return reply


async def _gathered(reply: object, connection: Connection) -> list[str]:
    """Return the ids in a message and in those that have arrived behind it, each once."""
    idents: dict[str, None] = {}
    while reply is not None:
        if isinstance(reply, list) and len(reply) == 3 and reply[0] == b"message":
            ident = reply[2]
            if isinstance(ident, bytes) and 0 < len(ident) <= MAX_IDENT_BYTES:
                idents[_text(ident)] = None
        if len(idents) >= PAGE:
            break
        reply = await _next(connection, 0.001)
    return list(idents)


def _text(octets: object) -> str:
    return octets.decode("utf-8", "replace") if isinstance(octets, bytes) else str(octets)


async def _hang_up(connection: Connection) -> None:
    try:
        await connection.disconnect(nowait=True)
    except _BROKEN as error:
        log.debug("hanging up failed", extra={"error": type(error).__name__})
