"""An asyncio transport without a socket: it records what is written and stalls when told to."""

from __future__ import annotations

import asyncio


class FakeTransport(asyncio.Transport):
    """Takes everything that is written at once, or, while stalled, into a buffer.

    It is as strict as the real ones are lenient: writing to a transport that is closing, or whose
    writing half was ended, fails the test. Nothing is called back but ``pause_writing`` and
    ``resume_writing``, and these from the same places as in asyncio.

    Args:
        eof: what ``can_write_eof`` says; False makes it look like a TLS transport.
        high: the buffer size above which the protocol is asked to pause; None leaves it to
            ``set_write_buffer_limits``.

    Attributes:
        written: all that was ever written.
        writes: how many calls it took.
        gone: how many octets of it have left for the peer.
        aborted: whether ``abort`` was called.
        eof_written: whether ``write_eof`` was called.
        reading: False between ``pause_reading`` and ``resume_reading``.
    """

    def __init__(self, *, eof: bool = True, high: int | None = None) -> None:
        super().__init__()
        self.written = bytearray()
        self.writes = 0
        self.gone = 0
        self.aborted = False
        self.eof_written = False
        self.reading = True
        self._eof = eof
        self._fixed = high is not None
        self._high = 65536 if high is None else high
        self._closing = False
        self._stalled = False
        self._paused = False
        self._protocol: asyncio.BaseProtocol | None = None

    # What the test does.

    def stall(self) -> None:
        """Let nothing leave from now on."""
        self._stalled = True

    def drain(self, size: int | None = None) -> None:
        """Let octets leave, all of them by default; with all gone the stall is over, too."""
        left = len(self.written) - self.gone
        self.gone += left if size is None else min(size, left)
        if self.gone == len(self.written):
            self._stalled = False
        if self._paused and self.get_write_buffer_size() <= self._high // 4:
            self._paused = False
            self._pausable.resume_writing()

    @property
    def sent(self) -> bytes:
        """What has left for the peer."""
        return bytes(self.written[: self.gone])

    @property
    def _pausable(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None, "nobody to tell"
        return self._protocol

    # What the program calls.

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._pausable

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert low is None
        if high is not None and not self._fixed:
            self._high = high

    def get_write_buffer_size(self) -> int:
        return 0 if self.aborted else len(self.written) - self.gone

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._closing, "written to a transport that is closing"
        assert not self.eof_written, "written behind the end"
        assert isinstance(data, bytes), "a transport may keep what it is given: it must not change"
        self.writes += 1
        self.written += data
        if not self._stalled:
            self.gone = len(self.written)
        elif not self._paused and self.get_write_buffer_size() > self._high:
            self._paused = True
            self._pausable.pause_writing()

    def can_write_eof(self) -> bool:
        return self._eof

    def write_eof(self) -> None:
        assert self._eof, "this transport cannot end its writing half alone"
        assert not self.eof_written, "ended twice"
        self.eof_written = True

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    def abort(self) -> None:
        self._closing = True
        self.aborted = True

    def is_reading(self) -> bool:
        return self.reading and not self._closing

    def pause_reading(self) -> None:
        assert self.reading, "paused twice"
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading, "resumed without a pause"
        assert not self._closing, "resumed while closing"
        self.reading = True
