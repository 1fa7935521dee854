"""Questions about the groups of users, gathered into few queries; stands before the database.

Whoever wants to know something of a user waits for the next query that has the user in it. Of one
user there is one query at a time, so what it tells is never older than what was told before.

A change that is heard of while a query is under way may or may not be in its answer. The keys of
such changes are noted with the query, and a user whose answer has one of them is asked about again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

from falcon_fast.directory import Group
from falcon_fast.directory.breaker import Breaker
from falcon_fast.directory.mongo_driver import Store, Unreadable
from falcon_fast.directory.mongo_rows import Found, read_groups
from falcon_fast.directory.tasks import Tasks
from falcon_fast.errors import DirectoryUnavailable

__all__ = ["BATCH_USERS", "MAX_IN_FLIGHT", "Followed", "Look", "Lookups"]

BATCH_USERS: Final = 256
"""Users in one query: its answer is read within some milliseconds, the loop's longest pause."""

MAX_IN_FLIGHT: Final = 4
"""Queries under way at a time; the others wait here, and not in the database."""

MAX_SPLITS: Final = 24
"""Times a query is split to find the user whose answer cannot be read: enough for three of them. A
server of which nothing can be read is one that does not answer."""

GATHERING: Final = 0.01
"""Seconds for which the first of several questions waits for the others."""

PACE: Final = 0.1
"""Seconds between two departures: in a storm this is what makes few queries of many questions."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Look:
    """How an answer came about.

    Attributes:
        found: The answer.
        characters: Those that tokens vouch for and that were asked about.
        is_awaited: A question of the gateway gets it.
        tell: Somebody said that the user changed: whoever follows the user is told in any case.
        is_fresh: No change that it may lack came while the query was under way.
    """

    found: Found
    characters: frozenset[int]
    is_awaited: bool
    tell: bool
    is_fresh: bool


class Followed(Protocol):
    """What the directory does with answers; both are called on the loop, and must not fail."""

    def characters_of(self, user_id: str) -> Collection[int]:
        """Return the characters that tokens of the user vouch for."""

    def found(self, user_id: str, look: Look) -> None:
        """Take note of an answer, before those who asked get it."""

    def unanswered(self, user_id: str) -> bool:
        """Say whether a user is to be asked about again when there was no good answer."""


Answer: TypeAlias = asyncio.Future[frozenset[Group]]


@dataclass(slots=True)
class _Want:
    """What is wanted to be known of one user."""

    characters: set[int] = field(default_factory=set)
    questions: list[Answer] = field(default_factory=list)  # of the gateway
    looks: list[Answer] = field(default_factory=list)  # of those who want it looked at
    tell: bool = False
    lasting: bool = False  # asked about again when there was no answer

    @property
    def is_awaited(self) -> bool:
        return any(not answer.done() for answer in self.questions)

    @property
    def is_urgent(self) -> bool:
        return self.is_awaited or any(not answer.done() for answer in self.looks)


@dataclass(slots=True, eq=False)
class _Query:
    wants: dict[str, _Want]
    missed: set[int] = field(default_factory=set)
    missed_all: bool = False
    splits: int = 0

    def is_outdated(self, keys: array[int]) -> bool:
        return self.missed_all or not self.missed.isdisjoint(keys)


class Lookups:
    """All questions to the database about groups.

    Args:
        store: The database.
        breaker: Told how the queries end.
        followed: Who takes the answers.
        now: The breaker's clock.
    """

    def __init__(
        self, store: Store, breaker: Breaker, followed: Followed, *, now: Callable[[], float]
    ) -> None:
        self._store = store
        self._breaker = breaker
        self._followed = followed
        self._now = now
        self._wants: dict[str, _Want] = {}
        self._busy: set[str] = set()
        self._queries: set[_Query] = set()
        self._tasks = Tasks()
        self._is_running = False
        self._wake = asyncio.Event()
        self._departed = float("-inf")
        self._closed = False
        self.queries = 0

    async def close(self) -> None:
        """End all questions."""
        self._closed = True
        await self._tasks.end()
        for want in self._wants.values():
            _refuse(want, _not_open())
        self._wants.clear()

    # --- what is wanted --------------------------------------------------------------------------

    async def groups_of(self, user_id: str, character_id: int | None = None) -> frozenset[Group]:
        """Return a user's groups from a query that begins after this call.

        Raises:
            DirectoryUnavailable: There was no answer, or none is to be expected.
        """
        return await self._ask(user_id, character_id)

    async def refresh(self, user_ids: Iterable[str], *, tell: bool) -> None:
        """Ask about users whom somebody follows; return when the answers were taken note of.

        Args:
            user_ids: The users.
            tell: Whether followers are told also what they know.

        Raises:
            Unreadable: All were asked about, but what came of some cannot be used.
            DirectoryUnavailable: There was no answer for at least one.
        """
        answers = [
            self._ask(user_id, None, lasting=True, tell=tell) for user_id in dict.fromkeys(user_ids)
        ]
        failures = [
            error
            for error in await asyncio.gather(*answers, return_exceptions=True)
            if isinstance(error, BaseException)
        ]
        if failures:
            raise min(failures, key=lambda error: isinstance(error, Unreadable))

    def need(self, user_id: str) -> None:
        """Ask about a user as soon as that can be done."""
        if not self._closed:
            self._wants.setdefault(user_id, _Want()).lasting = True
            self._start()

    def changed(self, keys: Collection[int] | None) -> None:
        """Note that something changed; answers of queries under way may not have it."""
        for query in self._queries:
            if keys is None:
                query.missed_all = True
            else:
                query.missed.update(keys)

    def _ask(
        self,
        user_id: str,
        character_id: int | None,
        *,
        lasting: bool = False,
        tell: bool = False,
    ) -> Answer:
        answer: Answer = asyncio.get_running_loop().create_future()
        if self._closed:
            answer.set_exception(_not_open())
            return answer
        refused = self._breaker.is_refusing
        if lasting or not refused:
            want = self._wants.setdefault(user_id, _Want())
            want.lasting |= lasting
            want.tell |= tell
            if character_id is not None:
                want.characters.add(character_id)
            if not refused:
                (want.looks if lasting else want.questions).append(answer)
            self._start()
        if refused:
            answer.set_exception(DirectoryUnavailable("not asked, since MongoDB does not answer"))
        return answer

    def _start(self) -> None:
        if not self._is_running:
            self._is_running = True
            self._tasks.run(self._run(), name="directory-lookups")
        self._wake.set()

    # --- queries ---------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # What can wait does so until the breaker lets it; a question wakes it up.
            timeout = self._breaker.wait() if self._wants else 0.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout or None):
                    await self._wake.wait()
            self._wake.clear()
            if not self._ready():
                continue
            await asyncio.sleep(max(GATHERING, self._departed + PACE - loop.time()))
            self._departed = loop.time()
            while len(self._queries) < MAX_IN_FLIGHT and (batch := self._ready()):
                self._depart(batch[:BATCH_USERS])

    def _ready(self) -> list[str]:
        """Return the users who may be asked about now, those first for whom somebody waits."""
        if self._breaker.is_open and (self._queries or self._breaker.is_refusing):
            return []  # one query finds out whether it is over
        first, then = [], []
        can_wait = self._breaker.wait() > 0.0
        for user_id, want in self._wants.items():
            if user_id in self._busy:
                continue
            if want.is_urgent:
                first.append(user_id)
            elif not can_wait or not want.lasting:
                then.append(user_id)
        return first + then

    def _depart(self, users: list[str]) -> None:
        wants = {}
        for user_id in users:
            want = self._wants.pop(user_id)
            # Who asked has given up, and nobody else wants to know.
            if want.lasting or want.is_urgent:
                want.characters.update(self._followed.characters_of(user_id))
                wants[user_id] = want
        if not wants:
            return
        query = _Query(wants)
        self._busy |= wants.keys()
        self._queries.add(query)
        self._tasks.run(self._query(query), name="directory-query")

    async def _query(self, query: _Query) -> None:
        try:
            await self._answer(query, list(query.wants))
        except Exception:
            log.exception("asking for groups failed")
        finally:
            # Nobody is left waiting by a mistake, or by the end of the directory.
            for want in query.wants.values():
                _refuse(want, _not_open())
            self._busy -= query.wants.keys()
            self._queries.discard(query)
            self._wake.set()

    async def _answer(self, query: _Query, users: list[str]) -> None:
        wanted = {user_id: query.wants[user_id].characters for user_id in users}
        characters = {one for characters in wanted.values() for one in characters}
        self.queries += 1
        began = self._now()
        try:
            rows = await self._store.groups_of(wanted.keys(), characters)
        except Unreadable as error:
            if len(users) == 1:
                log.warning(
                    "the groups of a user cannot be read",
                    extra={"user_id": users[0], "error": str(error)},
                )
                _refuse(query.wants[users[0]], error)
                return
            if query.splits == MAX_SPLITS:
                self._unanswered(query, users, error, began)
                return
            # One user's documents must not keep the others waiting.
            query.splits += 1
            half = len(users) // 2
            await self._answer(query, users[:half])
            await self._answer(query, users[half:])
        except DirectoryUnavailable as error:
            self._unanswered(query, users, error, began)
        else:
            self._breaker.succeeded()
            self._hand_out(query, read_groups(rows, wanted))

    def _unanswered(
        self, query: _Query, users: list[str], error: DirectoryUnavailable, began: float
    ) -> None:
        self._breaker.failed(began)
        for user_id in users:
            _refuse(query.wants[user_id], error)
            if self._followed.unanswered(user_id):
                want = self._wants.setdefault(user_id, _Want())
                want.lasting = True
                want.tell |= query.wants[user_id].tell
        if self._breaker.is_refusing:
            self._refuse_all(error)

    def _refuse_all(self, error: DirectoryUnavailable) -> None:
        for user_id, want in list(self._wants.items()):
            _refuse(want, error)
            if not want.lasting:
                del self._wants[user_id]

    def _hand_out(self, query: _Query, found: Mapping[str, Found]) -> None:
        for user_id, one in found.items():
            want = query.wants[user_id]
            outdated = query.is_outdated(one.keys)
            if outdated and self._followed.unanswered(user_id):
                self._wants.setdefault(user_id, _Want()).lasting = True
            look = Look(
                one, frozenset(want.characters), want.is_awaited, want.tell, is_fresh=not outdated
            )
            self._followed.found(user_id, look)
            for answer in (*want.questions, *want.looks):
                if not answer.done():
                    answer.set_result(one.groups)


def _refuse(want: _Want, error: DirectoryUnavailable) -> None:
    for answer in (*want.questions, *want.looks):
        if not answer.done():
            answer.set_exception(_copy(error))


def _copy(error: DirectoryUnavailable) -> DirectoryUnavailable:
    """Give every caller an exception of its own, so that their tracebacks stay apart."""
    copy = type(error)(*error.args)
    copy.__cause__ = error
    return copy


def _not_open() -> DirectoryUnavailable:
    return DirectoryUnavailable("the directory is not open")
