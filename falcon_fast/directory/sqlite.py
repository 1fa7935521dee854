"""The embedded directory: answers the gateway from a SQLite file that anybody may change meanwhile.

All work on the file happens in one thread of its own. Changes of other processes are found twice a
second: only when the file's own times have moved, or this process did something with it, is SQLite
asked for its ``data_version``, which reads one page; only when that moved too are the tracked users
looked up again and compared.
"""

from __future__ import annotations

import asyncio
import logging
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Final, TypeAlias, TypeVar

from falcon_fast.clock import Clock, until_beat
from falcon_fast.directory import SUPER_ADMIN, Group
from falcon_fast.directory.sqlite_store import MEMORY, SqliteStore
from falcon_fast.errors import DirectoryUnavailable
from falcon_fast.sqlite_file import SqliteFile

__all__ = ["SqliteDirectory", "SqliteStore"]

logger = logging.getLogger(__name__)

POLL_INTERVAL: Final = 0.5
"""Seconds between two looks for changes, which have a second to be told."""

BATCH_USERS: Final = 512
"""Users looked up in one go, so that a question never waits long behind a comparison."""

HANDOVER: Final = 0.1
"""Seconds an answer may take on its way through its caller's tasks."""

T = TypeVar("T")
Version: TypeAlias = tuple[tuple[int, int], tuple[int, int]]


GATHERING: Final = 0.015
"""Seconds in which questions are gathered for one query.

Waking the worker thread costs more than a query: in a storm of clients this is shared by dozens,
and nobody notices a wait this short before the first message.
"""


@dataclass(slots=True)
class _Tracked:
    """A user with a connection.

    Attributes:
        characters: Those that tokens of the user vouch for.
        told: The hash of the groups the gateway knows of, or None before the first answer. It is
            only ever compared, and the sets themselves would be most of a user's memory.
        repeat: Whether the next comparison tells the groups even if they are the same.
        asking: Questions about the user that are under way.
        answered_at: When the last question was answered, by the loop's clock.
    """

    characters: tuple[int, ...]
    told: int | None = None
    repeat: bool = False
    asking: int = 0
    answered_at: float = float("-inf")


class _Followed:
    """The tracked users. Of those about whom nothing is going on only a few octets are kept.

    Attributes:
        awake: users about whom something is going on, or was a moment ago.
    """

    def __init__(self) -> None:
        self.awake: dict[str, _Tracked] = {}
        # What was told, then the characters, as 64-bit integers: a third of what `_Tracked` takes.
        self._asleep: dict[str, bytes] = {}

    def __contains__(self, user_id: str) -> bool:
        return user_id in self.awake or user_id in self._asleep

    def __iter__(self) -> Iterator[str]:
        return chain(self.awake, self._asleep)

    def add(self, user_id: str, character_id: int) -> None:
        """Begin to follow a user."""
        self.awake[user_id] = _Tracked((character_id,))

    def forget(self, user_id: str) -> None:
        """Follow a user no longer."""
        self.awake.pop(user_id, None)
        self._asleep.pop(user_id, None)

    def get(self, user_id: str) -> _Tracked | None:
        """Return what is known of a user, who is awake then."""
        tracked = self.awake.get(user_id)
        if tracked is None and (packed := self._asleep.pop(user_id, None)) is not None:
            told, *characters = array("q", packed)
            tracked = self.awake[user_id] = _Tracked(tuple(characters), told)
        return tracked

    def characters_of(self, user_id: str) -> tuple[int, ...]:
        """Return the characters of a user and wake nobody; none of one who is not followed."""
        packed = self._asleep.get(user_id)
        if packed is not None:
            return tuple(array("q", packed)[1:])
        tracked = self.awake.get(user_id)
        return () if tracked is None else tracked.characters

    def sleeps_knowing(self, user_id: str, told: int) -> bool:
        """Tell whether nothing is going on about a user, who was told just this."""
        packed = self._asleep.get(user_id)
        return packed is not None and array("q", packed[:8])[0] == told

    def settle(self, now: float) -> None:
        """Put those to sleep about whom nothing is going on any more."""
        for user_id, tracked in list(self.awake.items()):
            is_quiet = not tracked.repeat and not tracked.asking
            if is_quiet and tracked.told is not None and now - tracked.answered_at >= HANDOVER:
                del self.awake[user_id]
                self._asleep[user_id] = array("q", (tracked.told, *tracked.characters)).tobytes()


@dataclass(slots=True)
class _Question:
    user_id: str
    character_id: int
    answer: asyncio.Future[frozenset[Group]] = field(repr=False)
    tracked: _Tracked | None = field(repr=False)


class SqliteDirectory:
    """A :class:`falcon_fast.directory.Directory` on a SQLite file.

    Args:
        path: The file, made if it is not there, or ``:memory:``.
        poll_interval: Seconds between two looks for changes.
        clock: Gives the timestamps of what is written through :meth:`run`.
    """

    def __init__(
        self, path: str, *, poll_interval: float = POLL_INTERVAL, clock: Clock | None = None
    ) -> None:
        self._path = path
        self._poll_interval = poll_interval
        self._clock = clock
        self._executor: ThreadPoolExecutor | None = None
        self._poller: asyncio.Task[None] | None = None
        self._answerer: asyncio.Task[None] | None = None
        self._questions: list[_Question] = []
        self._tracked = _Followed()
        self._banned: frozenset[str] = frozenset()
        self._seen: Version | None = None
        self._failing = False
        self._outside = SqliteFile(path)
        self._worked = False
        self._on_change: Callable[[str, frozenset[Group]], None] | None = None
        self._on_ban: Callable[[str], None] | None = None
        # Used in the worker thread only.
        self._store: SqliteStore | None = None
        self._file = (0, 0)

    async def start(self) -> None:
        """Open the file, read who is banned, and begin to look for changes."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="falcon-sqlite")
        try:
            await self._in_worker(lambda: self._open(create=True))
            self._seen = await self._in_worker(self._look)
            self._banned = await self._in_worker(self._read_banned)
        except BaseException:
            await self.close()
            raise
        self._poller = asyncio.create_task(self._poll(), name="directory-poll")

    async def close(self) -> None:
        """Stop looking for changes and close the file; a second call does nothing."""
        executor = self._executor
        if executor is None:
            return
        # From here on every question is refused, also those that wait for their turn.
        self._executor = None
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.wait([self._poller])
            self._poller = None
        if self._answerer is not None:
            await asyncio.wait([self._answerer])
        # SQLite wants the file closed by the thread that opened it.
        await asyncio.get_running_loop().run_in_executor(executor, self._close_store)
        executor.shutdown()

    async def ping(self) -> None:
        """Ask the file for a sign of life."""
        await self._in_worker(self._look)
        await self.run(SqliteStore.counts)

    async def run(self, work: Callable[[SqliteStore], T]) -> T:
        """Do something with the store in its own thread, such as seeding a ``:memory:`` one.

        Args:
            work: Called with the open store, which must not be kept.

        Returns:
            What ``work`` returns. Changes it makes are told like anybody else's.

        Raises:
            DirectoryUnavailable: The directory is not open; or whatever ``work`` raises.
        """
        self._worked = True
        return await self._in_worker(lambda: work(self._opened()))

    @property
    def is_available(self) -> bool:
        """Whether the last look for changes succeeded."""
        return not self._failing

    def is_banned(self, user_id: str) -> bool:
        """Tell from memory whether the user is banned."""
        return user_id in self._banned

    def groups_of(self, user_id: str, character_id: int) -> asyncio.Future[frozenset[Group]]:
        """Return the groups of a user; questions asked within a few milliseconds share a query."""
        answer: asyncio.Future[frozenset[Group]] = asyncio.get_running_loop().create_future()
        if self._executor is None:
            answer.set_exception(self._not_open())
            return answer
        tracked = self._tracked.get(user_id)
        if tracked is not None:
            tracked.asking += 1
        self._questions.append(_Question(user_id, character_id, answer, tracked))
        if self._answerer is None:
            self._answerer = asyncio.create_task(self._answer(), name="directory-answer")
        return answer

    async def refresh(self, user_ids: Iterable[str]) -> None:
        """Look at once, and tell the users' groups whether they changed or not."""
        for batch in _batches(list(dict.fromkeys(user_ids)), BATCH_USERS):
            mine = [user_id for user_id in batch if user_id in self._tracked]
            for user_id in mine:
                # Also for the next look, should this one fail.
                if (tracked := self._tracked.get(user_id)) is not None:
                    tracked.repeat = True
            await self._look_up(mine)

    async def user_of(self, character_id: int) -> str | None:
        """Return the user whose profile has the character."""
        return await self.run(lambda store: store.owner_of(character_id))

    async def is_super_admin(self, user_id: str, character_id: int) -> bool:
        """Tell whether one of the user's groups is the super administrators'."""
        groups = await self.groups_of(user_id, character_id)
        return any(group.system_name == SUPER_ADMIN for group in groups)

    def watch(
        self,
        *,
        on_change: Callable[[str, frozenset[Group]], None],
        on_ban: Callable[[str], None],
        on_profile: Callable[[str, int, str], None] | None = None,
    ) -> None:
        """Say who is to be told of changes; names are not followed."""
        self._on_change = on_change
        self._on_ban = on_ban

    def track(self, user_id: str, character_id: int) -> None:
        """Follow the changes of a user."""
        tracked = self._tracked.get(user_id)
        if tracked is None:
            self._tracked.add(user_id, character_id)
        elif character_id not in tracked.characters:
            tracked.characters += (character_id,)
            # The user's other connections have not heard of this character's groups.
            tracked.repeat = True
        if user_id in self._banned:
            # Banned between its handshake and now: the change itself is already past.
            asyncio.get_running_loop().call_soon(self._tell_ban, user_id)

    def forget(self, user_id: str) -> None:
        """Follow the user no longer."""
        self._tracked.forget(user_id)

    # --- questions -------------------------------------------------------------------------------

    async def _answer(self) -> None:
        """Answer questions until there are none; those that come meanwhile form the next batch."""
        try:
            while self._questions:
                await asyncio.sleep(GATHERING)
                batch = self._questions[:BATCH_USERS]
                del self._questions[:BATCH_USERS]
                wanted: dict[str, set[int]] = {}
                for question in batch:
                    wanted.setdefault(question.user_id, set()).add(question.character_id)
                for user_id, characters in wanted.items():
                    characters.update(self._tracked.characters_of(user_id))
                try:
                    found = await self.run(_lookup(wanted))
                except Exception as error:
                    for question in batch:
                        if not question.answer.done():
                            question.answer.set_exception(_copy(error))
                else:
                    self._hand_out(batch, found)
                for question in batch:
                    if question.tracked is not None:
                        question.tracked.asking -= 1
        finally:
            self._answerer = None

    def _hand_out(self, batch: Sequence[_Question], found: dict[str, frozenset[Group]]) -> None:
        now = asyncio.get_running_loop().time()
        for question in batch:
            groups = found[question.user_id]
            tracked = self._tracked.get(question.user_id)
            if tracked is not None:
                tracked.answered_at = now
                # An older set stays, even if this one is newer: the user's other connections know
                # only the older one and must be told by the next comparison.
                if tracked.told is None:
                    tracked.told = hash(groups)
            if not question.answer.done():
                question.answer.set_result(groups)

    # --- changes ---------------------------------------------------------------------------------

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(until_beat(loop.time(), self._poll_interval))
            try:
                if self._is_to_look(loop.time()):
                    await self._follow()
            except DirectoryUnavailable as error:
                if not self._failing:
                    logger.warning("users and groups are unavailable: %s", error)
                self._failing = True
            except Exception:
                self._worked = True  # so that it is tried again at once, not after the next change
                logger.exception("looking for changes of users and groups failed")
            else:
                if self._failing:
                    logger.info("users and groups are available again")
                self._failing = False

    def _is_to_look(self, now: float) -> bool:
        """Tell whether there may be something to tell of; `_follow` finds out what."""
        worked, self._worked = self._worked, False
        may_have_changed = self._path != MEMORY and self._outside.may_have_changed(now)
        return worked or may_have_changed or bool(self._tracked.awake) or self._failing

    async def _follow(self) -> None:
        """Compare the tracked users with the store, if there is a reason to."""
        version = await self._in_worker(self._look)
        if version != self._seen:
            banned = await self._in_worker(self._read_banned)
            fresh = banned - self._banned
            self._banned = banned
            for user_id in fresh:
                self._tell_ban(user_id)
            users = list(self._tracked)
        else:
            users = [
                user_id
                for user_id, tracked in self._tracked.awake.items()
                if tracked.repeat or (tracked.told is None and not tracked.asking)
            ]
        for batch in _batches(users, BATCH_USERS):
            await self._look_up(batch)
        # Kept only now: what failed half way is looked at again.
        self._seen = version
        self._tracked.settle(asyncio.get_running_loop().time())

    async def _look_up(self, users: Iterable[str]) -> None:
        wanted = {
            user_id: frozenset(self._tracked.characters_of(user_id))
            for user_id in users
            if user_id in self._tracked
        }
        for user_id, groups in (await self.run(_lookup(wanted))).items():
            self._compare(user_id, groups)

    def _compare(self, user_id: str, groups: frozenset[Group]) -> None:
        if self._tracked.sleeps_knowing(user_id, hash(groups)):
            return
        tracked = self._tracked.get(user_id)
        if tracked is None or (tracked.told == hash(groups) and not tracked.repeat):
            return
        if tracked.told is None and tracked.asking:
            return
        # An answer handed out a moment ago may still be on its way through its caller's tasks,
        # and would then be applied after this newer set.
        now = asyncio.get_running_loop().time()
        tracked.repeat = now - tracked.answered_at < HANDOVER
        tracked.told = hash(groups)
        if self._on_change is not None:
            try:
                self._on_change(user_id, groups)
            except Exception:
                logger.exception("telling a change of groups failed")

    def _tell_ban(self, user_id: str) -> None:
        if self._on_ban is None or user_id not in self._tracked:
            return
        try:
            self._on_ban(user_id)
        except Exception:
            logger.exception("telling a ban failed")

    # --- the worker thread -----------------------------------------------------------------------

    async def _in_worker(self, work: Callable[[], T]) -> T:
        if self._executor is None:
            raise self._not_open()
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _look(self) -> Version:
        """Return a value that differs after every change, also when the file is another one."""
        if self._path != MEMORY and self._identify() != self._file:
            # Put back from a copy: the open file is no longer the one everybody else writes.
            self._open(create=False)
        return self._file, self._opened().version()

    def _open(self, *, create: bool) -> None:
        store = SqliteStore(self._path, create=create, clock=self._clock)
        # The old file is let go only when there is a new one.
        self._close_store()
        self._store = store
        if self._path != MEMORY:
            self._file = self._identify()

    def _opened(self) -> SqliteStore:
        if self._store is None:
            raise self._not_open()
        return self._store

    def _identify(self) -> tuple[int, int]:
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise DirectoryUnavailable(f"{self._path}: {error.strerror}") from error
        return status.st_dev, status.st_ino

    def _read_banned(self) -> frozenset[str]:
        return self._opened().banned_users()

    def _close_store(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _not_open(self) -> DirectoryUnavailable:
        return DirectoryUnavailable(f"{self._path}: the directory is not open")


def _lookup(
    wanted: dict[str, set[int]] | dict[str, frozenset[int]],
) -> Callable[[SqliteStore], dict[str, frozenset[Group]]]:
    def work(store: SqliteStore) -> dict[str, frozenset[Group]]:
        return store.groups_of(wanted)

    return work


def _copy(error: Exception) -> Exception:
    """Give every caller an exception of its own, so that their tracebacks stay apart."""
    if not isinstance(error, DirectoryUnavailable):
        return error
    copy = DirectoryUnavailable(str(error))
    copy.__cause__ = error
    return copy


def _batches(users: Sequence[str], size: int) -> Iterator[list[str]]:
    rest = iter(users)
    while batch := list(islice(rest, size)):
        yield batch
