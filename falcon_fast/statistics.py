"""What a node has done: snapshots, the document that `/websocket/status` shows, a histogram."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from falcon_fast.clock import rfc3339

__all__ = ["Health", "Histogram", "Share", "Statistics", "status_document", "worst"]

Health = Literal["healthy", "degraded", "unhealthy"]

_MESSAGES: Final[dict[Health, str]] = {
    "healthy": "WebSocket module is running",
    "degraded": "WebSocket module is running; some groups could not be read yet",
    "unhealthy": "WebSocket module is leaving",
}

_MESSAGES_IN_ORDER: Final = tuple(_MESSAGES)

_CUT_OFF: Final = (
    "WebSocket module is running; other nodes are out of reach, messages stay on this node"
)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts of one node since it started.

    Attributes:
        total_connections: ever admitted.
        active_connections: now.
        total_rooms: now, with at least one member.
        messages_processed: messages handled from clients, and taken from the bus or the API.
        messages_broadcast: deliveries queued, one for each receiver.
        last_connection_time: seconds since 1970, None before the first.
    """

    total_connections: int
    active_connections: int
    total_rooms: int
    messages_processed: int
    messages_broadcast: int
    last_connection_time: float | None

    def __add__(self, other: Statistics) -> Statistics:
        """Return the counts of two processes together; a room of both is counted twice."""
        times = (self.last_connection_time, other.last_connection_time)
        return Statistics(
            self.total_connections + other.total_connections,
            self.active_connections + other.active_connections,
            self.total_rooms + other.total_rooms,
            self.messages_processed + other.messages_processed,
            self.messages_broadcast + other.messages_broadcast,
            max((time for time in times if time is not None), default=None),
        )


@dataclass(frozen=True, slots=True)
class Share:
    """What one process of a node needs to know of the others, to speak for the whole node.

    Attributes:
        statistics: of the others together, and of those that have ended; without their rooms.
        personal_rooms: with members on any process of the node, this one included.
        group_rooms: likewise.
        health: the worst of the others.
        problem: why one of them would say that the node is not ready; None if none would.
    """

    statistics: Statistics = Statistics(0, 0, 0, 0, 0, None)
    personal_rooms: int = 0
    group_rooms: int = 0
    health: Health = "healthy"
    problem: str | None = None


def worst(*states: Health) -> Health:
    """Return the state that is furthest from healthy."""
    return max(states, key=_MESSAGES_IN_ORDER.index)


class Histogram:
    """How often values of which size were seen.

    Args:
        bounds: the buckets' upper bounds, ascending; a value equal to one is below it.

    Attributes:
        counts: values in each bucket, not cumulative; one more than bounds, for what is above.
        sum: of all values.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Take note of a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


def status_document(
    statistics: Statistics,
    *,
    health: Health,
    node_id: str,
    nodes: int,
    websocket_url: str | None,
    is_alone: bool = False,
) -> dict[str, object]:
    """Return what `GET /websocket/status` answers, ready for JSON."""
    last = statistics.last_connection_time
    document: dict[str, object] = {
        "module": "websocket",
        "status": health,
        "stats": {
            "total_connections": statistics.total_connections,
            "active_connections": statistics.active_connections,
            "total_rooms": statistics.total_rooms,
            "messages_processed": statistics.messages_processed,
            "messages_broadcast": statistics.messages_broadcast,
            "last_connection_time": None if last is None else rfc3339(last),
        },
        "message": _CUT_OFF if health == "degraded" and is_alone else _MESSAGES[health],
        "node_id": node_id,
        "nodes": nodes,
    }
    if websocket_url is not None:
        document["websocket_url"] = websocket_url
    return document
