"""Runs a module of the server as `python -m` would, with a thread that answers the harness.

Usage: python -m benchmarks.macro.servers.hosted --replies FD --port N MODULE [ARGUMENT ...]

The program under test is untouched: it has the main thread, its own arguments and environment.
The thread sleeps on stdin; it is there because only the process itself can collect its garbage and
trim its heap before its memory is read. It says "ready" once the port takes connections.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import runpy
import socket
import sys
import threading
import time

from benchmarks.macro import control
from benchmarks.macro.figures import Json

#: Seconds between two looks at a port that does not listen yet.
POLL = 0.05


def wait_listening(port: int) -> None:
    """Return once something accepts connections on the loopback port."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(POLL)
        else:
            return


def runnable(module: str) -> bool:
    """Whether `python -m` would find something to run under this name."""
    try:
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{module}.__main__")
    except ImportError:
        return False
    return spec is not None


def main() -> None:
    """Run the module; ends when it does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--replies", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("module")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    replies = os.fdopen(options.replies, "w")

    def reply(event: str, **fields: Json) -> None:
        replies.write(json.dumps({"event": event, **fields}) + "\n")
        replies.flush()

    if not runnable(options.module):
        reply("missing", reason=f"Python module {options.module!r}")
        return

    def answer() -> None:
        wait_listening(options.port)
        reply("ready", port=options.port, versions={**control.server_versions()})
        for line in sys.stdin:
            if line.strip() == "settle":
                control.give_back_memory()
                reply("done")
            else:
                reply("error", reason="unknown command")

    threading.Thread(target=answer, name="harness", daemon=True).start()
    sys.argv = [options.module, *options.arguments]
    runpy.run_module(options.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
