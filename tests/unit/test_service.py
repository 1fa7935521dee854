"""The service: what operators and host programs may do, on a node with fake transports."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import AsyncIterator

import pytest

from falcon_fast import gateway as module
from falcon_fast import rooms
from falcon_fast.codes import CloseReason
from falcon_fast.errors import BusUnavailable, DirectoryUnavailable, NotFoundError
from falcon_fast.service import MAX_LIMIT, Page, Service

from ..support.directory import group
from ..support.gateway import ADDRESS, Client, Node, said
from ..support.loop import FakeTimeLoop, turns

loop_factory = FakeTimeLoop

FLEET = group(1, "Fleet Commanders")
ROOM = f"group:{FLEET.id}"


class _Listener:
    def close(self) -> None:
        pass


@pytest.fixture
async def node(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    async def listen(door: object, **_: object) -> _Listener:
        return _Listener()

    monkeypatch.setattr(module, "listen", listen)
    made = Node(max_connections_per_user=100)
    await made.gateway.start()
    yield made
    await made.gateway.close()


@pytest.fixture
def service(node: Node) -> Service:
    return Service(node.gateway, node.directory, node.revoker)


async def everything(service: Service, limit: int, **filters: object) -> list[str]:
    """Page through the connections and return their ids."""
    found: list[str] = []
    start: str | None = ""
    while start is not None:
        page = await service.list_connections(limit=limit, start=start, **filters)  # type: ignore[arg-type]
        assert len(page.items) <= limit
        found += [item.id for item in page.items]
        start = page.next
    return found


# --- connections ----------------------------------------------------------------------------------


async def test_a_connection_is_described(node: Node, service: Service) -> None:
    client = await node.connect("alice", FLEET, character_id=42)
    created = node.clock.time()
    node.clock.advance(5.0)
    client.send({"type": "heartbeat"})
    node.clock.advance(2.0)
    info = await service.get_connection(client.id)
    assert info.id == client.id
    assert (info.user_id, info.character_id, info.character_name) == ("alice", 42, "Alice")
    assert info.rooms == ("user:alice", ROOM)
    assert info.created_at == pytest.approx(created, abs=0.1)
    assert info.last_ping == pytest.approx(created + 5.0, abs=0.1)
    assert (info.node_id, info.remote_address) == (node.gateway.node_id, ADDRESS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.user_id = "bob"  # type: ignore[misc]


async def test_filters_combine_with_and(node: Node, service: Service) -> None:
    one = await node.connect("alice", FLEET, character_id=1)
    two = await node.connect("alice", character_id=2)
    three = await node.connect("bob", FLEET, character_id=1)
    four = await node.connect("carol", character_id=1)
    all_ids = [one.id, two.id, three.id, four.id]
    assert await everything(service, 2) == all_ids
    assert await everything(service, 2, user_id="alice") == [one.id, two.id]
    assert await everything(service, 1, character_id=1) == [one.id, three.id, four.id]
    assert await everything(service, 1, room_id=ROOM) == [one.id, two.id, three.id]
    assert await everything(service, 9, user_id="alice", character_id=2) == [two.id]
    assert await everything(service, 9, user_id="bob", room_id=ROOM) == [three.id]
    assert await everything(service, 9, user_id="carol", room_id=ROOM) == []
    assert await everything(service, 9, user_id="nobody") == []
    assert await everything(service, 9, room_id="group:none") == []
    page = await service.list_connections(room_id=ROOM, limit=1)
    assert (page.total, page.partial) == (3, ())


async def test_who_stays_is_listed_once_while_others_come_and_go(
    node: Node, service: Service
) -> None:
    staying = [await node.connect(f"stay{number}") for number in range(12)]
    leaving = [await node.connect(f"leave{number}") for number in range(12)]
    wanted = {client.id for client in staying}
    found: list[str] = []
    start: str | None = ""
    while start is not None:
        page = await service.list_connections(limit=3, start=start)
        found += [item.id for item in page.items]
        start = page.next
        if leaving:
            leaving.pop().leave()
            leaving.pop(0).leave()
            await turns()
            await node.connect(f"new{len(leaving)}")
    assert [ident for ident in found if ident in wanted] == [client.id for client in staying]


@pytest.mark.parametrize("limit, held", [(-5, 1), (0, 1), (10**9, MAX_LIMIT)])
async def test_limits_are_held(node: Node, service: Service, limit: int, held: int) -> None:
    for number in range(3):
        await node.connect(f"user{number}")
    assert len((await service.list_connections(limit=limit)).items) == min(held, 3)
    assert len((await service.list_rooms(limit=limit)).items) == min(held, 3)


async def test_a_connection_that_ends_while_its_page_is_made_is_left_out(
    node: Node, service: Service
) -> None:
    clients = [await node.connect(f"user{number}") for number in range(40)]
    last = clients[-1].id
    made = service.list_connections(limit=100)
    step = made.__await__()
    next(step)  # the first few are described, and the loop has its turn
    clients[-1].leave()
    page: Page[object] | None = None
    try:
        while True:
            next(step)
    except StopIteration as ended:
        page = ended.value
    assert page is not None
    assert len(page.items) == 39
    assert last not in {getattr(item, "id", None) for item in page.items}


async def test_closing_tells_the_client_not_to_come_back(node: Node, service: Service) -> None:
    client = await node.connect("alice")
    ident = client.id
    await service.close_connection(ident)
    assert client.closed == said(CloseReason.KICKED)
    with pytest.raises(NotFoundError, match=r"^Connection not found$"):
        await service.close_connection(ident)
    with pytest.raises(NotFoundError, match=r"^Connection not found$"):
        await service.get_connection(ident)


# --- rooms ----------------------------------------------------------------------------------------


async def test_rooms_are_listed_and_described(node: Node, service: Service) -> None:
    alice = await node.connect("alice", FLEET)
    bob = await node.connect("bob", FLEET)
    page = await service.list_rooms()
    assert [(info.id, info.type, info.name, info.member_count) for info in page.items] == [
        (ROOM, "group", "Group: Fleet Commanders", 2),
        ("user:alice", "personal", rooms.PERSONAL_TITLE, 1),
        ("user:bob", "personal", rooms.PERSONAL_TITLE, 1),
    ]
    assert (page.total, page.next) == (3, None)
    personal = await service.list_rooms(kind="personal", limit=1)
    assert ([info.id for info in personal.items], personal.total) == (["user:alice"], 2)
    assert personal.next is not None
    rest = await service.list_rooms(kind="personal", limit=1, start=personal.next)
    assert ([info.id for info in rest.items], rest.next) == (["user:bob"], None)
    details = await service.get_room(ROOM)
    assert details.members == (alice.id, bob.id)
    with pytest.raises(NotFoundError, match=r"^Room not found$"):
        await service.get_room("group:" + "0" * 24)


async def test_rooms_of_a_member(node: Node, service: Service) -> None:
    alice = await node.connect("alice", FLEET)
    await node.connect("bob")
    page = await service.list_rooms(member_id=alice.id, limit=1)
    assert ([info.id for info in page.items], page.total) == ([ROOM], 2)
    assert page.next is not None
    page = await service.list_rooms(member_id=alice.id, limit=1, start=page.next)
    assert ([info.id for info in page.items], page.next) == (["user:alice"], None)
    page = await service.list_rooms(member_id=alice.id, kind="group")
    assert ([info.id for info in page.items], page.total) == ([ROOM], 1)
    page = await service.list_rooms(member_id="nobody")
    assert (page.items, page.total, page.next) == ((), 0, None)


async def test_a_room_the_member_leaves_moves_no_other_of_its_rooms(
    node: Node, service: Service
) -> None:
    alice = await node.connect("alice", *(group(number) for number in range(1, 5)))
    first = await service.list_rooms(member_id=alice.id, limit=3)
    await alice.ask({"type": "system", "data": {"action": "leave", "room": first.items[1].id}})
    assert first.next is not None
    rest = await service.list_rooms(member_id=alice.id, limit=3, start=first.next)
    listed = [info.id for info in (*first.items, *rest.items)]
    assert listed == [*(f"group:{group(number).id}" for number in range(1, 5)), "user:alice"]
    assert (rest.total, rest.next) == (4, None)


# --- messages -------------------------------------------------------------------------------------


async def test_each_way_of_sending_reaches_whom_it_is_for(node: Node, service: Service) -> None:
    alice, again = await node.connect("alice", FLEET), await node.connect("alice")
    bob, carol = await node.connect("bob", FLEET), await node.connect("carol")
    clients: dict[str, Client] = {"alice": alice, "again": again, "bob": bob, "carol": carol}
    data = {"title": "T", "n": 2**64 - 1}

    async def heard(expected: set[str], ident: str, **address: str) -> None:
        await turns()
        for name, client in clients.items():
            frames = client.take()
            if name not in expected:
                assert frames == []
                continue
            [frame] = frames
            assert frame.pop("timestamp").endswith("Z")
            assert frame == {"id": ident, "type": "notification", "data": data, **address}

    for client in clients.values():
        client.take()
    sent = await service.broadcast("notification", data)
    assert sent.recipients_count == 4
    assert uuid.UUID(sent.message_id).version == 4
    assert sent.timestamp == node.clock.time()
    await heard({"alice", "again", "bob", "carol"}, sent.message_id)
    sent = await service.send_to_connection(bob.id, "notification", data)
    assert sent.recipients_count == 1
    await heard({"bob"}, sent.message_id, to=bob.id)
    sent = await service.send_to_user("alice", "notification", data)
    assert sent.recipients_count == 2
    await heard({"alice", "again"}, sent.message_id, to="user:alice")
    sent = await service.send_to_room(ROOM, "notification", data)
    assert sent.recipients_count == 3
    await heard({"alice", "again", "bob"}, sent.message_id, room=ROOM)


async def test_sending_to_what_is_not_there(service: Service) -> None:
    with pytest.raises(NotFoundError, match=r"^Connection not found$"):
        await service.send_to_connection("nobody", "message", {})
    with pytest.raises(NotFoundError, match=r"^No active connections found for user$"):
        await service.send_to_user("nobody", "message", {})
    with pytest.raises(NotFoundError, match=r"^Room not found$"):
        await service.send_to_room("group:" + "0" * 24, "message", {})
    assert (await service.broadcast("message", {})).recipients_count == 0


async def test_what_cannot_be_sent_is_refused(service: Service) -> None:
    with pytest.raises(ValueError, match=r"^type must be one of .*message.*, not 'ack'$"):
        await service.broadcast("ack", {})
    with pytest.raises(ValueError, match=r"^data must be JSON"):
        await service.broadcast("message", {"x": object()})


async def test_nodes_that_were_not_told_are_never_passed_over(node: Node, service: Service) -> None:
    client = await node.connect("alice")
    node.bus.cut = True
    with pytest.raises(BusUnavailable):
        await service.broadcast("message", {"x": 1})
    await turns()
    assert [frame["data"] for frame in client.take()] == [{"x": 1}]


async def test_the_seeds_own_events(node: Node, service: Service) -> None:
    client = await node.connect("alice")
    profile = {"character_name": "Updated Name", "last_login": "2024-01-01T12:00:00Z"}
    sent = await service.broadcast_user_profile_update("alice", 123456789, profile)
    assert sent.recipients_count == 1
    await turns()
    [frame] = client.take()
    assert frame["type"] == "user_profile_update"
    assert frame["data"].pop("timestamp") == frame["timestamp"]
    assert frame["data"] == {
        "user_id": "alice",
        "character_id": 123456789,
        "profile": profile,
    }
    assert (await service.broadcast_user_profile_update("nobody", 1, {})).recipients_count == 0
    sent = await service.send_system_message("Maintenance at 3", {"severity": "warning"})
    assert sent.recipients_count == 1
    await turns()
    [frame] = client.take()
    assert frame["type"] == "system_notification"
    assert frame["data"] == {"severity": "warning", "message": "Maintenance at 3"}


# --- membership -----------------------------------------------------------------------------------


async def test_a_removal_takes_effect_before_the_directory_answers(
    node: Node, service: Service
) -> None:
    alice = await node.connect("alice", FLEET, character_id=7)
    bob = await node.connect("bob", FLEET, character_id=8)
    alice.take()
    node.directory.error = DirectoryUnavailable("down")
    with pytest.raises(DirectoryUnavailable):
        await service.broadcast_group_membership_change(8, FLEET.id, FLEET.name, joined=False)
    assert bob.rooms == ["user:bob"]
    await service.send_to_room(ROOM, "message", {"x": 1})
    await turns()
    frames = bob.take()
    assert [frame["type"] for frame in frames] == ["group_membership_change"]
    with pytest.raises(DirectoryUnavailable):
        await service.broadcast_group_membership_change(8, FLEET.id, FLEET.name, joined=True)
    assert frames[0]["data"]["joined"] is False
    assert frames[0]["data"]["group_name"] == FLEET.name
    assert [frame["type"] for frame in alice.take()] == ["room_update", "message"]


async def test_a_new_member_is_let_in_when_the_directory_confirms(
    node: Node, service: Service
) -> None:
    bob = await node.connect("bob", character_id=8)
    await service.broadcast_group_membership_change(8, FLEET.id, FLEET.name, joined=True)
    assert bob.rooms == ["user:bob"]
    node.directory.put("bob", FLEET)
    await service.broadcast_group_membership_change(8, FLEET.id, FLEET.name, joined=True)
    assert bob.rooms == ["user:bob", ROOM]
    await turns()
    [frame] = [one for one in bob.take() if one["type"] == "group_membership_change"]
    assert (frame["data"]["group_id"], frame["data"]["joined"]) == (FLEET.id, True)
    # Nobody is connected for this one.
    await service.broadcast_group_membership_change(99, FLEET.id, FLEET.name, joined=True)


# --- revoked tokens -------------------------------------------------------------------------------


async def test_tokens_are_revoked_listed_and_given_back(node: Node, service: Service) -> None:
    now = int(node.clock.time())
    alice = await node.connect("alice")
    rules = [
        await service.revoke_token("t", now + 60),
        await service.revoke_user("alice", now + 1),
        await service.revoke_all(1, expires_at=now + 60),
    ]
    assert alice.closed == said(CloseReason.REVOKED)
    assert [rule.kind for rule in rules] == ["token", "user", "all"]
    page = await service.list_revocations()
    assert page.items == tuple(sorted(rules, key=lambda rule: rule.id))
    assert (page.total, page.next) == (3, None)
    first = await service.list_revocations(limit=2)
    rest = await service.list_revocations(limit=2, start=first.next or "")
    assert first.items + rest.items == page.items
    assert (first.total, rest.next) == (3, None)
    await service.withdraw_revocation(rules[1].id)
    assert (await service.list_revocations()).total == 2
    with pytest.raises(NotFoundError, match="Revocation not found"):
        await service.withdraw_revocation(rules[1].id)


# --- status ---------------------------------------------------------------------------------------


async def test_status_statistics_and_drain(node: Node, service: Service) -> None:
    client = await node.connect("alice")
    await service.broadcast("message", {})
    status = await service.status()
    assert (status["status"], status["node_id"]) == ("healthy", node.gateway.node_id)
    statistics = await service.statistics()
    assert statistics.active_connections == 1
    assert statistics.messages_processed == 1
    await service.drain()
    assert client.closed == said(CloseReason.SERVICE_RESTART)
    assert (await service.status())["status"] == "unhealthy"
