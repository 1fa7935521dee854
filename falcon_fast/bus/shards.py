"""Shards: which of 128 channels a room's messages go through, and which of them are wanted here.

Pure: time is given. A shard is followed from the first room with a member here until some time
after the last one has gone, so that rooms that come and go do not turn into commands to Redis.
"""

from __future__ import annotations

import binascii
from typing import Final

__all__ = ["SHARDS", "Interest", "shard_of"]

SHARDS: Final = 128
"""Fixed for ever: all nodes must agree on it."""

LINGER: Final = 30.0
"""Seconds for which a shard is followed after its last room has gone."""


def shard_of(room: str) -> int:
    """Return the shard that a room's messages go through; a user's room is ``user:`` and the id."""
    return binascii.crc32(room.encode()) % SHARDS


class Interest:
    """Which shards are wanted here, and by which rooms."""

    def __init__(self) -> None:
        self._rooms: dict[int, set[str]] = {}
        self._idle: dict[int, float] = {}

    @property
    def shards(self) -> frozenset[int]:
        """All that are wanted, or were until a short while ago."""
        return frozenset(self._rooms)

    def add(self, room: str) -> int | None:
        """Note that a room has members here.

        Returns:
            Its shard if that was not followed before, else None.
        """
        shard = shard_of(room)
        self._idle.pop(shard, None)
        rooms = self._rooms.get(shard)
        if rooms is not None:
            rooms.add(room)
            return None
        self._rooms[shard] = {room}
        return shard

    def remove(self, room: str, now: float) -> None:
        """Note that a room has no members here any more."""
        shard = shard_of(room)
        rooms = self._rooms.get(shard)
        if rooms is None:
            return
        rooms.discard(room)
        if not rooms:
            self._idle.setdefault(shard, now + LINGER)

    def tired(self, now: float) -> list[int]:
        """Return the shards that nobody wanted for long, and forget them."""
        gone = [shard for shard, until in self._idle.items() if until <= now]
        for shard in gone:
            del self._idle[shard]
            del self._rooms[shard]
        return gone
