"""Metrics: every name is documented and on the dashboard's way, values are those of the node."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from falcon_fast._version import __version__
from falcon_fast.bus import BusStatistics, Target
from falcon_fast.codes import CloseReason
from falcon_fast.handshake import NO_TOKEN
from falcon_fast.metrics import Figures, Metrics
from falcon_fast.statistics import Histogram

from ..support import ROOT
from ..support.deflate import OFFER, packed_text
from ..support.directory import group
from ..support.frames import text
from ..support.gateway import Node
from ..support.loop import FakeTimeLoop, turns
from ..support.transport import FakeTransport

loop_factory = FakeTimeLoop

NAME = re.compile(r"\b(?:falcon|process)_[a-z_]+\b")
# Names of settings and packages, and the labels' values, are no metrics.
REFERENCE = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")
HOWTO = (ROOT / "docs/howto/watch-with-prometheus.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((ROOT / "docs/howto/grafana-dashboard.json").read_text(encoding="utf-8"))


@pytest.fixture
async def node() -> Node:
    return Node()


class NoWorkers:
    """What a node process sees of workers that have done nothing."""

    workers_up = 0
    worker_restarts = 0

    async def refresh(self) -> None:
        pass

    def figures(self) -> Figures:
        return {}


@pytest.fixture
def metrics(node: Node) -> Metrics:
    return Metrics(node.gateway, loop="test", crew=NoWorkers())


def scrape(metrics: Metrics) -> dict[str, Metric]:
    """Read the answer with the parser of Prometheus' own client, by family."""
    body, content_type = metrics.render()
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    return {family.name: family for family in text_string_to_metric_families(body.decode())}


def values(metrics: Metrics) -> dict[str, float]:
    """Return every sample, as name{label="value"}."""
    found: dict[str, float] = {}
    for family in scrape(metrics).values():
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            name = sample.name + (f"{{{labels}}}" if labels else "")
            assert name not in found, f"{name} comes twice"
            found[name] = sample.value
    return found


def series(metrics: Metrics) -> set[str]:
    """Return the names of all series."""
    return {sample.name for family in scrape(metrics).values() for sample in family.samples}


def expressions(panel: dict[str, object]) -> Iterator[str]:
    targets = panel["targets"]
    assert isinstance(targets, list)
    for target in targets:
        yield target["expr"]


async def test_every_metric_has_a_row_in_the_reference_and_every_row_a_metric(
    metrics: Metrics,
) -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| (\w+) \|([^|]*)\|", REFERENCE, re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    found: dict[str, tuple[str, set[str]]] = {}
    for family in scrape(metrics).values():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        # The parser takes the counter's suffix off the family; people write it.
        name = family.name + ("_total" if family.type == "counter" else "")
        found[name] = (family.type, labels)
    # What a fresh node has not counted yet has no labels to show.
    found["falcon_handshakes_total"] = ("counter", {"result"})
    assert found == documented


async def test_names_in_queries_exist(metrics: Metrics) -> None:
    known = series(metrics) | {"falcon_fast", "falcon_handshakes_total"}
    dashboard = [query for panel in DASHBOARD["panels"] for query in expressions(panel)]
    dashboard += [variable["query"] for variable in DASHBOARD["templating"]["list"]]
    families = set(scrape(metrics))
    for source in (*dashboard, REFERENCE, HOWTO):
        unknown = set(NAME.findall(source)) - known - families - {"process_"}
        assert unknown == set(), source[:200]
    assert all(NAME.search(query) for query in dashboard if query != "prometheus")


async def test_the_dashboard_shows_what_was_asked_for(metrics: Metrics) -> None:
    shown = " ".join(query for panel in DASHBOARD["panels"] for query in expressions(panel))
    missing = {
        name
        for name in series(metrics)
        if name.startswith("falcon_")
        and not name.endswith(("_sum", "_count"))
        and name not in shown
    }
    # Seen as a bucket, in the reference only, or as the choice of nodes.
    assert missing == {
        "falcon_build_info",
        "falcon_frames_received_total",
        "falcon_health",
        "falcon_ticks_total",
        "falcon_worker_restarts_total",
        "falcon_workers",
    }
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)


async def test_each_gauge_is_summed_over_workers_or_has_no_sum(
    node: Node, metrics: Metrics
) -> None:
    gauges = {family.name for family in scrape(metrics).values() if family.type == "gauge"}
    summed = set(metrics.figures())
    # Of a node there is one of these, whatever the number of its processes.
    assert gauges - summed == {
        "falcon_build_info",
        "falcon_bus_available",
        "falcon_bus_probe_seconds",
        "falcon_health",
        "falcon_nodes",
        "falcon_rooms",
        "falcon_workers",
        "process_max_fds",
        "process_start_time_seconds",
    }
    assert "falcon_connections" in summed
    alone = Metrics(node.gateway, loop="test")
    assert series(metrics) - series(alone) == {"falcon_workers", "falcon_worker_restarts_total"}


async def test_names_follow_the_conventions(metrics: Metrics) -> None:
    for family in scrape(metrics).values():
        assert family.documentation.endswith(".")
        if family.type == "counter" and family.name.startswith("falcon_"):
            assert all(sample.name.endswith("_total") for sample in family.samples)
        else:
            assert not family.name.endswith("_total")
        assert not re.search(r"_(ms|us|milliseconds|microseconds|kib|ratio|percent)\b", family.name)


async def test_what_a_node_did_is_what_a_scrape_says(node: Node, metrics: Metrics) -> None:
    room = group(1)
    ann = await node.connect("ann", room)
    bob = await node.connect("bob", room)
    node.gateway.refused(NO_TOKEN)
    node.gateway.refused(NO_TOKEN)
    ann.put(text(f'{{"type":"message","room":"group:{room.id}","data":{{"n":1}}}}'))
    await turns()
    await node.gateway.send(Target.USER, "bob", b"{}")
    await turns()
    bob.leave()
    await turns()
    core = node.gateway.core
    found = values(metrics)
    expected = {
        "falcon_connections": 1,
        "falcon_connections_opened_total": 2,
        'falcon_handshakes_total{result="accepted"}': 2,
        f'falcon_handshakes_total{{result="{NO_TOKEN.label}"}}': 2,
        "falcon_handshakes_in_progress": 0,
        'falcon_closes_total{reason="peer_closed"}': 1,
        'falcon_closes_total{reason="slow_consumer"}': 0,
        "falcon_slow_consumers_total": 0,
        'falcon_rooms{type="personal"}': 1,
        'falcon_rooms{type="group"}': 1,
        "falcon_frames_received_total": 2,
        "falcon_messages_received_total": 1,
        "falcon_messages_refused_total": 0,
        "falcon_messages_published_total": 1,
        "falcon_bytes_received_total": core.bytes_in,
        "falcon_bytes_sent_total": core.bytes_out,
        "falcon_deliveries_total": core.deliveries,
        "falcon_sends_total": core.sends,
        "falcon_ticks_total": core.flushes,
        "falcon_tick_messages_count": core.flushes,
        "falcon_tick_send_seconds_count": core.flushes,
        "falcon_compressing_connections": 0,
        "falcon_compressions_total": 0,
        "falcon_queue_bytes": 0,
        "falcon_queued_connections": 0,
        'falcon_health{state="healthy"}': 1,
        'falcon_health{state="degraded"}': 0,
        'falcon_health{state="unhealthy"}': 0,
    }
    assert {name: found[name] for name in expected} == expected
    assert core.bytes_out > 0 < core.flushes
    info = {
        sample.labels["version"]: sample.labels["loop"]
        for sample in scrape(metrics)["falcon_build_info"].samples
    }
    assert info == {__version__: "test"}


async def test_what_the_bus_did_is_what_a_scrape_says(
    node: Node, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert math.isnan(values(metrics)["falcon_bus_probe_seconds"])
    counts = BusStatistics(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0.25)
    monkeypatch.setattr(node.bus, "statistics", lambda: counts)
    found = values(metrics)
    names = (
        *("published", "unpublished", "unconfirmed", "received", "ignored", "refused"),
        *("duplicates", "lost", "gaps", "reconnects", "bytes_received", "bytes_sent"),
    )
    assert [found[f"falcon_bus_{name}_total"] for name in names] == list(range(1, 13))
    assert found["falcon_bus_probe_seconds"] == 0.25
    assert (found["falcon_bus_available"], found["falcon_nodes"]) == (1, 1)


async def test_one_compression_is_counted_whatever_the_number_of_receivers(
    node: Node, metrics: Metrics
) -> None:
    core = node.gateway.core
    news = b'{"type":"message","data":"' + b"all is well " * 90 + b'"}'
    room = group(1)
    for name in ("ann", "bob", "eve", "dan"):
        await node.connect(name, room, offer=None if name == "dan" else OFFER)
    before = values(metrics)
    assert node.gateway.deliver(Target.ROOM, f"group:{room.id}", news) == 4
    await turns()
    fay = node.dial("fay", offer=OFFER)
    await turns()
    fay.put(packed_text('{"type":"heartbeat"}'))
    await turns()
    after = values(metrics)
    changes = {
        name: after[f"falcon_{name}"] - before[f"falcon_{name}"]
        for name in (
            *("compressing_connections", "compressions_total", "compressed_deliveries_total"),
            *("compression_input_bytes_total", "inflations_total", "inflation_output_bytes_total"),
        )
    }
    assert changes == {
        "compressing_connections": 1,
        "compressions_total": 1,
        "compressed_deliveries_total": 3,
        "compression_input_bytes_total": len(news),
        "inflations_total": 1,
        "inflation_output_bytes_total": len('{"type":"heartbeat"}'),
    }
    assert after["falcon_compressing_connections"] == 4
    assert after["falcon_compression_output_bytes_total"] == core.compression_out < len(news) / 5
    assert after["falcon_inflation_input_bytes_total"] == core.inflation_in > 0


async def test_closes_have_every_reason_from_the_start(metrics: Metrics) -> None:
    # A counter that appears with its first event hides that event from rate().
    reasons = {sample.labels["reason"] for sample in scrape(metrics)["falcon_closes"].samples}
    assert reasons == {reason.label for reason in CloseReason}


async def test_who_does_not_read_is_seen_in_the_queue_and_then_as_a_slow_consumer(
    metrics: Metrics, node: Node
) -> None:
    transport = FakeTransport(high=0)
    ann = node.dial("ann", transport=transport)
    await turns()
    transport.stall()
    for _ in range(3):
        ann.session.send(b"x" * 98)
        await turns()
    found = values(metrics)
    assert (found["falcon_queue_bytes"], found["falcon_queued_connections"]) == (200, 1)
    for _ in range(2000):
        if node.gateway.core.count:
            ann.session.send(b"x" * 98)
        await turns(1)
    found = values(metrics)
    assert found["falcon_slow_consumers_total"] == 1
    assert found['falcon_closes_total{reason="slow_consumer"}'] == 1


async def test_histograms_are_cumulative_and_in_seconds(node: Node, metrics: Metrics) -> None:
    for lag in (0.0, 0.001, 0.003, 9.0):
        node.gateway.lag.add(lag)
    found = values(metrics)

    def bucket(bound: str) -> float:
        return found[f'falcon_event_loop_lag_seconds_bucket{{le="{bound}"}}']

    assert [bucket(bound) for bound in ("0.001", "0.0025", "0.005", "5.0", "+Inf")] == [
        *(2, 2, 3, 3, 4)
    ]
    assert found["falcon_event_loop_lag_seconds_sum"] == pytest.approx(9.004)
    assert found["falcon_event_loop_lag_seconds_count"] == 4
    bounds = [
        float(bound) for bound in re.findall(r'tick_send_seconds_bucket{le="(.*?)"', str(found))
    ]
    assert bounds[:-1] == sorted({*bounds} - {float("inf")})
    assert bounds[0] == pytest.approx(1e-05)
    assert bounds[-2] == 0.5


async def test_memory_is_that_of_the_process(metrics: Metrics) -> None:
    assert values(metrics)["process_resident_memory_bytes"] > 10_000_000


async def test_nodes_of_one_process_do_not_meet() -> None:
    one, other = Node(), Node()
    await one.connect("ann")
    assert values(Metrics(one.gateway, loop="test"))["falcon_connections"] == 1
    assert values(Metrics(other.gateway, loop="test"))["falcon_connections"] == 0


def test_a_value_equal_to_a_bound_is_below_it() -> None:
    histogram = Histogram([1.0, 2.0])
    for value in (0.0, 1.0, 1.5, 2.0, 2.5):
        histogram.add(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.sum == 7.0
