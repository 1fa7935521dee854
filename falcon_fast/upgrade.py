"""From an accepted socket to an upgraded connection: the head is read here, then picows answers it.

picows' server protocol does the opening handshake, but cannot stand at the door alone: it closes
oversized heads without an answer, echoes its own error texts, refuses the `Connection` header that
Firefox sends, and swallows octets that arrive behind the head. So a `HeadReader` reads the head
under its limits and its deadline and has it decided. A refusal is answered here, with constant
octets. The 101 is picows' too, but not computed anew for everybody: picows answers one canonical
head of each kind, and in that answer only the accept value differs from client to client. Then the
connection is handed over to the core (`adopt`), together with whatever arrived early.
"""

from __future__ import annotations

import asyncio
import binascii
import functools
import hashlib
import logging
import os
import socket
import ssl
from collections.abc import Sequence
from typing import Final, Protocol, TypeAlias, TypeVar, cast

from picows import WSListener, WSTransport, WSUpgradeResponse, WSUpgradeResponseWithListener
from picows.picows import WSAutoPingStrategy, WSProtocol  # type: ignore[attr-defined]

from falcon_fast._core import Core
from falcon_fast.deflate import Deflate
from falcon_fast.doorstep import READ_SIZE, Doorstep, Guest, Visitor
from falcon_fast.handshake import (
    INTERNAL_ERROR,
    Accept,
    Endpoint,
    Policy,
    Refuse,
    Request,
    parse_head,
    route,
)
from falcon_fast.head import BAD_HEAD, HEAD_TOO_LARGE

__all__ = ["Door", "HeadReader", "Listener", "adopt", "listen", "plain_answer"]

LINGER: Final = 0.75
"""Seconds a refused client may take to read the answer before the socket is closed."""

BACKLOG: Final = 4096
"""Connections the kernel may hold for us while the loop is busy."""

END_OF_HEAD: Final = b"\r\n\r\n"

SAMPLE_KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="
GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455 section 1.3: a key, and what is put behind each key to make its accept value."""

log = logging.getLogger(__name__)

OwnerT = TypeVar("OwnerT")

Found: TypeAlias = tuple[Accept, bytes] | Refuse | bytes
"""What becomes of a request: an upgrade with its 101, a refusal, or a plain answer."""


class Door(Protocol):
    """What a `HeadReader` needs to know, and whom it tells."""

    policy: Policy
    handshake_timeout: float
    waiting: int  # connections before their 101; counted by the readers

    @property
    def max_waiting(self) -> int:
        """How many connections may be before their 101; further ones are closed at once."""

    def decide(self, request: Request, peer_ip: str) -> Accept | Refuse:
        """Decide about a request for the WebSocket path."""

    def answer(self, endpoint: Endpoint) -> bytes:
        """Answer one of the plain endpoints, the whole response."""

    def born(self, accept: Accept, transport: asyncio.Transport, early: bytes) -> None:
        """Take over a connection; its 101 has left, or is sent by `adopt` (`Visitor.answer`)."""

    def refused(self, refuse: Refuse) -> None:
        """Take note of a refusal."""


class Listener(Protocol):
    """What `listen` returns."""

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """The listening sockets."""

    def close(self) -> None:
        """Stop listening."""


class _Quiet:
    """A logger for picows that costs nothing and tells nothing.

    picows logs several lines for each connection, at one level even the whole head with its token,
    and makes a logger of its own for each connection of whatever is a `logging.Logger`.
    """

    def isEnabledFor(self, level: int) -> bool:
        return False

    def log(self, level: int, message: str, *args: object) -> None:
        pass

    def info(self, message: str, *args: object) -> None:
        pass

    warning = error = exception = info


class _Pen:
    """The transport picows sees while it answers: keeps what is written, and does nothing."""

    __slots__ = ("written",)

    def __init__(self) -> None:
        self.written = b""

    def get_extra_info(self, name: str) -> object:
        return self if name == "socket" else None

    def setsockopt(self, level: int, option: int, value: int) -> None:
        pass

    def getsockopt(self, level: int, option: int) -> int:
        return 0

    def fileno(self) -> int:
        return -1

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | bytearray) -> None:
        self.written += data


class _Listener(WSListener):
    """Hears from picows that the 101 was written."""

    upgraded = False

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.upgraded = True


_QUIET: Final = _Quiet()


def switching(key: str, subprotocol: str | None, extension: str | None = None) -> bytes:
    """Return the 101 for a client's key.

    Args:
        key: the Sec-WebSocket-Key, checked.
        subprotocol: the one that was agreed on, or None.
        extension: the value of Sec-WebSocket-Extensions, or None.
    """
    before, behind = _pattern(subprotocol, extension)
    return before + _accept_value(key) + behind


def switching_to(accept: Accept) -> bytes:
    """Return the 101 for an accepted request."""
    extension = None if accept.deflate is None else accept.deflate.answer
    return switching(accept.key, accept.subprotocol, extension)


def _accept_value(key: str) -> bytes:
    # RFC 6455 section 4.2.2, step 5.4.
    digest = hashlib.sha1(key.encode() + GUID, usedforsecurity=False).digest()
    return binascii.b2a_base64(digest, newline=False)


@functools.lru_cache(maxsize=32)  # our subprotocol or none, our answers to offers or none
def _pattern(subprotocol: str | None, extension: str | None) -> tuple[bytes, bytes]:
    """Have picows answer the sample key, and cut its answer where the accept value stands.

    Its protocol object, made for each connection, would be a third of what an upgrade costs.
    """
    headers: dict[str, str] = {}
    if subprotocol is not None:
        headers["Sec-WebSocket-Protocol"] = subprotocol
    if extension is not None:
        headers["Sec-WebSocket-Extensions"] = extension
    listener = _Listener()
    response = WSUpgradeResponse.create_101_response(headers or None)
    answerer = WSProtocol(
        None,  # host and port: a client's
        None,  # path: a client's
        False,  # is_client_side
        lambda _request: WSUpgradeResponseWithListener(response, listener),
        _QUIET,
        True,  # disconnect_on_exception
        None,  # websocket_handshake_timeout: ours has been running since the accept
        False,  # enable_auto_ping
        1.0,
        1.0,
        WSAutoPingStrategy.PING_WHEN_IDLE,
        False,  # enable_auto_pong
        2048,  # max_frame_size
        None,  # extra_headers: a client's
        2048,  # read_buffer_init_size
    )
    pen = _Pen()
    answerer.connection_made(pen)
    head = (
        b"GET / HTTP/1.1\r\nHost: falcon\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + SAMPLE_KEY.encode() + END_OF_HEAD
    )
    answerer.get_buffer(-1)[: len(head)] = head
    answerer.buffer_updated(len(head))
    before, found, behind = pen.written.partition(_accept_value(SAMPLE_KEY))
    if not listener.upgraded or not found:
        raise RuntimeError("picows did not complete the opening handshake")
    return before, behind


class HeadReader(Guest):
    """One connection before its 101."""

    # All readers share one buffer: asyncio fills it and calls back before it reads anything else.
    _buffer = memoryview(bytearray(READ_SIZE))

    __slots__ = ("_accept", "_deadline", "_door", "_loop", "_received", "_transport", "_waits")

    def __init__(self, door: Door, loop: asyncio.AbstractEventLoop) -> None:
        self._door = door
        self._loop = loop
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._accept: Accept | None = None
        self._waits = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it, and start the deadline, unless a visitor's head may be here already."""
        # uvloop's transports look like asyncio's and are not derived from them.
        self._transport = cast("asyncio.Transport", transport)
        self._waits = True
        self._door.waiting += 1
        if self._door.waiting > self._door.max_waiting:
            # Before the descriptors run out and nobody could even be refused.
            self._transport.abort()
            return
        if not isinstance(self._transport, Visitor):
            self.wait()

    def wait(self) -> None:
        """Start the deadline."""
        if self._transport is None:
            return
        # One deadline for the whole head, however slowly it drips in. Over TLS, half of the time
        # was given to the TLS handshake.
        timeout = self._door.handshake_timeout
        if self._transport.get_extra_info("ssl_object") is not None:
            timeout /= 2
        self._deadline = self._loop.call_later(timeout, self._transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the transport; also called after it was handed over."""
        self._let_go()
        self._stop_waiting()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the shared buffer for one read."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read."""
        self.take(self._buffer[:nbytes])

    def take(self, octets: bytes | memoryview) -> None:
        """Take what has come, and decide as soon as the head is complete or hopeless."""
        if self._transport is None:
            return  # refused: nothing that still comes matters
        received = self._received
        searched = max(0, len(received) - len(END_OF_HEAD) + 1)
        received += octets
        if self._accept is not None:
            return  # early input while the 101 is on its way
        end = received.find(END_OF_HEAD, searched)
        limit = self._door.policy.max_head_bytes
        size = end + len(END_OF_HEAD) if end >= 0 else len(received)
        if size > limit:
            # Which limit: a target that never ends is told so.
            crossed = parse_head(bytes(received), self._door.policy)
            self.conclude(crossed if isinstance(crossed, Refuse) else HEAD_TOO_LARGE)
        elif end >= 0:
            head = bytes(received[:size])
            del received[:size]
            peer = self._transport.get_extra_info("peername")
            self.conclude(examine(head, self._door, peer[0] if peer else ""))
        elif received.find(b"\n\n", max(0, searched - 1)) >= 0:
            # A head with bare line feeds would never end for us: say so instead of waiting.
            self.conclude(BAD_HEAD)

    def eof_received(self) -> bool:
        """Close."""
        # The end of the input before the end of the head, or a refused client that has read its
        # answer: nothing is left to do but to close.
        return False

    def conclude(self, found: Found) -> None:
        """Act on what was found in a head."""
        transport = self._transport
        if transport is None:
            return
        if isinstance(found, tuple):
            self._upgrade(*found, transport)
        elif isinstance(found, Refuse):
            self._door.refused(found)
            self._answer(found.to_bytes())
        else:
            self._answer(found)

    def _answer(self, response: bytes) -> None:
        """Send the last octets of this connection."""
        transport = self._transport
        if transport is None:
            return
        self._let_go()
        transport.write(response)
        if transport.can_write_eof():
            # Closing with unread input would reset the connection, and the answer with it.
            transport.write_eof()
            self._loop.call_later(LINGER, transport.abort)
        else:
            transport.close()

    def _upgrade(self, accept: Accept, answer: bytes, transport: asyncio.Transport) -> None:
        self._accept = accept
        if isinstance(transport, Visitor):
            transport.answer = answer
        else:
            transport.write(answer)
        if transport.get_write_buffer_size():
            # uvloop writes at the end of the loop's turn.
            self._loop.call_soon(self._hand_over)
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        transport, accept = self._transport, self._accept
        if transport is None or accept is None or transport.is_closing():
            return
        early = bytes(self._received)
        self._let_go()
        self._stop_waiting()
        hand_over(self._door, accept, transport, early)

    def _stop_waiting(self) -> None:
        if self._waits:
            self._waits = False
            self._door.waiting -= 1

    def _let_go(self) -> None:
        self._transport = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def receive(
    door: Door, loop: asyncio.AbstractEventLoop, visitor: Visitor, octets: bytes | None
) -> None:
    """Let a plain connection in at once if its whole head has come with it, as it mostly has.

    Args:
        door: decides.
        loop: the running loop.
        visitor: the connection.
        octets: what it has sent, see `Doorstep`.
    """
    found: Found | None = None
    if octets and door.waiting < door.max_waiting:
        end = octets.find(END_OF_HEAD) + len(END_OF_HEAD)
        if len(END_OF_HEAD) <= end <= door.policy.max_head_bytes:
            found = examine(octets[:end], door, visitor.peer)
            if isinstance(found, tuple):
                accept, visitor.answer = found
                hand_over(door, accept, visitor, octets[end:])
                return
    reader = HeadReader(door, loop)
    if found is None:
        visitor.stay(reader, octets)
    else:
        visitor.stay(reader, None)
        reader.conclude(found)


def examine(head: bytes, door: Door, peer_ip: str) -> Found:
    """Find out what a request is answered with."""
    try:
        request = parse_head(head, door.policy)
        if isinstance(request, Refuse):
            return request
        found = route(request, door.policy)
        if found is None:
            decision = door.decide(request, peer_ip)
            return decision if isinstance(decision, Refuse) else (decision, switching_to(decision))
        return door.answer(found) if isinstance(found, Endpoint) else found
    except Exception:
        # The client learns nothing of it: a constant body, and the traceback in the log.
        log.exception("the opening handshake failed")
        return INTERNAL_ERROR


def hand_over(door: Door, accept: Accept, transport: asyncio.Transport, early: bytes) -> None:
    """Have a connection born whose 101 has left, or leaves with its first message."""
    try:
        door.born(accept, transport, early)
    except Exception:
        # Behind the 101 there is no answer left to give.
        log.exception("an upgraded connection could not be taken over")
        transport.abort()


def adopt(
    core: Core[OwnerT],
    transport: asyncio.Transport,
    owner: OwnerT,
    *,
    early: bytes,
    paused: bool = False,
    deflate: Deflate | None = None,
) -> int:
    """Give an upgraded connection to the core.

    A visitor gives its descriptor away together with the 101, which the core sends. Another plain
    socket whose 101 has left is taken away from its transport: the core gets a duplicate of the
    descriptor, the transport is aborted. A TLS connection, or one on a system without
    epoll, keeps its transport and takes part through the core's link.

    Args:
        core: the core.
        transport: the connection's asyncio transport.
        owner: what the core's callbacks get for it.
        early: octets that arrived behind the head.
        paused: whether its input waits for `Core.resume`.
        deflate: what was agreed on for compression.

    Returns:
        The connection's handle.

    Raises:
        ConnectionError: the core has no slot left; the transport is as it was.
    """
    window = 0 if deflate is None else deflate.window
    if isinstance(transport, Visitor):
        return core.adopt_socket(
            transport.detach(),
            owner,
            early=early,
            paused=paused,
            deflate=window,
            answer=transport.answer,
            more=transport.greets,
        )
    is_plain = transport.get_extra_info("ssl_object") is None
    if is_plain and core.epoll_fd >= 0 and not transport.get_write_buffer_size():
        fd = os.dup(transport.get_extra_info("socket").fileno())
        conn = core.adopt_socket(fd, owner, early=early, paused=paused, deflate=window)
        transport.abort()
        return conn
    link = core.adopt_transport(transport, owner, early=early, paused=paused, deflate=window)
    transport.set_protocol(link)
    return link.handle


async def listen(
    door: Door,
    *,
    host: str,
    port: int,
    tls: ssl.SSLContext | None = None,
    reuse_port: bool = False,
    adopts: bool = False,
    greets: bool = False,
) -> Listener:
    """Open a listening socket whose connections are read by `HeadReader`.

    Args:
        door: decides.
        host: the address to bind; an empty string for all of them.
        port: the port; 0 for any free one.
        tls: the certificate to use, or None for plain connections.
        reuse_port: share the port with other processes.
        adopts: `door` takes sockets away from their transports, where there is no TLS.
        greets: `door` sends something to each connection as soon as it is born.

    Raises:
        OSError: the address cannot be bound.
    """
    loop = asyncio.get_running_loop()
    is_ours = adopts and tls is None
    server = await loop.create_server(
        lambda: HeadReader(door, loop),
        host or None,
        port,
        ssl=tls,
        backlog=BACKLOG,
        reuse_port=reuse_port or None,
        start_serving=not is_ours,
        # Without this a TLS client could take a minute over its handshake.
        ssl_handshake_timeout=door.handshake_timeout / 2 if tls else None,
        # And a refused one half a minute over its goodbye.
        ssl_shutdown_timeout=LINGER if tls else None,
    )
    if not is_ours:
        return server
    # The loop has found the addresses and bound them; the rest is done without it.
    try:
        return Doorstep(
            server.sockets,
            functools.partial(receive, door, loop),
            loop,
            backlog=BACKLOG,
            greets=greets,
        )
    finally:
        server.close()


def server_port(server: Listener) -> int:
    """Return the port a server listens on."""
    address = server.sockets[0].getsockname()
    return int(address[1]) if server.sockets[0].family != socket.AF_UNIX else 0


def plain_answer(status: str, body: bytes, *, content_type: str = "text/plain") -> bytes:
    """Build the response of a plain endpoint.

    Args:
        status: code and phrase, `200 OK`.
        body: UTF-8.
        content_type: without the charset, which is always UTF-8.
    """
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\n"
        "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    ).encode() + body
