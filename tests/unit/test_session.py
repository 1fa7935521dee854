"""One connection: each frame a client may send, and what it does; through the whole node."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from falcon_fast.clock import rfc3339
from falcon_fast.codes import CloseReason
from falcon_fast.envelope import BROADCAST_TYPES
from falcon_fast.session import MAX_STRIKES, State

from ..support.directory import group
from ..support.frames import text
from ..support.gateway import Json, Node, binary_message, said
from ..support.loop import FakeTimeLoop, turns

loop_factory = FakeTimeLoop

FLEET = group(1, "Fleet Commanders")
ROOM = f"group:{FLEET.id}"
OTHER = group(2, "Others")
OTHER_ROOM = f"group:{OTHER.id}"


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    node = Node()
    await node.bus.start(node.gateway)
    node.gateway.memberships.watch()
    yield node
    await node.gateway.close()


def error(
    node: Node, code: str, message: str, ident: str | None = "1", **extra: object
) -> dict[str, Any]:
    """Build the error reply of contract section 5, key for key."""
    data = {
        "code": code,
        "message": message,
        "retryable": code in {"rate_limited", "unavailable", "internal"},
        **extra,
    }
    frame: Json = {"type": "error", "data": data, "timestamp": rfc3339(node.clock.time())}
    return {"id": ident, **frame} if ident is not None else frame


def ack(node: Node, **data: object) -> Json:
    frame: Json = {"id": "1", "type": "ack"}
    if data:
        frame["data"] = data
    return {**frame, "timestamp": rfc3339(node.clock.time())}


NOT_A_MEMBER = "you are not a member of this room"
NO_RECEIVER = "no such connection or user is there"
STRANGER = "you share no room with the receiver"
FOREIGN = "you do not belong to this room"
CANNOT_LEAVE = "you cannot leave this room"
NEEDS_ONE = "a message needs either room or to, and not both"
TYPES = "type must be one of auth, heartbeat, message, presence, system"
ACTIONS = "data.action must be one of ping, join, leave, subscribe_presence, unsubscribe_presence"
ROOM_SHAPE = "room must be user:{id} or group:{24 hexadecimal digits}"
USER_IDS = "data.user_ids must be a list of 1 to 100 user ids"


# --- the first frames -----------------------------------------------------------------------------


async def test_welcome_first_then_the_rooms(node: Node) -> None:
    client = node.dial("ann", FLEET, character_id=2**62, ttl=600)
    await turns()
    stamp = rfc3339(node.clock.time())
    assert client.take() == [
        {
            "type": "system_notification",
            "data": {
                "connection_id": client.id,
                "message": "Connected to WebSocket",
                "user_id": "ann",
                "character_id": 2**62,
                "character_name": "Ann",
                "node_id": node.gateway.node_id,
                "heartbeat_interval": 30.0,
                "expires_at": int(node.clock.time()) + 600,
            },
            "timestamp": stamp,
        },
        {
            "type": "room_update",
            "data": {"action": "joined", "rooms": ["user:ann", ROOM]},
            "timestamp": stamp,
        },
    ]
    assert client.session.state is State.OPEN


# --- presence and heartbeat -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["presence", "heartbeat"])
async def test_presence_and_heartbeat(node: Node, kind: str) -> None:
    ann, bob = await node.connect("ann", FLEET), await node.connect("bob", FLEET)
    stamp = rfc3339(node.clock.time())
    reply = {
        "type": "presence",
        "data": {"status": "online", "timestamp": stamp},
        "timestamp": stamp,
    }
    ann.take()
    assert await ann.ask({"type": kind, "id": "h-1"}) == [{"id": "h-1", **reply}]
    assert await ann.ask({"type": kind, "timestamp": "2024-01-01T12:00:00Z"}) == [reply]
    assert bob.take() == []


# --- messages -------------------------------------------------------------------------------------


async def test_a_message_to_a_room_reaches_all_members_and_its_sender(node: Node) -> None:
    ann = await node.connect("ann", FLEET, OTHER)
    bob, eve = await node.connect("bob", FLEET), await node.connect("eve", OTHER)
    for client in (ann, bob, eve):
        client.take()
    ann.send(
        {
            "id": "m-1",
            "type": "message",
            "room": ROOM,
            "from": "admin",
            "timestamp": "1999-01-01T00:00:00Z",
            "extra": True,
            "data": {"text": "hi", "n": 2**63},
        }
    )
    await turns()
    expected = {
        "id": "m-1",
        "type": "message",
        "room": ROOM,
        "from": ann.id,
        "data": {"text": "hi", "n": 2**63},
        "timestamp": rfc3339(node.clock.time()),
    }
    assert ann.take() == bob.take() == [expected]
    assert eve.take() == []


async def test_a_message_without_id_and_data(node: Node) -> None:
    ann = await node.connect("ann", FLEET)
    stamp = rfc3339(node.clock.time())
    assert await ann.ask({"type": "message", "room": ROOM}) == [
        {"type": "message", "room": ROOM, "from": ann.id, "timestamp": stamp}
    ]


async def test_j03_what_was_checked_is_what_is_sent(node: Node) -> None:
    ann, bob = await node.connect("ann", FLEET), await node.connect("bob", FLEET)
    ann.send(
        f'{{"type":"system_notification","type":"message","room":"{OTHER_ROOM}","room":"{ROOM}",'
        '"data":{"x":1,"x":2},"id":"a","id":"b"}'
    )
    await turns()
    (payload,) = bob.payloads()
    assert payload.decode() == (
        f'{{"id":"b","type":"message","room":"{ROOM}","from":"{ann.id}","data":{{"x":2}},'
        f'"timestamp":"{rfc3339(node.clock.time())}"}}'
    )


async def test_a_message_to_a_connection(node: Node) -> None:
    ann, bob = await node.connect("ann", FLEET), await node.connect("bob", FLEET)
    ann.take()
    answers = await ann.ask({"id": "1", "type": "message", "to": bob.id, "data": {"a": 1}})
    assert answers == [ack(node)]
    assert bob.take() == [
        {
            "id": "1",
            "type": "message",
            "from": ann.id,
            "to": bob.id,
            "data": {"a": 1},
            "timestamp": rfc3339(node.clock.time()),
        }
    ]


async def test_a_message_to_a_user_reaches_all_their_connections(node: Node) -> None:
    ann = await node.connect("ann", FLEET)
    bobs = [await node.connect("bob", FLEET), await node.connect("bob")]
    for client in bobs:
        client.take()
    # Without an id there is nothing to acknowledge.
    assert await ann.ask({"type": "message", "to": "user:bob"}) == []
    expected = {
        "type": "message",
        "from": ann.id,
        "to": "user:bob",
        "timestamp": rfc3339(node.clock.time()),
    }
    assert [client.take() for client in bobs] == [[expected], [expected]]


@pytest.mark.parametrize("frame", [{}, {"room": ROOM, "to": "user:ann"}])
async def test_a_message_needs_one_receiver(node: Node, frame: Json) -> None:
    ann = await node.connect("ann", FLEET)
    assert await ann.ask({"id": "1", "type": "message", **frame}) == [
        error(node, "bad_request", NEEDS_ONE)
    ]


async def test_z01_no_difference_between_foreign_and_unknown_rooms(node: Node) -> None:
    ann, bob = await node.connect("ann", FLEET), await node.connect("bob", OTHER)
    for room in (OTHER_ROOM, f"group:{group(99).id}", "user:bob", "user:nobody"):
        assert await ann.ask({"id": "1", "type": "message", "room": room}) == [
            error(node, "forbidden", NOT_A_MEMBER)
        ]
        for action, message in (("join", FOREIGN), ("leave", CANNOT_LEAVE)):
            frame = {"id": "1", "type": "system", "room": room, "data": {"action": action}}
            assert await ann.ask(frame) == [error(node, "forbidden", message)]
    assert bob.take() == []


async def test_z02_bad_room_names_do_nothing(node: Node) -> None:
    ann = await node.connect("ann", FLEET)
    for room in ("group:*", "user:ann:x", {"$ne": ""}, "x" * 256, [ROOM], 5, True):
        frame = {"id": "1", "type": "system", "data": {"action": "join", "room": room}}
        assert await ann.ask(frame) == [error(node, "bad_request", ROOM_SHAPE)]
    assert ann.rooms == ["user:ann", ROOM]
    assert sorted(node.gateway.rooms.names()) == [ROOM, "user:ann"]


@pytest.mark.parametrize("kind", sorted(BROADCAST_TYPES - {"message", "presence"}))
async def test_z03_types_of_the_server(node: Node, kind: str) -> None:
    ann, bob = await node.connect("ann", FLEET), await node.connect("bob", FLEET)
    frame = {"id": "1", "type": kind, "room": ROOM, "data": {"status": "down"}}
    ann.take()
    assert await ann.ask(frame) == [
        error(node, "forbidden", "clients may not send messages of this type")
    ]
    assert bob.take() == []
    assert ann.is_open


@pytest.mark.parametrize("kind", ["", "ack", "error", "Message", "x" * 5_000, "__init__"])
async def test_unknown_types(node: Node, kind: str) -> None:
    ann = await node.connect("ann", FLEET)
    for _ in range(2 * MAX_STRIKES):
        answers = await ann.ask({"id": "1", "type": kind, "room": ROOM})
        assert answers == [error(node, "unknown_type", TYPES)]
    assert ann.is_open


async def test_z08_unknown_and_closed_connections_look_the_same(node: Node) -> None:
    ann, bob = await node.connect("ann", FLEET), await node.connect("bob", FLEET)
    closed = bob.id
    bob.leave()
    await turns()
    for to in (closed, "0" * 8, "user:bob", "user:nobody", "ann"):
        assert await ann.ask({"id": "1", "type": "message", "to": to}) == [
            error(node, "not_found", NO_RECEIVER)
        ]


async def test_z08_a_connection_one_shares_no_room_with(node: Node) -> None:
    ann, eve = await node.connect("ann", FLEET), await node.connect("eve", OTHER)
    for to in (eve.id, "user:eve"):
        assert await ann.ask({"id": "1", "type": "message", "to": to}) == [
            error(node, "forbidden", STRANGER)
        ]
    assert eve.take() == []


async def test_z08_oneself_is_a_receiver_like_any_other(node: Node) -> None:
    ann = await node.connect("ann")
    got = await ann.ask({"id": "1", "type": "message", "to": ann.id})
    assert [(frame["type"], frame.get("from")) for frame in got] == [
        ("message", ann.id),
        ("ack", None),
    ]


async def test_z08_connection_ids_cannot_be_guessed(node: Node) -> None:
    ids = [(await node.connect(f"u{i}")).id for i in range(50)]
    assert len(set(ids)) == 50
    for ident in ids:
        assert len(ident) == 36
        assert ident[14] == "4", "uuid4 has 122 random bits"


async def test_other_nodes_that_cannot_be_told(node: Node) -> None:
    ann, bob = await node.connect("ann", FLEET), await node.connect("bob", FLEET)
    ann.take()
    node.bus.cut = True
    answers = await ann.ask({"id": "1", "type": "message", "room": ROOM})
    assert answers[-1] == error(
        node,
        "unavailable",
        "this node's members got the message, other nodes could not be told",
    )
    # One who is here needs no other node.
    [answer] = await ann.ask({"id": "2", "type": "message", "to": bob.id})
    assert (answer["type"], answer["id"]) == ("ack", "2")
    assert [frame["id"] for frame in bob.take()] == ["1", "2"]


# --- system ---------------------------------------------------------------------------------------


async def test_ping_as_the_web_client_sends_it(node: Node) -> None:
    ann = await node.connect("ann")
    frame = {
        "id": "ping-1",
        "type": "system",
        "data": {"action": "ping"},
        "timestamp": 1_700_000_000_123,
    }
    stamp = rfc3339(node.clock.time())
    assert await ann.ask(frame) == [
        {"id": "ping-1", "type": "system", "data": {"action": "pong"}, "timestamp": stamp}
    ]
    assert await ann.ask({"type": "system", "data": {"action": "ping"}}) == [
        {"type": "system", "data": {"action": "pong"}, "timestamp": stamp}
    ]


@pytest.mark.parametrize("action", [None, "", "quit", 5, ["ping"], {"ping": 1}, True, "__doc__"])
async def test_actions_that_do_not_exist(node: Node, action: object) -> None:
    ann = await node.connect("ann")
    frame = {"id": "1", "type": "system", "data": {"action": action}}
    assert await ann.ask(frame) == [error(node, "bad_request", ACTIONS)]


@pytest.mark.parametrize("place", ["room", "data.room"])
async def test_join_and_leave(node: Node, place: str) -> None:
    ann, bob = await node.connect("ann", FLEET), await node.connect("bob", FLEET)
    ann.take()

    def frame(action: str) -> Json:
        named: Json = {"room": ROOM} if place == "room" else {}
        inner: Json = {} if place == "room" else {"room": ROOM}
        return {"id": "1", "type": "system", **named, "data": {"action": action, **inner}}

    assert await ann.ask(frame("join")) == [ack(node, action="join", room=ROOM)]
    assert await ann.ask(frame("leave")) == [ack(node, action="leave", room=ROOM)]
    assert ann.rooms == ["user:ann"]
    assert [one["data"]["action"] for one in bob.take()] == ["member_left"]
    assert await ann.ask({"id": "1", "type": "message", "room": ROOM}) == [
        error(node, "forbidden", NOT_A_MEMBER)
    ]
    assert await ann.ask(frame("leave")) == [error(node, "forbidden", CANNOT_LEAVE)]
    assert await ann.ask(frame("join")) == [ack(node, action="join", room=ROOM)]
    assert ann.rooms == ["user:ann", ROOM]
    assert [one["data"]["action"] for one in bob.take()] == ["member_joined"]


async def test_the_personal_room_can_be_joined_again_but_not_left(node: Node) -> None:
    ann = await node.connect("ann")
    frame: Json = {"id": "1", "type": "system", "room": "user:ann", "data": {"action": "join"}}
    assert await ann.ask(frame) == [ack(node, action="join", room="user:ann")]
    frame["data"] = {"action": "leave"}
    assert await ann.ask(frame) == [error(node, "forbidden", CANNOT_LEAVE)]


async def test_a_room_that_was_left_keeps_its_name_when_joined_again(node: Node) -> None:
    ann = await node.connect("ann", FLEET)
    for action in ("leave", "join"):
        await ann.ask({"type": "system", "room": ROOM, "data": {"action": action}})
    info = node.gateway.rooms.info(ROOM)
    assert info is not None
    assert info.name == "Group: Fleet Commanders"


async def test_a_room_that_was_left_cannot_be_joined_when_the_user_was_removed(node: Node) -> None:
    ann = await node.connect("ann", FLEET, OTHER)
    await ann.ask({"type": "system", "room": ROOM, "data": {"action": "leave"}})
    node.directory.tell("ann", [OTHER])
    frame = {"id": "1", "type": "system", "room": ROOM, "data": {"action": "join"}}
    assert (await ann.ask(frame))[-1] == error(node, "forbidden", FOREIGN)
    assert ann.session.rooms_left() == set()


async def test_no_ack_without_an_id(node: Node) -> None:
    ann = await node.connect("ann", FLEET)
    for data in (
        {"action": "join", "room": ROOM},
        {"action": "leave", "room": ROOM},
        {"action": "subscribe_presence", "user_id": "bob"},
        {"action": "unsubscribe_presence", "user_id": "bob"},
    ):
        assert await ann.ask({"type": "system", "data": data}) == []


async def test_joining_again_at_the_limit_of_rooms() -> None:
    node = Node(max_rooms=2)
    await node.gateway._bus.start(node.gateway)
    node.gateway.memberships.watch()
    ann = await node.connect("ann", FLEET)
    await ann.ask({"type": "system", "room": ROOM, "data": {"action": "leave"}})
    node.directory.tell("ann", [FLEET, OTHER])
    assert ann.rooms == ["user:ann", OTHER_ROOM]
    frame = {"id": "1", "type": "system", "room": ROOM, "data": {"action": "join"}}
    assert (await ann.ask(frame))[-1] == error(node, "limit", "the connection is in too many rooms")
    await node.gateway.close()


# --- presence subscriptions -----------------------------------------------------------------------


async def test_presence_of_users_who_share_a_room(node: Node) -> None:
    ann = await node.connect("ann", FLEET)
    frame: Json = {
        "id": "1",
        "type": "system",
        "data": {"action": "subscribe_presence", "user_ids": ["bob", "eve"]},
    }
    assert await ann.ask(frame) == [ack(node, action="subscribe_presence", user_ids=["bob", "eve"])]
    bob, eve = await node.connect("bob", FLEET), await node.connect("eve", OTHER)
    stamp = rfc3339(node.clock.time())
    assert [one for one in ann.take() if one["type"] == "presence"] == [
        {
            "type": "presence",
            "data": {"user_id": "bob", "status": "online", "timestamp": stamp},
            "timestamp": stamp,
        }
    ]
    bob.leave()
    eve.leave()
    await asyncio.sleep(4.9)
    assert [one for one in ann.take() if one["type"] == "presence"] == []
    await asyncio.sleep(0.2)
    assert [one["data"]["status"] for one in ann.take()] == ["offline"]
    frame["data"]["action"] = "unsubscribe_presence"
    assert await ann.ask(frame) == [
        ack(node, action="unsubscribe_presence", user_ids=["bob", "eve"])
    ]
    await node.connect("bob", FLEET)
    assert [one for one in ann.take() if one["type"] == "presence"] == []


@pytest.mark.parametrize("action", ["subscribe_presence", "unsubscribe_presence"])
@pytest.mark.parametrize(
    "data",
    [
        {},
        {"user_id": None},
        {"user_id": 5},
        {"user_id": ["bob"]},
        {"user_ids": None},
        {"user_ids": "bob"},
        {"user_ids": []},
        {"user_ids": {"bob": 1}},
        {"user_ids": [["bob"]]},
        {"user_ids": [{"$ne": 1}]},
        {"user_ids": ["bob", None]},
        {"user_ids": ["b*"]},
        {"user_ids": [""]},
        {"user_ids": ["b" * 65]},
        {"user_ids": ["bob"] * 101},
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else value,
)
async def test_bad_users_to_watch(node: Node, action: str, data: Json) -> None:
    ann = await node.connect("ann")
    frame = {"id": "1", "type": "system", "data": {"action": action, **data}}
    assert await ann.ask(frame) == [error(node, "bad_request", USER_IDS)]


async def test_the_limit_of_watched_users(node: Node) -> None:
    ann = await node.connect("ann")
    for start in range(0, 1_000, 100):
        users = [f"u{i}" for i in range(start, start + 100)]
        data = {"action": "subscribe_presence", "user_ids": users}
        assert len(await ann.ask({"id": "1", "type": "system", "data": data})) == 1
    data = {"action": "subscribe_presence", "user_id": "bob"}
    assert await ann.ask({"id": "1", "type": "system", "data": data}) == [
        error(node, "limit", "a connection may watch 1000 users at most")
    ]


# --- tokens ---------------------------------------------------------------------------------------


async def test_auth_refreshes_the_token_and_reads_the_groups_again(node: Node) -> None:
    ann = await node.connect("ann", FLEET, ttl=60)
    node.directory.put("ann", FLEET, OTHER)
    node.directory.asked.clear()
    token = node.token("ann", 9, ttl=120)
    answers = await ann.ask({"id": "1", "type": "auth", "data": {"token": token}})
    expires = int(node.clock.time()) + 120
    assert answers[0] == {
        "id": "1",
        "type": "auth",
        "data": {"expires_at": expires},
        "timestamp": rfc3339(node.clock.time()),
    }
    assert [one["type"] for one in answers[1:]] == ["group_membership_change"]
    assert ann.rooms == ["user:ann", ROOM, OTHER_ROOM]
    assert node.directory.asked == [("ann", 9)]
    assert node.directory.tracked == {"ann": {7, 9}}
    assert (ann.session.identity.character_id, ann.session.identity.expires_at) == (9, expires)


async def test_the_token_of_another_user_ends_the_connection(node: Node) -> None:
    ann = await node.connect("ann")
    await ann.ask({"id": "1", "type": "auth", "data": {"token": node.token("bob")}})
    assert ann.closed == said(CloseReason.FORBIDDEN) == (4403, "forbidden")


async def test_a_bad_token_changes_nothing(node: Node) -> None:
    ann = await node.connect("ann")
    before = ann.session.identity
    expired = node.token("ann", ttl=-60)
    for token in ("", "x", "a.b.c", expired, node.token("ann")[:-2]):
        answers = await ann.ask({"id": "1", "type": "auth", "data": {"token": token}})
        assert answers == [error(node, "forbidden", "the token is not valid")]
    assert ann.session.identity == before
    assert ann.is_open


@pytest.mark.parametrize("data", [{}, {"token": None}, {"token": 5}, {"token": ["a"]}])
async def test_a_token_is_a_string(node: Node, data: Json) -> None:
    ann = await node.connect("ann")
    assert await ann.ask({"id": "1", "type": "auth", "data": data}) == [
        error(node, "bad_request", "data.token must be a string")
    ]


# --- malformed messages and abuse -----------------------------------------------------------------


@pytest.mark.parametrize(
    "payload, code, ident",
    [
        (b"hello", "bad_json", None),
        (b"[]", "bad_request", None),
        (b'{"id":"1"}', "bad_request", "1"),
        (b'{"id":"1","type":5}', "bad_request", "1"),
        (b'{"id":"1","type":{}}', "bad_request", "1"),
        (b'{"id":"1","type":["message"]}', "bad_request", "1"),
        (b'{"id":5,"type":"message"}', "bad_request", None),
        (b'{"id":{},"type":"message"}', "bad_request", None),
        (b'{"id":[],"type":"presence"}', "bad_request", None),
        (b'{"id":"1","type":"message","data":[]}', "bad_request", "1"),
        (b'{"id":"1","type":"message","data":{"n":18446744073709551616}}', "bad_request", "1"),
        (b'{"id":"1","x":' + b"[" * 32 + b"]" * 32 + b"}", "bad_request", "1"),
        (b'{"id":"1","x":[' + b",".join([b'{"a":1}'] * 1_000) + b"]}", "too_large", "1"),
    ],
)
async def test_malformed_messages_are_answered(
    node: Node, payload: bytes, code: str, ident: str | None
) -> None:
    ann = await node.connect("ann", FLEET)
    (answer,) = await ann.ask(payload)
    assert (answer["type"], answer.get("id"), answer["data"]["code"]) == ("error", ident, code)
    assert answer["data"]["retryable"] is False
    assert ann.is_open


async def test_ten_malformed_messages_in_a_minute_end_it(node: Node) -> None:
    ann = await node.connect("ann")
    for _ in range(MAX_STRIKES - 1):
        await ann.ask(b"{")
    # Refusals of other kinds do not count.
    await ann.ask({"type": "message", "room": ROOM})
    await ann.ask({"type": "nothing"})
    assert ann.is_open
    answers = await ann.ask(b'{"type":1}')
    assert [one["data"]["code"] for one in answers] == ["bad_request"]
    assert ann.closed == said(CloseReason.TOO_MANY_ERRORS) == (1008, "too many malformed messages")
    assert node.is_empty


async def test_ten_malformed_messages_in_more_than_a_minute_do_not() -> None:
    node = Node(ping_interval=0.0)
    ann = await node.connect("ann")
    for _ in range(30):
        await ann.ask(b"{")
        await asyncio.sleep(60 / 9)
    assert ann.is_open
    await node.gateway.close()


async def test_any_minute_counts_not_only_those_that_begin_with_the_first() -> None:
    node = Node(ping_interval=0.0)
    ann = await node.connect("ann")
    await ann.ask(b"{")
    await asyncio.sleep(58)
    for _ in range(4):
        await ann.ask(b"{")
    await asyncio.sleep(4)
    for _ in range(5):
        assert ann.is_open
        await ann.ask(b"{")
    # Nine within a few seconds, and the first one over a minute ago.
    assert ann.is_open
    await ann.ask(b"{")
    assert ann.closed == said(CloseReason.TOO_MANY_ERRORS)
    await node.gateway.close()


async def test_nothing_behind_the_last_straw_is_handled(node: Node) -> None:
    ann, bob = await node.connect("ann", FLEET), await node.connect("bob", FLEET)
    message = text(json.dumps({"type": "message", "room": ROOM}))
    ann.put(text("{") * MAX_STRIKES + message)
    await turns()
    assert [one["data"]["action"] for one in bob.take()] == ["member_left"]


async def test_binary_messages(node: Node) -> None:
    ann = await node.connect("ann")
    ann.put(binary_message())
    await turns()
    assert (
        ann.closed
        == said(CloseReason.UNSUPPORTED_DATA)
        == (
            1003,
            "only text messages are supported",
        )
    )


async def test_messages_above_the_rate_are_answered_with_one_error() -> None:
    node = Node(message_rate=50.0, message_burst=100)
    ann = await node.connect("ann")
    beat = b'{"type":"heartbeat","id":"%d"}'
    ann.put(b"".join(text(beat % number) for number in range(105)))
    await turns()
    answers = ann.take()
    assert [one["type"] for one in answers] == ["presence"] * 100 + ["error"]
    assert answers[-1] == error(
        node, "rate_limited", "5 messages were not handled: slow down", "100", refused=5
    )
    # Fifty a second come back.
    await asyncio.sleep(0.1)
    assert [one["type"] for one in await ann.ask({"type": "heartbeat"})] == ["presence"]
    await node.gateway.close()


async def test_a_rate_kept_too_high_for_ten_seconds_ends_it() -> None:
    node = Node(message_rate=1.0, message_burst=1)
    ann = await node.connect("ann")
    lived = 0.0
    while ann.closed is None and lived < 20:
        ann.put(text('{"type":"heartbeat"}') * 3)
        await asyncio.sleep(0.5)
        lived += 0.5
    assert ann.closed == said(CloseReason.RATE_LIMITED) == (4003, "rate limited")
    assert 10 <= lived <= 11
    await node.gateway.close()


async def test_a_closed_session_stays_closed_for_its_first_reason(node: Node) -> None:
    ann = await node.connect("ann")
    session = ann.session
    session.close(CloseReason.KICKED)
    session.close(CloseReason.NORMAL)
    session.open(pending=False)
    session.send(b"{}")
    await turns()
    assert session.state is State.CLOSED
    assert ann.closed == (4403, "closed by an operator")
    assert ann.take() == []


async def test_what_a_session_remembers_is_the_same_fresh_and_packed(node: Node) -> None:
    ann = node.dial("ann", FLEET, character_id=2**40)
    session = ann.session
    known = session.identity, session.created_at, session.remote_address, session.character_id
    records = [session.record]
    await turns()
    records.append(session.record)
    assert [record is None for record in records] == [True, False]
    assert known == (
        *(session.identity, session.created_at),
        *(session.remote_address, session.character_id),
    )
    assert known[0].user_id == "ann"
    assert known[1:] == (node.clock.time(), session.remote_address, 2**40)


async def test_a_session_without_its_record_says_so(node: Node) -> None:
    session = (await node.connect("ann")).session
    record, session.record = session.record, None
    with pytest.raises(RuntimeError, match="not fresh"):
        _ = session.identity
    session.record = record


async def test_a_bug_in_a_handler_ends_only_that_connection(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ann, bob = await node.connect("ann"), await node.connect("bob")

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(node.gateway.rooms, "is_member", fail)
    ann.send({"type": "message", "room": ROOM})
    await turns()
    assert ann.closed == said(CloseReason.INTERNAL_ERROR) == (1011, "internal error")
    assert [one["type"] for one in await bob.ask({"type": "heartbeat"})] == ["presence"]
    assert "a connection failed" in caplog.text
