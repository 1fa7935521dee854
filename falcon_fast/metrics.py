"""Prometheus metrics: read from the counters of a node when somebody scrapes, and not before.

In a node of several processes each reads its own and the node process adds them up: counters and
histograms always, gauges where a sum means something.

Nothing on the way of a message knows of metrics. The core and the gateway count what they do in
plain integers; a scrape reads these once and writes them down in Prometheus' text format. What each
metric means, and what to ask of it, is in docs/reference/metrics.md.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from falcon_fast._version import __version__
from falcon_fast.codes import CloseReason
from falcon_fast.gateway import Gateway

__all__ = ["Crew", "Figures", "Metrics", "add_figures", "lasting"]

_MICROSECONDS: Final = 1_000_000
"""A second has so many."""
_HEALTH: Final = ("healthy", "degraded", "unhealthy")

_SUMMED_GAUGES: Final = frozenset(
    {
        "falcon_compressing_connections",
        "falcon_connections",
        "falcon_handshakes_in_progress",
        "falcon_queue_bytes",
        "falcon_queued_connections",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
    }
)
"""Gauges of which a node has as much as its processes together; others are the node process's."""

Sample: TypeAlias = tuple[str, dict[str, str], float]
Figures: TypeAlias = dict[str, list[Sample]]
"""Samples by metric: (name, labels, value)."""


class Crew(Protocol):
    """The workers of a node, as its metrics see them."""

    @property
    def workers_up(self) -> int:
        """How many serve clients now."""

    @property
    def worker_restarts(self) -> int:
        """How often one was started again."""

    async def refresh(self) -> None:
        """Have all workers read their counters now; returns soon also if some do not."""

    def figures(self) -> Figures:
        """Return the sums of what all workers have read, also those that have ended."""


def add_figures(total: Figures, figures: Mapping[str, Iterable[Sample]]) -> None:
    """Add what one process has read to a sum."""
    for metric, samples in figures.items():
        mine = total.setdefault(metric, [])
        places = {_key(name, labels): place for place, (name, labels, _) in enumerate(mine)}
        for name, labels, value in samples:
            place = places.get(_key(name, labels))
            if place is None:
                mine.append((name, labels, value))
            else:
                mine[place] = (name, labels, mine[place][2] + value)


def lasting(figures: Figures) -> Figures:
    """Return what is left of the figures of a process that has ended: all but gauges."""
    return {metric: rows for metric, rows in figures.items() if metric not in _SUMMED_GAUGES}


def _key(name: str, labels: Mapping[str, str]) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


@dataclass(frozen=True, slots=True)
class _Families:
    """As much of a registry as is needed to write metrics down."""

    families: tuple[Metric, ...]

    def collect(self) -> Iterable[Metric]:
        return self.families


class Metrics:
    """What a scrape of one node answers.

    The registry is the node's own: a host program's metrics are not in it, and several nodes in
    one process do not meet.

    Args:
        gateway: the node.
        loop: the event loop's kind, as `asyncio` or `uvloop`.
        crew: the workers, for a node process that has some.
    """

    def __init__(self, gateway: Gateway, *, loop: str, crew: Crew | None = None) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Node(gateway, loop))
        ProcessCollector(registry=self._registry)
        self._crew = crew

    async def scrape(self) -> tuple[bytes, str]:
        """Have all processes of the node read their counters, and return what `render` does."""
        if self._crew is not None:
            await self._crew.refresh()
        return self.render()

    def render(self) -> tuple[bytes, str]:
        """Return the metrics in Prometheus' text format, and its content type."""
        families = list(self._registry.collect())
        if self._crew is not None:
            figures = self._crew.figures()
            for family in families:
                if _is_summed(family):
                    total: Figures = {}
                    add_figures(total, {family.name: _samples(family)})
                    add_figures(total, {family.name: figures.get(family.name, [])})
                    family.samples = []
                    for sample in total[family.name]:
                        family.add_sample(*sample)
            families += _workers(self._crew)
        # It asks nothing of a registry but to collect.
        text = generate_latest(_Families(tuple(families)))
        return text, CONTENT_TYPE_PLAIN_0_0_4

    def figures(self) -> Figures:
        """Return what a worker tells its node process of itself."""
        return {
            family.name: _samples(family)
            for family in self._registry.collect()
            if _is_summed(family)
        }


def _is_summed(family: Metric) -> bool:
    return family.type in {"counter", "histogram"} or family.name in _SUMMED_GAUGES


def _samples(family: Metric) -> list[Sample]:
    return [(one.name, dict(one.labels), one.value) for one in family.samples]


def _workers(crew: Crew) -> Iterator[Metric]:
    yield GaugeMetricFamily("falcon_workers", "Workers that serve clients.", crew.workers_up)
    yield CounterMetricFamily(
        "falcon_worker_restarts",
        "Workers that were started again after one had died.",
        crew.worker_restarts,
    )


class _Node(Collector):
    """Reads a gateway and its core."""

    def __init__(self, gateway: Gateway, loop: str) -> None:
        self._gateway = gateway
        self._loop = loop

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "falcon_build",
            "What is running.",
            {"version": __version__, "python": platform.python_version(), "loop": self._loop},
        )
        yield self._health()
        yield from self._connections()
        yield from self._rooms()
        yield from self._traffic()
        yield from self._compression()
        yield from self._ticks()
        yield from self._queues()
        yield from self._bus()
        yield _histogram(
            "falcon_event_loop_lag_seconds",
            "How much later than planned the loop ran a timer due one to four times a second.",
            self._gateway.lag.bounds,
            self._gateway.lag.counts,
            self._gateway.lag.sum,
        )

    def _health(self) -> Metric:
        family = GaugeMetricFamily(
            "falcon_health", "1 for the state the node is in, 0 for the others.", labels=["state"]
        )
        for state in _HEALTH:
            family.add_metric([state], float(self._gateway.health == state))
        return family

    def _connections(self) -> Iterator[Metric]:
        gateway = self._gateway
        statistics = gateway.own_statistics()
        yield GaugeMetricFamily(
            "falcon_connections", "Connections now.", statistics.active_connections
        )
        yield CounterMetricFamily(
            "falcon_connections_opened",
            "Connections ever taken over.",
            statistics.total_connections,
        )
        yield GaugeMetricFamily(
            "falcon_handshakes_in_progress",
            "Accepted sockets that have not got their answer yet.",
            gateway.waiting,
        )
        handshakes = CounterMetricFamily(
            "falcon_handshakes", "Answers to opening handshakes, by result.", labels=["result"]
        )
        for result, number in sorted(gateway.handshakes.items()):
            handshakes.add_metric([result], number)
        yield handshakes
        closes = CounterMetricFamily(
            "falcon_closes", "Connections that ended, by reason.", labels=["reason"]
        )
        for reason in CloseReason:
            closes.add_metric([reason.label], gateway.closes[reason])
        yield closes
        yield CounterMetricFamily(
            "falcon_slow_consumers",
            "Connections closed because they did not take what was sent to them.",
            gateway.closes[CloseReason.SLOW_CONSUMER],
        )

    def _rooms(self) -> Iterator[Metric]:
        personal, groups = self._gateway.room_counts()
        family = GaugeMetricFamily(
            "falcon_rooms", "Rooms with at least one member, by type.", labels=["type"]
        )
        family.add_metric(["personal"], personal)
        family.add_metric(["group"], groups)
        yield family

    def _traffic(self) -> Iterator[Metric]:
        core = self._gateway.core
        for name, meaning, value in (
            (
                "frames_received",
                "WebSocket frames from clients, control frames too.",
                core.frames_in,
            ),
            (
                "messages_received",
                "Complete messages from clients that were handled.",
                core.messages_in,
            ),
            (
                "messages_refused",
                "Messages from clients that were above their rate, and not handled.",
                core.refused,
            ),
            (
                "messages_published",
                "Messages from operators and host programs.",
                self._gateway.messages_from_service,
            ),
            ("bytes_received", "Bytes read from clients, after the handshake.", core.bytes_in),
            ("bytes_sent", "Bytes written to clients, after the handshake.", core.bytes_out),
            ("deliveries", "Messages queued, counted once for each receiver.", core.deliveries),
            ("sends", "Writes to sockets.", core.sends),
            ("ticks", "Turns of the loop in which something was sent.", core.flushes),
        ):
            yield CounterMetricFamily(f"falcon_{name}", meaning, value)

    def _bus(self) -> Iterator[Metric]:
        gateway = self._gateway
        yield GaugeMetricFamily(
            "falcon_nodes", "Nodes that are known, this one included.", gateway.nodes
        )
        yield GaugeMetricFamily(
            "falcon_bus_available",
            "1 if other nodes can be reached, as far as is known.",
            float(gateway.is_bus_available),
        )
        counts = gateway.bus_statistics
        for name, meaning, value in (
            ("published", "Messages handed to the link to other nodes.", counts.published),
            (
                "unpublished",
                "Messages that other nodes were not told of, for want of a link.",
                counts.unpublished,
            ),
            (
                "unconfirmed",
                "Messages whose link broke before it confirmed them.",
                counts.unconfirmed,
            ),
            ("received", "Messages of other nodes that came.", counts.received),
            ("ignored", "Of those, messages that nobody here is meant by.", counts.ignored),
            ("refused", "Of those, messages that are no valid messages.", counts.refused),
            ("duplicates", "Of those, messages that came before.", counts.duplicates),
            (
                "lost",
                "Messages that did not arrive, as far as their number is known.",
                counts.lost,
            ),
            ("gaps", "How often messages were found missing.", counts.gaps),
            ("reconnects", "How often a link was made again.", counts.reconnects),
            ("bytes_received", "Bytes read from the links.", counts.octets_in),
            ("bytes_sent", "Bytes written to the links.", counts.octets_out),
        ):
            yield CounterMetricFamily(f"falcon_bus_{name}", meaning, value)
        probe = counts.probe_seconds
        yield GaugeMetricFamily(
            "falcon_bus_probe_seconds",
            "How long the latest probe took through the bus and back.",
            float("nan") if probe is None else probe,
        )

    def _compression(self) -> Iterator[Metric]:
        core = self._gateway.core
        yield GaugeMetricFamily(
            "falcon_compressing_connections",
            "Connections that agreed on permessage-deflate.",
            core.deflating,
        )
        for name, meaning, value in (
            (
                "compressions",
                "Messages compressed, once for all receivers with the same window.",
                core.compressions,
            ),
            (
                "compression_input_bytes",
                "Bytes of messages before they were compressed.",
                core.compression_in,
            ),
            (
                "compression_output_bytes",
                "Bytes of the same messages as they were sent.",
                core.compression_out,
            ),
            (
                "compressed_deliveries",
                "Compressed messages sent or queued, counted once for each receiver.",
                core.compressed_deliveries,
            ),
            ("inflations", "Compressed messages from clients.", core.inflations),
            (
                "inflation_input_bytes",
                "Bytes of compressed messages from clients, as they came.",
                core.inflation_in,
            ),
            (
                "inflation_output_bytes",
                "Bytes of compressed messages from clients, inflated.",
                core.inflation_out,
            ),
        ):
            yield CounterMetricFamily(f"falcon_{name}", meaning, value)

    def _ticks(self) -> Iterator[Metric]:
        messages, microseconds = self._gateway.core.histograms()
        yield _histogram(
            "falcon_tick_messages",
            "Messages and control frames sent in one tick; one for a room counts once.",
            *messages,
        )
        bounds, counts, total = microseconds
        yield _histogram(
            "falcon_tick_send_seconds",
            "How long one tick took to hand its messages to all their receivers' sockets.",
            [bound / _MICROSECONDS for bound in bounds],
            counts,
            total / _MICROSECONDS,
        )

    def _queues(self) -> Iterator[Metric]:
        octets, waiting = self._gateway.core.queue_totals()
        yield GaugeMetricFamily(
            "falcon_queue_bytes", "Bytes that clients have not taken yet, in all.", octets
        )
        yield GaugeMetricFamily(
            "falcon_queued_connections", "Connections with something in their queue.", waiting
        )


def _histogram(
    name: str, meaning: str, bounds: Sequence[float], counts: Sequence[int], total: float
) -> Metric:
    """Build a histogram of counts that are not cumulative, one more than there are bounds."""
    buckets: list[tuple[str, float]] = []
    below = 0
    for bound, count in zip(
        [*(repr(float(bound)) for bound in bounds), "+Inf"], counts, strict=True
    ):
        below += count
        buckets.append((bound, below))
    return HistogramMetricFamily(name, meaning, buckets=buckets, sum_value=total)
