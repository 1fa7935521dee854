"""Peer: nats-server with its WebSocket listener; rooms are subjects."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.macro.machine import free_port
from benchmarks.macro.peers.external import host, required
from benchmarks.macro.places import PYTHON_PACKAGES

SERVER = PYTHON_PACKAGES / "bin" / "nats-server"
CONFIGURATION = """
listen: "127.0.0.1:{other}"
max_connections: 20000
websocket {{
    listen: "127.0.0.1:{port}"
    no_tls: true
    compression: false
}}
"""


def main() -> None:
    """Run nats-server until stdin ends."""
    with tempfile.TemporaryDirectory(prefix="falcon-bench-") as directory:

        def command(port: int) -> Sequence[str]:
            required(SERVER, "nats-server")
            file = Path(directory, "nats.conf")
            file.write_text(CONFIGURATION.format(port=port, other=free_port()))
            return [str(SERVER), "-c", str(file)]

        host(command, versions)


def versions() -> dict[str, str]:
    """Return the server's version."""
    done = subprocess.run([str(SERVER), "-v"], capture_output=True, text=True, check=False)
    return {"nats-server": done.stdout.strip().rpartition(" ")[2].lstrip("v")}


if __name__ == "__main__":
    main()
