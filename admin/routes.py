"""The table of routes: what the admin listener serves, to whom, and what it may answer.

The listener, the document and the tests are all made from this one table. A handler makes exactly
one call of the service and turns its result into an answer; nothing else happens there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from falcon_fast.admin import schemas
from falcon_fast.admin.cursors import Cursors
from falcon_fast.admin.problems import Problem, invalid
from falcon_fast.clock import rfc3339
from falcon_fast.errors import BusUnavailable
from falcon_fast.service import Page, SendResult, Service

__all__ = ["ROUTES", "Call", "Desk", "Method", "Role", "Route"]

Method = Literal["GET", "POST", "DELETE"]
Role = Literal["public", "super_admin"]

RequestT = TypeVar("RequestT", bound=schemas.Request)
ItemT = TypeVar("ItemT")
EntryT = TypeVar("EntryT")

BROADCAST_TEXT: Final = "Message broadcast successfully"
CONNECTION_TEXT: Final = "Direct message sent successfully"
USER_TEXT: Final = "User message sent successfully"
ROOM_TEXT: Final = "Room message sent successfully"
REVOKED_TEXT: Final = "Tokens revoked successfully"
WITHDRAWN_TEXT: Final = "Revocation withdrawn successfully"
CLOSED_TEXT: Final = "Connection closed successfully"

NO_CONNECTION: Final = "Connection not found"
NO_ROOM: Final = "Room not found"
NO_REVOCATION: Final = "Revocation not found"
NO_USER: Final = "No active connections found for user"

NOT_KEPT: Final = (
    "In force on this node, but not kept: the store of revocations does not answer. Other nodes "
    "are told as soon as it does"
)

READ_ERRORS: Final = (401, 403, 422, 500, 503)
BODY_ERRORS: Final = (400, 401, 403, 408, 413, 415, 422, 500, 503)


@dataclass(frozen=True, slots=True)
class Desk:
    """What handlers work with."""

    service: Service
    cursors: Cursors


Call = Callable[[Desk], Awaitable[schemas.Answer]]
"""A validated request, ready to be carried out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A row of the table.

    Attributes:
        method: of the request.
        path: with the names of its variable parts in braces.
        role: who may call it.
        name: of the operation, as in the document and in the log.
        summary: one line for the document.
        description: more of it, if there is more to say.
        request: the model of what it is called with.
        answer: the model of what it answers with 200.
        text: the `message` of its answer, if that has one.
        missing: the detail of its 404, if what it is for can be missing.
        errors: other statuses that it may answer.
        bind: validates the parts of a request; raises pydantic's ValidationError.
    """

    method: Method
    path: str
    role: Role
    name: str
    summary: str
    description: str | None
    request: type[schemas.Request]
    answer: type[schemas.Answer]
    text: str | None
    missing: str | None
    errors: tuple[int, ...]
    bind: Callable[[Mapping[str, object]], Call]

    @property
    def writes(self) -> bool:
        """Whether it changes or sends something."""
        return self.method != "GET"

    @property
    def has_body(self) -> bool:
        """Whether it takes a body."""
        return "body" in self.request.model_fields

    @property
    def statuses(self) -> tuple[int, ...]:
        """All statuses of its errors, in order."""
        return tuple(sorted({*self.errors, *([404] if self.missing else [])}))


def _route(
    method: Method,
    path: str,
    request: type[RequestT],
    handle: Callable[[Desk, RequestT], Awaitable[schemas.Answer]],
    answer: type[schemas.Answer],
    summary: str,
    *,
    description: str | None = None,
    role: Role = "super_admin",
    errors: tuple[int, ...] = READ_ERRORS,
    text: str | None = None,
    missing: str | None = None,
) -> Route:
    """Make a row; a request and its handler are tied together here, so that types agree."""

    def bind(parts: Mapping[str, object]) -> Call:
        validated = request.model_validate(parts)
        return lambda desk: handle(desk, validated)

    return Route(
        method=method,
        path=path,
        role=role,
        name=handle.__name__,
        summary=summary,
        description=description,
        request=request,
        answer=answer,
        text=text,
        missing=missing,
        errors=errors,
        bind=bind,
    )


# ----------------------------------------------------------------------------------- connections


async def list_connections(desk: Desk, request: schemas.ListConnections) -> schemas.ConnectionList:
    """Handle a listing of connections."""
    query = request.query
    if query.room is not None and query.room_id is not None and query.room != query.room_id:
        raise invalid("query.room", "differs from room_id, which means the same", query.room)
    filters = {
        "user_id": query.user_id,
        "character_id": query.character_id,
        "room_id": query.room_id or query.room,
    }
    page = await desk.service.list_connections(
        user_id=query.user_id,
        character_id=query.character_id,
        room_id=query.room_id or query.room,
        limit=query.limit,
        start=_start(desk, "connections", filters, query.cursor),
    )
    return schemas.ConnectionList(
        connections=await _described(schemas.ConnectionInfo.of, page.items),
        total=page.total,
        next_cursor=_next(desk, "connections", filters, page),
        partial=schemas.nodes(page.partial),
    )


async def get_connection(desk: Desk, request: schemas.ConnectionById) -> schemas.ConnectionAnswer:
    """Handle a question for a connection."""
    info = await desk.service.get_connection(request.path.connection_id)
    return schemas.ConnectionAnswer(connection=schemas.ConnectionInfo.of(info))


async def close_connection(desk: Desk, request: schemas.ConnectionById) -> schemas.CloseResult:
    """Handle the end of a connection."""
    ident = request.path.connection_id
    await desk.service.close_connection(ident)
    return schemas.CloseResult(success=True, connection_id=ident, message=CLOSED_TEXT)


# ----------------------------------------------------------------------------------------- rooms


async def list_rooms(desk: Desk, request: schemas.ListRooms) -> schemas.RoomList:
    """Handle a listing of rooms."""
    query = request.query
    filters = {"type": query.type, "member_id": query.member_id}
    page = await desk.service.list_rooms(
        kind=query.type,
        member_id=query.member_id,
        limit=query.limit,
        start=_start(desk, "rooms", filters, query.cursor),
    )
    return schemas.RoomList(
        rooms=await _described(schemas.RoomInfo.of, page.items),
        total=page.total,
        next_cursor=_next(desk, "rooms", filters, page),
        partial=schemas.nodes(page.partial),
    )


async def get_room(desk: Desk, request: schemas.RoomById) -> schemas.RoomAnswer:
    """Handle a question for a room."""
    details = await desk.service.get_room(request.path.room_id)
    return schemas.RoomAnswer(
        room=schemas.RoomDetails.with_members(details), partial=schemas.nodes(details.partial)
    )


async def _described(of: Callable[[ItemT], EntryT], items: Iterable[ItemT]) -> list[EntryT]:
    """Make the entries of a page, a few at a time: clients' messages go first."""
    entries = []
    for item in items:
        entries.append(of(item))
        if len(entries) % schemas.AT_A_TIME == 0:
            await asyncio.sleep(0)
    return entries


def _start(desk: Desk, kind: str, filters: Mapping[str, object], cursor: str | None) -> str:
    if cursor is None:
        return ""
    try:
        return desk.cursors.read(kind, filters, cursor)
    except ValueError:
        raise invalid(
            "query.cursor", "not a next_cursor of this server for these filters", cursor
        ) from None


def _next(desk: Desk, kind: str, filters: Mapping[str, object], page: Page[ItemT]) -> str | None:
    return None if page.next is None else desk.cursors.write(kind, filters, page.next)


# -------------------------------------------------------------------------------------- messages


async def broadcast(desk: Desk, request: schemas.Broadcast) -> schemas.BroadcastResult:
    """Handle a message to everybody."""
    body = request.body
    sent = await desk.service.broadcast(body.type, body.data)
    return _sent(schemas.BroadcastResult, sent, BROADCAST_TEXT)


async def send_to_connection(
    desk: Desk, request: schemas.SendToConnection
) -> schemas.ConnectionResult:
    """Handle a message to a connection."""
    ident, body = request.path.connection_id, request.body
    sent = await desk.service.send_to_connection(ident, body.type, body.data)
    return _sent(schemas.ConnectionResult, sent, CONNECTION_TEXT, connection_id=ident)


async def send_to_user(desk: Desk, request: schemas.SendToUser) -> schemas.UserResult:
    """Handle a message to a user."""
    ident, body = request.path.user_id, request.body
    sent = await desk.service.send_to_user(ident, body.type, body.data)
    return _sent(schemas.UserResult, sent, USER_TEXT, user_id=ident)


async def send_to_room(desk: Desk, request: schemas.SendToRoom) -> schemas.RoomResult:
    """Handle a message to a room."""
    ident, body = request.path.room_id, request.body
    sent = await desk.service.send_to_room(ident, body.type, body.data)
    return _sent(schemas.RoomResult, sent, ROOM_TEXT, room_id=ident)


ResultT = TypeVar("ResultT", bound=schemas.BroadcastResult)


def _sent(model: type[ResultT], sent: SendResult, text: str, **target: str) -> ResultT:
    return model.model_validate(
        {
            "success": True,
            "message_id": sent.message_id,
            "recipients_count": sent.recipients_count,
            "timestamp": rfc3339(sent.timestamp),
            "message": text,
            "partial": schemas.nodes(sent.partial),
            **target,
        }
    )


# -------------------------------------------------------------------------------- revoked tokens


async def list_revocations(desk: Desk, request: schemas.ListRevocations) -> schemas.RevocationList:
    """Handle a listing of what is revoked."""
    query = request.query
    page = await desk.service.list_revocations(
        limit=query.limit, start=_start(desk, "revocations", {}, query.cursor)
    )
    return schemas.RevocationList(
        revocations=await _described(schemas.RevocationInfo.of, page.items),
        total=page.total,
        next_cursor=_next(desk, "revocations", {}, page),
    )


async def add_revocation(desk: Desk, request: schemas.AddRevocation) -> schemas.RevocationResult:
    """Handle tokens that are taken back."""
    body, service = request.body, desk.service
    issued_before, expires_at = body.issued_before or None, body.expires_at or None
    try:
        if body.token_id:
            rule = await service.revoke_token(body.token_id, expires_at)
        elif body.user_id:
            rule = await service.revoke_user(body.user_id, issued_before, expires_at=expires_at)
        else:
            rule = await service.revoke_all(issued_before, expires_at=expires_at)
    except ValueError as error:
        raise invalid("body.issued_before", str(error), body.issued_before) from None
    except BusUnavailable:
        raise Problem(503, NOT_KEPT) from None
    return schemas.RevocationResult(
        success=True, revocation=schemas.RevocationInfo.of(rule), message=REVOKED_TEXT
    )


async def withdraw_revocation(
    desk: Desk, request: schemas.RevocationById
) -> schemas.WithdrawResult:
    """Handle a revocation that is taken back."""
    ident = request.path.revocation_id
    try:
        await desk.service.withdraw_revocation(ident)
    except BusUnavailable:
        raise Problem(503, NOT_KEPT) from None
    return schemas.WithdrawResult(success=True, revocation_id=ident, message=WITHDRAWN_TEXT)


# ---------------------------------------------------------------------------------------- status


async def get_status(desk: Desk, request: schemas.Request) -> schemas.Status:
    """Handle a question for the node's health."""
    return schemas.Status.model_validate(await desk.service.status())


ROUTES: Final = (
    _route(
        "GET",
        "/websocket/connections",
        schemas.ListConnections,
        list_connections,
        schemas.ConnectionList,
        "List active connections",
        description="A connection that is there from the first page to the last is listed exactly "
        "once, while others come and go.",
    ),
    _route(
        "GET",
        "/websocket/connections/{connection_id}",
        schemas.ConnectionById,
        get_connection,
        schemas.ConnectionAnswer,
        "Get a connection",
        missing=NO_CONNECTION,
    ),
    _route(
        "DELETE",
        "/websocket/connections/{connection_id}",
        schemas.ConnectionById,
        close_connection,
        schemas.CloseResult,
        "Close a connection",
        description="It ends with close code 4403, which tells its client not to come back by "
        "itself.",
        text=CLOSED_TEXT,
        missing=NO_CONNECTION,
    ),
    _route(
        "GET",
        "/websocket/rooms",
        schemas.ListRooms,
        list_rooms,
        schemas.RoomList,
        "List rooms",
        description="A room exists from its first member to its last.",
    ),
    _route(
        "GET",
        "/websocket/rooms/{room_id}",
        schemas.RoomById,
        get_room,
        schemas.RoomAnswer,
        "Get a room and its members",
        missing=NO_ROOM,
    ),
    _route(
        "POST",
        "/websocket/broadcast",
        schemas.Broadcast,
        broadcast,
        schemas.BroadcastResult,
        "Send a message to all connections",
        errors=BODY_ERRORS,
        text=BROADCAST_TEXT,
    ),
    _route(
        "POST",
        "/websocket/connections/{connection_id}/message",
        schemas.SendToConnection,
        send_to_connection,
        schemas.ConnectionResult,
        "Send a message to a connection",
        errors=BODY_ERRORS,
        text=CONNECTION_TEXT,
        missing=NO_CONNECTION,
    ),
    _route(
        "POST",
        "/websocket/users/{user_id}/message",
        schemas.SendToUser,
        send_to_user,
        schemas.UserResult,
        "Send a message to all connections of a user",
        errors=BODY_ERRORS,
        text=USER_TEXT,
        missing=NO_USER,
    ),
    _route(
        "POST",
        "/websocket/rooms/{room_id}/message",
        schemas.SendToRoom,
        send_to_room,
        schemas.RoomResult,
        "Send a message to all members of a room",
        errors=BODY_ERRORS,
        text=ROOM_TEXT,
        missing=NO_ROOM,
    ),
    _route(
        "GET",
        "/websocket/revocations",
        schemas.ListRevocations,
        list_revocations,
        schemas.RevocationList,
        "List revoked tokens",
        description="A revocation is listed until the tokens it is about have expired.",
    ),
    _route(
        "POST",
        "/websocket/revocations",
        schemas.AddRevocation,
        add_revocation,
        schemas.RevocationResult,
        "Revoke tokens",
        description="Tokens it is about are refused from now on, and connections with them end "
        "with close code 4403, on every node within a second. Revoking all tokens takes back the "
        "caller's own too.",
        errors=BODY_ERRORS,
        text=REVOKED_TEXT,
    ),
    _route(
        "DELETE",
        "/websocket/revocations/{revocation_id}",
        schemas.RevocationById,
        withdraw_revocation,
        schemas.WithdrawResult,
        "Withdraw a revocation",
        description="Its tokens are accepted again, if they are still valid and no other "
        "revocation is about them.",
        text=WITHDRAWN_TEXT,
        missing=NO_REVOCATION,
    ),
    _route(
        "GET",
        "/websocket/status",
        schemas.Request,
        get_status,
        schemas.Status,
        "Get the node's health and statistics",
        description="Always 200 while the node runs; `status` says how it is.",
        role="public",
        errors=(500,),
    ),
)
"""Everything that is answered in JSON; documents and pages are in `pages`."""
