"""The hub and the links of workers: who gets what, once, and who is not bothered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable

import pytest

from falcon_fast.bus import BusStatistics, Loss, Target
from falcon_fast.bus import node_wire as wire
from falcon_fast.bus.hub import MAX_SETS
from falcon_fast.bus.memory import MemoryBus
from falcon_fast.bus.node_link import CALL_TIMEOUT
from falcon_fast.errors import BusUnavailable

from ..support.bus import FakeReceiver, Switchboard, Wire
from ..support.loop import FakeTimeLoop
from ..support.pipe import crossed
from ..support.workers import HubNode

loop_factory = FakeTimeLoop

FRAME = b'{"type":"message"}'


@pytest.fixture
async def node() -> AsyncIterator[HubNode]:
    """A node of its own with three workers."""
    made = HubNode(MemoryBus())
    await made.start(3)
    await crossed()
    yield made
    await made.hub.close()


class Net:
    """A node with two workers, and another node without any."""

    def __init__(self, *, sharded: bool) -> None:
        self.board = Switchboard(sharded=sharded)
        self.node = HubNode(self.board.plug("node"))
        self.wire = self.board.wires["node"]
        self.far: Wire = self.board.plug("far")
        self.far_receiver = FakeReceiver()

    async def start(self) -> None:
        await self.node.start(2)
        await self.far.start(self.far_receiver)
        await crossed()


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    made = Net(sharded=False)
    await made.start()
    yield made
    await made.node.hub.close()


@pytest.fixture
async def shards() -> AsyncIterator[Net]:
    made = Net(sharded=True)
    await made.start()
    yield made
    await made.node.hub.close()


# ------------------------------------------------------------------------------------ messages


async def test_a_workers_message_reaches_each_that_follows_the_room_once(node: HubNode) -> None:
    node[0].follow("group:a")
    node[1].follow("group:a")
    node[2].follow("group:b")
    await crossed()
    assert node[0].link.publish(Target.ROOM, "group:a", FRAME) == 1
    assert node[0].receiver.delivered == [(Target.ROOM, "group:a", FRAME)]  # at once
    await crossed()
    assert node[0].receiver.delivered == [(Target.ROOM, "group:a", FRAME)]
    assert node[1].receiver.delivered == [(Target.ROOM, "group:a", FRAME)]
    assert node[2].receiver.delivered == []
    assert node.receiver.delivered == []


async def test_a_plain_message_is_passed_on_in_the_octets_that_came(
    node: HubNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    for worker in node.workers:
        worker.follow("group:a")
    await crossed()
    node[0].link.publish(Target.ROOM, "group:a", FRAME)
    written = wire.write_room("group:a", FRAME)
    # Whoever would write it anew is found out.
    monkeypatch.setattr(wire, "write_room", lambda room, message: pytest.fail("written again"))
    await crossed()
    assert [node[0].far.writes[-1], node[1].near.writes[-1]] == [written, written]
    assert node[1].receiver.delivered == [(Target.ROOM, "group:a", FRAME)]


async def test_who_follows_a_room_no_more_is_not_bothered(node: HubNode) -> None:
    node[1].follow("group:a")
    node[1].unfollow("group:a")
    node[1].unfollow("group:a")
    await crossed()
    node[0].link.publish(Target.ROOM, "group:a", FRAME)
    writes = len(node[1].near.writes)
    await crossed()
    assert len(node[1].near.writes) == writes
    assert "group:a" not in node.hub.rooms


@pytest.mark.parametrize("target", list(Target))
async def test_the_node_process_reaches_those_that_are_meant(node: HubNode, target: Target) -> None:
    node[0].follow("group:a")
    node[1].follow("user:a")
    await crossed()
    ident = "group:a" if target is Target.ROOM else "a"
    assert node.hub.publish(target, ident, FRAME) == 1
    await crossed()
    got = [len(worker.receiver.delivered) for worker in node.workers]
    assert got == {Target.ROOM: [1, 0, 0], Target.USER: [0, 1, 0]}.get(target, [1, 1, 1])
    assert node.receiver.delivered == [(target, ident, FRAME)]


async def test_the_node_process_may_have_members_too(net: Net) -> None:
    node = net.node
    assert node.hub.follow("group:a") is None
    node[0].follow("group:a")
    await crossed()
    node[1].link.publish(Target.ROOM, "group:a", FRAME)
    net.far.publish(Target.ROOM, "group:a", FRAME)
    net.far.publish(Target.ROOM, "group:a", FRAME, members=3)
    await crossed()
    assert len(node.receiver.delivered) == len(node[0].receiver.delivered) == 2
    assert node.receiver.changes == [("far", "group:a", 3, FRAME)]
    node.hub.unfollow("group:a")
    await crossed()
    net.far.publish(Target.ROOM, "group:a", FRAME)
    await crossed()
    assert (len(node.receiver.delivered), len(node[0].receiver.delivered)) == (2, 3)


async def test_a_message_crosses_to_other_nodes_and_back_once(net: Net) -> None:
    node = net.node
    for worker in node.workers:
        worker.follow("group:a")
    await crossed()
    node[0].link.publish(Target.ROOM, "group:a", FRAME)
    await crossed()
    assert net.far_receiver.delivered == [(Target.ROOM, "group:a", FRAME)]
    net.far.publish(Target.ROOM, "group:a", b"{}")
    net.far.publish(Target.ROOM, "group:b", b"{}")
    net.far.publish(Target.USER, "b", b"{}")
    net.far.publish(Target.CONNECTION, "c", b"{}")
    await crossed()
    assert node[0].receiver.delivered == node[1].receiver.delivered
    assert [ident for _, ident, _ in node[1].receiver.delivered] == ["group:a", "group:a", "c"]


async def test_order_is_kept_between_rooms_and_kinds(net: Net) -> None:
    node = net.node
    node[1].follow("group:a")
    await crossed()
    for number in range(50):
        target = Target.ROOM if number % 2 else Target.ALL
        node[0].link.publish(target, "group:a" if number % 2 else "", b"%d" % number)
    await crossed()
    assert [frame for _, _, frame in node[1].receiver.delivered] == [b"%d" % n for n in range(50)]


async def test_counts_go_to_siblings_and_nodes_as_counts(net: Net) -> None:
    node = net.node
    net.far_receiver.rooms.add("group:a")
    for worker in node.workers:
        worker.follow("group:a")
    await crossed()
    node[0].link.publish(Target.ROOM, "group:a", FRAME, members=3, process_id="node.1")
    await crossed()
    assert node[0].receiver.delivered == [(Target.ROOM, "group:a", FRAME)]
    assert node[1].receiver.changes == [("node.1", "group:a", 3, FRAME)]
    assert net.far_receiver.changes == [("node.1", "group:a", 3, FRAME)]
    assert node[1].receiver.delivered == node.receiver.delivered == []
    # The node process's own has the node's id.
    node.hub.publish(Target.ROOM, "group:a", FRAME, members=1)
    await crossed()
    assert node[0].receiver.changes == [("node", "group:a", 1, FRAME)]
    assert net.far_receiver.changes[1:] == [("node", "group:a", 1, FRAME)]
    # One that has left meanwhile is not told.
    node[1].receiver.rooms.clear()
    node[0].link.publish(Target.ROOM, "group:a", FRAME, members=4)
    await crossed()
    assert len(node[1].receiver.changes) == 2


async def test_while_other_nodes_are_away_messages_stay_in_the_node(net: Net) -> None:
    node = net.node
    node[1].follow("group:a")
    net.wire.cut()
    await crossed()
    assert node.receiver.availability == [False]
    assert node[0].receiver.availability == [False]
    assert not node[0].link.is_available
    with pytest.raises(BusUnavailable):
        node[0].link.publish(Target.ROOM, "group:a", FRAME)
    with pytest.raises(BusUnavailable):
        node.hub.publish(Target.ROOM, "group:a", FRAME)
    await crossed()
    assert len(node[1].receiver.delivered) == 2
    net.wire.mend()
    await crossed()
    assert node[0].receiver.availability == [False, True]
    assert node[0].receiver.losses == [Loss(None, 0, frozenset(Target))]
    assert node[0].link.publish(Target.ROOM, "group:a", FRAME) == 1
    await crossed()
    assert len(net.far_receiver.delivered) == 1


async def test_what_changes_before_the_worker_is_told_costs_no_error(net: Net) -> None:
    net.node[1].follow("group:a")
    await crossed()
    net.wire.is_available = False  # and nobody has said so
    assert net.node[0].link.publish(Target.ROOM, "group:a", FRAME) == 1
    net.node[0].link.tell(b'{"op":"beat"}')
    net.node[0].link.tell(b'{"op":"beat"}', "far")
    await crossed()
    assert len(net.node[1].receiver.delivered) == 1
    # It is found out within a second.
    await asyncio.sleep(1.1)
    assert not net.node[0].link.is_available


# -------------------------------------------------------------------------------------- receipts


async def test_each_process_confirms_for_itself(net: Net) -> None:
    node = net.node
    node[0].follow("group:a")
    await crossed()
    node.hub.publish(Target.ROOM, "group:a", FRAME, receipt="r-1")
    await crossed()
    assert node[0].receiver.confirmed == [("node", "r-1", 1)]
    assert node[1].receiver.confirmed == [("node", "r-1", 0)]
    assert net.far_receiver.confirmed == [("node", "r-1", 1)]
    assert node.receiver.confirmed == []  # it knows


async def test_each_process_confirms_what_another_node_asks(net: Net) -> None:
    node = net.node
    node[1].follow("group:a")
    await crossed()
    net.far.publish(Target.ROOM, "group:a", FRAME)  # of which nobody is told
    net.far.publish(Target.ROOM, "group:b", FRAME, receipt="r-1")
    net.far.publish(Target.ROOM, "group:a", FRAME, receipt="r-2")
    net.far.publish(Target.ALL, "", FRAME, receipt="r-3")
    await crossed()
    assert node[0].receiver.confirmed == [("far", "r-1", 0), ("far", "r-2", 0), ("far", "r-3", 1)]
    assert node[1].receiver.confirmed == [("far", "r-1", 0), ("far", "r-2", 1), ("far", "r-3", 1)]
    assert node.receiver.confirmed == [("far", "r-1", 0), ("far", "r-2", 0), ("far", "r-3", 1)]


async def test_a_message_that_was_not_even_delivered_is_confirmed_as_such(net: Net) -> None:
    # As a bus does that looks first whether anybody is in the room.
    net.node[0].follow("group:a")
    await crossed()
    net.far.publish(Target.ROOM, "group:a", FRAME)
    await crossed()
    net.node.hub.confirm("far", "r-1", 0)
    await crossed()
    assert net.node[0].receiver.confirmed == [("far", "r-1", 0)]


async def test_a_workers_receipt_is_confirmed_within_the_node(net: Net) -> None:
    node = net.node
    node[1].follow("group:a")
    await crossed()
    node[0].link.publish(Target.ROOM, "group:a", FRAME, receipt="r-1")
    await crossed()
    assert node[0].receiver.confirmed == []
    assert node[1].receiver.confirmed == [("node.1", "r-1", 1)]
    assert node.receiver.confirmed == [("node.1", "r-1", 0)]


# ------------------------------------------------------------------------------------- being told


def control(**values: object) -> bytes:
    return json.dumps(values).encode()


async def test_what_is_told_to_all_reaches_all(net: Net) -> None:
    node = net.node
    beat = control(op="beat", process="node.1")
    node[0].link.tell(beat)
    await crossed()
    assert node[0].receiver.told == []
    assert node.receiver.told == node[1].receiver.told == [("node", beat)]
    assert net.far_receiver.told == [("node", beat)]
    mine = control(op="beat")
    node.hub.tell(mine)
    await crossed()
    assert [len(worker.receiver.told) for worker in node.workers] == [1, 2]
    assert net.far_receiver.told[1:] == [("node", mine)]
    assert len(node.receiver.told) == 1


async def test_what_is_told_to_one_process_reaches_it_alone(net: Net) -> None:
    node = net.node
    for word in (
        control(to="node.2"),
        control(to="node"),
        control(to="node.9"),  # it is gone
    ):
        node[0].link.tell(word, "node")
        net.far.tell(word, "node")
    node[0].link.tell(control(to="far"), "far")
    await crossed()
    assert [json.loads(word)["to"] for _, word in node[1].receiver.told] == ["node.2", "node.2"]
    assert [json.loads(word)["to"] for _, word in node.receiver.told] == ["node", "node"]
    assert node[0].receiver.told == []
    assert [json.loads(word)["to"] for _, word in net.far_receiver.told] == ["far"]


@pytest.mark.parametrize("word", [b"not json", b"[]", b'{"to":7}'])
async def test_strange_words_are_for_all_to_wonder_at(net: Net, word: bytes) -> None:
    net.far.tell(word)
    await crossed()
    assert net.node[0].receiver.told == net.node.receiver.told == [("far", word)]


async def test_the_node_is_told_while_other_nodes_are_away(net: Net) -> None:
    node = net.node
    net.wire.cut()
    await crossed()
    for tell in (node.hub.tell, node[0].link.tell):
        with pytest.raises(BusUnavailable):
            tell(control(op="beat"))
        with pytest.raises(BusUnavailable):
            tell(control(op="ask", to="far"), "far")
        tell(control(op="ask", to="node.2"), "node")
    await crossed()
    assert len(node[1].receiver.told) == 4
    assert net.far_receiver.told == []


# ------------------------------------------------------------------------- follows and the shards


async def test_what_is_followed_is_waited_for_together(shards: Net) -> None:
    worker = shards.node[0]
    shard = shards.wire.shard_of("group:a")
    waits: list[Awaitable[None]] = []
    for room in ("group:a", "group:b"):
        worker.receiver.rooms.add(room)
        wait = worker.link.follow(room)
        assert wait is not None
        waits.append(wait)
    assert waits[0] is waits[1]
    assert shard not in shards.wire.followed
    await waits[0]
    assert shard in shards.wire.followed
    assert worker.link.hears(Target.ROOM, "group:a")
    assert not worker.link.hears(Target.ROOM, "group:c")
    assert not worker.link.hears(Target.USER, "a")
    assert worker.link.hears(Target.ALL, "")
    assert not worker.link.reaches_all(Target.ROOM)
    assert shards.node.hub.hears(Target.ROOM, "group:a")
    # A second worker waits too while it is under way, and not any more afterwards.
    other = shards.node[1]
    wait = other.link.follow("group:a")
    assert wait is not None
    await wait
    shards.far.publish(Target.ROOM, "group:a", FRAME)
    await crossed()
    assert len(worker.receiver.delivered) == len(other.receiver.delivered) == 1


async def test_two_workers_wait_for_the_same_room(shards: Net) -> None:
    waits = [worker.link.follow("group:a") for worker in shards.node.workers]
    for wait in waits:
        assert wait is not None
        await wait
    assert shards.wire.shard_of("group:a") in shards.wire.followed
    assert not shards.node.hub._following


async def test_the_node_process_waits_for_what_it_follows(shards: Net) -> None:
    wait = shards.node.hub.follow("group:a")
    assert wait is not None
    await wait
    assert shards.wire.shard_of("group:a") in shards.wire.followed


async def test_a_loss_names_the_rooms_that_are_concerned(shards: Net) -> None:
    hub, [one, other] = shards.node.hub, shards.node.workers
    rooms = [f"group:{number}" for number in range(20)]
    for number, room in enumerate(rooms):
        (one if number % 3 else other).follow(room)
    await crossed()
    shard = shards.wire.shard_of(rooms[1])
    assert shard is not None
    loss = Loss("far", 3, frozenset({Target.ROOM}), frozenset({shard}))
    hub.lost(loss)
    await crossed()
    assert one.receiver.losses == shards.node.receiver.losses == [loss]
    for number, room in enumerate(rooms):
        concerned = bool(number % 3) and hub.shard_of(room) == shard
        assert one.link.shard_of(room) == (shard if concerned else None)
    one.unfollow(rooms[1])
    assert one.link.shard_of(rooms[1]) is None


# ----------------------------------------------------------------------- workers come and go


async def test_a_dead_worker_follows_nothing_and_its_place_is_free(net: Net) -> None:
    node = net.node
    node[0].follow("group:a")
    node[0].follow("group:b")
    node[1].follow("group:b")
    node[0].follow("user:a")
    await crossed()
    assert node.hub.count_rooms() == (1, 2)
    with pytest.raises(ValueError, match="there already"):
        node.hub.attach("node.1", on_note=lambda *_: None, on_end=lambda _: None)
    node[0].far.abort()
    await crossed()
    assert node[0].ends == ["the other end has closed it"]
    assert node.hub.count_rooms() == (0, 1)
    node.hub.detach(node[0].branch)  # once more, and it changes nothing
    third = await node.add()
    assert third.branch.bit == node[0].branch.bit
    await crossed()
    node.hub.publish(Target.ALL, "", FRAME)
    net.far.publish(Target.ROOM, "group:b", FRAME)
    await crossed()
    assert [target for target, _, _ in third.receiver.delivered] == [Target.ALL]
    assert len(node[1].receiver.delivered) == 2
    assert node[0].receiver.delivered == []


async def test_a_new_worker_knows_how_the_bus_is(net: Net) -> None:
    net.wire.cut()
    third = await net.node.add()
    await crossed()
    assert not third.link.is_available
    assert third.link.strangers() == ()
    assert third.receiver.availability == [False]


async def test_strangers_are_known_to_workers(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net.wire, "strangers", lambda: ("old",))
    await asyncio.sleep(1.1)
    assert net.node[0].link.strangers() == net.node.hub.strangers() == ("old",)


async def test_sets_of_processes_are_remembered_within_limits(node: HubNode) -> None:
    for number in range(MAX_SETS + 10):
        node.hub._in(number * 2)
    assert len(node.hub._members) <= MAX_SETS


async def test_a_frame_of_a_kind_that_is_none_ends_the_pipe(
    node: HubNode, caplog: pytest.LogCaptureFixture
) -> None:
    node[0].link.pipe.send(wire.frame(wire.Kind.DELIVER, b""))
    node[1].branch.pipe.send(wire.frame(wire.Kind.PUBLISH, b""))
    await crossed()
    assert node[0].ends == node[1].own_ends == ["it sent what cannot be handled"]
    assert len(caplog.records) == 2


# ------------------------------------------------------------------------------ notes and calls


async def test_notes_go_both_ways(node: HubNode) -> None:
    node[0].link.note("ready")
    node[0].branch.note("drain", b"{}")
    await crossed()
    assert node[0].told == [("ready", b"")]
    assert node[0].heard == [("drain", b"{}")]


async def test_calls_are_answered(node: HubNode) -> None:
    async def later(process_id: str, body: bytes) -> bytes:
        await asyncio.sleep(0.1)
        if body == b"fail":
            raise BusUnavailable("not now")
        return body[::-1]

    def at_once(process_id: str, body: bytes) -> bytes:
        if body == b"fail":
            raise BusUnavailable("never")
        return process_id.encode() + body

    node.hub.answers_to("later", later)
    node.hub.answers_to("at once", at_once)
    link = node[1].link
    answers = await asyncio.gather(link.call("later", b"abc"), link.call("at once", b"!"))
    assert tuple(answers) == (b"cba", b"node.2!")
    with pytest.raises(BusUnavailable, match="not now"):
        await link.call("later", b"fail")
    with pytest.raises(BusUnavailable, match="never"):
        await link.call("at once", b"fail")
    assert not link._calls


async def test_a_defect_in_an_answer_is_told(
    node: HubNode, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(process_id: str, body: bytes) -> bytes:
        raise LookupError(body)

    node.hub.answers_to("broken", broken)
    with pytest.raises(BusUnavailable, match="does not answer"):
        await node[0].link.call("broken", b"")
    assert [record.message for record in caplog.records] == ["a task failed"]


async def test_a_call_waits_for_its_answer_only_so_long(node: HubNode) -> None:
    node.hub.answers_to("never", lambda process_id, body: asyncio.Future())
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(BusUnavailable, match="does not answer"):
        await node[0].link.call("never", b"")
    assert loop.time() == pytest.approx(began + CALL_TIMEOUT)


async def test_without_the_node_process_nothing_is_waited_for(node: HubNode) -> None:
    node.hub.answers_to("never", lambda process_id, body: asyncio.Future())
    link = node[0].link
    call = asyncio.ensure_future(link.call("never", b""))
    node[0].near.stalled = True
    follow = link.follow("group:a")
    assert follow is not None
    await crossed()
    late = link.follow("group:b")
    assert late is not None
    node[0].near.abort()
    await crossed()
    with pytest.raises(BusUnavailable, match="gone"):
        await call
    await follow
    await late
    assert node[0].own_ends == ["the other end has closed it"]
    assert link.follow("group:c") is None
    with pytest.raises(BusUnavailable, match="gone"):
        await link.call("never", b"")


async def test_an_answer_that_comes_too_late_is_let_go(node: HubNode) -> None:
    node[0].branch.pipe.send(wire.write_reply(99, b"", is_well=True))
    node[0].branch.pipe.send(wire.write_ticket(wire.Kind.SYNCED, 99))
    await crossed()
    assert node[0].own_ends == []


# -------------------------------------------------------------------------- start and end


async def test_before_the_start_nothing_is_delivered(node: HubNode) -> None:
    link = node[0].link
    await link.close()
    assert link.publish(Target.ALL, "", FRAME) == 0
    assert not link.hears(Target.ROOM, "a") or link.reaches_all(Target.ROOM)
    node.hub.publish(Target.ALL, "", FRAME)
    await crossed()
    assert node[0].receiver.delivered == []


async def test_the_hub_speaks_for_the_outer_bus(shards: Net) -> None:
    hub = shards.node.hub
    assert hub.is_available
    assert hub.statistics() == shards.node[0].link.statistics() == BusStatistics()
    assert hub.reaches_all(Target.ALL)
    assert not hub.reaches_all(Target.ROOM)


async def test_close_ends_what_is_under_way(shards: Net) -> None:
    hub = shards.node.hub
    hub.answers_to("never", lambda process_id, body: asyncio.Future())
    call = asyncio.ensure_future(shards.node[0].link.call("never", b""))
    await crossed()
    await hub.close()
    await hub.close()
    with pytest.raises(BusUnavailable):
        await call
