"""A node of several processes within one: a hub, its workers' links, and receivers behind them."""

from __future__ import annotations

from dataclasses import dataclass, field

from falcon_fast.bus import Bus
from falcon_fast.bus.hub import Branch, Hub
from falcon_fast.bus.node_link import NodeLink

from .bus import FakeReceiver
from .pipe import End, join

__all__ = ["FakeWorker", "HubNode"]


@dataclass
class FakeWorker:
    """A worker: both ends of its pipe, and what they have heard.

    Attributes:
        process_id: of the worker.
        receiver: behind the link.
        told: notes that the hub's end got.
        heard: notes that the worker's end got.
        ends: reasons that the hub's end was told.
        own_ends: reasons that the worker's end was told.
    """

    process_id: str
    hub: Hub
    receiver: FakeReceiver = field(default_factory=FakeReceiver)
    told: list[tuple[str, bytes]] = field(default_factory=list)
    heard: list[tuple[str, bytes]] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    own_ends: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.branch: Branch = self.hub.attach(
            self.process_id,
            on_note=lambda what, body: self.told.append((what, body)),
            on_end=self.ends.append,
        )
        self.link = NodeLink(
            on_note=lambda what, body: self.heard.append((what, body)),
            on_end=self.own_ends.append,
        )
        self.link.belongs_to(self.process_id.partition(".")[0])
        ends: tuple[End, End] = join(self.branch.pipe, self.link.pipe)
        self.near, self.far = ends

    def follow(self, room: str) -> None:
        """Get a first member of a room, and let it be followed."""
        self.receiver.rooms.add(room)
        self.link.follow(room)

    def unfollow(self, room: str) -> None:
        """Lose the last member of a room."""
        self.receiver.rooms.discard(room)
        self.link.unfollow(room)


class HubNode:
    """A node process with workers.

    Args:
        outer: the bus to other nodes.
        node_id: of the node.

    Attributes:
        receiver: the node process's own.
    """

    def __init__(self, outer: Bus, node_id: str = "node") -> None:
        self.node_id = node_id
        self.hub = Hub(outer, node_id=node_id)
        self.receiver = FakeReceiver()
        self.workers: list[FakeWorker] = []

    async def start(self, workers: int = 2) -> None:
        await self.hub.start(self.receiver)
        for _ in range(workers):
            await self.add()

    async def add(self) -> FakeWorker:
        """Start another worker."""
        worker = FakeWorker(f"{self.node_id}.{len(self.workers) + 1}", self.hub)
        await worker.link.start(worker.receiver)
        self.workers.append(worker)
        return worker

    def __getitem__(self, number: int) -> FakeWorker:
        return self.workers[number]
