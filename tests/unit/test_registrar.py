"""The registry follows the connections of all nodes, through outages and deaths."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from falcon_fast.codes import CloseReason
from falcon_fast.registrar import DEAD, FLUSH, REFRESH

from ..support.directory import group
from ..support.gateway import Client, said
from ..support.loop import FakeTimeLoop, turns
from ..support.nodes import LATER, Nodes

loop_factory = FakeTimeLoop

FLEET = group(1, "Fleet Commanders")
ROOM = f"group:{FLEET.id}"
WRITTEN = FLUSH + 0.5
"""Seconds after which a change is written."""


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Nodes]]:
    made: list[Nodes] = []

    def make(**settings: Any) -> Nodes:  # noqa: ANN401
        made.append(Nodes(monkeypatch, 2, ping_interval=3_600, ping_timeout=7_200, **settings))
        return made[-1]

    yield make
    for nodes in made:
        await nodes.close()


async def test_connections_rooms_and_statistics_are_written(make: Callable[..., Nodes]) -> None:
    nodes = make()
    await nodes.start()
    ann = await nodes.connect(0, "ann", FLEET)
    bob = await nodes.connect(1, "bob", FLEET)
    await asyncio.sleep(6)
    registry, node_id = nodes.registry, nodes[0].gateway.node_id
    owner, document = registry.documents[ann.id]
    assert owner == node_id
    written = json.loads(document)
    assert written.pop("created_at") <= written.pop("last_ping")
    assert written == {
        "id": ann.id,
        "user_id": "ann",
        "character_id": 7,
        "character_name": "Ann",
        "rooms": ["user:ann", ROOM],
        "node_id": node_id,
        "process_id": node_id,
        "remote_address": "192.0.2.7",
    }
    assert list(registry.users["ann"]) == [ann.id]
    other = nodes[1].gateway.node_id
    assert registry.rooms[ROOM] == {node_id: 1, other: 1}
    assert registry.rooms["user:bob"] == {other: 1}
    assert json.loads(registry.statistics)["total_connections"] == 2
    assert json.loads(registry.statistics)["nodes"] == 2
    bob.leave()
    await asyncio.sleep(WRITTEN)
    assert registry.rooms[ROOM] == {node_id: 1}
    assert set(registry.users) == {"ann"}
    assert set(registry.documents) == {ann.id}


async def test_who_is_silent_costs_no_writes_but_a_refresh(make: Callable[..., Nodes]) -> None:
    nodes = make()
    await nodes.start()
    for number in range(5):
        await nodes.connect(0, f"user{number}", FLEET)
    await asyncio.sleep(WRITTEN)
    before = nodes.registry.writes
    await asyncio.sleep(2 * REFRESH)  # a round, and what was left of the one before
    assert before + 4 <= nodes.registry.writes <= before + 6


async def test_r01_the_limit_of_a_user_holds_on_all_nodes(make: Callable[..., Nodes]) -> None:
    nodes = make(max_connections_per_user=2)
    await nodes.start()
    first = await nodes.connect(0, "ann")
    await nodes.connect(1, "ann")
    third = nodes[0].dial("ann")
    await turns(LATER)
    assert third.closed == said(CloseReason.CONNECTION_LIMIT)
    first.leave()
    await asyncio.sleep(WRITTEN)
    again = await nodes.connect(1, "ann")
    assert again.is_open
    assert len(nodes.registry.users["ann"]) == 2


async def test_r01_the_oldest_is_replaced_wherever_it_is(make: Callable[..., Nodes]) -> None:
    nodes = make(max_connections_per_user=2, connection_limit_policy="replace")
    await nodes.start()
    first = await nodes.connect(0, "ann")
    second = await nodes.connect(1, "ann")
    third = await nodes.connect(1, "ann")
    assert first.closed == said(CloseReason.REPLACED)
    assert second.is_open
    assert third.is_open
    fourth = await nodes.connect(0, "ann")
    assert second.closed == said(CloseReason.REPLACED)
    assert third.is_open
    assert fourth.is_open


async def test_a_connection_that_ends_before_it_is_counted_is_not_counted(
    make: Callable[..., Nodes],
) -> None:
    nodes = make(max_connections_per_user=1)
    await nodes.start()
    ann = nodes[0].dial("ann")
    await turns(1)
    ann.vanish()
    await asyncio.sleep(WRITTEN)
    assert nodes.registry.users == {}
    assert (await nodes.connect(1, "ann")).is_open


async def test_an_outage_turns_nobody_away_and_is_made_up_for(
    make: Callable[..., Nodes], caplog: pytest.LogCaptureFixture
) -> None:
    nodes = make(max_connections_per_user=2)
    await nodes.start()
    registry = nodes.registry
    staying = await nodes.connect(0, "ann", FLEET)
    leaving = await nodes.connect(0, "ann", FLEET)
    await asyncio.sleep(WRITTEN)
    registry.down = True
    gone = leaving.id
    leaving.leave()
    new = [await nodes.connect(0, "bob", FLEET) for _ in range(2)]
    one_too_many = nodes[0].dial("bob")
    await turns(LATER)
    # This node knows that alone.
    assert one_too_many.closed == said(CloseReason.CONNECTION_LIMIT)
    await asyncio.sleep(60)
    assert set(registry.documents) == {staying.id, gone}
    registry.down = False
    await asyncio.sleep(7)
    assert set(registry.documents) == {staying.id, *(client.id for client in new)}
    assert registry.rooms[ROOM] == {nodes[0].gateway.node_id: 3}
    assert set(registry.users["ann"]) == {staying.id}
    levels = [r.levelname for r in caplog.records if r.name.endswith("registrar")]
    assert levels == ["WARNING"] * 2  # each node once


async def test_x14_a_dead_nodes_entries_are_cleared_up_once(
    make: Callable[..., Nodes], caplog: pytest.LogCaptureFixture
) -> None:
    nodes = make(max_connections_per_user=1)
    await nodes.start()
    await nodes.connect(1, "ann", FLEET)
    bob = await nodes.connect(0, "bob", FLEET)
    await asyncio.sleep(WRITTEN)
    registry = nodes.registry
    nodes.kill(1)
    registrar = nodes[1].gateway._registrar
    assert registrar is not None
    for task in registrar._tasks:
        task.cancel()
    await asyncio.sleep(DEAD + 15)
    assert set(registry.documents) == {bob.id}
    assert registry.rooms[ROOM] == {nodes[0].gateway.node_id: 1}
    cleared = [r for r in caplog.records if r.getMessage().startswith("cleared up")]
    assert [vars(record)["connections"] for record in cleared] == [1]
    assert (await nodes.connect(0, "ann")).is_open


async def test_p04_a_node_that_was_taken_for_dead_writes_itself_down_again(
    make: Callable[..., Nodes],
) -> None:
    nodes = make()
    await nodes.start()
    ann = await nodes.connect(0, "ann", FLEET)
    await asyncio.sleep(WRITTEN)
    await nodes.registry.clear(nodes[0].gateway.node_id)
    await nodes.registry.forget(nodes[0].gateway.node_id)
    assert nodes.registry.documents == {}
    await asyncio.sleep(7)
    assert set(nodes.registry.documents) == {ann.id}
    assert nodes.registry.rooms[ROOM] == {nodes[0].gateway.node_id: 1}


async def test_a_node_that_leaves_takes_its_entries_along(make: Callable[..., Nodes]) -> None:
    nodes = make()
    await nodes.start()
    await nodes.connect(0, "ann", FLEET)
    await asyncio.sleep(WRITTEN)
    await nodes[0].gateway.close()
    assert nodes.registry.documents == {}
    assert nodes.registry.rooms == {}
    assert set(nodes.registry.nodes) == {nodes[1].gateway.node_id}


async def test_r01_churn_leaves_the_count_exact(make: Callable[..., Nodes]) -> None:
    nodes = make(max_connections_per_user=1000)
    await nodes.start()
    staying: list[Client] = []
    for number in range(400):
        client = nodes[number % 2].dial("ann", FLEET)
        await turns(3 if number % 3 else LATER)
        if number % 40 == 0:
            staying.append(client)
        else:
            client.vanish()
    await asyncio.sleep(2 * WRITTEN)
    assert sorted(nodes.registry.users["ann"]) == sorted(client.id for client in staying)
    assert sum(nodes.registry.rooms[ROOM].values()) == len(staying)
