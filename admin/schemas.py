"""Requests and answers of the admin API: one set of types validates, serialises and documents.

A request is one model with up to three parts, ``path``, ``query`` and ``body``, so that the place
of an error (``body.type``, ``query.limit``) is the way to it through the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
)
from pydantic.json_schema import SkipJsonSchema

from falcon_fast import service
from falcon_fast.clock import rfc3339

__all__ = [
    "Answer",
    "Broadcast",
    "BroadcastResult",
    "CloseResult",
    "ConnectionAnswer",
    "ConnectionById",
    "ConnectionInfo",
    "ConnectionList",
    "ConnectionResult",
    "ListConnections",
    "ListRooms",
    "MessageBody",
    "ProblemDetails",
    "ProblemItem",
    "Request",
    "RoomAnswer",
    "RoomById",
    "RoomDetails",
    "RoomInfo",
    "RoomList",
    "RoomResult",
    "SendToConnection",
    "SendToRoom",
    "SendToUser",
    "Status",
    "UserResult",
]

MAX_CHARACTER_ID: Final = 2**63 - 1
"""Ids are signed 64-bit integers in every store."""

AT_A_TIME: Final = 8
"""Entries of a page that are made or written before the loop gets its turn."""

MAX_CURSOR_CHARACTERS: Final = 128
"""A cursor of ours is shorter; the limit keeps a forged one from being decoded at all."""

_INTEGER: Final = re.compile(r"-?[0-9]{1,20}")

MessageType = Literal[
    "message",
    "user_profile_update",
    "group_membership_change",
    "system_notification",
    "presence",
    "notification",
    "room_update",
    "backend_status",
    "critical_alert",
    "service_recovery",
]


def _integer(value: object) -> object:
    """Read an integer of a query; any other spelling than digits stays a text and is refused."""
    return int(value) if isinstance(value, str) and _INTEGER.fullmatch(value) else value


def _int64(value: int) -> int:
    if value > MAX_CHARACTER_ID:
        raise ValueError("must fit into 64 bits")
    return value


# The same shapes that tokens and frames are held to: none can be a pattern, a path or a log line.
_Ident = StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")
ConnectionId = Annotated[str, _Ident, Field(description="Id of a connection.")]
UserId = Annotated[str, _Ident, Field(description="Id of a user, as in the user's tokens.")]
RoomId = Annotated[
    str,
    StringConstraints(pattern=r"^(?:user:[A-Za-z0-9_-]{1,64}|group:[0-9a-f]{24})$"),
    Field(description="`user:` and a user id, or `group:` and 24 hexadecimal digits."),
]
CharacterId = Annotated[
    int,
    # Not "le": the library of the document holds limits as floats, which cannot say this one.
    Field(ge=0, json_schema_extra={"format": "int64"}),
    AfterValidator(_int64),
    BeforeValidator(_integer),
]
Limit = Annotated[
    int,
    Field(ge=1, le=service.MAX_LIMIT, description="Entries on the page."),
    BeforeValidator(_integer),
]
Cursor = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_CURSOR_CHARACTERS),
    Field(description="`next_cursor` of the page before, with the same filters."),
]
Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
"""RFC 3339 in UTC."""

Count = Annotated[int, Field(ge=0)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


# ------------------------------------------------------------------------------------- requests


class Request(_Model):
    """What a route is called with; routes add ``path``, ``query`` and ``body``."""


class Empty(_Model):
    """A part of a request that has nothing in it."""


class ConnectionPath(_Model):
    """The path of a connection."""

    connection_id: ConnectionId


class UserPath(_Model):
    """The path of a user."""

    user_id: UserId


class RoomPath(_Model):
    """The path of a room."""

    room_id: RoomId


class ConnectionFilters(_Model):
    """Which connections to list; filters combine with AND."""

    user_id: Annotated[UserId | None, Field(description="Only those of this user.")] = None
    character_id: Annotated[
        CharacterId | None,
        Field(description="Only those whose token names this character."),
    ] = None
    room_id: Annotated[RoomId | None, Field(description="Only those in this room.")] = None
    room: Annotated[RoomId | None, Field(description="Another spelling of `room_id`.")] = None
    limit: Limit = service.DEFAULT_LIMIT
    cursor: Cursor | None = None


class RoomFilters(_Model):
    """Which rooms to list; filters combine with AND."""

    type: Annotated[
        service.RoomType | None, Field(description="Only personal rooms, or only group rooms.")
    ] = None
    member_id: Annotated[
        ConnectionId | None, Field(description="Only rooms this connection is in.")
    ] = None
    limit: Limit = service.DEFAULT_LIMIT
    cursor: Cursor | None = None


class MessageBody(_Model):
    """A message to send: what kind it is, and what is in it."""

    type: Annotated[MessageType, Field(description="What kind of message it is.")]
    data: Annotated[
        dict[str, JsonValue],
        Field(
            description="The payload, passed on as it is. Integers must fit into 64 bits; "
            "larger ones go as strings."
        ),
    ]


class ListConnections(Request):
    """Call of `list_connections`."""

    path: Empty
    query: ConnectionFilters


class ConnectionById(Request):
    """Call of `get_connection` and `close_connection`."""

    path: ConnectionPath
    query: Empty


class ListRooms(Request):
    """Call of `list_rooms`."""

    path: Empty
    query: RoomFilters


class RoomById(Request):
    """Call of `get_room`."""

    path: RoomPath
    query: Empty


class Broadcast(Request):
    """Call of `broadcast`."""

    path: Empty
    query: Empty
    body: MessageBody


class SendToConnection(Request):
    """Call of `send_to_connection`."""

    path: ConnectionPath
    query: Empty
    body: MessageBody


class SendToUser(Request):
    """Call of `send_to_user`."""

    path: UserPath
    query: Empty
    body: MessageBody


class SendToRoom(Request):
    """Call of `send_to_room`."""

    path: RoomPath
    query: Empty
    body: MessageBody


# -------------------------------------------------------------------------------------- answers


class Answer(_Model):
    """What a route answers."""

    def to_json(self) -> bytes:
        """Return the body of the answer; keys that have nothing to say are left out."""
        return self.model_dump_json(exclude_none=True).encode()

    def pieces(self) -> Iterator[bytes]:
        """Return the same body in pieces, none of which takes long to make."""
        yield self.to_json()


class ConnectionInfo(Answer):
    """A connection; `last_ping` is when its client was last heard of."""

    id: str
    user_id: str
    character_id: int
    character_name: str
    rooms: list[str]
    created_at: Timestamp
    last_ping: Timestamp
    node_id: str
    remote_address: str

    @classmethod
    def of(cls, info: service.ConnectionInfo) -> ConnectionInfo:
        """Describe a connection as the service does."""
        return cls(
            id=info.id,
            user_id=info.user_id,
            character_id=info.character_id,
            character_name=info.character_name,
            rooms=list(info.rooms),
            created_at=rfc3339(info.created_at),
            last_ping=rfc3339(info.last_ping),
            node_id=info.node_id,
            remote_address=info.remote_address,
        )


class RoomInfo(Answer):
    """A room and how many connections are in it."""

    id: str
    type: service.RoomType
    name: str
    member_count: Count
    created_at: Timestamp
    updated_at: Timestamp

    @classmethod
    def of(cls, info: service.RoomInfo) -> RoomInfo:
        """Describe a room as the service does."""
        return cls(
            id=info.id,
            type=info.type,
            name=info.name,
            member_count=info.member_count,
            created_at=rfc3339(info.created_at),
            updated_at=rfc3339(info.updated_at),
        )


class RoomDetails(RoomInfo):
    """A room with the ids of the connections in it."""

    members: list[str]

    @classmethod
    def with_members(cls, details: service.RoomDetails) -> RoomDetails:
        """Describe a room and its members as the service does."""
        return cls(
            **RoomInfo.of(details.info).model_dump(mode="python"), members=list(details.members)
        )


Total = Annotated[Count, Field(description="Entries on all pages, now.")]
NextCursor = Annotated[
    str | SkipJsonSchema[None],
    Field(description="Where the next page begins; absent on the last page."),
]
Partial = Annotated[
    list[str] | SkipJsonSchema[None],
    Field(description="Nodes that did not answer; absent if all did."),
]


def _pieces(page: Answer, name: str, entries: Sequence[Answer]) -> Iterator[bytes]:
    """Write a page whose first key is `name` a few entries at a time."""
    before, _, behind = page.model_copy(update={name: []}).to_json().partition(b"[]")
    yield before + b"["
    for begin in range(0, len(entries), AT_A_TIME):
        part = b",".join([entry.to_json() for entry in entries[begin : begin + AT_A_TIME]])
        yield b"," + part if begin else part
    yield b"]" + behind


class ConnectionList(Answer):
    """A page of connections."""

    connections: list[ConnectionInfo]
    total: Total
    next_cursor: NextCursor = None
    partial: Partial = None

    def pieces(self) -> Iterator[bytes]:
        """See `Answer.pieces`."""
        return _pieces(self, "connections", self.connections)


class ConnectionAnswer(Answer):
    """One connection."""

    connection: ConnectionInfo


class RoomList(Answer):
    """A page of rooms."""

    rooms: list[RoomInfo]
    total: Total
    next_cursor: NextCursor = None
    partial: Partial = None

    def pieces(self) -> Iterator[bytes]:
        """See `Answer.pieces`."""
        return _pieces(self, "rooms", self.rooms)


class RoomAnswer(Answer):
    """One room."""

    room: RoomDetails
    partial: Partial = None


class CloseResult(Answer):
    """What became of a connection that was to be closed."""

    success: Literal[True]
    connection_id: str
    message: str


class BroadcastResult(Answer):
    """What became of a message."""

    success: Literal[True]
    message_id: Annotated[str, Field(description="The `id` that receivers see.")]
    recipients_count: Annotated[
        Count, Field(description="Connections the message was queued to, on all nodes.")
    ]
    timestamp: Timestamp
    message: str
    partial: Partial = None


class ConnectionResult(BroadcastResult):
    """What became of a message to a connection."""

    connection_id: str


class UserResult(BroadcastResult):
    """What became of a message to a user."""

    user_id: str


class RoomResult(BroadcastResult):
    """What became of a message to a room."""

    room_id: str


class Statistics(_Model):
    """Counts since the node started."""

    total_connections: Count
    active_connections: Count
    total_rooms: Count
    messages_processed: Count
    messages_broadcast: Count
    last_connection_time: Timestamp | None


class Status(Answer):
    """How the node is; what is not named here is never told."""

    model_config = ConfigDict(extra="ignore")

    module: Literal["websocket"]
    status: Literal["healthy", "degraded", "unhealthy"]
    stats: Statistics
    message: str
    node_id: str
    nodes: Count
    websocket_url: Annotated[
        str | SkipJsonSchema[None],
        Field(description="Where clients connect; absent if it was not configured."),
    ] = None

    def to_json(self) -> bytes:
        """Return the body of the answer, in which a time that has not come yet is null."""
        return self.model_dump_json(exclude_unset=True).encode()


# --------------------------------------------------------------------------------------- errors


class ProblemItem(_Model):
    """One thing that is wrong with a request."""

    message: str
    location: Annotated[
        str, Field(description="The way to it, such as `body.type` or `query.limit`.")
    ]
    value: Annotated[
        JsonValue,
        Field(description="What came; long texts are cut, objects and arrays left out (null)."),
    ]


class ProblemDetails(_Model):
    """An error, as RFC 9457 writes it."""

    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: str
    errors: list[ProblemItem] | SkipJsonSchema[None] = None


def nodes(partial: Iterable[str]) -> list[str] | None:
    """Return the nodes that did not answer, None when all did."""
    return list(partial) or None
