"""Threat cases J and Z02, Z03 over real sockets: a wrong message gets its code and goes nowhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ..support.client import Client
from ..support.frames import text
from ..support.server import ServerProcess

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("canary", "nobody_hears")]

ROOM_NUMBER = "0f" * 12
ROOM = f"group:{ROOM_NUMBER}"
SENDER, WITNESS = 1, 2


@pytest.fixture(scope="module")
def witness(server: ServerProcess) -> Iterator[Client]:
    """Somebody else in the sender's room."""
    with server.store() as store:
        store.add_group("Everybody", id=ROOM_NUMBER)
        for character in (SENDER, WITNESS):
            store.add_member(ROOM_NUMBER, character)
    client = server.connect("witness", WITNESS)
    server.keep(client.wire)
    yield client
    client.close()


@pytest.fixture
def heard() -> list[dict[str, Any]]:
    """What the witness is to hear in this test, data only; filled by tests that send something."""
    return []


@pytest.fixture
def nobody_hears(witness: Client, canary: object, heard: list[dict[str, Any]]) -> Iterator[None]:
    witness.sync()
    yield
    messages = [message for message in witness.sync() if message["type"] != "room_update"]
    assert [message["data"] for message in messages] == heard
    assert {message["type"] for message in messages} <= {"message"}


@pytest.fixture
def sender(server: ServerProcess, witness: Client) -> Client:
    return server.connect("sender", SENDER)


def nested(depth: int, opening: str, closing: str) -> str:
    """Return a message whose deepest array or object is `depth` deep."""
    inside = depth - 2  # the message itself, and its data
    return f'{{"type":"presence","data":{{"x":{opening * inside}1{closing * inside}}}}}'


MANY_KEYS = "{" + ",".join([f'"k{number}":1' for number in range(6000)]) + "}"
SHOUT = f'"room":"{ROOM}","data":{{"a":1}}'

WRONG: dict[str, tuple[str, str]] = {
    # J01: nesting
    "J01-array-33": (nested(33, "[", "]"), "bad_request"),
    "J01-object-33": (nested(33, '{"a":', "}"), "bad_request"),
    "J01-1025": (nested(1025, "[", "]"), "bad_request"),
    "J01-object-1025": (nested(1025, '{"a":', "}"), "bad_request"),
    "J01-60000-unclosed": ("[" * 60_000, "bad_request"),
    "J01-10000-unclosed-objects": ('{"a":' * 10_000, "bad_request"),
    # J02: keys
    "J02-6000-keys": (f'{{"type":"presence","data":{MANY_KEYS}}}', "too_large"),
    "J02-1001-keys": (
        json.dumps({"type": "presence", "data": {f"k{number}": 1 for number in range(999)}}),
        "too_large",
    ),
    "J02-same-key": (
        '{"type":"presence","data":{' + ",".join(['"k":1'] * 6000) + "}}",
        "too_large",
    ),
    # J03: the last of two names counts, for what is allowed and for what is sent
    "J03-last-type-is-forbidden": (
        f'{{"type":"message","type":"system_notification",{SHOUT}}}',
        "forbidden",
    ),
    "J03-last-room-is-forbidden": (
        f'{{"type":"message",{SHOUT},"room":"group:{"a" * 24}"}}',
        "forbidden",
    ),
    # J04: integers beyond 64 bits
    "J04-2^64": ('{"type":"presence","data":{"n":18446744073709551616}}', "bad_request"),
    "J04--2^63-1": ('{"type":"presence","data":{"n":-9223372036854775809}}', "bad_request"),
    "J04-5000-digits": (f'{{"type":"presence","data":{{"n":{"9" * 5000}}}}}', "bad_request"),
    "J04-id-is-an-integer": ('{"type":"presence","id":5}', "bad_request"),
    # J05: not an object, or not JSON
    "J05-bom": ('\ufeff{"type":"presence"}', "bad_json"),
    "J05-garbage-behind": ('{"type":"presence"}x', "bad_json"),
    "J05-two-objects": ('{"type":"presence"}{"type":"presence"}', "bad_json"),
    "J05-empty": ("", "bad_json"),
    "J05-blanks": ("  \n", "bad_json"),
    "J05-number": ("5", "bad_request"),
    "J05-string": ('"presence"', "bad_request"),
    "J05-array": ('[{"type":"presence"}]', "bad_request"),
    "J05-null": ("null", "bad_request"),
    "J05-true": ("true", "bad_request"),
    "J05-nul-in-id": ('{"type":"presence","id":"a\\u0000b"}', "bad_request"),
    "J05-raw-nul": ('{"type":"presence","id":"a\0b"}', "bad_json"),
    "J05-newline-in-id": ('{"type":"presence","id":"a\\nb"}', "bad_request"),
    "J05-single-quotes": ("{'type':'presence'}", "bad_json"),
    "J05-comment": ('{"type":"presence"/**/}', "bad_json"),
    "J05-trailing-comma": ('{"type":"presence",}', "bad_json"),
    "J05-nan": ('{"type":"presence","data":{"n":NaN}}', "bad_json"),
    "J05-infinity": ('{"type":"presence","data":{"n":Infinity}}', "bad_json"),
    "J05-lone-surrogate": ('{"type":"presence","id":"\\ud800"}', "bad_json"),
    # J06: fields that are missing or of the wrong type
    "J06-no-type": ("{}", "bad_request"),
    "J06-type-null": ('{"type":null}', "bad_request"),
    "J06-type-number": ('{"type":1}', "bad_request"),
    "J06-type-list": ('{"type":["message"]}', "bad_request"),
    "J06-unknown-type": ('{"type":"shout"}', "unknown_type"),
    "J06-empty-type": ('{"type":""}', "unknown_type"),
    "J06-upper-case-type": ('{"type":"MESSAGE"}', "unknown_type"),
    "J06-reply-type": ('{"type":"ack"}', "unknown_type"),
    "J06-error-type": ('{"type":"error"}', "unknown_type"),
    "J06-neither-room-nor-to": ('{"type":"message","data":{"a":1}}', "bad_request"),
    "J06-room-and-to": (f'{{"type":"message","to":"user:witness",{SHOUT}}}', "bad_request"),
    "J06-room-number": ('{"type":"message","room":5}', "bad_request"),
    "J06-room-10k": (f'{{"type":"message","room":"user:{"x" * 10_240}"}}', "bad_request"),
    "J06-to-object": ('{"type":"message","to":{"$ne":1}}', "bad_request"),
    "J06-id-129": (f'{{"type":"presence","id":"{"x" * 129}"}}', "bad_request"),
    "J06-id-empty": ('{"type":"presence","id":""}', "bad_request"),
    "J06-id-list": ('{"type":"presence","id":[]}', "bad_request"),
    "J06-no-action": ('{"type":"system"}', "bad_request"),
    "J06-unknown-action": ('{"type":"system","data":{"action":"shutdown"}}', "bad_request"),
    "J06-action-list": ('{"type":"system","data":{"action":["ping"]}}', "bad_request"),
    "J06-join-nothing": ('{"type":"system","data":{"action":"join"}}', "bad_request"),
    "J06-auth-without-token": ('{"type":"auth","data":{}}', "bad_request"),
    "J06-auth-number": ('{"type":"auth","data":{"token":5}}', "bad_request"),
    "J06-presence-of-nobody": (
        '{"type":"system","data":{"action":"subscribe_presence","user_ids":[]}}',
        "bad_request",
    ),
    "J06-presence-of-101": (
        json.dumps(
            {
                "type": "system",
                "data": {"action": "subscribe_presence", "user_ids": ["u"] * 101},
            }
        ),
        "bad_request",
    ),
    # J07: data is an object
    "J07-data-list": (f'{{"type":"message","room":"{ROOM}","data":[1]}}', "bad_request"),
    "J07-data-string": (f'{{"type":"message","room":"{ROOM}","data":"x"}}', "bad_request"),
    "J07-data-number": (f'{{"type":"message","room":"{ROOM}","data":0}}', "bad_request"),
    "J07-data-false": (f'{{"type":"message","room":"{ROOM}","data":false}}', "bad_request"),
    # Z02: names that are no rooms
    **{
        f"Z02-{label}": (
            json.dumps({"type": "message", "room": name, "data": {"a": 1}}),
            "bad_request",
        )
        for label, name in {
            "nothing": "",
            "no-number": "group:",
            "star": "group:*",
            "list": f"{ROOM},{ROOM}",
            "deeper": "user:sender:x",
            "long": "user:" + "x" * 256,
            "upper": ROOM.upper(),
            "homoglyph": ROOM.replace("0", "\u0660"),
            "newline": ROOM + "\n",
            "blank": " " + ROOM,
            "glob": "user:[a-z]*",
            "path": "user:../sender",
        }.items()
    },
    # Z03: what only the server says
    **{
        f"Z03-{kind}": (f'{{"type":"{kind}",{SHOUT}}}', "forbidden")
        for kind in (
            "user_profile_update",
            "group_membership_change",
            "system_notification",
            "notification",
            "room_update",
            "backend_status",
            "critical_alert",
            "service_recovery",
        )
    },
    # Z01: rooms one is not in, whether there are such or not
    "Z01-foreign-user": ('{"type":"message","room":"user:witness"}', "forbidden"),
    "Z01-unknown-user": ('{"type":"message","room":"user:nobody"}', "forbidden"),
    "Z01-unknown-group": (f'{{"type":"message","room":"group:{"a" * 24}"}}', "forbidden"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_message_is_answered_and_the_connection_stays(sender: Client, case: str) -> None:
    sent, code = WRONG[case]
    sender.wire.send(text(sent))
    answer = sender.hear()
    assert answer["type"] == "error"
    assert answer["data"]["code"] == code
    assert answer["data"]["retryable"] is False
    assert set(answer["data"]) == {"code", "message", "retryable"}
    assert "from" not in answer
    assert sender.sync() == []


@pytest.mark.parametrize(
    "sent",
    ['{"type":"shout","id":"7"}', '{"type":1,"id":"7"}', '{"type":"presence","data":5,"id":"7"}'],
)
def test_error_carries_the_id_of_what_was_wrong(sender: Client, sent: str) -> None:
    sender.wire.send(text(sent))
    assert sender.hear()["id"] == "7"


def test_z01_answers_do_not_tell_what_exists(sender: Client) -> None:
    answers = []
    for room in ("user:witness", "user:nobody", f"group:{'a' * 24}"):
        for frame in (
            {"type": "message", "room": room},
            {"type": "system", "room": room, "data": {"action": "join"}},
            {"type": "system", "data": {"action": "join", "room": room}},
            {"type": "system", "data": {"action": "leave", "room": room}},
        ):
            answers.append(sender.ask(**frame)["data"])
    assert answers[:4] == answers[4:8] == answers[8:]
    assert {answer["code"] for answer in answers} == {"forbidden"}


# --------------------------------------------------------------------- what is passed on


def test_j01_nesting_of_32_is_allowed(sender: Client) -> None:
    for sent in (nested(32, "[", "]"), nested(32, '{"a":', "}")):
        sender.wire.send(text(sent))
        assert sender.hear()["type"] == "presence"


def test_j02_a_thousand_keys_are_allowed(sender: Client) -> None:
    data = {f"k{number}": 1 for number in range(998)}
    sender.say(type="presence", data=data)
    assert sender.hear()["type"] == "presence"


def test_j03_what_was_checked_is_what_is_sent(sender: Client, heard: list[dict[str, Any]]) -> None:
    sender.wire.send(
        text(
            '{"type":"critical_alert","type":"message","from":"system","timestamp":"1999",'
            f'"room":"user:witness","room":"{ROOM}","extra":1,'
            '"data":{"a":1,"a":2,"b":{"c":1,"c":[]}}}'
        )
    )
    message = sender.hear()
    data = {"a": 2, "b": {"c": []}}
    heard.append(data)
    timestamp = message.pop("timestamp")
    assert message == {"type": "message", "room": ROOM, "from": sender.id, "data": data}
    assert timestamp.startswith("20")
    assert timestamp.endswith("Z")


def test_j04_64_bit_integers_keep_every_digit(sender: Client, heard: list[dict[str, Any]]) -> None:
    data = {"max": 2**64 - 1, "min": -(2**63), "odd": 2**53 + 1, "zero": 0}
    sender.say(type="message", room=ROOM, data=data)
    assert sender.hear()["data"] == data
    heard.append(data)


def test_j05_j07_data_is_only_data(sender: Client, heard: list[dict[str, Any]]) -> None:
    data = {
        "__proto__": {"polluted": True},
        "constructor": {"prototype": {"x": 1}},
        "bidi": "\u202e\u2066abc\u2069\u202c",
        "control": "\u0000\u0001\u001b[31m\u007f\u0085\u2028\u2029",
        "html": "<script>alert(1)</script>",
        "from": "system",
        "nothing": None,
        "": "",
    }
    sender.say(type="message", room=ROOM, data=data)
    assert sender.hear()["data"] == data
    heard.append(data)


def test_j08_numbers_at_the_edge_are_valid_json_again(
    sender: Client, heard: list[dict[str, Any]]
) -> None:
    sender.wire.send(
        text(f'{{"type":"message","room":"{ROOM}","data":{{"a":1e308,"b":-0.0,"c":5e-324}}}}')
    )
    data = {"a": 1e308, "b": -0.0, "c": 5e-324}
    assert sender.hear()["data"] == data
    heard.append(data)


def test_j08_a_number_beyond_all_floats_is_not_turned_into_null(sender: Client) -> None:
    sender.wire.send(text(f'{{"type":"message","room":"{ROOM}","data":{{"a":1e999}}}}'))
    answer = sender.hear()
    assert (answer["type"], answer["data"].get("code")) == ("error", "bad_json"), answer


# ------------------------------------------------------------------------------- ten strikes


def test_ten_malformed_messages_close_with_1008(sender: Client) -> None:
    for number in range(9):
        sender.wire.send(text("{" if number % 2 else "[]"))
        assert sender.hear()["type"] == "error"
    assert sender.sync() == []
    sender.wire.send(text("{"))
    assert sender.hear()["data"]["code"] == "bad_json"
    assert sender.closing() == (1008, "too many malformed messages")


def test_ten_malformed_messages_in_one_segment(sender: Client) -> None:
    shout = text(f'{{"type":"message",{SHOUT}}}')
    sender.wire.send(text("{") * 10 + shout + text("{") * 10)
    assert [sender.hear()["data"]["code"] for _ in range(10)] == ["bad_json"] * 10
    assert sender.closing() == (1008, "too many malformed messages")


def test_what_is_well_formed_and_forbidden_is_no_strike(sender: Client) -> None:
    for _ in range(15):
        assert sender.ask(type="critical_alert")["data"]["code"] == "forbidden"
        assert sender.ask(type="shout")["data"]["code"] == "unknown_type"
        assert sender.ask(type="message", to="user:nobody")["data"]["code"] == "not_found"
    assert sender.sync() == []


def test_r11_flood_of_bad_messages_is_not_written_down(server: ServerProcess) -> None:
    """A hundred clients with ten bad messages each; the canary counts the lines."""
    clients = [server.connect(f"bad-{number}") for number in range(100)]
    for client in clients:
        client.wire.send(text("\x01\x1b[2J") * 100)
    for client in clients:
        assert client.closing() == (1008, "too many malformed messages")
