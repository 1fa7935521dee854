"""The limit of a user over the workers of a node without Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from falcon_fast.bus.memory import MemoryBus
from falcon_fast.bus.node_registry import NodeCounts, NodeRegistry
from falcon_fast.errors import BusUnavailable
from falcon_fast.identity import new_id
from falcon_fast.registry import Claim, Entry, RoomEntry

from ..support.loop import FakeTimeLoop, turns
from ..support.workers import HubNode

loop_factory = FakeTimeLoop


class Shared:
    """Two workers' registries, and what the node process counts."""

    def __init__(self) -> None:
        self.node = HubNode(MemoryBus())
        self.counts = NodeCounts(self.node.hub)

    async def start(self) -> None:
        await self.node.start(2)
        self.registries = [NodeRegistry(worker.link) for worker in self.node.workers]

    async def admit(self, worker: int, user: str, ident: str, limit: int = 2) -> bool:
        [answer] = await self.registries[worker].admit("", [Claim(user, ident, limit)])
        return answer


@pytest.fixture
async def shared() -> AsyncIterator[Shared]:
    made = Shared()
    await made.start()
    yield made
    await made.node.hub.close()


async def test_the_limit_holds_over_all_workers(shared: Shared) -> None:
    first, second, third = new_id(), new_id(), new_id()
    assert await shared.admit(0, "ann", first)
    assert await shared.admit(1, "ann", second)
    assert await shared.admit(0, "ann", first)  # it is counted already
    assert not await shared.admit(0, "ann", third)
    assert await shared.admit(0, "bob", third)
    assert (shared.counts.count("ann"), shared.counts.count("bob")) == (2, 1)
    await shared.registries[1].drop("", [(second, "ann"), (new_id(), "ann"), (new_id(), "cat")])
    assert shared.counts.count("ann") == 1
    assert await shared.admit(1, "ann", third)


async def test_several_are_answered_at_once(shared: Shared) -> None:
    claims = [Claim("ann", new_id(), 2) for _ in range(4)]
    assert await shared.registries[0].admit("", claims) == [True, True, False, False]


async def test_the_oldest_is_known(shared: Shared) -> None:
    idents = [new_id() for _ in range(3)]
    for number, ident in enumerate(idents):
        await shared.admit(number % 2, "ann", ident, 10)
    assert await shared.registries[1].oldest("ann") == idents[0]
    await shared.registries[0].drop("", [(idents[0], "ann")])
    assert await shared.registries[1].oldest("ann") == idents[1]
    assert await shared.registries[1].oldest("nobody") is None


async def test_a_worker_may_write_its_connections_anew(shared: Shared) -> None:
    mine, theirs = new_id(), new_id()
    await shared.admit(0, "ann", mine)
    await shared.admit(1, "ann", theirs)
    assert await shared.registries[0].clear("") == 0
    assert shared.counts.count("ann") == 1
    for _ in range(2):
        await shared.registries[0].put("", [Entry(mine, "ann", b"{}")])
    assert shared.counts.count("ann") == 2
    await shared.registries[0].clear("")
    await shared.registries[1].clear("")
    assert len(shared.counts) == 0


async def test_what_a_dead_worker_had_is_free(shared: Shared) -> None:
    await shared.admit(0, "ann", new_id())
    await shared.admit(0, "bob", new_id())
    await shared.admit(1, "ann", new_id())
    shared.counts.forget("node.1")
    shared.counts.forget("node.1")
    assert (shared.counts.count("ann"), shared.counts.count("bob"), len(shared.counts)) == (1, 0, 1)


async def test_owners_are_told_apart_also_after_many(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shared.admit(0, "ann", new_id())
    shared.counts._last = 0xFFFF
    await shared.admit(1, "ann", new_id())
    assert len(set(shared.counts._owners.values())) == 2
    shared.counts.forget("node.2")
    assert shared.counts.count("ann") == 1


async def test_nothing_else_is_written(shared: Shared) -> None:
    registry = shared.registries[0]
    assert await registry.beat("node.1", b"{}")
    assert await registry.dead(1.0) == []
    await registry.put_rooms("node.1", [RoomEntry("group:a", "group", "A", 1, "", "")])
    await registry.put_statistics(b"{}")
    await registry.forget("node.1")
    await registry.close()
    assert len(shared.counts) == 0


async def test_without_the_node_process_it_is_not_known(shared: Shared) -> None:
    shared.node[0].near.abort()
    await turns()
    with pytest.raises(BusUnavailable):
        await shared.admit(0, "ann", new_id())
