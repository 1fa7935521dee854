"""Peer: Bun, see bun_server.js."""

from __future__ import annotations

import os

from benchmarks.macro import control
from benchmarks.macro.errors import PeerMissing
from benchmarks.macro.peers.external import required
from benchmarks.macro.places import NODE_MODULES, SCRIPTS


def main() -> None:
    """Become Bun."""
    try:
        bun = required(NODE_MODULES / "@oven" / "bun-linux-x64" / "bin" / "bun", "Bun")
    except PeerMissing as missing:
        control.say("missing", reason=str(missing))
        return
    os.execv(bun, [str(bun), str(SCRIPTS / "bun_server.js")])


if __name__ == "__main__":
    main()
