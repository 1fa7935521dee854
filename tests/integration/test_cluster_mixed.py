"""Nodes of ours and of the original program in one cluster: each client gets each message once."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from ..support.client import Client, Message
from ..support.cluster import Cluster
from ..support.original_node import CHANNELS, MESSAGES, ROOMS, SYSTEM, USERS, Imagined, OriginalNode
from ..support.server import eventually

pytestmark = pytest.mark.integration

_numbers = itertools.count(1)


@dataclass
class Mixed:
    """Two members of one room on nodes of ours, two on original nodes, and one of each outside."""

    cluster: Cluster
    original: OriginalNode
    other: OriginalNode
    room: str
    ann: Client
    bob: Client
    eve: Client
    olga: Imagined
    oscar: Imagined
    outsider: Imagined

    @property
    def ours(self) -> list[Client]:
        return [self.ann, self.bob, self.eve]

    @property
    def theirs(self) -> list[Imagined]:
        return [self.olga, self.oscar, self.outsider]

    def heard_here(self, wanted: Callable[[Message], bool]) -> list[list[Message]]:
        """Return what our clients have heard of a kind, after all that was sent before."""
        # What is behind it on the same channel has been handled when this has come.
        mark = f"mark-{next(_numbers)}"
        for send in (self.original.broadcast, self.original.send_system):
            send("notification", {"mark": mark})
        for user in ("ann", "bob", "eve"):
            self.original.send_to_user(user, "notification", {"mark": mark})
        found = []
        for client in self.ours:
            heard: list[Message] = []
            for _ in range(3):
                while (message := client.hear()).get("data", {}).get("mark") != mark:
                    heard.append(message)
            heard += client.sync()
            found.append([message for message in heard if wanted(message)])
        return found

    def heard_there(self, wanted: Callable[[Message], bool]) -> list[list[Message]]:
        """Return what clients of the original nodes have heard of a kind, after it is quiet."""
        mark = f"mark-{next(_numbers)}"
        answer = self.cluster[0].admin.post(
            "/websocket/broadcast", {"type": "notification", "data": {"mark": mark}}
        )
        assert answer.status == 200, answer
        found = []
        for imagined in self.theirs:
            eventually(partial(imagined.has_heard, mark), "the mark comes")
            found.append([message for message in imagined.messages if wanted(message)])
            imagined.heard.clear()
        return found


@pytest.fixture
def mixed(cluster: Cluster) -> Iterator[Mixed]:
    number = next(_numbers)
    room = cluster.group(f"Mixed {number}", 1, 2)
    with OriginalNode(cluster.redis) as original, OriginalNode(cluster.redis) as other:
        ann, bob = cluster[0].connect("ann", 1), cluster[1].connect("bob", 2)
        eve = cluster[2].connect("eve", 3)
        mixed = Mixed(
            cluster,
            original,
            other,
            room,
            ann,
            bob,
            eve,
            olga=original.connect("olga", room),
            oscar=other.connect("oscar", room),
            outsider=other.connect("outsider", "group:" + "9" * 24),
        )
        # Greetings of those who have just come are not what the tests are about.
        mixed.heard_here(lambda message: True)
        mixed.heard_there(lambda message: True)
        for client in mixed.ours:
            client.sync()
        yield mixed
        for client in mixed.ours:
            client.close()
        assert original.refused == other.refused == []


def is_kind(kind: str) -> Callable[[Message], bool]:
    return lambda message: message["type"] == kind


def test_a_message_of_our_client_reaches_every_member_once(mixed: Mixed) -> None:
    data = {"text": "<b>é\u2028", "n": 7}
    mixed.ann.say(type="message", id="m-1", room=mixed.room, data=data)
    there = mixed.heard_there(is_kind("message"))
    here = mixed.heard_here(is_kind("message"))
    assert [len(heard) for heard in here + there] == [1, 1, 0, 1, 1, 0]
    sent = here[0][0]
    assert (sent["id"], sent["from"], sent["data"]) == ("m-1", mixed.ann.id, data)
    assert here[1][0] == sent
    # Go writes a timestamp without its trailing zeros, which is the same moment.
    for heard in (there[0][0], there[1][0]):
        assert {**heard, "timestamp": 0} == {**sent, "timestamp": 0}


def test_a_room_message_of_an_original_node_reaches_every_member_once(mixed: Mixed) -> None:
    sent = mixed.original.send_to_room(
        mixed.room, "message", {"n": 1, "html": "<>&"}, id="o-1", **{"from": mixed.olga.id}
    )
    mixed.other.wait_for(1)
    eventually(lambda: len(mixed.oscar.heard) == 1, "oscar hears it")
    assert [len(client.heard) for client in mixed.theirs] == [1, 1, 0]
    here = mixed.heard_here(is_kind("message"))
    assert here == [[sent], [sent], []]


def test_user_messages_of_both_kinds(mixed: Mixed) -> None:
    admin = mixed.cluster[2].admin
    also_ann = mixed.original.connect("ann")
    answer = admin.post("/websocket/users/ann/message", {"type": "notification", "data": {"n": 1}})
    assert (answer.status, answer.json["recipients_count"]) == (200, 1)
    # How many got it on original nodes is not known, and that is said.
    assert mixed.original.server_id in answer.json.get("partial", [])
    eventually(lambda: len(also_ann.heard) == 1, "the original node routes it to the user")
    assert also_ann.messages[0]["data"] == {"n": 1, "user_id": "ann"}
    here = mixed.heard_here(lambda m: m["type"] == "notification" and "n" in m["data"])
    assert [[m["data"] for m in heard] for heard in here] == [[{"n": 1}], [], []]
    sent = mixed.original.send_to_user("bob", "notification", {"n": 2})
    here = mixed.heard_here(lambda m: m["type"] == "notification" and "n" in m["data"])
    assert here == [[], [sent], []]


def test_a_message_to_one_connection(mixed: Mixed) -> None:
    sent = mixed.original.send_to_connection(mixed.bob.id, "message", {"n": 1})
    assert mixed.heard_here(is_kind("message")) == [[], [sent], []]
    admin = mixed.cluster[0].admin
    answer = admin.post(
        f"/websocket/connections/{mixed.olga.id}/message", {"type": "message", "data": {"n": 2}}
    )
    assert answer.status in {200, 503}, answer
    there = mixed.heard_there(is_kind("message"))
    if answer.status == 200:
        assert [len(heard) for heard in there] == [1, 0, 0]
    else:
        assert there == [[], [], []]
    assert mixed.heard_here(is_kind("message")) == [[], [], []]


@pytest.mark.parametrize("way", ["broadcast", "send_system"])
def test_everybody_hears_what_an_original_node_says_to_all(mixed: Mixed, way: str) -> None:
    sent = getattr(mixed.original, way)("critical_alert", {"n": 1})
    assert mixed.heard_here(is_kind("critical_alert")) == [[sent]] * 3


def test_everybody_hears_what_our_api_says_to_all(mixed: Mixed) -> None:
    answer = mixed.cluster[1].admin.post(
        "/websocket/broadcast", {"type": "backend_status", "data": {"n": 1}}
    )
    assert (answer.status, answer.json["recipients_count"]) == (200, 3)
    there = mixed.heard_there(is_kind("backend_status"))
    here = mixed.heard_here(is_kind("backend_status"))
    assert [len(heard) for heard in here + there] == [1] * 6
    assert {heard[0]["id"] for heard in here + there} == {answer.json["message_id"]}


def test_members_who_come_and_go(mixed: Mixed) -> None:
    def told(action: str) -> Callable[[Message], bool]:
        return lambda message: (
            message["type"] == "room_update"
            and (message["data"]["action"] == action and message["room"] == mixed.room)
        )

    mixed.cluster.group(f"More {next(_numbers)}", 4)
    with mixed.cluster[0].server.store() as store:
        store.add_member(mixed.room.removeprefix("group:"), 4)
    dan = mixed.cluster[2].connect("dan", 4)
    there = mixed.heard_there(told("member_joined"))
    here = mixed.heard_here(told("member_joined"))
    assert [len(heard) for heard in here + there] == [1, 1, 0, 1, 1, 0]
    for heard in (*here[:2], *there[:2]):
        assert heard[0]["data"]["connection_id"] == dan.id
    assert [heard[0]["data"]["member_count"] for heard in here[:2]] == [3, 3]
    dan.close()
    eventually(lambda: mixed.cluster[2].server.connections() == 1, "dan is gone")
    there = mixed.heard_there(told("member_left"))
    here = mixed.heard_here(told("member_left"))
    assert [len(heard) for heard in here + there] == [1, 1, 0, 1, 1, 0]
    assert [heard[0]["data"]["member_count"] for heard in here[:2]] == [2, 2]


def test_a_membership_change_told_by_an_original_node_takes_effect(mixed: Mixed) -> None:
    group = mixed.room.removeprefix("group:")
    with mixed.cluster[0].server.store() as store:
        store.remove_member(group, 2)
    mixed.original.send_to_user(
        "bob",
        "group_membership_change",
        {
            "user_id": "bob",
            "group_id": group,
            "group_name": "Mixed",
            "joined": False,
            "timestamp": "2026-01-02T03:04:05Z",
        },
    )
    time.sleep(1.0)
    mixed.ann.say(type="message", room=mixed.room, data={"n": 1})
    assert [len(heard) for heard in mixed.heard_here(is_kind("message"))] == [1, 0, 0]


def test_what_goes_over_the_channels_is_the_originals_envelope_and_more(mixed: Mixed) -> None:
    mixed.ann.say(type="message", id="m-1", room=mixed.room, data={"n": 1})
    admin = mixed.cluster[0].admin
    for path in ("broadcast", "users/bob/message", f"rooms/{mixed.room}/message"):
        answer = admin.post(f"/websocket/{path}", {"type": "notification", "data": {"n": 2}})
        assert answer.status == 200, answer
    mixed.heard_there(is_kind("message"))
    nodes = {node.node_id for node in mixed.cluster}
    kinds = set()
    latest: dict[tuple[str, str], int] = {}
    for channel, octets in mixed.original.seen:
        envelope = json.loads(octets)
        if envelope["server_id"] not in nodes:
            continue
        kinds.add(channel)
        assert {"server_id", "message", "timestamp", "seq", "epoch", "v"} <= envelope.keys()
        message = envelope["message"]
        assert message.keys() <= {"id", "type", "room", "from", "to", "data", "timestamp"}
        assert channel != ROOMS or message["room"]
        assert channel != USERS or message["data"]["user_id"]
        assert channel != MESSAGES or message["to"]
        # Each node counts what it sends in each channel, without a gap.
        key = (envelope["server_id"], channel)
        assert envelope["seq"] == latest.get(key, envelope["seq"] - 1) + 1
        latest[key] = envelope["seq"]
    assert {ROOMS, USERS, SYSTEM} <= kinds <= set(CHANNELS)


def test_original_nodes_are_counted_as_nodes(mixed: Mixed) -> None:
    mixed.heard_here(lambda message: True)
    before = [node.status()["nodes"] for node in mixed.cluster]
    with OriginalNode(mixed.cluster.redis) as third:
        third.broadcast("notification", {})
        eventually(
            lambda: [node.status()["nodes"] - 1 for node in mixed.cluster] == before,
            "every node knows of one more",
        )
    assert [node.readiness() for node in mixed.cluster] == [200] * 3
