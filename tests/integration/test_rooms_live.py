"""Rooms of a running server: who is in them, what they hear, and changes made from outside."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from ..support.client import Client, Message
from ..support.frames import close
from ..support.server import ServerProcess, eventually

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("canary")]

NOTICED_WITHIN = 1.0
"""Seconds in which a change in the directory must take effect, after the command has ended."""

SLACK = 1.0

CROWD = 4
"""FALCON_ROOM_EVENTS_MAX: members above which comings and goings are only counted."""

GRACE = 5.0
"""Seconds a user may be gone before it is news."""


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"FALCON_ROOM_EVENTS_MAX": str(CROWD)}


def number(room: str) -> str:
    return room.removeprefix("group:")


def is_message(message: Message) -> bool:
    return bool(message["type"] == "message")


def without_time(message: Message) -> Message:
    """Return a message without its timestamps, which must be there."""
    assert message["timestamp"].startswith("20")
    data = message.get("data", {})
    if "timestamp" in data:
        data = {name: value for name, value in data.items() if name != "timestamp"}
    return {**{name: value for name, value in message.items() if name != "timestamp"}, "data": data}


def of_type(kind: str) -> Callable[[Message], bool]:
    return lambda message: bool(message["type"] == kind)


# ---------------------------------------------------------------------------- who is where


def test_rooms_are_the_union_over_all_characters(server: ServerProcess) -> None:
    with server.store() as store:
        for character in (11, 12):
            store.add_user("pilot", character, f"Character {character}")
        store.add_user("other", 13, "Somebody else")
    first, second = server.group("First", 11), server.group("Second", 12, 13)
    both, neither = server.group("Both", 11, 12), server.group("Neither", 13)
    client = server.connect("pilot", 11)
    assert client.rooms == ["user:pilot", *sorted([first, second, both])]
    assert neither not in client.rooms
    assert client.welcome["data"] == {
        "connection_id": client.id,
        "message": "Connected to WebSocket",
        "user_id": "pilot",
        "character_id": 11,
        "character_name": "Character 11",
        "node_id": server.status()["node_id"],
        "heartbeat_interval": 30.0,
        "expires_at": client.welcome["data"]["expires_at"],
    }


def test_a_claimed_character_of_somebody_else_opens_nothing(server: ServerProcess) -> None:
    """The token vouches for the user; a character that belongs to another user is not theirs."""
    with server.store() as store:
        store.add_user("owner", 14, "The owner's")
    room = server.group("Of the owner", 14)
    assert server.connect("owner", 14).rooms == ["user:owner", room]
    assert server.connect("thief", 14).rooms == ["user:thief"]


def test_coming_and_going_is_told_to_the_others(server: ServerProcess) -> None:
    room = server.group("Watched", 21, 22)
    watcher = server.connect("watcher", 21)
    comer = server.connect("comer", 22)
    told = without_time(watcher.hear())
    assert told == {
        "type": "room_update",
        "room": room,
        "data": {
            "action": "member_joined",
            "connection_id": comer.id,
            "member_count": 2,
            "room_id": room,
        },
    }
    assert comer.sync() == [], "the newcomer does not hear of itself"
    comer.wire.send(close(1000))
    assert comer.closing() == (1000, "")
    told["data"].update(action="member_left", member_count=1)
    assert without_time(watcher.hear()) == told


def test_large_rooms_only_tell_their_size(server: ServerProcess) -> None:
    characters = range(30, 30 + CROWD + 3)
    room = server.group("Crowd", *characters)
    clients = [server.connect(f"crowd-{character}", character) for character in characters]
    told: list[Message] = []
    summary = {"action": "member_count", "member_count": len(clients), "room_id": room}

    def is_told(message: Message) -> bool:
        told.append(without_time(message))
        return bool(message["data"] == summary)

    clients[0].hear_until(is_told, within=1.0 + SLACK + 2.0)
    joined = [message for message in told if message["data"]["action"] == "member_joined"]
    assert [message["data"]["member_count"] for message in joined] == list(range(2, CROWD + 1))
    assert len(told) - len(joined) <= 3, "one a second"


# --------------------------------------------------------------------------- what is said


def test_message_reaches_all_members_and_nobody_else(server: ServerProcess) -> None:
    room = server.group("Chat", 41, 42)
    alice, bob, twin = (server.connect(*who) for who in (("alice", 41), ("bob", 42), ("bob", 42)))
    stranger = server.connect("stranger", 43)
    for client in (alice, bob, twin):
        client.sync()
    frame = {"type": "message", "id": "m1", "room": room, "data": {"text": "o7", "n": [1, None]}}
    alice.say(**frame, **{"from": "system", "to_be_ignored": 1, "timestamp": "1999"})
    for client in (alice, bob, twin):
        assert without_time(client.hear()) == {**frame, "from": alice.id}
        assert client.sync() == [], "once"
    assert stranger.sync() == []


def test_order_is_that_of_the_sender(server: ServerProcess) -> None:
    room = server.group("Order", 44, 45)
    sender, receiver = server.connect("sender", 44), server.connect("receiver", 45)
    for n in range(60):
        sender.say(type="message", room=room, data={"n": n})
    for client in (sender, receiver):
        heard = [client.hear_until(is_message)["data"]["n"] for _ in range(60)]
        assert heard == list(range(60))


def test_personal_room_is_for_all_connections_of_a_user(server: ServerProcess) -> None:
    one, two = server.connect("self", 46), server.connect("self", 46)
    one.say(type="message", room="user:self", data={"a": 1})
    assert two.hear_until(is_message)["from"] == one.id


def test_presence_heartbeat_and_ping_are_answered(server: ServerProcess) -> None:
    client = server.connect("u", 47)
    for kind in ("presence", "heartbeat"):
        answer = client.ask(type=kind)
        assert answer["type"] == "presence"
        assert without_time(answer)["data"] == {"status": "online"}
    client.say(type="heartbeat")
    assert "id" not in client.hear()
    # As the existing web client sends it.
    client.say(type="system", id="ping-1", data={"action": "ping", "timestamp": 1795477150123})
    answer = without_time(client.hear())
    assert answer == {"type": "system", "id": "ping-1", "data": {"action": "pong"}}


def test_leave_and_join_again(server: ServerProcess) -> None:
    room = server.group("Left", 51, 52)
    alice, bob = server.connect("alice", 51), server.connect("bob", 52)
    left = bob.ask(type="system", room=room, data={"action": "leave"})
    assert (left["type"], left["data"]) == ("ack", {"action": "leave", "room": room})
    assert alice.ask(type="message", room=room, data={"n": 1})["type"] == "message"
    assert [message for message in bob.sync() if is_message(message)] == []
    refused = bob.ask(type="message", room=room, data={})
    assert refused["data"]["code"] == "forbidden"
    joined = bob.ask(type="system", room=room, data={"action": "join"})
    assert (joined["type"], joined["data"]) == ("ack", {"action": "join", "room": room})
    alice.say(type="message", room=room, data={"n": 2})
    assert bob.hear_until(is_message)["data"] == {"n": 2}
    own = bob.ask(type="system", room="user:bob", data={"action": "leave"})
    assert own["data"]["code"] == "forbidden"


# --------------------------------------------------------------------------- direct messages


def test_z08_direct_messages(server: ServerProcess) -> None:
    server.group("Met", 61, 62)
    alice, bob, twin = (server.connect(*who) for who in (("alice", 61), ("bob", 62), ("bob", 62)))
    stranger = server.connect("stranger", 63)
    for client in (alice, bob, twin, stranger):
        client.sync()

    frame = {"type": "message", "id": "d1", "to": bob.id, "data": {"a": 1}}
    alice.say(**frame)
    assert without_time(bob.hear()) == {**frame, "from": alice.id}
    assert without_time(alice.hear()) == {"type": "ack", "id": "d1", "data": {}}
    assert twin.sync() == [], "it was for the other connection"

    frame = {"type": "message", "id": "d2", "to": "user:bob", "data": {"a": 2}}
    alice.say(**frame)
    for client in (bob, twin):
        assert without_time(client.hear()) == {**frame, "from": alice.id}
    assert alice.hear()["type"] == "ack"

    alice.say(type="message", id="d3", to=alice.id, data={})
    assert {alice.hear()["type"] for _ in range(2)} == {"message", "ack"}

    for to in (stranger.id, "user:stranger"):
        assert alice.ask(type="message", to=to)["data"]["code"] == "forbidden"
        assert stranger.ask(type="message", to=alice.id)["data"]["code"] == "forbidden"
    ident = twin.id
    connections = server.connections()
    twin.close()
    eventually(lambda: server.connections() < connections, "it is gone")
    answers = [
        alice.ask(type="message", to=to)["data"]
        for to in (ident, "00000000-0000-4000-8000-000000000000", "nobody", "user:nobody")
    ]
    assert [answer["code"] for answer in answers] == ["not_found"] * 4
    assert all(answer == answers[0] for answer in answers)
    for client in (bob, stranger):
        assert [message for message in client.sync() if is_message(message)] == []


# ------------------------------------------------------------------- changes from outside


def test_member_remove_and_add_take_effect_within_a_second(server: ServerProcess) -> None:
    room = server.group("Fleet", 71, 72)
    alice, bob = server.connect("alice", 71), server.connect("bob", 72)
    assert alice.hear()["data"]["action"] == "member_joined"
    for verb, joined in (("remove", False), ("add", True)):
        server.command("member", verb, number(room), "72")
        began = time.monotonic()
        change = bob.hear_until(of_type("group_membership_change"))
        assert time.monotonic() - began <= NOTICED_WITHIN + SLACK
        assert without_time(change) == {
            "type": "group_membership_change",
            "data": {
                "user_id": "bob",
                "group_id": number(room),
                "group_name": "Fleet",
                "joined": joined,
            },
        }
        told = alice.hear_until(of_type("room_update"))
        assert told["data"] == {
            "action": "member_joined" if joined else "member_left",
            "connection_id": bob.id,
            "member_count": 1 + joined,
            "room_id": room,
        }
        assert alice.ask(type="message", room=room, data={"n": 1})["type"] == "message"
        heard = [message for message in bob.sync() if is_message(message)]
        assert len(heard) == joined
        answers = [
            bob.ask(type="message", room=room, data={})["type"],
            bob.ask(type="system", room=room, data={"action": "join"})["type"],
        ]
        assert answers == (["message", "ack"] if joined else ["error", "error"])


def test_z04_removal_in_a_stream_of_messages(server: ServerProcess) -> None:
    """Both connections of the removed user hear the same messages, up to one, and no more."""
    room = server.group("Stream", 73, 74)
    alice = server.connect("alice", 73)
    bobs = [server.connect("bob", 74) for _ in range(2)]
    with server.store() as store:
        for n in range(60):
            if n == 20:
                store.remove_member(number(room), 74)
            alice.say(type="message", room=room, data={"n": n})
            assert alice.hear_until(is_message)["data"]["n"] == n
            time.sleep(0.025)  # the messages are to spread over the second it may take
    heard = [
        [message["data"]["n"] for message in bob.sync() if is_message(message)] for bob in bobs
    ]
    assert heard[0] == heard[1] == list(range(len(heard[0])))
    assert 20 <= len(heard[0]) < 60


def test_one_of_two_characters_keeps_the_room(server: ServerProcess) -> None:
    with server.store() as store:
        for character in (75, 76):
            store.add_user("twice", character, "Name")
    room = server.group("Twice", 75, 76)
    client = server.connect("twice", 75)
    with server.store() as store:
        store.remove_member(number(room), 75)
    time.sleep(NOTICED_WITHIN)  # nothing is to happen
    assert client.sync() == []
    assert client.ask(type="message", room=room, data={})["type"] == "message"
    with server.store() as store:
        store.remove_member(number(room), 76)
    change = client.hear_until(of_type("group_membership_change"), within=NOTICED_WITHIN + SLACK)
    assert change["data"]["joined"] is False


def test_group_remove_empties_its_room(server: ServerProcess) -> None:
    room = server.group("Doomed", 77, 78)
    clients = [server.connect("alice", 77), server.connect("bob", 78)]
    rooms = server.status()["stats"]["total_rooms"]
    server.command("group", "remove", number(room))
    for client in clients:
        change = client.hear_until(of_type("group_membership_change"))
        assert (change["data"]["group_id"], change["data"]["joined"]) == (number(room), False)
        assert client.ask(type="message", room=room, data={})["data"]["code"] == "forbidden"
    assert server.status()["stats"]["total_rooms"] == rooms - 1


def test_new_character_brings_its_groups(server: ServerProcess) -> None:
    room = server.group("Recruits", 80)
    client = server.connect("recruiter", 79)
    assert client.rooms == ["user:recruiter"]
    server.command(
        "user", "add", "--user-id", "recruiter", "--character-id", "80", "--character-name", "New"
    )
    change = client.hear_until(of_type("group_membership_change"), within=NOTICED_WITHIN + SLACK)
    assert (change["data"]["group_id"], change["data"]["joined"]) == (number(room), True)
    assert client.ask(type="message", room=room, data={})["type"] == "message"


# ------------------------------------------------------------------------------- presence


def watch(client: Client, *users: str, action: str = "subscribe_presence") -> None:
    answer = client.ask(type="system", data={"action": action, "user_ids": list(users)})
    assert (answer["type"], answer["data"]) == (
        "ack",
        {"action": action, "user_ids": list(users)},
    )


def presences(messages: list[Message]) -> list[tuple[str, str]]:
    return [
        (message["data"]["user_id"], message["data"]["status"])
        for message in messages
        if message["type"] == "presence"
    ]


def test_presence_of_others(server: ServerProcess) -> None:
    server.group("Friends", 91, 92)
    watcher, stranger = server.connect("watcher", 91), server.connect("stranger", 93)
    for client in (watcher, stranger):
        watch(client, "friend", "nobody")
    friend = server.connect("friend", 92)
    told = watcher.hear_until(of_type("presence"))
    assert without_time(told) == {
        "type": "presence",
        "data": {"user_id": "friend", "status": "online"},
    }
    # A second connection, and a reload, are no news.
    second = server.connect("friend", 92)
    second.close()
    friend.close()
    friend = server.connect("friend", 92)
    assert presences(watcher.sync()) == []
    connections = server.connections()
    friend.close()
    eventually(lambda: server.connections() < connections, "the friend is gone")
    began = time.monotonic()
    told = watcher.hear_until(of_type("presence"))
    assert GRACE - 1.0 <= time.monotonic() - began <= GRACE + SLACK
    assert (told["data"]["user_id"], told["data"]["status"]) == ("friend", "offline")
    # Once, and not to who shares no room, nor to who no longer wants to know.
    watch(watcher, "friend", action="unsubscribe_presence")
    server.connect("friend", 92)
    for client in (watcher, stranger):
        assert presences(client.sync()) == []


# ------------------------------------------------------------------------------------ Z07


def test_z07_churn_leaves_nothing_behind(server: ServerProcess) -> None:
    """Connections that end at every moment of their life; the canary looks at the gauges."""
    room = server.group("Churn", 95)
    leave = {"type": "system", "room": room, "data": {"action": "leave"}}
    subscribe = {"action": "subscribe_presence", "user_ids": ["churn-0", "canary"]}
    for n in range(120):
        client = Client(server.wire())
        client.open(token=server.token(f"churn-{n % 15}", 95))
        if n % 4:
            client.enter()
            client.say(**leave)
            client.say(type="system", data=subscribe)
        if n % 4 == 1:
            client.say(**{**leave, "data": {"action": "join"}})
        if n % 4 == 2:
            client.say(type="message", room=room, data=json.loads('{"a":1}'))
        if n % 3:
            client.close()
        else:
            server.keep(client.wire)
            client.wire.send_reset()
