"""The end of a server: everybody is told, nobody new comes in, and it ends with success (P01)."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from ..support.client import Answer, Client, Ended, request
from ..support.frames import CLOSE
from ..support.server import ServerProcess, eventually, serving

pytestmark = pytest.mark.integration

MANY = 300
SO_MANY_THAT_IT_TAKES_TIME = 500
"""A drain closes at most 100 connections in a tenth of a second."""

SETTINGS = {"FALCON_DRAIN_TIMEOUT": "30"}

GONE_WITHIN = 15.0


def crowd(server: ServerProcess, number: int) -> list[Client]:
    """Connect that many users."""
    return [server.connect(f"u{n}") for n in range(number)]


def is_draining(server: ServerProcess) -> bool:
    return "draining" in server.log()


def ended(server: ServerProcess) -> None:
    """The process has ended with success and without a complaint."""
    assert server.wait(GONE_WITHIN) == 0
    levels = {record["level"] for record in server.records()}
    assert levels <= {"debug", "info"}, server.log()[-3000:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_signal_drains(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path, SETTINGS, ends_itself=True) as server:
        clients = crowd(server, MANY)
        server.signal(number)
        eventually(lambda: is_draining(server), "it begins to drain")
        ready = server.get("/readyz")
        assert (ready.status, ready.body) == (503, b"draining\n")
        assert server.ask(request(token=server.token("late"))) == Answer(
            503,
            {
                "Content-Type": "text/plain; charset=utf-8",
                "Content-Length": "19",
                "Connection": "close",
                "Retry-After": "2",
            },
            b"Service Unavailable",
        )
        # It lives, and says that it is leaving.
        assert server.get("/healthz").status == 200
        assert server.status()["status"] == "unhealthy"
        for client in clients:
            assert client.closing() == (1012, "service restart")
        ended(server)


def test_drain_of_nobody_is_quick(tmp_path: Path) -> None:
    with serving(tmp_path, SETTINGS, ends_itself=True) as server:
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        ended(server)
        assert time.monotonic() - began < 3.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_second_signal_ends_at_once(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path, SETTINGS, ends_itself=True) as server:
        clients = crowd(server, SO_MANY_THAT_IT_TAKES_TIME)
        server.signal(signal.SIGTERM)
        eventually(lambda: is_draining(server), "it begins to drain")
        server.signal(number)
        ended(server)
        goodbyes = sum(said_goodbye(client) for client in clients)
        assert goodbyes < len(clients), "who was not told yet is not told any more"


def said_goodbye(client: Client) -> bool:
    """Tell whether the connection ended with a Close."""
    try:
        while (frame := client.wire.frame()).opcode != CLOSE:
            pass
    except Ended:
        return False
    assert frame.code == 1012
    return True


def test_drain_timeout_bounds_the_drain(tmp_path: Path) -> None:
    """With no time to spread them, all are told at once."""
    settings = {"FALCON_DRAIN_TIMEOUT": "0.5"}
    with serving(tmp_path, settings, ends_itself=True) as server:
        clients = crowd(server, MANY)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        for client in clients:
            assert client.closing() == (1012, "service restart")
        ended(server)
        assert time.monotonic() - began < 5.0
