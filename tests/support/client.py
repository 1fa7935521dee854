"""Blocking clients on real sockets: octet for octet, so that a test can also be a wrong client."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, NoReturn

from .deflate import plain
from .frames import CLOSE, PING, TEXT, ServerFrame, pong, text

DEADLINE: Final = 15.0
"""Seconds after which something that should have come is missing; generous for busy machines."""

CLOSED_WITHIN: Final = 1.5
"""Seconds between a Close or a refusal and the end of the TCP connection: one, by the contract, and
half a one for a busy machine."""

PATH: Final = "/websocket/connect"

Message = dict[str, Any]


class Closed(Exception):
    """A Close frame came where a message was expected."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(f"closed with {code} {reason!r}")
        self.code = code
        self.reason = reason


class Ended(Exception):
    """The TCP connection ended where a frame was expected."""


class Answer(NamedTuple):
    """An HTTP response as it came."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """One TCP connection; every read ends at a deadline.

    Args:
        address: of the server.
        source: the loopback address to connect from.
        receive_buffer: octets the kernel may hold for us, for clients that do not read.
        tls: makes it a TLS connection.
    """

    def __init__(
        self,
        address: tuple[str, int],
        *,
        source: str | None = None,
        receive_buffer: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.socket: socket.socket
        plain = socket.socket()
        try:
            plain.settimeout(DEADLINE)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if receive_buffer is not None:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if source is not None:
                plain.bind((source, 0))
            plain.connect(address)
            self.socket = (
                plain if tls is None else tls.wrap_socket(plain, server_hostname=address[0])
            )
        except BaseException:
            plain.close()
            raise
        self.received = bytearray()
        self.was_reset = False
        self._speaking = threading.Lock()

    def send(self, data: bytes) -> bool:
        """Send all of it; False when the server has hung up meanwhile.

        One thread may speak while another one listens, and answers pings.
        """
        try:
            with self._speaking:
                self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            return False
        return True

    def send_reset(self) -> None:
        """End the connection with a TCP reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close()

    def finish(self) -> None:
        """End our sending half."""
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def read(self, within: float = DEADLINE) -> bool:
        """Wait for more octets; False at the end of the stream, which may be a reset."""
        self.socket.settimeout(max(within, 0.001))
        try:
            data = self.socket.recv(262_144)
        except ConnectionResetError:
            self.was_reset = True
            return False
        finally:
            if self.socket.fileno() >= 0:
                self.socket.settimeout(DEADLINE)
        self.received += data
        return bool(data)

    def read_to_end(self, within: float = DEADLINE) -> bytes:
        """Return everything up to the end of the stream.

        Raises:
            TimeoutError: the stream has not ended in that time.
        """
        until = time.monotonic() + within
        while self.read(until - time.monotonic()):
            if time.monotonic() > until:
                raise TimeoutError(f"{len(self.received)} octets came, and no end")
        return bytes(self.received)

    def read_head(self) -> bytes:
        """Return a response head with its empty line; what follows stays to be read."""
        while (end := self.received.find(b"\r\n\r\n")) < 0:
            if not self.read():
                raise Ended(f"the end came in the head: {bytes(self.received)!r}")
        head = bytes(self.received[: end + 4])
        del self.received[: end + 4]
        return head

    def read_answer(self) -> Answer:
        """Return the HTTP response, after which the server must close within a second."""
        head, _, body = self.read_until_closed().partition(b"\r\n\r\n")
        first, *lines = head.decode("ascii").split("\r\n")
        assert first.startswith("HTTP/1.1 "), first
        pairs = [line.partition(": ")[::2] for line in lines]
        return Answer(int(first.split(" ")[1]), dict(pairs), body)

    def read_until_closed(self) -> bytes:
        """Return the rest of the stream, which must end within a second after its last octet."""
        last = time.monotonic()
        while self.read():
            last = time.monotonic()
        assert time.monotonic() - last <= CLOSED_WITHIN, "the connection stayed open"
        return bytes(self.received)

    def frame(self, within: float = DEADLINE) -> ServerFrame:
        """Return the next frame, which must be one that a server may send.

        Raises:
            Ended: the stream is over.
        """
        until = time.monotonic() + within
        while (frame := self._next_frame()) is None:
            if not self.read(until - time.monotonic()):
                raise Ended(f"reset={self.was_reset}, left: {bytes(self.received[:64])!r}")
        return frame

    def _next_frame(self) -> ServerFrame | None:
        data = self.received
        if len(data) < 2:
            return None
        size, start = data[1], 2
        if size > 125:
            start = 4 if size == 126 else 10
            if len(data) < start:
                return None
            size = int.from_bytes(data[2:start], "big")
        if len(data) < start + size:
            return None
        payload = bytes(data[start : start + size])
        frame = ServerFrame(data[0] & 0x0F, payload, bool(data[0] & 0x40))
        assert data[: start + size] == frame.to_bytes(), f"no server's frame: {data[:16].hex()}"
        del data[: start + size]
        return frame


def request(
    *lines: str, token: str | None = None, path: str = PATH, key: str = "dGhlIHNhbXBsZSBub25jZQ=="
) -> bytes:
    """Build the smallest opening handshake, with further header lines.

    Args:
        lines: further header lines.
        token: sent as a bearer token.
        path: the request target.
        key: the Sec-WebSocket-Key.
    """
    head = [
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
    ]
    if token is not None:
        head.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*head, *lines, "", ""]).encode("latin-1")


def switching(key: str, subprotocol: str | None = None, extension: str | None = None) -> bytes:
    """Return the head of the 101 that answers a key (RFC 6455 section 4.2.2)."""
    proof = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    agreed = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol else ""
    agreed += f"Sec-WebSocket-Extensions: {extension}\r\n" if extension else ""
    return (
        f"HTTP/1.1 101 Switching Protocols\r\n{agreed}Connection: upgrade\r\n"
        f"Upgrade: websocket\r\nSec-WebSocket-Accept: {base64.b64encode(proof).decode()}\r\n\r\n"
    ).encode()


class Client:
    """A well-behaved client, until told otherwise through its `wire`.

    Attributes:
        wire: its connection.
        id: its connection id, from the welcome.
        welcome: the first message.
        rooms: the rooms it is in, from the second message.
    """

    _numbers = itertools.count()

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.id = ""
        self.welcome: Message = {}
        self.rooms: list[str] = []

    def open(
        self, *lines: str, token: str | None = None, offer: str = "", answer: str | None = None
    ) -> None:
        """Do the opening handshake; a refusal fails the test.

        Args:
            lines: further headers.
            token: as bearer.
            offer: the extensions that are offered.
            answer: the ones that must be agreed on.
        """
        lines += (f"Sec-WebSocket-Extensions: {offer}",) if offer else ()
        key = base64.b64encode(os.urandom(16)).decode()
        self.wire.send(request(*lines, token=token, key=key))
        head = self.wire.read_head()
        offered = any("falcon.v1" in line for line in lines)
        assert head == switching(key, "falcon.v1" if offered else None, answer), head

    def enter(self) -> None:
        """Read the welcome and the list of rooms."""
        self.welcome = self.hear()
        assert self.welcome["type"] == "system_notification", self.welcome
        self.id = self.welcome["data"]["connection_id"]
        rooms = self.hear()
        # It is in its personal room from the welcome on: its user's others may come and go.
        while rooms.get("room") == f"user:{self.welcome['data']['user_id']}":
            assert rooms["data"]["action"] in {"member_joined", "member_left"}, rooms
            rooms = self.hear()
        assert (rooms["type"], rooms["data"]["action"]) == ("room_update", "joined"), rooms
        self.rooms = rooms["data"]["rooms"]

    def say(self, **frame: object) -> None:
        """Send a message."""
        self.wire.send(text(json.dumps(frame)))

    def hear(self, within: float = DEADLINE) -> Message:
        """Return the next message; a ping is answered, a pong passed over.

        Raises:
            Closed: a Close came instead.
            Ended: the stream is over.
        """
        until = time.monotonic() + within
        while True:
            frame = self.wire.frame(until - time.monotonic())
            if frame.opcode == CLOSE:
                raise Closed(frame.code, frame.payload[2:].decode())
            if frame.opcode == PING:
                self.wire.send(pong(frame.payload))
            if frame.opcode == TEXT:
                return strict_json(plain(frame).payload)

    def hear_until(self, wanted: Callable[[Message], bool], within: float = DEADLINE) -> Message:
        """Return the next message for which `wanted` is true."""
        until = time.monotonic() + within
        while True:
            message = self.hear(until - time.monotonic())
            if wanted(message):
                return message

    def hear_message(self, passed: list[Message]) -> Message:
        """Return the next `message`, and put what comes before it into a list."""

        def wanted(message: Message) -> bool:
            if message["type"] == "message":
                return True
            passed.append(message)
            return False

        return self.hear_until(wanted)

    def ask(self, **frame: object) -> Message:
        """Send a message with an id of its own and return the answer of that id."""
        ident = f"ask-{next(self._numbers)}"
        self.say(id=ident, **frame)
        return self.hear_until(lambda message: message.get("id") == ident)

    def sync(self) -> list[Message]:
        """Return what the server has said to this client before it answered a ping just now."""
        ident = f"sync-{next(self._numbers)}"
        self.say(id=ident, type="system", data={"action": "ping"})
        heard: list[Message] = []
        while (message := self.hear()).get("id") != ident:
            heard.append(message)
        return heard

    def closing(self, within: float = DEADLINE) -> tuple[int | None, str]:
        """Return code and reason of the Close, after which nothing but the TCP end may come.

        Whatever comes before the Close is passed over.
        """
        until = time.monotonic() + within
        while True:
            frame = self.wire.frame(until - time.monotonic())
            if frame.opcode == CLOSE:
                break
        rest = self.wire.read_until_closed()
        assert rest == b"", f"octets behind the Close: {rest[:64]!r}"
        return frame.code, frame.payload[2:].decode()

    def close(self) -> None:
        """Hang up without a word."""
        self.wire.close()


def strict_json(payload: bytes) -> Message:
    """Read a message of the server as a strict parser would.

    Raises:
        ValueError: it is not one JSON object, holds NaN or Infinity, or has a name twice.
    """

    def unique(pairs: list[tuple[str, object]]) -> Mapping[str, object]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise ValueError(f"a name occurs twice: {[name for name, _ in pairs]}")
        return members

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    value = json.loads(payload.decode(), object_pairs_hook=unique, parse_constant=refuse)
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004
    return value
