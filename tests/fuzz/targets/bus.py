"""What comes from the bus into `redis_wire`: a checked message or Refused, nothing in between."""

from __future__ import annotations

from typing import Final

import orjson

from falcon_fast._core import Sifter, read_envelope
from falcon_fast.bus import Target
from falcon_fast.bus.redis_wire import (
    FIRST_SHARD,
    Refused,
    Seal,
    checked_frame,
    is_ident,
    read_announcement,
    read_foreign,
    read_word,
    target_of,
)
from falcon_fast.envelope import ACK, AUTH, BROADCAST_TYPES, ERROR, SYSTEM

from .envelopes import depth_of

REPLIES: Final = frozenset({ACK, AUTH, ERROR, SYSTEM})
CHANNEL: Final = b"websocket:nodes"
SEALS: Final = (Seal([]), Seal([b"s" * 32]))


def one_input(data: bytes) -> None:
    """Read one payload; the first octet chooses the channel it came on."""
    stream, payload = (data[0] % (FIRST_SHARD + 1) if data else 0), data[1:]
    head = read_envelope(payload)
    if head is not None:
        check_head(payload, stream, head)
        check_sifted(payload, stream, head)
    try:
        found = read_foreign(payload, stream)
    except Refused as refused:
        check_refusal(refused)
    else:
        assert is_ident(found.target, found.ident)
        assert found.seq is not None or stream < FIRST_SHARD
        check_frame(found.frame, found.target, found.ident)
    check_words(payload)


def check_head(
    payload: bytes,
    stream: int,
    head: tuple[str, int, int, str, str, str | int | None, int | None, str | None, int, int],
) -> None:
    """What is read from the outside is what a parser reads, if the inside is a message."""
    node_id, seq, epoch, kind, ident, restore, members, receipt, start, end = head
    try:
        target = target_of(kind, stream)
    except Refused:
        return
    sharded = stream >= FIRST_SHARD
    try:
        frame = checked_frame(
            payload[start:end], target, ident, restore=restore, is_sharded=sharded
        )
    except Refused as refused:
        check_refusal(refused)
        return
    check_frame(frame, target, ident)
    whole = orjson.loads(payload)
    assert (whole["server_id"], whole["epoch"], whole["v"]) == (node_id, epoch, 1)
    assert (whole["seq"], whole.get("members"), whole.get("receipt")) == (seq, members, receipt)
    assert whole.get(kind, "") == ident
    if restore is None:
        assert orjson.loads(frame).items() <= whole["message"].items()


class Known:
    """A record for which any number is the next one."""

    def __init__(self, epoch: int, seq: int) -> None:
        self.epoch = epoch
        self.last = [seq - 1] * (FIRST_SHARD + 1)


def check_sifted(
    payload: bytes,
    stream: int,
    head: tuple[str, int, int, str, str, str | int | None, int | None, str | None, int, int],
) -> None:
    """What is passed on as it came says the same as what would be written anew."""
    node_id, seq, epoch, _kind, ident, _restore, _members, _receipt, start, end = head
    records = {node_id: Known(epoch, seq)}

    def passed(_channel: bytes, room: str, frame: bytes) -> None:
        assert (room, frame) == (ident, payload[start:end])
        assert orjson.loads(checked_frame(frame, Target.ROOM, ident)) == orjson.loads(frame)

    sifter = Sifter(
        own=b"me",
        streams={b"c": stream},
        records=records,
        types=BROADCAST_TYPES,
        passed=passed,
        left=lambda *_: None,
    )
    sifter.rooms = {ident}
    sifter.take(b"c", payload)


def check_frame(frame: bytes, target: Target, ident: str) -> None:
    """What clients get is a frame as nodes write it."""
    parsed = orjson.loads(frame)
    assert orjson.dumps(parsed) == frame
    assert parsed.keys() <= {"id", "type", "room", "from", "to", "data", "timestamp"}
    assert parsed["type"] in (
        BROADCAST_TYPES | REPLIES if target is Target.CONNECTION else BROADCAST_TYPES
    )
    assert depth_of(parsed) <= 254
    assert target is not Target.ROOM or parsed["room"] == ident
    assert target is not Target.CONNECTION or parsed["to"] == ident


def check_refusal(refused: Refused) -> None:
    """What is logged is ours, whatever came."""
    text = str(refused)
    assert text.isascii()
    assert 0 < len(text) < 100


def check_words(payload: bytes) -> None:
    """A word is sealed, opened and read as it was; none opens a seal by chance."""
    for seal in SEALS:
        if payload.endswith(b"}"):
            assert (
                seal.open(CHANNEL, seal.close(CHANNEL, payload)) == payload or b'"mac"' in payload
            )
        try:
            word = read_word(seal.open(CHANNEL, payload))
            announcement = read_announcement(word.control)
        except Refused as refused:
            check_refusal(refused)
        else:
            assert read_announcement(announcement.encode()) == announcement
