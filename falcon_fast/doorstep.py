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
from collections.abc import Callable, Sequence
from typing import Final

from falcon_fast._core import accept

__all__ = ["Doorstep", "Visitor"]

ACCEPTS_PER_WAKE: Final = 64
"""Connections accepted before the loop gets its turn."""

EVENTS_PER_WAKE: Final = 64

READ_SIZE: Final = 65_536
"""Octets one read may bring: a head, and what a hasty client sent behind it."""

OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})

LOG_EVERY: Final = 60.0
"""Seconds between two lines about descriptors that have run out."""

log = logging.getLogger(__name__)


class Guest(asyncio.BufferedProtocol):
    """The protocol of a visitor."""

    __slots__ = ()

    def take(self, octets: bytes) -> None:
        """Take what has come."""

    def wait(self) -> None:
        """Start a deadline: what had come when the connection was accepted was not all."""


class Visitor(asyncio.Transport):
    """A plain connection before its 101, as much of a transport as its protocol needs.

    Attributes:
        answer: kept to be sent by who takes the descriptor, with what is said behind it.
    """

    __slots__ = ("_doorstep", "_fd", "_peer", "_protocol", "_watched", "answer")

    def __init__(self, doorstep: Doorstep, fd: int, peer: str) -> None:
        # Not the base class's: it would make a dictionary for each.
        self._doorstep = doorstep
        self._fd = fd
        self._peer = peer
        self._protocol: Guest | None = None
        self._watched = False
        self.answer = b""

    @property
    def peer(self) -> str:
        """The address of the other end."""
        return self._peer

    @property
    def greets(self) -> bool:
        """Whether an answer is always followed by more."""
        return self._doorstep.greets

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Return the peer's address as the first part of `peername`."""
        return (self._peer,) if name == "peername" else default

    def is_closing(self) -> bool:
        """Tell whether the connection has ended or was given away."""
        return self._fd < 0

    def get_write_buffer_size(self) -> int:
        """Return 0: what is written is the kernel's at once."""
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send the only octets that this connection will be sent from here.

        The send buffer of a new socket is empty and takes an answer whole. One that does not has a
        connection behind it that is of no use.
        """
        if self._fd < 0:
            return
        try:
            sent = os.write(self._fd, data)
        except OSError:
            sent = -1
        if sent != len(data):
            self.abort()

    def can_write_eof(self) -> bool:
        """Return True."""
        return True

    def write_eof(self) -> None:
        """End the writing half."""
        if self._fd >= 0:
            # Only who is refused needs a socket object, for this moment.
            connection = socket.socket(fileno=self._fd)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            connection.detach()

    def close(self) -> None:
        """End the connection."""
        self.abort()

    def abort(self) -> None:
        """End the connection; its protocol hears of it soon."""
        fd = self._leave()
        if fd >= 0:
            os.close(fd)
            if self._protocol is not None:
                self._doorstep.loop.call_soon(self._protocol.connection_lost, None)

    def detach(self) -> int:
        """Give the descriptor away; the protocol hears nothing more.

        Raises:
            ConnectionError: the connection has ended.
        """
        fd = self._leave()
        if fd < 0:
            raise ConnectionError("the connection has ended")
        return fd

    def _leave(self) -> int:
        fd, self._fd = self._fd, -1
        if fd >= 0 and self._watched:
            self._doorstep.unwatch(fd)
        return fd

    def stay(self, protocol: Guest, octets: bytes | None) -> None:
        """Begin: be read whenever something comes.

        Args:
            protocol: hears it.
            octets: what has come already, None for nothing.
        """
        self._protocol = protocol
        protocol.connection_made(self)
        if octets is not None and self._fd >= 0:
            self._heard(protocol, octets)
        if self._fd >= 0:
            self._watched = self._doorstep.watch(self._fd, self)
            if self._watched:
                protocol.wait()
            else:
                self.abort()

    def read(self) -> None:
        """Take what has come."""
        if self._fd < 0 or self._protocol is None:
            return
        try:
            octets = os.read(self._fd, READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.abort()
            return
        self._heard(self._protocol, octets)

    def _heard(self, protocol: Guest, octets: bytes) -> None:
        if octets:
            protocol.take(octets)
        elif not protocol.eof_received():
            self.abort()


class Doorstep:
    """Listening sockets and those that were accepted and are not yet upgraded.

    Args:
        sockets: bound; each stays the caller's, and is listened on through a duplicate.
        receive: called with a new connection and what it has sent: None for nothing yet, b"" if
            nothing will come. It takes the descriptor, or lets the visitor stay or go.
        loop: the running loop.
        backlog: connections the kernel may hold while the loop is busy.
        greets: whether an answer is always followed by more, with which the kernel then sends it.

    Attributes:
        sockets: the listening sockets, none when closed.
        greets: see above.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        receive: Callable[[Visitor, bytes | None], None],
        loop: asyncio.AbstractEventLoop,
        *,
        backlog: int,
        greets: bool = False,
    ) -> None:
        self.loop = loop
        self.greets = greets
        self._receive = receive
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
        for _ in range(ACCEPTS_PER_WAKE):
            try:
                accepted = accept(listener.fileno())
            except ConnectionError:
                continue  # it has gone already
            except OSError as error:
                if error.errno not in OUT_OF_DESCRIPTORS:
                    raise
                self._turn_away(listener)
                return
            if accepted is None:
                return
            fd, peer, octets = accepted
            self._receive(Visitor(self, fd, peer), octets)
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
