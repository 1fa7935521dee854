"""Peer: Centrifugo; rooms are channels that anonymous clients may subscribe to and publish in.

As its page on tuning says: pooled write buffers, and no log of each client.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.macro.peers.external import host, required
from benchmarks.macro.places import GO_BIN

SERVER = GO_BIN / "centrifugo"


def main() -> None:
    """Run Centrifugo until stdin ends."""
    with tempfile.TemporaryDirectory(prefix="falcon-bench-") as directory:

        def command(port: int) -> Sequence[str]:
            required(SERVER, "Centrifugo")
            file = Path(directory, "config.json")
            file.write_text(json.dumps(configuration(port)))
            return [str(SERVER), "--config", str(file)]

        host(command, versions)


def configuration(port: int) -> dict[str, object]:
    """Return the settings of a node for strangers on a loopback port."""
    return {
        "http_server": {"address": "127.0.0.1", "port": str(port)},
        "log": {"level": "error"},
        "client": {
            "allow_anonymous_connect_without_token": True,
            "allowed_origins": ["*"],
        },
        "websocket": {"use_write_buffer_pool": True},
        "channel": {
            "without_namespace": {
                "allow_subscribe_for_client": True,
                "allow_subscribe_for_anonymous": True,
                "allow_publish_for_subscriber": True,
                "allow_publish_for_client": True,
                "allow_publish_for_anonymous": True,
            }
        },
    }


def versions() -> dict[str, str]:
    """Return the server's version."""
    done = subprocess.run([str(SERVER), "version"], capture_output=True, text=True, check=False)
    words = done.stdout.split()
    return {"centrifugo": words[1].lstrip("v") if len(words) > 1 else "unknown"}


if __name__ == "__main__":
    main()
