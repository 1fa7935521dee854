"""Receivers of a bus for tests, and a bus that joins several of them within one process."""

from __future__ import annotations

from falcon_fast.bus import Loss, Target

__all__ = ["FakeReceiver"]


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

    def counted(self, node_id: str, room: str, members: int, frame: bytes) -> None:
        self.changes.append((node_id, room, members, frame))

    def confirm(self, node_id: str, receipt: str, connections: int) -> None:
        self.confirmed.append((node_id, receipt, connections))

    def heard(self, node_id: str, control: bytes) -> None:
        self.told.append((node_id, control))

    def lost(self, loss: Loss) -> None:
        self.losses.append(loss)

    def changed(self, *, is_available: bool) -> None:
        self.availability.append(is_available)
