"""A node of several processes beside another node: gateways on a hub, without sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from falcon_fast import gateway as module
from falcon_fast.bus.hub import Hub
from falcon_fast.bus.node_link import NodeLink
from falcon_fast.bus.node_pipe import GATHER
from falcon_fast.bus.node_registry import NodeCounts, NodeRegistry
from falcon_fast.codes import CloseReason
from falcon_fast.directory import Group
from falcon_fast.errors import BusUnavailable, NotFoundError
from falcon_fast.identity import new_id
from falcon_fast.listings import Listings
from falcon_fast.service import Service

from ..support.bus import Switchboard, Wire
from ..support.directory import group
from ..support.gateway import Client, Json, Node, said
from ..support.loop import FakeTimeLoop
from ..support.nodes import listen
from ..support.pipe import End, crossed, join

CROSSING = 2.5 * GATHER
"""Seconds that a question may take through all pipes and back: nobody is waited for longer."""

loop_factory = FakeTimeLoop

LATER = 60
"""Turns in which everything between processes has happened."""

FLEET = group(1, "Fleet Commanders")
ROOM = f"group:{FLEET.id}"


class House:
    """Two workers, their node process, and another node.

    Attributes:
        workers: the gateways of both workers.
        far: the other node.
        service: of the node process.
    """

    def __init__(self, *, sharded: bool = False, limit: int = 10) -> None:
        self.board = Switchboard(sharded=sharded)
        self.node_id = new_id()
        self.wire: Wire = self.board.plug(self.node_id)
        self.hub = Hub(self.wire, node_id=self.node_id)
        self.counts = NodeCounts(self.hub)
        self.first = Node(bus=self.hub, node_id=self.node_id, listens="nowhere", port=1)
        self.service = Service(self.first.gateway, self.first.directory, self.first.revoker)
        self.workers: list[Node] = []
        self.ends: list[End] = []
        for number in (1, 2):
            process_id = f"{self.node_id}.{number}"
            branch = self.hub.attach(
                process_id, on_note=lambda *_: None, on_end=lambda reason: None
            )
            link = NodeLink(on_note=lambda *_: None, on_end=lambda reason: None)
            link.belongs_to(self.node_id)
            self.ends.append(join(branch.pipe, link.pipe)[1])
            worker = Node(
                bus=link,
                node_id=self.node_id,
                process_id=process_id,
                registry=NodeRegistry(link),
                listens="shared",
                max_connections_per_user=limit,
            )
            Listings(worker.gateway)
            self.workers.append(worker)
        self.far = Node(board=self.board)
        self.far_service = Service(self.far.gateway, self.far.directory, self.far.revoker)

    async def start(self) -> None:
        for node in (self.first, *self.workers, self.far):
            await node.gateway.start()
        await crossed(LATER)

    async def close(self) -> None:
        for node in (*self.workers, self.first, self.far):
            await node.gateway.close()
            await crossed()

    async def connect(self, node: Node, user: str, *groups: Group, character: int = 7) -> Client:
        client = node.dial(user, *groups, character_id=character)
        await crossed(LATER)
        client.take()
        return client


@pytest.fixture
async def house(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(module, "listen", listen)
    made = House()
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def sharded(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(module, "listen", listen)
    made = House(sharded=True)
    await made.start()
    yield made
    await made.close()


def updates(client: Client) -> list[Json]:
    return [frame["data"] for frame in client.take() if frame["type"] == "room_update"]


async def test_processes_are_one_node_to_others(house: House) -> None:
    assert house.far.gateway.cluster.nodes == 2
    assert len(house.far.gateway.cluster.peers) == 3
    for node in (house.first, *house.workers):
        assert node.gateway.cluster.nodes == 2
        assert len(node.gateway.cluster.peers) == 3


async def test_a_message_reaches_all_members_once(house: House) -> None:
    one, other = house.workers
    ann = await house.connect(one, "ann", FLEET)
    bob = await house.connect(other, "bob", FLEET)
    cat = await house.connect(house.far, "cat", FLEET)
    assert [len(updates(client)) for client in (ann, bob, cat)] == [2, 1, 0]
    for number, speaker in enumerate((ann, bob, cat)):
        speaker.send({"id": "1", "type": "message", "room": ROOM, "data": {"n": number}})
        await crossed(LATER)
        heard = [client.take() for client in (ann, bob, cat)]
        assert heard[0] == heard[1] == heard[2]
        assert [frame["data"] for frame in heard[0]] == [{"n": number}]


async def test_members_are_counted_over_processes(house: House) -> None:
    one, other = house.workers
    ann = await house.connect(one, "ann", FLEET)
    bob = await house.connect(other, "bob", FLEET)
    assert [told["member_count"] for told in updates(ann)] == [2]
    cat = await house.connect(house.far, "cat", FLEET)
    assert [told["member_count"] for told in updates(ann)] == [3]
    assert [told["member_count"] for told in updates(bob)] == [3]
    bob.leave()
    await crossed(LATER)
    assert [told["member_count"] for told in (*updates(ann), *updates(cat))] == [2, 2]


async def test_operators_reach_all_from_anywhere(house: House) -> None:
    one, other = house.workers
    ann = await house.connect(one, "ann", FLEET)
    bob = await house.connect(other, "bob", FLEET)
    ann.take()
    for service in (house.service, house.far_service):
        listed = await service.list_connections()
        assert {info.id for info in listed.items} == {ann.id, bob.id}
        assert {info.node_id for info in listed.items} == {house.node_id}
        assert (listed.total, listed.partial) == (2, ())
        rooms = await service.list_rooms(kind="group")
        assert [(room.id, room.member_count) for room in rooms.items] == [(ROOM, 2)]
        assert rooms.total == 1
        sent = await service.send_to_room(ROOM, "notification", {})
        assert (sent.recipients_count, sent.partial) == (2, ())
        sent = await service.send_to_user("bob", "notification", {})
        assert sent.recipients_count == 1
        sent = await service.send_to_connection(ann.id, "notification", {})
        assert sent.recipients_count == 1
        sent = await service.broadcast("notification", {})
        assert sent.recipients_count == 2
        with pytest.raises(NotFoundError):
            await service.send_to_user("nobody", "notification", {})
        assert [len(client.take()) for client in (ann, bob)] == [3, 3]
    await house.service.close_connection(bob.id)
    await crossed(LATER)
    assert bob.closed == said(CloseReason.KICKED)


async def test_with_shards_too(sharded: House) -> None:
    one, other = sharded.workers
    ann = await sharded.connect(one, "ann", FLEET)
    bob = await sharded.connect(other, "bob", FLEET)
    await sharded.connect(sharded.far, "cat", FLEET)
    for client in (ann, bob):
        client.take()
    loop = asyncio.get_running_loop()
    for service in (sharded.service, sharded.far_service):
        began = loop.time()
        sent = await service.send_to_room(ROOM, "notification", {})
        assert (sent.recipients_count, sent.partial) == (3, ())
        sent = await service.send_to_user("bob", "notification", {})
        assert (sent.recipients_count, sent.partial) == (1, ())
        assert loop.time() <= began + CROSSING  # nobody was waited for
    assert [len(client.take()) for client in (ann, bob)] == [2, 4]


async def test_while_other_nodes_are_away_the_node_is_whole(house: House) -> None:
    one, other = house.workers
    ann = await house.connect(one, "ann", FLEET)
    bob = await house.connect(other, "bob", FLEET)
    ann.take()
    house.wire.cut()
    await crossed(LATER)
    loop = asyncio.get_running_loop()
    began = loop.time()
    listed = await house.service.list_connections()
    assert {info.id for info in listed.items} == {ann.id, bob.id}
    assert listed.partial == (house.far.gateway.node_id,)
    assert (await house.service.get_connection(bob.id)).user_id == "bob"
    assert loop.time() <= began + CROSSING  # those who cannot be asked are not waited for
    with pytest.raises(BusUnavailable):
        await house.service.broadcast("notification", {})
    [answer] = [
        frame
        for frame in await ann.ask({"id": "1", "type": "message", "room": ROOM, "data": {}})
        if frame["type"] == "error"
    ]
    assert answer["data"]["code"] == "unavailable"
    await crossed(LATER)
    assert [frame["type"] for frame in bob.take()] == ["notification", "message"]
    # Who comes and goes is counted in the node all the same.
    cat = await house.connect(other, "cat", FLEET)
    assert [told["member_count"] for told in updates(ann)] == [3]
    await house.service.close_connection(cat.id)
    await crossed(LATER)
    assert [told["member_count"] for told in updates(ann)] == [2]


async def test_a_dead_worker_is_known_to_be_dead_at_once(house: House) -> None:
    one, other = house.workers
    ann = await house.connect(one, "ann", FLEET)
    cat = await house.connect(house.far, "cat", FLEET)
    await house.connect(other, "bob", FLEET)
    for client in (ann, cat):
        client.take()
    house.ends[1].abort()
    await crossed(LATER)
    dead = other.gateway.cluster.process_id
    house.counts.forget(dead)
    await house.first.gateway.bury(dead)
    await asyncio.sleep(1.1)
    for client in (ann, cat):
        # What it has told its own clients last may never have left it.
        resync, count = sorted(updates(client), key=lambda told: -len(told["action"]))[::-1]
        assert (resync["action"], count["member_count"]) == ("resync", 2)
    for service in (house.service, house.far_service):
        listed = await service.list_connections()
        assert (listed.total, listed.partial) == (2, ())
    assert house.counts.count("bob") == 0


async def test_an_event_takes_effect_where_the_user_is(house: House) -> None:
    one, other = house.workers
    ann = await house.connect(one, "ann", FLEET)
    await house.connect(other, "bob", FLEET)
    one.directory.groups["ann"] = frozenset()
    await house.service.broadcast_group_membership_change(7, FLEET.id, FLEET.name, joined=False)
    await crossed(LATER)
    assert ROOM not in ann.rooms
    kinds = [frame["type"] for frame in ann.take()]
    assert kinds.count("group_membership_change") == 1


async def test_the_limit_of_a_user_holds_over_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "listen", listen)
    house = House(limit=2)
    await house.start()
    one, other = house.workers
    clients = [await house.connect(node, "ann") for node in (one, other, one)]
    assert [client.closed for client in clients] == [None, None, said(CloseReason.CONNECTION_LIMIT)]
    clients[0].leave()
    await asyncio.sleep(0.1)
    again = await house.connect(other, "ann")
    assert again.closed is None
    await house.close()
