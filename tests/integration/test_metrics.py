"""Metrics and the log of a real server, side by side."""

from __future__ import annotations

import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ..support.server import ServerProcess, eventually

pytestmark = pytest.mark.integration

BAD_FRAME = b"\xff\xff\xff\xff\xff\xff"


def scrape(server: ServerProcess) -> dict[tuple[str, str], float]:
    """Return every sample by its name and the value of its label, if it has one."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.admin_port}/metrics") as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        body = answer.read().decode()
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def test_a_scrape_tells_what_clients_did(server: ServerProcess) -> None:
    before = scrape(server)
    client = server.connect("ann", 1)
    client.say(type="message", room="user:ann", data={})
    client.sync()
    during = scrape(server)
    client.close()
    eventually(lambda: server.connections() == 0, "the connection has ended")
    after = scrape(server)

    def gained(name: str, label: str = "") -> float:
        return after[name, label] - before.get((name, label), 0)

    assert during["falcon_connections", ""] - before["falcon_connections", ""] == 1
    assert gained("falcon_connections") == 0
    assert gained("falcon_connections_opened_total") == 1
    assert gained("falcon_handshakes_total", "accepted") == 1
    assert gained("falcon_messages_received_total") >= 2
    assert gained("falcon_bytes_sent_total") > 100
    assert after["process_resident_memory_bytes", ""] > 10_000_000
    assert gained("falcon_tick_send_seconds_count") == gained("falcon_ticks_total") > 0
    # The timer runs four times a second; nothing but waiting makes it run.
    eventually(
        lambda: scrape(server)["falcon_event_loop_lag_seconds_count", ""] > 0, "the loop ticks"
    )


def test_r11_a_flood_of_bad_frames_is_sampled_in_the_log_and_counted_in_full(
    server: ServerProcess,
) -> None:
    size = server.log_size()
    clients = [server.connect(f"flood-{number}", number) for number in range(60)]
    began = time.monotonic()
    for client in clients:
        client.wire.send(BAD_FRAME)
    for client in clients:
        assert client.closing()[0] == 1002
    eventually(lambda: server.connections() == 0, "all have ended")
    seconds = time.monotonic() - began
    lines = [
        line
        for line in server.log(size).splitlines()
        if "connection closed" in line and "protocol_error" in line
    ]
    # Ten in each second that was begun.
    assert 10 <= len(lines) <= 10 * (int(seconds) + 2) < 60
    assert scrape(server)["falcon_closes_total", "protocol_error"] == 60
