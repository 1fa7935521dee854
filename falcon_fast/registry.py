"""The port to the registry: who is connected where, written down outside of all nodes.

Other programs read it. For the server itself it holds two things that no node can know alone: how
many connections a user has on all nodes together, and what a node had that died without a word.
`registrar` keeps it in step with the connections of a node; an adapter writes it.

What is written belongs to an owner: the process that holds the connections, known by its id. A
node's first process has the id of the node.

Everything is called on the loop's thread and may raise BusUnavailable, and nothing else: then it is
not known what of the call was done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Claim", "Entry", "Registry", "RoomEntry"]


@dataclass(frozen=True, slots=True)
class Claim:
    """A connection that asks whether its user may have one more."""

    user_id: str
    connection_id: str
    limit: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A connection; the document is JSON."""

    connection_id: str
    user_id: str
    document: bytes


@dataclass(frozen=True, slots=True)
class RoomEntry:
    """A room and how many of its members are on this process; times are RFC 3339."""

    room_id: str
    type: str
    name: str
    members: int
    created_at: str
    updated_at: str


class Registry(Protocol):
    """Where it is written down; the contract is in the docstring of this module."""

    async def admit(self, owner: str, claims: Sequence[Claim]) -> list[bool]:
        """Count connections of a process as their users', each only below the user's limit."""

    async def oldest(self, user_id: str) -> str | None:
        """Return the id of the user's oldest connection."""

    async def put(self, owner: str, entries: Sequence[Entry]) -> None:
        """Write connections of a process, or write them anew."""

    async def drop(self, owner: str, connections: Sequence[tuple[str, str]]) -> None:
        """Remove connections of a process, given as (connection id, user id)."""

    async def put_rooms(self, owner: str, rooms: Sequence[RoomEntry]) -> None:
        """Write how many members rooms have on a process; none removes it, and an empty room."""

    async def beat(self, owner: str, document: bytes) -> bool:
        """Say that a process lives.

        Returns:
            Whether it was known to; if not, its entries may have been cleared up.
        """

    async def dead(self, after: float) -> list[str]:
        """Claim processes silent for so many seconds; each is given to one claimer."""

    async def clear(self, owner: str) -> int:
        """Remove what a process has, and return how many connections that were."""

    async def forget(self, owner: str) -> None:
        """Remove a process itself, whose connections and rooms are removed."""

    async def put_statistics(self, document: bytes) -> None:
        """Write the cluster's statistics."""

    async def close(self) -> None:
        """Let go of the store."""
