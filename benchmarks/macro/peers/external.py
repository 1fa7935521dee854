"""Runs a finished server as a child, on a port of its own, and answers the harness for it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.macro import control
from benchmarks.macro.errors import PeerMissing
from benchmarks.macro.machine import free_port

#: Seconds a server may take until its port takes connections.
START_TIMEOUT = 20.0


def required(path: Path, what: str) -> Path:
    """Return a path that exists.

    Raises:
        PeerMissing: It does not.
    """
    if not path.exists():
        raise PeerMissing(f"{what} (python -m benchmarks peers --install)")
    return path


def host(
    command: Callable[[int], Sequence[str]],
    versions: Callable[[], dict[str, str]],
    environment: dict[str, str] | None = None,
) -> None:
    """Run a server until stdin ends.

    Args:
        command: takes the port, returns what starts the server; raises PeerMissing.
        versions: returns versions by package, once the server runs.
        environment: beyond our own.
    """
    port = free_port()
    try:
        arguments = list(command(port))
    except PeerMissing as missing:
        control.say("missing", reason=str(missing))
        return
    # The harness says the end with a signal too, which by itself would leave the server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        env={**os.environ, **(environment or {})},
    )
    try:
        _wait(server, port)
        control.say("ready", port=port, versions={**versions()})
        for line in sys.stdin:
            if line.strip() == "settle":
                control.say("done")
            else:
                control.say("error", reason="unknown command")
    finally:
        server.terminate()
        try:
            server.wait(3)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    """Return once the port takes connections.

    Raises:
        SystemExit: The server ended, or does not listen in time.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"the server does not listen (exit code {server.poll()})")
