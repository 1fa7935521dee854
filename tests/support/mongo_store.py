"""A database in memory behind the seam, with the latency and the failures that a test wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Self, TypeAlias

from falcon_fast.directory.mongo_driver import NoChangeStreams, TokenLost, Unreadable
from falcon_fast.directory.mongo_rows import COLLECTIONS, GROUPS, MEMBERSHIPS, PROFILES, Document
from falcon_fast.errors import DirectoryUnavailable

Json: TypeAlias = dict[str, Any]

ROUND_TRIP: Final = 0.06
"""Seconds a question takes, half of them on each way."""

TOLD_AFTER: Final = 0.005
"""Seconds between a change and its event."""


def group_id(number: int) -> str:
    """Make an id that ends in the number."""
    return f"{number:024x}"


class FakeStore:
    """A :class:`falcon_fast.directory.mongo_driver.Store` in dictionaries.

    Attributes:
        error: raised by every question while it is set, and by the change stream.
        has_streams: whether there are change streams.
        is_lossy: events are lost.
        questions: the users of each question about groups, in order.
        asked: how many of all other questions there were, by kind.
        tokens: those with which streams were opened.
        unreadable: a question about this user has no readable answer.
    """

    def __init__(self) -> None:
        self.documents: dict[str, dict[str, Json]] = {name: {} for name in COLLECTIONS}
        self.error: DirectoryUnavailable | None = None
        self.latency = ROUND_TRIP
        self.has_streams = True
        self.is_lossy = False
        self.knows_tokens = True
        self.unreadable: str | None = None
        self.questions: list[list[str]] = []
        self.asked: dict[str, int] = {}
        self.tokens: list[Document | None] = []
        self.at_once = self.most_at_once = 0
        self.is_open = False
        self._events: list[Json] = []
        self._news = asyncio.Event()

    # --- what the test does ----------------------------------------------------------------------

    def put(self, collection: str, ident: str, **fields: object) -> None:
        """Write a document; its event follows."""
        kind = "update" if ident in self.documents[collection] else "insert"
        document = {"_id": ident, **self.documents[collection].get(ident, {}), **fields}
        self.documents[collection][ident] = document
        self._tell(kind, collection, ident, document)

    def remove(self, collection: str, ident: str) -> None:
        """Delete a document; its event follows."""
        del self.documents[collection][ident]
        self._tell("delete", collection, ident, None)

    def user(self, user_id: str, character: int, **more: object) -> None:
        """Write a profile."""
        fields = {"user_id": user_id, "character_id": character, "character_name": user_id.title()}
        self.put(PROFILES, f"p{character}", **{**fields, **more})

    def group(self, number: int, name: str = "Fleet", **more: object) -> str:
        """Write a group and return its id."""
        ident = group_id(number)
        self.put(GROUPS, ident, **{"name": name, "type": "custom", "is_active": True, **more})
        return ident

    def join(self, number: int, character: int) -> None:
        """Write a membership."""
        self.put(
            MEMBERSHIPS,
            f"{number}/{character}",
            group_id=group_id(number),
            character_id=character,
            is_active=True,
        )

    def leave(self, number: int, character: int) -> None:
        """Delete a membership."""
        self.remove(MEMBERSHIPS, f"{number}/{character}")

    def tell(self, event: Json) -> None:
        """Let any event come."""
        self._events.append(event)
        self._news.set()
        self._news = asyncio.Event()

    def _tell(self, kind: str, collection: str, ident: str, document: Json | None) -> None:
        if self.is_lossy:
            return
        event: Json = {
            "operationType": kind,
            "ns": {"db": "falcon", "coll": collection},
            "documentKey": {"_id": ident},
        }
        if document is not None:
            event["fullDocument"] = dict(document)
        self.tell(event)

    # --- the seam --------------------------------------------------------------------------------

    async def _question(self, kind: str) -> None:
        self.asked[kind] = self.asked.get(kind, 0) + 1
        await asyncio.sleep(self.latency / 2)
        if self.error is not None:
            raise self.error

    async def open(self) -> None:
        await self._question("open")
        self.is_open = True

    async def close(self) -> None:
        self.is_open = False

    async def ping(self) -> None:
        await self._question("ping")

    async def groups_of(
        self, users: Collection[str], characters: Collection[int]
    ) -> Sequence[Document]:
        self.questions.append(sorted(users))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self._question("groups")
            rows = self._rows(users, characters)
            # What is on its way back is what was true here.
            await asyncio.sleep(self.latency / 2)
        finally:
            self.at_once -= 1
        if self.unreadable in users:
            raise Unreadable("MongoDB's answer cannot be read")
        return rows

    def _rows(self, users: Collection[str], characters: Collection[int]) -> list[Json]:
        rows: list[Json] = []
        owned = {one["character_id"] for one in self.documents[PROFILES].values()}
        for profile in self.documents[PROFILES].values():
            if profile["user_id"] in users or profile["character_id"] in characters:
                rows.extend(self._joined(profile, profile["character_id"]))
        for character in set(characters) - owned:
            rows.extend(
                row
                for row in self._joined({"character_id": character}, character)
                if "membership" in row
            )
        return rows

    def _joined(self, profile: Json, character: int) -> list[Json]:
        found = [
            {**profile, "membership": one, "group": self._group(one["group_id"])}
            for one in self.documents[MEMBERSHIPS].values()
            if one["character_id"] == character
        ]
        return found or [{**profile, "group": []}]

    def _group(self, ident: str) -> list[Json]:
        group = self.documents[GROUPS].get(ident)
        return [] if group is None else [dict(group)]

    async def banned_users(self) -> frozenset[str]:
        await self._question("banned")
        found = frozenset(
            one["user_id"] for one in self.documents[PROFILES].values() if one.get("banned") is True
        )
        await asyncio.sleep(self.latency / 2)
        return found

    async def owner_of(self, character_id: int) -> str | None:
        await self._question("owner")
        for one in self.documents[PROFILES].values():
            if one["character_id"] == character_id:
                return str(one["user_id"])
        return None

    async def changed_since(self, since: float, limit: int) -> Sequence[Document]:
        await self._question("changed")
        return [
            {
                "operationType": "update",
                "ns": {"coll": name},
                "documentKey": {"_id": one["_id"]},
                "fullDocument": dict(one),
            }
            for name in COLLECTIONS
            for one in [
                one for one in self.documents[name].values() if one.get("updated_at", 0) >= since
            ][:limit]
        ]

    async def sizes(self) -> Mapping[str, int]:
        await self._question("sizes")
        return {name: len(self.documents[name]) for name in COLLECTIONS}

    async def leading_fields(self) -> Mapping[str, frozenset[str]]:
        await self._question("indexes")
        return {}

    def changes(self, token: Document | None) -> _FakeChanges:
        self.tokens.append(token)
        return _FakeChanges(self, token)


class _FakeChanges:
    def __init__(self, store: FakeStore, token: Document | None) -> None:
        self._store = store
        self._next = len(store._events) if token is None else int(str(token["at"]))

    @property
    def token(self) -> Document:
        return {"at": self._next}

    async def __aenter__(self) -> Self:
        await self._store._question("stream")
        if not self._store.has_streams:
            raise NoChangeStreams("MongoDB has no change streams for this user")
        if not self._store.knows_tokens:
            self._store.knows_tokens = True
            raise TokenLost("the change stream cannot go on where it stopped")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass

    async def next(self) -> Document | None:
        store = self._store
        if self._next >= len(store._events):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await store._news.wait()
        await asyncio.sleep(TOLD_AFTER)
        if store.error is not None:
            raise store.error
        if self._next >= len(store._events):
            return None
        event = store._events[self._next]
        self._next += 1
        return event
