"""What a node's processes say to each other over their socket pair: frames, written and read.

A frame is four octets of length, one octet of kind, and a body of that length. Both ends are the
same version of the same program, started by one another, so nothing is negotiated, and a body that
cannot be read is a defect: it raises, and the connection between the two ends.

Nearly every frame is a message to a room. It says nothing but the room's name (four octets of
length, and the name) and the message, so that it reads the same in both directions, and the core
writes and reads it.

Pure: what is done with frames is said in `hub` (the node process) and `node_link` (a worker).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from struct import Struct
from typing import Final, NamedTuple

import orjson

from falcon_fast._core import room_frame
from falcon_fast.bus import Loss, Target

__all__ = [
    "HEAD",
    "MAX_BODY",
    "Call",
    "Confirm",
    "Counted",
    "Delivery",
    "Kind",
    "Note",
    "Publication",
    "Reply",
    "State",
    "Word",
    "frame",
    "read_call",
    "read_confirm",
    "read_counted",
    "read_delivery",
    "read_lost",
    "read_note",
    "read_publication",
    "read_reply",
    "read_state",
    "read_ticket",
    "read_word",
    "write_call",
    "write_confirm",
    "write_counted",
    "write_delivery",
    "write_lost",
    "write_note",
    "write_publication",
    "write_reply",
    "write_room",
    "write_state",
    "write_ticket",
    "write_word",
]

HEAD: Final = Struct(">IB")
"""In front of each frame: the octets of its body, and its kind."""

MAX_BODY: Final = 64 * 1024 * 1024
"""Octets of a body: a message of 16 MiB, the largest that can be set, fits in with its names."""


class Kind(enum.IntEnum):
    """What a frame says."""

    # From a worker to the node process.
    PUBLISH = 1
    TELL = 2  # a control message for other processes
    FOLLOW = 3
    UNFOLLOW = 4
    SYNC = 5  # say when all that was followed so far is received
    CALL = 6
    # From the node process to a worker.
    DELIVER = 16
    COUNTED = 17
    CONFIRM = 18
    HEARD = 19
    LOST = 20
    STATE = 21
    SYNCED = 22
    REPLY = 23
    # Both ways.
    NOTE = 32
    ROOM = 33  # a message to a room of which nothing else is to be said


# An enumeration's attribute takes longer to look up than a message to write.
_PUBLISHES: Final = int(Kind.PUBLISH)
_DELIVERS: Final = int(Kind.DELIVER)
_COUNTS: Final = int(Kind.COUNTED)
_TO_ROOM: Final = int(Kind.ROOM)

_TARGETS: Final = tuple(Target)
_PLACE: Final = {target: place for place, target in enumerate(_TARGETS)}

_PUBLICATION: Final = Struct(">BBIII")  # target, flags, members, octets of ident and of receipt
_DELIVERY: Final = Struct(">BI")  # target, octets of ident
_COUNTED: Final = Struct(">III")  # members, octets of process id and of room
_CONFIRM: Final = Struct(">BI")  # whether it was delivered, octets of process id
_WORD: Final = Struct(">BI")  # whether there is a node id, its octets
_CALL: Final = Struct(">QB")  # number, octets of its name
_REPLY: Final = Struct(">QB")  # number, whether it went well
_NOTE: Final = Struct(">B")  # octets of its name
_TICKET: Final = Struct(">Q")

_HAS_MEMBERS: Final = 1
_HAS_RECEIPT: Final = 2


def frame(kind: int, body: bytes) -> bytes:
    """Return a frame.

    Raises:
        ValueError: the body is larger than any that the other end takes.
    """
    if len(body) > MAX_BODY:
        raise ValueError(f"a message between processes has {len(body)} octets")
    return HEAD.pack(len(body), kind) + body


def write_room(room: str, message: bytes) -> bytes:
    """Return a frame with a message to a room, for either direction; `_core.Cutter` reads it."""
    return room_frame(_TO_ROOM, room, message, MAX_BODY)


# --------------------------------------------------------------------------------- publications


class Publication(NamedTuple):
    """What a worker publishes; see `Bus.publish`."""

    target: Target
    ident: str
    frame: bytes
    members: int | None
    receipt: str | None


def write_publication(
    target: Target, ident: str, message: bytes, members: int | None, receipt: str | None
) -> bytes:
    """Return a frame in which a worker publishes something."""
    name = ident.encode()
    asked = b"" if receipt is None else receipt.encode()
    flags = (members is not None) * _HAS_MEMBERS | (receipt is not None) * _HAS_RECEIPT
    begin = _PUBLICATION.pack(_PLACE[target], flags, members or 0, len(name), len(asked))
    return frame(_PUBLISHES, b"".join((begin, name, asked, message)))


def read_publication(body: bytes) -> Publication:
    """Read the body of a `Kind.PUBLISH`."""
    place, flags, members, name, asked = _PUBLICATION.unpack_from(body)
    receipt = _PUBLICATION.size + name
    begin = receipt + asked
    return Publication(
        _TARGETS[place],
        body[_PUBLICATION.size : receipt].decode(),
        body[begin:],
        members if flags & _HAS_MEMBERS else None,
        body[receipt:begin].decode() if flags & _HAS_RECEIPT else None,
    )


class Delivery(NamedTuple):
    """A message for connections of a worker; see `Receiver.deliver`."""

    target: Target
    ident: str
    frame: bytes


def write_delivery(target: Target, ident: str, message: bytes) -> bytes:
    """Return a frame that brings a message."""
    name = ident.encode()
    return frame(_DELIVERS, b"".join((_DELIVERY.pack(_PLACE[target], len(name)), name, message)))


def read_delivery(body: bytes) -> Delivery:
    """Read the body of a `Kind.DELIVER`."""
    place, name = _DELIVERY.unpack_from(body)
    begin = _DELIVERY.size + name
    return Delivery(_TARGETS[place], body[_DELIVERY.size : begin].decode(), body[begin:])


class Counted(NamedTuple):
    """A room's change on another process; see `Receiver.counted`."""

    process_id: str
    room: str
    members: int
    frame: bytes


def write_counted(process_id: str, room: str, members: int, message: bytes) -> bytes:
    """Return a frame that tells of a room's change."""
    who, name = process_id.encode(), room.encode()
    begin = _COUNTED.pack(members, len(who), len(name))
    return frame(_COUNTS, b"".join((begin, who, name, message)))


def read_counted(body: bytes) -> Counted:
    """Read the body of a `Kind.COUNTED`."""
    members, who, name = _COUNTED.unpack_from(body)
    room = _COUNTED.size + who
    begin = room + name
    return Counted(
        body[_COUNTED.size : room].decode(), body[room:begin].decode(), members, body[begin:]
    )


class Confirm(NamedTuple):
    """A wish to be told how many got a message; see `Receiver.confirm`.

    Attributes:
        process_id: who wants to know.
        receipt: of which message.
        was_delivered: whether that is the message delivered last; if not, nobody got it.
    """

    process_id: str
    receipt: str
    was_delivered: bool


def write_confirm(process_id: str, receipt: str, *, was_delivered: bool) -> bytes:
    """Return a frame that asks how many got a message."""
    who = process_id.encode()
    return frame(
        Kind.CONFIRM, b"".join((_CONFIRM.pack(was_delivered, len(who)), who, receipt.encode()))
    )


def read_confirm(body: bytes) -> Confirm:
    """Read the body of a `Kind.CONFIRM`."""
    was_delivered, who = _CONFIRM.unpack_from(body)
    begin = _CONFIRM.size + who
    return Confirm(body[_CONFIRM.size : begin].decode(), body[begin:].decode(), bool(was_delivered))


# ------------------------------------------------------------------------------ between processes


class Word(NamedTuple):
    """What one process tells others.

    Attributes:
        node_id: whom it is for, None for all; or on its way to a worker, who tells it.
        control: see `Bus.tell`.
    """

    node_id: str | None
    control: bytes


def write_word(kind: Kind, node_id: str | None, control: bytes) -> bytes:
    """Return a frame of `Kind.TELL` or `Kind.HEARD`."""
    who = b"" if node_id is None else node_id.encode()
    return frame(kind, b"".join((_WORD.pack(node_id is not None, len(who)), who, control)))


def read_word(body: bytes) -> Word:
    """Read the body of a `Kind.TELL` or `Kind.HEARD`."""
    is_there, who = _WORD.unpack_from(body)
    begin = _WORD.size + who
    return Word(body[_WORD.size : begin].decode() if is_there else None, body[begin:])


def write_ticket(kind: Kind, number: int) -> bytes:
    """Return a frame of `Kind.SYNC` or `Kind.SYNCED`."""
    return frame(kind, _TICKET.pack(number))


def read_ticket(body: bytes) -> int:
    """Read the body of a `Kind.SYNC` or `Kind.SYNCED`."""
    number: int = _TICKET.unpack(body)[0]
    return number


def write_lost(loss: Loss, shards: dict[str, int]) -> bytes:
    """Return a frame that tells of a loss.

    Args:
        loss: what was lost.
        shards: the rooms of the worker that are concerned, with their shards.
    """
    document = {
        "node_id": loss.node_id,
        "number": loss.number,
        "targets": sorted(target.value for target in loss.targets),
        "shards": None if loss.shards is None else sorted(loss.shards),
        "rooms": shards,
    }
    return frame(Kind.LOST, orjson.dumps(document))


def read_lost(body: bytes) -> tuple[Loss, dict[str, int]]:
    """Read the body of a `Kind.LOST`."""
    document = orjson.loads(body)
    loss = Loss(
        document["node_id"],
        document["number"],
        frozenset(map(Target, document["targets"])),
        None if document["shards"] is None else frozenset(document["shards"]),
    )
    return loss, document["rooms"]


@dataclass(frozen=True, slots=True)
class State:
    """What a worker has to know of the bus between nodes.

    Attributes:
        is_available: see `Bus.is_available`.
        reaches_all: the targets for which `Bus.reaches_all` holds.
        strangers: see `Bus.strangers`.
    """

    is_available: bool = True
    reaches_all: frozenset[Target] = frozenset(Target)
    strangers: tuple[str, ...] = ()


def write_state(state: State) -> bytes:
    """Return a frame that tells how the bus between nodes is."""
    document = {
        "is_available": state.is_available,
        "reaches_all": sorted(target.value for target in state.reaches_all),
        "strangers": state.strangers,
    }
    return frame(Kind.STATE, orjson.dumps(document))


def read_state(body: bytes) -> State:
    """Read the body of a `Kind.STATE`."""
    document = orjson.loads(body)
    return State(
        document["is_available"],
        frozenset(map(Target, document["reaches_all"])),
        tuple(document["strangers"]),
    )


# ------------------------------------------------------------------------- worker and node process


class Note(NamedTuple):
    """Something told to the other end.

    Attributes:
        what: the kind of note, as text of at most 255 octets.
        body: what it says.
    """

    what: str
    body: bytes


def write_note(what: str, body: bytes) -> bytes:
    """Return a frame with a note."""
    name = what.encode()
    return frame(Kind.NOTE, b"".join((_NOTE.pack(len(name)), name, body)))


def read_note(body: bytes) -> Note:
    """Read the body of a `Kind.NOTE`."""
    begin = _NOTE.size + body[0]
    return Note(body[_NOTE.size : begin].decode(), body[begin:])


class Call(NamedTuple):
    """A worker's question to the node process; see `Note`."""

    number: int
    what: str
    body: bytes


def write_call(number: int, what: str, body: bytes) -> bytes:
    """Return a frame with a question."""
    name = what.encode()
    return frame(Kind.CALL, b"".join((_CALL.pack(number, len(name)), name, body)))


def read_call(body: bytes) -> Call:
    """Read the body of a `Kind.CALL`."""
    number, name = _CALL.unpack_from(body)
    begin = _CALL.size + name
    return Call(number, body[_CALL.size : begin].decode(), body[begin:])


class Reply(NamedTuple):
    """The answer to a `Call`; its body is the reason when it did not go well."""

    number: int
    is_well: bool
    body: bytes


def write_reply(number: int, body: bytes, *, is_well: bool) -> bytes:
    """Return a frame with an answer."""
    return frame(Kind.REPLY, _REPLY.pack(number, is_well) + body)


def read_reply(body: bytes) -> Reply:
    """Read the body of a `Kind.REPLY`."""
    number, is_well = _REPLY.unpack_from(body)
    return Reply(number, bool(is_well), body[_REPLY.size :])
