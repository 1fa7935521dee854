"""Several nodes on one switchboard: counts, presence, direct messages, kicks, listings, losses."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from falcon_fast.bus import Loss, Target
from falcon_fast.cluster import ASK_TIMEOUT, GONE, SILENT
from falcon_fast.codes import CloseReason
from falcon_fast.errors import (
    BusUnavailable,
    DirectoryUnavailable,
    NodesUnavailable,
    NotFoundError,
)
from falcon_fast.presence import GRACE

from ..support.directory import group
from ..support.gateway import Client, Json, said
from ..support.loop import FakeTimeLoop, turns
from ..support.nodes import LATER, Nodes

loop_factory = FakeTimeLoop

FLEET = group(1, "Fleet Commanders")
ROOM = f"group:{FLEET.id}"
OTHERS = group(2, "Others")


@pytest.fixture
async def nodes(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Nodes]:
    made = Nodes(monkeypatch, 3)
    await made.start()
    yield made
    await made.close()


def updates(client: Client) -> list[Json]:
    """Return the data of the room updates a client got."""
    return [frame["data"] for frame in client.take() if frame["type"] == "room_update"]


async def test_nodes_know_each_other(nodes: Nodes) -> None:
    for node in nodes.nodes:
        assert node.gateway.cluster.nodes == 3
        assert node.gateway.status()["nodes"] == 3


async def test_a_message_reaches_every_member_once(nodes: Nodes) -> None:
    ann = await nodes.connect(0, "ann", FLEET)
    bob = await nodes.connect(1, "bob", FLEET)
    cat = await nodes.connect(2, "cat", OTHERS)
    for client in (ann, bob, cat):
        client.take()
    ann.send({"id": "1", "type": "message", "room": ROOM, "data": {"n": 1}})
    await turns(LATER)
    [here], [there] = ann.take(), bob.take()
    assert here == there
    assert (here["id"], here["from"], here["data"]) == ("1", ann.id, {"n": 1})
    assert cat.take() == []


async def test_an_answer_undoes_nothing_that_was_told_after_it(nodes: Nodes) -> None:
    silent = nodes[2].gateway.node_id
    nodes.board.lose = lambda sender, receiver: sender == silent
    ann = await nodes.connect(0, "ann", FLEET)  # asks, and waits for the silent one
    await nodes.connect(1, "bob", FLEET)
    await asyncio.sleep(ASK_TIMEOUT + 0.1)
    ann.take()
    await nodes.connect(0, "cat", FLEET)
    assert [told["member_count"] for told in updates(ann)] == [3]


async def test_members_elsewhere_are_counted(nodes: Nodes) -> None:
    ann = await nodes.connect(0, "ann", FLEET)
    bob = await nodes.connect(1, "bob", FLEET)
    [joined] = updates(ann)
    assert (joined["action"], joined["member_count"]) == ("member_joined", 2)
    assert joined["connection_id"] == bob.id
    again = await nodes.connect(1, "bea", FLEET)
    assert [told["member_count"] for told in (*updates(ann), *updates(bob))] == [3, 3]
    again.leave()
    await turns(LATER)
    assert [told["member_count"] for told in (*updates(ann), *updates(bob))] == [2, 2]
    bob.leave()
    await turns(LATER)
    [left] = updates(ann)
    assert (left["action"], left["member_count"]) == ("member_left", 1)


async def test_a_room_that_opens_here_learns_of_its_members_elsewhere(nodes: Nodes) -> None:
    for number in range(4):
        await nodes.connect(0, f"a{number}", FLEET)
    bob = await nodes.connect(1, "bob", FLEET)
    bea = await nodes.connect(1, "bea", FLEET)
    assert [told["member_count"] for told in updates(bob)] == [6]
    assert updates(bea) == []


async def test_a_large_room_is_told_of_numbers_once_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = Nodes(monkeypatch, 2, room_events_max=2)
    await nodes.start()
    ann = await nodes.connect(0, "ann", FLEET)
    bob = await nodes.connect(1, "bob", FLEET)
    await nodes.connect(1, "bea", FLEET)
    ann.take(), bob.take()
    await asyncio.sleep(2.5)
    assert updates(ann) == [{"action": "member_count", "member_count": 3, "room_id": ROOM}]
    assert updates(bob) == [{"action": "member_count", "member_count": 3, "room_id": ROOM}]
    await asyncio.sleep(3.0)
    assert updates(ann) == updates(bob) == []
    await nodes.close()


async def test_z08_a_direct_message_finds_its_receiver_on_another_node(nodes: Nodes) -> None:
    ann = await nodes.connect(0, "ann", FLEET)
    bob = await nodes.connect(1, "bob", FLEET)
    cat = await nodes.connect(2, "cat", OTHERS)
    for client in (ann, bob, cat):
        client.take()

    async def ask(to: str) -> Json:
        ann.send({"id": "1", "type": "message", "to": to, "data": {"n": 1}})
        await turns(LATER)
        [answer] = ann.take()
        return answer

    for to in (bob.id, "user:bob", bob.id):
        assert (await ask(to))["type"] == "ack"
        [heard] = bob.take()
        assert (heard["from"], heard["to"], heard["data"]) == (ann.id, to, {"n": 1})
    for to in (cat.id, "user:cat"):
        assert (await ask(to))["data"]["code"] == "forbidden"
    for to in ("nobody", "user:nobody"):
        assert (await ask(to))["data"]["code"] == "not_found"
    assert cat.take() == []


async def test_a_message_to_a_user_reaches_all_of_them(nodes: Nodes) -> None:
    ann = await nodes.connect(0, "ann", FLEET)
    bobs = [await nodes.connect(number, "bob", FLEET) for number in range(3)]
    for client in (ann, *bobs):
        client.take()
    ann.send({"id": "1", "type": "message", "to": "user:bob"})
    await turns(LATER)
    assert [frame["type"] for frame in ann.take()] == ["ack"]
    assert [[frame["id"] for frame in bob.take()] for bob in bobs] == [["1"]] * 3


async def test_a_receiver_that_has_moved_is_found_again(nodes: Nodes) -> None:
    ann = await nodes.connect(0, "ann", FLEET)
    bob = await nodes.connect(1, "bob", FLEET)
    ident = bob.id
    ann.send({"id": "1", "type": "message", "to": ident})
    await turns(LATER)
    bob.leave()
    await turns(LATER)
    ann.take()
    ann.send({"id": "2", "type": "message", "to": ident})
    await turns(LATER)
    assert [frame["data"]["code"] for frame in ann.take()] == ["not_found"]


async def test_a_node_that_does_not_answer_leaves_it_open_where_the_receiver_is(
    nodes: Nodes,
) -> None:
    ann = await nodes.connect(0, "ann", FLEET)
    nodes.kill(2)
    ann.send({"id": "1", "type": "message", "to": "somebody"})
    await asyncio.sleep(ASK_TIMEOUT + 0.1)
    [answer] = ann.take()
    assert (answer["data"]["code"], answer["data"]["retryable"]) == ("unavailable", True)


async def test_presence_across_nodes(nodes: Nodes) -> None:
    ann = await nodes.connect(0, "ann", FLEET)
    far = await nodes.connect(2, "far", OTHERS)
    for client in (ann, far):
        client.send({"type": "system", "data": {"action": "subscribe_presence", "user_id": "bob"}})
    await turns(LATER)

    def heard(client: Client) -> list[str]:
        return [f["data"]["status"] for f in client.take() if f["type"] == "presence"]

    first = await nodes.connect(1, "bob", FLEET)
    assert heard(ann) == ["online"]
    second = await nodes.connect(2, "bob", FLEET)
    first.leave()
    await asyncio.sleep(GRACE + 1)
    assert heard(ann) == []
    second.leave()
    await turns(LATER)
    assert heard(ann) == []
    await asyncio.sleep(GRACE + 1)
    assert heard(ann) == ["offline"]
    assert heard(far) == []


async def test_who_subscribes_later_hears_only_what_is_news(nodes: Nodes) -> None:
    bob = await nodes.connect(1, "bob", FLEET)
    ann = await nodes.connect(0, "ann", FLEET)
    ann.send({"type": "system", "data": {"action": "subscribe_presence", "user_id": "bob"}})
    await turns(LATER)
    ann.take()
    await nodes.connect(2, "bob", FLEET)
    assert [f for f in ann.take() if f["type"] == "presence"] == []
    bob.leave()
    await asyncio.sleep(GRACE + 1)
    assert [f for f in ann.take() if f["type"] == "presence"] == []


async def test_x14_p02_a_node_that_dies_takes_its_members_and_users_along(nodes: Nodes) -> None:
    ann = await nodes.connect(0, "ann", FLEET)
    await nodes.connect(1, "bob", FLEET)
    ann.send({"type": "system", "data": {"action": "subscribe_presence", "user_id": "bob"}})
    await turns(LATER)
    ann.take()
    nodes.kill(1)
    for _ in range(2):
        await asyncio.sleep(GONE - 5)
        ann.send({"type": "heartbeat"})
        await turns()
    told = [f for f in ann.take() if f.get("data", {}).get("status") != "online"]
    assert [f["data"]["status"] for f in told if f["type"] == "presence"] == ["offline"]
    # What it has told its own clients last may never have left it.
    resync = {"action": "resync", "message": "messages may have been lost"}
    count = {"action": "member_count", "member_count": 1, "room_id": ROOM}
    frames = [f for f in told if f["type"] == "room_update"]
    assert sorted((f["data"] for f in frames), key=str) == sorted([resync, count], key=str)
    assert {f["room"] for f in frames} == {ROOM}
    assert nodes[0].gateway.cluster.nodes == 2


async def test_x14_who_shares_no_room_with_the_dead_is_not_bothered(nodes: Nodes) -> None:
    ann = await nodes.connect(0, "ann", FLEET)
    cat = await nodes.connect(0, "cat", OTHERS)
    eve = await nodes.connect(2, "eve", OTHERS)
    for user in ("bob", "bea"):
        await nodes.connect(1, user, FLEET)
    for client in (ann, cat, eve):
        client.take()
    nodes.kill(1)
    for _ in range(2):
        await asyncio.sleep(GONE - 5)
        for client in (ann, cat, eve):
            client.send({"type": "heartbeat"})
        await turns()
    assert [u["action"] for u in updates(ann)].count("resync") == 1
    assert updates(cat) == updates(eve) == []


async def test_x14_a_death_after_a_loss_of_everything_is_told_once(nodes: Nodes) -> None:
    ann = await nodes.connect(0, "ann", FLEET)
    await nodes.connect(1, "bob", FLEET)
    ann.take()
    gateway = nodes[0].gateway
    gateway.cluster.bury(nodes[1].gateway.node_id)
    gateway.lost(Loss(None, 0, frozenset(Target)))
    await asyncio.sleep(0.5)
    frames = [f for f in ann.take() if f["data"].get("action") == "resync"]
    assert [f.get("room") for f in frames] == [None]


async def test_x14_nobody_is_left_in_the_room_when_a_death_is_told(nodes: Nodes) -> None:
    ann = await nodes.connect(0, "ann", FLEET)
    await nodes.connect(1, "bob", FLEET)
    nodes[0].gateway.cluster.bury(nodes[1].gateway.node_id)
    ann.leave()
    await asyncio.sleep(0.5)
    assert ROOM not in nodes[0].gateway.rooms
    assert nodes[0].gateway.health == "healthy"


async def test_p04_a_node_that_stood_still_buries_nobody_and_comes_back(nodes: Nodes) -> None:
    ann = await nodes.connect(0, "ann", FLEET)
    bob = await nodes.connect(1, "bob", FLEET)
    ann.send({"type": "system", "data": {"action": "subscribe_presence", "user_id": "bob"}})
    await turns(LATER)
    ann.take()
    stopped = nodes[1].gateway.cluster
    assert stopped._beating is not None
    handle = stopped._beating
    handle.cancel()
    wire = nodes.board.wires.pop(nodes[1].gateway.node_id)

    def heard() -> list[str]:
        frames = [f for f in ann.take() if f["type"] == "presence"]
        return [f["data"]["status"] for f in frames if "user_id" in f["data"]]

    for _ in range(2):
        await asyncio.sleep(GONE - 5)
        for client in (ann, bob):
            client.send({"type": "heartbeat"})
        await turns()
    assert heard() == ["offline"]
    nodes.board.wires[nodes[1].gateway.node_id] = wire
    stopped._plan()
    stopped._beat()
    await turns(LATER)
    assert nodes[0].gateway.cluster.nodes == stopped.nodes == 3
    assert heard() == ["online"]


async def test_p04_the_silence_of_a_process_that_stood_still_is_its_own(nodes: Nodes) -> None:
    cluster = nodes[1].gateway.cluster
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FakeTimeLoop)
    loop.clock.advance(2 * GONE)
    await turns(LATER)
    assert cluster.nodes == 3
    await asyncio.sleep(2 * GONE)
    assert cluster.nodes == 3


async def test_a_node_that_leaves_says_so(nodes: Nodes) -> None:
    ann = await nodes.connect(0, "ann", FLEET)
    await nodes.connect(1, "bob", FLEET)
    ann.take()
    await nodes[1].gateway.close()
    await turns(LATER)
    assert nodes[0].gateway.cluster.nodes == 2
    await asyncio.sleep(2)
    told = updates(ann)
    assert told[-1]["member_count"] == 1
    assert "resync" not in {update["action"] for update in told}


async def test_what_operators_see_and_reach_is_the_whole_cluster(nodes: Nodes) -> None:
    clients = [await nodes.connect(n % 3, f"user{n}", FLEET) for n in range(7)]
    ids = sorted(client.id for client in clients)
    for service in nodes.services:
        page = await service.list_connections()
        assert (sorted(info.id for info in page.items), page.total) == (ids, 7)
        assert (page.next, page.partial) == (None, ())
        assert {info.node_id for info in page.items} == {n.gateway.node_id for n in nodes.nodes}
        found: list[str] = []
        start: str | None = ""
        while start is not None:
            page = await service.list_connections(limit=2, start=start, room_id=ROOM)
            assert (len(page.items) <= 2, page.total) == (True, 7)
            found += [info.id for info in page.items]
            start = page.next
        assert sorted(found) == ids
        details = await service.get_room(ROOM)
        assert (details.info.member_count, sorted(details.members)) == (7, ids)
        rooms = await service.list_rooms()
        assert rooms.total == len(rooms.items) == 8
        assert [room.member_count for room in rooms.items if room.id == ROOM] == [7]
        assert (await service.list_rooms(kind="group")).total == 1
        assert (await service.get_connection(clients[0].id)).user_id == "user0"
        of_member = await service.list_rooms(member_id=clients[1].id)
        assert [(r.id, r.member_count) for r in of_member.items] == [(ROOM, 7), ("user:user1", 1)]
        with pytest.raises(NotFoundError):
            await service.get_connection("nobody")
        with pytest.raises(NotFoundError):
            await service.get_room("group:" + "0" * 24)
        with pytest.raises(NotFoundError):
            await service.close_connection("nobody")


async def test_rooms_are_listed_by_name_page_after_page(nodes: Nodes) -> None:
    for number in range(12):
        await nodes.connect(number % 3, f"user{number:02}", FLEET)
    names = [ROOM, *(f"user:user{number:02}" for number in range(12))]
    found: list[str] = []
    start: str | None = ""
    while start is not None:
        page = await nodes.services[1].list_rooms(limit=5, start=start)
        assert page.total == 13
        found += [room.id for room in page.items]
        start = page.next
    assert found == names


async def test_recipients_are_counted_on_all_nodes(nodes: Nodes) -> None:
    ann = await nodes.connect(0, "ann", FLEET)
    bobs = [await nodes.connect(number, "bob", FLEET) for number in (1, 2)]
    for service in nodes.services:
        for client in (ann, *bobs):
            client.take()
        assert (await service.broadcast("notification", {"n": 1})).recipients_count == 3
        assert (await service.send_to_room(ROOM, "notification", {})).recipients_count == 3
        assert (await service.send_to_user("bob", "notification", {})).recipients_count == 2
        assert (await service.send_to_connection(ann.id, "notification", {})).recipients_count == 1
        sent = await service.send_to_user("bob", "notification", {"user_id": "other"})
        assert (sent.recipients_count, sent.partial) == (2, ())
        await turns(LATER)
        assert len(ann.take()) == 3
        assert [len(bob.take()) for bob in bobs] == [4, 4]
        for missing in (
            service.send_to_connection("nobody", "message", {}),
            service.send_to_user("nobody", "message", {}),
            service.send_to_room("group:" + "0" * 24, "message", {}),
        ):
            with pytest.raises(NotFoundError):
                await missing


async def test_a_kick_reaches_another_node(nodes: Nodes) -> None:
    ann = await nodes.connect(0, "ann", FLEET)
    await nodes.services[2].close_connection(ann.id)
    assert ann.closed == said(CloseReason.KICKED)


async def test_a_silent_node_is_named_and_then_not_waited_for(nodes: Nodes) -> None:
    await nodes.connect(0, "ann", FLEET)
    await nodes.connect(1, "bob", FLEET)
    loop = asyncio.get_running_loop()
    lost = nodes[1].gateway.node_id
    nodes.kill(1)
    service = nodes.services[0]
    for limit in (ASK_TIMEOUT + 0.01, 0.0):
        began = loop.time()
        page = await service.list_connections()
        assert (page.total, page.partial) == (1, (lost,))
        assert loop.time() - began <= limit
        sent = await service.send_to_room(ROOM, "notification", {})
        assert (sent.recipients_count, sent.partial) == (1, (lost,))
        rooms = await service.list_rooms()
        assert (rooms.partial, (await service.get_room(ROOM)).partial) == ((lost,), (lost,))
        with pytest.raises(NodesUnavailable, match=lost):
            await service.get_connection("elsewhere")
        with pytest.raises(NodesUnavailable):
            await service.send_to_connection("elsewhere", "message", {})
        await asyncio.sleep(SILENT)


async def test_without_a_link_this_node_goes_on_and_says_what_it_could_not_do(
    nodes: Nodes,
) -> None:
    ann = await nodes.connect(0, "ann", FLEET)
    bob = await nodes.connect(1, "bob", FLEET)
    ann.take(), bob.take()
    assert nodes[0].wire is not None
    nodes[0].wire.cut()
    gateway, service = nodes[0].gateway, nodes.services[0]
    status = gateway.status()
    assert status["status"] == "degraded"
    assert "out of reach" in str(status["message"])
    ann.send({"id": "1", "type": "message", "room": ROOM})
    await turns(LATER)
    assert [f["type"] for f in ann.take()] == ["message", "error"]
    for sent in (
        service.broadcast("message", {}),
        service.send_to_room(ROOM, "message", {}),
        service.send_to_user("ann", "message", {}),
    ):
        with pytest.raises(BusUnavailable):
            await sent
    # A connection is in one place: this one needs no other node.
    assert (await service.send_to_connection(ann.id, "message", {})).recipients_count == 1
    page = await service.list_connections()
    others = tuple(sorted(node.gateway.node_id for node in nodes.nodes[1:]))
    assert (page.total, page.partial) == (1, others)
    for _ in range(4):
        await asyncio.sleep(GONE - 5)
        for client in (ann, bob):
            client.send({"type": "heartbeat"})
    assert gateway.cluster.nodes == 3  # it was us who heard nothing
    nodes[0].wire.mend()
    await asyncio.sleep(1)
    assert [data["action"] for data in updates(ann)] == ["resync"]
    assert gateway.health == "healthy"
    assert (await service.list_connections()).total == 2
    # For bob ann's node was dead, until it was back.
    found = updates(bob)
    assert [told["member_count"] for told in found if "member_count" in told] == [1, 2]
    assert [told["action"] for told in found].count("resync") == 1


async def test_counts_that_were_missed_are_asked_for_again(nodes: Nodes) -> None:
    ann = await nodes.connect(0, "ann", FLEET)
    bob = await nodes.connect(1, "bob", FLEET)
    wire = nodes[0].wire
    assert wire is not None
    wire.cut()
    bob.leave()
    await nodes.connect(2, "cat", FLEET)
    await nodes.connect(2, "cleo", FLEET)
    wire.mend()
    await asyncio.sleep(1)
    await nodes.connect(0, "amy", FLEET)
    assert updates(ann)[-1]["member_count"] == 4


async def test_a_loss_is_told_once_to_everybody(nodes: Nodes) -> None:
    ann = await nodes.connect(0, "ann", FLEET)
    for number in (2, 3):
        nodes[0].gateway.lost(Loss("somebody", number, frozenset({Target.ROOM})))
    await asyncio.sleep(0.5)
    [told] = updates(ann)
    assert (told["action"], told["lost"]) == ("resync", 5)


async def test_nobody_hears_a_room_before_being_told_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rooms have to be followed first, which takes a while: others go on speaking meanwhile."""
    nodes = Nodes(monkeypatch, 2, sharded=True)
    nodes.board.turns_to_follow = 6
    await nodes.start()
    cat = await nodes.connect(1, "cat", FLEET)
    for user in ("a", "b", "c", "d"):
        client = nodes[1].dial(user, FLEET, OTHERS)
        heard = []
        for _ in range(LATER):
            cat.send({"type": "message", "room": ROOM})
            await asyncio.sleep(0)
            heard += client.take()
        kinds = [frame["type"] for frame in heard]
        assert kinds[:3] == ["system_notification", "room_update", "message"]
        assert heard[1]["data"]["action"] == "joined"
    await nodes.close()


async def test_who_goes_while_rooms_are_followed_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = Nodes(monkeypatch, 2, sharded=True)
    nodes.board.turns_to_follow = 6
    await nodes.start()
    for number in range(20):
        client = nodes[1].dial("ann", FLEET, OTHERS)
        await turns(number)
        client.vanish()
        await turns(LATER)
        assert nodes[1].is_empty
    await nodes.close()


async def test_who_is_removed_while_rooms_are_followed_is_not_in_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(15):
        nodes = Nodes(monkeypatch, 1, sharded=True)
        nodes.board.turns_to_follow = 3
        await nodes.start()
        client = nodes[0].dial("ann", FLEET, OTHERS)
        await turns(number)
        nodes[0].directory.groups["ann"] = frozenset({OTHERS})
        nodes[0].directory.tell("ann")
        await turns(LATER)
        assert client.rooms == ["user:ann", f"group:{OTHERS.id}"]
        await nodes.close()


async def test_a_loss_in_one_shard_is_told_to_its_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, 2, sharded=True)
    await nodes.start()
    ann = await nodes.connect(0, "ann", FLEET)
    bob = await nodes.connect(1, "bob", FLEET)
    ann.take()
    wire = nodes[0].wire
    assert wire is not None
    shard = wire.shard_of(ROOM)
    assert shard is not None
    nodes[0].gateway.lost(Loss("x", 1, frozenset({Target.ROOM}), frozenset({shard})))
    await asyncio.sleep(0.5)
    told = [f for f in ann.take() if f["type"] == "room_update"]
    assert [(f["room"], f["data"]["action"]) for f in told] == [(ROOM, "resync")]
    # Who does not follow a room says at once that nobody got the message.
    began = asyncio.get_running_loop().time()
    sent = await nodes.services[1].send_to_user("ann", "notification", {})
    assert (sent.recipients_count, sent.partial) == (1, ())
    with pytest.raises(NotFoundError):
        await nodes.services[1].send_to_room("group:" + "7" * 24, "message", {})
    assert asyncio.get_running_loop().time() == began
    bob.take()
    ann.send({"id": "1", "type": "message", "room": ROOM})
    await turns(LATER)
    assert [f["id"] for f in bob.take()] == ["1"]
    await nodes.close()


async def test_a_change_of_membership_takes_effect_on_all_nodes(nodes: Nodes) -> None:
    bobs = [await nodes.connect(number, "bob", FLEET, character_id=8) for number in (0, 1)]
    ann = await nodes.connect(2, "ann", FLEET)
    for client in (ann, *bobs):
        client.take()
    for node in nodes.nodes:
        node.directory.groups["bob"] = frozenset()
    await nodes.services[0].broadcast_group_membership_change(8, FLEET.id, FLEET.name, joined=False)
    await turns(LATER)
    for bob in bobs:
        assert bob.rooms == ["user:bob"]
        told = [f["data"] for f in bob.take() if f["type"] == "group_membership_change"]
        assert [(data["group_id"], data["joined"]) for data in told] == [(FLEET.id, False)]
    assert [data["action"] for data in updates(ann)] == ["member_left", "member_left"]
    for node in nodes.nodes:
        node.directory.groups["bob"] = frozenset({FLEET})
    await nodes.services[0].broadcast_group_membership_change(8, FLEET.id, FLEET.name, joined=True)
    await turns(LATER)
    for bob in bobs:
        assert bob.rooms == ["user:bob", ROOM]
        told = [f["data"] for f in bob.take() if f["type"] == "group_membership_change"]
        assert [(data["group_id"], data["joined"]) for data in told] == [(FLEET.id, True)]


async def test_a_removal_is_believed_although_no_directory_answers(nodes: Nodes) -> None:
    bob = await nodes.connect(1, "bob", FLEET)
    for node in nodes.nodes:
        node.directory.error = DirectoryUnavailable("away")
    with contextlib.suppress(DirectoryUnavailable):
        await nodes.services[0].broadcast_group_membership_change(
            7, FLEET.id, FLEET.name, joined=False
        )
    await turns(LATER)
    assert bob.rooms == ["user:bob"]


async def test_a_new_name_is_told_once_everywhere_and_shown_by_listings(nodes: Nodes) -> None:
    bobs = [await nodes.connect(number, "bob", FLEET, character_id=8) for number in (0, 1)]
    ann = await nodes.connect(2, "ann", FLEET)
    for client in (ann, *bobs):
        client.take()
    sent = await nodes.services[2].broadcast_user_profile_update(
        "bob", 8, {"character_name": "Robert"}
    )
    assert sent.recipients_count == 2
    for bob in bobs:
        [frame] = bob.take()
        assert frame["data"]["profile"] == {"character_name": "Robert"}
    assert ann.take() == []
    for service in nodes.services:
        page = await service.list_connections(user_id="bob")
        assert [info.character_name for info in page.items] == ["Robert"] * 2
    # Of another character, of none, and what is no name.
    for character_id, profile in (
        (9, {"character_name": "Nobody"}),
        (8, {"character_name": 7}),
        (8, {"character_name": "a\nb"}),
        (8, {"character_name": "x" * 257}),
        (8, {"last_login": "now"}),
    ):
        await nodes.services[2].broadcast_user_profile_update("bob", character_id, profile)
    page = await nodes.services[2].list_connections(user_id="bob")
    assert [info.character_name for info in page.items] == ["Robert"] * 2


async def test_an_operators_message_of_that_type_is_a_message(nodes: Nodes) -> None:
    bob = await nodes.connect(1, "bob", FLEET)
    data = {"group_id": FLEET.id, "group_name": FLEET.name, "joined": False}
    sent = await nodes.services[0].send_to_user("bob", "group_membership_change", data)
    assert sent.recipients_count == 1
    [frame] = bob.take()
    assert (frame["id"], frame["data"]) == (sent.message_id, data)
    assert bob.rooms == ["user:bob", ROOM]


@pytest.mark.parametrize(
    "control",
    [
        b"not json",
        b"[]",
        b'{"op":"beat"}',
        b'{"op":"beat","node":"n","connections":-1}',
        b'{"op":"ask","id":1,"what":"counts","args":{}}',
        b'{"op":"ask","id":"1","what":"counts","args":{"rooms":[1]}}',
        b'{"op":"ask","id":"1","what":"counts","args":[]}',
        b'{"op":"ask","id":"1","what":"connections","args":{}}',
        b'{"op":"ask","id":"1","what":"unheard of","args":{}}',
        b'{"op":"ask","id":"1","what":"close","args":{"connection_id":"x","reason":"y"}}',
        b'{"op":"ask","id":"1","what":"close","args":{"connection_id":"x","reason":25}}',
        b'{"op":"ask","id":"1","what":"close","args":{"connection_id":"x","reason":99}}',
        b'{"op":"beat","process":"somebody else","connections":1}',
        b'{"op":"tell","what":"presence","args":{"news":[["a"]]}}',
        b'{"op":"tell","what":"presence","args":{"news":7}}',
        b'{"op":"tell","what":"unheard of","args":{}}',
        b'{"op":"answer","id":"unasked","answer":{}}',
        b'{"op":"expect","id":"1","target":"nobody","ident":""}',
        b'{"op":"unheard of"}',
    ],
)
async def test_x10_strange_words_of_another_node_do_no_harm(nodes: Nodes, control: bytes) -> None:
    ann = await nodes.connect(0, "ann", FLEET)
    nodes[0].gateway.heard(nodes[1].gateway.node_id, control)
    await turns(LATER)
    assert json.dumps(ann.take()) == "[]"
    assert (await nodes.services[1].list_connections()).total == 1
