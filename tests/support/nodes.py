"""Several nodes without sockets on one switchboard, with one registry."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest

from falcon_fast import gateway as module
from falcon_fast.directory import Group
from falcon_fast.service import Service

from .bus import Switchboard
from .gateway import Client, Node
from .loop import FakeTimeLoop, turns
from .registry import MemoryRegistry

LATER: Final = 30
"""Turns of the loop in which everything between nodes has happened."""


class _Listener:
    def close(self) -> None:
        pass


async def listen(door: object, **_: object) -> _Listener:
    return _Listener()


class Nodes:
    """Some nodes that know each other.

    Args:
        monkeypatch: takes their listeners away.
        number: of nodes.
        sharded: whether rooms go through shards.
        settings: of each node.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        number: int,
        *,
        sharded: bool = False,
        **settings: Any,  # noqa: ANN401
    ) -> None:
        monkeypatch.setattr(module, "listen", listen)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, FakeTimeLoop)
        self.board = Switchboard(sharded=sharded)
        self.registry = MemoryRegistry(loop.clock)
        self.nodes = [
            Node(board=self.board, registry=self.registry, **settings) for _ in range(number)
        ]
        self.services = [Service(node.gateway, node.directory, node.revoker) for node in self.nodes]

    def __getitem__(self, number: int) -> Node:
        return self.nodes[number]

    async def start(self) -> None:
        for node in self.nodes:
            await node.gateway.start()
        await turns(LATER)

    async def close(self) -> None:
        for node in self.nodes:
            await node.gateway.close()

    async def connect(
        self, number: int, user_id: str, *groups: Group, character_id: int = 7
    ) -> Client:
        """Connect a user to a node; it has nothing left to read afterwards."""
        client = await self[number].connect(user_id, *groups, character_id=character_id)
        await turns(LATER)
        client.take()
        return client

    def kill(self, number: int) -> None:
        """Let a node die without a word."""
        self.board.wires.pop(self[number].gateway.node_id)
