"""The link that speaks: what is published within one turn of the loop leaves in one write.

Nothing is sent twice. Redis' answers are counted; where they stay away, the link is ended, and what
was not answered is unconfirmed: Redis may have passed it on or not.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import hiredis

from falcon_fast.bus.redis_keeper import Keeper
from falcon_fast.bus.redis_link import Link, LinkError, Opened, pack

__all__ = ["NO_ANSWER", "Publisher", "error_word", "role_problem"]

ANSWER_DEADLINE: Final = 2.0
"""Seconds within which Redis answers, or the link is ended."""

MAX_WAITING: Final = 16_777_216
"""Octets that may wait for the socket; more is as if there were no link."""

NO_ANSWER: Final = "Redis does not answer"
"""Why a link was ended on which answers are overdue."""

_STATES: Final = frozenset(
    {"READONLY", "LOADING", "MASTERDOWN", "NOAUTH", "CLUSTERDOWN", "MISCONF", "NOREPLICAS"}
)
"""How errors begin that say that this server is the wrong one now."""

_MOVED: Final = frozenset({"MOVED", "ASK", "TRYAGAIN"})
"""How errors begin that say that another server of the cluster holds the channel."""

OnResult: TypeAlias = Callable[[object], None]

log = logging.getLogger(__name__)


class Publisher:
    """Publishes to one server.

    Args:
        name: for the log.
        connect: opens a connection.
        on_up: called when it can publish.
        on_down: called when it no longer can.
        on_moved: called when the server says that another one holds a channel.
        deadline: seconds for an attempt to connect.

    Attributes:
        keeper: of the link.
        published: messages handed to the link.
        unpublished: messages that did not leave, or that Redis refused.
        unconfirmed: messages without an answer on a link that broke.
    """

    def __init__(
        self,
        name: str,
        *,
        connect: Callable[[], Awaitable[Opened]],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        on_moved: Callable[[], None],
        deadline: float,
    ) -> None:
        self.published = 0
        self.unpublished = 0
        self.unconfirmed = 0
        self.keeper = Keeper(
            name,
            connect=connect,
            prepare=self._prepare,
            on_reply=self._take,
            on_up=on_up,
            on_down=self._down,
            deadline=deadline,
        )
        self._told_down = on_down
        self._on_moved = on_moved
        self._outbox: list[tuple[bytes, ...]] = []
        self._outbox_octets = 0
        # What is done with each answer that is owed: None for a message, which is counted only.
        self._owed: deque[OnResult | None] = deque()
        self._leaving: list[OnResult | None] = []
        # When the answers up to which number are due.
        self._due: deque[tuple[float, int]] = deque()
        self._asked = 0
        self._answered = 0
        self._planned = False
        self._drained: asyncio.Future[None] | None = None

    @property
    def is_up(self) -> bool:
        """Whether something published now leaves, as far as is known."""
        link = self.keeper.link
        return link is not None and link.waiting + self._outbox_octets <= MAX_WAITING

    def publish(self, command: bytes, channel: bytes, payload: bytes) -> None:
        """Send a message with this turn of the loop; only while `is_up`.

        Args:
            command: PUBLISH or SPUBLISH.
            channel: where to.
            payload: what.
        """
        self.published += 1
        self._add((command, channel, payload), None, len(payload))

    def send(self, *command: bytes, on_result: OnResult) -> None:
        """Send a command with this turn of the loop; only while `is_up`.

        Args:
            command: its words.
            on_result: called with the answer; never, if the link breaks.
        """
        self._add(command, on_result, sum(map(len, command)))

    def _add(self, command: tuple[bytes, ...], on_result: OnResult | None, octets: int) -> None:
        self._outbox.append(command)
        self._leaving.append(on_result)
        self._outbox_octets += octets
        if not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Write what was collected; done by itself at the end of the loop's turn."""
        self._planned = False
        commands, self._outbox = self._outbox, []
        leaving, self._leaving = self._leaving, []
        self._outbox_octets = 0
        link = self.keeper.link
        if link is None:
            self.unpublished += leaving.count(None)
            return
        if not commands:
            return
        self._owed.extend(leaving)
        self._asked += len(leaving)
        now = asyncio.get_running_loop().time()
        self._due.append((now + ANSWER_DEADLINE, self._asked))
        link.write(b"".join([pack(command) for command in commands]))

    def check(self, now: float) -> None:
        """End the link if an answer is overdue."""
        while self._due and self._due[0][1] <= self._answered:
            self._due.popleft()
        if self._due and self._due[0][0] < now:
            self.keeper.end(NO_ANSWER)

    async def drained(self) -> None:
        """Wait until everything is answered, or the link is gone."""
        self.flush()
        if self._owed:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    async def _prepare(self, link: Link) -> None:
        """Make sure that this is the server that speaks to all: a replica's PUBLISH stays there."""
        self._owed.clear()
        self._due.clear()
        self._asked = self._answered = 0
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._owed.append(lambda result: None if answer.done() else answer.set_result(result))
        self._asked += 1
        link.write(pack((b"ROLE",)))
        if problem := role_problem(await answer):
            raise LinkError(problem)

    def _take(self, reply: object) -> None:
        if not self._owed:
            self.keeper.end("an answer that nobody asked for")
            return
        on_result = self._owed.popleft()
        self._answered += 1
        if self._drained is not None and not self._owed:
            self._end_of_drain()
        if type(reply) is int and on_result is None:
            return
        if on_result is not None:
            on_result(reply)
            return
        self.unpublished += 1
        word = error_word(reply)
        if word in _MOVED:
            self._on_moved()
        elif word in _STATES:
            self.keeper.end(f"Redis says {word}")
        else:
            log.warning("Redis refused a message", extra={"kind": "bus_refused", "reason": word})

    def _down(self, reason: str) -> None:
        self.unconfirmed += self._owed.count(None)
        self._owed.clear()
        self._due.clear()
        self._end_of_drain()
        self._told_down(reason)

    def _end_of_drain(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)


def error_word(reply: object) -> str:
    """Return the word with which an error of Redis begins; its text may say too much."""
    word = str(reply).partition(" ")[0] if isinstance(reply, hiredis.ReplyError) else ""
    return word if word.isupper() and word.isalpha() and len(word) <= 16 else "something strange"


def role_problem(reply: object) -> str:
    """Say why a server is not one to publish to, by its answer to ROLE; empty if it is."""
    if isinstance(reply, list) and reply and reply[0] in {b"slave", b"sentinel"}:
        return f"it is a {'replica' if reply[0] == b'slave' else 'sentinel'}, not the master"
    word = error_word(reply)
    # A user who may not ask is taken at the operator's word.
    return f"Redis says {word}" if word in _STATES else ""
