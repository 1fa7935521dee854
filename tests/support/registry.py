"""A registry in memory that several nodes of a test share, and that can be out of reach."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from falcon_fast.clock import Clock
from falcon_fast.errors import BusUnavailable
from falcon_fast.registry import Claim, Entry, RoomEntry

__all__ = ["MemoryRegistry"]


class MemoryRegistry:
    """A `falcon_fast.registry.Registry`.

    Attributes:
        down: whether every call fails.
        users: user id -> ids of the user's connections.
        documents: connection id -> (node id, document).
        rooms: room id -> node id -> members.
        nodes: node id -> when it was heard of.
        statistics: as last written.
        writes: how many calls wrote something.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.down = False
        self.users: dict[str, dict[str, None]] = {}
        self.documents: dict[str, tuple[str, bytes]] = {}
        self.rooms: dict[str, dict[str, int]] = {}
        self.nodes: dict[str, float] = {}
        self.statistics = b""
        self.writes = 0

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        if self.down:
            raise BusUnavailable("the registry is down")

    async def admit(self, owner: str, claims: Sequence[Claim]) -> list[bool]:
        await self._answer()
        answers = []
        for claim in claims:
            mine = self.users.setdefault(claim.user_id, {})
            is_admitted = claim.connection_id in mine or len(mine) < claim.limit
            if is_admitted:
                mine[claim.connection_id] = None
                self.documents.setdefault(claim.connection_id, (owner, b""))
            answers.append(is_admitted)
        return answers

    async def oldest(self, user_id: str) -> str | None:
        await self._answer()
        return next(iter(self.users.get(user_id, {})), None)

    async def put(self, owner: str, entries: Sequence[Entry]) -> None:
        await self._answer()
        self.writes += 1
        for entry in entries:
            self.users.setdefault(entry.user_id, {})[entry.connection_id] = None
            self.documents[entry.connection_id] = (owner, entry.document)

    async def drop(self, owner: str, connections: Sequence[tuple[str, str]]) -> None:
        await self._answer()
        for ident, user_id in connections:
            self._drop(ident, user_id)

    def _drop(self, ident: str, user_id: str) -> None:
        self.documents.pop(ident, None)
        mine = self.users.get(user_id, {})
        mine.pop(ident, None)
        if not mine:
            self.users.pop(user_id, None)

    async def put_rooms(self, owner: str, rooms: Sequence[RoomEntry]) -> None:
        await self._answer()
        for room in rooms:
            self._count(owner, room.room_id, room.members)

    def _count(self, owner: str, room_id: str, members: int) -> None:
        nodes = self.rooms.setdefault(room_id, {})
        if members:
            nodes[owner] = members
        else:
            nodes.pop(owner, None)
        if not nodes:
            del self.rooms[room_id]

    async def beat(self, owner: str, document: bytes) -> bool:
        await self._answer()
        was_known = owner in self.nodes
        self.nodes[owner] = self._clock.monotonic()
        return was_known

    async def dead(self, after: float) -> list[str]:
        await self._answer()
        now = self._clock.monotonic()
        found = [one for one, then in self.nodes.items() if then < now - after]
        for one in found:
            self.nodes[one] = now
        return found

    async def clear(self, owner: str) -> int:
        await self._answer()
        mine = [ident for ident, (whose, _) in self.documents.items() if whose == owner]
        for ident in mine:
            for user_id in [user for user, idents in self.users.items() if ident in idents]:
                self._drop(ident, user_id)
        for room_id in list(self.rooms):
            self._count(owner, room_id, 0)
        return len(mine)

    async def forget(self, owner: str) -> None:
        await self._answer()
        self.nodes.pop(owner, None)

    async def put_statistics(self, document: bytes) -> None:
        await self._answer()
        self.statistics = document

    async def close(self) -> None:
        pass
