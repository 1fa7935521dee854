"""Peer: socketify, uWebSockets under Python; topics for rooms, as its examples have it.

Elsewhere than at /room/N a message comes back.
"""

from __future__ import annotations

import importlib.metadata
import sys
import threading
from typing import Protocol

from benchmarks.macro import control
from benchmarks.macro.machine import free_port


class Request(Protocol):
    """What is used of socketify's request."""

    def get_header(self, name: str) -> str: ...
    def get_parameter(self, index: int) -> str: ...


class Response(Protocol):
    """What is used of its response."""

    def upgrade(self, key: str, protocol: str, extensions: str, context: object, data: str) -> None:
        """Make a WebSocket of it."""


class Socket(Protocol):
    """What is used of its WebSocket."""

    def subscribe(self, topic: str) -> None: ...
    def get_user_data(self) -> str: ...
    def send(self, message: str | bytes, opcode: int) -> None: ...


def main() -> None:
    """Serve until stdin ends."""
    try:
        from socketify import App, CompressOptions
    except ImportError as error:
        control.say("missing", reason=f"Python package {error.name!r}")
        return
    port = free_port()
    app = App()
    opened = 0

    def upgrade(response: Response, request: Request, context: object) -> None:
        response.upgrade(
            request.get_header("sec-websocket-key"),
            request.get_header("sec-websocket-protocol"),
            request.get_header("sec-websocket-extensions"),
            context,
            request.get_parameter(0),
        )

    def entered(ws: Socket) -> None:
        nonlocal opened
        opened += 1
        ws.subscribe(ws.get_user_data())

    def said(ws: Socket, message: str | bytes, opcode: int) -> None:
        app.publish(ws.get_user_data(), message, opcode)

    def gone(ws: Socket, code: int, message: object) -> None:
        nonlocal opened
        opened -= 1

    limits = {
        "compression": CompressOptions.DISABLED,
        "max_payload_length": 16 * 1024 * 1024,
        "idle_timeout": 120,
    }
    app.ws(
        "/room/:room",
        {**limits, "upgrade": upgrade, "open": entered, "message": said, "close": gone},
    )

    def echo(ws: Socket, message: str | bytes, opcode: int) -> None:
        ws.send(message, opcode)

    app.ws("/*", {**limits, "message": echo})

    def answer() -> None:
        for line in sys.stdin:
            if line.strip() == "settle":
                control.give_back_memory()
                control.say("done")
            elif line.strip() == "count":
                control.say("done", open=opened)
            else:
                control.say("error", reason="unknown command")

    def listening(_config: object) -> None:
        threading.Thread(target=answer, daemon=True).start()
        version = importlib.metadata.version("socketify")
        control.say("ready", port=port, versions={"socketify": version})

    app.listen({"port": port, "host": "127.0.0.1"}, listening)
    app.run()


if __name__ == "__main__":
    main()
