"""WebSocket frames as a client makes them, right or wrong, and as a client reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

CONTINUATION: Final = 0
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

MASK: Final = b"\x37\xfa\x21\x3d"
"""The masking key of the examples in RFC 6455 section 5.7."""


def masked(payload: bytes, key: bytes) -> bytes:
    """XOR octet i of the payload with octet i modulo 4 of the key (RFC 6455 section 5.3)."""
    return bytes([octet ^ key[i % 4] for i, octet in enumerate(payload)])


def client_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = MASK,
    width: int | None = None,
    declared: int | None = None,
) -> bytes:
    """Build a frame as a client sends it, with any bits.

    Args:
        opcode: 0 to 15.
        payload: before masking.
        fin: whether this is the last frame of its message.
        rsv: the three reserved bits, 4 for RSV1, 2 for RSV2, 1 for RSV3.
        mask: the masking key; None leaves the mask bit and the key out.
        width: octets of the extended length, 0, 2 or 8; None for the shortest that fits.
        declared: the length that the header claims; None for the true one.
    """
    length = len(payload) if declared is None else declared
    if width is None:
        width = 0 if length < 126 else (2 if length < 65536 else 8)
    short = {0: length, 2: 126, 8: 127}[width]
    head = bytes([fin << 7 | rsv << 4 | opcode, (mask is not None) << 7 | short])
    if width:
        head += length.to_bytes(width, "big")
    return head + payload if mask is None else head + mask + masked(payload, mask)


def text(content: str | bytes, *, fin: bool = True) -> bytes:
    """Build a text frame; octets are taken as they are, valid or not."""
    return client_frame(TEXT, content if isinstance(content, bytes) else content.encode(), fin=fin)


def binary(payload: bytes, *, fin: bool = True) -> bytes:
    """Build a binary frame."""
    return client_frame(BINARY, payload, fin=fin)


def more(payload: bytes, *, fin: bool = False) -> bytes:
    """Build a continuation frame."""
    return client_frame(CONTINUATION, payload, fin=fin)


def ping(payload: bytes = b"") -> bytes:
    """Build a Ping."""
    return client_frame(PING, payload)


def pong(payload: bytes = b"") -> bytes:
    """Build a Pong."""
    return client_frame(PONG, payload)


def close(code: int | None = None, reason: bytes = b"") -> bytes:
    """Build a Close, empty without a code."""
    return client_frame(CLOSE, b"" if code is None else code.to_bytes(2, "big") + reason)


@dataclass(frozen=True, slots=True)
class ServerFrame:
    """One frame as a client receives it.

    Attributes:
        opcode: what kind of frame it is.
        payload: its content; a server never masks.
        compressed: whether RSV1 says that the payload is.
    """

    opcode: int
    payload: bytes
    compressed: bool = False

    @property
    def code(self) -> int | None:
        """The status code of a Close; None without one."""
        return int.from_bytes(self.payload[:2], "big") if self.payload else None

    def to_bytes(self) -> bytes:
        """Build the one right encoding: FIN set, no mask, the shortest length, no RSV2 or 3."""
        size = len(self.payload)
        if size < 126:
            length = bytes([size])
        elif size < 65536:
            length = b"\x7e" + size.to_bytes(2, "big")
        else:
            length = b"\x7f" + size.to_bytes(8, "big")
        return bytes([0x80 | self.compressed << 6 | self.opcode]) + length + self.payload


def server_frames(stream: bytes) -> list[ServerFrame]:
    """Take apart what a server has written, strictly.

    Raises:
        ValueError: a frame is masked, fragmented, badly encoded or cut off.
    """
    return list(_server_frames(bytes(stream)))


def _server_frames(stream: bytes) -> Iterator[ServerFrame]:
    at = 0
    while at < len(stream):
        size, start = stream[at + 1] if at + 1 < len(stream) else 0, at + 2
        if size in (126, 127):
            width = 2 if size == 126 else 8
            size, start = int.from_bytes(stream[start : start + width], "big"), start + width
        compressed = bool(stream[at] & 0x40)
        frame = ServerFrame(stream[at] & 0x0F, stream[start : start + size], compressed)
        if stream[at : start + size] != frame.to_bytes() or len(frame.payload) != size:
            raise ValueError(f"no frame of a server at octet {at}: {stream[at : at + 16].hex()}")
        yield frame
        at = start + size


def wire(*frames: ServerFrame) -> bytes:
    """Return what a server must write for these frames."""
    return b"".join([frame.to_bytes() for frame in frames])


def says(content: str | bytes) -> ServerFrame:
    """Describe a text frame of the server."""
    return ServerFrame(TEXT, content if isinstance(content, bytes) else content.encode())


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """Cut a stream at these offsets; what lies outside it, or comes twice, is ignored."""
    marks = sorted({place for place in places if 0 < place < len(stream)})
    return [stream[a:b] for a, b in zip([0, *marks], [*marks, len(stream)], strict=True) if a < b]
