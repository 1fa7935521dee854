"""Where the peers that are not Python packages of this project are kept: .cache/peers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.macro.errors import BenchmarkError, PeerMissing

#: The variable is for those who keep them elsewhere, and for the tests.
PEERS = Path(os.environ.get("FALCON_BENCH_PEERS") or Path(__file__).parents[2] / ".cache" / "peers")
PYTHON_PACKAGES = PEERS / "python"
NODE_MODULES = PEERS / "node" / "node_modules"
DEBIAN = PEERS / "debian"
GO_BIN = PEERS / "go" / "bin"
#: Sources of the peers' programs.
SCRIPTS = Path(__file__).parent / "peers"
#: Where the Go distribution puts itself when it is not on the path.
GO_HOME = Path("/usr/local/go/bin/go")


def found(program: str) -> str:
    """Return the path of a program.

    Raises:
        PeerMissing: It is not there.
    """
    path = shutil.which(program)
    if path is None:
        raise PeerMissing(f"no program {program!r}")
    return path


def go() -> str:
    """Return the path of the Go tool.

    Raises:
        PeerMissing: It is not there.
    """
    return str(GO_HOME) if GO_HOME.exists() else found("go")


def build_go(name: str) -> Path:
    """Compile the Go program of a peer, with the modules it names, and return the executable.

    Args:
        name: Directory of its source below `SCRIPTS`.

    Raises:
        PeerMissing: There is no Go.
        BenchmarkError: It does not compile, or a module could not be had.
    """
    target = GO_BIN / name
    GO_BIN.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [go(), "build", "-mod=mod", "-o", str(target), "."],
        cwd=SCRIPTS / name,
        env={**os.environ, "GOFLAGS": "-mod=mod"},
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise BenchmarkError(f"{name}: {done.stderr.strip()[-400:]}")
    return target
