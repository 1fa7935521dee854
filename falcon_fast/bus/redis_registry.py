"""The registry on Redis: the keys that every program which knows go-falcon looks for.

========================================  ======  ==============================================
``websocket:connection:{id}``             string  JSON of a connection, 3600 s
``websocket:user:{user_id}``              set     the ids of a user's connections, 3600 s
``websocket:room:{room_id}``              string  JSON of a room, its members by process, 7200 s
``websocket:stats``                       string  JSON of the whole cluster, 3600 s
``websocket:node:{owner}``                string  JSON of a process, 60 s
``websocket:node:{owner}:connections``    hash    connection id -> user id
``websocket:node:{owner}:rooms``          set     the rooms with members on a process
``websocket:nodes``                       zset    process id -> when it was last heard of
========================================  ======  ==============================================

Every command and script has one key, so that all of it works on a Redis Cluster too. Time is Redis'
own: the clocks of nodes may differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

import orjson
from redis.exceptions import RedisError

from falcon_fast.bus.redis_address import RedisAddress, close_client, describe_error
from falcon_fast.errors import BusUnavailable
from falcon_fast.registry import Claim, Entry, RoomEntry

__all__ = ["RedisRegistry"]

CONNECTION_TTL: Final = 3600
USER_TTL: Final = 3600
ROOM_TTL: Final = 7200
STATISTICS_TTL: Final = 3600
NODE_TTL: Final = 60
"""Seconds after which an entry lapses unless it is written again."""

BATCH: Final = 500
"""Entries cleared up in one go."""

NODES: Final = "websocket:nodes"
STATISTICS: Final = "websocket:stats"

# Count a connection as its user's unless there are too many; one that is counted already stays.
_ADMIT: Final = """
if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 0
    and redis.call('SCARD', KEYS[1]) >= tonumber(ARGV[2]) then
  return 0
end
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""

# Put one node's number of members into a room's document, and sum up.
_ROOM: Final = """
local old = redis.call('GET', KEYS[1])
local room = {}
if old then
  local ok, read = pcall(cjson.decode, old)
  if ok and type(read) == 'table' then room = read end
end
local new = cjson.decode(ARGV[3])
if type(room.nodes) ~= 'table' then room.nodes = {} end
local members = tonumber(ARGV[2])
if members > 0 then room.nodes[ARGV[1]] = members else room.nodes[ARGV[1]] = nil end
local total = 0
for _, number in pairs(room.nodes) do total = total + (tonumber(number) or 0) end
if total == 0 then
  redis.call('DEL', KEYS[1])
  return 0
end
if new.id then
  room.id, room.type, room.name = new.id, new.type, new.name
  if type(room.created_at) ~= 'string' or new.created_at < room.created_at then
    room.created_at = new.created_at
  end
  room.updated_at = new.updated_at
end
room.member_count = total
redis.call('SET', KEYS[1], cjson.encode(room), 'EX', ARGV[4])
return total
"""

_BEAT: Final = """
return redis.call('ZADD', KEYS[1], redis.call('TIME')[1], ARGV[1])
"""

# Nodes that were not heard of; who gets one has as long again to clear up after it.
_DEAD: Final = """
local now = tonumber(redis.call('TIME')[1])
local dead = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[1]))
for _, id in ipairs(dead) do redis.call('ZADD', KEYS[1], now, id) end
return dead
"""


class RedisRegistry:
    """A :class:`falcon_fast.registry.Registry` on Redis.

    Args:
        address: of Redis.
    """

    def __init__(self, address: RedisAddress) -> None:
        # redis-py types its commands for both of its clients at once, which fits neither.
        self._redis: Any = address.client()

    async def admit(self, owner: str, claims: Sequence[Claim]) -> list[bool]:
        """See `Registry.admit`."""
        with _translated():
            pipeline = self._pipeline()
            for claim in claims:
                pipeline.eval(
                    _ADMIT, 1, _user(claim.user_id), claim.connection_id, claim.limit, USER_TTL
                )
            # Before the answer is known, so that whatever is counted is found if this node dies.
            mine = {claim.connection_id: claim.user_id for claim in claims}
            pipeline.hset(_connections(owner), mapping=mine)
            *answers, _ = await pipeline.execute()
            return [bool(answer) for answer in answers]

    async def oldest(self, user_id: str) -> str | None:
        """See `Registry.oldest`."""
        with _translated():
            ids = [ident.decode() for ident in await self._redis.smembers(_user(user_id))]
            if not ids:
                return None
            pipeline = self._pipeline()
            for ident in ids:
                pipeline.get(_connection(ident))
            documents = await pipeline.execute()
        ages: list[tuple[str, str]] = []
        for ident, document in zip(ids, documents, strict=True):
            if document is None:
                continue  # it came just now, and is not written yet
            with contextlib.suppress(orjson.JSONDecodeError, KeyError, TypeError):
                ages.append((str(orjson.loads(document)["created_at"]), ident))
        return min(ages)[1] if ages else min(ids)

    async def put(self, owner: str, entries: Sequence[Entry]) -> None:
        """See `Registry.put`."""
        with _translated():
            pipeline = self._pipeline()
            mine = {entry.connection_id: entry.user_id for entry in entries}
            pipeline.hset(_connections(owner), mapping=mine)
            for entry in entries:
                key = _user(entry.user_id)
                pipeline.set(_connection(entry.connection_id), entry.document, ex=CONNECTION_TTL)
                pipeline.sadd(key, entry.connection_id)
                pipeline.expire(key, USER_TTL)
            await pipeline.execute()

    async def drop(self, owner: str, connections: Sequence[tuple[str, str]]) -> None:
        """See `Registry.drop`."""
        if not connections:
            return
        with _translated():
            pipeline = self._pipeline()
            for ident, user_id in connections:
                pipeline.srem(_user(user_id), ident)
                pipeline.delete(_connection(ident))
            pipeline.hdel(_connections(owner), *(ident for ident, _ in connections))
            await pipeline.execute()

    async def put_rooms(self, owner: str, rooms: Sequence[RoomEntry]) -> None:
        """See `Registry.put_rooms`."""
        with _translated():
            pipeline = self._pipeline()
            key = f"websocket:node:{owner}:rooms"
            for room in rooms:
                document = orjson.dumps(
                    {
                        "id": room.room_id,
                        "type": room.type,
                        "name": room.name,
                        "created_at": room.created_at,
                        "updated_at": room.updated_at,
                    }
                )
                pipeline.eval(
                    _ROOM, 1, _room(room.room_id), owner, room.members, document, ROOM_TTL
                )
                if room.members:
                    pipeline.sadd(key, room.room_id)
                else:
                    pipeline.srem(key, room.room_id)
            await pipeline.execute()

    async def beat(self, owner: str, document: bytes) -> bool:
        """See `Registry.beat`."""
        with _translated():
            pipeline = self._pipeline()
            pipeline.eval(_BEAT, 1, NODES, owner)
            pipeline.set(f"websocket:node:{owner}", document, ex=NODE_TTL)
            added, _ = await pipeline.execute()
            return not added

    async def dead(self, after: float) -> list[str]:
        """See `Registry.dead`."""
        with _translated():
            found = await self._redis.eval(_DEAD, 1, NODES, int(after))
            return [ident.decode() for ident in found]

    async def clear(self, owner: str) -> int:
        """See `Registry.clear`."""
        number = 0
        with _translated():
            rooms = await self._redis.smembers(f"websocket:node:{owner}:rooms")
            nothing = orjson.dumps({})
            for batch in _batches(list(rooms)):
                pipeline = self._pipeline()
                for room in batch:
                    pipeline.eval(_ROOM, 1, _room(room.decode()), owner, 0, nothing, ROOM_TTL)
                pipeline.srem(f"websocket:node:{owner}:rooms", *batch)
                await pipeline.execute()
            connections = await self._redis.hgetall(_connections(owner))
        for part in _batches(list(connections.items())):
            await self.drop(owner, [(ident.decode(), user.decode()) for ident, user in part])
            number += len(part)
        return number

    async def forget(self, owner: str) -> None:
        """See `Registry.forget`."""
        with _translated():
            pipeline = self._pipeline()
            pipeline.delete(f"websocket:node:{owner}")
            pipeline.zrem(NODES, owner)
            await pipeline.execute()

    async def put_statistics(self, document: bytes) -> None:
        """See `Registry.put_statistics`."""
        with _translated():
            await self._redis.set(STATISTICS, document, ex=STATISTICS_TTL)

    async def close(self) -> None:
        """See `Registry.close`."""
        await close_client(self._redis)

    def _pipeline(self) -> Any:  # noqa: ANN401
        # Not a transaction: the keys may be on several servers of a cluster.
        return self._redis.pipeline(transaction=False)


def _connection(ident: str) -> str:
    return f"websocket:connection:{ident}"


def _user(user_id: str) -> str:
    return f"websocket:user:{user_id}"


def _room(room_id: str) -> str:
    return f"websocket:room:{room_id}"


def _connections(owner: str) -> str:
    return f"websocket:node:{owner}:connections"


def _batches(items: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn what redis-py raises into what a registry raises, without a word of secrets.

    A RuntimeError is uvloop's word for a write to a connection that was reset; redis-py lets it
    through, and a claim that it ended would wait forever.
    """
    try:
        yield
    except (RedisError, OSError, TimeoutError, RuntimeError) as error:
        raise BusUnavailable(f"the registry does not answer: {describe_error(error)}") from None
