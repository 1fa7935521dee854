"""When descriptors run out (R05): the server stays, says little, and goes on when it has some."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from ..support.canary import Canary
from ..support.client import Client, Wire, request
from ..support.server import ServerProcess, eventually, serving

pytestmark = pytest.mark.integration

SPARE = 40
"""Descriptors that are left when the limit is set."""

CLIENTS = 100

LOG_LINES = 20


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    settings = {"WEBSOCKET_DEBUG": "0"}
    with serving(tmp_path_factory.mktemp("server"), settings) as server:
        yield server


def test_r05_server_survives_and_recovers(server: ServerProcess) -> None:
    with Canary(server) as canary:
        before = server.log_size()
        fds = server.fds()
        server.limit_fds(fds + SPARE)
        wires = [server.wire() for _ in range(CLIENTS)]
        head = request(token=server.token("u"))
        for wire in wires:
            wire.send(head[:20])
        eventually(lambda: server.fds() >= fds + SPARE - 4, "descriptors have run out")

        # Nobody spins, and who is in is served.
        rounds, cpu, began = canary.rounds, server.cpu_seconds(), time.monotonic()
        time.sleep(1.0)  # a while in which little may happen
        used = (server.cpu_seconds() - cpu) / (time.monotonic() - began)
        assert used < 0.5, f"{used:.0%} of a processor"
        assert canary.rounds > rounds
        lines = server.log(before).count("\n")
        assert lines <= LOG_LINES, server.log(before)[-3000:]

        # When some are given back, everybody is served again.
        server.hang_up()
        assert enters_within(server, 3.0)
        server.limit_fds(1000)
        clients = [server.connect(f"later-{n}") for n in range(CLIENTS)]
        for client in clients:
            assert client.sync() == []
        assert "exception" not in server.log()
        assert "Traceback" not in server.log()


def enters_within(server: ServerProcess, seconds: float) -> bool:
    """Try to connect until it works."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(Exception):
            wire = server.wire()
            wire.socket.settimeout(0.5)
            client = Client(wire)
            client.open(token=server.token("again"))
            client.enter()
            return True
        time.sleep(0.05)
    return False


def test_r05_limit_at_the_start_is_the_number_of_connections(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """With few descriptors the node is full early, and says so instead of running out."""
    settings = {"FALCON_MAX_CONNECTIONS": "10"}
    with serving(tmp_path_factory.mktemp("server"), settings) as server:
        clients = [server.connect(f"u{n}") for n in range(10)]
        waiting: list[Wire] = [server.wire() for _ in range(CLIENTS)]
        for wire in waiting:
            wire.send(request(token=server.token("late")))
        for wire in waiting:
            assert wire.read_answer().status == 503
        for client in clients:
            assert client.sync() == []
