"""A core without a loop and without sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from falcon_fast._core import Core, Link
from falcon_fast.codes import close_table


class NullTransport(asyncio.Transport):
    """Takes everything and keeps nothing."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        pass


def make_core(on_message: Callable[[None, bytes, bool], None] | None = None) -> Core[None]:
    """Make a core that flushes only when told to, has no pings and limits nobody."""

    def fail(error: BaseException) -> None:
        raise error

    return Core(
        on_message=on_message or (lambda _owner, _payload, _is_text: None),
        on_close=lambda _owner, _reason, _code: None,
        on_refused=lambda _owner, _payload, _number: None,
        on_expire=lambda _owner: None,
        on_error=fail,
        schedule=lambda _flush: None,
        close_table=close_table(),
        ping_interval=0.0,
        epoll=False,
    )


def connect(core: Core[None]) -> Link:
    """Adopt a connection that is open at once."""
    return core.adopt_transport(NullTransport(), None)


def client_frame(payload: bytes, *, opcode: int = 1, final: bool = True) -> bytes:
    """Build a masked frame as a client sends it."""
    size = len(payload)
    head = bytes([0x80 * final | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += bytes([0x80 | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([0x80 | 127]) + size.to_bytes(8, "big")
    key = b"\x37\xfa\x21\x3d"
    masked = bytes(byte ^ key[i & 3] for i, byte in enumerate(payload))
    return head + key + masked
