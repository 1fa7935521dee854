"""An echo server on the same handshake and core, without authentication, for tools.

`python -m falcon_fast.testing --echo --port 9001` answers every message with itself, text and
binary as received. Conformance suites and load generators talk to this.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import ssl
import sys
from collections.abc import Sequence
from typing import Final

from falcon_fast._core import Core
from falcon_fast.codes import close_table
from falcon_fast.driver import CoreDriver
from falcon_fast.handshake import (
    Accept,
    Endpoint,
    Policy,
    Refuse,
    Request,
    client_address,
    extension,
    upgrade,
)
from falcon_fast.identity import Identity
from falcon_fast.upgrade import Listener, adopt, listen, plain_answer, server_port

__all__ = ["EchoServer", "main"]

ANYBODY: Final = Identity("anybody", 0, "anybody", "", 0, None)

log = logging.getLogger(__name__)


class _Client:
    """One connection of the echo server."""

    __slots__ = ("conn",)

    def __init__(self) -> None:
        self.conn = 0


class EchoServer:
    """Answers each message with itself.

    Args:
        path: where it upgrades.
        max_message_bytes: of one message.
        max_fragments: frames of one message.
        ping_interval: seconds; 0 sends no pings.
        epoll: False to serve all connections through their asyncio transports.
        tls: a certificate, or None.
        compression: False to pass over offers of permessage-deflate.
        compression_min_bytes: a shorter message is not compressed.
    """

    def __init__(
        self,
        *,
        path: str = "/",
        max_message_bytes: int = 65_536,
        max_fragments: int = 128,
        ping_interval: float = 0.0,
        epoll: bool = True,
        tls: ssl.SSLContext | None = None,
        compression: bool = True,
        compression_min_bytes: int = 512,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.policy = Policy(
            path=path, cookie_auth=False, allow_any_origin=True, compression=compression
        )
        self.handshake_timeout = 5.0
        self.waiting = 0
        self.max_waiting = 65_536
        self.core: Core[_Client] = Core(
            on_message=self._echo,
            on_close=lambda client, reason, code: None,
            on_refused=lambda client, first, number: None,
            on_expire=lambda client: None,
            on_error=lambda error: log.error("a connection failed", exc_info=error),
            schedule=loop.call_soon,
            close_table=close_table(),
            max_message_bytes=max_message_bytes,
            max_fragments=max_fragments,
            # An echo of a message of full size must fit, whatever else is queued.
            max_queue_bytes=max(1_048_576, 4 * max_message_bytes),
            max_queue_messages=65_536,
            ping_interval=ping_interval,
            ping_timeout=2 * ping_interval,
            deflate_min_bytes=compression_min_bytes,
            epoll=epoll,
        )
        self._driver = CoreDriver(self.core, loop)
        self._tls = tls
        self._server: Listener | None = None

    async def start(self, *, host: str = "127.0.0.1", port: int = 0) -> int:
        """Begin to accept connections; returns the port.

        Raises:
            OSError: the address cannot be bound.
        """
        self._driver.start()
        self._server = await listen(
            self, host=host, port=port, tls=self._tls, adopts=self.core.epoll_fd >= 0
        )
        return server_port(self._server)

    async def close(self) -> None:
        """End everything at once."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._driver.stop()

    def decide(self, request: Request, peer_ip: str) -> Accept | Refuse:
        """See `upgrade.Door`."""
        agreed = upgrade(request)
        if isinstance(agreed, Refuse):
            return agreed
        key, subprotocol = agreed
        address = client_address(request, peer_ip, self.policy)
        return Accept(ANYBODY, key, subprotocol, address, extension(request, self.policy))

    def answer(self, endpoint: Endpoint) -> bytes:
        """See `upgrade.Door`."""
        return plain_answer("200 OK", b"ok\n")

    def refused(self, refuse: Refuse) -> None:
        """See `upgrade.Door`."""

    def born(self, accept: Accept, transport: asyncio.Transport, early: bytes) -> None:
        """See `upgrade.Door`."""
        client = _Client()
        try:
            # Held until its handle is known: an early message would be echoed to nobody.
            client.conn = adopt(
                self.core, transport, client, early=early, paused=True, deflate=accept.deflate
            )
        except OSError:
            transport.abort()
            return
        self.core.resume(client.conn)

    def _echo(self, client: _Client, payload: bytes, is_text: bool) -> None:
        self.core.send(client.conn, payload, binary=not is_text)


async def _serve(arguments: argparse.Namespace) -> None:
    server = EchoServer(
        max_message_bytes=arguments.max_message_bytes,
        max_fragments=arguments.max_fragments,
        ping_interval=arguments.ping_interval,
        epoll=not arguments.no_epoll,
        compression=not arguments.no_compression,
        compression_min_bytes=arguments.compression_min_bytes,
    )
    port = await server.start(host=arguments.host, port=arguments.port)
    print(f"echo server on ws://{arguments.host}:{port}/", flush=True)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    await server.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the echo server until SIGINT or SIGTERM; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m falcon_fast.testing", description=__doc__)
    parser.add_argument("--echo", action="store_true", required=True, help="the kind of server")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port; 0 for any free one")
    parser.add_argument("--max-message-bytes", type=int, default=65_536, metavar="N")
    parser.add_argument("--max-fragments", type=int, default=128, metavar="N")
    parser.add_argument("--ping-interval", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--no-epoll", action="store_true", help="keep the asyncio transports")
    parser.add_argument("--no-compression", action="store_true", help="agree on no extension")
    parser.add_argument("--compression-min-bytes", type=int, default=512, metavar="N")
    parser.add_argument("--uvloop", action="store_true", help="run on uvloop")
    arguments = parser.parse_args(argv)
    factory = None
    if arguments.uvloop:
        import uvloop

        factory = uvloop.new_event_loop
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
