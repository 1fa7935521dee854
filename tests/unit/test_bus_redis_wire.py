"""The envelope: what is written is read, natively and as a whole; everything else is refused."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_fast._core import Sifter, read_envelope
from falcon_fast.bus import Target
from falcon_fast.bus.redis_wire import (
    FIRST_SHARD,
    MESSAGES,
    ROOMS,
    SYSTEM_STREAM,
    USERS,
    Announcement,
    Foreign,
    Refused,
    Seal,
    Writer,
    checked_frame,
    pack_members,
    read_announcement,
    read_foreign,
    read_word,
    shard_channel,
    unpack_members,
)
from falcon_fast.envelope import BROADCAST_TYPES

NODE = "0a0a0a0a-0000-4000-8000-00000000000a"
ROOM = "group:" + "0" * 24
STAMP = b"2026-01-02T03:04:05.123456Z"
EPOCH = 1_764_000_000_000

STREAM = {
    Target.CONNECTION: MESSAGES,
    Target.ROOM: ROOMS,
    Target.USER: USERS,
    Target.ALL: SYSTEM_STREAM,
}


def frame(**keys: object) -> bytes:
    return orjson.dumps({"type": "message", **keys})


MESSAGES_OF_OURS = [
    (Target.ROOM, ROOM, frame(room=ROOM, data={"n": 1}), {}),
    (Target.ROOM, "user:ann", frame(room="user:ann"), {"members": 0, "receipt": "r-1"}),
    (Target.CONNECTION, "c-1", frame(to="c-1", id="x"), {"receipt": "r-1"}),
    (Target.CONNECTION, "c-1", orjson.dumps({"type": "error", "to": "c-1"}), {}),
    (Target.ALL, "", frame(data={"n": 2**64 - 1, "m": -(2**63)}), {}),
    (Target.USER, "ann", frame(data={"user_id": "ann", "x": [1, {}]}), {}),
    (Target.USER, "ann", frame(data={"x": 1}), {}),
    (Target.USER, "ann", frame(), {}),
    (Target.USER, "ann", frame(data={"user_id": "bob"}), {}),
    (Target.USER, "ann", frame(data={"user_id": "a b"}), {}),
    (Target.USER, "ann", frame(data={"user_id": None}), {}),
    (Target.USER, "ann", frame(data={"user_id": 1}), {}),
    (Target.USER, "ann", frame(data={"user_id": {"a": []}}), {}),
]


@pytest.mark.parametrize(("target", "ident", "content", "more"), MESSAGES_OF_OURS)
@pytest.mark.parametrize("for_original", [True, False])
def test_what_is_written_is_read(
    target: Target, ident: str, content: bytes, more: dict[str, object], for_original: bool
) -> None:
    payload = Writer(NODE, EPOCH).message(
        7,
        target,
        ident,
        content,
        timestamp=STAMP,
        for_original=for_original,
        **more,  # type: ignore[arg-type]
    )
    parsed = orjson.loads(payload)
    assert list(parsed)[:4] == ["server_id", "seq", "epoch", "v"]
    assert parsed["timestamp"] == STAMP.decode()
    if target is Target.USER and for_original:
        assert parsed["message"]["data"]["user_id"] == ident, "the original finds them by it"
    stream = STREAM[target] if for_original else FIRST_SHARD
    if for_original or target in {Target.ROOM, Target.USER}:
        # As a whole, in whatever order.
        shuffled = orjson.dumps(dict(reversed(parsed.items())))
        for text in (payload, shuffled):
            found = read_foreign(text, stream)
            assert orjson.loads(found.frame) == orjson.loads(content)
            assert (found.node_id, found.seq, found.epoch) == (NODE, 7, EPOCH)
            assert (found.target, found.ident) == (target, ident)
            assert (found.members, found.receipt) == (more.get("members"), more.get("receipt"))
    head = read_envelope(payload)
    if head is None:
        assert not isinstance(orjson.loads(content)["data"]["user_id"], str) or " " in str(parsed)
        return
    node, seq, epoch, kind, name, restore, members, receipt, start, end = head
    assert (node, seq, epoch, name) == (NODE, 7, EPOCH, ident)
    assert kind == {"ROOM": "room", "CONNECTION": "to", "USER": "user", "ALL": ""}[target.name]
    assert (members, receipt) == (more.get("members"), more.get("receipt"))
    again = checked_frame(
        payload[start:end], target, ident, restore=restore, is_sharded=not for_original
    )
    assert orjson.loads(again) == orjson.loads(content)


GOOD = Writer(NODE, EPOCH).message(1, Target.ROOM, ROOM, frame(room=ROOM), timestamp=STAMP)


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_a_cut_envelope_is_not_read(length: int) -> None:
    assert read_envelope(GOOD) is not None
    assert read_envelope(GOOD[:length]) is None
    with pytest.raises(Refused):
        read_foreign(GOOD[:length], ROOMS)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"seq":1,', b'"seq":01,'),
        (b'"seq":1,', b'"seq":-1,'),
        (b'"seq":1,', b'"seq":12345678901234567,'),
        (b'"seq":1,', b'"seq":1.0,'),
        (b'"v":1,', b'"v":2,'),
        (b'"v":1,', b'"v":11,'),
        (b'"room":"group', b'"roof":"group'),
        (b'"room":"group', b'"room":"gr oup'),
        (b'"room":"group', b'"room":"gr\\u0041oup'),
        (b'"room":"group:', b'"room":"' + b"x" * 97),
        (b'"room":"group:' + b"0" * 24, b'"room":"'),
        (NODE.encode(), b"x" * 65),
        (NODE.encode(), b"a:b"),
        (NODE.encode(), b""),
        (b"03:04:05", b"03:04:0x"),
        (b'"message":', b'"massage":'),
        (b'{"server_id"', b' {"server_id"'),
        (b"}", b"} "),
    ],
)
def test_anything_else_is_left_to_the_parser(old: bytes, new: bytes) -> None:
    assert old in GOOD
    assert read_envelope(GOOD.replace(old, new)) is None


@given(st.binary(max_size=300), st.integers(0, len(GOOD)), st.integers(0, 40))
def test_any_octets_are_read_or_refused(noise: bytes, at: int, gap: int) -> None:
    for text in (noise, GOOD[:at] + noise + GOOD[at + gap :]):
        head = read_envelope(text)
        if head is not None:
            *_, start, end = head
            assert 0 < start < end <= len(text) - 43
        for stream in (*STREAM.values(), FIRST_SHARD):
            try:
                found = read_foreign(text, stream)
            except Refused:
                continue
            assert orjson.loads(found.frame)["type"]


ORIGINAL = {"server_id": NODE, "timestamp": "2026-01-02T03:04:05Z"}


@pytest.mark.parametrize(
    ("stream", "message", "target", "ident"),
    [
        (MESSAGES, {"type": "message", "to": "c-1"}, Target.CONNECTION, "c-1"),
        (MESSAGES, {"type": "message", "data": {}}, Target.ALL, ""),
        (MESSAGES, {"type": "message", "to": ""}, Target.ALL, ""),
        (ROOMS, {"type": "presence", "room": ROOM}, Target.ROOM, ROOM),
        (USERS, {"type": "presence", "data": {"user_id": "ann"}}, Target.USER, "ann"),
        (SYSTEM_STREAM, {"type": "backend_status", "room": ROOM}, Target.ALL, ""),
    ],
)
def test_the_original_is_routed_as_it_would(
    stream: int, message: dict[str, object], target: Target, ident: str
) -> None:
    found = read_foreign(orjson.dumps({**ORIGINAL, "message": message, "more": 1}), stream)
    if message.get("to") == "":
        del message["to"]
    assert orjson.loads(found.frame) == message
    assert found == Foreign(NODE, target, ident, found.frame)


@pytest.mark.parametrize(
    ("stream", "changes"),
    [
        (ROOMS, {"message": {"type": "message"}}),
        (ROOMS, {"message": {"type": "message", "room": "lobby"}}),
        (ROOMS, {"message": {"type": "message", "room": 1}}),
        (ROOMS, {"message": []}),
        (ROOMS, {"message": None}),
        (USERS, {"message": {"type": "message"}}),
        (USERS, {"message": {"type": "message", "data": {"user_id": "a b"}}}),
        (USERS, {"message": {"type": "message", "data": []}}),
        (MESSAGES, {"message": {"type": "message", "to": "a b"}}),
        (MESSAGES, {"message": {"type": "ack", "data": {}}}),
        (SYSTEM_STREAM, {"message": {"type": "root", "data": {}}}),
        (SYSTEM_STREAM, {"message": {"type": ["message"]}}),
        (SYSTEM_STREAM, {"message": {"data": {}}}),
        (SYSTEM_STREAM, {"message": {"type": "message", "data": "x"}}),
        (SYSTEM_STREAM, {"message": {"type": "message", "room": "lobby"}}),
        (SYSTEM_STREAM, {"message": {"type": "message", "to": 3}}),
        (SYSTEM_STREAM, {"message": {"type": "message", "from": {"a": 1}}}),
        (SYSTEM_STREAM, {"message": {"type": "message", "from": "a\n"}}),
        (SYSTEM_STREAM, {"message": {"type": "message", "id": "x" * 129}}),
        (SYSTEM_STREAM, {"message": {"type": "message", "timestamp": 1}}),
        (SYSTEM_STREAM, {"message": {"type": "message"}, "server_id": "a b"}),
        (SYSTEM_STREAM, {"message": {"type": "message"}, "server_id": 7}),
        (SYSTEM_STREAM, {"message": {"type": "message"}, "server_id": None}),
        (SYSTEM_STREAM, {"message": {"type": "message"}, "v": 2, "seq": 1, "epoch": 1}),
        (SYSTEM_STREAM, {"message": {"type": "message"}, "v": True, "seq": 1, "epoch": 1}),
        (SYSTEM_STREAM, {"message": {"type": "message"}, "v": 1, "seq": 0, "epoch": 1}),
        (SYSTEM_STREAM, {"message": {"type": "message"}, "v": 1, "seq": 1}),
        (SYSTEM_STREAM, {"message": {"type": "message"}, "v": 1, "seq": "1", "epoch": 1}),
        (SYSTEM_STREAM, {"message": {"type": "message"}, "v": 1, "seq": 1, "epoch": 2**53 + 1}),
        (FIRST_SHARD, {"message": {"type": "message", "room": ROOM}}),
    ],
)
def test_x10_what_is_no_message_is_refused(stream: int, changes: dict[str, object]) -> None:
    with pytest.raises(Refused) as caught:
        read_foreign(orjson.dumps({**ORIGINAL, **changes}), stream)
    assert NODE not in str(caught.value)


OURS = {**ORIGINAL, "seq": 1, "epoch": 1, "v": 1}


@pytest.mark.parametrize(
    ("stream", "changes"),
    [
        (ROOMS, {"to": "c-1", "message": {"type": "message", "to": "c-1"}}),
        (ROOMS, {"room": "lobby", "message": {"type": "message", "room": "lobby"}}),
        (ROOMS, {"room": 1, "message": {"type": "message", "room": ROOM}}),
        (ROOMS, {"room": "user:a", "message": {"type": "message", "room": ROOM}}),
        (MESSAGES, {"to": "c-1", "message": {"type": "message", "to": "c-2"}}),
        (USERS, {"user": "a", "message": {"type": "message", "data": {"user_id": "b"}}}),
        (USERS, {"user": "a", "message": {"type": "message"}}),
        (USERS, {"user": "a", "undo": 3, "message": {"type": "message", "data": {"user_id": "a"}}}),
        (
            USERS,
            {"user": "a", "undo": [], "message": {"type": "message", "data": {"user_id": "a"}}},
        ),
        (ROOMS, {"room": ROOM, "members": -1, "message": {"type": "message", "room": ROOM}}),
        (ROOMS, {"room": ROOM, "members": "1", "message": {"type": "message", "room": ROOM}}),
        (ROOMS, {"room": ROOM, "receipt": "a b", "message": {"type": "message", "room": ROOM}}),
        (ROOMS, {"room": ROOM, "receipt": 1, "message": {"type": "message", "room": ROOM}}),
    ],
)
def test_x10_a_false_envelope_of_ours_is_refused(stream: int, changes: dict[str, object]) -> None:
    with pytest.raises(Refused):
        read_foreign(orjson.dumps({**OURS, **changes}), stream)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\x80\x04\x95.",
        b"\xff\xfe",
        b"[]",
        b"nonsense",
        b'{"message":' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"message":{"type":"message","data":{"n":18446744073709551616}}}',
        orjson.dumps(
            {
                **ORIGINAL,
                "message": {"type": "message", "data": dict.fromkeys(map(str, range(2000)))},
            }
        ),
    ],
)
def test_x10_what_is_no_json_for_us_is_refused(text: bytes) -> None:
    with pytest.raises(Refused):
        read_foreign(text, SYSTEM_STREAM)


def test_the_deepest_frame_that_settings_allow_passes() -> None:
    data: dict[str, object] = {}
    for _ in range(252):
        data = {"d": data}
    payload = Writer(NODE, EPOCH).message(1, Target.ALL, "", frame(data=data), timestamp=STAMP)
    assert orjson.loads(read_foreign(payload, SYSTEM_STREAM).frame)["data"] == data


def test_unknown_keys_are_dropped_and_known_ones_kept() -> None:
    text = b'{"type":"message","admin":true,"data":{"admin":true},"id":"1"}'
    assert (
        checked_frame(text, Target.ALL, "") == b'{"type":"message","data":{"admin":true},"id":"1"}'
    )
    twice = b'{"type":"root","type":"message"}'
    assert checked_frame(twice, Target.ALL, "") == b'{"type":"message"}'


# --- words ---------------------------------------------------------------------------------------

CHANNEL = b"websocket:nodes"


def test_words_are_sealed_and_read() -> None:
    old, new, other = b"o" * 32, b"n" * 32, b"x" * 32
    word = Writer(NODE, EPOCH).word(3, "tell", b'{"a":1}', timestamp=STAMP)
    sealed = Seal([new, old]).close(CHANNEL, word)
    assert orjson.loads(sealed)["mac"]
    for seal in (Seal([new]), Seal([old, new]), Seal([])):
        found = read_word(seal.open(CHANNEL, sealed))
        assert (found.node_id, found.epoch, found.seq) == (NODE, EPOCH, 3)
        assert (found.word, found.control) == ("tell", b'{"a":1}')
    with pytest.raises(Refused, match="not one of this cluster"):
        Seal([other, old]).open(CHANNEL, sealed)
    assert Seal([]).close(CHANNEL, word) == Seal([]).open(CHANNEL, word) == word
    with pytest.raises(Refused, match="no seal"):
        Seal([new]).open(CHANNEL, word)


def test_x10_no_word_passes_for_another() -> None:
    seal = Seal([b"n" * 32])
    sealed = seal.close(CHANNEL, Writer(NODE, EPOCH).word(3, "tell", b"{}", timestamp=STAMP))
    another = NODE.replace("a", "b").encode()
    for old, new in (
        (NODE.encode(), another),
        (b'"seq":3', b'"seq":4'),
        (b"tell", b"hell"),
        (b"{}", b"[]"),
    ):
        with pytest.raises(Refused):
            seal.open(CHANNEL, sealed.replace(old, new))
    with pytest.raises(Refused):
        seal.open(b"websocket:node:" + another, sealed)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        GOOD,
        Writer("a:b", EPOCH).word(1, "tell", b"{}", timestamp=STAMP),
        Writer(NODE, EPOCH).word(0, "tell", b"{}", timestamp=STAMP),
        Writer(NODE, EPOCH).word(1, "tell", b'"' + b"x" * 1_048_576 + b'"', timestamp=STAMP),
    ],
)
def test_what_is_no_word_is_refused(payload: bytes) -> None:
    with pytest.raises(Refused):
        read_word(payload)


def test_announcements() -> None:
    told = Announcement({MESSAGES: 3, SYSTEM_STREAM: 2**53, FIRST_SHARD + 127: 5}, is_sharded=True)
    assert read_announcement(told.encode()) == told
    later = (
        b'{"routing":"other","at":{"rooms":1,"rocks":2},"shards":{"128":1,"x":1,"2":9},"more":[]}'
    )
    assert read_announcement(later) == Announcement(
        {ROOMS: 1, FIRST_SHARD + 2: 9}, is_sharded=False
    )


@pytest.mark.parametrize(
    "control",
    [
        b"",
        b"[]",
        b"{}",
        b'{"at":{},"shards":[]}',
        b'{"at":{"rooms":-1},"shards":{}}',
        b'{"at":{"rooms":true},"shards":{}}',
        b'{"at":{"rooms":9007199254740993},"shards":{}}',
        b'{"at":{"rooms":{"a":{"b":{}}}},"shards":{}}',
    ],
)
def test_what_is_no_announcement_is_refused(control: bytes) -> None:
    with pytest.raises(Refused):
        read_announcement(control)


def test_channels() -> None:
    assert shard_channel(127) == b"websocket:shard:127"


@pytest.mark.parametrize("process", [None, f"{NODE}.1", f"{NODE}.256"])
@pytest.mark.parametrize("members", [0, 1, 65_536])
def test_members_and_their_process_travel_in_one_number(members: int, process: str | None) -> None:
    packed = pack_members(members, process)
    assert unpack_members(packed, NODE, ROOM) == (process or NODE, ROOM, members)


# --- sifting -------------------------------------------------------------------------------------


class Known:
    """What a sifter needs of a record."""

    def __init__(self, epoch: int, *last: int) -> None:
        self.epoch = epoch
        self.last = list(last)


OWN, DONE = "own", "done with"


def sift(
    payload: bytes,
    stream: int,
    records: Mapping[str, object],
    rooms: Container[str],
    own: bytes = b"me",
) -> object:
    """Return what a sifter makes of a message: OWN, DONE, (room, frame), or what it leaves."""
    found: list[object] = []
    sifter = Sifter(
        own=own,
        streams={b"c": stream},
        records=records,
        types=BROADCAST_TYPES,
        passed=lambda _channel, room, frame: found.append((room, frame)),
        left=lambda _channel, _payload, outside: found.append(outside),
    )
    sifter.rooms = rooms
    sifter.take(b"c", payload)
    if not found:
        found.append(DONE if sifter.unwanted else OWN)
    assert sifter.taken == sifter.unwanted + (type(found[0]) is tuple and len(found[0]) == 2)
    return found[0]


def written(seq: int, target: Target, ident: str, content: bytes, **more: object) -> bytes:
    return Writer(NODE, EPOCH).message(
        seq,
        target,
        ident,
        content,
        timestamp=STAMP,
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("target", "ident", "content", "stream", "more"),
    [
        (Target.ROOM, ROOM, frame(room=ROOM), ROOMS, {}),
        (Target.ROOM, ROOM, frame(room=ROOM), ROOMS, {"members": 3}),
        (Target.USER, "ann", frame(), USERS, {}),
        (Target.ROOM, ROOM, frame(room=ROOM), FIRST_SHARD, {}),
        (Target.USER, "ann", frame(), FIRST_SHARD + 1, {"for_original": False}),
    ],
)
def test_what_nobody_here_is_meant_by_is_done_with_at_once(
    target: Target, ident: str, content: bytes, stream: int, more: dict[str, object]
) -> None:
    payload = written(5, target, ident, content, **more)
    known = Known(EPOCH, *[4] * 6)
    records = {NODE: known}
    assert sift(payload, stream, records, {"group:x"}) == DONE
    assert known.last[stream] == 5
    # The same again is not the next one, and somebody else's to judge.
    again = sift(payload, stream, records, {"group:x"})
    assert isinstance(again, tuple)
    assert again[0] is False
    assert again[1:] == read_envelope(payload)
    known.last[stream] = 4
    room = ident if target is Target.ROOM else f"user:{ident}"
    wanted = sift(payload, stream, records, {room})
    if target is Target.ROOM and not more:
        assert wanted == (room, content)
    else:
        assert wanted == (True, *(read_envelope(payload) or ()))
    assert known.last[stream] == 5


def passed(content: bytes) -> bool:
    """Whether a frame for a room is passed on as it came."""
    payload = written(5, Target.ROOM, ROOM, content)
    found = sift(payload, ROOMS, {NODE: Known(EPOCH, 4, 4)}, {ROOM})
    assert isinstance(found, tuple)
    assert len(found) != 2 or found == (ROOM, content)
    return len(found) == 2


HEAD = b'{"type":"message","room":"' + ROOM.encode() + b'"'


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b',"id":"x","from":"c-1","timestamp":"2026-01-02T03:04:05Z"',
        b',"data":{}',
        b',"data":{"a":[],"b":{},"c":[1,-2,0,3.25,-0.5,123456789012345],"d":"","":1}',
        b',"data":{"a":true,"b":false,"c":null,"d":[[[{"e":[{}]}]]]}',
        b',"data":{"t":"\\n\\\\ \\"q\\" \\/\\b\\f\\r\\t"}',
        ',"data":{"t":"ü€𝄞","ü":1}'.encode(),
        b',"id":"' + b"x" * 128 + b'"',
        b',"data":{' + b",".join(b'"k%d":1' % n for n in range(16)) + b"}",
    ],
)
def test_a_plain_frame_is_passed_on_as_it_came(rest: bytes) -> None:
    content = HEAD + rest + b"}"
    assert passed(content)
    assert orjson.loads(checked_frame(content, Target.ROOM, ROOM)) == orjson.loads(content)


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"[]",
        b'{"type":"message"}',
        b'{"room":"' + ROOM.encode() + b'"}',
        HEAD.replace(b"message", b"ack") + b"}",
        HEAD.replace(b"message", b"m\x5cu0065ssage") + b"}",
        HEAD.replace(b"message", "messagé".encode()) + b"}",
        HEAD.replace(b"group:0", b"group:1") + b"}",
        *(
            HEAD + rest + b"}"
            for rest in (
                b" ",
                b',"more":"x"',
                b',"type":"message"',
                b',"id":""',
                b',"id":1',
                b',"id":null',
                b',"id":{}',
                b',"id":"a\\nb"',
                b',"id":"a\x7fb"',
                b',"id":"' + b"x" * 129 + b'"',
                b',"to":"c-1"',
                b',"data":[]',
                b',"data":null',
                b',"data":"x"',
                b',"data":{"a":1,"a":2}',
                b',"data":{"a":{"b":1,"b":2}}',
                b',"data":{"a\\u0062":1}',
                b',"data":{"/":1,"\\/":2}',
                b',"data":{"a":"\\ud800"}',
                b',"data":{"a":"\\x"}',
                b',"data":{"a":"\x01"}',
                b',"data":{"a":"\xff"}',
                b',"data":{"a":"\xc3"}',
                b',"data":{"a":01}',
                b',"data":{"a":1.}',
                b',"data":{"a":.5}',
                b',"data":{"a":-}',
                b',"data":{"a":-0}',
                b',"data":{"a":-01.5}',
                b',"data":{"a":+1}',
                b',"data":{"a":1e5}',
                b',"data":{"a":1234567890123456}',
                b',"data":{"a":1.2345678901234567}',
                b',"data":{"a":truth}',
                b',"data":{"a":nul}',
                b',"data":{"a":fals}',
                b',"data":{"a":}',
                b',"data":{"a"}',
                b',"data":{a:1}',
                b',"data":{,}',
                b',"data":{"a":1,}',
                b',"data":{"a":[1,]}',
                b',"data":{"a":[1 ]}',
                b',"data":{"a":[1}}',
                b',"data":{"a":{"b":1]}',
                b',"data":{"a":1}}',
                b',"data":{"a":1',
                b',"data":{"a":[',
                b',"data":{"a":"',
                b',"data":{"a',
                b',"data":{"a":',
                b',"data":',
                b",",
                b',"data":{' + b",".join(b'"k%d":1' % n for n in range(17)) + b"}",
                b',"data":{"a":' + b"[" * 12 + b"]" * 12 + b"}",
                b',"data":{"a":[' + b",".join([b'{"k":1}'] * 1001) + b"]}",
                b',"data":{"a":"' + b"x" * 65_536 + b'"}',
            )
        ),
    ],
)
def test_anything_else_is_parsed(content: bytes) -> None:
    assert not passed(content)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_what_is_passed_on_says_the_same_to_a_parser(value: object) -> None:
    try:
        content = frame(room=ROOM, data={"value": value})
    except TypeError:
        return  # an integer that orjson does not write
    passed(content)


@given(st.data())
def test_what_is_passed_on_is_json_for_everybody(data: st.DataObject) -> None:
    alphabet = '{}[]",:0123456789.-eE+\\/ truefalsn\x01\x7fü'
    noise = data.draw(st.text(alphabet, max_size=12)).encode()
    base = HEAD + b',"data":{"a":[1,2.5,true],"b":{"c":"x","d":null}}}'
    at, gap = data.draw(st.integers(0, len(base))), data.draw(st.integers(0, 8))
    content = base[:at] + noise + base[at + gap :]
    if passed(content):
        pairs: list[list[str]] = []

        def collect(found: list[tuple[str, object]]) -> dict[str, object]:
            pairs.append([key for key, _ in found])
            return dict(found)

        json.loads(content, object_pairs_hook=collect)
        assert all(len(keys) == len(set(keys)) for keys in pairs)
        assert orjson.loads(checked_frame(content, Target.ROOM, ROOM)) == orjson.loads(content)


SPOILED_SCALARS = (
    *(b"-0", b"01", b"1.", b".5", b"1e5", b"1E400", b"+1", b"--1", b"0x1", b"1_0", b"NaN"),
    *(b"Infinity", b"-Infinity", b"undefined", b"True", b"nul", b"9" * 16, b"9" * 20, b"9" * 400),
    *(b"'a'", b'"\\u0041"', b'"\\ud800"', b'"\\x41"', b'"a\nb"', b'"\x00"', b'"\x7f"'),
    *(b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"', b'"\xe2\x82"'),
    *(b'"open', b'"\\"', b"", b"/**/1", b"1 ", b"\t1", b"\xef\xbb\xbf1", b"1\x00"),
)
SCALARS = (
    *(b"0", b"-1", b"1.5", b"-0.5", b"123456789012345", b"-1.2345678901234", b"true", b"false"),
    *(
        b"null",
        b'""',
        b'"a"',
        '"ü€𝄞"'.encode(),
        b'"\\n\\\\\\""',
        b"{}",
        b"[]",
        b'"' + b"x" * 200 + b'"',
    ),
)
NAMES = (b'"a"', b'"b"', b'"c"', b'""', '"ü"'.encode())
SPOILED_NAMES = (b'"\\u0061"', b"a", b'"a":"a"', b'"\xff"', b'"a" ', b"1", b'"__proto__"')
TOP = {
    b'"type"': (b'"message"', b'"presence"'),
    b'"room"': (f'"{ROOM}"'.encode(),),
    b'"id"': (b'"x"', b'"' + b"x" * 128 + b'"'),
    b'"from"': (b'"c-1"', b'"system"'),
    b'"timestamp"': (b'"2026-01-02T03:04:05Z"',),
}
SPOILED_TOP = (
    *(b'""', b"1", b"null", b"{}", b"[]", b'"ack"', b'"group:1"', b'"a\x7fb"', b'"mess\\u0061ge"'),
    *(b'"' + b"x" * 129 + b'"', '"é"'.encode(), b'"a\\nb"', b' "message"'),
)


@st.composite
def texts_like_frames(draw: st.DrawFn) -> bytes:
    """Frames, or nearly: in each place something may be that does not belong there."""
    spoil = draw(st.integers(0, 20))  # how many choices are made before one is a wrong one

    def pick(good: tuple[bytes, ...], bad: tuple[bytes, ...]) -> bytes:
        nonlocal spoil
        spoil -= 1
        return draw(st.sampled_from(bad if spoil == 0 else good))

    def value(depth: int) -> bytes:
        kind = draw(st.integers(0, 4)) if depth < 14 else 0
        items = draw(st.integers(0, 3))
        if kind == 3:
            return (
                b"["
                + pick((b",",), (b",,", b", ")).join(value(depth + 1) for _ in range(items))
                + b"]"
            )
        if kind == 4:
            return members(depth + 1, items)
        return pick(SCALARS, SPOILED_SCALARS)

    def members(depth: int, items: int) -> bytes:
        names = draw(st.permutations(NAMES))[:items]
        if items > 1 and pick((b"",), (b"again",)):
            names[0] = names[1]
        pairs = [
            pick((n,), SPOILED_NAMES) + pick((b":",), (b"", b": ")) + value(depth) for n in names
        ]
        return b"{" + b",".join(pairs) + pick((b"}",), (b",}", b"]", b"", b"}}", b"} "))

    top = [name + b":" + pick(values, SPOILED_TOP) for name, values in TOP.items()]
    top.append(b'"data":' + (members(2, 3) if spoil else value(2)))
    top = top[:2] + draw(st.lists(st.sampled_from(top[2:]), unique=True))
    if pick((b"",), (b"more",)):
        top.append(draw(st.sampled_from((*top, b'"to":"c-1"', b'"more":1', b'"a":"b"'))))
    return b"{" + b",".join(draw(st.permutations(top))) + b"}" + pick((b"",), (b"}", b" ", b"\x00"))


def agrees(content: bytes) -> None:
    """The slow path is the judge: what it refuses or would change is never passed on."""
    if not passed(content):
        return
    again = checked_frame(content, Target.ROOM, ROOM)

    def once(found: list[tuple[str, object]]) -> dict[str, object]:
        assert len({key for key, _ in found}) == len(found), "a key twice"
        return dict(found)

    strict = json.loads(content.decode(), object_pairs_hook=once)
    # By their texts, which tell 1, 1.0 and True apart.
    assert repr(strict) == repr(json.loads(again)) == repr(orjson.loads(content))


@settings(max_examples=500)
@given(texts_like_frames())
def test_what_is_passed_on_is_what_would_be_written_anew(content: bytes) -> None:
    agrees(content)


PLACES = (
    *(b'"type"', b'"message"', b'"room"', b'"group:', b'"id"', b'"i"', b'"data"', b"{", b'"a"'),
    *(b"1", b'"b"', b"[", b"2.5", b'"s"', b"true", b"]", b'"c"', b"null", b"}", b":", b","),
)


@pytest.mark.parametrize("place", PLACES)
def test_anything_in_any_place_of_a_frame(place: bytes) -> None:
    whole = HEAD + b',"id":"i","data":{"a":1,"b":[2.5,"s",true],"c":null}}'
    assert passed(whole)
    known = (SCALARS, SPOILED_SCALARS, NAMES, SPOILED_NAMES, SPOILED_TOP, TOP, PLACES)
    for text in {text for texts in known for text in texts}:
        at = whole.find(place)
        while at >= 0:
            agrees(whole[:at] + text + whole[at + len(place) :])
            agrees(whole[:at] + text + whole[at:])
            at = whole.find(place, at + 1)


def test_what_sifting_leaves_to_others() -> None:
    known = Known(EPOCH, 4, 4, 4, 4)
    records = {NODE: known}
    payload = written(5, Target.ROOM, ROOM, frame(room=ROOM))
    assert sift(payload, ROOMS, records, (), own=NODE.encode()) == OWN
    assert sift(payload[:-1], ROOMS, records, ()) is None
    for records_, stream in (
        ({}, ROOMS),
        ({NODE: Known(EPOCH + 1, 4, 4, 4, 4)}, ROOMS),
        ({NODE: Known(EPOCH, 4, 3, 4, 4)}, ROOMS),
        ({NODE: Known(EPOCH, 4, 5, 4, 4)}, ROOMS),
        ({NODE: Known(EPOCH, 4, -1, 4, 4)}, ROOMS),
        ({NODE: Known(EPOCH, 4)}, ROOMS),
        ({NODE: Known(EPOCH)}, 77),
    ):
        found = sift(payload, stream, records_, ())
        assert isinstance(found, tuple)
        assert found[0] is False
    assert known.last == [4, 4, 4, 4]
    # Noted, and still not for this call to judge.
    for seq, text, stream in (
        (5, written(5, Target.ROOM, ROOM, frame(room=ROOM), receipt="r"), ROOMS),
        (6, written(6, Target.USER, "ann", frame()), ROOMS),
        (5, written(5, Target.CONNECTION, "c-1", frame(to="c-1")), MESSAGES),
        (5, written(5, Target.ALL, "", frame()), SYSTEM_STREAM),
    ):
        found = sift(text, stream, records, ())
        assert isinstance(found, tuple)
        assert found[0] is True
        assert known.last[stream] == seq
    zero = Known(EPOCH, -1, -1, -1, -1)
    none = written(0, Target.ROOM, ROOM, frame(room=ROOM))
    found = sift(none, ROOMS, {NODE: zero}, ())
    assert isinstance(found, tuple)
    assert found[0] is False


def test_what_sifting_is_given_may_raise() -> None:
    class Broken:
        def __contains__(self, name: str) -> bool:
            raise RuntimeError("a fault")

    payload = written(5, Target.ROOM, ROOM, frame(room=ROOM))
    found = sift(payload, ROOMS, {NODE: Known(EPOCH, 4, 4)}, Broken())  # type: ignore[arg-type]
    assert isinstance(found, RuntimeError)
