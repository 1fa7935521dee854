"""Two ends of a pipe without a socket: what one writes, the other reads in a later turn."""

from __future__ import annotations

import asyncio
from typing import Final

from falcon_fast.bus.node_pipe import GATHER

from .loop import turns

__all__ = ["End", "crossed", "join"]

READ: Final = 65_536
"""Octets that one read brings at most."""


class End(asyncio.Transport):
    """The transport of one end.

    Attributes:
        writes: what was written, a write each.
        stalled: for tests to set: the other end takes nothing.
        other: the transport of the other end.
    """

    def __init__(self, protocol: asyncio.BufferedProtocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.writes: list[bytes] = []
        self.stalled = False
        self.other: End | None = None
        self._left = bytearray()
        self._closing = False
        self._scheduled = False
        self._high: int | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._closing, "written to a transport that is closing"
        self.writes.append(bytes(data))
        self._left += data
        self._move_soon()

    def _move_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self.move)

    def move(self, size: int | None = None) -> None:
        """Let octets arrive at the other end: all of them, if the other end is not stalled."""
        self._scheduled = False
        if self.stalled and size is None:
            return
        octets = bytes(self._left[:size])
        del self._left[: len(octets)]
        other = self.other
        while octets and other is not None and not other._closing:
            view = memoryview(other.protocol.get_buffer(-1))
            part = octets[: min(READ, len(view))]
            view[: len(part)] = part
            octets = octets[len(part) :]
            other.protocol.buffer_updated(len(part))
        if not self._left:
            if self._high == 0:
                self.protocol.resume_writing()
            if self._closing:
                self._lose()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high

    def get_write_buffer_size(self) -> int:
        return len(self._left)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if not self._left:
                self._lose()

    def abort(self) -> None:
        self._closing = True
        self._left.clear()
        self._lose()

    def _lose(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(self.protocol.connection_lost, None)
        other, self.other = self.other, None
        if other is not None and not other._closing:
            loop.call_soon(other.close)


def join(one: asyncio.BufferedProtocol, other: asyncio.BufferedProtocol) -> tuple[End, End]:
    """Connect two protocols; returns the transports of both."""
    ends = End(one), End(other)
    ends[0].other, ends[1].other = ends[1], ends[0]
    for end in ends:
        end.protocol.connection_made(end)
    return ends


async def crossed(times: int = 4) -> None:
    """Let everything happen that is ready to, and what was said cross so many pipes."""
    for _ in range(times):
        await turns()
        await asyncio.sleep(GATHER)
    await turns()
