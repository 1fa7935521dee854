"""Compressed messages as a client makes and reads them (RFC 7692, without context takeover)."""

from __future__ import annotations

import zlib
from typing import Final

from .frames import BINARY, TEXT, ServerFrame, client_frame

EMPTY_BLOCK: Final = b"\x00\x00\xff\xff"
"""What ends a compressed message and is not sent (section 7.2.1)."""

ANSWER: Final = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
"""What is answered to an offer that leaves the window to the server."""

OFFER: Final = "permessage-deflate; client_max_window_bits"
"""What browsers offer."""


def deflated(payload: bytes, *, window: int = 15, level: int = 6, memory: int = 8) -> bytes:
    """Compress a message, with the default settings of zlib unless others are given."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, -window, memory)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def deflated_final(payload: bytes) -> bytes:
    """Compress a message to one stream with a last block, as section 7.2.3.4 allows."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    return compressor.compress(payload) + compressor.flush(zlib.Z_FINISH)


def inflated(payload: bytes, *, window: int = 15) -> bytes:
    """Inflate a message; fails if it needs a larger window, or is not whole."""
    inflater = zlib.decompressobj(-window)
    message = inflater.decompress(payload + EMPTY_BLOCK)
    assert not inflater.unused_data
    assert inflater.decompress(b"\x03\x00") == b""
    assert inflater.eof
    return message


def packed_text(content: str | bytes, *, fin: bool = True) -> bytes:
    """Build a text frame whose payload is compressed."""
    payload = content if isinstance(content, bytes) else content.encode()
    return client_frame(TEXT, deflated(payload), fin=fin, rsv=4)


def packed_binary(content: bytes, *, fin: bool = True) -> bytes:
    """Build a binary frame whose payload is compressed."""
    return client_frame(BINARY, deflated(content), fin=fin, rsv=4)


def plain(frame: ServerFrame, *, window: int = 15) -> ServerFrame:
    """Return a frame of the server as it was before compression."""
    if not frame.compressed:
        return frame
    return ServerFrame(frame.opcode, inflated(frame.payload, window=window))
