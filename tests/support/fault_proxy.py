"""A TCP proxy with which tests break what lies between two programs, and mend it again.

It runs in a thread. Every switch may be thrown at any time from any other thread, and has taken
effect when the call returns; `heal` undoes all of them. What is held back while a fault lasts is
delivered afterwards, as TCP would, unless the connection was ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
import socket
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Final, Self, TypeVar

_CHANCE: Final = random.Random()
"""Of the proxies' own: they run in threads, and Hypothesis watches the module's."""

CHUNK: Final = 65_536
"""Octets read at once."""

BACKLOG: Final = 128

BETWEEN_PIECES: Final = 0.0005
"""Seconds between two pieces, so that the other program may read the first before the second."""

MAX_AHEAD: Final = 256
"""Pieces that wait for their time in one direction of a connection."""

SWITCH_TIMEOUT: Final = 10.0

_RESET: Final = b"\1\0\0\0\0\0\0\0"
"""SO_LINGER on, 0 s: close sends a reset instead of an orderly end."""

ResultT = TypeVar("ResultT")


class Side(enum.Enum):
    """One of the two programs that the proxy stands between."""

    CLIENT = "client"
    SERVER = "server"


@dataclass(slots=True)
class Traffic:
    """What happens to the octets for one side, and how many there have been.

    Attributes:
        octets: delivered.
        delay: seconds each octet is under way.
        jitter: up to so many seconds more, never out of order.
        bandwidth: octets a second on each connection, None for as fast as it goes.
        piece: octets a write at most, None for no limit.
        limit: octets after which a connection is reset, None for no limit.
    """

    octets: int = 0
    delay: float = 0.0
    jitter: float = 0.0
    bandwidth: float | None = None
    piece: int | None = None
    limit: int | None = None


class FaultProxy:
    """Listens on a free port of 127.0.0.1 and passes on what comes.

    Args:
        upstream: the server's address.

    Attributes:
        port: where clients connect to.
        accepted: how many connections there have been.
        cuts: how many of them a fault has ended.
    """

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.accepted = 0
        self.cuts = 0
        self._traffic = {side: Traffic() for side in Side}
        self._gates = {side: asyncio.Event() for side in Side}
        for gate in self._gates.values():
            gate.set()
        self._links: set[_Link] = set()
        self._filler: socket.socket | None = None
        self._filled_by: tuple[str, int] | None = None
        self._loop = asyncio.new_event_loop()
        self._listener: socket.socket | None = None
        self.port = 0
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._do(self._listen())

    # --------------------------------------------------------------------------------- its life

    def _do(self, work: Coroutine[object, object, ResultT]) -> ResultT:
        """Run something in the thread and wait until it is done."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(SWITCH_TIMEOUT)

    def _set(self, change: Callable[[], object]) -> None:
        async def work() -> None:
            change()

        self._do(work())

    async def _listen(self) -> None:
        if self._listener is None:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
            listener.setblocking(False)
            self._listener = listener
            self.port = listener.getsockname()[1]
        self._listener.listen(BACKLOG)
        self._loop.add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            client, address = listener.accept()
            if address == self._filled_by:
                client.close()
                return
            self.accepted += 1
            link = _Link(self, client)
            self._links.add(link)
            link.task = self._loop.create_task(link.run())

    def close(self) -> None:
        """End everything; may be called more than once."""
        if self._loop.is_closed():
            return
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        await self._refuse()
        await self._reset_all(count=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End everything."""
        self.close()

    # -------------------------------------------------------------------------------- its faults

    def slow(
        self,
        delay: float = 0.0,
        *,
        jitter: float = 0.0,
        bandwidth: float | None = None,
        towards: Side | None = None,
    ) -> None:
        """Make it slow, in both directions unless one is named.

        Args:
            delay: seconds each octet is under way.
            jitter: up to so many seconds more; the order stays.
            bandwidth: octets a second on each connection.
            towards: whom the octets are for.
        """

        def change() -> None:
            for side in Side if towards is None else (towards,):
                traffic = self._traffic[side]
                traffic.delay, traffic.jitter, traffic.bandwidth = delay, jitter, bandwidth

        self._set(change)

    def slice(self, piece: int | None, *, towards: Side | None = None) -> None:
        """Pass on so many octets at a time, each time as a segment of its own."""

        def change() -> None:
            for side in Side if towards is None else (towards,):
                self._traffic[side].piece = piece

        self._set(change)

    def limit(self, octets: int | None, *, towards: Side) -> None:
        """Reset each connection on which so many octets for a side were passed on."""

        def change() -> None:
            self._traffic[towards].limit = octets

        self._set(change)

    def blackhole(self, *, towards: Side | None = None) -> None:
        """Let nothing through, and say nothing of it.

        In both directions, nobody answers new connections either, as when a cable is cut. Towards
        one side only, connections come about, and what is for that side does not arrive.
        """
        self._do(self._blackhole(towards))

    async def _blackhole(self, towards: Side | None) -> None:
        for side in Side if towards is None else (towards,):
            self._gates[side].clear()
        if towards is None and self._listener is not None:
            self._loop.remove_reader(self._listener)
            # A connection that nobody accepts fills the queue; the system drops what comes then.
            self._listener.listen(0)
            if self._filler is None:
                self._filler = socket.create_connection(("127.0.0.1", self.port))
                self._filled_by = self._filler.getsockname()

    def _drop_filler(self) -> None:
        if self._filler is not None:
            self._filler.close()
            self._filler = None

    def cut(self) -> int:
        """Reset all connections towards both sides; returns how many there were."""
        return self._do(self._reset_all(count=True))

    async def _reset_all(self, *, count: bool) -> int:
        links = list(self._links)
        for link in links:
            await link.end(reset=True, count=count)
        return len(links)

    def refuse(self) -> None:
        """Refuse new connections, as when no server runs; those that there are stay."""
        self._do(self._refuse())

    async def _refuse(self) -> None:
        self._drop_filler()
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def forget(self, side: Side) -> int:
        """Reset all connections towards one side, and let the other side believe they live.

        Returns:
            How many there were.
        """

        async def work() -> int:
            links = [link for link in self._links if not link.is_half]
            for link in links:
                await link.forget(side)
            return len(links)

        return self._do(work())

    def heal(self) -> None:
        """Undo every fault; connections that one half has forgotten are reset."""
        self._do(self._heal())

    async def _heal(self) -> None:
        for traffic in self._traffic.values():
            traffic.delay = traffic.jitter = 0.0
            traffic.bandwidth = traffic.piece = traffic.limit = None
        for gate in self._gates.values():
            gate.set()
        for link in [link for link in self._links if link.is_half]:
            await link.end(reset=True, count=False)
        self._drop_filler()
        await self._listen()

    # ------------------------------------------------------------------------------- what it sees

    @property
    def live(self) -> int:
        """How many connections there are."""
        return len(self._links)

    def octets(self, towards: Side) -> int:
        """Return how many octets for a side were passed on."""
        return self._traffic[towards].octets


class _Link:
    """One client's connection and the one to the server that belongs to it."""

    def __init__(self, proxy: FaultProxy, client: socket.socket) -> None:
        self.proxy = proxy
        self.task: asyncio.Task[None] | None = None
        self.is_half = False
        self._sockets = {Side.CLIENT: client}
        client.setblocking(False)

    async def run(self) -> None:
        """Pass on what comes until both sides have ended."""
        loop = asyncio.get_running_loop()
        server = socket.socket()
        server.setblocking(False)
        self._sockets[Side.SERVER] = server
        try:
            for one in self._sockets.values():
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(server, self.proxy.upstream)
            async with asyncio.TaskGroup() as pumps:
                for side in Side:
                    pumps.create_task(self._pump(side))
        except* OSError:
            self._close(reset=True)
        else:
            self._close(reset=False)
        finally:
            if not self.is_half:
                self._close(reset=True)
                self.proxy._links.discard(self)

    async def _pump(self, towards: Side) -> None:
        ahead: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MAX_AHEAD)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._read(towards, ahead))
            both.create_task(self._write(towards, ahead))

    async def _read(self, towards: Side, ahead: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop = asyncio.get_running_loop()
        source = self._sockets[Side.SERVER if towards is Side.CLIENT else Side.CLIENT]
        traffic, gate = self.proxy._traffic[towards], self.proxy._gates[towards]
        due = 0.0
        while True:
            await gate.wait()
            data = await loop.sock_recv(source, CHUNK)
            due = max(due, loop.time() + traffic.delay + _CHANCE.uniform(0, traffic.jitter))
            await ahead.put((due, data))
            if not data:
                return

    async def _write(self, towards: Side, ahead: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop = asyncio.get_running_loop()
        sink = self._sockets[towards]
        traffic, gate = self.proxy._traffic[towards], self.proxy._gates[towards]
        written = 0
        while True:
            due, data = await ahead.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                await gate.wait()
                sink.shutdown(socket.SHUT_WR)
                return
            while data:
                await gate.wait()
                size = traffic.piece or CHUNK
                if traffic.bandwidth is not None:
                    size = min(size, max(1, int(traffic.bandwidth / 20)))
                if traffic.limit is not None:
                    size = min(size, max(0, traffic.limit - written))
                    if size == 0:
                        self.proxy.cuts += 1
                        raise ConnectionResetError("the limit of octets")
                piece, data = data[:size], data[size:]
                await loop.sock_sendall(sink, piece)
                written += len(piece)
                traffic.octets += len(piece)
                if traffic.bandwidth is not None:
                    await asyncio.sleep(len(piece) / traffic.bandwidth)
                elif data:
                    await asyncio.sleep(BETWEEN_PIECES)

    async def forget(self, side: Side) -> None:
        """Reset the connection towards one side and keep the other one open, unread."""
        self.is_half = True
        await self._stop()
        self._sockets[side].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._sockets[side].close()
        self.proxy.cuts += 1

    async def end(self, *, reset: bool, count: bool) -> None:
        """End both connections."""
        self.is_half = False
        await self._stop()
        self._close(reset=reset)
        self.proxy._links.discard(self)
        self.proxy.cuts += count

    async def _stop(self) -> None:
        if self.task is not None and not self.task.done():
            self.task.cancel()
            await asyncio.wait([self.task])

    def _close(self, *, reset: bool) -> None:
        for one in self._sockets.values():
            if one.fileno() >= 0:
                if reset:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                one.close()
