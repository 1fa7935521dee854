"""Peer: the `websockets` package, its `broadcast` for fan-out and its iterator for echo.

Compression is off, as its own advice on memory says. Keepalive pings stay as they come unless
`--no-keepalive` asks for silence, which is what a measurement of something else needs, or the
environment's BENCHMARK_PING for another interval.
On the path /room/N it broadcasts a text to all members of that room instead.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict

from benchmarks.macro import control
from benchmarks.macro.control import LOOPS, Arguments
from benchmarks.macro.figures import Json

#: Connections the kernel may hold for us between two turns of the loop.
BACKLOG = 4096
#: Seconds between keepalive pings, as the package has it.
KEEPALIVE = 20.0


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--loop", choices=LOOPS, default="uvloop")
    parser.add_argument("--no-keepalive", action="store_true")
    options = parser.parse_args()
    keepalive = None if options.no_keepalive else KEEPALIVE
    if told := os.environ.get("BENCHMARK_PING"):
        keepalive = float(told)
    packages = ["websockets"] + (["uvloop"] if options.loop == "uvloop" else [])
    versions = control.require(packages)

    from websockets.asyncio.server import ServerConnection, broadcast, serve

    members: set[ServerConnection] = set()

    rooms: defaultdict[str, set[ServerConnection]] = defaultdict(set)

    async def relay(connection: ServerConnection, room: set[ServerConnection]) -> None:
        room.add(connection)
        try:
            async for message in connection:
                broadcast(room, message)
        finally:
            room.discard(connection)

    async def echo(connection: ServerConnection) -> None:
        if connection.request is not None and connection.request.path.startswith("/room/"):
            await relay(connection, rooms[connection.request.path])
            return
        members.add(connection)
        try:
            async for message in connection:
                await connection.send(message)
        finally:
            members.discard(connection)

    def fan_out(arguments: Arguments) -> dict[str, Json]:
        payload = "x" * arguments["bytes"]
        for _ in range(arguments["messages"]):
            broadcast(members, payload)
        return {"deliveries": len(members) * arguments["messages"]}

    def count(_arguments: Arguments) -> dict[str, Json]:
        return {"open": len(members)}

    async def run() -> None:
        async with serve(
            echo,
            "127.0.0.1",
            0,
            compression=None,
            ping_interval=keepalive,
            backlog=BACKLOG,
        ) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            control.say("ready", port=port, versions={**versions})
            await control.obey({"fanout": fan_out, "count": count, "settle": control.settle})

    control.run(run, options.loop)


if __name__ == "__main__":
    main()
