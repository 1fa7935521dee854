"""The server's core with the shortest possible road to it: what a fan-out itself costs.

A minimal handshake in front of `falcon_fast._core.Core`, one room with every connection in it, and
a command that fans out in one turn of the loop, so that neither a sending client nor an HTTP
request is in the account.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import itertools
import random
import socket
import sys
from collections.abc import Iterator

from benchmarks.macro import control
from benchmarks.macro.control import LOOPS, Arguments
from benchmarks.macro.figures import Json
from benchmarks.macro.servers import orders

#: Connections the kernel may hold for us between two turns of the loop.
BACKLOG = 4096
#: RFC 6455 section 1.3.
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#: RFC 7692: what the generator offers, and what is answered.
OFFER = b"Sec-WebSocket-Extensions: permessage-deflate"
AGREED = OFFER + b"; server_no_context_takeover; client_no_context_takeover\r\n"
#: Largest request head, in bytes; the generator sends it in one piece.
HEAD_MAX = 16384
#: Different messages of market orders that are sent in turn.
POOL = 64
#: Seconds between two turns of the core's timers.
TICK = 0.25
#: Seconds without a ping or a timeout: longer than any run.
NEVER = 7200.0


def switching(head: bytes) -> bytes:
    """Return the 101 for a request head; what is offered is agreed on."""
    key = next(
        line.partition(b":")[2].strip()
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"sec-websocket-key:")
    )
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n" + (AGREED if OFFER in head else b"") + b"\r\n"
    )


class Prepared(dict[int, Iterator[bytes]]):
    """Market orders of each size asked for, the same ones in every process."""

    def __missing__(self, size: int) -> Iterator[bytes]:
        draw = random.Random(size)
        found = self[size] = itertools.cycle([orders.message(draw, size) for _ in range(POOL)])
        return found


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--loop", choices=LOOPS, default="uvloop")
    parser.add_argument("--window", type=int, default=0, help="bits, to compress; 0 not to")
    options = parser.parse_args()
    try:
        from falcon_fast._core import Core
        from falcon_fast.codes import close_table
    except ImportError as error:
        control.say("missing", reason=f"falcon_fast with its extension built ({error.name})")
        return

    async def serve() -> None:
        loop = asyncio.get_running_loop()

        def on_error(error: BaseException) -> None:
            print(f"in a callback: {error!r}", file=sys.stderr)

        core: Core[None] = Core(
            on_message=lambda _owner, _payload, _is_text: None,
            on_close=lambda _owner, _reason, _code: None,
            on_refused=lambda _owner, _payload, _count: None,
            on_expire=lambda _owner: None,
            on_error=on_error,
            schedule=loop.call_soon,
            close_table=close_table(),
            ping_interval=NEVER / 2,
            ping_timeout=NEVER,
        )
        room = core.open_room()
        prepared = Prepared()
        listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        listener.setblocking(False)

        def upgrade(client: socket.socket) -> None:
            loop.remove_reader(client)
            head = client.recv(HEAD_MAX)
            if not head.endswith(b"\r\n\r\n"):
                client.close()
                return
            client.send(switching(head))
            connection = core.adopt_socket(client.detach(), None, deflate=options.window)
            core.join(connection, room)

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except BlockingIOError:
                    return
                client.setblocking(False)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                loop.add_reader(client, upgrade, client)

        def tick() -> None:
            core.tick()
            loop.call_later(TICK, tick)

        def fan_out(arguments: Arguments) -> dict[str, Json]:
            size, noted = arguments["bytes"], 0
            payloads = [b"x" * size] * arguments["messages"]
            if arguments.get("orders"):
                payloads = [next(prepared[size]) for _ in payloads]
            for payload in payloads:
                noted += core.fan_out(room, payload)
            return {"deliveries": noted}

        def count(_arguments: Arguments) -> dict[str, Json]:
            return {"open": core.count, "compressions": core.compressions}

        loop.add_reader(listener, accept)
        loop.add_reader(core.epoll_fd, core.ready)
        tick()
        control.say("ready", port=listener.getsockname()[1], versions={**control.server_versions()})
        await control.obey({"fanout": fan_out, "count": count, "settle": control.settle})
        loop.remove_reader(core.epoll_fd)
        loop.remove_reader(listener)
        core.shutdown()
        listener.close()

    control.run(serve, options.loop)


if __name__ == "__main__":
    main()
