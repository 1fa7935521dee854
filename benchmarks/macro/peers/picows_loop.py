"""Peer: picows as a user would write it, a listener a connection and a loop over `send`.

Echoes what it is sent (the example of picows' own README) and fans out by calling
`transport.send` for every member and message. `--tuned` is what its reference allows for many
quiet connections: a small read buffer, one shared logger and the event loop's own transport.
On the path /room/N it passes a text on to all members of that room instead.
"""

from __future__ import annotations

import argparse
import logging
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
    parser.add_argument("--tuned", action="store_true")
    options = parser.parse_args()
    packages = ["picows"] + (["uvloop"] if options.loop == "uvloop" else [])
    versions = control.require(packages)

    from picows import (
        WSFrame,
        WSListener,
        WSMsgType,
        WSTransport,
        WSUpgradeRequest,
        ws_create_server,
    )

    members: dict[WSTransport, None] = {}

    class Echo(WSListener):
        def on_ws_connected(self, transport: WSTransport) -> None:
            members[transport] = None

        def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
            if frame.msg_type == WSMsgType.CLOSE:
                transport.send_close(frame.get_close_code(), frame.get_close_message())
                transport.disconnect()
            else:
                transport.send(frame.msg_type, frame.get_payload_as_memoryview())

        def on_ws_disconnected(self, transport: WSTransport) -> None:
            members.pop(transport, None)

    rooms: defaultdict[bytes, dict[WSTransport, None]] = defaultdict(dict)

    class Member(Echo):
        def __init__(self, room: bytes) -> None:
            self._others = rooms[room]

        def on_ws_connected(self, transport: WSTransport) -> None:
            self._others[transport] = None
            members[transport] = None

        def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
            if frame.msg_type != WSMsgType.TEXT:
                super().on_ws_frame(transport, frame)
                return
            payload = frame.get_payload_as_bytes()
            for member in self._others:
                member.send(WSMsgType.TEXT, payload)

        def on_ws_disconnected(self, transport: WSTransport) -> None:
            self._others.pop(transport, None)
            members.pop(transport, None)

    def listener(request: WSUpgradeRequest) -> WSListener:
        return Member(request.path) if request.path.startswith(b"/room/") else Echo()

    def fan_out(arguments: Arguments) -> dict[str, Json]:
        payload = b"x" * arguments["bytes"]
        for _ in range(arguments["messages"]):
            for transport in members:
                transport.send(WSMsgType.TEXT, payload)
        return {"deliveries": len(members) * arguments["messages"]}

    def count(_arguments: Arguments) -> dict[str, Json]:
        return {"open": len(members)}

    async def serve() -> None:
        if options.tuned:
            logger = logging.getLogger("quiet")
            logger.setLevel(logging.CRITICAL)
            server = await ws_create_server(
                listener,
                "127.0.0.1",
                0,
                logger_name=logger,
                read_buffer_init_size=2048,
                use_aiofastnet=False,
                backlog=BACKLOG,
            )
        else:
            server = await ws_create_server(listener, "127.0.0.1", 0, backlog=BACKLOG)
        control.say("ready", port=server.sockets[0].getsockname()[1], versions={**versions})
        await control.obey({"fanout": fan_out, "count": count, "settle": control.settle})
        server.close()

    control.run(serve, options.loop)


if __name__ == "__main__":
    main()
