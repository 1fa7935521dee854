"""What goes through Redis: channels, the envelope around a frame, and what nodes tell each other.

Pure: octets in, values out, and the other way round. The envelope is that of the original program,
`{server_id, message, timestamp}`, with keys of ours that it ignores. Ours are written in one fixed
order, so that the outside can be read without parsing what is inside; what comes in another order
or from the original is parsed as a whole. All of it is checked like any input, and what clients get
is written anew from what was checked, or was found to be such that no two readers could differ.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from falcon_fast._core import read_envelope, scan_json
from falcon_fast.bus import Target
from falcon_fast.bus.shards import SHARDS
from falcon_fast.envelope import ACK, AUTH, BROADCAST_TYPES, ERROR, SYSTEM, room_name

__all__ = [
    "CHANNELS",
    "Announcement",
    "Foreign",
    "Refused",
    "Seal",
    "Word",
    "Writer",
    "checked_frame",
    "pack_members",
    "read_announcement",
    "read_foreign",
    "read_word",
    "unpack_members",
]

MESSAGES, ROOMS, USERS, SYSTEM_STREAM = range(4)
"""The streams that every node sends: one for each channel of the original program."""

FIRST_SHARD: Final = 4
"""The stream of shard 0."""

CHANNELS: Final = (
    b"websocket:messages",
    b"websocket:rooms",
    b"websocket:users",
    b"websocket:system",
)
"""The channels of the streams, by their numbers."""

STREAM_NAMES: Final = ("messages", "rooms", "users", "system")

NODES: Final = b"websocket:nodes"
"""Where nodes tell something to all nodes; the original program does not listen there."""

VERSION: Final = 1
"""Of the envelope; raised only when older nodes must not read it."""

MAX_DEPTH: Final = 254
"""Nested objects and arrays of a frame: what the settings allow at most, and orjson can write."""

MAX_KEYS: Final = 1_064
"""Keys of a frame: a client may send 1000, and the server adds some of its own."""

MAX_TEXT: Final = 128
"""Characters of an id or a sender."""

MAX_NUMBER: Final = 2**53
"""Of a sequence number or an epoch: what every JSON parser keeps exactly."""

PROCESSES: Final = 512
"""More than a node can have: the factor that keeps members and processes apart in one number."""

MAX_CONTROL_BYTES: Final = 1_048_576
"""Of one thing that a node tells nodes."""

ENVELOPE_BYTES: Final = 1_024
"""What an envelope adds to a frame, at most."""

_FRAME_KEYS: Final = frozenset({"id", "type", "room", "from", "to", "data", "timestamp"})
_REPLY_TYPES: Final = frozenset({ACK, AUTH, ERROR, SYSTEM})
_IDENT: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TARGET: Final = re.compile(r"(?:user:)?[A-Za-z0-9_-]{1,64}")
_RECEIPT: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f]")

_MAC_HEAD: Final = b',"mac":"'
_MAC_TAIL: Final = len(_MAC_HEAD) + 64 + 2

# A member of an enumeration is looked up by way of its class, which costs more than the rest.
_ROOM, _CONNECTION, _USER = Target.ROOM, Target.CONNECTION, Target.USER

_TARGET_OF: Final = {
    "room": Target.ROOM,
    "to": Target.CONNECTION,
    "user": Target.USER,
    "": Target.ALL,
}
_TARGETS_IN: Final[tuple[dict[str, Target], ...]] = (
    {"to": Target.CONNECTION},
    {"room": Target.ROOM},
    {"user": Target.USER},
    {"": Target.ALL},
    {"room": Target.ROOM, "user": Target.USER},
)
"""Which targets our nodes send in which stream, by keys; the last is that of all shards."""

_KEY_OF: Final = {
    Target.ROOM: b'"room":"%b",',
    Target.CONNECTION: b'"to":"%b",',
    Target.USER: b'"user":"%b",',
}


class Refused(ValueError):
    """What came is no message; the text says why, in words of ours only."""


def target_of(kind: str, stream: int) -> Target:
    """Return what a key of the envelope stands for.

    Raises:
        Refused: our nodes send no such thing in this stream.
    """
    target = _TARGETS_IN[stream if stream < FIRST_SHARD else FIRST_SHARD].get(kind)
    if target is None:
        raise Refused("it came where such a message does not go")
    return target


def is_ident(target: Target, ident: str) -> bool:
    """Whether an id is one that other nodes would take."""
    if target is Target.ALL:
        return not ident
    if target is Target.ROOM:
        return room_name(ident) is not None
    return _IDENT.fullmatch(ident) is not None


def is_node_id(text: object) -> bool:
    """Whether something is the id of a node, of ours or of the original program."""
    return type(text) is str and _IDENT.fullmatch(text) is not None


def node_channel(node_id: str) -> bytes:
    """Return the channel on which one node is told something."""
    return b"websocket:node:" + node_id.encode()


def shard_channel(shard: int) -> bytes:
    """Return the channel of a shard."""
    return b"websocket:shard:%d" % shard


# --- writing -------------------------------------------------------------------------------------


class Writer:
    """Writes the envelopes of one node.

    Args:
        node_id: its `server_id`.
        epoch: when it started, in milliseconds since 1970.
    """

    def __init__(self, node_id: str, epoch: int) -> None:
        self._head = b'{"server_id":"%b","seq":' % node_id.encode()
        self._middle = b',"epoch":%d,"v":%d,' % (epoch, VERSION)

    def message(
        self,
        seq: int,
        target: Target,
        ident: str,
        frame: bytes,
        *,
        timestamp: bytes,
        members: int | None = None,
        receipt: str | None = None,
        for_original: bool = True,
    ) -> bytes:
        """Put a frame into an envelope.

        Args:
            seq: its number in its stream.
            target: whom it is for.
            ident: of the room, connection or user; one that `is_ident` knows.
            frame: the frame.
            timestamp: 27 characters of RFC 3339.
            members: what `pack_members` has made of them.
            receipt: what others confirm with.
            for_original: whether nodes of the original program may read it, which find a user
                by `data.user_id`.
        """
        extra = b"" if target is Target.ALL else _KEY_OF[target] % ident.encode()
        if target is Target.USER and for_original:
            frame, undo = _with_user(frame, ident)
            extra += undo
        if members is not None:
            extra += b'"members":%d,' % members
        if receipt is not None:
            extra += b'"receipt":"%b",' % receipt.encode()
        return b'%b%d%b%b"message":%b,"timestamp":"%b"}' % (
            self._head,
            seq,
            self._middle,
            extra,
            frame,
            timestamp,
        )

    def word(self, seq: int, word: str, control: bytes, *, timestamp: bytes) -> bytes:
        """Put something for nodes into an envelope, unsealed."""
        return b'%b%d%b"word":"%b","message":%b,"timestamp":"%b"}' % (
            self._head,
            seq,
            self._middle,
            word.encode(),
            control,
            timestamp,
        )


def pack_members(members: int, process_id: str | None) -> int:
    """Put how many members a room has, and on which process of a node, into one number.

    Args:
        members: how many.
        process_id: the node's id, a dot and the number of the process; None for the first one.
    """
    number = 0 if process_id is None else int(process_id.partition(".")[2])
    return members * PROCESSES + number


def unpack_members(packed: int, node_id: str, room: str) -> tuple[str, str, int]:
    """Return (process id, room, members) of what a node has packed."""
    members, number = divmod(packed, PROCESSES)
    return (f"{node_id}.{number}" if number else node_id, room, members)


_NO_ID: Final = 1
_NO_DATA: Final = 2


def _with_user(frame: bytes, user_id: str) -> tuple[bytes, bytes]:
    """Put `data.user_id` into a frame; return it and what tells how to undo that."""
    parsed = orjson.loads(frame)
    data = parsed.get("data")
    if data is None:
        undo = b'"undo":%d,' % _NO_DATA
        data = parsed["data"] = {}
    elif "user_id" not in data:
        undo = b'"undo":%d,' % _NO_ID
    elif data["user_id"] == user_id:
        return frame, b""
    else:
        undo = b'"was":%b,' % orjson.dumps(data["user_id"])
    data["user_id"] = user_id
    return orjson.dumps(parsed), undo


# --- reading messages ----------------------------------------------------------------------------


def checked_frame(
    message: bytes, target: Target, ident: str, *, restore: object = None, is_sharded: bool = False
) -> bytes:
    """Check a frame and write it anew.

    Args:
        message: JSON, as it came.
        target: whom the envelope says it is for.
        ident: of whom it is for.
        restore: what is to be done to `data.user_id`; see `read_envelope`.
        is_sharded: whether it came where the original program does not listen.

    Raises:
        Refused: it is no frame, or not for whom the envelope says.
    """
    return _frame(_loads(message, MAX_DEPTH, MAX_KEYS), target, ident, restore, is_sharded)


def _loads(payload: bytes, max_depth: int, max_keys: int) -> object:
    if scan_json(payload, max_depth, max_keys):
        raise Refused("it is too deep, has too many keys, or an integer beyond 64 bits")
    try:
        parsed: object = orjson.loads(payload)
    except orjson.JSONDecodeError:
        raise Refused("it is not JSON") from None
    return parsed


def _frame(parsed: object, target: Target, ident: str, restore: object, is_sharded: bool) -> bytes:
    if type(parsed) is not dict:
        raise Refused("its message is not an object")
    is_room, is_connection = target is _ROOM, target is _CONNECTION
    get = parsed.get
    kind, room, to, data = get("type"), get("room"), get("to"), get("data")
    if type(kind) is not str or not (
        kind in BROADCAST_TYPES or (is_connection and kind in _REPLY_TYPES)
    ):
        raise Refused("its type is none that nodes send")
    if is_room:
        if room != ident:
            raise Refused("it is for another room than its envelope says")
    elif room is not None and room_name(room) is None:
        raise Refused("its room is none")
    if is_connection:
        if to != ident:
            raise Refused("it is for another connection than its envelope says")
    elif to is not None and (type(to) is not str or not _TARGET.fullmatch(to)):
        raise Refused("its to is none")
    sender, name, time = get("from"), get("id"), get("timestamp")
    if not (
        (sender is None or _is_short(sender))
        and (name is None or _is_short(name))
        and (time is None or _is_short(time))
    ):
        raise Refused("its from, id or timestamp is not a short text")
    if data is not None and type(data) is not dict:
        raise Refused("its data is not an object")
    # Those seven and no others: that is much faster to count than to compare.
    if 7 - (room, to, data, sender, name, time).count(None) != len(parsed):
        parsed = {key: value for key, value in parsed.items() if key in _FRAME_KEYS}
    if target is _USER and not is_sharded:
        if data is None or data.get("user_id") != ident:
            raise Refused("it is for another user than its envelope says")
        if restore is not None:
            _undo(parsed, data, restore)
    try:
        return orjson.dumps(parsed)
    except orjson.JSONEncodeError:
        raise Refused("it cannot be written again") from None


def _is_short(text: object) -> bool:
    """Whether something is a short text without control characters."""
    if type(text) is not str or len(text) > MAX_TEXT:
        return False
    return text.isprintable() or _CONTROL.search(text) is None


def _undo(parsed: dict[str, object], data: dict[str, object], restore: object) -> None:
    if type(restore) is str:
        data["user_id"] = restore
    elif type(restore) is tuple:
        data["user_id"] = restore[0]
    elif restore == _NO_ID:
        del data["user_id"]
    elif restore == _NO_DATA:
        del parsed["data"]
    else:
        raise Refused("its undo is none")


@dataclass(frozen=True, slots=True)
class Foreign:
    """A message whose envelope was parsed as a whole.

    Attributes:
        node_id: who sent it.
        target: whom it is for.
        ident: of whom it is for.
        frame: checked.
        seq: its number, None from a node of the original program.
        epoch: of the number.
        members: see `Writer.message`.
        receipt: see `Writer.message`.
    """

    node_id: str
    target: Target
    ident: str
    frame: bytes
    seq: int | None = None
    epoch: int = 0
    members: int | None = None
    receipt: str | None = None


def read_foreign(payload: bytes, stream: int) -> Foreign:
    """Read an envelope that does not look like what our nodes write.

    Args:
        payload: as it came, limited in size.
        stream: where it came; from FIRST_SHARD on, nothing of the original program is taken.

    Raises:
        Refused: it is no message.
    """
    parsed = _loads(payload, MAX_DEPTH + 1, MAX_KEYS + 16)
    if type(parsed) is not dict:
        raise Refused("it is not an object")
    node_id = parsed.get("server_id")
    if type(node_id) is not str or not is_node_id(node_id):
        raise Refused("its server_id is none")
    message = parsed.get("message")
    seq, epoch, version = parsed.get("seq"), parsed.get("epoch"), parsed.get("v")
    if seq is None and epoch is None and version is None:
        if stream >= FIRST_SHARD:
            raise Refused("it has no number")
        if type(message) is dict:
            # Empty keys are as good as none; the original leaves them out, other programs may not.
            message = {key: value for key, value in message.items() if value not in ("", None)}
        target, ident = _original_target(message, stream)
        return Foreign(node_id, target, ident, _frame(message, target, ident, None, False))
    if version != VERSION or type(version) is not int:
        raise Refused("its envelope is of another version")
    if type(seq) is not int or type(epoch) is not int or not _is_number(seq, epoch):
        raise Refused("its number is none")
    target, ident = _target(parsed, stream)
    # What stood there before may be anything; in a tuple it is not taken for a number of ours.
    restore: object = (parsed["was"],) if "was" in parsed else parsed.get("undo")
    frame = _frame(message, target, ident, restore, stream >= FIRST_SHARD)
    members, receipt = parsed.get("members"), parsed.get("receipt")
    if members is not None and (type(members) is not int or not 0 <= members < MAX_NUMBER):
        raise Refused("its number of members is none")
    if receipt is not None and (type(receipt) is not str or not _RECEIPT.fullmatch(receipt)):
        raise Refused("its receipt is none")
    return Foreign(node_id, target, ident, frame, seq, epoch, members, receipt)


def _is_number(*values: int) -> bool:
    return all(0 < value <= MAX_NUMBER for value in values)


def _original_target(message: object, stream: int) -> tuple[Target, str]:
    """Find out whom a message is for as the original program does."""
    if type(message) is not dict:
        raise Refused("its message is not an object")
    ident: object = ""
    if stream == ROOMS:
        target, ident = Target.ROOM, message.get("room")
    elif stream == USERS:
        data = message.get("data")
        target, ident = Target.USER, data.get("user_id") if type(data) is dict else None
    elif stream == MESSAGES and message.get("to"):
        target, ident = Target.CONNECTION, message["to"]
    else:
        target = Target.ALL
    if type(ident) is not str or not is_ident(target, ident):
        raise Refused("it does not say whom it is for")
    return target, ident


def _target(parsed: Mapping[str, object], stream: int) -> tuple[Target, str]:
    """Find out whom a message of ours is for."""
    kind = next((kind for kind in _TARGET_OF if kind in parsed), "")
    target, ident = target_of(kind, stream), parsed.get(kind, "")
    if type(ident) is not str or not is_ident(target, ident):
        raise Refused("it does not say whom it is for")
    return target, ident


# --- what nodes tell nodes -----------------------------------------------------------------------


class Seal:
    """Proves that what is told comes from a node that knows a secret of the cluster.

    Channel, sender and number are under the seal: what was told by one node to one channel is
    worth nothing as another's, elsewhere, or again.

    Args:
        secrets: the first seals, each of them is accepted; none of them means no seal at all.
    """

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._keys = [hmac.digest(secret, b"falcon_fast bus 1", "sha256") for secret in secrets]

    def close(self, channel: bytes, payload: bytes) -> bytes:
        """Seal an envelope for a channel."""
        if not self._keys:
            return payload
        mac = hmac.new(self._keys[0], channel + b"\n" + payload, hashlib.sha256).hexdigest()
        return b'%b%b%b"}' % (payload[:-1], _MAC_HEAD, mac.encode())

    def open(self, channel: bytes, payload: bytes) -> bytes:
        """Return the envelope without its seal.

        Raises:
            Refused: the seal is not there, or is not one of this cluster.
        """
        has_seal = payload[-_MAC_TAIL:].startswith(_MAC_HEAD)
        inner = payload[:-_MAC_TAIL] + b"}" if has_seal else payload
        if not self._keys:
            return inner
        if not has_seal:
            raise Refused("it has no seal")
        given = payload[-66:-2]
        for key in self._keys:
            mac = hmac.new(key, channel + b"\n" + inner, hashlib.sha256).hexdigest()
            if hmac.compare_digest(mac.encode(), given):
                return inner
        raise Refused("its seal is not one of this cluster")


@dataclass(frozen=True, slots=True)
class Word:
    """Something that a node told nodes.

    Attributes:
        node_id: who told it.
        epoch: of its words.
        seq: its number among them.
        word: what kind of thing: `tell`, `hello` or `positions`.
        control: JSON text.
    """

    node_id: str
    epoch: int
    seq: int
    word: str
    control: bytes


def read_word(payload: bytes) -> Word:
    """Read the envelope of something for nodes, which came unsealed from `Seal.open`.

    Raises:
        Refused: it is none.
    """
    head = read_envelope(payload)
    if head is None:
        raise Refused("it is not what nodes tell each other")
    node_id, seq, epoch, kind, word, _restore, _members, _receipt, start, end = head
    if kind != "word" or not is_node_id(node_id) or not seq:
        raise Refused("it is not what nodes tell each other")
    if end - start > MAX_CONTROL_BYTES:
        raise Refused("it is too long")
    return Word(node_id, epoch, seq, word, payload[start:end])


@dataclass(frozen=True, slots=True)
class Announcement:
    """How far a node is.

    Attributes:
        at: number of its latest message in each stream in which there was one.
        is_sharded: whether it listens to shards, and sends to them if all do.
    """

    at: Mapping[int, int]
    is_sharded: bool

    def encode(self) -> bytes:
        """Write it as JSON."""
        at = {STREAM_NAMES[s]: n for s, n in self.at.items() if s < FIRST_SHARD}
        shards = {str(s - FIRST_SHARD): n for s, n in self.at.items() if s >= FIRST_SHARD}
        routing = "sharded" if self.is_sharded else "compatible"
        return orjson.dumps({"routing": routing, "at": at, "shards": shards})


def read_announcement(control: bytes) -> Announcement:
    """Read how far a node is.

    Raises:
        Refused: it does not say so.
    """
    parsed = _loads(control, 4, 1_000)
    if type(parsed) is not dict:
        raise Refused("it is not an object")
    at: dict[int, int] = {}
    for name, number in _numbers(parsed.get("at")):
        if name in STREAM_NAMES:
            at[STREAM_NAMES.index(name)] = number
    for name, number in _numbers(parsed.get("shards")):
        if name.isascii() and name.isdigit() and len(name) <= 3 and int(name) < SHARDS:
            at[FIRST_SHARD + int(name)] = number
    return Announcement(at, parsed.get("routing") == "sharded")


def _numbers(value: object) -> list[tuple[str, int]]:
    if type(value) is not dict:
        raise Refused("it does not say how far it is")
    found = []
    for name, number in value.items():
        if type(number) is not int or not 0 <= number <= MAX_NUMBER:
            raise Refused("it does not say how far it is")
        found.append((name, number))
    return found
