"""The bus port: how a message reaches the connections it is for, on every node.

The gateway declares here what it needs; an adapter (this process alone, or Redis) gives it. The
contract, which no signature can tell:

Order
    Messages of one publisher to one target arrive in the order of the calls; every member of a room
    on a process sees the messages of that room in one order.

Guarantee
    Each connection gets a message at most once. `publish` hands it to this process's connections at
    once and to other nodes at the end of the loop's turn, or little later, once: it is never sent
    again. What other nodes have sent and this one has not received is found out and told to
    `Receiver.lost`; so is, on the other nodes, what this one could not send.

Who may call when
    Everything is called on the loop's thread between `start` and `close`. `publish` and `tell`
    never wait. The bus calls its receiver on the loop's thread and, but for the local delivery
    within `publish`, never from inside a call of its own methods.

What it raises
    :class:`~falcon_fast.errors.BusUnavailable` where it is known that other nodes are not told.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Container
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Bus", "BusStatistics", "Loss", "Receiver", "Target"]


class Target(enum.Enum):
    """Whom a message is for."""

    ROOM = "room"
    CONNECTION = "connection"
    USER = "user"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Loss:
    """Messages of other nodes that did not arrive here.

    Attributes:
        node_id: Who sent them; None when it is not known, as after an outage of this node's link.
        number: How many, as far as is known; 0 when that is not known.
        targets: Whom such messages are for.
        shards: The shards of rooms they were for, None for all rooms.
    """

    node_id: str | None
    number: int
    targets: frozenset[Target]
    shards: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class BusStatistics:
    """Counts of a bus since it started; all are 0 where there are no other nodes.

    Attributes:
        published: Messages handed to the link.
        unpublished: Messages that other nodes were not told of, for want of a link.
        unconfirmed: Messages whose link broke before it confirmed them: maybe sent, maybe not.
        received: Messages taken from the link, but for our own.
        ignored: Of those, messages that nobody here is meant by.
        refused: Of those, messages that are no valid messages.
        duplicates: Of those, messages that were received before.
        lost: Messages that did not arrive, as far as their number is known.
        gaps: How often messages were found missing.
        reconnects: How often a link was made again.
        octets_in: Octets read from the link.
        octets_out: Octets written to the link.
        probe_seconds: How long the latest probe took through the bus and back, None before one.
    """

    published: int = 0
    unpublished: int = 0
    unconfirmed: int = 0
    received: int = 0
    ignored: int = 0
    refused: int = 0
    duplicates: int = 0
    lost: int = 0
    gaps: int = 0
    reconnects: int = 0
    octets_in: int = 0
    octets_out: int = 0
    probe_seconds: float | None = None


class Receiver(Protocol):
    """What a bus needs of the process it serves."""

    @property
    def rooms(self) -> Container[str]:
        """The names of the rooms with a connection here; a user's is `user:` and the id."""

    def deliver(self, target: Target, ident: str, frame: bytes) -> int:
        """Queue a frame to connections here.

        Args:
            target: whom it is for.
            ident: of the room, connection or user; empty for everybody.
            frame: what clients get, a checked JSON object.

        Returns:
            To how many connections.
        """

    def counted(self, process_id: str, room: str, members: int, frame: bytes) -> None:
        """Take a room's change that another node tells of.

        Called only for rooms in `rooms`. It is called instead of `deliver`, since how many members
        there are on all nodes together is for each node to say.

        Args:
            process_id: the process, of this node or of another, on which somebody joined or left:
                the id of its node, or that with a dot and something behind it.
            room: the room's name.
            members: how many of that process's connections are in the room now.
            frame: a `room_update` with that process's view of the count.
        """

    def confirm(self, node_id: str, receipt: str, connections: int) -> None:
        """Say that a message was delivered here whose sender asked to be told.

        Args:
            node_id: who wants to know.
            receipt: what the sender gave to `publish`.
            connections: to how many it was queued here, maybe 0.
        """

    def heard(self, node_id: str, control: bytes) -> None:
        """Take what another node has told with `tell`.

        Args:
            node_id: who told it; that it was a node of this cluster was checked.
            control: as it was given to `tell`.
        """

    def lost(self, loss: Loss) -> None:
        """Learn that messages did not arrive."""

    def changed(self, *, is_available: bool) -> None:
        """Learn that other nodes can be reached again, or no longer."""


class Bus(Protocol):
    """What the gateway and the cluster need of a bus."""

    @property
    def is_available(self) -> bool:
        """Whether other nodes can be reached, as far as is known; says so from memory."""

    async def start(self, receiver: Receiver) -> None:
        """Begin to deliver; called once, before anything is published.

        Returns even if the outside system cannot be reached: it is tried again for as long as the
        bus lives.

        Raises:
            SettingsError: the outside system cannot do what the settings ask for.
        """

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
        """Send a frame to a room, a connection, a user, or everybody.

        Args:
            target: whom it is for.
            ident: of the room, connection or user; empty for everybody.
            frame: one JSON object with at least a `type`. One for a room or a connection has its
                id in `room` or `to`. Nodes of the original program find out by `data.user_id` whom
                one for a user is for: the bus puts it there for the way, and takes it out again
                (or puts back what was there) before anybody here or on another node of ours gets
                it. All clients of ours get the octets that came in here, or the same JSON.
            members: of the process, for a frame that tells of a room's change; see
                `Receiver.counted`.
            process_id: whose members these are, if not those of the node's first process.
            receipt: asks every other node to call `Receiver.confirm` with it, at most 64 ASCII
                letters, digits and hyphens.

        Returns:
            The number of this process's connections the frame was queued to.

        Raises:
            BusUnavailable: other nodes are not told; this node's connections were. Its text never
                holds anything private.
        """

    def tell(self, control: bytes, node_id: str | None = None) -> None:
        """Tell something to one other node, or to all, that is for nodes and not for clients.

        Args:
            control: JSON, at most 1 MiB.
            node_id: which node, None for all.

        Raises:
            BusUnavailable: other nodes are not told; the processes of this node were.
        """

    def reaches_all(self, target: Target) -> bool:
        """Whether every node receives each message for such a target, wanted or not."""

    def hears(self, target: Target, ident: str) -> bool:
        """Whether this process receives the messages for a target now."""

    def follow(self, room: str) -> Awaitable[None] | None:
        """Begin to receive a room's messages: it has got its first member here.

        Returns:
            None if they are received already, else something to await until they are. Awaiting it
            ends without an error also when the link breaks: what is missed then is `Receiver.lost`.
        """

    def unfollow(self, room: str) -> None:
        """Say that a room has no members here any more; its messages may go on for a while."""

    def shard_of(self, room: str) -> int | None:
        """Return the shard that a room's messages go through, None where there are no shards."""

    def strangers(self) -> tuple[str, ...]:
        """Return the ids of nodes of the original program heard of lately, which answer nothing."""

    def statistics(self) -> BusStatistics:
        """Return what the bus has done so far."""

    async def close(self) -> None:
        """Stop delivering and let go of everything; may be called more than once.

        What was published before is sent first, if it can be within a second.
        """
