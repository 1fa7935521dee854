"""Random frames of a client: mostly legal ones, and every way of being wrong."""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st

from ..support.deflate import deflated, deflated_final
from ..support.frames import (
    BINARY,
    CONTINUATION,
    MASK,
    TEXT,
    binary,
    client_frame,
    close,
    more,
    ping,
    pong,
    text,
)

EURO: Final = "€".encode()

masks = st.sampled_from([MASK, bytes(4), b"\xff\x00\xff\x00"])

texts = st.one_of(
    st.text(max_size=12).map(str.encode),
    st.sampled_from([b"", EURO, EURO[:1], EURO[1:], EURO[2:], b"\xff", b"ok\xed\xa0\x80", b"\xf0"]),
)


@st.composite
def legal(draw: st.DrawFn) -> bytes:
    """Draw a whole message or a control frame, with any masking key."""
    kind = draw(st.sampled_from(["text", "binary", "fragments", "ping", "pong"]))
    mask = draw(masks)
    if kind == "text":
        return client_frame(TEXT, draw(st.text(max_size=40)).encode(), mask=mask)
    if kind == "binary":
        return client_frame(BINARY, draw(st.binary(max_size=130)), mask=mask)
    if kind == "ping":
        return ping(draw(st.binary(max_size=125)))
    if kind == "pong":
        return pong(draw(st.binary(max_size=5)))
    pieces = draw(st.lists(st.binary(max_size=9), min_size=2, max_size=5))
    frames = [binary(pieces[0], fin=False)]
    for piece in pieces[1:-1]:
        frames.append(more(piece))
        if draw(st.booleans()):
            frames.append(ping(b"between"))
    return b"".join(frames) + more(pieces[-1], fin=True)


@st.composite
def any_frame(draw: st.DrawFn) -> bytes:
    """Draw a frame with any bits; the payload is what its header says."""
    opcode = draw(st.sampled_from([TEXT, BINARY, CONTINUATION, 8, 9, 10, *range(16)]))
    payload = draw(texts if opcode < 2 else st.binary(max_size=130))
    widths = [0, None, None] if len(payload) < 126 else [None]
    return client_frame(
        opcode,
        payload,
        fin=draw(st.booleans()),
        rsv=draw(st.sampled_from([0] * 12 + [1, 2, 4])),
        mask=draw(st.sampled_from([MASK] * 12 + [None])),
        width=draw(st.sampled_from([*widths * 4, 2, 8])),
    )


closes = st.one_of(
    st.builds(close, st.integers(0, 65535), texts),
    st.builds(close, st.sampled_from([1000, 1001, 1005, 1014, 1015, 3000, 4999, 5000]), texts),
    st.just(close()),
)

frames = st.one_of(
    legal(),
    legal(),
    legal(),
    any_frame(),
    st.builds(text, texts, fin=st.booleans()),
    st.builds(more, texts, fin=st.booleans()),
    closes,
)

# At most 15 pings: of more in one read not every one is answered.
streams = st.lists(frames, max_size=6).map(b"".join)

BLOCKS: Final = (
    b"",
    b"\x00",  # the rest of an empty stored block
    b"\x00\x00\x00\xff\xff",  # a whole one
    b"\x01\x00\x00\xff\xff",  # one that says it is the last
    b"\x03\x00",  # an empty last block with fixed codes
    b"\x00\x00\xff\xff",
    b"\x00\x05\x00\xfa\xffhello",
    b"\x00\x05\x00\xfa\xfehello",  # lengths that do not match
    deflated(b"hello" * 9),
    deflated_final(b"hello" * 9),
    deflated(b"x" * 5_000),
)
"""Pieces that compressed messages are made of, right and wrong."""


@st.composite
def compressed(draw: st.DrawFn) -> bytes:
    """Draw a compressed message in one frame or several, mostly a legal one."""
    opcode = draw(st.sampled_from([TEXT, BINARY]))
    content = draw(st.text(max_size=60)).encode() * draw(st.sampled_from([1, 1, 4]))
    data = draw(st.sampled_from([deflated, deflated, deflated_final]))(content)
    if draw(st.integers(0, 9)) == 0:
        data = draw(st.lists(st.sampled_from(BLOCKS), max_size=4).map(b"".join))
    place = draw(st.one_of(st.none(), st.integers(0, len(data))))
    if place is None:
        return client_frame(opcode, data, rsv=4)
    rsv = draw(st.sampled_from([0] * 9 + [4]))
    return (
        client_frame(opcode, data[:place], fin=False, rsv=4)
        + draw(st.sampled_from([b"", ping(b"between")]))
        + client_frame(CONTINUATION, data[place:], rsv=rsv)
    )


deflate_streams = st.lists(st.one_of(compressed(), compressed(), frames), max_size=6).map(b"".join)
