"""Speak to the installed package with a client of another maker; make and cibuildwheel run it.

It must be started outside the tree, with an interpreter that has falcon-fast and websockets, and
fails with the first assertion that does not hold.
"""

from __future__ import annotations

import importlib.metadata
import socket
import subprocess
import sys
import sysconfig
import time
from contextlib import ExitStack
from pathlib import Path

from websockets.sync.client import connect

import falcon_fast
from falcon_fast import _core
from falcon_fast.admin import app

START_TIMEOUT = 20.0
"""Seconds in which the echo server must be listening; emulated processors are slow."""


def check_files() -> None:
    """The package must be the installed one, with a native core and the metadata's version."""
    library = Path(sysconfig.get_path("platlib")).resolve()
    for file in (falcon_fast.__file__, _core.__file__, app.__file__):
        assert Path(file).resolve().is_relative_to(library), f"{file} is not from {library}"
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert _core.__file__.endswith(suffix), f"{_core.__file__} is not native"
    assert importlib.metadata.version("falcon-fast") == falcon_fast.__version__


def check_command() -> None:
    """The script must be on the interpreter's own path and know its version."""
    script = Path(sysconfig.get_path("scripts")) / "falcon-fast"
    told = subprocess.run([script, "--version"], check=True, capture_output=True, text=True)
    assert falcon_fast.__version__ in told.stdout, told.stdout


def wait_for(port: int) -> None:
    """Return as soon as something listens."""
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def check_echo() -> None:
    """The echo server must return text and binary messages and close in order."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "falcon_fast.testing", "--echo", "--port", str(port)]
    with ExitStack() as stack:
        server = stack.enter_context(subprocess.Popen(command))
        stack.callback(server.terminate)
        wait_for(port)
        url = f"ws://127.0.0.1:{port}/"
        with connect(url, compression=None) as connection:
            for message in ("grüße", b"\x00\xff" * 20_000):
                connection.send(message)
                assert connection.recv(timeout=START_TIMEOUT) == message
        assert connection.close_code == 1000, connection.close_code


def main() -> None:
    """Run the checks in the order of what they need."""
    check_files()
    check_command()
    check_echo()
    print(f"falcon_fast {falcon_fast.__version__} works on Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
