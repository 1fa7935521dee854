"""The gateway: births, admission, changes of membership, limits, bans, drain, status."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn, cast

import orjson
import pytest

from falcon_fast import gateway as module
from falcon_fast.admission import ADMISSION_TIMEOUT
from falcon_fast.auth import TokenVerifier
from falcon_fast.bus import Target
from falcon_fast.clock import rfc3339
from falcon_fast.codes import CloseReason
from falcon_fast.directory import Group
from falcon_fast.errors import DirectoryUnavailable
from falcon_fast.handshake import Accept, Endpoint, Refuse, Request, parse_head
from falcon_fast.keys import KeySet
from falcon_fast.session import State

from ..support.directory import group
from ..support.frames import text
from ..support.gateway import ADDRESS, SETTINGS, Client, Json, Node, said
from ..support.heads import MINIMAL, swap
from ..support.keys import issuer, key_set
from ..support.loop import FakeTimeLoop, turns
from ..support.transport import FakeTransport

loop_factory = FakeTimeLoop

FLEET = group(1, "Fleet Commanders")
ROOM = f"group:{FLEET.id}"
OTHER = group(2, "Others")
OTHER_ROOM = f"group:{OTHER.id}"


class Server:
    """What `listen` returns, without a socket."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Node]]:
    """Return a function that makes a node; all are closed at the end."""
    nodes: list[Node] = []
    # The jitter of retries and drains: the middle of its range.
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)

    async def listen(door: object, **_: object) -> Server:
        return Server()

    monkeypatch.setattr(module, "listen", listen)
    monkeypatch.setattr(module, "server_port", lambda server: 4711)

    def build(**changes: Any) -> Node:  # noqa: ANN401
        nodes.append(Node(**changes))
        return nodes[-1]

    yield build
    for node in nodes:
        await node.gateway.close()
        assert node.is_empty, "something was left behind"


@pytest.fixture
async def node(make: Callable[..., Node]) -> Node:
    node = make(ping_interval=0.0)
    await node.gateway.start()
    return node


def request(node: Node, head: bytes = MINIMAL) -> Request:
    parsed = parse_head(head, node.gateway.policy)
    assert isinstance(parsed, Request)
    return parsed


def asking(node: Node, user_id: str) -> Request:
    token = node.token(user_id).encode()
    return request(node, swap(MINIMAL, b"Authorization", b"Bearer " + token))


def actions(frames: list[Json]) -> list[str]:
    return [frame["data"].get("action", frame["type"]) for frame in frames]


# --- start and stop -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host, shown",
    [
        ("", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
        ("2001:db8::1", "[2001:db8::1]"),
        ("example.org", "example.org"),
    ],
)
async def test_the_url_clients_of_this_machine_use(
    make: Callable[..., Node], host: str, shown: str
) -> None:
    node = make(host=host)
    await node.gateway.start()
    assert node.gateway.port == 4711
    assert node.gateway.url == f"ws://{shown}:4711/websocket/connect"


async def test_the_url_with_a_certificate(make: Callable[..., Node]) -> None:
    node = make()
    node.gateway._tls = ssl.create_default_context()
    await node.gateway.start()
    assert node.gateway.url.startswith("wss://")


async def test_there_is_no_port_before_the_start(make: Callable[..., Node]) -> None:
    with pytest.raises(RuntimeError, match="not listening"):
        _ = make().gateway.port


async def test_closing_ends_everything_and_may_be_done_twice(node: Node) -> None:
    server = cast("Server", node.gateway._server)
    ann = await node.connect("ann", FLEET)
    node.directory.hold()
    bob = node.dial("bob")
    await turns()
    assert len(node.gateway.admissions._asked) == 1
    await node.gateway.close()
    await node.gateway.close()
    assert server.closed == 1
    assert ann.transport.aborted
    assert bob.transport.aborted
    assert node.is_empty


async def test_who_is_upgraded_when_all_is_over_is_let_go(node: Node) -> None:
    await node.gateway.close()
    late = node.dial("ann")
    assert late.transport.aborted
    assert node.is_empty


# --- Z07, births: admission, and closes in the middle of it ---------------------------------------


async def test_early_messages_wait_for_the_rooms(node: Node) -> None:
    node.directory.hold()
    early = text(json.dumps({"id": "1", "type": "message", "room": ROOM}))
    ann = node.dial("ann", FLEET, early=early)
    await turns()
    assert actions(ann.take()) == ["system_notification"]
    node.directory.release()
    await turns()
    frames = ann.take()
    assert actions(frames[:1]) == ["joined"]
    assert [(one["type"], one["id"]) for one in frames[1:]] == [("message", "1")]


@pytest.mark.parametrize("how", ["leave", "vanish"])
@pytest.mark.parametrize("answer", ["groups", "unavailable", "timeout", "bug"])
async def test_z07_gone_while_its_groups_are_looked_up(node: Node, how: str, answer: str) -> None:
    node.directory.hold()
    if answer == "unavailable":
        node.directory.error = DirectoryUnavailable("away")
    elif answer == "bug":
        node.directory.error = ValueError("a bug")
    ann = node.dial("ann", FLEET)
    await turns()
    session = ann.session
    if how == "vanish":
        ann.vanish()
    else:
        node.gateway.core.close(session.conn, CloseReason.NORMAL)
    if answer == "timeout":
        await asyncio.sleep(6)
    node.directory.release()
    await asyncio.sleep(60)
    assert session.state is State.CLOSED
    assert node.is_empty
    assert node.gateway.status()["status"] == "healthy"


async def test_z07_gone_while_its_groups_are_asked_for_again(node: Node) -> None:
    node.directory.error = DirectoryUnavailable("away")
    ann = await node.connect("ann", FLEET)
    assert node.gateway.status()["status"] == "degraded"
    ann.leave()
    assert node.gateway.status()["status"] == "healthy"
    node.directory.error = None
    await asyncio.sleep(60)
    assert node.is_empty


async def test_z07_its_first_message_is_its_last(node: Node) -> None:
    watcher = await node.connect("eve", FLEET)
    watch = {"type": "system", "data": {"action": "subscribe_presence", "user_id": "ann"}}
    await watcher.ask(watch)
    node.dial("ann", FLEET, early=text("{") * 10)
    await asyncio.sleep(10)
    told = [one["data"]["status"] for one in watcher.take() if one["type"] == "presence"]
    assert told == ["online", "offline"]


async def test_a_directory_that_breaks_its_promise_ends_the_connection(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.directory.error = ValueError("a bug")
    ann = node.dial("ann")
    await turns()
    assert ann.closed == said(CloseReason.INTERNAL_ERROR)
    assert "a connection failed" in caplog.text


async def test_no_slot_is_left(
    make: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "WAITING_ABOVE_FULL", 0)
    node = make(max_connections=1)
    await node.gateway.start()
    await node.connect("ann")
    bob = node.dial("bob")
    assert bob.transport.aborted
    assert "no room for another connection" in caplog.text
    assert list(node.directory.tracked) == ["ann"]


async def test_a_question_without_an_answer_is_given_up_in_its_turn(node: Node) -> None:
    node.directory.hold()
    ann = node.dial("ann")
    await turns()
    node.clock.advance(ADMISSION_TIMEOUT / 2)
    bob = node.dial("bob")
    gone = node.dial("gone")
    await turns()
    for client, waited in ((ann, ADMISSION_TIMEOUT / 2), (bob, ADMISSION_TIMEOUT / 2)):
        assert [frame["data"].get("action") for frame in client.take()] == [None]
        node.clock.advance(waited)
        gone.leave()
        await turns()
        assert [frame["data"].get("action") for frame in client.take()] == ["rooms_pending"]
    node.directory.release()
    assert gone.closed is not None
    await node.gateway.close()


async def test_a_question_that_fails_when_the_node_has_closed(node: Node) -> None:
    node.directory.hold()
    ann = node.dial("ann")
    await turns()
    answer = node.gateway.admissions._asked[0][1]
    assert ann.session is not None
    node.gateway.admissions.close()
    await turns()
    assert answer.cancelled()
    failed: asyncio.Future[frozenset[Group]] = asyncio.get_running_loop().create_future()
    failed.set_exception(DirectoryUnavailable("too late"))
    node.gateway.admissions._answered(ann.session, failed)
    assert len(ann.take()) == 1


async def test_a_directory_that_fails_to_take_a_question_ends_the_connection(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> NoReturn:
        raise ValueError("a bug")

    monkeypatch.setattr(node.directory, "groups_of", broken)
    ann = node.dial("ann")
    await turns()
    assert ann.closed == said(CloseReason.INTERNAL_ERROR)


async def test_rooms_that_cannot_be_entered_end_the_connection(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> NoReturn:
        raise ValueError("a bug")

    ann = node.dial("ann", FLEET)
    monkeypatch.setattr(node.gateway.rooms, "join", broken)
    await turns()
    assert ann.closed == said(CloseReason.INTERNAL_ERROR)


# --- pending rooms --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["unavailable", "timeout"])
async def test_pending_rooms_are_told_and_asked_for_again(node: Node, how: str) -> None:
    if how == "timeout":
        node.directory.hold()
    else:
        node.directory.error = DirectoryUnavailable("away")
    ann = node.dial("ann", FLEET)
    await asyncio.sleep(5.1 if how == "timeout" else 0.1)
    welcome, pending = ann.take()
    assert welcome["type"] == "system_notification"
    assert pending == {
        "type": "room_update",
        "data": {"action": "rooms_pending", "retryable": True},
        "timestamp": pending["timestamp"],
    }
    assert node.gateway.status()["status"] == "degraded"
    # It keeps its personal room, and may speak.
    assert ann.rooms == ["user:ann"]
    assert [one["type"] for one in await ann.ask({"type": "heartbeat"})] == ["presence"]
    # A change is not for it: what it asks for next is newer.
    node.directory.tell("ann")
    assert ann.rooms == ["user:ann"]
    node.directory.error = None
    node.directory.release()
    await asyncio.sleep(0.6)
    assert [one["data"] for one in ann.take()] == [
        {"action": "joined", "rooms": ["user:ann", ROOM]}
    ]
    assert node.gateway.status()["status"] == "healthy"


async def test_the_time_between_two_attempts_doubles_up_to_a_limit(node: Node) -> None:
    node.directory.error = DirectoryUnavailable("away")
    start = node.clock.monotonic()
    asked: list[float] = []

    async def groups_of(user_id: str, character_id: int) -> frozenset[object]:
        asked.append(node.clock.monotonic() - start)
        raise DirectoryUnavailable("away")

    node.directory.groups_of = groups_of  # type: ignore[method-assign,assignment]
    await node.connect("ann")
    await asyncio.sleep(62)
    assert asked == pytest.approx([0, 0.5, 1.5, 3.5, 7.5, 15.5, 30.5, 45.5, 60.5])


# --- changes of membership ------------------------------------------------------------------------


def changed(node: Node, joined: bool, number: int, name: str) -> Json:
    stamp = rfc3339(node.clock.time())
    return {
        "type": "group_membership_change",
        "data": {
            "user_id": "ann",
            "group_id": f"{number:024x}",
            "group_name": name,
            "joined": joined,
            "timestamp": stamp,
        },
        "timestamp": stamp,
    }


async def test_a_change_moves_all_connections_of_the_user_and_tells_each_once(node: Node) -> None:
    anns = [await node.connect("ann", FLEET) for _ in range(2)]
    bob = await node.connect("bob", FLEET)
    for client in (*anns, bob):
        client.take()
    node.directory.tell("ann", [OTHER])
    await turns()
    for ann in anns:
        assert ann.rooms == ["user:ann", OTHER_ROOM]
        frames = [one for one in ann.take() if one["type"] == "group_membership_change"]
        assert frames == [
            changed(node, False, 1, "Fleet Commanders"),
            changed(node, True, 2, "Others"),
        ]
    assert actions(bob.take()) == ["member_left", "member_left"]
    node.directory.tell("ann")
    await turns()
    assert [ann.take() for ann in anns] == [[], []]


async def test_z04_what_is_said_after_a_removal_is_not_heard_and_before_it_is(node: Node) -> None:
    ann, bob = await node.connect("ann", FLEET), await node.connect("bob", FLEET)
    ann.take()
    bob.send({"id": "before", "type": "message", "room": ROOM})
    node.directory.tell("ann", [])
    bob.send({"id": "after", "type": "message", "room": ROOM})
    await turns()
    assert [one["id"] for one in ann.take() if one["type"] == "message"] == ["before"]
    assert [one["id"] for one in bob.take() if one["type"] == "message"] == ["before", "after"]


async def test_z04_a_change_overtakes_the_answer_of_an_admission(node: Node) -> None:
    node.directory.hold()
    ann = node.dial("ann", FLEET)
    await turns()
    # Removed before the older answer arrives: the directory tells it again afterwards.
    node.directory.tell("ann", [])
    node.directory.release()
    await turns()
    node.directory.tell("ann")
    await turns()
    assert ann.rooms == ["user:ann"]


async def test_a_change_while_one_connection_is_being_admitted(node: Node) -> None:
    first = await node.connect("ann", FLEET)
    node.directory.hold()
    second = node.dial("ann")
    await turns()
    node.directory.tell("ann", [FLEET, OTHER])
    assert first.rooms == ["user:ann", ROOM, OTHER_ROOM]
    assert second.rooms == ["user:ann"]
    node.directory.release()
    await turns()
    node.directory.tell("ann")
    assert second.rooms == ["user:ann", ROOM, OTHER_ROOM]


async def test_a_room_the_client_left_is_not_joined_by_a_change(node: Node) -> None:
    ann = await node.connect("ann", FLEET)
    await ann.ask({"type": "system", "room": ROOM, "data": {"action": "leave"}})
    node.directory.tell("ann", [FLEET, OTHER])
    assert ann.rooms == ["user:ann", OTHER_ROOM]


async def test_a_change_for_nobody(node: Node) -> None:
    node.gateway.memberships.on_change("nobody", frozenset([FLEET]))
    assert len(node.gateway.rooms) == 0


async def test_an_event_of_a_removal_is_believed_at_once(node: Node) -> None:
    ann, bob = await node.connect("ann", FLEET), await node.connect("bob", character_id=8)
    node.directory.put("ann", OTHER)
    node.directory.hold()
    event = asyncio.ensure_future(
        node.gateway.memberships.changed(None, 7, FLEET.id, "Fleet", joined=False)
    )
    await turns()
    assert ann.rooms == ["user:ann"]
    node.directory.release()
    await event
    await turns()
    assert ann.rooms == ["user:ann", OTHER_ROOM]
    told = [one["data"] for one in ann.take() if one["type"] == "group_membership_change"]
    assert [(one["group_name"], one["joined"]) for one in told] == [
        ("Fleet", False),
        ("Others", True),
    ]
    assert bob.take() == []


async def test_an_event_of_a_removal_needs_no_directory(node: Node) -> None:
    """Two users with tokens of one character, one of whom had left the room by itself."""
    ann, eve = await node.connect("ann", FLEET), await node.connect("eve", FLEET)
    await eve.ask({"type": "system", "data": {"action": "leave", "room": ROOM}})
    bob = await node.connect("bob", FLEET)
    node.directory.error = DirectoryUnavailable("away")
    with pytest.raises(DirectoryUnavailable):
        await node.gateway.memberships.changed("ann", 7, FLEET.id, "Fleet", joined=False)
    assert (ann.rooms, bob.rooms, eve.rooms) == (["user:ann"], ["user:bob"], ["user:eve"])
    (answer,) = await eve.ask(
        {"type": "system", "id": "j", "data": {"action": "join", "room": ROOM}}
    )
    assert answer["data"]["code"] == "forbidden"


async def test_an_event_of_a_join_is_checked_first(node: Node) -> None:
    ann = await node.connect("ann")
    await node.gateway.memberships.changed("ann", 7, FLEET.id, "Fleet", joined=True)
    assert ann.rooms == ["user:ann"]
    node.directory.put("ann", FLEET)
    await node.gateway.memberships.changed("ann", 7, FLEET.id, "Fleet", joined=True)
    assert ann.rooms == ["user:ann", ROOM]
    await node.gateway.memberships.changed("nobody", 99, FLEET.id, "Fleet", joined=False)
    assert node.directory.refreshed == ["ann", "ann"]


async def test_a_renamed_group_renames_its_room(node: Node) -> None:
    await node.connect("ann", FLEET)
    node.directory.tell("ann", [dataclasses.replace(FLEET, name="Armada")])
    info = node.gateway.rooms.info(ROOM)
    assert info is not None
    assert info.name == "Group: Armada"
    node.gateway.rooms.retitle("group:of nobody", "Nobody")
    assert node.gateway.rooms.info("group:of nobody") is None


async def test_the_name_of_a_profile_replaces_that_of_the_token(node: Node) -> None:
    ann, alt = await node.connect("ann"), await node.connect("ann", character_id=8)
    node.directory.name("ann", 7, "Ann the Second")
    node.directory.name("nobody", 7, "Nobody")
    assert ann.session.identity.character_name == "Ann the Second"
    assert alt.session.identity.character_name == "Ann"
    assert ann.session.identity == dataclasses.replace(
        alt.session.identity, character_id=7, character_name="Ann the Second"
    )


async def test_z04_a_removal_while_other_nodes_are_asked_to_send(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the answer and the end of the admission a change is for the newcomer too."""
    asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    rooms = node.gateway.rooms
    # Once the room is there, not before.
    monkeypatch.setattr(
        node.bus, "follow", lambda name: asked if name == ROOM and name in rooms else None
    )
    monkeypatch.setattr(rooms, "_opened", node.gateway._room_opened)
    monkeypatch.setattr(node.gateway.admissions, "_alone", False)
    ann = node.dial("ann", FLEET, OTHER)
    await turns()
    assert ann.rooms == ["user:ann", ROOM, OTHER_ROOM]
    node.directory.tell("ann", [OTHER])
    assert ann.rooms == ["user:ann", OTHER_ROOM]
    asked.set_result(None)
    await turns()
    data = [frame["data"] for frame in ann.take()]
    assert {"action": "joined", "rooms": ["user:ann", OTHER_ROOM]} in data
    ann.leave()
    await turns()
    assert node.is_empty


async def test_a_refresh_after_the_end_does_nothing(node: Node) -> None:
    ann = await node.connect("ann")
    node.directory.hold()
    await ann.ask({"type": "auth", "data": {"token": node.token("ann")}})
    ann.leave()
    node.directory.put("ann", FLEET)
    node.directory.release()
    await turns()
    assert node.is_empty


async def test_a_refresh_while_the_directory_is_away_changes_nothing(node: Node) -> None:
    ann = await node.connect("ann", FLEET)
    node.directory.error = DirectoryUnavailable("away")
    await ann.ask({"type": "auth", "data": {"token": node.token("ann")}})
    assert ann.rooms == ["user:ann", ROOM]
    assert ann.is_open


# --- limits ---------------------------------------------------------------------------------------


async def test_rooms_above_the_limit_are_refused_in_one_error(make: Callable[..., Node]) -> None:
    node = make(max_rooms=3)
    await node.gateway.start()
    ann = node.dial("ann", *[group(number) for number in range(5)])
    await turns()
    frames = ann.take()
    limit = {
        "code": "limit",
        "message": "3 rooms were not joined: a connection may be in so many rooms at most",
        "retryable": False,
    }
    assert [one["data"] for one in frames if one["type"] == "error"] == [limit]
    # The personal room first.
    assert ann.rooms == ["user:ann", f"group:{group(0).id}", f"group:{group(1).id}"]
    node.directory.tell("ann", [group(number) for number in range(1, 6)])
    await turns()
    assert len(ann.rooms) == 3
    refused = [one["data"] for one in ann.take() if one["type"] == "error"]
    assert refused == [limit]


async def test_connections_above_the_limit_of_a_user_are_refused(make: Callable[..., Node]) -> None:
    node = make(max_connections_per_user=2)
    await node.gateway.start()
    anns = [await node.connect("ann") for _ in range(2)]
    third = node.dial("ann")
    await turns()
    assert third.closed == said(CloseReason.CONNECTION_LIMIT)
    assert third.closed == (4409, "too many connections of this user")
    assert third.take() == []
    assert [ann.closed for ann in anns] == [None, None]
    await node.connect("bob")
    anns[0].leave()
    await node.connect("ann")


async def test_the_oldest_connection_is_replaced(make: Callable[..., Node]) -> None:
    node = make(max_connections_per_user=2, connection_limit_policy="replace")
    await node.gateway.start()
    anns: list[Client] = []
    for _ in range(3):
        anns.append(await node.connect("ann"))
        await asyncio.sleep(1)
    assert anns[0].closed == said(CloseReason.REPLACED) == (4410, "replaced by a newer connection")
    assert [ann.closed for ann in anns[1:]] == [None, None]


async def test_replacing_the_only_connection_is_no_news(make: Callable[..., Node]) -> None:
    node = make(max_connections_per_user=1, connection_limit_policy="replace", ping_interval=0.0)
    await node.gateway.start()
    watcher = await node.connect("eve", FLEET)
    data = {"action": "subscribe_presence", "user_id": "ann"}
    first = await node.connect("ann", FLEET)
    await watcher.ask({"type": "system", "data": data})
    second = await node.connect("ann")
    await asyncio.sleep(10)
    assert first.closed == said(CloseReason.REPLACED)
    assert second.rooms == ["user:ann", ROOM]
    assert list(node.directory.tracked) == ["eve", "ann"]
    assert [one for one in watcher.take() if one["type"] == "presence"] == []


async def test_online_is_told_by_whoever_of_the_user_is_admitted_first(node: Node) -> None:
    watcher = await node.connect("eve", FLEET)
    data = {"action": "subscribe_presence", "user_id": "ann"}
    await watcher.ask({"type": "system", "data": data})
    node.directory.hold()
    first = node.dial("ann", FLEET)
    node.dial("ann")
    await turns()
    first.leave()
    node.directory.release()
    await turns()
    told = [one["data"]["status"] for one in watcher.take() if one["type"] == "presence"]
    assert told == ["online"]
    await node.connect("ann")
    assert [one for one in watcher.take() if one["type"] == "presence"] == []


async def test_large_rooms_are_told_a_count_once_a_second(make: Callable[..., Node]) -> None:
    node = make(room_events_max=2)
    await node.gateway.start()
    ann = await node.connect("ann", FLEET)
    for name in ("bob", "eve", "joe"):
        await node.connect(name, FLEET)
    assert [one["data"]["action"] for one in ann.take()] == ["member_joined"]
    await asyncio.sleep(1.1)
    assert [one["data"] for one in ann.take()] == [
        {"action": "member_count", "member_count": 4, "room_id": ROOM}
    ]


async def test_room_changes_while_other_nodes_are_out_of_reach(node: Node) -> None:
    ann = await node.connect("ann", FLEET)
    node.bus.cut = True
    bob = await node.connect("bob", FLEET)
    bob.leave()
    await turns()
    assert actions(ann.take()) == ["member_joined", "member_left"]


# --- the end of a token, bans ---------------------------------------------------------------------


async def test_the_end_of_the_token_ends_the_connection(node: Node) -> None:
    ann = await node.connect("ann", ttl=60)
    await asyncio.sleep(59)
    assert ann.is_open
    await asyncio.sleep(1.5)
    assert ann.closed == said(CloseReason.TOKEN_EXPIRED) == (4401, "token expired")


async def test_a_refreshed_token_goes_on(node: Node) -> None:
    ann = await node.connect("ann", ttl=60)
    await asyncio.sleep(50)
    await ann.ask({"type": "auth", "data": {"token": node.token("ann", ttl=100)}})
    await asyncio.sleep(90)
    assert ann.is_open
    await asyncio.sleep(20)
    assert ann.closed == said(CloseReason.TOKEN_EXPIRED)


async def test_a_token_that_ended_during_the_handshake(node: Node) -> None:
    ann = node.dial("ann", ttl=-3)
    await asyncio.sleep(1.5)
    assert ann.closed == said(CloseReason.TOKEN_EXPIRED)


async def test_a_ban_ends_all_connections_of_the_user_and_no_other(node: Node) -> None:
    anns = [await node.connect("ann", FLEET) for _ in range(2)]
    node.directory.hold()
    anns.append(node.dial("ann"))
    bob = node.dial("bob")
    await turns()
    node.directory.ban("ann")
    assert {ann.closed for ann in anns} == {said(CloseReason.REVOKED)}
    assert said(CloseReason.REVOKED) == (4403, "access revoked")
    assert bob.is_open
    assert list(node.directory.tracked) == ["bob"]
    node.directory.release()
    await turns()


# --- the door -------------------------------------------------------------------------------------


async def test_a_request_with_a_token_is_accepted(node: Node) -> None:
    accept = node.gateway.decide(asking(node, "ann"), ADDRESS)
    assert isinstance(accept, Accept)
    assert (accept.identity.user_id, accept.remote_address) == ("ann", ADDRESS)


async def test_a_banned_user_is_refused(node: Node) -> None:
    node.directory.banned.add("ann")
    refuse = node.gateway.decide(asking(node, "ann"), ADDRESS)
    assert isinstance(refuse, Refuse)
    assert (refuse.status, refuse.label) == (403, "banned")


async def test_a_full_node(make: Callable[..., Node]) -> None:
    node = make(max_connections=1)
    await node.gateway.start()
    before = node.gateway.max_waiting
    ann = await node.connect("ann")
    assert node.gateway.max_waiting == before - 1
    refuse = node.gateway.decide(asking(node, "bob"), ADDRESS)
    assert isinstance(refuse, Refuse)
    assert (refuse.status, refuse.label) == (503, "full")
    assert ("Retry-After", "5") in refuse.headers
    ann.leave()
    assert isinstance(node.gateway.decide(asking(node, "bob"), ADDRESS), Accept)


async def test_an_address_that_knocks_too_often(make: Callable[..., Node]) -> None:
    node = make(connection_rate=20.0, connection_burst=3, trusted_proxies=("10.0.0.0/8",))
    await node.gateway.start()
    # Refused ones count as well.
    for _ in range(3):
        refuse = node.gateway.decide(request(node), ADDRESS)
        assert isinstance(refuse, Refuse)
        assert refuse.status == 401
    refuse = node.gateway.decide(asking(node, "ann"), ADDRESS)
    assert isinstance(refuse, Refuse)
    assert (refuse.status, refuse.label) == (429, "too_many_connections")
    assert ("Retry-After", "1") in refuse.headers
    assert isinstance(node.gateway.decide(asking(node, "ann"), "192.0.2.8"), Accept)
    # Behind a trusted proxy it is the client's address that counts.
    token = node.token("ann").encode()
    head = swap(MINIMAL, b"Authorization", b"Bearer " + token)
    head = swap(head, b"X-Forwarded-For", ADDRESS.encode())
    refuse = node.gateway.decide(request(node, head), "10.1.2.3")
    assert isinstance(refuse, Refuse)
    assert refuse.status == 429
    await asyncio.sleep(0.06)
    assert isinstance(node.gateway.decide(asking(node, "ann"), ADDRESS), Accept)


async def test_the_plain_endpoints(node: Node) -> None:
    head, _, body = node.gateway.answer(Endpoint("status")).partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[:2] == [
        b"HTTP/1.1 200 OK",
        b"Content-Type: application/json; charset=utf-8",
    ]
    assert orjson.loads(body) == node.gateway.status()
    assert node.gateway.answer(Endpoint("healthz")).endswith(b"\r\n\r\nok\n")
    assert node.gateway.answer(Endpoint("readyz")).startswith(b"HTTP/1.1 200 OK\r\n")
    await node.gateway.drain()
    ready = node.gateway.answer(Endpoint("readyz"))
    assert ready.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert ready.endswith(b"\r\n\r\ndraining\n")
    assert node.gateway.answer(Endpoint("healthz")).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_without_the_directory_the_node_is_not_ready_and_stays_alive(node: Node) -> None:
    node.directory.is_available = False
    ready = node.gateway.answer(Endpoint("readyz"))
    assert ready.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert ready.endswith(b"\r\n\r\nusers and groups are unavailable\n")
    for path in ("status", "healthz"):
        assert node.gateway.answer(Endpoint(path)).startswith(b"HTTP/1.1 200 OK\r\n")
    assert node.gateway.status()["status"] == "degraded"
    node.directory.is_available = True
    assert node.gateway.answer(Endpoint("readyz")).startswith(b"HTTP/1.1 200 OK\r\n")
    assert node.gateway.status()["status"] == "healthy"


async def test_without_keys_for_tokens_nobody_is_told_that_their_token_is_bad(node: Node) -> None:
    keys = KeySet(("EdDSA",), issuer="go-falcon")
    node.gateway._verifier = TokenVerifier(keys, clock=node.clock)
    refuse = node.gateway.decide(asking(node, "ann"), ADDRESS)
    assert isinstance(refuse, Refuse)
    assert (refuse.status, refuse.label) == (503, "no_keys")
    assert ("Retry-After", "5") in refuse.headers
    ready = node.gateway.answer(Endpoint("readyz"))
    assert ready.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert ready.endswith(b"\r\n\r\nthere are no keys for tokens yet\n")
    keys.replace(key_set(issuer("EdDSA").jwk("k")))
    assert node.gateway.answer(Endpoint("readyz")).startswith(b"HTTP/1.1 200 OK\r\n")
    refuse = node.gateway.decide(asking(node, "ann"), ADDRESS)
    assert isinstance(refuse, Refuse)
    assert (refuse.status, refuse.label) == (401, "bad_token")


# --- drain ----------------------------------------------------------------------------------------


async def test_draining_refuses_newcomers_and_sends_everybody_away(node: Node) -> None:
    clients = [await node.connect(f"u{number}") for number in range(300)]
    start = node.clock.monotonic()
    drain = asyncio.ensure_future(node.gateway.drain())
    await turns()
    refuse = node.gateway.decide(asking(node, "ann"), ADDRESS)
    assert isinstance(refuse, Refuse)
    assert (refuse.status, refuse.label) == (503, "draining")
    assert ("Retry-After", "2") in refuse.headers
    # A third at once, the others a tenth of a second apart.
    assert sum(client.closed is not None for client in clients) == 100
    late = node.dial("late")
    await drain
    assert {client.closed for client in (*clients, late)} == {said(CloseReason.SERVICE_RESTART)}
    assert said(CloseReason.SERVICE_RESTART) == (1012, "service restart")
    assert node.clock.monotonic() - start == pytest.approx(1.2, abs=0.01)
    assert node.gateway.status()["status"] == "unhealthy"


async def test_draining_keeps_to_its_time(
    make: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make(drain_timeout=1.0)
    await node.gateway.start()
    for number in range(200):
        await node.connect(f"u{number}")
    monkeypatch.setattr(module, "DRAIN_RATE", 10.0)
    start = node.clock.monotonic()
    await node.gateway.drain()
    assert node.clock.monotonic() - start <= 1.0
    assert node.gateway.core.count == 0


async def test_draining_an_empty_node_takes_no_time(node: Node) -> None:
    start = node.clock.monotonic()
    await node.gateway.drain()
    assert node.clock.monotonic() == start


# --- deliveries, status ---------------------------------------------------------------------------


async def test_deliver_returns_how_many_connections_get_it(node: Node) -> None:
    ann, bob = await node.connect("ann", FLEET), await node.connect("bob")
    await node.connect("ann")
    deliver = node.gateway.deliver
    assert deliver(Target.ROOM, ROOM, b"{}") == 2
    assert deliver(Target.ROOM, OTHER_ROOM, b"{}") == 0
    assert deliver(Target.USER, "ann", b"{}") == 2
    assert deliver(Target.USER, "nobody", b"{}") == 0
    assert deliver(Target.CONNECTION, bob.id, b"{}") == 1
    assert deliver(Target.CONNECTION, "nobody", b"{}") == 0
    assert deliver(Target.ALL, "", b"{}") == 3
    await turns()
    ann.take()
    assert bob.take() == [{}, {}]


async def test_the_status_of_a_node(make: Callable[..., Node]) -> None:
    node = make(websocket_url="wss://example.org/websocket/connect")
    await node.gateway.start()
    assert node.gateway.statistics().last_connection_time is None
    ann = await node.connect("ann", FLEET)
    (await node.connect("bob", FLEET)).leave()
    connected = node.clock.time()
    await ann.ask({"type": "heartbeat"})
    await node.gateway.send(Target.USER, "ann", b"{}")
    status = node.gateway.status()
    stats = cast("dict[str, object]", status["stats"])
    # Two welcomes, two lists of rooms, member_joined and member_left, the reply, the send.
    assert stats == {
        "total_connections": 2,
        "active_connections": 1,
        "total_rooms": 2,
        "messages_processed": 2,
        "messages_broadcast": 8,
        "last_connection_time": rfc3339(connected),
    }
    assert (status["module"], status["status"], status["nodes"]) == ("websocket", "healthy", 1)
    assert status["node_id"] == node.gateway.node_id
    assert status["websocket_url"] == "wss://example.org/websocket/connect"
    assert node.gateway.find(ann.id) is ann.session
    assert node.gateway.find("nobody") is None


async def test_connections_and_refusals_are_counted_by_their_reason(node: Node) -> None:
    ann = await node.connect("ann")
    ann.session.close(CloseReason.KICKED)
    node.gateway.refused(Refuse.of(404, "not_found"))
    assert node.gateway.closes[CloseReason.KICKED] == 1
    assert node.gateway.handshakes == {"accepted": 1, "not_found": 1}
    assert node.gateway.lag.counts[0] == sum(node.gateway.lag.counts)


@pytest.mark.parametrize("level", ["DEBUG", "WARNING"])
async def test_a_connection_gets_one_line(
    node: Node, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(level, logger="falcon_fast.gateway")
    ann = await node.connect("ann")
    ann.put(text("{") * 10)
    closed = [one for one in caplog.records if one.getMessage() == "connection closed"]
    assert len(closed) == (level == "DEBUG")
    for record in closed:
        assert getattr(record, "reason", None) == "too_many_errors"
        assert getattr(record, "code", None) == 1008


async def test_a_policy_from_the_settings(make: Callable[..., Node]) -> None:
    node = make(
        cookie_auth=False,
        allowed_origins=("*", "https://example.org"),
        trusted_proxies=("10.0.0.0/8", "fd00::/8"),
        max_head_bytes=4_096,
    )
    policy = node.gateway.policy
    assert policy.allow_any_origin
    assert policy.allowed_origins == frozenset({"https://example.org"})
    assert [str(network) for network in policy.trusted_proxies] == ["10.0.0.0/8", "fd00::/8"]
    assert policy.max_head_bytes == 4_096
    assert policy.path == SETTINGS.websocket_path


async def test_a_slow_client_is_told_so_and_let_go(make: Callable[..., Node]) -> None:
    node = make(max_queue_messages=4, ping_interval=0.0)
    await node.gateway.start()
    transport = FakeTransport(high=10)
    ann = node.dial("ann", FLEET, transport=transport)
    await turns()
    bob = await node.connect("bob", FLEET)
    await turns()
    transport.stall()
    for _ in range(20):
        await bob.ask({"type": "message", "room": ROOM})
    transport.drain()
    await turns()
    assert ann.closed == said(CloseReason.SLOW_CONSUMER) == (4000, "slow consumer")
    assert bob.is_open
