"""Receivers of a bus for tests, and a bus that joins several of them within one process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from falcon_fast.bus import BusStatistics, Loss, Receiver, Target
from falcon_fast.errors import BusUnavailable

__all__ = ["FakeReceiver", "Switchboard", "Wire"]


class FakeReceiver:
    """A `falcon_fast.bus.Receiver` that writes down what it is told.

    Attributes:
        rooms: with a connection here.
        delivered: (target, its id, frame), in order.
        changes: (node, room, members, frame) of room changes on other nodes.
        confirmed: (node, receipt, connections).
        told: (node, control).
        losses: as they were told.
        availability: as it was told.
    """

    def __init__(self, *rooms: str) -> None:
        self.rooms = set(rooms)
        self.delivered: list[tuple[Target, str, bytes]] = []
        self.changes: list[tuple[str, str, int, bytes]] = []
        self.confirmed: list[tuple[str, str, int]] = []
        self.told: list[tuple[str, bytes]] = []
        self.losses: list[Loss] = []
        self.availability: list[bool] = []

    def deliver(self, target: Target, ident: str, frame: bytes) -> int:
        self.delivered.append((target, ident, frame))
        return 1

    def counted(self, process_id: str, room: str, members: int, frame: bytes) -> None:
        self.changes.append((process_id, room, members, frame))

    def confirm(self, node_id: str, receipt: str, connections: int) -> None:
        self.confirmed.append((node_id, receipt, connections))

    def heard(self, node_id: str, control: bytes) -> None:
        self.told.append((node_id, control))

    def lost(self, loss: Loss) -> None:
        self.losses.append(loss)

    def changed(self, *, is_available: bool) -> None:
        self.availability.append(is_available)


SHARDS: Final = 4


class Switchboard:
    """Joins the buses of several nodes in one process.

    Attributes:
        wires: by node id, in the order in which they were plugged in.
        lose: says whether a message from one node to another gets lost; for tests to replace.
        sharded: whether rooms go through shards that have to be followed.
        turns_to_follow: of the loop.
    """

    def __init__(self, *, sharded: bool = False) -> None:
        self.wires: dict[str, Wire] = {}
        self.lose: Callable[[str, str], bool] = lambda sender, receiver: False
        self.sharded = sharded
        self.turns_to_follow = 1

    def plug(self, node_id: str) -> Wire:
        """Return the bus of a new node."""
        wire = self.wires[node_id] = Wire(self, node_id)
        return wire

    def carry(self, sender: str, receiver: str | None, act: Callable[[Wire], None]) -> None:
        """Let something arrive at one node or at all others, when the loop has its next turn."""
        if sender not in self.wires:
            return  # it is dead, and does not know it
        for node_id, wire in list(self.wires.items()):
            if node_id == sender or receiver not in {None, node_id}:
                continue
            if wire.is_available and not self.lose(sender, node_id):
                asyncio.get_running_loop().call_soon(wire.arrive, act)


class Wire:
    """The bus of one node: what one publishes arrives at the others in a later turn of the loop.

    Attributes:
        is_available: for tests to change with `cut` and `mend`.
        unanswered: receipts that were asked for, newest last.
    """

    def __init__(self, board: Switchboard, node_id: str) -> None:
        self._board = board
        self._node_id = node_id
        self._receiver: Receiver | None = None
        self.is_available = True
        self.followed: set[int] = set()

    async def start(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def publish(
        self,
        target: Target,
        ident: str,
        frame: bytes,
        *,
        members: int | None = None,
        receipt: str | None = None,
        process_id: str | None = None,
    ) -> int:
        assert self._receiver is not None
        here = self._receiver.deliver(target, ident, frame)
        if not self.is_available:
            raise BusUnavailable("cut")
        node_id = self._node_id

        def act(wire: Wire) -> None:
            receiver = wire._receiver
            if receiver is None or not wire.hears(target, ident):
                return
            if members is not None:
                if ident in receiver.rooms:
                    receiver.counted(process_id or node_id, ident, members, frame)
                return
            connections = receiver.deliver(target, ident, frame)
            if receipt is not None:
                receiver.confirm(node_id, receipt, connections)

        self._board.carry(node_id, None, act)
        return here

    def tell(self, control: bytes, node_id: str | None = None) -> None:
        if not self.is_available:
            raise BusUnavailable("cut")
        sender = self._node_id

        def act(wire: Wire) -> None:
            if wire._receiver is not None:
                wire._receiver.heard(sender, control)

        self._board.carry(sender, node_id, act)

    def arrive(self, act: Callable[[Wire], None]) -> None:
        """Take what was under way, unless the node is cut off or gone by now."""
        if self.is_available and self._receiver is not None:
            act(self)

    def reaches_all(self, target: Target) -> bool:
        return not self._board.sharded or target not in {Target.ROOM, Target.USER}

    def hears(self, target: Target, ident: str) -> bool:
        if self.reaches_all(target):
            return True
        shard = self.shard_of(ident if target is Target.ROOM else f"user:{ident}")
        return shard in self.followed

    def follow(self, room: str) -> Awaitable[None] | None:
        shard = self.shard_of(room)
        if shard is None or shard in self.followed:
            return None

        async def subscribe() -> None:
            for _ in range(self._board.turns_to_follow):
                await asyncio.sleep(0)
            self.followed.add(shard)

        return subscribe()

    def unfollow(self, room: str) -> None:
        pass

    def shard_of(self, room: str) -> int | None:
        return sum(room.encode()) % SHARDS if self._board.sharded else None

    def strangers(self) -> tuple[str, ...]:
        return ()

    def statistics(self) -> BusStatistics:
        return BusStatistics()

    def cut(self) -> None:
        """Let the node lose its link."""
        self.is_available = False
        assert self._receiver is not None
        self._receiver.changed(is_available=False)

    def mend(self, *, lost: bool = True) -> None:
        """Give the node its link back, and let it find out that it has missed something."""
        self.is_available = True
        assert self._receiver is not None
        self._receiver.changed(is_available=True)
        if lost:
            self._receiver.lost(Loss(None, 0, frozenset(Target)))

    async def close(self) -> None:
        self._receiver = None
        self._board.wires.pop(self._node_id, None)
