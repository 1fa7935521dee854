"""What operators and host programs may do: one typed facade, for the admin API and for Python.

Nothing here knows HTTP, and nothing behind it leaks out: calls take plain values, results are
immutable. Every call speaks for the whole cluster; with one node that is this node. `partial` in a
result names nodes that did not answer in time, so that a count is never silently too small.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from falcon_fast import envelope
from falcon_fast.bus import Target
from falcon_fast.codes import CloseReason
from falcon_fast.directory import Directory
from falcon_fast.errors import DirectoryUnavailable, NotFoundError
from falcon_fast.gateway import Gateway
from falcon_fast.identity import new_id
from falcon_fast.rooms import RoomInfo, RoomType, user_room
from falcon_fast.session import Session, State
from falcon_fast.statistics import Statistics

__all__ = [
    "DEFAULT_LIMIT",
    "MAX_LIMIT",
    "ConnectionInfo",
    "Page",
    "RoomDetails",
    "RoomInfo",
    "RoomType",
    "SendResult",
    "Service",
]

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000
"""Entries of one page: a page is made in one go, and the loop must not stand still for it."""

AT_A_TIME: Final = 16
"""Entries made before the loop gets its turn."""

_SLOTS: Final = 0xFFFF

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """A connection as an operator sees it; times are seconds since 1970.

    Attributes:
        last_ping: when the client was last heard of.
    """

    id: str
    user_id: str
    character_id: int
    character_name: str
    rooms: tuple[str, ...]
    created_at: float
    last_ping: float
    node_id: str
    remote_address: str


@dataclass(frozen=True, slots=True)
class RoomDetails:
    """A room with its members' connection ids."""

    info: RoomInfo
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Page(Generic[ItemT]):
    """A part of a listing.

    Attributes:
        items: what was asked for.
        total: how many there are on all pages, now.
        next: where the next page begins, or None when this is the last one.
        partial: ids of nodes that did not answer.
    """

    items: tuple[ItemT, ...]
    total: int
    next: int | None
    partial: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SendResult:
    """What became of a message.

    Attributes:
        message_id: the id that receivers see, a uuid4.
        recipients_count: connections it was queued to, on all nodes.
        timestamp: seconds since 1970, as in the frame.
        partial: ids of nodes that did not say how many.
    """

    message_id: str
    recipients_count: int
    timestamp: float
    partial: tuple[str, ...] = ()


class Service:
    """The operations of a server; made by `falcon_fast.Falcon`."""

    def __init__(self, gateway: Gateway, directory: Directory) -> None:
        self._gateway = gateway
        self._directory = directory

    # ------------------------------------------------------------------------------- connections

    async def list_connections(
        self,
        *,
        user_id: str | None = None,
        character_id: int | None = None,
        room_id: str | None = None,
        limit: int = DEFAULT_LIMIT,
        start: int = 0,
    ) -> Page[ConnectionInfo]:
        """List connections; filters combine with AND.

        Paging stays right while connections come and go: one that is there from the first page to
        the last is listed exactly once.

        Args:
            user_id: only those of this user.
            character_id: only those whose token names this character.
            room_id: only those in this room.
            limit: entries, 1 to `MAX_LIMIT`.
            start: 0, or `Page.next` of the page before.
        """
        limit = min(max(limit, 1), MAX_LIMIT)
        core = self._gateway.core
        if user_id is None and character_id is None and room_id is None:
            sessions, following = core.owners_from(start, limit)
            return await self._connection_page(sessions, core.count, following)
        found = self._matching(user_id, character_id, room_id)
        rest = [session for session in found if session.conn & _SLOTS >= start]
        following = rest[limit].conn & _SLOTS if len(rest) > limit else -1
        return await self._connection_page(rest[:limit], len(found), following)

    async def _connection_page(
        self, sessions: list[Session], total: int, following: int
    ) -> Page[ConnectionInfo]:
        items = []
        for number, session in enumerate(sessions, 1):
            if session.state is not State.CLOSED:
                items.append(self._describe(session))
            if number % AT_A_TIME == 0:
                # Clients' messages go first; who is closed meanwhile is left out.
                await asyncio.sleep(0)
        return Page(tuple(items), total, following if following >= 0 else None)

    def _matching(
        self, user_id: str | None, character_id: int | None, room_id: str | None
    ) -> list[Session]:
        rooms = self._gateway.rooms
        if user_id is not None:
            found = rooms.members(user_room(user_id))
            if room_id is not None:
                found = [session for session in found if rooms.is_member(session, room_id)]
        elif room_id is not None:
            found = rooms.members(room_id)
        else:
            found = self._gateway.core.owners()
        if character_id is not None:
            found = [one for one in found if one.identity.character_id == character_id]
        return found

    def _describe(self, session: Session) -> ConnectionInfo:
        gateway, identity = self._gateway, session.identity
        ago = gateway.clock.monotonic() - gateway.core.last_seen(session.conn)
        return ConnectionInfo(
            id=session.id,
            user_id=identity.user_id,
            character_id=identity.character_id,
            character_name=identity.character_name,
            rooms=tuple(gateway.rooms.names_of(session)),
            created_at=session.created_at,
            # Not before it was there: the core rounds to milliseconds.
            last_ping=max(session.created_at, gateway.clock.time() - max(0.0, ago)),
            node_id=gateway.node_id,
            remote_address=session.remote_address,
        )

    async def get_connection(self, connection_id: str) -> ConnectionInfo:
        """Describe a connection.

        Raises:
            NotFoundError: there is none of that id.
        """
        return self._describe(self._connection(connection_id))

    async def close_connection(self, connection_id: str) -> None:
        """Close a connection with 4403, which tells its client not to come back by itself.

        Raises:
            NotFoundError: there is none of that id.
        """
        self._connection(connection_id).close(CloseReason.KICKED)

    def _connection(self, connection_id: str) -> Session:
        session = self._gateway.find(connection_id)
        if session is None:
            raise NotFoundError("Connection not found")
        return session

    # ------------------------------------------------------------------------------------- rooms

    async def list_rooms(
        self,
        *,
        kind: RoomType | None = None,
        member_id: str | None = None,
        limit: int = DEFAULT_LIMIT,
        start: int = 0,
    ) -> Page[RoomInfo]:
        """List rooms; filters combine with AND.

        Args:
            kind: only personal rooms, or only group rooms.
            member_id: only rooms this connection is in.
            limit: entries, 1 to `MAX_LIMIT`.
            start: 0, or `Page.next` of the page before.
        """
        limit = min(max(limit, 1), MAX_LIMIT)
        rooms = self._gateway.rooms
        if member_id is None:
            found, following = rooms.page(start, limit, kind=kind)
            return Page(tuple(found), rooms.count(kind), following if following >= 0 else None)
        session = self._gateway.find(member_id)
        if session is None:
            return Page((), 0, None)
        found, following = rooms.page(start, limit, kind=kind, member=session)
        total = rooms.count(kind, member=session)
        return Page(tuple(found), total, following if following >= 0 else None)

    async def get_room(self, room_id: str) -> RoomDetails:
        """Describe a room and its members.

        Raises:
            NotFoundError: there is no such room, which is to say that it has no members.
        """
        info = self._gateway.rooms.info(room_id)
        if info is None:
            raise NotFoundError("Room not found")
        members = self._gateway.rooms.members(room_id)
        return RoomDetails(info, tuple(session.id for session in members))

    # ---------------------------------------------------------------------------------- messages

    async def broadcast(self, kind: str, data: Mapping[str, object]) -> SendResult:
        """Send a message to every connection.

        Args:
            kind: one of `envelope.BROADCAST_TYPES`.
            data: the payload, JSON values.

        Raises:
            ValueError: the type is none of the ten, or the data cannot be JSON.
            BusUnavailable: other nodes were not told; this node's connections were.
        """
        return self._send(Target.ALL, "", kind, data)

    async def send_to_connection(
        self, connection_id: str, kind: str, data: Mapping[str, object]
    ) -> SendResult:
        """Send a message to one connection; see `broadcast`.

        Raises:
            NotFoundError: there is none of that id.
        """
        self._connection(connection_id)
        return self._send(Target.CONNECTION, connection_id, kind, data, to=connection_id)

    async def send_to_user(self, user_id: str, kind: str, data: Mapping[str, object]) -> SendResult:
        """Send a message to all connections of a user; see `broadcast`.

        Raises:
            NotFoundError: the user has none.
        """
        if user_room(user_id) not in self._gateway.rooms:
            raise NotFoundError("No active connections found for user")
        return self._send(Target.USER, user_id, kind, data, to=user_room(user_id))

    async def send_to_room(self, room_id: str, kind: str, data: Mapping[str, object]) -> SendResult:
        """Send a message to all members of a room; see `broadcast`.

        Raises:
            NotFoundError: there is no such room.
        """
        if room_id not in self._gateway.rooms:
            raise NotFoundError("Room not found")
        return self._send(Target.ROOM, room_id, kind, data, room=room_id)

    async def send_system_message(
        self, text: str, data: Mapping[str, object] | None = None
    ) -> SendResult:
        """Send a `system_notification` with a text to every connection; see `broadcast`."""
        return self._send(Target.ALL, "", "system_notification", {**(data or {}), "message": text})

    async def broadcast_user_profile_update(
        self, user_id: str, character_id: int, profile: Mapping[str, object]
    ) -> SendResult:
        """Tell all connections of a user that a profile of theirs has changed.

        Args:
            user_id: the user; one without connections is no error.
            character_id: whose profile it is.
            profile: what it has become, JSON values.
        """
        return self._send(
            Target.USER,
            user_id,
            "user_profile_update",
            {
                "user_id": user_id,
                "character_id": character_id,
                "profile": dict(profile),
                "timestamp": envelope.timestamp(self._gateway.clock.time()),
            },
        )

    async def broadcast_group_membership_change(
        self, character_id: int, group_id: str, group_name: str, *, joined: bool
    ) -> None:
        """Have a change of a group's members take effect at once.

        Who was removed is taken out of the room now. Who was added is put in as soon as the
        directory confirms it, which is asked now. The user's clients are told once.

        Args:
            character_id: whose membership changed.
            group_id: 24 hexadecimal digits.
            group_name: for the clients.
            joined: added, or removed.

        Raises:
            DirectoryUnavailable: the directory could not confirm it. Who was removed is out of
                the room; who was added is put in when the directory answers again.
        """
        try:
            user_id = await self._directory.user_of(character_id)
        except DirectoryUnavailable:
            if joined:
                raise
            # Who is connected with a token of the character is taken out all the same.
            user_id = None
        await self._gateway.membership_changed(
            user_id, character_id, group_id, group_name, joined=joined
        )

    def _send(
        self,
        target: Target,
        ident: str,
        kind: str,
        data: Mapping[str, object],
        *,
        room: str | None = None,
        to: str | None = None,
    ) -> SendResult:
        if kind not in envelope.BROADCAST_TYPES:
            expected = ", ".join(sorted(envelope.BROADCAST_TYPES))
            raise ValueError(f"type must be one of {expected}, not {kind!r}")
        now = self._gateway.clock.time()
        message_id = new_id()
        try:
            frame = envelope.encode(kind, now=now, id=message_id, room=room, to=to, data=data)
        except TypeError as error:
            raise ValueError(f"data must be JSON: {error}") from error
        count = self._gateway.send(target, ident, frame)
        return SendResult(message_id, count, now)

    # ------------------------------------------------------------------------------------ status

    async def status(self) -> dict[str, object]:
        """Return what `GET /websocket/status` answers."""
        return self._gateway.status()

    async def statistics(self) -> Statistics:
        """Return what has been done so far."""
        return self._gateway.statistics()

    async def drain(self) -> None:
        """Refuse new connections and ask everybody to come back elsewhere; see `Gateway.drain`."""
        await self._gateway.drain()
