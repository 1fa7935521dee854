"""A Redis without sockets, for tests of the bus: publish and subscribe, and every fault on request.

Everything happens on the loop of the test, one turn after it was written, so that with the loop of
fake time a test is over at once and always the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import hiredis
from redis.exceptions import ConnectionError

UNKNOWN: Final = "ERR unknown command"


class FakeRedis:
    """One server, or a cluster if several nodes are asked for.

    Attributes:
        connections: that are open, in the order in which they were made.
        attempts: (time, node) of each attempt to connect.
        refuses: no connection is made.
        hangs: connections are made never.
        silent: what is written is read, and nothing is answered or delivered.
        deaf: what is written is not even taken off the sender's hands.
        errors: from a command to the error it is answered with.
        owner: says on which node a sharded channel is; None for all on any.
    """

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.attempts: list[tuple[float, tuple[str, int] | None]] = []
        self.refuses = False
        self.hangs = False
        self.silent = False
        self.deaf = False
        self.errors: dict[bytes, str] = {}
        self.owner: Callable[[str], tuple[str, int]] | None = None

    async def connect(self, node: tuple[str, int] | None = None) -> Connection:
        """Open a connection, as `redis_link.open_transport` does."""
        self.attempts.append((asyncio.get_running_loop().time(), node))
        if self.hangs:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        if self.refuses:
            raise ConnectionError("Error 111 connecting to somewhere with hunter2")
        connection = Connection(self, node)
        self.connections.append(connection)
        return connection

    @property
    def listeners(self) -> list[Connection]:
        """The connections that are subscribed to something."""
        return [connection for connection in self.connections if connection.channels]

    @property
    def speakers(self) -> list[Connection]:
        """The other connections."""
        return [connection for connection in self.connections if not connection.channels]

    def subscribed(self, channel: bytes) -> int:
        """Return how many connections are subscribed to a channel."""
        return sum(channel in connection.channels for connection in self.connections)

    def publish(self, channel: bytes, payload: bytes, *, kind: bytes = b"message") -> int:
        """Deliver to all who are subscribed."""
        reached = 0
        for connection in self.connections:
            if channel in connection.channels:
                connection.send([kind, channel, payload])
                reached += 1
        return reached

    def kill(self, *connections: Connection) -> None:
        """Close connections, all of them if none is given, as Redis does when it ends."""
        for connection in connections or tuple(self.connections):
            connection.cut()


class Connection(asyncio.Transport):
    """The program's end of one connection.

    Attributes:
        node: of a cluster, to which it was made.
        channels: it is subscribed to.
        commands: that came on it.
        writes: how many calls these took.
        released: whether whoever made it was told that it is over.
    """

    def __init__(self, server: FakeRedis, node: tuple[str, int] | None) -> None:
        super().__init__()
        self.node = node
        self.channels: set[bytes] = set()
        self.commands: list[list[bytes]] = []
        self.writes = 0
        self.released = False
        self._server = server
        self._reader = hiredis.Reader()
        self._protocol: asyncio.Protocol | None = None
        self._loop = asyncio.get_running_loop()
        self._closing = self._cut = False
        self._held = 0

    @property
    def transport(self) -> asyncio.Transport:
        return self

    def release(self) -> None:
        self.released = True

    # What the server does.

    def send(self, reply: object) -> None:
        """Let the program read a reply."""
        self.send_octets(encode(reply))

    def send_octets(self, octets: bytes) -> None:
        """Let the program read octets."""
        if not self._server.silent:
            self._loop.call_soon(self._arrive, octets)

    def _arrive(self, octets: bytes) -> None:
        if not self._closing and self._protocol is not None:
            self._protocol.data_received(octets)

    def cut(self, error: Exception | None = None) -> None:
        """Close it from the other side; what is written now is lost."""
        self._gone()
        self._cut = True
        if not self._closing and self._protocol is not None:
            protocol = self._protocol
            if error is None:
                self._loop.call_soon(protocol.eof_received)
            self._loop.call_soon(protocol.connection_lost, error)

    def _gone(self) -> None:
        self.channels.clear()
        if self in self._server.connections:
            self._server.connections.remove(self)

    def _do(self, command: list[bytes]) -> None:
        name, args = command[0], command[1:]
        if name in self._server.errors:
            self.send(Exception(self._server.errors[name]))
        elif name == b"ROLE":
            self.send([b"master", 0, []])
        elif name in {b"SUBSCRIBE", b"SSUBSCRIBE"}:
            if name == b"SSUBSCRIBE" and not self._owns(args[0]):
                return
            for channel in args:
                self.channels.add(channel)
                self.send([name.lower(), channel, len(self.channels)])
        elif name == b"SUNSUBSCRIBE":
            if self._owns(args[0]):
                self.channels.discard(args[0])
                self.send([name.lower(), args[0], len(self.channels)])
        elif name == b"PUBLISH":
            self.send(self._server.publish(args[0], args[1]))
        elif name == b"SPUBLISH":
            if self._owns(args[0]):
                self.send(self._server.publish(args[0], args[1], kind=b"smessage"))
        else:
            self.send(Exception(UNKNOWN))

    def _owns(self, channel: bytes) -> bool:
        owner = self._server.owner
        if owner is None or self.node is None or owner(channel.decode()) == self.node:
            return True
        self.send(Exception("MOVED 1 elsewhere:1"))
        return False

    # What the program calls.

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._closing, "written to a transport that is closing"
        self.writes += 1
        if self._cut:
            return
        if self._server.deaf:
            self._held += len(data)
            return
        self._reader.feed(bytes(data))
        while (command := self._reader.gets()) is not False:
            assert isinstance(command, list)
            self.commands.append(command)
            if not self._server.silent:
                self._do(command)

    def get_write_buffer_size(self) -> int:
        return self._held

    def is_closing(self) -> bool:
        return self._closing

    def abort(self) -> None:
        self._closing = True
        self._gone()


def encode(reply: object) -> bytes:
    """Write a reply as Redis does."""
    if isinstance(reply, Exception):
        return b"-%b\r\n" % str(reply).encode()
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, list):
        return b"*%d\r\n" % len(reply) + b"".join(map(encode, reply))
    assert isinstance(reply, bytes)
    return b"$%d\r\n%b\r\n" % (len(reply), reply)
