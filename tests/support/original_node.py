"""A double of a node of the original program: it speaks its envelope over Redis, and no more.

It has clients that exist only as lists of what they would have been sent. A message from Redis is
read into the original's types and written again from them, as Go's encoding/json does it: names
are matched in any case, unknown ones are dropped, integers become floats, `<`, `>` and `&` are
escaped, keys of `data` are sorted, a timestamp that is none spoils the whole message.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Self

import redis

from .redis_server import RedisServer
from .server import eventually

MESSAGES: Final = "websocket:messages"
ROOMS: Final = "websocket:rooms"
USERS: Final = "websocket:users"
SYSTEM: Final = "websocket:system"
CHANNELS: Final = (MESSAGES, ROOMS, USERS, SYSTEM)

TEXTS: Final = ("id", "type", "room", "from", "to")
"""The fields of a message that are strings, in the order of the struct."""

ALWAYS: Final = ("type", "timestamp")
"""The fields that are written even when they are empty."""

_TIMESTAMP: Final = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:[.,](\d+))?(Z|[+-]\d\d:\d\d)", re.ASCII
)
_ZERO_TIME: Final = "0001-01-01T00:00:00Z"

Message = dict[str, Any]


class Undecodable(ValueError):
    """What Go's decoder would have refused."""


# ------------------------------------------------------------------------------ encoding/json


def go_json(value: object) -> str:
    """Write a value as Go's encoding/json would, without spaces.

    A `Struct` keeps the order of its keys, any other mapping is sorted.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _go_string(value)
    if isinstance(value, int | float):
        return _go_float(float(value))
    if isinstance(value, Mapping):
        names = list(value) if isinstance(value, Struct) else sorted(value, key=_go_order)
        return "{" + ",".join(f"{_go_string(name)}:{go_json(value[name])}" for name in names) + "}"
    if isinstance(value, Iterable):
        return "[" + ",".join(map(go_json, value)) + "]"
    raise TypeError(f"{type(value).__name__} is no JSON")


class Struct(dict[str, Any]):
    """A mapping whose keys are written in the order in which they were put in."""


def _go_order(name: str) -> bytes:
    return _clean(name).encode()


def _clean(text: str) -> str:
    # Lone surrogates become the replacement character when Go decodes them.
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def _go_string(text: str) -> str:
    plain = json.dumps(_clean(text), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        plain = plain.replace(character, f"\\u{ord(character):04x}")
    return plain


def _go_float(number: float) -> str:
    if not math.isfinite(number):
        raise Undecodable("not a number of JSON")
    if number == 0:
        return "-0" if math.copysign(1, number) < 0 else "0"
    shortest = Decimal(repr(number))
    if 1e-6 <= abs(number) < 1e21:
        text = format(shortest, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    sign, digits, _ = shortest.normalize().as_tuple()
    exponent = shortest.adjusted()
    mantissa = str(digits[0]) + ("." + "".join(map(str, digits[1:])) if len(digits) > 1 else "")
    # encoding/json cleans up e-09 to e-9, and leaves e+21 and e-10 alone.
    return f"{'-' if sign else ''}{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent)}"


def go_time(text: str) -> str:
    """Read a timestamp as Go's time.Time does and write it again.

    Raises:
        Undecodable: it is none.
    """
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise Undecodable(f"no timestamp: {text!r}")
    seconds, fraction, zone = match.groups()
    try:
        datetime.fromisoformat(seconds)
    except ValueError as error:
        raise Undecodable(str(error)) from error
    fraction = (fraction or "")[:9].rstrip("0")
    zone = "Z" if zone in {"+00:00", "-00:00"} else zone
    return f"{seconds}{'.' + fraction if fraction else ''}{zone}"


def now() -> str:
    """Return the time as the original writes it: with nanoseconds, without trailing zeros."""
    nanoseconds = time.time_ns()
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(nanoseconds // 10**9))
    return go_time(f"{seconds}.{nanoseconds % 10**9:09d}Z")


def decode_message(found: object) -> Struct:
    """Read a message into the original's struct.

    Raises:
        Undecodable: a field is of another type.
    """
    if found is None:
        return Struct(type="", timestamp=_ZERO_TIME)
    if not isinstance(found, Mapping):
        raise Undecodable("a message must be an object")
    fields: dict[str, object] = {}
    for name, value in found.items():
        # Go prefers nothing: the last of several spellings wins. null leaves a field as it is.
        if value is not None:
            fields[name.lower()] = value
    message = Struct()
    for name in TEXTS:
        value = fields.get(name, "")
        if not isinstance(value, str):
            raise Undecodable(f"{name} must be a string")
        if value or name in ALWAYS:
            message[name] = value
    data = fields.get("data", {})
    if not isinstance(data, Mapping):
        raise Undecodable("data must be an object")
    if data:
        message["data"] = data
    stamp = fields.get("timestamp", _ZERO_TIME)
    if not isinstance(stamp, str):
        raise Undecodable("timestamp must be a string")
    message["timestamp"] = go_time(stamp)
    return message


def decode_envelope(octets: bytes) -> tuple[str, Struct]:
    """Read what came on a channel: the sender's id and the message.

    Raises:
        Undecodable: it is none of the original's envelopes.
    """
    try:
        # Go counts every number as a float64, and refuses what does not fit into one.
        found = json.loads(
            octets.decode("utf-8", "replace"), parse_int=_whole, parse_constant=_refuse
        )
    except (ValueError, RecursionError) as error:
        raise Undecodable(str(error)) from error
    if not isinstance(found, Mapping):
        raise Undecodable("an envelope must be an object")
    fields = {name.lower(): value for name, value in found.items() if value is not None}
    server_id, stamp = fields.get("server_id", ""), fields.get("timestamp", _ZERO_TIME)
    if not isinstance(server_id, str) or not isinstance(stamp, str):
        raise Undecodable("server_id and timestamp must be strings")
    go_time(stamp)
    return server_id, decode_message(fields.get("message"))


def _whole(digits: str) -> float:
    return float(digits)


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


# -------------------------------------------------------------------------------- the double


@dataclass(slots=True)
class Imagined:
    """A client of the double.

    Attributes:
        heard: the texts of the frames it would have got, in order.
    """

    id: str
    user_id: str
    rooms: frozenset[str]
    heard: list[str] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        """What it would have got, decoded."""
        return [json.loads(text) for text in self.heard]

    def has_heard(self, text: str) -> bool:
        """Whether a text is in anything that it would have got."""
        return any(text in frame for frame in list(self.heard))


class OriginalNode:
    """A node of the original program, as far as other nodes can see it.

    Args:
        server: the Redis it is connected to, and subscribed in when this returns.

    Attributes:
        server_id: its uuid.
        refused: what came that it could not decode, with the reason.
        envelopes: how many came from other nodes and could be decoded.
        seen: all that came from other nodes, as channel and octets.
    """

    def __init__(self, server: RedisServer) -> None:
        self.server_id = str(uuid.uuid4())
        self.refused: list[tuple[bytes, str]] = []
        self.envelopes = 0
        self.seen: list[tuple[str, bytes]] = []
        self._clients: dict[str, Imagined] = {}
        self._lock = threading.Lock()
        self._connection = server.client()
        self._pubsub = self._connection.pubsub()  # type: ignore[no-untyped-call]
        self._pubsub.subscribe(*CHANNELS)
        for _ in CHANNELS:
            assert self._pubsub.get_message(timeout=10.0) is not None
        self._stopped = False
        self._thread = threading.Thread(target=self._listen, name="original node", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._stopped:
            try:
                got = self._pubsub.get_message(timeout=0.05)
            except (redis.ConnectionError, redis.TimeoutError):
                # As the original: its client library subscribes again, and nobody hears of it.
                time.sleep(0.05)
                continue
            if got is not None and got["type"] == "message":
                self._take(got["channel"].decode(), got["data"])

    def close(self) -> None:
        """Let go of Redis."""
        self._stopped = True
        self._thread.join()
        self._pubsub.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of Redis."""
        self.close()

    # ----------------------------------------------------------------------- what it receives

    def _take(self, channel: str, octets: bytes) -> None:
        try:
            server_id, message = decode_envelope(octets)
        except Undecodable as error:
            with self._lock:
                self.refused.append((octets, str(error)))
            return
        if server_id == self.server_id:
            return
        self._route(channel, message)
        with self._lock:
            self.seen.append((channel, octets))
            self.envelopes += 1

    def _route(self, channel: str, message: Struct) -> None:
        to, room = message.get("to", ""), message.get("room", "")
        user_id = message.get("data", {}).get("user_id")
        chosen: dict[str, Callable[[Imagined], bool]] = {
            MESSAGES: lambda client: not to or client.id == to,
            ROOMS: lambda client: room in client.rooms,
            USERS: lambda client: client.user_id == user_id,
            SYSTEM: lambda client: True,
        }
        frame = go_json(message)
        with self._lock:
            for client in self._clients.values():
                if chosen[channel](client):
                    client.heard.append(frame)

    # --------------------------------------------------------------------------- its clients

    def connect(self, user_id: str, *groups: str) -> Imagined:
        """Imagine a client; its personal room need not be named."""
        client = Imagined(str(uuid.uuid4()), user_id, frozenset({f"user:{user_id}", *groups}))
        with self._lock:
            self._clients[client.id] = client
        return client

    def wait_for(self, number: int) -> None:
        """Wait until so many envelopes of other nodes have come."""
        eventually(lambda: self.envelopes >= number, f"{number} envelopes")

    # ------------------------------------------------------------------------- what it sends

    def publish(self, channel: str, message: Mapping[str, object]) -> Message:
        """Send a message to other nodes, after its own clients, as the original does."""
        sent = decode_message({"timestamp": now(), **message})
        envelope = Struct(server_id=self.server_id, message=sent, timestamp=now())
        self._route(channel, sent)
        self._connection.publish(channel, go_json(envelope))
        return dict(sent)

    def send_to_room(self, room: str, kind: str, data: Message, **fields: str) -> Message:
        """Send a message to a room."""
        return self.publish(ROOMS, {"type": kind, "room": room, "data": data, **fields})

    def send_to_user(self, user_id: str, kind: str, data: Message, **fields: str) -> Message:
        """Send a message to a user: the id is put into the data."""
        routed = {**data, "user_id": user_id}
        return self.publish(USERS, {"type": kind, "data": routed, **fields})

    def send_to_connection(self, to: str, kind: str, data: Message, **fields: str) -> Message:
        """Send a message to one connection."""
        return self.publish(MESSAGES, {"type": kind, "to": to, "data": data, **fields})

    def broadcast(self, kind: str, data: Message, **fields: str) -> Message:
        """Send a message to everybody, on the channel of messages."""
        return self.publish(MESSAGES, {"type": kind, "data": data, **fields})

    def send_system(self, kind: str, data: Message, **fields: str) -> Message:
        """Send a message to everybody, on the channel of the system."""
        return self.publish(SYSTEM, {"type": kind, "data": data, **fields})
