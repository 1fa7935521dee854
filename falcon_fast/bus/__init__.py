"""The bus port: how a published message reaches the connections it is for, on every node.

Contract, for every implementation:

* `publish` never blocks and may be called from any callback on the loop's thread. It hands the
  message to this node's connections at once, through the `deliver` given to `start`, and to other
  nodes as soon as possible.
* Messages of one publisher to one target arrive in the order of the calls; every member of a room
  on a node sees the messages of that room in one order.
* Each connection gets a message at most once.
* What could not be handed to the other nodes is never reported as sent: implementations that have
  other nodes raise `BusUnavailable` after the local delivery.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Protocol

__all__ = ["Bus", "Deliver", "Target"]


class Target(enum.Enum):
    """Whom a message is for."""

    ROOM = "room"
    CONNECTION = "connection"
    USER = "user"
    ALL = "all"


Deliver = Callable[[Target, str, bytes], int]
"""Called with (target, its id, frame); returns to how many connections it was given."""


class Bus(Protocol):
    """What the gateway needs of a bus."""

    async def start(self, deliver: Deliver) -> None:
        """Begin to deliver; called once, before anything is published.

        Raises:
            BusUnavailable: the bus cannot be reached and the implementation cannot wait for it.
        """

    def publish(self, target: Target, ident: str, frame: bytes) -> int:
        """Send a frame to a room, a connection, a user, or everybody (ident is then empty).

        Returns:
            The number of this node's connections the frame was queued to.

        Raises:
            BusUnavailable: other nodes could not be told; this node's connections were.
        """

    async def close(self) -> None:
        """Stop delivering and let go of everything; may be called more than once."""
