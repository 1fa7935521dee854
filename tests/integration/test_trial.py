"""`falcon-fast cluster`, as somebody who tries it out sees it."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from ..support import require
from ..support.client import Client, Wire
from ..support.process import running
from ..support.redis_server import HINT

pytestmark = pytest.mark.integration


def test_two_nodes_are_one_server_until_ctrl_c(tmp_path: Path) -> None:
    require("redis-server", hint=HINT)
    environment = {"TMPDIR": str(tmp_path), "JWT_SECRET": "", "REDIS_URL": ""}
    with running(
        "falcon_fast", "cluster", "--port", "0", folder=tmp_path, settings=environment
    ) as cluster:
        cluster.wait_for(r"^Ctrl\+C stops all of it")
        ports = [int(port) for port in re.findall(r"clients ws://127.0.0.1:(\d+)/", cluster.output)]
        tokens = {name: cluster.wait_for(f"^{name}: (\\S+)$")[1] for name in ("Alice", "Bob")}
        room = cluster.wait_for(r"group:[0-9a-f]{24}")[0]
        assert len(ports) == 2
        clients = []
        for port, token in zip(ports, tokens.values(), strict=True):
            client = Client(Wire(("127.0.0.1", port)))
            client.open(token=token)
            client.enter()
            clients.append(client)
        clients[0].say(id="1", type="message", room=room, data={"text": "Hello"})
        for client in clients:
            assert client.hear_message([])["data"] == {"text": "Hello"}
        # One node dies; the other goes on.
        victim = int(cluster.wait_for(r"kill -9 (\d+)$")[1])
        os.kill(victim, signal.SIGKILL)
        cluster.wait_for(f"the node of process {victim} has ended by itself")
        assert clients[0].ask(type="heartbeat")["data"]["status"] == "online"
        for client in clients:
            client.close()
        cluster.process.send_signal(signal.SIGINT)
        assert cluster.wait() == 0
    assert list(tmp_path.glob("falcon-cluster-*")) == []


def test_without_redis_it_says_what_to_do(tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path), "REDIS_URL": ""}
    with running("falcon_fast", "cluster", folder=tmp_path, settings=environment) as cluster:
        said = cluster.wait_for("^falcon-fast cluster: (.*)$")[1]
        assert said.startswith("redis-server: not found; install it")
        assert cluster.wait() == 1
