"""Wire messages between clients and the server: decoding, limits, and every frame the server sends.

Pure: bytes in, values out, and the other way round. What was checked is what is sent: a client's
message is passed on re-serialised from the parsed object, never as the bytes that came.

The shape of every frame is `{id?, type, room?, from?, to?, data?, timestamp}`; empty keys are left
out, `timestamp` is RFC 3339 in UTC.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from falcon_fast._core import scan_json
from falcon_fast.clock import rfc3339
from falcon_fast.codes import ReplyCode
from falcon_fast.errors import EnvelopeError
from falcon_fast.identity import MAX_NAME_CHARACTERS

__all__ = [
    "ACK",
    "AUTH",
    "BROADCAST_TYPES",
    "ClientFrame",
    "decode",
    "encode",
    "error_frame",
    "frame_id",
    "parse",
]

BROADCAST_TYPES: Final = frozenset(
    {
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
    }
)
"""The ten types that may be sent to rooms, users and connections."""

ACK: Final = "ack"
AUTH: Final = "auth"
ERROR: Final = "error"
SYSTEM: Final = "system"

CLIENT_TYPES: Final = frozenset({"message", "presence", "heartbeat", SYSTEM, AUTH})
"""The types a client may send."""

MAX_ID_CHARACTERS: Final = 128
"""Of a client's frame id; it is echoed and means nothing to the server."""

MAX_KEYS: Final = 1000
"""Keys of all objects in one message: each costs far more memory parsed than on the wire."""

_TOO_DEEP: Final = 1
_INTEGER_TOO_LARGE: Final = 2
_TOO_MANY_KEYS: Final = 3

_ROOM: Final = re.compile(r"(?:user:[A-Za-z0-9_-]{1,64}|group:[0-9a-f]{24})")
_TARGET: Final = re.compile(r"(?:user:)?[A-Za-z0-9_-]{1,64}")
_LONG_INTEGER: Final = re.compile(rb"[0-9]{20,}")
_PROFILE: Final = b'"user_profile_update"'
_MEMBERSHIP: Final = b'"group_membership_change"'
_CONTROL: Final = re.compile("[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class ClientFrame:
    """One well-formed frame from a client.

    Attributes:
        id: echoed in the answer, at most 128 characters, or None.
        type: any string; whether a client may use it is the session's to say.
        room: a well-formed room name, or None.
        to: a connection id or `user:{id}`, or None.
        data: the payload, empty when there was none.
    """

    id: str | None
    type: str
    room: str | None
    to: str | None
    data: dict[str, object]


def decode(payload: bytes, *, max_depth: int) -> ClientFrame:
    """Parse and check a client's text message.

    Args:
        payload: UTF-8 text, already limited in size.
        max_depth: how many arrays and objects may be nested.

    Raises:
        EnvelopeError: `bad_json` (not JSON), `bad_request` (JSON of another shape) or `too_large`.
    """
    parsed = parse(payload, max_depth=max_depth)
    if type(parsed) is not dict:
        raise EnvelopeError(
            ReplyCode.BAD_REQUEST, f"a frame must be a JSON object, not {_kind(parsed)}"
        )
    kind = parsed.get("type")
    if type(kind) is not str:
        raise EnvelopeError(ReplyCode.BAD_REQUEST, f"type must be a string, not {_kind(kind)}")
    data = parsed.get("data")
    if data is None:
        data = {}
    elif type(data) is not dict:
        raise EnvelopeError(ReplyCode.BAD_REQUEST, f"data must be an object, not {_kind(data)}")
    ident = parsed.get("id")
    if ident is not None and not _is_id(ident):
        raise EnvelopeError(
            ReplyCode.BAD_REQUEST,
            f"id must be a string of 1 to {MAX_ID_CHARACTERS} printable characters",
        )
    return ClientFrame(
        ident,
        kind,
        _name(parsed, "room", _ROOM, "user:{id} or group:{24 hexadecimal digits}"),
        _name(parsed, "to", _TARGET, "a connection id or user:{id}"),
        data,
    )


def room_name(value: object) -> str | None:
    """Return a value as a room name if it is one, else None."""
    return value if type(value) is str and _ROOM.fullmatch(value) else None


def frame_id(payload: bytes) -> str | None:
    """Return the id of a message that is not going to be handled, if it has one."""
    try:
        parsed = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
    ident = parsed.get("id") if type(parsed) is dict else None
    return ident if _is_id(ident) else None


def encode(
    kind: str,
    *,
    now: float,
    id: str | None = None,  # the key's name on the wire
    room: str | None = None,
    sender: str | None = None,
    to: str | None = None,
    data: Mapping[str, object] | None = None,
) -> bytes:
    """Build a frame.

    Args:
        kind: the type.
        now: seconds since 1970, for the timestamp.
        id: echoed or made by the caller.
        room: the room it is for.
        sender: the connection it is from, or "system".
        to: the connection or user it is for.
        data: the payload; left out when empty.

    Returns:
        UTF-8 JSON.
    """
    frame: dict[str, object] = {}
    if id:
        frame["id"] = id
    frame["type"] = kind
    if room:
        frame["room"] = room
    if sender:
        frame["from"] = sender
    if to:
        frame["to"] = to
    if data:
        frame["data"] = data
    frame["timestamp"] = rfc3339(now)
    return orjson.dumps(frame)


def timestamp(now: float) -> str:
    """Return a time as frames write it: RFC 3339 in UTC with a fraction."""
    return rfc3339(now)


def error_frame(
    code: ReplyCode,
    message: str,
    *,
    now: float,
    id: str | None = None,
    extra: Mapping[str, object] | None = None,
) -> bytes:
    """Build the reply to a frame that was refused: `data {code, message, retryable}`."""
    data: dict[str, object] = {
        "code": code.value,
        "message": message,
        "retryable": code.retryable,
    }
    if extra:
        data.update(extra)
    return encode(ERROR, now=now, id=id, data=data)


def welcome(
    connection_id: str,
    user_id: str,
    *,
    character_id: int,
    character_name: str,
    node_id: str,
    heartbeat_interval: float,
    expires_at: int,
    now: float,
) -> bytes:
    """Build the first frame of a connection."""
    return encode(
        "system_notification",
        now=now,
        data={
            "connection_id": connection_id,
            "message": "Connected to WebSocket",
            "user_id": user_id,
            "character_id": character_id,
            "character_name": character_name,
            "node_id": node_id,
            "heartbeat_interval": heartbeat_interval,
            "expires_at": expires_at,
        },
    )


def rooms_joined(rooms: Sequence[str], *, now: float) -> bytes:
    """Build the `room_update` that tells a connection which rooms it is in."""
    return encode("room_update", now=now, data={"action": "joined", "rooms": rooms})


def rooms_pending(*, now: float) -> bytes:
    """Build the `room_update` that says that the groups could not be read yet."""
    return encode("room_update", now=now, data={"action": "rooms_pending", "retryable": True})


def room_change(
    action: str, room: str, *, connection_id: str, member_count: int, now: float
) -> bytes:
    """Build the `room_update` that tells a room's members of one who joined or left."""
    return encode(
        "room_update",
        now=now,
        room=room,
        data={
            "action": action,
            "connection_id": connection_id,
            "member_count": member_count,
            "room_id": room,
        },
    )


def room_count(room: str, *, member_count: int, now: float) -> bytes:
    """Build the `room_update` of a large room: only how many there are."""
    return encode(
        "room_update",
        now=now,
        room=room,
        data={"action": "member_count", "member_count": member_count, "room_id": room},
    )


def with_member_count(frame: bytes, member_count: int) -> bytes | None:
    """Return another node's `room_change` with this node's count; None for a mere count."""
    change = orjson.loads(frame)
    data = change.get("data") if isinstance(change, dict) else None
    if not isinstance(data, dict) or data.get("action") not in {"member_joined", "member_left"}:
        return None
    data["member_count"] = member_count
    return orjson.dumps(change)


def resync(*, number: int, now: float, room: str | None = None) -> bytes:
    """Build the `room_update` that says that messages were lost: read again what matters.

    Args:
        number: of messages, of all rooms together; 0 if it is not known.
        now: seconds since 1970, for the timestamp.
        room: the room they were for; None if it may be any.
    """
    return encode(
        "room_update",
        now=now,
        room=room,
        data={
            "action": "resync",
            "message": "messages may have been lost",
            **({"lost": number} if number else {}),
        },
    )


def membership_change(
    user_id: str, group_id: str, group_name: str, *, joined: bool, now: float
) -> bytes:
    """Build the frame that tells a user of a change in their groups."""
    return encode(
        "group_membership_change",
        now=now,
        data={
            "user_id": user_id,
            "group_id": group_id,
            "group_name": group_name,
            "joined": joined,
            "timestamp": rfc3339(now),
        },
    )


@dataclass(frozen=True, slots=True)
class MembershipEvent:
    """What a program that manages groups says of one user."""

    group_id: str
    group_name: str
    joined: bool


def membership_event(frame: bytes) -> MembershipEvent | None:
    """Read a frame for a user as the event that a membership changed.

    Such a frame is a `group_membership_change` without an `id`: one with an id is a message of an
    operator to a user's clients.

    Returns:
        The event, None for every other frame.
    """
    if _MEMBERSHIP not in frame:
        return None
    parsed = orjson.loads(frame)
    data = parsed.get("data")
    if parsed.get("type") != "group_membership_change" or "id" in parsed or type(data) is not dict:
        return None
    group_id, name, joined = data.get("group_id"), data.get("group_name"), data.get("joined")
    if type(group_id) is not str or room_name(f"group:{group_id}") is None:
        return None
    if type(joined) is not bool:
        return None
    return MembershipEvent(group_id, name if type(name) is str else "", joined)


def profile_event(frame: bytes) -> tuple[int, str] | None:
    """Read a frame for a user as the news that a character has a name.

    Returns:
        The character and its name, from a `user_profile_update` that has both; None for every
        other frame.
    """
    if _PROFILE not in frame:
        return None
    parsed = orjson.loads(frame)
    data = parsed.get("data")
    if parsed.get("type") != "user_profile_update" or type(data) is not dict:
        return None
    character_id, profile = data.get("character_id"), data.get("profile")
    name = profile.get("character_name") if type(profile) is dict else None
    if type(character_id) is not int or type(name) is not str:
        return None
    if len(name) > MAX_NAME_CHARACTERS or _CONTROL.search(name) is not None:
        return None
    return character_id, name


def presence_reply(ident: str | None, *, now: float) -> bytes:
    """Build the answer to `presence` and `heartbeat`."""
    return encode(
        "presence", now=now, id=ident, data={"status": "online", "timestamp": rfc3339(now)}
    )


def presence_of(user_id: str, status: str, *, now: float) -> bytes:
    """Build the frame that tells of another user's coming or going."""
    return encode(
        "presence",
        now=now,
        data={"user_id": user_id, "status": status, "timestamp": rfc3339(now)},
    )


def pong(ident: str | None, *, now: float) -> bytes:
    """Build the answer to `system` with `action: "ping"`."""
    return encode(SYSTEM, now=now, id=ident, data={"action": "pong"})


def parse(payload: bytes, *, max_depth: int) -> object:
    """Parse JSON from outside, within the limits on depth, keys and integers.

    Args:
        payload: UTF-8 text, already limited in size.
        max_depth: how many arrays and objects may be nested.

    Raises:
        EnvelopeError: `bad_json` (not JSON), `bad_request` (too deep, or an integer beyond 64 bits)
            or `too_large` (too many keys).
    """
    found = scan_json(payload, max_depth, MAX_KEYS)
    if found:
        # What is not JSON at all is called that, whatever else the scan saw in it. Long integers
        # are shortened for this: JSON allows them, and orjson refuses those no double can hold.
        if found != _TOO_DEEP:
            _loads(_LONG_INTEGER.sub(b"1111", payload))
        if found == _TOO_MANY_KEYS:
            raise EnvelopeError(
                ReplyCode.TOO_LARGE, f"a message may have at most {MAX_KEYS} keys in all"
            )
        if found == _INTEGER_TOO_LARGE:
            raise EnvelopeError(
                ReplyCode.BAD_REQUEST, "integers must fit into 64 bits; send larger ones as strings"
            )
        raise EnvelopeError(
            ReplyCode.BAD_REQUEST, f"arrays and objects may be nested {max_depth} deep"
        )
    return _loads(payload)


def _loads(payload: bytes) -> object:
    try:
        parsed: object = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise EnvelopeError(
            ReplyCode.BAD_JSON, f"not valid JSON at line {error.lineno} column {error.colno}"
        ) from None
    return parsed


def _is_id(value: object) -> bool:
    return (
        type(value) is str
        and 0 < len(value) <= MAX_ID_CHARACTERS
        and _CONTROL.search(value) is None
    )


def _name(
    parsed: Mapping[str, object], key: str, pattern: re.Pattern[str], shape: str
) -> str | None:
    value = parsed.get(key)
    if value is None or (type(value) is str and pattern.fullmatch(value)):
        return value
    raise EnvelopeError(ReplyCode.BAD_REQUEST, f"{key} must be {shape}")


def _kind(value: object) -> str:
    """Name a JSON value's kind for an error message."""
    if value is None:
        return "null or absent"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"
