"""What the processes of one node tell each other of themselves: orders, reports, shares of both.

Pure: how it travels is `bus.hub`'s and `bus.node_link`'s, what is done with it `workers`' (in the
node process) and `worker`'s. All of them are the same version of one program.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

import orjson

from falcon_fast.metrics import Figures
from falcon_fast.settings import Settings
from falcon_fast.statistics import Health, Share, Statistics

__all__ = [
    "BEGIN",
    "DRAIN",
    "DRAINED",
    "FAILED",
    "FIGURES",
    "FIGURES_EVERY",
    "READY",
    "REPORT",
    "REPORT_EVERY",
    "SHARE",
    "STOP",
    "Order",
    "Report",
    "read_order",
    "read_report",
    "read_share",
    "write_order",
    "write_report",
    "write_share",
]

# Notes of the node process to a worker.
BEGIN: Final = "begin"
SHARE: Final = "share"
DRAIN: Final = "drain"
STOP: Final = "stop"
FIGURES: Final = "figures"

# Notes of a worker to the node process.
READY: Final = "ready"
FAILED: Final = "failed"
REPORT: Final = "report"
DRAINED: Final = "drained"

REPORT_EVERY: Final = 0.25
"""Seconds between two reports of a worker; each is answered with what the others have done."""

FIGURES_EVERY: Final = 40
"""Reports of which one has the figures for the metrics, unasked: what is left of a dead worker."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is told to be. It has secrets: it travels over the pipe and nowhere else.

    Attributes:
        settings: of the node, with the port in use.
        node_id: of the node.
        process_id: of the worker.
        epoll: False to leave all connections on their asyncio transports.
    """

    settings: Settings
    node_id: str
    process_id: str
    epoll: bool = True


def write_order(order: Order) -> bytes:
    """Return an order as JSON."""
    return orjson.dumps(dataclasses.asdict(order))


def read_order(body: bytes) -> Order:
    """Read what `write_order` has written."""
    document: dict[str, Any] = orjson.loads(body)
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in document.pop("settings").items()
    }
    return Order(Settings(**settings), **document)


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker says of itself.

    Attributes:
        statistics: what it has done.
        health: how it is.
        problem: why it would turn away who connects now; None if it would not.
        figures: for the metrics; None where they are those of the report before.
    """

    statistics: Statistics = Share().statistics
    health: Health = "healthy"
    problem: str | None = None
    figures: Figures | None = None


def write_report(report: Report) -> bytes:
    """Return a report as JSON."""
    return orjson.dumps(report)


def read_report(body: bytes) -> Report:
    """Read what `write_report` has written."""
    document: dict[str, Any] = orjson.loads(body)
    read: dict[str, Any] | None = document.pop("figures")
    figures = (
        None
        if read is None
        else {
            metric: [(name, labels, value) for name, labels, value in samples]
            for metric, samples in read.items()
        }
    )
    return Report(Statistics(**document.pop("statistics")), figures=figures, **document)


def write_share(share: Share) -> bytes:
    """Return a share as JSON."""
    return orjson.dumps(share)


def read_share(body: bytes) -> Share:
    """Read what `write_share` has written."""
    document: dict[str, Any] = orjson.loads(body)
    return Share(Statistics(**document.pop("statistics")), **document)
