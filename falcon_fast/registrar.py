"""The registrar: keeps the registry in step with the connections of this node.

The gateway says what happens to connections and rooms; this writes it down in batches, keeps it
fresh, and clears up after nodes that died. Nothing of it is on the way of a message: processes ask
each other (see `cluster`), and the registry is for other programs to read, for the limit on a
user's connections, which has to be held on all nodes together, and for the dead, who cannot be
asked.

What is written is written once and refreshed long before it lapses, so a silent connection costs no
writes but one every 20 minutes. After an outage, or when others took this node for dead, everything
is written anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import islice
from typing import Final, TypeVar

import orjson

from falcon_fast.clock import Clock, rfc3339
from falcon_fast.cluster import BEAT, GONE, Cluster
from falcon_fast.errors import BusUnavailable
from falcon_fast.registry import Claim, Entry, Registry, RoomEntry
from falcon_fast.rooms import RoomInfo, Rooms
from falcon_fast.session import Session, State
from falcon_fast.statistics import Statistics
from falcon_fast.tasks import end_tasks

__all__ = ["Registrar"]

FLUSH: Final = 1.0
"""Seconds in which changes are gathered before they are written."""

FLUSH_GONE: Final = 0.05
"""Seconds in which connections that have ended are gathered: they make room for their users'."""

REFRESH: Final = 1200.0
"""Seconds after which everything has been written again; the shortest entry lapses after 3600."""

REFRESH_STEP: Final = 10.0
"""Seconds between two parts of that."""

BATCH: Final = 500
"""Entries written in one go."""

DEAD: Final = GONE + 10.0
"""Seconds without a beat after which a node's entries are cleared up."""

MAX_EVICTIONS: Final = 3
"""Tries to make room for a user's new connection by closing the oldest."""

log = logging.getLogger(__name__)


class Registrar:
    """Writes down what this node has.

    Args:
        registry: where it is written.
        cluster: who else is there.
        rooms: of this node.
        sessions: returns the live connections of this node.
        statistics: of this node.
        evict: closes a connection, wherever it is, because a newer one takes its place.
        clock: where the time comes from.
        limit: connections of one user on all nodes.
        replaces: whether a new connection takes the place of the user's oldest.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        cluster: Cluster,
        rooms: Rooms[Session],
        sessions: Callable[[], Sequence[Session]],
        statistics: Callable[[], Statistics],
        evict: Callable[[str], Awaitable[None]],
        clock: Clock,
        limit: int,
        replaces: bool,
    ) -> None:
        self._registry = registry
        self._cluster = cluster
        self._rooms = rooms
        self._sessions = sessions
        self._statistics = statistics
        self._evict = evict
        self._clock = clock
        self._limit = limit
        self._replaces = replaces
        self._claims: list[tuple[Claim, asyncio.Future[bool]]] = []
        self._claiming: asyncio.Task[None] | None = None
        self._changed: dict[str, Session] = {}
        self._gone: dict[str, str] = {}  # connection id -> user id
        self._changed_rooms: dict[str, None] = {}
        self._known_rooms: dict[str, RoomEntry] = {}  # as last written, for what is left of them
        self._dropping: asyncio.Task[None] | None = None
        self._is_stale = True  # nothing is written yet, or maybe not everything
        self._is_failing = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to write."""
        loop = asyncio.get_running_loop()
        for work in (self._flush_for_ever(), self._beat_for_ever(), self._refresh_for_ever()):
            self._tasks.append(loop.create_task(work))

    async def close(self) -> None:
        """Remove this node and all it has written, if the store answers, and stop."""
        more = [task for task in (self._claiming, self._dropping) if task is not None]
        await end_tasks((*self._tasks, *more))
        self._tasks.clear()
        for _, answer in self._claims:
            answer.cancel()
        try:
            await self._registry.clear(self._cluster.process_id)
            await self._registry.forget(self._cluster.process_id)
        except BusUnavailable:
            log.debug("the registry does not answer; others will clear up")
        await self._registry.close()

    # ------------------------------------------------------------------- the limit of a user

    async def admit(self, session: Session) -> bool:
        """Count a connection as its user's; False when the user has too many, on all nodes.

        When the registry does not answer nobody is turned away: each node holds the limit alone.
        """
        user_id = session.identity.user_id
        if self._is_failing:
            return True  # nobody shall wait for what did not come a moment ago
        for _ in range(MAX_EVICTIONS):
            if await self._claim(user_id, session.id):
                return True
            if not self._replaces:
                return False
            try:
                oldest = await self._registry.oldest(user_id)
                if oldest is None or oldest == session.id:
                    return True
                await self._evict(oldest)
                await self._registry.drop(self._cluster.process_id, [(oldest, user_id)])
            except BusUnavailable:
                return True
        return False

    async def _claim(self, user_id: str, connection_id: str) -> bool:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bool] = loop.create_future()
        self._claims.append((Claim(user_id, connection_id, self._limit), answer))
        if self._claiming is None:
            self._claiming = loop.create_task(self._answer_claims())
        return await answer

    async def _answer_claims(self) -> None:
        """Answer what is asked, all that has gathered at a time."""
        try:
            while self._claims:
                batch, self._claims = self._claims[:BATCH], self._claims[BATCH:]
                try:
                    admitted = await self._registry.admit(
                        self._cluster.process_id, [claim for claim, _ in batch]
                    )
                except BusUnavailable:
                    self._fail()
                    admitted = [True] * len(batch)
                for (claim, answer), is_admitted in zip(batch, admitted, strict=True):
                    if not answer.done():
                        answer.set_result(is_admitted)
                    elif is_admitted:
                        self._gone[claim.connection_id] = claim.user_id  # it did not wait
        finally:
            self._claiming = None

    # ------------------------------------------------------------------------- what has happened

    def changed(self, session: Session) -> None:
        """A connection was admitted, or its rooms or its identity changed."""
        self._changed[session.id] = session

    def gone(self, session: Session) -> None:
        """A connection is closed."""
        self._changed.pop(session.id, None)
        self._gone[session.id] = session.identity.user_id
        if self._dropping is None and not self._is_failing:
            loop = asyncio.get_running_loop()
            self._dropping = loop.create_task(self._drop_soon())

    @property
    def is_available(self) -> bool:
        """Whether the registry answered when it was last asked for something."""
        return not self._is_failing

    def room_changed(self, name: str) -> None:
        """A room has other members than before, or none."""
        self._changed_rooms[name] = None

    # -------------------------------------------------------------------------------- writing it

    async def _flush_for_ever(self) -> None:
        while True:
            await asyncio.sleep(FLUSH)
            try:
                await self._flush()
            except BusUnavailable:
                self._fail()

    async def _drop_soon(self) -> None:
        await asyncio.sleep(FLUSH_GONE)
        self._dropping = None
        try:
            await self._drop_gone()
        except BusUnavailable:
            self._fail()

    async def _drop_gone(self) -> None:
        while self._gone:
            await self._registry.drop(self._cluster.process_id, _take(self._gone))

    async def _flush(self) -> None:
        if self._is_stale:
            await self._write_all()
        await self._drop_gone()
        while self._changed:
            sessions = [session for _, session in _take(self._changed)]
            await self._put(sessions)
        while self._changed_rooms:
            await self._put_rooms([name for name, _ in _take(self._changed_rooms)])

    async def _write_all(self) -> None:
        """Write everything anew; what changes meanwhile is in the lists of changes already."""
        self._is_stale = False
        # What could not be removed in time is removed here, with all the rest.
        await self._registry.clear(self._cluster.process_id)
        for batch in _batches(list(self._sessions())):
            await self._put(batch)
        for names in _batches([*self._rooms.names()]):
            await self._put_rooms(names)

    def _fail(self) -> None:
        if not self._is_failing:
            log.warning(
                "the registry does not answer; it will be written anew", extra={"kind": "registry"}
            )
        self._is_failing = self._is_stale = True
        # All of this is found again when everything is written anew.
        self._changed.clear()
        self._changed_rooms.clear()
        self._known_rooms.clear()

    async def _put(self, sessions: Sequence[Session]) -> None:
        entries = [
            Entry(session.id, session.identity.user_id, self._document(session))
            for session in sessions
            if session.state is State.OPEN  # counted as its user's, and still there
        ]
        if entries:
            await self._registry.put(self._cluster.process_id, entries)

    def _document(self, session: Session) -> bytes:
        identity = session.identity
        return orjson.dumps(
            {
                "id": session.id,
                "user_id": identity.user_id,
                "character_id": identity.character_id,
                "character_name": identity.character_name,
                "rooms": self._rooms.names_of(session),
                "created_at": rfc3339(session.created_at),
                "last_ping": rfc3339(self._clock.time()),
                "node_id": self._cluster.node_id,
                "process_id": self._cluster.process_id,
                "remote_address": session.remote_address,
            }
        )

    async def _put_rooms(self, names: Sequence[str]) -> None:
        entries = [entry for name in names if (entry := self._room_entry(name)) is not None]
        if entries:
            await self._registry.put_rooms(self._cluster.process_id, entries)
            for entry in entries:
                if not entry.members:
                    self._known_rooms.pop(entry.room_id, None)
                else:
                    self._known_rooms[entry.room_id] = entry

    def _room_entry(self, name: str) -> RoomEntry | None:
        info: RoomInfo | None = self._rooms.info(name)
        if info is None:
            known = self._known_rooms.get(name)
            if known is None:
                return None  # it came and went between two writes
            return RoomEntry(
                name, known.type, known.name, 0, known.created_at, rfc3339(self._clock.time())
            )
        return RoomEntry(
            name,
            info.type,
            info.name,
            info.member_count,
            rfc3339(info.created_at),
            rfc3339(info.updated_at),
        )

    async def _refresh_for_ever(self) -> None:
        """Write everything again, a part at a time, before it lapses."""
        steps = int(REFRESH / REFRESH_STEP)
        while True:
            sessions, names = list(self._sessions()), list(self._rooms.names())
            for step in range(steps):
                await asyncio.sleep(REFRESH_STEP)
                for session in sessions[step::steps]:
                    if session.state is State.OPEN:
                        self._changed.setdefault(session.id, session)
                for name in names[step::steps]:
                    if name in self._rooms:
                        self._changed_rooms.setdefault(name)

    # ------------------------------------------------------------------- the node, and the dead

    async def bury(self, process_id: str) -> None:
        """Remove what a process of this node had, which has just died."""
        try:
            await self._registry.clear(process_id)
            await self._registry.forget(process_id)
        except BusUnavailable:
            log.debug("the registry does not answer; it is cleared up later")

    async def _beat_for_ever(self) -> None:
        while True:
            try:
                await self._beat()
            except BusUnavailable:
                self._fail()
            await asyncio.sleep(BEAT)

    async def _beat(self) -> None:
        statistics = self._statistics()
        here = self._cluster.connections
        owner = self._cluster.process_id
        document = orjson.dumps(
            {
                "node_id": self._cluster.node_id,
                "process_id": owner,
                "connections": here,
                "updated_at": rfc3339(self._clock.time()),
            }
        )
        if not await self._registry.beat(owner, document):
            self._is_stale = True
        if self._is_failing:
            log.info("the registry answers again")
            self._is_failing = False
        for dead in await self._registry.dead(DEAD):
            if dead == owner:
                continue
            connections = await self._registry.clear(dead)
            await self._registry.forget(dead)
            log.warning(
                "cleared up after a dead process",
                extra={"process_id": dead, "connections": connections},
            )
        peers = self._cluster.peers
        if all(owner <= peer.process_id for peer in peers):
            connections = sum(peer.connections for peer in peers) + here
            await self._registry.put_statistics(
                orjson.dumps(
                    {
                        "total_connections": connections,
                        "active_connections": connections,
                        "total_rooms": statistics.total_rooms,
                        "messages_processed": statistics.messages_processed,
                        "messages_broadcast": statistics.messages_broadcast,
                        "nodes": self._cluster.nodes,
                        "updated_at": rfc3339(self._clock.time()),
                    }
                )
            )


ItemT = TypeVar("ItemT")
KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")


def _batches(items: Sequence[ItemT]) -> Iterator[Sequence[ItemT]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def _take(items: dict[KeyT, ValueT]) -> list[tuple[KeyT, ValueT]]:
    """Take the oldest entries out of a dictionary, one batch of them."""
    taken = list(islice(items.items(), BATCH))
    for key, _ in taken:
        del items[key]
    return taken
