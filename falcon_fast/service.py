"""What operators and host programs may do: one typed facade, for the admin API and for Python.

Nothing here knows HTTP, and nothing behind it leaks out: calls take plain values, results are
immutable. Every call speaks for the whole cluster; with one node that is this node. `partial` in a
result names nodes that did not answer in time, so that a count is never silently too small.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from falcon_fast import envelope
from falcon_fast.bus import Target
from falcon_fast.codes import CloseReason
from falcon_fast.directory import Directory
from falcon_fast.errors import DirectoryUnavailable, NodesUnavailable, NotFoundError
from falcon_fast.gateway import Gateway
from falcon_fast.identity import new_id
from falcon_fast.listings import ConnectionInfo, Listings, Page, RoomDetails
from falcon_fast.revocation import Revocation
from falcon_fast.revoker import Revoker
from falcon_fast.rooms import RoomInfo, RoomType, user_room
from falcon_fast.statistics import Statistics

__all__ = [
    "DEFAULT_LIMIT",
    "MAX_LIMIT",
    "ConnectionInfo",
    "Page",
    "Revocation",
    "RoomDetails",
    "RoomInfo",
    "RoomType",
    "SendResult",
    "Service",
]

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000
"""Entries of one page: a page is made in one go, and the loop must not stand still for it."""

NO_CONNECTION: Final = "Connection not found"
NO_ROOM: Final = "Room not found"
NO_USER: Final = "No active connections found for user"


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

    def __init__(self, gateway: Gateway, directory: Directory, revoker: Revoker) -> None:
        self._gateway = gateway
        self._directory = directory
        self._revoker = revoker
        self._listings = Listings(gateway)

    # ------------------------------------------------------------------------------- connections

    async def list_connections(
        self,
        *,
        user_id: str | None = None,
        character_id: int | None = None,
        room_id: str | None = None,
        limit: int = DEFAULT_LIMIT,
        start: str = "",
    ) -> Page[ConnectionInfo]:
        """List connections; filters combine with AND.

        Paging stays right while connections come and go: one that is there from the first page to
        the last is listed exactly once.

        Args:
            user_id: only those of this user.
            character_id: only those whose token names this character.
            room_id: only those in this room.
            limit: entries, 1 to `MAX_LIMIT`.
            start: empty, or `Page.next` of the page before.
        """
        return await self._listings.connections(
            user_id=user_id,
            character_id=character_id,
            room_id=room_id,
            limit=min(max(limit, 1), MAX_LIMIT),
            start=start,
        )

    async def get_connection(self, connection_id: str) -> ConnectionInfo:
        """Describe a connection.

        Raises:
            NotFoundError: there is none of that id.
            NodesUnavailable: none was found, but not all nodes have answered.
        """
        info, answers = await self._listings.connection(connection_id)
        if info is None:
            raise _missing(NO_CONNECTION, answers.missing)
        return info

    async def close_connection(self, connection_id: str) -> None:
        """Close a connection with 4403, which tells its client not to come back by itself.

        Raises:
            NotFoundError: there is none of that id.
            NodesUnavailable: none was found, but not all nodes have answered.
        """
        session = self._gateway.find(connection_id)
        if session is not None:
            session.close(CloseReason.KICKED)
            return
        closed, missing = await self._gateway.neighbours.close(connection_id, CloseReason.KICKED)
        if not closed:
            raise _missing(NO_CONNECTION, missing)

    # ------------------------------------------------------------------------------------- rooms

    async def list_rooms(
        self,
        *,
        kind: RoomType | None = None,
        member_id: str | None = None,
        limit: int = DEFAULT_LIMIT,
        start: str = "",
    ) -> Page[RoomInfo]:
        """List rooms by name; filters combine with AND.

        Args:
            kind: only personal rooms, or only group rooms.
            member_id: only rooms this connection is in.
            limit: entries, 1 to `MAX_LIMIT`.
            start: empty, or `Page.next` of the page before.
        """
        return await self._listings.rooms(
            kind=kind, member_id=member_id, limit=min(max(limit, 1), MAX_LIMIT), start=start
        )

    async def get_room(self, room_id: str) -> RoomDetails:
        """Describe a room and its members.

        Raises:
            NotFoundError: there is no such room, which is to say that it has no members.
            NodesUnavailable: none was found, but not all nodes have answered.
        """
        details, missing = await self._listings.room(room_id)
        if details is None:
            raise _missing(NO_ROOM, missing)
        return details

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
        return await self._send(Target.ALL, "", kind, data)

    async def send_to_connection(
        self, connection_id: str, kind: str, data: Mapping[str, object]
    ) -> SendResult:
        """Send a message to one connection; see `broadcast`.

        Raises:
            NotFoundError: there is none of that id.
            NodesUnavailable: none was found, but not all nodes have answered.
        """
        return await self._send(
            Target.CONNECTION, connection_id, kind, data, to=connection_id, missing=NO_CONNECTION
        )

    async def send_to_user(self, user_id: str, kind: str, data: Mapping[str, object]) -> SendResult:
        """Send a message to all connections of a user; see `broadcast`.

        Raises:
            NotFoundError: the user has none.
            NodesUnavailable: none was found, but not all nodes have answered.
        """
        return await self._send(
            Target.USER,
            user_id,
            kind,
            data,
            to=user_room(user_id),
            missing=NO_USER,
        )

    async def send_to_room(self, room_id: str, kind: str, data: Mapping[str, object]) -> SendResult:
        """Send a message to all members of a room; see `broadcast`.

        Raises:
            NotFoundError: there is no such room.
            NodesUnavailable: none was found, but not all nodes have answered.
        """
        return await self._send(Target.ROOM, room_id, kind, data, room=room_id, missing=NO_ROOM)

    async def send_system_message(
        self, text: str, data: Mapping[str, object] | None = None
    ) -> SendResult:
        """Send a `system_notification` with a text to every connection; see `broadcast`."""
        return await self._send(
            Target.ALL, "", "system_notification", {**(data or {}), "message": text}
        )

    async def broadcast_user_profile_update(
        self, user_id: str, character_id: int, profile: Mapping[str, object]
    ) -> SendResult:
        """Tell all connections of a user that a profile of theirs has changed.

        Args:
            user_id: the user; one without connections is no error.
            character_id: whose profile it is.
            profile: what it has become, JSON values.
        """
        return await self._send(
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
            BusUnavailable: other nodes were not told; they find out from the directory.
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
        await self._gateway.memberships.announce(
            user_id, character_id, group_id, group_name, joined=joined
        )

    async def _send(
        self,
        target: Target,
        ident: str,
        kind: str,
        data: Mapping[str, object],
        *,
        room: str | None = None,
        to: str | None = None,
        missing: str | None = None,
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
        sent = await self._gateway.send(target, ident, frame)
        if missing is not None and not sent.connections and not sent.strangers:
            raise _missing(missing, sent.missing)
        partial = tuple(sorted({*sent.missing, *sent.strangers}))
        return SendResult(message_id, sent.connections, now, partial)

    # ---------------------------------------------------------------------------- revoked tokens

    async def revoke_token(self, token_id: str, expires_at: int | None = None) -> Revocation:
        """Take one token back on all nodes; connections with it are closed with 4403.

        Args:
            token_id: its `jti`.
            expires_at: its `exp`, after which the rule is forgotten; if not known, the longest
                life of a token from now (`JWT_MAX_LIFETIME`).

        Raises:
            ValueError: an argument cannot be used.
            BusUnavailable: it is in force on this node, and other nodes will be told: what could
                not be kept or told is tried again.
        """
        return await self._revoker.revoke_token(token_id, expires_at=expires_at)

    async def revoke_user(
        self, user_id: str, issued_before: int | None = None, *, expires_at: int | None = None
    ) -> Revocation:
        """Take back all tokens of a user that were issued before a time; see `revoke_token`.

        A token without `iat` counts as issued before any time.

        Args:
            user_id: the user.
            issued_before: seconds since 1970, at most 10 in the future; the end of this second if
                None.
            expires_at: when the last of the tokens expires; if not known, the longest life of a
                token from now.
        """
        return await self._revoker.revoke_user(
            user_id, issued_before=issued_before, expires_at=expires_at
        )

    async def revoke_all(
        self, issued_before: int | None = None, *, expires_at: int | None = None
    ) -> Revocation:
        """Take back all tokens of everybody that were issued before a time; see `revoke_user`."""
        return await self._revoker.revoke_all(issued_before, expires_at=expires_at)

    async def list_revocations(
        self, *, limit: int = DEFAULT_LIMIT, start: str = ""
    ) -> Page[Revocation]:
        """List what is revoked, by the rules' ids.

        Args:
            limit: entries, 1 to `MAX_LIMIT`.
            start: empty, or `Page.next` of the page before.
        """
        limit = min(max(limit, 1), MAX_LIMIT)
        rules = self._revoker.list()
        at = bisect_left(rules, start, key=lambda rule: rule.id)
        following = rules[at + limit].id if at + limit < len(rules) else None
        return Page(tuple(rules[at : at + limit]), len(rules), following)

    async def withdraw_revocation(self, revocation_id: str) -> None:
        """Take a revocation back: its tokens are accepted again if they are still valid.

        Raises:
            NotFoundError: there is none of that id.
            BusUnavailable: it is taken back on this node, and other nodes will be told.
        """
        await self._revoker.withdraw(revocation_id)

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


def _missing(what: str, nodes: tuple[str, ...]) -> NotFoundError | NodesUnavailable:
    """Return the error for what nobody has who answered."""
    return NodesUnavailable(nodes) if nodes else NotFoundError(what)
