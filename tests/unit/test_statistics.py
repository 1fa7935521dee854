"""The document of ``/websocket/status``."""

from __future__ import annotations

import dataclasses

import pytest

from falcon_fast.statistics import Health, Histogram, Statistics, status_document, worst

COUNTS = Statistics(
    total_connections=5,
    active_connections=2,
    total_rooms=3,
    messages_processed=40,
    messages_broadcast=90,
    last_connection_time=1_767_323_045.5,
)


@pytest.mark.parametrize(
    "health, message",
    [
        ("healthy", "WebSocket module is running"),
        ("degraded", "WebSocket module is running; some groups could not be read yet"),
        ("unhealthy", "WebSocket module is leaving"),
    ],
)
def test_the_whole_document(health: Health, message: str) -> None:
    assert status_document(
        COUNTS, health=health, node_id="n-1", nodes=1, websocket_url="wss://example.org/ws"
    ) == {
        "module": "websocket",
        "status": health,
        "stats": {
            "total_connections": 5,
            "active_connections": 2,
            "total_rooms": 3,
            "messages_processed": 40,
            "messages_broadcast": 90,
            "last_connection_time": "2026-01-02T03:04:05.500000Z",
        },
        "message": message,
        "node_id": "n-1",
        "nodes": 1,
        "websocket_url": "wss://example.org/ws",
    }


def test_before_the_first_connection_and_without_a_url() -> None:
    counts = dataclasses.replace(COUNTS, last_connection_time=None)
    document = status_document(counts, health="healthy", node_id="n-1", nodes=1, websocket_url=None)
    assert document["stats"] == {**dataclasses.asdict(counts), "last_connection_time": None}
    assert "websocket_url" not in document


def test_a_snapshot_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        COUNTS.total_rooms = 4  # type: ignore[misc]  # that is the point


def test_a_histogram_counts_each_value_in_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram([0.1, 1.0])
    for value in (0.0, 0.1, 0.11, 1.0, 5.0):
        histogram.add(value)
    assert histogram.bounds == (0.1, 1.0)
    assert histogram.counts == [2, 2, 1]
    assert histogram.sum == pytest.approx(6.21)


def test_the_counts_of_two_processes_together() -> None:
    none_yet = Statistics(1, 1, 1, 1, 1, None)
    assert COUNTS + none_yet == Statistics(6, 3, 4, 41, 91, COUNTS.last_connection_time)
    assert none_yet + COUNTS == COUNTS + none_yet
    assert (none_yet + none_yet).last_connection_time is None
    later = dataclasses.replace(COUNTS, last_connection_time=1_767_323_046.0)
    assert (COUNTS + later).last_connection_time == 1_767_323_046.0


def test_the_worst_of_several() -> None:
    assert worst("healthy", "healthy") == "healthy"
    assert worst("healthy", "degraded") == "degraded"
    assert worst("degraded", "unhealthy", "healthy") == "unhealthy"
