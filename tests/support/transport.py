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
        sent: what has left for the peer.
        buffered: what was written but has not left.
        aborted: whether ``abort`` was called.
        eof_written: whether ``write_eof`` was called.
        reading: False between ``pause_reading`` and ``resume_reading``.
    """

    def __init__(self, *, eof: bool = True, high: int | None = None) -> None:
        super().__init__()
        self.sent = bytearray()
        self.buffered = bytearray()
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
        size = len(self.buffered) if size is None else size
        self.sent += self.buffered[:size]
        del self.buffered[:size]
        if not self.buffered:
            self._stalled = False
        if self._paused and len(self.buffered) <= self._high // 4:
            self._paused = False
            self.protocol.resume_writing()

    @property
    def written(self) -> bytes:
        """All that was written: what has left and what has not."""
        return bytes(self.sent + self.buffered)

    @property
    def protocol(self) -> asyncio.Protocol:
        """The protocol that was set."""
        assert self._protocol is not None
        return self._protocol  # type: ignore[return-value]  # any protocol can pause and resume

    # What the program calls.

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert low is None
        if high is not None and not self._fixed:
            self._high = high

    def get_write_buffer_size(self) -> int:
        return len(self.buffered)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._closing, "written to a transport that is closing"
        assert not self.eof_written, "written behind the end"
        assert isinstance(data, bytes), "a transport may keep what it is given: it must not change"
        if not self._stalled:
            self.sent += data
            return
        self.buffered += data
        if not self._paused and len(self.buffered) > self._high:
            self._paused = True
            self.protocol.pause_writing()

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
        self.buffered.clear()

    def is_reading(self) -> bool:
        return self.reading and not self._closing

    def pause_reading(self) -> None:
        assert self.reading, "paused twice"
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading, "resumed without a pause"
        assert not self._closing, "resumed while closing"
        self.reading = True
