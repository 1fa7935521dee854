"""Wire messages: what is decoded and what is refused, and each frame the server builds."""

from __future__ import annotations

import json
import time

import orjson
import pytest

from falcon_fast import envelope
from falcon_fast.codes import ReplyCode
from falcon_fast.envelope import MAX_KEYS, ClientFrame, decode, encode, error_frame, frame_id
from falcon_fast.errors import EnvelopeError

from ..support.gateway import Json, strict

NOW = 1_767_323_045.123456
STAMP = "2026-01-02T03:04:05.123456Z"
GROUP = "group:0123456789abcdef01234567"
NO_OBJECT = "a frame must be a JSON object, not"


def refused(payload: bytes, *, max_depth: int = 32) -> tuple[ReplyCode, str]:
    with pytest.raises(EnvelopeError) as caught:
        decode(payload, max_depth=max_depth)
    return caught.value.code, caught.value.message


# --- what is well-formed --------------------------------------------------------------------------


def test_the_smallest_frame() -> None:
    assert decode(b'{"type":"presence"}', max_depth=32) == ClientFrame(
        None, "presence", None, None, {}
    )


def test_a_full_frame() -> None:
    payload = {
        "id": "42",
        "type": "message",
        "room": GROUP,
        "to": "user:ann",
        "data": {"text": "hé\u202e"},
        "from": "somebody else",
        "timestamp": 1_700_000_000_000,
    }
    assert decode(json.dumps(payload).encode(), max_depth=32) == ClientFrame(
        "42", "message", GROUP, "user:ann", {"text": "hé\u202e"}
    )


def test_null_is_as_good_as_absent() -> None:
    frame = decode(b'{"type":"x","id":null,"room":null,"to":null,"data":null}', max_depth=32)
    assert frame == ClientFrame(None, "x", None, None, {})


@pytest.mark.parametrize("to", ["a", "user:a", "A-Za_z0-9", "user:" + "a" * 64, "0" * 64])
def test_targets(to: str) -> None:
    assert decode(json.dumps({"type": "m", "to": to}).encode(), max_depth=32).to == to


@pytest.mark.parametrize("room", ["user:a", "user:" + "a" * 64, GROUP])
def test_rooms(room: str) -> None:
    assert decode(json.dumps({"type": "m", "room": room}).encode(), max_depth=32).room == room
    assert envelope.room_name(room) == room


def test_an_id_of_128_characters_is_echoed_and_one_of_129_refused() -> None:
    longest = "é" * 128
    assert decode(json.dumps({"type": "m", "id": longest}).encode(), max_depth=32).id == longest
    assert refused(json.dumps({"type": "m", "id": longest + "é"}).encode()) == (
        ReplyCode.BAD_REQUEST,
        "id must be a string of 1 to 128 printable characters",
    )


# --- J01 to J08 -----------------------------------------------------------------------------------


def nested(depth: int, opening: bytes, closing: bytes) -> bytes:
    # The frame itself is one level, and data another.
    inner = depth - 2
    return (
        b'{"type":"message","data":{"x":'
        + opening * inner
        + (b"1" if opening.endswith(b":") else b"")
        + closing * inner
        + b"}}"
    )


@pytest.mark.parametrize("opening, closing", [(b"[", b"]"), (b'{"a":', b"}")], ids=["[", "{"])
def test_j01_depth_32_passes_and_33_is_a_bad_request(opening: bytes, closing: bytes) -> None:
    frame = decode(nested(32, opening, closing), max_depth=32)
    assert orjson.loads(orjson.dumps(frame.data)) == frame.data
    assert refused(nested(33, opening, closing)) == (
        ReplyCode.BAD_REQUEST,
        "arrays and objects may be nested 32 deep",
    )


@pytest.mark.parametrize("depth", [33, 1_025, 200_000])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_j01_depth_without_end(opening: bytes, depth: int) -> None:
    payload = opening * depth
    best = 1.0
    for _ in range(3):
        start = time.perf_counter()
        assert refused(payload)[0] is ReplyCode.BAD_REQUEST
        best = min(best, time.perf_counter() - start)
    assert best < 0.002


def test_j01_the_deepest_setting_can_be_passed_on() -> None:
    frame = decode(nested(254, b"[", b"]"), max_depth=254)
    assert strict(encode("message", now=NOW, data=frame.data))["data"] == frame.data


def keys(number: int) -> bytes:
    # "type" and "data" count, too.
    members = ",".join(f'"k{i}":1' for i in range(number - 2))
    return b'{"type":"message","data":{' + members.encode() + b"}}"


def test_j02_1000_keys_pass_and_1001_are_too_large() -> None:
    assert len(decode(keys(MAX_KEYS), max_depth=32).data) == MAX_KEYS - 2
    assert refused(keys(MAX_KEYS + 1)) == (
        ReplyCode.TOO_LARGE,
        "a message may have at most 1000 keys in all",
    )


def test_j02_ten_thousand_keys() -> None:
    assert refused(keys(10_000))[0] is ReplyCode.TOO_LARGE


def test_j02_keys_are_counted_over_all_objects() -> None:
    many = b'{"type":"message","data":{"x":[' + b",".join([b'{"a":1}'] * 998) + b"]}}"
    assert refused(many)[0] is ReplyCode.TOO_LARGE


def test_j02_colons_in_strings_are_no_keys() -> None:
    data = {"text": ":" * 5_000 + '\\"' + "{[" * 500}
    payload = json.dumps({"type": "message", "data": data}).encode()
    assert decode(payload, max_depth=32).data == data


def test_j03_of_duplicate_keys_the_last_one_wins() -> None:
    payload = b'{"type":"system_notification","type":"message","data":{"a":1,"a":2},"id":"1"}'
    frame = decode(payload, max_depth=32)
    assert (frame.type, frame.data) == ("message", {"a": 2})
    assert encode(frame.type, now=NOW, id=frame.id, data=frame.data) == (
        b'{"id":"1","type":"message","data":{"a":2},"timestamp":"' + STAMP.encode() + b'"}'
    )


@pytest.mark.parametrize(
    "number", ["9223372036854775807", "-9223372036854775808", "18446744073709551615", "0", "-1"]
)
def test_j04_64_bits_keep_every_digit(number: str) -> None:
    payload = f'{{"type":"message","data":{{"n":{number}}}}}'.encode()
    frame = decode(payload, max_depth=32)
    assert frame.data == {"n": int(number)}
    assert f'"n":{number}'.encode() in encode("message", now=NOW, data=frame.data)


@pytest.mark.parametrize(
    "number", ["18446744073709551616", "-9223372036854775809", "9" * 5_000, "-" + "9" * 5_000]
)
def test_j04_larger_integers_are_refused_not_rounded(number: str) -> None:
    assert refused(f'{{"type":"message","data":{{"n":[{number}]}}}}'.encode()) == (
        ReplyCode.BAD_REQUEST,
        "integers must fit into 64 bits; send larger ones as strings",
    )


def test_j04_a_number_that_is_infinite_as_a_double_is_no_json() -> None:
    assert refused(b'{"type":"message","data":{"n":1e400}}')[0] is ReplyCode.BAD_JSON


@pytest.mark.parametrize("ident", ["7", "1.5", "true", "[]", "{}", '""'])
def test_j04_ids_are_strings(ident: str) -> None:
    assert refused(f'{{"type":"message","id":{ident}}}'.encode())[0] is ReplyCode.BAD_REQUEST


@pytest.mark.parametrize(
    "payload",
    [
        b'\xef\xbb\xbf{"type":"presence"}',
        b'{"type":"presence"}x',
        b'{"type":"presence"}{"type":"presence"}',
        b"",
        b" ",
        b"hello",
        b"NaN",
        b"{'type':'presence'}",
        b'{"type":"presence",}',
        b'{"type":"presence"',
        b'{"type":"\\ud800"}',
        b'{"type":"a\x00"}',
        b"99999999999999999999 balloons",
    ],
)
def test_j05_what_is_no_json(payload: bytes) -> None:
    code, message = refused(payload)
    assert code is ReplyCode.BAD_JSON
    assert message.startswith("not valid JSON at line ")


@pytest.mark.parametrize(
    "payload, kind",
    [
        (b"null", "null or absent"),
        (b"true", "a boolean"),
        (b"1", "a number"),
        (b"1.5", "a number"),
        (b'"presence"', "a string"),
        (b"[]", "an array"),
    ],
)
def test_j05_only_objects(payload: bytes, kind: str) -> None:
    assert refused(payload) == (ReplyCode.BAD_REQUEST, f"{NO_OBJECT} {kind}")


@pytest.mark.parametrize("ident", ["a\x00b", "a\nb", "\x7f", "\x1f"])
def test_j05_no_control_characters_in_ids(ident: str) -> None:
    payload = json.dumps({"type": "message", "id": ident}).encode()
    assert refused(payload)[0] is ReplyCode.BAD_REQUEST
    assert frame_id(payload) is None


def test_j05_keys_that_mean_something_elsewhere_are_data_here() -> None:
    data = {"__proto__": {"x": 1}, "constructor": None, "a\x00b": "\x00", "$ne": 1}
    frame = decode(json.dumps({"type": "message", "data": data}).encode(), max_depth=32)
    assert frame.data == data
    assert strict(encode("message", now=NOW, data=frame.data))["data"] == data


@pytest.mark.parametrize(
    "frame, message",
    [
        ({}, "type must be a string, not null or absent"),
        ({"type": None}, "type must be a string, not null or absent"),
        ({"type": 1}, "type must be a string, not a number"),
        ({"type": True}, "type must be a string, not a boolean"),
        ({"type": []}, "type must be a string, not an array"),
        ({"type": {"a": []}}, "type must be a string, not an object"),
        ({"type": "m", "room": "x" * 10_240}, "room must be user:{id} or group:{24 hexadecimal"),
        ({"type": "m", "room": 1}, "room must be user:{id} or group:{24 hexadecimal digits}"),
        ({"type": "m", "to": []}, "to must be a connection id or user:{id}"),
        ({"type": "m", "to": ""}, "to must be a connection id or user:{id}"),
        ({"type": "m", "to": "group:" + "0" * 24}, "to must be a connection id or user:{id}"),
        ({"type": "m", "to": "a" * 65}, "to must be a connection id or user:{id}"),
    ],
)
def test_j06_fields_of_the_wrong_kind(frame: Json, message: str) -> None:
    code, said = refused(json.dumps(frame).encode())
    assert code is ReplyCode.BAD_REQUEST
    assert said.startswith(message)
    assert "xxx" not in said, "what came is not reflected"


@pytest.mark.parametrize(
    "data, kind",
    [("[]", "an array"), ('"x"', "a string"), ("0", "a number"), ("false", "a boolean")],
)
def test_j07_data_is_an_object(data: str, kind: str) -> None:
    assert refused(f'{{"type":"message","data":{data}}}'.encode()) == (
        ReplyCode.BAD_REQUEST,
        f"data must be an object, not {kind}",
    )


def test_j07_data_of_64_kib_in_depth() -> None:
    payload = b'{"type":"message","data":' + b'{"a":' * 13_000
    assert refused(payload)[0] is ReplyCode.BAD_REQUEST


def test_j07_bidi_and_control_characters_are_passed_on_as_data() -> None:
    data = {"text": "\u202e\u2066\u200b\u0000\u001b[31m\u2028", "😀": "\ud83d\ude00"}
    payload = json.dumps({"type": "message", "data": {"text": data["text"]}}).encode()
    frame = decode(payload, max_depth=32)
    assert strict(encode("message", now=NOW, data=frame.data))["data"] == {"text": data["text"]}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_j08_nan_never_leaves_the_server(value: float) -> None:
    frame = encode("notification", now=NOW, data={"value": value, "list": [value]})
    assert strict(frame)["data"] == {"value": None, "list": [None]}


# --- Z02: names of rooms --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "group:",
        "group:*",
        "group:a,b",
        "group:0123456789ABCDEF01234567",
        "group:0123456789abcdef0123456",
        "group:0123456789abcdef012345678",
        "group:0123456789abcdef01234567\n",
        "user:",
        "user:me:x",
        "user:" + "a" * 65,
        "user:a\n",
        "user:аnn",  # a Cyrillic letter
        "user:[a-z]*",
        "users:ann",
        " user:ann",
        "a" * 256,
        "",
        {"$ne": None},
        ["user:ann"],
        7,
        True,
    ],
)
def test_z02_bad_room_names(name: object) -> None:
    assert refused(json.dumps({"type": "message", "room": name}).encode())[0] is (
        ReplyCode.BAD_REQUEST
    )
    assert envelope.room_name(name) is None


# --- ids of frames that are not handled -----------------------------------------------------------


@pytest.mark.parametrize(
    "payload, ident",
    [
        (b'{"id":"7","type":"message"}', "7"),
        (b'{"id":"7","type":5}', "7"),
        (b'{"id":"7","data":{"n":18446744073709551616}}', "7"),
        (nested(40, b"[", b"]").replace(b"{", b'{"id":"7",', 1), "7"),
        (keys(2_000).replace(b"{", b'{"id":"7",', 1), "7"),
        (b'{"type":"message"}', None),
        (b'{"id":7}', None),
        (b'{"id":["7"]}', None),
        (b'{"id":""}', None),
        (b'["id"]', None),
        (b"nothing", None),
        (b"[" * 5_000, None),
    ],
)
def test_frame_id(payload: bytes, ident: str | None) -> None:
    assert frame_id(payload) == ident


# --- what the server says -------------------------------------------------------------------------


def test_keys_come_in_one_order_and_empty_ones_not_at_all() -> None:
    full = encode(
        "message", now=NOW, id="1", room=GROUP, sender="c", to="user:ann", data={"b": 1, "a": 2}
    )
    assert full.decode() == (
        '{"id":"1","type":"message","room":"' + GROUP + '","from":"c","to":"user:ann",'
        '"data":{"b":1,"a":2},"timestamp":"' + STAMP + '"}'
    )
    assert encode("presence", now=NOW, id="", room="", data={}).decode() == (
        '{"type":"presence","timestamp":"' + STAMP + '"}'
    )


FRAMES: list[tuple[str, bytes, Json]] = [
    (
        "welcome",
        envelope.welcome(
            "c-1",
            "ann",
            character_id=2**63 - 1,
            character_name="Ann",
            node_id="n-1",
            heartbeat_interval=30.0,
            expires_at=1_767_326_645,
            now=NOW,
        ),
        {
            "type": "system_notification",
            "data": {
                "connection_id": "c-1",
                "message": "Connected to WebSocket",
                "user_id": "ann",
                "character_id": 2**63 - 1,
                "character_name": "Ann",
                "node_id": "n-1",
                "heartbeat_interval": 30.0,
                "expires_at": 1_767_326_645,
            },
        },
    ),
    (
        "rooms-joined",
        envelope.rooms_joined(["user:ann", GROUP], now=NOW),
        {"type": "room_update", "data": {"action": "joined", "rooms": ["user:ann", GROUP]}},
    ),
    (
        "rooms-pending",
        envelope.rooms_pending(now=NOW),
        {"type": "room_update", "data": {"action": "rooms_pending", "retryable": True}},
    ),
    (
        "member-joined",
        envelope.room_change("member_joined", GROUP, connection_id="c-1", member_count=3, now=NOW),
        {
            "type": "room_update",
            "room": GROUP,
            "data": {
                "action": "member_joined",
                "connection_id": "c-1",
                "member_count": 3,
                "room_id": GROUP,
            },
        },
    ),
    (
        "member-count",
        envelope.room_count(GROUP, member_count=1_001, now=NOW),
        {
            "type": "room_update",
            "room": GROUP,
            "data": {"action": "member_count", "member_count": 1_001, "room_id": GROUP},
        },
    ),
    (
        # The seed's example "Group Membership Change", with the timestamp the contract adds.
        "group-membership-change",
        envelope.membership_change(
            "uuid-string", "group-object-id", "Fleet Commanders", joined=True, now=NOW
        ),
        {
            "type": "group_membership_change",
            "data": {
                "user_id": "uuid-string",
                "group_id": "group-object-id",
                "group_name": "Fleet Commanders",
                "joined": True,
                "timestamp": STAMP,
            },
        },
    ),
    (
        "presence-reply",
        envelope.presence_reply("1", now=NOW),
        {"id": "1", "type": "presence", "data": {"status": "online", "timestamp": STAMP}},
    ),
    (
        "presence-of",
        envelope.presence_of("ann", "offline", now=NOW),
        {
            "type": "presence",
            "data": {"user_id": "ann", "status": "offline", "timestamp": STAMP},
        },
    ),
    (
        "pong",
        envelope.pong("1", now=NOW),
        {"id": "1", "type": "system", "data": {"action": "pong"}},
    ),
    (
        "error",
        error_frame(ReplyCode.FORBIDDEN, "no", now=NOW, id="1"),
        {
            "id": "1",
            "type": "error",
            "data": {"code": "forbidden", "message": "no", "retryable": False},
        },
    ),
    (
        "error-rate-limited",
        error_frame(ReplyCode.RATE_LIMITED, "slow down", now=NOW, extra={"refused": 3}),
        {
            "type": "error",
            "data": {
                "code": "rate_limited",
                "message": "slow down",
                "retryable": True,
                "refused": 3,
            },
        },
    ),
]


@pytest.mark.parametrize(
    "built, expected", [(b, e) for _, b, e in FRAMES], ids=[f[0] for f in FRAMES]
)
def test_frames_of_the_server_byte_for_byte(built: bytes, expected: Json) -> None:
    # Compact, in this order of keys, as go's encoder writes the seed's structs.
    text = json.dumps({**expected, "timestamp": STAMP}, separators=(",", ":"))
    assert built.decode() == text
    assert strict(built) == {**expected, "timestamp": STAMP}


@pytest.mark.parametrize("code", list(ReplyCode))
def test_an_error_says_whether_to_try_again(code: ReplyCode) -> None:
    data = strict(error_frame(code, "text", now=NOW))["data"]
    again = code.value in {"rate_limited", "unavailable", "internal"}
    assert data == {"code": code.value, "message": "text", "retryable": again}


def test_the_ten_types_of_the_seed() -> None:
    assert sorted(envelope.BROADCAST_TYPES) == [
        "backend_status",
        "critical_alert",
        "group_membership_change",
        "message",
        "notification",
        "presence",
        "room_update",
        "service_recovery",
        "system_notification",
        "user_profile_update",
    ]
