"""Peer: python-socketio on uvicorn; clients use the WebSocket transport only.

Each client is in the room that its URL names; what one says with the event "say" goes to the room.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from urllib.parse import parse_qs

from benchmarks.macro import control
from benchmarks.macro.control import LOOPS, Arguments
from benchmarks.macro.figures import Json

#: Connections the kernel may hold for us between two turns of the loop.
BACKLOG = 4096
#: Seconds between its pings: none within a run, while others have their turn it is stopped.
PING_INTERVAL = 3600


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--loop", choices=LOOPS, default="uvloop")
    options = parser.parse_args()
    try:
        import socketio
        import uvicorn
    except ImportError as error:
        control.say("missing", reason=f"Python package {error.name!r}")
        return
    packages = ("python-socketio", "uvicorn", "websockets")

    from importlib.metadata import version

    versions = {package: version(package) for package in packages}
    server = socketio.AsyncServer(
        async_mode="asgi", transports=["websocket"], ping_interval=PING_INTERVAL
    )
    rooms: dict[str, str] = {}

    async def connect(sid: str, environ: dict[str, str], _auth: object) -> None:
        rooms[sid] = parse_qs(environ["QUERY_STRING"])["room"][0]
        await server.enter_room(sid, rooms[sid])

    async def say(sid: str, text: str) -> None:
        await server.emit("say", text, room=rooms[sid])

    async def disconnect(sid: str, _reason: object = None) -> None:
        rooms.pop(sid, None)

    server.on("connect", connect)
    server.on("say", say)
    server.on("disconnect", disconnect)

    def count(_arguments: Arguments) -> dict[str, Json]:
        return {"open": len(rooms)}

    async def serve() -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        config = uvicorn.Config(
            socketio.ASGIApp(server),
            log_level="error",
            ws="websockets-sansio",
            ws_per_message_deflate=False,
            ws_ping_interval=None,
            backlog=BACKLOG,
            lifespan="off",
        )
        running = asyncio.create_task(uvicorn.Server(config).serve(sockets=[listener]))
        control.say("ready", port=listener.getsockname()[1], versions={**versions})
        await control.obey({"count": count, "settle": control.settle})
        running.cancel()

    control.run(serve, options.loop)


if __name__ == "__main__":
    main()
