"""One end of the socket pair between a node process and a worker: many frames in, many out.

What is sent within a turn of the loop leaves in one write at its end. When that happens again and
again, it waits until `GATHER` has passed since the last write: a process that is woken for every
message is busier with waking up than with messages, and so is the one that wakes it. What arrives
is cut into frames, many a read. Nobody waits: what the other end does not take is kept, within
limits. An end that takes nothing for `STALL`, or leaves more than `MAX_WAITING` lying, does not
work any more, and the pipe ends: of messages that are not taken nobody could say later whether they
were lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, cast

from falcon_fast._core import Cutter
from falcon_fast.bus.node_wire import MAX_BODY, Kind
from falcon_fast.clock import until_beat

__all__ = ["GATHER", "MAX_WAITING", "STALL", "Pipe"]

GATHER: Final = 0.001
"""Seconds between two writes; what is sent after a longer silence leaves at once."""

READ_BUFFER: Final = 262_144
"""Octets that one read may bring."""

MAX_WAITING: Final = 128 * 1024 * 1024
"""Octets that may wait for the other end: twice the largest frame."""

STALL: Final = 20.0
"""Seconds within which a worker has to take something of what waits for it."""

LOOK: Final = 1.0
"""Seconds between two looks at whether it does."""

log = logging.getLogger(__name__)


class Pipe(asyncio.BufferedProtocol):
    """A protocol for one end.

    Args:
        on_room: called with (room, message, frame) for each message to a room that arrives.
        keeps_frames: False to have None for the frame in which it arrives.
        on_frame: called with the kind and the body of each other frame that arrives.
        on_end: called once, with the reason, when nothing more will arrive.
        stall: seconds within which the other end has to take something of what waits for it.
    """

    def __init__(
        self,
        *,
        on_room: Callable[[str, bytes, bytes | None], None],
        on_frame: Callable[[int, bytes], None],
        on_end: Callable[[str], None],
        keeps_frames: bool = False,
        stall: float = STALL,
    ) -> None:
        self._cutter = Cutter(
            room_kind=Kind.ROOM,
            max_body=MAX_BODY,
            on_room=on_room,
            on_frame=on_frame,
            keeps_frames=keeps_frames,
        )
        self._on_end = on_end
        self._stall = stall
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray(READ_BUFFER)
        self._filled = 0
        self._waiting: list[bytes] = []
        self._flushed_at = float("-inf")
        self._emptied: asyncio.Future[None] | None = None
        self._written = 0
        self._taken = 0  # by the other end, when last looked at
        self._taken_at = 0.0
        self._looked_at = 0.0
        self._look: asyncio.TimerHandle | None = None
        self._reason = "the other end has closed it"
        self._has_ended = False

    # ------------------------------------------------------------------------------ the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, and send what was sent before."""
        # uvloop's transports look like asyncio's and are not derived from them.
        self._transport = cast("asyncio.Transport", transport)
        self._taken_at = self._looked_at = self._loop.time()
        self._look = self._loop.call_later(until_beat(self._loop.time(), LOOK), self._look_at_it)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the transport."""
        self._transport = None
        self._cutter.is_over = True
        self.resume_writing()
        if self._look is not None:
            self._look.cancel()
        if not self._has_ended:
            self._has_ended = True
            self._on_end(self._reason)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend what is free of the buffer."""
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read."""
        filled = self._filled + nbytes
        try:
            begin, needed = self._cutter.feed(self._buffer, filled)
        except Exception:
            log.exception("a message between processes could not be handled")
            self.end("it sent what cannot be handled")
            return
        if begin == filled and len(self._buffer) == READ_BUFFER:
            self._filled = 0
            return
        if not begin and len(self._buffer) >= needed:
            self._filled = filled
            return  # a part of a large frame: it stays where it is
        rest = bytes(memoryview(self._buffer)[begin:filled])
        size = max(READ_BUFFER, needed)
        if len(self._buffer) != size:
            self._buffer = bytearray(size)
        self._buffer[: len(rest)] = rest
        self._filled = len(rest)

    def eof_received(self) -> bool:
        """Close: the other process has ended."""
        return False

    # ------------------------------------------------------------------------------------ sending

    def send(self, frame: bytes) -> None:
        """Send a frame, at the end of the turn or soon; does nothing when the pipe has ended."""
        if self._has_ended:
            return
        if not self._waiting and self._transport is not None:
            rest = self._flushed_at + GATHER - self._loop.time()
            if rest > 0.0:
                self._loop.call_later(rest, self._flush)
            else:
                self._loop.call_soon(self._flush)
        self._waiting.append(frame)

    def _flush(self) -> None:
        transport = self._transport
        if transport is None or not self._waiting:
            return
        octets = b"".join(self._waiting)
        self._waiting.clear()
        if transport.is_closing():
            return
        self._flushed_at = self._loop.time()
        if not transport.get_write_buffer_size():
            self._taken_at = self._flushed_at  # nothing has waited until now
        self._written += len(octets)
        transport.write(octets)
        if transport.get_write_buffer_size() > MAX_WAITING:
            self.end("it takes too little of what is sent to it")

    def _look_at_it(self) -> None:
        """End it when the other end takes nothing."""
        transport = self._transport
        if transport is None:
            return
        self._look = self._loop.call_later(until_beat(self._loop.time(), LOOK), self._look_at_it)
        now = self._loop.time()
        if now - self._looked_at > 2 * LOOK:
            self._taken_at = now  # it was this process that stood still
        self._looked_at = now
        waiting = transport.get_write_buffer_size()
        if not waiting or self._written - waiting != self._taken:
            self._taken, self._taken_at = self._written - waiting, now
        elif now - self._taken_at >= self._stall:
            self.end("it takes nothing of what is sent to it")

    async def drained(self, timeout: float) -> None:
        """Wait until the other end has taken everything, or time is up."""
        self._flush()
        transport = self._transport
        if transport is None or not transport.get_write_buffer_size():
            return
        self._emptied = self._loop.create_future()
        # From now on `resume_writing` means that nothing is left.
        transport.set_write_buffer_limits(high=0)
        await asyncio.wait([self._emptied], timeout=timeout)

    def resume_writing(self) -> None:
        """Take note that the buffer is empty; see `drained`."""
        if self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def end(self, reason: str) -> None:
        """End it at once; `on_end` is called in a later turn of the loop."""
        if self._transport is not None:
            self._reason = reason
            self._cutter.is_over = True
            self._transport.abort()

    def close(self) -> None:
        """Send what waits, then end it."""
        self._flush()
        if self._transport is not None:
            self._reason = "this end has closed it"
            self._cutter.is_over = True
            self._transport.close()
