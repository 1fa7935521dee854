"""Compressed messages judged by `websockets` and `wsproto`, and the negotiation by `websockets`.

As in `test_second_opinion`: where one of the others comes to another verdict, the difference must
be on the list below, which says who is right and why.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import InvalidHeaderFormat, NegotiationError
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Frame
from websockets.headers import parse_extension
from websockets.http11 import Request
from websockets.server import ServerProtocol
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection
from wsproto.extensions import PerMessageDeflate

from falcon_fast.codes import CloseReason
from falcon_fast.deflate import agree

from ..model.core import inflate
from ..support import FUZZ_EXAMPLES
from ..support.core import Closed, Message, Rig
from ..support.deflate import EMPTY_BLOCK, deflated, deflated_final
from ..support.frames import BINARY, client_frame, cut, more, server_frames
from .conftest import NATIVE
from .strategies import BLOCKS

LIMIT: Final = 1000

HEAD: Final = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
)

QUIET: Final = logging.Logger("quiet", logging.CRITICAL)

Verdict = bytes | int
"""The message, or the close code with which it was refused."""


def as_frames(data: bytes, places: Sequence[int]) -> list[bytes]:
    """Put a compressed message into one frame or several."""
    pieces = cut(data, places) or [b""]
    frames = [client_frame(BINARY, pieces[0], fin=len(pieces) == 1, rsv=4)]
    return frames + [more(piece, fin=piece is pieces[-1]) for piece in pieces[1:]]


def core(frames: Sequence[bytes]) -> Verdict:
    rig = Rig(NATIVE, {"max_message_bytes": LIMIT, "max_connections": 1})
    rig.connect(deflate=15).feed(b"".join(frames))
    (event,) = rig.events
    if isinstance(event, Message):
        return event.payload
    assert isinstance(event, Closed)
    return event.code


def by_websockets(frames: Sequence[bytes]) -> Verdict:
    factory = ServerPerMessageDeflateFactory(
        server_no_context_takeover=True, client_no_context_takeover=True
    )
    protocol = ServerProtocol(max_size=LIMIT, logger=QUIET, extensions=[factory])
    protocol.receive_data(HEAD)
    (request,) = protocol.events_received()
    assert isinstance(request, Request)
    protocol.send_response(protocol.accept(request))
    protocol.receive_data(b"".join(frames))
    message = b""
    for frame in protocol.events_received():
        assert isinstance(frame, Frame)
        message += bytes(frame.data)
        if frame.fin:
            return message
    assert protocol.close_sent is not None
    return int(protocol.close_sent.code)


def by_wsproto(frames: Sequence[bytes]) -> Verdict:
    extension = PerMessageDeflate(client_no_context_takeover=True, server_no_context_takeover=True)
    assert extension.accept("permessage-deflate")
    connection = Connection(ConnectionType.SERVER, extensions=[extension])
    connection.receive_data(b"".join(frames))
    message = b""
    for event in connection.events():
        if isinstance(event, CloseConnection):
            return int(event.code)
        assert isinstance(event, BytesMessage)
        message += bytes(event.data)
        if event.message_finished:
            return message
    raise AssertionError("neither delivered nor refused")


def is_cut_off(data: bytes) -> bool:
    """Tell whether a message does not end where a block does, or is nothing of the kind."""
    return inflate(data, LIMIT) is CloseReason.INVALID_PAYLOAD


def goes_on(data: bytes) -> bool:
    """Tell whether a message goes on behind a block that says it is the last."""
    inflater = zlib.decompressobj(-15)
    try:
        inflater.decompress(data)
    except zlib.error:
        return False
    return inflater.eof and inflater.unused_data not in (b"", b"\x00")


@dataclass(frozen=True, slots=True)
class Difference:
    """A reviewed difference; see `test_second_opinion`."""

    name: str
    who: Callable[[Sequence[bytes]], Verdict]
    reason: str
    applies: Callable[[bytes, Verdict, Verdict], bool]
    example: bytes


REVIEWED: Final = [
    Difference(
        "code",
        by_websockets,
        "RFC 7692 names no code for what cannot be inflated. 1007 says that the payload is not "
        "what its frame claims, and is wsproto's choice, too; websockets sends 1002.",
        lambda data, ours, theirs: (ours, theirs) == (1007, 1002),
        b"\xff\xff",
    ),
    *[
        Difference(
            f"cut-off-{who.__name__}",
            who,
            "Behind the empty block that was not sent, a message must be at the end of a block "
            "(section 7.2.2 undoes 7.2.1). We refuse a message that is cut off; the others deliver "
            "the beginning, or the rest as far as it goes.",
            lambda data, ours, theirs: (
                ours == 1007 and isinstance(theirs, bytes) and is_cut_off(data)
            ),
            b"\x00\x09\x00\xf6\xffhel",
        )
        for who in (by_websockets, by_wsproto)
    ],
    *[
        Difference(
            f"behind-the-last-block-{who.__name__}",
            who,
            'Section 7.2.1: "The next DEFLATE block follows the padded data if any", so a message '
            "may go on behind a block that says it is the last; the others ignore what does.",
            lambda data, ours, theirs: ours != theirs and goes_on(data),
            deflated_final(b"one") + deflated(b"two"),
        )
        for who in (by_websockets, by_wsproto)
    ],
    Difference(
        "longer-when-compressed",
        by_websockets,
        "A message of full size that does not compress is longer on the wire. Our limit is that of "
        "the message; websockets holds each frame against it, too.",
        lambda data, ours, theirs: (
            theirs == 1009 and len(data) > LIMIT and (ours == 1007 or isinstance(ours, bytes))
        ),
        deflated(bytes(range(250)) * 4, level=0),
    ),
    Difference(
        "no-limit",
        by_wsproto,
        "wsproto has no limit for the size of a message.",
        lambda data, ours, theirs: ours == 1009,
        deflated(bytes(LIMIT + 1)),
    ),
]


def review(data: bytes, places: Sequence[int]) -> None:
    frames = as_frames(data, places)
    ours = core(frames)
    for other in (by_websockets, by_wsproto):
        theirs = other(frames)
        if theirs == ours:
            continue
        known = [d for d in REVIEWED if d.who is other and d.applies(data, ours, theirs)]
        assert known, f"{other.__name__}: {theirs!r}, we: {ours!r}, on {data.hex()} at {places}"


@pytest.mark.parametrize("difference", REVIEWED, ids=[d.name for d in REVIEWED])
def test_reviewed_differences_are_still_there(difference: Difference) -> None:
    data = difference.example
    ours, theirs = core(as_frames(data, [])), difference.who(as_frames(data, []))
    assert ours != theirs, "no longer a difference: take it off the list"
    assert difference.applies(data, ours, theirs)


places = st.lists(st.integers(0, 300), max_size=3)


@settings(max_examples=FUZZ_EXAMPLES or 150, deadline=None)
@given(
    message=st.binary(max_size=300).map(lambda data: data * 3),
    level=st.integers(0, 9),
    window=st.integers(9, 15),
    places=places,
)
def test_messages_of_zlib_are_understood_alike(
    message: bytes, level: int, window: int, places: list[int]
) -> None:
    data = deflated(message, level=level, window=window)
    frames = as_frames(data, places)
    assert core(frames) == by_wsproto(frames) == message
    if len(data) <= LIMIT:
        assert by_websockets(frames) == message


@settings(max_examples=FUZZ_EXAMPLES or 300, deadline=None)
@given(
    blocks=st.lists(st.one_of(st.sampled_from(BLOCKS), st.binary(max_size=4)), max_size=5),
    places=places,
)
def test_d05_d06_pieces_of_streams_are_judged_alike(blocks: list[bytes], places: list[int]) -> None:
    review(b"".join(blocks), places)


@settings(max_examples=FUZZ_EXAMPLES or 200, deadline=None)
@given(
    message=st.text(max_size=80).map(str.encode),
    final=st.booleans(),
    at=st.integers(0, 200),
    octet=st.integers(0, 255),
    end=st.integers(0, 200),
)
def test_d05_changed_streams_are_judged_alike(
    message: bytes, final: bool, at: int, octet: int, end: int
) -> None:
    data = bytearray((deflated_final if final else deflated)(message))
    data[at % len(data)] = octet
    review(bytes(data[: end % len(data) + 1]), [])


def test_what_we_compress_is_understood() -> None:
    """By `websockets` as a client, with every window."""
    message = b'{"text":"' + bytes(range(32, 127)) * 40 + b'"}'
    for window in range(9, 16):
        rig = Rig(NATIVE)
        peer = rig.connect(deflate=window)
        rig.core.send(peer.handle, message)
        rig.turn()
        (frame,) = server_frames(bytes(peer.transport.written))
        assert frame.compressed
        decoder = zlib.decompressobj(-window)
        assert decoder.decompress(frame.payload + EMPTY_BLOCK) == message


parameters = st.lists(
    st.sampled_from(
        [
            "server_no_context_takeover",
            "client_no_context_takeover",
            "server_no_context_takeover=1",
            "client_max_window_bits",
            "client_max_window_bits=12",
            "client_max_window_bits=16",
            'client_max_window_bits="9"',
            "server_max_window_bits",
            "server_max_window_bits=10",
            'server_max_window_bits="13"',
            "server_max_window_bits=15",
            "server_max_window_bits=7",
            "server_max_window_bits=09",
            "unknown",
            "unknown=1",
        ]
    ),
    max_size=4,
)
offer = st.builds(
    lambda name, parts: "; ".join([name, *parts]),
    st.sampled_from(["permessage-deflate"] * 5 + ["x-other"]),
    parameters,
)


@settings(max_examples=FUZZ_EXAMPLES or 400, deadline=None)
@given(header=st.lists(offer, min_size=1, max_size=4).map(", ".join))
def test_d01_offers_are_accepted_alike(header: str) -> None:
    agreed = agree((header,))
    theirs = accepted_by_websockets(header)
    assert (None if agreed is None else agreed.window) == theirs


def accepted_by_websockets(header: str) -> int | None:
    """Return the window of the first offer that `websockets` accepts."""
    factory = ServerPerMessageDeflateFactory(
        server_no_context_takeover=True, client_no_context_takeover=True
    )
    try:
        offers = parse_extension(header)
    except InvalidHeaderFormat:
        return None
    for name, given_parameters in offers:
        if name != "permessage-deflate":
            continue
        try:
            _answer, extension = factory.process_request_params(given_parameters, [])
        except NegotiationError:
            continue
        return int(extension.local_max_window_bits)
    return None
