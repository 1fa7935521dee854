"""Accepts plain connections and carries their octets until the 101, on an epoll set of its own.

An asyncio transport for the few octets of an opening handshake costs more than the handshake: it is
made, registered, asked for addresses, duplicated and thrown away. Here a new connection is a socket
and a `Visitor`, which looks like a transport to `upgrade.HeadReader`. Most heads are already there
when the connection is accepted; such a socket goes to the core without ever having been watched.
TLS connections, and systems without epoll, keep the loop's own server.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import select
import socket
from _socket import socket as PlainSocket
from collections.abc import Callable, Sequence
from typing import Final

__all__ = ["Doorstep", "Visitor"]

ACCEPTS_PER_WAKE: Final = 64
"""Connections accepted before the loop gets its turn."""

EVENTS_PER_WAKE: Final = 64

OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})

LOG_EVERY: Final = 60.0
"""Seconds between two lines about descriptors that have run out."""

log = logging.getLogger(__name__)


class Guest(asyncio.BufferedProtocol):
    """The protocol of a visitor."""

    __slots__ = ()

    def wait(self) -> None:
        """Start a deadline: what had come when the connection was accepted was not all."""


class Visitor(asyncio.Transport):
    """A plain connection before its 101, as much of a transport as its protocol needs."""

    __slots__ = ("_doorstep", "_peer", "_protocol", "_socket", "_watched")

    def __init__(
        self,
        doorstep: Doorstep,
        connection: PlainSocket,
        peer: object,
        protocol: Guest,
    ) -> None:
        # Not the base class's: it would make a dictionary for each.
        self._doorstep = doorstep
        self._peer = peer
        self._protocol = protocol
        self._socket: PlainSocket | None = connection
        self._watched = False

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Return the peer's address as `peername`, the socket as `socket`."""
        if name == "peername":
            return self._peer
        return self._socket if name == "socket" and self._socket is not None else default

    def is_closing(self) -> bool:
        """Tell whether the connection has ended or was given away."""
        return self._socket is None

    def get_write_buffer_size(self) -> int:
        """Return 0: what is written is the kernel's at once."""
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send the only octets that this connection will be sent from here.

        The send buffer of a new socket is empty and takes an answer whole. One that does not has a
        connection behind it that is of no use.
        """
        if self._socket is None:
            return
        try:
            sent = self._socket.send(data, self._doorstep.send_flags)
        except OSError:
            sent = -1
        if sent != len(data):
            self.abort()

    def can_write_eof(self) -> bool:
        """Return True."""
        return True

    def write_eof(self) -> None:
        """End the writing half."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End the connection."""
        self.abort()

    def abort(self) -> None:
        """End the connection; its protocol hears of it soon."""
        connection = self._leave()
        if connection is not None:
            connection.close()
            self._doorstep.loop.call_soon(self._protocol.connection_lost, None)

    def detach(self) -> int:
        """Give the descriptor away; the protocol hears nothing more.

        Raises:
            ConnectionError: the connection has ended.
        """
        connection = self._leave()
        if connection is None:
            raise ConnectionError("the connection has ended")
        return connection.detach()

    def _leave(self) -> PlainSocket | None:
        connection, self._socket = self._socket, None
        if connection is not None and self._watched:
            self._doorstep.unwatch(connection.fileno())
        return connection

    def arrive(self) -> None:
        """Begin: read what may have come already, and be watched if more is to come."""
        self._protocol.connection_made(self)
        self.read()
        if self._socket is not None:
            self._watched = self._doorstep.watch(self._socket.fileno(), self)
            if self._watched:
                self._protocol.wait()
            else:
                self.abort()

    def read(self) -> None:
        """Take what has come."""
        if self._socket is None:
            return
        try:
            size = self._socket.recv_into(self._protocol.get_buffer(-1), 0, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.abort()
            return
        if size:
            self._protocol.buffer_updated(size)
        elif not self._protocol.eof_received():
            self.abort()


class Doorstep:
    """Listening sockets and those that were accepted and are not yet upgraded.

    Args:
        sockets: bound; each stays the caller's, and is listened on through a duplicate.
        protocol: makes the protocol of a new connection.
        loop: the running loop.
        backlog: connections the kernel may hold while the loop is busy.
        greets: whether an answer is always followed by more, with which the kernel then sends it.

    Attributes:
        sockets: the listening sockets, none when closed.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        protocol: Callable[[], Guest],
        loop: asyncio.AbstractEventLoop,
        *,
        backlog: int,
        greets: bool = False,
    ) -> None:
        self.loop = loop
        self.send_flags = socket.MSG_DONTWAIT | (socket.MSG_MORE if greets else 0)
        self._protocol = protocol
        self._visitors: dict[int, Visitor] = {}
        self._listeners: dict[int, socket.socket] = {}
        self._epoll = select.epoll()
        # Given up for a moment when there are no more: then who knocks can at least be turned away.
        self._spare: int | None = None
        self._logged = float("-inf")
        for bound in sockets:
            listener = socket.socket(fileno=os.dup(bound.fileno()))
            listener.setblocking(False)
            if listener.family != socket.AF_UNIX:
                # Handed down to what is accepted.
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._listeners[listener.fileno()] = listener
            listener.listen(backlog)
            self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        loop.add_reader(self._epoll.fileno(), self._ready)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets."""
        return tuple(self._listeners.values())

    def close(self) -> None:
        """Stop listening, and end the connections before their 101. A second call does nothing."""
        if self._epoll.closed:
            return
        self.loop.remove_reader(self._epoll.fileno())
        for visitor in list(self._visitors.values()):
            visitor.abort()
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        self._epoll.close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def watch(self, fd: int, visitor: Visitor) -> bool:
        """Have a visitor read whenever something has come for it; False after `close`."""
        if self._epoll.closed:
            return False
        self._visitors[fd] = visitor
        self._epoll.register(fd, select.EPOLLIN)
        return True

    def unwatch(self, fd: int) -> None:
        """Undo `watch`."""
        del self._visitors[fd]
        self._epoll.unregister(fd)

    def _ready(self) -> None:
        for fd, _ in self._epoll.poll(0, EVENTS_PER_WAKE):
            visitor = self._visitors.get(fd)
            if visitor is not None:
                visitor.read()
            elif fd in self._listeners:
                self._accept(self._listeners[fd])

    def _accept(self, listener: socket.socket) -> None:
        # `listener.accept()` without the enumerations that it asks and makes for each connection.
        kind = int(listener.family), int(listener.type), listener.proto
        for _ in range(ACCEPTS_PER_WAKE):
            try:
                fd, peer = listener._accept()  # type: ignore[attr-defined]
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue  # it has gone already
            except OSError as error:
                if error.errno not in OUT_OF_DESCRIPTORS:
                    raise
                self._turn_away(listener)
                return
            connection = PlainSocket(*kind, fileno=fd)
            Visitor(self, connection, peer, self._protocol()).arrive()
            if self._epoll.closed:
                return

    def _turn_away(self, listener: socket.socket) -> None:
        """Close what waits to be accepted: left waiting it would keep the set readable."""
        if self.loop.time() - self._logged >= LOG_EVERY:
            self._logged = self.loop.time()
            log.warning("no descriptors are left: new connections are turned away")
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
