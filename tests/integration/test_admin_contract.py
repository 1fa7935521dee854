"""Every row of the admin API's table with its exact JSON, and what clients get of it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from ..support import require
from ..support.admin import Admin
from ..support.client import Client, Closed, Message
from ..support.server import ServerProcess, eventually

pytestmark = pytest.mark.integration

UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")

ALICE: Final = "alice"


@pytest.fixture(scope="module")
def admin(server: ServerProcess) -> Admin:
    return Admin(server)


@pytest.fixture(scope="module")
def fleet(server: ServerProcess) -> str:
    """A group's room; characters 1 and 2 are in it."""
    return server.group("Fleet Commanders", 1, 2)


@pytest.fixture
def alice(server: ServerProcess, fleet: str) -> Iterator[Client]:
    client = server.connect(ALICE, 1)
    yield client
    client.close()
    eventually(lambda: server.connections() == 0, "everybody is gone")


@pytest.fixture
def bob(server: ServerProcess, alice: Client) -> Iterator[Client]:
    client = server.connect("bob", 2)
    alice.sync()
    yield client
    client.close()


def is_now(time: str) -> bool:
    """Tell whether a time is written as it must be, and is about now."""
    assert TIME.fullmatch(time), time
    return abs((datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()) < 60


def info(client: Client, user: str, character: int, document: dict[str, Any]) -> dict[str, object]:
    """Return what the description of a connection must be, with the times that it has."""
    assert is_now(document["created_at"])
    assert is_now(document["last_ping"])
    assert document["created_at"] <= document["last_ping"]
    return {
        "id": client.id,
        "user_id": user,
        "character_id": character,
        "character_name": f"Character {character}",
        "rooms": client.rooms,
        "created_at": document["created_at"],
        "last_ping": document["last_ping"],
        "node_id": client.welcome["data"]["node_id"],
        "remote_address": "127.0.0.1",
    }


def test_list_connections(admin: Admin, alice: Client, bob: Client, fleet: str) -> None:
    document = admin.get("/websocket/connections").json
    found = {one["id"]: one for one in document["connections"]}
    assert document == {
        "connections": list(found.values()),
        "total": 2,
    }
    assert found == {
        alice.id: info(alice, ALICE, 1, found[alice.id]),
        bob.id: info(bob, "bob", 2, found[bob.id]),
    }
    assert found[alice.id]["rooms"] == ["user:alice", fleet]


def test_filters_of_connections_combine_with_and(
    admin: Admin, alice: Client, bob: Client, fleet: str
) -> None:
    def ids(query: str) -> list[str]:
        document = admin.get(f"/websocket/connections?{query}").json
        assert document["total"] == len(document["connections"])
        return sorted(one["id"] for one in document["connections"])

    both = sorted([alice.id, bob.id])
    assert ids("user_id=alice") == [alice.id]
    assert ids("character_id=2") == [bob.id]
    assert ids(f"room_id={fleet}") == both
    assert ids(f"room={fleet}") == both
    assert ids(f"room={fleet}&room_id={fleet}") == both
    assert ids(f"room_id={fleet}&user_id=bob&character_id=2") == [bob.id]
    assert ids("user_id=alice&character_id=2") == []
    assert ids("user_id=alice&room_id=user%3Abob") == []
    assert ids("room_id=group:ffffffffffffffffffffffff") == []
    conflict = admin.get(f"/websocket/connections?room={fleet}&room_id=user:bob")
    assert conflict.locations == ["query.room"]


def test_get_connection(admin: Admin, alice: Client) -> None:
    document = admin.get(f"/websocket/connections/{alice.id}").json
    assert document == {"connection": info(alice, ALICE, 1, document["connection"])}


def test_close_connection(admin: Admin, server: ServerProcess, alice: Client) -> None:
    victim = server.connect("carol", 3)
    answer = admin.ask("DELETE", f"/websocket/connections/{victim.id}")
    assert (answer.status, answer.json) == (
        200,
        {
            "success": True,
            "connection_id": victim.id,
            "message": "Connection closed successfully",
        },
    )
    with pytest.raises(Closed) as closed:
        victim.hear()
    assert closed.value.code == 4403
    again = admin.ask("DELETE", f"/websocket/connections/{victim.id}")
    assert (again.status, again.detail) == (404, "Connection not found")
    assert admin.get(f"/websocket/connections/{alice.id}").status == 200


def test_list_rooms(admin: Admin, alice: Client, bob: Client, fleet: str) -> None:
    def rooms(query: str = "") -> dict[str, dict[str, Any]]:
        document = admin.get(f"/websocket/rooms{query}").json
        assert set(document) == {"rooms", "total"}
        assert document["total"] == len(document["rooms"])
        return {room["id"]: room for room in document["rooms"]}

    found = rooms()
    assert set(found) == {"user:alice", "user:bob", fleet}
    times = {key: found[fleet][key] for key in ("created_at", "updated_at")}
    assert all(is_now(time) for time in times.values())
    assert found[fleet] == {
        "id": fleet,
        "type": "group",
        "name": "Group: Fleet Commanders",
        "member_count": 2,
        **times,
    }
    assert (found["user:bob"]["name"], found["user:bob"]["type"]) == ("Personal Room", "personal")
    assert set(rooms("?type=personal")) == {"user:alice", "user:bob"}
    assert set(rooms("?type=group")) == {fleet}
    assert set(rooms(f"?member_id={bob.id}")) == {"user:bob", fleet}
    assert set(rooms(f"?member_id={bob.id}&type=personal")) == {"user:bob"}
    assert rooms("?member_id=nobody") == {}


def test_get_room(admin: Admin, alice: Client, bob: Client, fleet: str) -> None:
    document = admin.get(f"/websocket/rooms/{fleet}").json
    room = document["room"]
    assert document == {
        "room": {
            "id": fleet,
            "type": "group",
            "name": "Group: Fleet Commanders",
            "member_count": 2,
            "created_at": room["created_at"],
            "updated_at": room["updated_at"],
            "members": room["members"],
        }
    }
    assert sorted(room["members"]) == sorted([alice.id, bob.id])


@pytest.mark.parametrize(
    ("method", "path", "detail"),
    [
        ("GET", "/websocket/connections/gone", "Connection not found"),
        ("DELETE", "/websocket/connections/gone", "Connection not found"),
        ("GET", "/websocket/rooms/user:gone", "Room not found"),
        ("DELETE", "/websocket/revocations/gone", "Revocation not found"),
        ("POST", "/websocket/connections/gone/message", "Connection not found"),
        ("POST", "/websocket/users/gone/message", "No active connections found for user"),
        ("POST", "/websocket/rooms/group:ffffffffffffffffffffffff/message", "Room not found"),
    ],
)
def test_what_is_not_there(admin: Admin, method: str, path: str, detail: str) -> None:
    body = {"type": "message", "data": {}} if method == "POST" else None
    answer = admin.ask(method, path, json_body=body)
    assert (answer.status, answer.json) == (
        404,
        {"title": "Not Found", "status": 404, "detail": detail},
    )


def test_status(admin: Admin, server: ServerProcess, alice: Client) -> None:
    document = admin.ask("GET", "/websocket/status", headers={}).json
    stats = document["stats"]
    assert document == {
        "module": "websocket",
        "status": "healthy",
        "stats": stats,
        "message": "WebSocket module is running",
        "node_id": alice.welcome["data"]["node_id"],
        "nodes": 1,
    }
    assert list(stats) == [
        "total_connections",
        "active_connections",
        "total_rooms",
        "messages_processed",
        "messages_broadcast",
        "last_connection_time",
    ]
    assert (stats["active_connections"], stats["total_rooms"]) == (1, 2)
    assert is_now(stats["last_connection_time"])
    assert document == server.status()


# -------------------------------------------------------------- the four calls, typed with curl

MAINTENANCE: Final = """{
  "type": "system_notification",
  "data": {
    "title": "System Maintenance",
    "message": "The system will be offline for maintenance from 02:00 to 04:00 UTC",
    "severity": "warning",
    "scheduled_time": "2025-09-05T02:00:00Z"
  }
}"""
HELLO: Final = """{
  "type": "message",
  "data": {
    "text": "Hello from admin",
    "priority": "high"
  }
}"""
ATTENTION: Final = """{
  "type": "notification",
  "data": {
    "title": "System Alert",
    "message": "Your account requires attention",
    "action_url": "/profile"
  }
}"""
ANNOUNCEMENT: Final = """{
  "type": "room_update",
  "data": {
    "action": "room_announcement",
    "title": "Room Maintenance",
    "message": "This room will be offline for maintenance at 3 PM UTC"
  }
}"""


def curl(admin: Admin, path: str, body: str, *auth: str) -> dict[str, Any]:
    """Send a body as somebody at a terminal would."""
    done = subprocess.run(
        [
            *(require("curl"), "--silent", "--show-error", "--fail-with-body", "--max-time", "15"),
            *("-X", "POST", "-H", "Content-Type: application/json", *auth),
            *("-d", body, admin.url + path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def check(
    answer: dict[str, Any], text: str, count: int, frame: Message, body: str, **where: str
) -> None:
    """Hold an answer against the contract, and the frame that came of it against the answer."""
    assert UUID.fullmatch(answer["message_id"])
    assert is_now(answer["timestamp"])
    target = {key: value for key, value in where.items() if key not in {"room", "to"}}
    assert answer == {
        "success": True,
        "message_id": answer["message_id"],
        "recipients_count": count,
        "timestamp": answer["timestamp"],
        "message": text,
        **target,
    }
    address = {key: value for key, value in where.items() if key in {"room", "to"}}
    assert list(frame.items()) == [
        ("id", answer["message_id"]),
        ("type", json.loads(body)["type"]),
        *address.items(),
        ("data", json.loads(body)["data"]),
        ("timestamp", answer["timestamp"]),
    ]


def bearer(admin: Admin) -> tuple[str, str]:
    return "-H", f"Authorization: Bearer {admin.token}"


def cookie(admin: Admin) -> tuple[str, str, str, str]:
    return "-b", f"falcon_auth_token={admin.token}", "-H", f"Origin: {admin.origin}"


@pytest.mark.parametrize("way", [bearer, cookie])
def test_broadcast(
    admin: Admin, alice: Client, bob: Client, way: Callable[[Admin], Sequence[str]]
) -> None:
    answer = curl(admin, "/websocket/broadcast", MAINTENANCE, *way(admin))
    for client in (alice, bob):
        check(answer, "Message broadcast successfully", 2, client.hear(), MAINTENANCE)


def test_send_to_connection(admin: Admin, alice: Client, bob: Client) -> None:
    path = f"/websocket/connections/{alice.id}/message"
    answer = curl(admin, path, HELLO, *bearer(admin))
    frame = alice.hear()
    text = "Direct message sent successfully"
    check(answer, text, 1, frame, HELLO, connection_id=alice.id, to=alice.id)
    assert (alice.sync(), bob.sync()) == ([], [])


def test_send_to_user(admin: Admin, server: ServerProcess, alice: Client, bob: Client) -> None:
    second = server.connect(ALICE, 1)
    alice.sync()
    bob.sync()
    answer = curl(admin, "/websocket/users/alice/message", ATTENTION, *bearer(admin))
    text = "User message sent successfully"
    for client in (alice, second):
        check(answer, text, 2, client.hear(), ATTENTION, user_id=ALICE, to="user:alice")
    assert bob.sync() == []
    second.close()


def test_send_to_room(
    admin: Admin, server: ServerProcess, alice: Client, bob: Client, fleet: str
) -> None:
    outsider = server.connect("carol", 3)
    path = f"/websocket/rooms/{fleet}/message"
    answer = curl(admin, path, ANNOUNCEMENT, *bearer(admin))
    text = "Room message sent successfully"
    for client in (alice, bob):
        check(answer, text, 2, client.hear(), ANNOUNCEMENT, room_id=fleet, room=fleet)
    assert outsider.sync() == []
    outsider.close()


def test_the_shape_of_sent_frames_octet_for_octet(admin: Admin, alice: Client) -> None:
    """The examples of the frames, sent by an operator: same keys, same order, same values."""
    profile = (
        b'{"user_id":"uuid-string","character_id":123456789,"profile":'
        b'{"character_name":"Updated Name","last_login":"2024-01-01T12:00:00Z"}}'
    )
    group = (
        b'{"user_id":"uuid-string","group_id":"group-object-id",'
        b'"group_name":"Fleet Commanders","joined":true}'
    )
    kinds = {"user_profile_update": profile, "group_membership_change": group}
    for kind, data in kinds.items():
        body = b'{"type":"' + kind.encode() + b'","data":' + data + b"}"
        headers = {**admin.bearer(), "Content-Type": "application/json"}
        answer = admin.ask("POST", "/websocket/users/alice/message", headers=headers, body=body)
        frame = alice.wire.frame().payload
        expected = b'{"id":"%b","type":"%b","to":"user:alice","data":%b,"timestamp":"%b"}' % tuple(
            part if isinstance(part, bytes) else part.encode()
            for part in (answer.json["message_id"], kind, data, answer.json["timestamp"])
        )
        assert frame == expected


def test_numbers_and_texts_reach_clients_unchanged(admin: Admin, alice: Client) -> None:
    data = (
        b'{"max":18446744073709551615,"min":-9223372036854775808,"float":0.1,'
        b'"text":"<img onerror=alert(1)> \\u2028 \xf0\x9f\x9a\x80","null":null,"deep":[[[{}]]]}'
    )
    body = b'{"type":"message","data":' + data + b"}"
    headers = {**admin.bearer(), "Content-Type": "application/json; charset=UTF-8"}
    answer = admin.ask("POST", "/websocket/users/alice/message", headers=headers, body=body)
    assert answer.status == 200
    assert json.loads(alice.wire.frame().payload)["data"] == json.loads(data)
    assert b"18446744073709551615" in body


def test_data_may_be_empty(admin: Admin, alice: Client) -> None:
    assert admin.post("/websocket/broadcast", {"type": "presence", "data": {}}).status == 200
    assert "data" not in alice.hear()


def test_broadcast_to_nobody_succeeds_and_says_so(admin: Admin, server: ServerProcess) -> None:
    eventually(lambda: server.connections() == 0, "everybody is gone")
    answer = admin.post("/websocket/broadcast", {"type": "message", "data": {}})
    assert answer.json["recipients_count"] == 0
