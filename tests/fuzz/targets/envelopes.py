"""A client's message into `envelope`: a checked frame or an EnvelopeError, nothing in between."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import orjson

from falcon_fast import envelope
from falcon_fast.codes import ReplyCode
from falcon_fast.errors import EnvelopeError

DEPTHS: Final = (2, 8, 32, 1000)

REFUSALS: Final = frozenset({ReplyCode.BAD_JSON, ReplyCode.BAD_REQUEST, ReplyCode.TOO_LARGE})


def one_input(data: bytes) -> None:
    """Read one message; the first octet chooses how deep it may be nested."""
    depth, payload = DEPTHS[data[0] & 3 if data else 0], data[1:]
    ident = envelope.frame_id(payload)
    assert ident is None or 0 < len(ident) <= envelope.MAX_ID_CHARACTERS
    try:
        frame = envelope.decode(payload, max_depth=depth)
    except EnvelopeError as error:
        check_error(error)
        return
    assert depth_of(frame.data) < depth
    assert all(name is None or len(name) <= 70 for name in (frame.room, frame.to))
    # What is passed on says the same again to the next reader.
    passed_on = envelope.encode(
        frame.type or "message",
        now=1_700_000_000.0,
        id=frame.id,
        room=frame.room,
        to=frame.to,
        data=frame.data,
    )
    assert b"\n" not in passed_on
    again = envelope.decode(passed_on, max_depth=depth)
    assert (again.id, again.room, again.to) == (frame.id, frame.room, frame.to)
    assert orjson.dumps(again.data) == orjson.dumps(frame.data)
    assert frame.id is None or frame.id == envelope.frame_id(passed_on) or depth > DEPTHS[2]


def check_error(error: EnvelopeError) -> None:
    """What is told to the client is ours, whatever it sent."""
    assert error.code in REFUSALS
    assert error.message.isascii()
    assert len(error.message) < 200


def depth_of(value: object) -> int:
    """Count how deep arrays and objects are nested; a value that is neither has depth 0."""
    deepest, level = -1, [value]
    while level:
        deepest += 1
        level = [inner for outer in level for inner in inside(outer)]
    return deepest


def inside(value: object) -> Iterable[object]:
    """Return what an array or an object holds."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
