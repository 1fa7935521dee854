"""The directory in MongoDB: answers the gateway from the collections that others write.

Questions become queries in ``mongo_lookup``, changes are heard of in ``mongo_follow``, both drivers
are behind ``mongo_driver``. Here is what is known of each user who has a connection: a hash of the
groups that were told, and the keys of the documents they follow from. A change is looked up for the
users who have its key.

Nothing is ever written to the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, ParamSpec, TypeVar

from falcon_fast.clock import Clock
from falcon_fast.directory import SUPER_ADMIN, Group
from falcon_fast.directory.breaker import Breaker
from falcon_fast.directory.mongo_driver import Refused, Store, Unreadable
from falcon_fast.directory.mongo_follow import Follower
from falcon_fast.directory.mongo_lookup import BATCH_USERS, MAX_IN_FLIGHT, Look, Lookups
from falcon_fast.directory.mongo_rows import (
    Document,
    banned_by,
    character_number,
    is_about_profiles,
    keys_of,
)
from falcon_fast.directory.tasks import Tasks
from falcon_fast.errors import DirectoryUnavailable

__all__ = ["MongoDirectory", "missing_indexes"]

START_TIMEOUT: Final = 10.0
"""Seconds for which the start waits for a database that is not there yet."""

CACHE_TIME: Final = 2.0
"""Seconds for which an answer may be given again, if no change came."""

CACHE_SIZE: Final = 1024
"""Users whose answers are kept."""

HANDOVER: Final = 0.1
"""Seconds an answer may take on its way through its caller's tasks."""

GATHERING: Final = 0.01
"""Seconds for which the first of several changes waits for the others."""

SCAN: Final = 4096
"""Users looked through for the keys of changes before the loop gets its turn: two milliseconds."""

MAX_KEYS: Final = 20_000
"""Keys of changes that are looked for one by one; above it everybody is compared."""

BAN_RELOAD: Final = 0.5
"""Seconds between two readings of the list of banned users."""

OTHER_QUESTIONS: Final = 4
"""Questions about single characters that are under way at a time."""

INDEXES: Final = (
    ("user_profiles", "user_id", "{user_id: 1}"),
    ("user_profiles", "character_id", "{character_id: 1}, {unique: true}"),
    ("user_profiles", "banned", "{banned: 1}, {partialFilterExpression: {banned: true}}"),
    ("group_memberships", "character_id", "{character_id: 1, group_id: 1}, {unique: true}"),
)
"""Collection, the field an index must begin with, and what to give to createIndex."""

POLLING_INDEXES: Final = tuple(
    (name, "updated_at", "{updated_at: 1}")
    for name in ("groups", "group_memberships", "user_profiles")
)
"""Needed too where changes are followed by polling."""

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Tracked:
    """A user with a connection.

    Attributes:
        characters: Those that tokens of the user vouch for.
        keys: Of the documents the groups follow from.
        told: The hash of the groups the gateway knows of, or None before the first answer.
        named: The hash of the names the gateway knows of.
        asking: Questions about the user that are under way.
        answered_at: When the last question was answered, by the loop's clock.
    """

    characters: tuple[int, ...]
    keys: array[int]
    told: int | None = None
    named: int = 0
    asking: int = 0
    answered_at: float = float("-inf")


@dataclass(frozen=True, slots=True)
class _Remembered:
    until: float
    characters: frozenset[int]
    groups: frozenset[Group]
    keys: array[int]


class MongoDirectory:
    """A :class:`falcon_fast.directory.Directory` in MongoDB.

    Args:
        store: The database.
        clock: Gives the time that ``updated_at`` is compared with.
        start_timeout: Seconds for which ``start`` waits for the database.
    """

    def __init__(self, store: Store, *, clock: Clock, start_timeout: float = START_TIMEOUT) -> None:
        self._store = store
        self._start_timeout = start_timeout
        self._breaker = Breaker(clock.monotonic)
        self._lookups = Lookups(store, self._breaker, self, now=clock.monotonic)
        self._follower = Follower(store, self, clock=clock)
        self._others = asyncio.Semaphore(OTHER_QUESTIONS)
        self._tracked: dict[str, _Tracked] = {}
        self._cache: dict[str, _Remembered] = {}
        self._banned: frozenset[str] = frozenset()
        self._touched: set[int] = set()
        self._finding = False
        self._reading_soon = False
        self._tasks = Tasks()
        self._reading = asyncio.Lock()
        self._banned_meanwhile: set[str] | None = None
        self._repeats: dict[str, frozenset[Group]] = {}
        self._is_open = False
        self._on_change: Callable[[str, frozenset[Group]], None] | None = None
        self._on_ban: Callable[[str], None] | None = None
        self._on_profile: Callable[[str, int, str], None] | None = None

    # --- start and stop --------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, read who is banned, look at the indexes, and begin to follow changes."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._start_timeout
        self._is_open = True
        try:
            while True:
                try:
                    await self._open()
                    break
                except Refused:
                    raise
                except DirectoryUnavailable:
                    pause = random.uniform(0.25, 0.5)
                    if loop.time() + pause > until:
                        raise
                    await self._store.close()
                    await asyncio.sleep(pause)
        except BaseException:
            await self.close()
            raise
        self._follower.start()

    async def _open(self) -> None:
        await self._store.open()
        self._banned = await self._store.banned_users()
        try:
            missing = missing_indexes(await self._store.leading_fields())
        except DirectoryUnavailable as error:
            log.info("indexes are not known", extra={"error": str(error)})
            return
        for command in missing:
            log.warning("an index is missing", extra={"create": command})

    async def close(self) -> None:
        """Stop following changes and disconnect; a second call does nothing."""
        if not self._is_open:
            return
        self._is_open = False
        await self._follower.close()
        await self._lookups.close()
        await self._tasks.end()
        self._repeats.clear()
        await self._store.close()

    async def ping(self) -> None:
        """Ask the database for a sign of life."""
        await self._store.ping()

    @property
    def is_available(self) -> bool:
        """Whether the last look for changes succeeded and questions are answered."""
        return not self._follower.is_failing and not self._breaker.is_open

    # --- questions -------------------------------------------------------------------------------

    def is_banned(self, user_id: str) -> bool:
        """Tell from memory whether the user is banned."""
        return user_id in self._banned

    async def groups_of(self, user_id: str, character_id: int) -> frozenset[Group]:
        """Return the groups of a user, with one query for many users who are asked about."""
        tracked = self._tracked.get(user_id)
        known = self._recall(user_id, character_id, tracked)
        if known is not None:
            return known
        if tracked is not None:
            tracked.asking += 1
        try:
            return await self._lookups.groups_of(user_id, character_id)
        finally:
            if tracked is not None:
                tracked.asking -= 1

    def _recall(
        self, user_id: str, character_id: int, tracked: _Tracked | None
    ) -> frozenset[Group] | None:
        known = self._cache.get(user_id)
        now = asyncio.get_running_loop().time()
        if known is None or not self._is_open or known.until < now:
            return None
        wanted = {character_id, *(() if tracked is None else tracked.characters)}
        if not wanted <= known.characters:
            return None
        if tracked is not None:
            if tracked.told is None:
                tracked.told = hash(known.groups)
                tracked.keys = known.keys
            tracked.answered_at = now
        return known.groups

    async def refresh(self, user_ids: Iterable[str]) -> None:
        """Forget what is remembered of users, and look at once."""
        users = list(dict.fromkeys(user_ids))
        for user_id in users:
            self._cache.pop(user_id, None)
        await self._lookups.refresh(
            (user_id for user_id in users if user_id in self._tracked), tell=True
        )

    async def user_of(self, character_id: int) -> str | None:
        """Return the user whose profile has the character."""
        if character_number(character_id) is None:
            return None
        if self._breaker.is_refusing:
            raise DirectoryUnavailable("not asked, since MongoDB does not answer")
        async with self._others:
            return await self._store.owner_of(character_id)

    async def is_super_admin(self, user_id: str, character_id: int) -> bool:
        """Tell whether one of the user's groups is the super administrators'."""
        groups = await self.groups_of(user_id, character_id)
        return any(group.system_name == SUPER_ADMIN for group in groups)

    # --- who is followed -------------------------------------------------------------------------

    def watch(
        self,
        *,
        on_change: Callable[[str, frozenset[Group]], None],
        on_ban: Callable[[str], None],
        on_profile: Callable[[str, int, str], None] | None = None,
    ) -> None:
        """Say who is to be told of changes."""
        self._on_change = on_change
        self._on_ban = on_ban
        self._on_profile = on_profile

    def track(self, user_id: str, character_id: int) -> None:
        """Follow the changes of a user."""
        tracked = self._tracked.get(user_id)
        if tracked is None:
            self._tracked[user_id] = _Tracked((character_id,), array("q"))
        elif character_id not in tracked.characters:
            tracked.characters += (character_id,)
            # The user's other connections have not heard of this character's groups.
            self._lookups.need(user_id)
        if user_id in self._banned:
            # Banned between its handshake and now: the change itself is already past.
            asyncio.get_running_loop().call_soon(self._tell_ban, user_id)

    def forget(self, user_id: str) -> None:
        """Follow the user no longer."""
        self._tracked.pop(user_id, None)
        self._repeats.pop(user_id, None)

    # --- answers (mongo_lookup.Followed) ---------------------------------------------------------

    def characters_of(self, user_id: str) -> Collection[int]:
        """See `mongo_lookup.Followed`."""
        tracked = self._tracked.get(user_id)
        return () if tracked is None else tracked.characters

    def unanswered(self, user_id: str) -> bool:
        """See `mongo_lookup.Followed`."""
        return user_id in self._tracked

    def found(self, user_id: str, look: Look) -> None:
        """See `mongo_lookup.Followed`."""
        found = look.found
        if look.is_fresh and found.is_banned and user_id not in self._banned:
            self._ban(user_id)
        if look.is_fresh and look.is_awaited:
            self._remember(user_id, look)
        tracked = self._tracked.get(user_id)
        if tracked is None:
            return
        tracked.keys = found.keys
        self._tell_names(user_id, tracked, found.names)
        before, tracked.told = tracked.told, hash(found.groups)
        # Who hears of a user for the first time as the answer to a question is not told twice.
        if look.tell or (before != tracked.told and not (before is None and look.is_awaited)):
            self._tell(user_id, tracked, found.groups)
        if look.is_awaited:
            tracked.answered_at = asyncio.get_running_loop().time()

    def _remember(self, user_id: str, look: Look) -> None:
        self._cache.pop(user_id, None)
        while len(self._cache) >= CACHE_SIZE:
            del self._cache[next(iter(self._cache))]
        until = asyncio.get_running_loop().time() + CACHE_TIME
        self._cache[user_id] = _Remembered(
            until, look.characters, look.found.groups, look.found.keys
        )

    def _tell_names(
        self, user_id: str, tracked: _Tracked, names: Sequence[tuple[int, str]]
    ) -> None:
        mine = [(number, name) for number, name in names if number in tracked.characters]
        named = hash(tuple(mine))
        if named == tracked.named:
            return
        tracked.named = named
        for number, name in mine:
            _call(self._on_profile, user_id, number, name)

    def _tell(self, user_id: str, tracked: _Tracked, groups: frozenset[Group]) -> None:
        loop = asyncio.get_running_loop()
        _call(self._on_change, user_id, groups)
        # An answer handed out a moment ago may still be on its way through its caller's tasks,
        # and would then be applied after this newer set.
        if user_id in self._repeats:
            self._repeats[user_id] = groups
        elif loop.time() - tracked.answered_at < HANDOVER:
            self._repeats[user_id] = groups
            loop.call_later(HANDOVER, self._repeat, user_id)

    def _repeat(self, user_id: str) -> None:
        groups = self._repeats.pop(user_id, None)
        if groups is not None:
            _call(self._on_change, user_id, groups)

    # --- changes (mongo_follow.Audience) ---------------------------------------------------------

    def changed(self, change: Document) -> None:
        """See `mongo_follow.Audience`."""
        keys = keys_of(change)
        self._lookups.changed(keys)
        if keys is None:
            self._cache.clear()
            self._follower.compare_soon()
        else:
            for user_id, known in list(self._cache.items()):
                if not keys.isdisjoint(known.keys):
                    del self._cache[user_id]
            self._touched |= keys
            if not self._finding:
                self._finding = True
                self._tasks.run(self._find_users(), name="directory-find")
        if is_about_profiles(change):
            banned = banned_by(change)
            if banned is not None and banned not in self._banned:
                self._ban(banned)
            elif banned is None and self._banned:
                self._read_banned_soon()

    async def compare(self) -> None:
        """See `mongo_follow.Audience`."""
        await self._read_banned()
        for users in _batches(list(self._tracked), BATCH_USERS * MAX_IN_FLIGHT):
            present = [user_id for user_id in users if user_id in self._tracked]
            # What cannot be read is in the log already, and nobody else's business.
            with contextlib.suppress(Unreadable):
                await self._lookups.refresh(present, tell=False)

    async def _find_users(self) -> None:
        """Look up the users whom the changes of the last moments are about."""
        try:
            while self._touched:
                await asyncio.sleep(GATHERING)
                keys, self._touched = self._touched, set()
                if len(keys) > MAX_KEYS:
                    self._follower.compare_soon()
                    continue
                for batch in _batches(list(self._tracked.items()), SCAN):
                    for user_id, tracked in batch:
                        if not keys.isdisjoint(tracked.keys):
                            self._lookups.need(user_id)
                    await asyncio.sleep(0)
        finally:
            self._finding = False

    # --- bans ------------------------------------------------------------------------------------

    def _ban(self, user_id: str) -> None:
        self._banned |= {user_id}
        if self._banned_meanwhile is not None:
            self._banned_meanwhile.add(user_id)
        self._tell_ban(user_id)

    def _tell_ban(self, user_id: str) -> None:
        if user_id in self._tracked:
            _call(self._on_ban, user_id)

    async def _read_banned(self) -> None:
        """Read who is banned; who is banned meanwhile stays so."""
        async with self._reading:
            self._banned_meanwhile = set()
            try:
                banned = await self._store.banned_users() | self._banned_meanwhile
            finally:
                self._banned_meanwhile = None
            fresh = banned - self._banned
            self._banned = banned
        for user_id in fresh:
            self._tell_ban(user_id)

    def _read_banned_soon(self) -> None:
        """A ban may have been lifted, which need not be known at once."""
        if not self._reading_soon:
            self._reading_soon = True
            self._tasks.run(self._read_banned_later(), name="directory-bans")

    async def _read_banned_later(self) -> None:
        await asyncio.sleep(BAN_RELOAD)
        # What comes from here on is not in what is read now.
        self._reading_soon = False
        try:
            await self._read_banned()
        except DirectoryUnavailable:
            self._follower.compare_soon()


def missing_indexes(leading: Mapping[str, Collection[str]], *, polling: bool = False) -> list[str]:
    """Compare the indexes there are with those that questions need.

    Args:
        leading: For each collection the fields with which an index begins.
        polling: Whether changes are followed by polling.

    Returns:
        For each missing one the command that makes it.
    """
    needed = INDEXES + (POLLING_INDEXES if polling else ())
    return [
        f"db.{collection}.createIndex({arguments})"
        for collection, first, arguments in needed
        if first not in leading.get(collection, ())
    ]


def _call(callback: Callable[P, None] | None, *args: P.args, **kwargs: P.kwargs) -> None:
    """Tell the gateway something; what goes wrong there is no business of the directory."""
    if callback is None:
        return
    try:
        callback(*args, **kwargs)
    except Exception:
        log.exception("telling a change of users and groups failed")


def _batches(items: Sequence[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
