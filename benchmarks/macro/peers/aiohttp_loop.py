"""Peer: aiohttp's WebSocket server; a text at /room/N goes to all members of that room.

Members are written to one after the other without waiting for a slow one, as `send_str` of its
writer does below its high-water mark. Compression is off. Elsewhere a message comes back.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

from benchmarks.macro import control
from benchmarks.macro.control import LOOPS, Arguments
from benchmarks.macro.figures import Json

#: Connections the kernel may hold for us between two turns of the loop.
BACKLOG = 4096


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--loop", choices=LOOPS, default="uvloop")
    options = parser.parse_args()
    packages = ["aiohttp"] + (["uvloop"] if options.loop == "uvloop" else [])
    versions = control.require(packages)

    from aiohttp import WSMsgType, web

    rooms: defaultdict[str, set[web.WebSocketResponse]] = defaultdict(set)
    opened: set[web.WebSocketResponse] = set()

    async def member(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        room = rooms[request.path] if request.path.startswith("/room/") else None
        opened.add(socket)
        if room is not None:
            room.add(socket)
        try:
            async for message in socket:
                if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                    continue
                if room is None:
                    if message.type is WSMsgType.TEXT:
                        await socket.send_str(message.data)
                    else:
                        await socket.send_bytes(message.data)
                    continue
                for other in list(room):
                    try:
                        await other.send_str(message.data)
                    except ConnectionError:
                        room.discard(other)
        finally:
            opened.discard(socket)
            if room is not None:
                room.discard(socket)
        return socket

    def count(_arguments: Arguments) -> dict[str, Json]:
        return {"open": len(opened)}

    async def serve() -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", member)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=BACKLOG)
        await site.start()
        port = runner.addresses[0][1]
        control.say("ready", port=port, versions={**versions})
        await control.obey({"count": count, "settle": control.settle})

    control.run(serve, options.loop)


if __name__ == "__main__":
    main()
