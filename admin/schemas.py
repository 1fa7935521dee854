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
    model_validator,
)
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from falcon_fast import service
from falcon_fast.clock import rfc3339

__all__ = [
    "AddRevocation",
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
    "ListRevocations",
    "ListRooms",
    "MessageBody",
    "ProblemDetails",
    "ProblemItem",
    "Request",
    "RevocationBody",
    "RevocationById",
    "RevocationInfo",
    "RevocationList",
    "RevocationResult",
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
    "WithdrawResult",
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
RevocationId = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,128}$"),
    Field(description="Id of a revocation."),
]
TokenId = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=128,
        pattern=r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]+$",
    ),
    Field(description="The `jti` of a token."),
]
UnixTime = Annotated[
    int,
    # As CharacterId: a limit as a float could not say this one.
    Field(ge=1, json_schema_extra={"format": "int64"}),
    AfterValidator(_int64),
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


def _true(value: bool) -> bool:
    if not value:
        raise ValueError("must be true")
    return value


def _about_one_thing(schema: JsonDict) -> None:
    """Say in the schema what `RevocationBody` checks."""
    properties = schema["properties"]
    if isinstance(properties, dict):
        for one in properties.values():
            # What stands for an absent member cannot be sent.
            if isinstance(one, dict):
                one.pop("default", None)
    schema["oneOf"] = [
        {"required": ["token_id"], "not": {"required": ["issued_before"]}},
        {"required": ["user_id"]},
        {"required": ["all"]},
    ]


class RevocationBody(_Model):
    """Which tokens to revoke: one by its `jti`, those of a user, or all."""

    model_config = ConfigDict(json_schema_extra=_about_one_thing)

    token_id: TokenId = ""
    user_id: UserId = ""
    all: Annotated[
        bool,
        AfterValidator(_true),
        Field(description="The tokens of everybody.", json_schema_extra={"const": True}),
    ] = False
    issued_before: Annotated[
        UnixTime,
        Field(
            description="Only tokens whose `iat` is before this, in seconds since 1970, and those "
            "without one; at most 10 seconds in the future. The end of this second if absent."
        ),
    ] = 0
    expires_at: Annotated[
        UnixTime,
        Field(
            description="When the last of the tokens expires, in seconds since 1970: then the "
            "revocation is forgotten. If absent, the longest life of a token is taken."
        ),
    ] = 0

    @model_validator(mode="after")
    def _is_about_one_thing(self) -> RevocationBody:
        given = self.model_fields_set
        if len(given & {"token_id", "user_id", "all"}) != 1:
            raise PydanticCustomError("one_of", "needs one of token_id, user_id and all")
        if {"token_id", "issued_before"} <= given:
            raise PydanticCustomError("one_of", "issued_before does not go with token_id")
        return self


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


class Paging(_Model):
    """Which page of a listing."""

    limit: Limit = service.DEFAULT_LIMIT
    cursor: Cursor | None = None


class RevocationPath(_Model):
    """The path of a revocation."""

    revocation_id: RevocationId


class ListRevocations(Request):
    """Call of `list_revocations`."""

    path: Empty
    query: Paging


class AddRevocation(Request):
    """Call of `add_revocation`."""

    path: Empty
    query: Empty
    body: RevocationBody


class RevocationById(Request):
    """Call of `withdraw_revocation`."""

    path: RevocationPath
    query: Empty


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


class RevocationInfo(Answer):
    """A revocation: about one of `token_id`, `user_id` and `all`; times as in tokens."""

    id: str
    token_id: str | SkipJsonSchema[None] = None
    user_id: str | SkipJsonSchema[None] = None
    all: Literal[True] | SkipJsonSchema[None] = None
    issued_before: Annotated[
        Count | SkipJsonSchema[None],
        Field(description="Tokens whose `iat` is before this; absent for one token."),
    ] = None
    expires_at: Annotated[Count, Field(description="When it is forgotten.")]
    created_at: Timestamp

    @classmethod
    def of(cls, rule: service.Revocation) -> RevocationInfo:
        """Describe a revocation as the service does."""
        return cls(
            id=rule.id,
            token_id=rule.target if rule.kind == "token" else None,
            user_id=rule.target if rule.kind == "user" else None,
            all=True if rule.kind == "all" else None,
            issued_before=None if rule.kind == "token" else rule.issued_before,
            expires_at=rule.expires_at,
            created_at=rfc3339(rule.created_at),
        )


class RevocationList(Answer):
    """A page of revocations."""

    revocations: list[RevocationInfo]
    total: Total
    next_cursor: NextCursor = None


class RevocationResult(Answer):
    """What became of a revocation."""

    success: Literal[True]
    revocation: RevocationInfo
    message: str


class WithdrawResult(Answer):
    """What became of a revocation that was to be taken back."""

    success: Literal[True]
    revocation_id: str
    message: str


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
