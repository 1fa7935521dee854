"""One socket to Redis: octets in, replies out; what they mean is said by those who hold it.

redis-py connects, encrypts and logs in; then the socket's transport changes hands and feeds the
core and hiredis from here, without a task, a lock or an await for each message. See `redis_address`
for the first half, `redis_keeper` for what happens when a link ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import hiredis
from redis.asyncio.connection import AbstractConnection

from falcon_fast.bus.redis_address import RedisAddress

__all__ = ["Link", "LinkError", "Opened", "Replies", "Split", "open_transport", "pack"]

# Its stub knows tuples of one word only.
pack: Final[Callable[[tuple[bytes, ...]], bytes]] = hiredis.pack_command  # type: ignore[assignment]
"""Write a command as Redis reads it."""

MAX_UNREAD: Final = 67_108_864
"""Octets of one reply that is not whole yet; a larger one ends the link."""

SLICE: Final = 16_384
"""Octets given to the parser at once. It moves what is left of its buffer to the front again and
again: in a quarter of a megabyte, as much as one read brings, that costs 1 µs a message."""

Replies: TypeAlias = Callable[[object], None]

Split: TypeAlias = Callable[[bytes, Replies], tuple[int, int]]
"""Takes replies off the front of what came; see `_core.Sifter.feed`."""

log = logging.getLogger(__name__)


class LinkError(Exception):
    """A link could not be made; the text is a constant."""


class Opened(Protocol):
    """A connection that is logged in, and still to be adopted."""

    @property
    def transport(self) -> asyncio.Transport:
        """The way to the socket."""

    def release(self) -> None:
        """Let go of whatever made the connection; called when the link has ended."""


@dataclass(frozen=True, slots=True)
class _Adopted:
    transport: asyncio.Transport
    connection: AbstractConnection

    def release(self) -> None:
        # It closes a transport that is closing already, and forgets it; so nobody warns of it.
        self.connection._close()  # type: ignore[no-untyped-call]


async def open_transport(address: RedisAddress, node: tuple[str, int] | None = None) -> Opened:
    """Let redis-py connect and log in, and take the transport out of it.

    Raises:
        RedisError: it did not work.
        LinkError: there is no transport, or something came that nobody asked for.
    """
    connection = await address.connect(node)
    # There is no public way to the transport. Should a later version keep it elsewhere, it is said
    # here and in the test of this function, and not by a message that is lost.
    writer, reader = getattr(connection, "_writer", None), getattr(connection, "_reader", None)
    transport: asyncio.Transport | None = getattr(writer, "transport", None)
    # uvloop's transports are no asyncio.Transport, they only look like one.
    if transport is None or not hasattr(transport, "set_protocol") or reader is None:
        raise LinkError("redis-py keeps its transport elsewhere than expected")
    adopted = _Adopted(transport, connection)
    if getattr(reader, "_buffer", b"") or not connection.is_connected:
        adopted.transport.abort()
        adopted.release()
        raise LinkError("Redis said something that it was not asked for")
    return adopted


class Link(asyncio.Protocol):
    """A connection to Redis whose replies are taken one after the other.

    Args:
        opened: the connection.
        on_reply: called with each reply: bytes, an int, a list, None, or a `hiredis.ReplyError`.
        on_end: called once when it has ended, with the reason.
        split: takes what it knows off the front of what comes, before hiredis; once there is
            something that it does not know, all the rest of the link is for hiredis.

    Attributes:
        octets_in: read so far.
        octets_out: written so far.
    """

    def __init__(
        self,
        opened: Opened,
        *,
        on_reply: Replies,
        on_end: Callable[[str], None],
        split: Split | None = None,
    ) -> None:
        self.octets_in = 0
        self.octets_out = 0
        self._opened = opened
        self._transport = opened.transport
        self._on_reply = on_reply
        self._on_end = on_end
        self._reader = hiredis.Reader()
        self._unread = 0
        self._split = split
        # The beginning of a reply, and how many octets that has to be before it is looked at again.
        self._begun: list[bytes] = []
        self._begun_octets = 0
        self._due_octets = 0
        self._has_ended = False
        self._transport.set_protocol(self)
        if self._transport.is_closing():
            # It went before it was ours, and nobody else will be told.
            asyncio.get_running_loop().call_soon(self.end, "closed before it was taken over")

    @property
    def waiting(self) -> int:
        """Octets that the socket has not taken yet."""
        return self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        """Send octets; those of a link that has ended go nowhere."""
        if not self._has_ended:
            self.octets_out += len(data)
            self._transport.write(data)

    def end(self, reason: str) -> None:
        """End it at once. May be called more than once."""
        if self._has_ended:
            return
        self._has_ended = True
        self._transport.abort()
        self._opened.release()
        self._on_end(reason)

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """Take everything that has come."""
        self.octets_in += len(data)
        if self._split is not None:
            data = self._taken_off(self._split, data)
            if not data:
                return
        reader, take = self._reader, self._on_reply
        gets = reader.gets
        size = len(data)
        try:
            for at in range(0, size, SLICE):
                reader.feed(data, at, min(SLICE, size - at))
                reply = gets()
                if reply is False:
                    self._unread += SLICE
                    if self._unread > MAX_UNREAD:
                        self.end("a reply is too large")
                        return
                    continue
                self._unread = 0
                while reply is not False:
                    take(reply)
                    reply = gets()
        except hiredis.ProtocolError:
            self.end("that is not Redis")

    def _taken_off(self, split: Split, data: bytes) -> bytes:
        """Let `split` take what it knows; return what is for hiredis."""
        if self._begun:
            self._begun.append(data)
            self._begun_octets += len(data)
            if self._begun_octets < self._due_octets:
                return b""
            data = b"".join(self._begun)
            self._begun.clear()
        at, due = split(data, self._on_reply)
        if due < 0:
            self._split = None
            return data[at:]
        if at < len(data):
            self._begun.append(data[at:])
            self._begun_octets = len(data) - at
            self._due_octets = due
        if due > MAX_UNREAD:
            self.end("a reply is too large")
        return b""

    def eof_received(self) -> bool:
        """Redis has closed its side."""
        self.end("closed by Redis")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self.end("closed by Redis" if exc is None else f"broken ({type(exc).__name__})")
