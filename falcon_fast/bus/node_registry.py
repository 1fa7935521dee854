"""The registry of a node of several processes that has no Redis: how many connections a user has.

There are no other programs that could read, so of all that a registry is for only the limit of a
user remains, which no worker can hold alone. The node process counts (`NodeCounts`), the workers
ask it over their links (`NodeRegistry`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson

from falcon_fast.bus.hub import Hub
from falcon_fast.bus.node_link import NodeLink
from falcon_fast.registry import Claim, Entry, RoomEntry

__all__ = ["NodeCounts", "NodeRegistry"]

_ADMIT: Final = "registry.admit"
_OLDEST: Final = "registry.oldest"
_PUT: Final = "registry.put"
_DROP: Final = "registry.drop"
_CLEAR: Final = "registry.clear"

_OWNER: Final = 2
"""Octets in front of each connection that stand for its process."""

_RECORD: Final = _OWNER + 16
"""Octets of one connection: its process, and its id, a uuid."""


class NodeCounts:
    """Who is connected to which worker, for the limit of a user.

    A user's connections are one string of octets, the oldest first: at a hundred thousand users an
    object for each connection would cost more than the connections.

    Args:
        hub: through which the workers ask.
    """

    def __init__(self, hub: Hub) -> None:
        self._users: dict[str, bytes] = {}
        self._owners: dict[str, bytes] = {}
        self._last = 0
        hub.answers_to(_ADMIT, self._admit)
        hub.answers_to(_OLDEST, self._oldest)
        hub.answers_to(_PUT, self._put)
        hub.answers_to(_DROP, self._drop)
        hub.answers_to(_CLEAR, self._clear)

    def __len__(self) -> int:
        """How many users have connections."""
        return len(self._users)

    def count(self, user_id: str) -> int:
        """Return how many connections a user has."""
        return len(self._users.get(user_id, b"")) // _RECORD

    def forget(self, process_id: str) -> None:
        """Remove the connections of a worker, as after its death."""
        owner = self._owners.pop(process_id, None)
        if owner is None:
            return
        for user_id, records in list(self._users.items()):
            self._keep(user_id, [one for one in _split(records) if not one.startswith(owner)])

    def _record(self, process_id: str, connection_id: str) -> bytes:
        owner = self._owners.get(process_id)
        if owner is None:
            taken = set(self._owners.values())
            while owner is None or owner in taken:
                self._last = (self._last + 1) % (1 << 8 * _OWNER)
                owner = self._last.to_bytes(_OWNER, "big")
            self._owners[process_id] = owner
        return owner + bytes.fromhex(connection_id.replace("-", ""))

    def _keep(self, user_id: str, records: list[bytes]) -> None:
        if records:
            self._users[user_id] = b"".join(records)
        else:
            self._users.pop(user_id, None)

    def _admit(self, process_id: str, body: bytes) -> bytes:
        answers = []
        for user_id, connection_id, limit in orjson.loads(body):
            records = self._users.get(user_id, b"")
            record = self._record(process_id, connection_id)
            is_admitted = record in _split(records)
            if not is_admitted and len(records) // _RECORD < limit:
                is_admitted = True
                self._users[user_id] = records + record
            answers.append(is_admitted)
        return orjson.dumps(answers)

    def _oldest(self, process_id: str, body: bytes) -> bytes:
        records = self._users.get(body.decode())
        return b"" if records is None else records[_OWNER:_RECORD].hex().encode()

    def _put(self, process_id: str, body: bytes) -> bytes:
        for user_id, connection_id in orjson.loads(body):
            records = self._users.get(user_id, b"")
            record = self._record(process_id, connection_id)
            if record not in _split(records):
                self._users[user_id] = records + record
        return b""

    def _drop(self, process_id: str, body: bytes) -> bytes:
        for connection_id, user_id in orjson.loads(body):
            ident = bytes.fromhex(connection_id.replace("-", ""))
            records = _split(self._users.get(user_id, b""))
            self._keep(user_id, [one for one in records if not one.endswith(ident)])
        return b""

    def _clear(self, process_id: str, body: bytes) -> bytes:
        self.forget(process_id)
        return b""


class NodeRegistry:
    """A worker's `falcon_fast.registry.Registry`; it writes down nothing but users' connections.

    Args:
        link: to the node process.
    """

    def __init__(self, link: NodeLink) -> None:
        self._link = link

    async def admit(self, owner: str, claims: Sequence[Claim]) -> list[bool]:
        """See `Registry.admit`."""
        asked = [(claim.user_id, claim.connection_id, claim.limit) for claim in claims]
        answers: list[bool] = orjson.loads(await self._link.call(_ADMIT, orjson.dumps(asked)))
        return answers

    async def oldest(self, user_id: str) -> str | None:
        """See `Registry.oldest`."""
        found = (await self._link.call(_OLDEST, user_id.encode())).decode()
        parts = (found[:8], found[8:12], found[12:16], found[16:20], found[20:])
        return "-".join(parts) if found else None

    async def put(self, owner: str, entries: Sequence[Entry]) -> None:
        """See `Registry.put`."""
        asked = [(entry.user_id, entry.connection_id) for entry in entries]
        await self._link.call(_PUT, orjson.dumps(asked))

    async def drop(self, owner: str, connections: Sequence[tuple[str, str]]) -> None:
        """See `Registry.drop`."""
        await self._link.call(_DROP, orjson.dumps(connections))

    async def put_rooms(self, owner: str, rooms: Sequence[RoomEntry]) -> None:
        """See `Registry.put_rooms`."""

    async def beat(self, owner: str, document: bytes) -> bool:
        """See `Registry.beat`: nobody takes a worker for dead whose node process lives."""
        return True

    async def dead(self, after: float) -> list[str]:
        """See `Registry.dead`: the node process sees its workers die."""
        return []

    async def clear(self, owner: str) -> int:
        """See `Registry.clear`; how many there were is not asked for."""
        await self._link.call(_CLEAR, b"")
        return 0

    async def forget(self, owner: str) -> None:
        """See `Registry.forget`."""

    async def put_statistics(self, document: bytes) -> None:
        """See `Registry.put_statistics`."""

    async def close(self) -> None:
        """See `Registry.close`."""


def _split(records: bytes) -> list[bytes]:
    return [records[at : at + _RECORD] for at in range(0, len(records), _RECORD)]
