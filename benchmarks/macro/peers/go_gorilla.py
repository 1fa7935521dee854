"""Peer: a Go program on gorilla/websocket, see gorilla/main.go."""

from __future__ import annotations

import os

from benchmarks.macro import control
from benchmarks.macro.errors import PeerMissing
from benchmarks.macro.peers.external import required
from benchmarks.macro.places import GO_BIN


def main() -> None:
    """Become the program."""
    try:
        program = required(GO_BIN / "gorilla", "the Go program on gorilla/websocket, built")
    except PeerMissing as missing:
        control.say("missing", reason=str(missing))
        return
    os.execv(program, [str(program)])


if __name__ == "__main__":
    main()
