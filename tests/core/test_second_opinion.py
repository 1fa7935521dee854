"""Frame sequences judged by two other implementations of RFC 6455, `websockets` and `wsproto`.

A verdict is what the application was given and how the connection ended. Where one of the others
comes to a different one, the difference must be on the list below, which says who is right and why.
"""

from __future__ import annotations

import codecs
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage

from falcon_fast.codes import CloseReason

from ..support import FUZZ_EXAMPLES
from ..support.core import Closed, Message, Rig
from ..support.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    TEXT,
    binary,
    client_frame,
    close,
    more,
    ping,
    pong,
    text,
)
from .conftest import NATIVE
from .strategies import any_frame, closes, legal

LIMIT: Final = 1000
"""Octets of a message; wsproto knows no limit."""

HEAD: Final = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

QUIET: Final = logging.Logger("quiet", logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What came of a sequence of frames.

    Attributes:
        messages: payload, and whether it was text, of each message that was delivered.
        refused: the close code with which the connection was failed, or None.
        closed: the close code that the peer was acknowledged to have sent, or None.
    """

    messages: tuple[tuple[bytes, bool], ...]
    refused: int | None = None
    closed: int | None = None


def core(frames: Sequence[bytes]) -> Judgement:
    """Judge by the native core."""
    rig = Rig(NATIVE, {"max_message_bytes": LIMIT, "max_connections": 1})
    peer = rig.connect()
    peer.feed(b"".join(frames))
    messages = tuple([(e.payload, e.is_text) for e in rig.events if isinstance(e, Message)])
    ends = [event for event in rig.events if isinstance(event, Closed)]
    assert len(messages) + len(ends) == len(rig.events)
    if not ends:
        return Judgement(messages)
    assert ends == rig.events[-1:]
    if ends[0].reason is CloseReason.PEER_CLOSED:
        return Judgement(messages, closed=ends[0].code)
    return Judgement(messages, refused=ends[0].code)


def by_websockets(frames: Sequence[bytes]) -> Judgement:
    """Judge by `websockets`, whose protocol leaves UTF-8 in messages to the layer above."""
    protocol = ServerProtocol(max_size=LIMIT, logger=QUIET)
    protocol.receive_data(HEAD)
    (request,) = protocol.events_received()
    assert isinstance(request, Request)
    protocol.send_response(protocol.accept(request))
    messages: list[tuple[bytes, bool]] = []
    pieces: list[bytes] = []
    is_text = False
    decoder = codecs.getincrementaldecoder("utf-8")()
    for data in frames:
        if protocol.close_expected():
            break
        protocol.receive_data(data)
        for frame in protocol.events_received():
            assert isinstance(frame, Frame)
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
                pieces, is_text = [], frame.opcode is Opcode.TEXT
                decoder.reset()
            elif frame.opcode is not Opcode.CONT:
                continue
            pieces.append(bytes(frame.data))
            try:
                if is_text:
                    decoder.decode(pieces[-1], frame.fin)
            except UnicodeDecodeError:
                protocol.fail(CloseCode.INVALID_DATA)
                break
            if frame.fin:
                messages.append((b"".join(pieces), is_text))
    if protocol.close_sent is None:
        return Judgement(tuple(messages))
    if protocol.parser_exc is None and protocol.close_rcvd is not None:
        return Judgement(tuple(messages), closed=int(protocol.close_rcvd.code))
    return Judgement(tuple(messages), refused=int(protocol.close_sent.code))


def by_wsproto(frames: Sequence[bytes]) -> Judgement:
    """Judge by `wsproto`."""
    connection = Connection(ConnectionType.SERVER)
    connection.receive_data(b"".join(frames))
    messages: list[tuple[bytes, bool]] = []
    pieces: list[bytes] = []
    for event in connection.events():
        if isinstance(event, CloseConnection):
            if connection.state is ConnectionState.REMOTE_CLOSING:
                return Judgement(tuple(messages), closed=int(event.code))
            return Judgement(tuple(messages), refused=int(event.code))
        if isinstance(event, TextMessage | BytesMessage):
            data = event.data
            pieces.append(data.encode() if isinstance(data, str) else bytes(data))
            if event.message_finished:
                messages.append((b"".join(pieces), isinstance(event, TextMessage)))
                pieces = []
    return Judgement(tuple(messages))


@dataclass(frozen=True, slots=True)
class Header:
    """What a difference may depend on: one frame's header, read naively."""

    opcode: int
    fin: bool
    declared: int
    shortest: bool
    payload: bytes


def headers(frames: Sequence[bytes]) -> Iterator[Header]:
    """Read the headers; each item begins with one frame and may hold more."""
    stream = b"".join(frames)
    at = 0
    while at + 2 <= len(stream):
        size, width = stream[at + 1] & 0x7F, 0
        if size > 125:
            width = 2 if size == 126 else 8
            size = int.from_bytes(stream[at + 2 : at + 2 + width], "big")
        start = at + 2 + width + 4 * (stream[at + 1] >> 7)
        key = stream[start - 4 : start] if stream[at + 1] >> 7 else bytes(4)
        data = stream[start : start + size]
        yield Header(
            stream[at] & 0x0F,
            bool(stream[at] & 0x80),
            size,
            width == (0 if size < 126 else 2 if size < 65536 else 8),
            bytes([octet ^ key[i % 4] for i, octet in enumerate(data)]),
        )
        at = start + size


@dataclass(frozen=True, slots=True)
class Difference:
    """A reviewed difference.

    Attributes:
        name: for the test that shows it is still there.
        who: the one that judges differently.
        reason: who is right, and why.
        applies: whether a sequence with our judgement and theirs is an instance of it.
        example: a sequence that shows it.
    """

    name: str
    who: Callable[[Sequence[bytes]], Judgement]
    reason: str
    applies: Callable[[list[Header], Judgement, Judgement], bool]
    example: tuple[bytes, ...]


def too_big(seen: list[Header]) -> bool:
    """Tell whether some data frame, or the sum of some message's fragments, exceeds the limit."""
    total = 0
    for header in seen:
        if header.opcode in (TEXT, BINARY):
            total = 0
        if header.opcode in (TEXT, BINARY, CONTINUATION):
            total += header.declared
            if total > LIMIT:
                return True
    return False


REVIEWED: Final = [
    Difference(
        "long-lengths",
        by_websockets,
        'RFC 6455 section 5.2: "the minimal number of bytes MUST be used to encode the length". '
        "We and wsproto refuse with 1002 what websockets lets pass.",
        lambda seen, ours, theirs: ours.refused == 1002 and any(not h.shortest for h in seen),
        (client_frame(TEXT, b"x", width=2),),
    ),
    Difference(
        "top-bit-of-a-length",
        by_websockets,
        "A length with its most significant bit set is malformed (section 5.2), so 1002 as in "
        "wsproto; websockets takes it for a very large one, 1009.",
        lambda seen, ours, theirs: (
            (ours.refused, theirs.refused) == (1002, 1009)
            and any(h.declared >= 1 << 63 for h in seen)
        ),
        (client_frame(TEXT, declared=1 << 63),),
    ),
    Difference(
        "large-and-wrong",
        by_websockets,
        "A frame that is too large and wrong in another way, too: we look at the first two octets "
        "first, websockets at the length. Either code is right.",
        lambda seen, ours, theirs: (ours.refused, theirs.refused) == (1002, 1009) and too_big(seen),
        (text("a", fin=False), client_frame(TEXT, declared=LIMIT + 1)),
    ),
    Difference(
        "close-within-a-message",
        by_websockets,
        'Section 5.4: control frames "MAY be injected in the middle of a fragmented message". We '
        "and wsproto acknowledge the Close; websockets calls the unfinished message an error.",
        lambda seen, ours, theirs: (
            ours.closed is not None and theirs.refused == 1002 and ours.messages == theirs.messages
        ),
        (text("a", fin=False), close(1000)),
    ),
    Difference(
        "code-and-text-both-wrong",
        by_websockets,
        "A Close whose code is not allowed and whose text is not UTF-8: we and wsproto look at the "
        "code first, 1002, websockets at the text, 1007.",
        lambda seen, ours, theirs: (ours.refused, theirs.refused) == (1002, 1007),
        (close(999, b"\xff"),),
    ),
    Difference(
        "no-limit",
        by_wsproto,
        "wsproto has no limit for the size of a message, which it leaves to the layer above, and "
        "looks at a frame's place in its message only when some payload has come.",
        lambda seen, ours, theirs: (
            ours.refused in (1002, 1009) and theirs.refused is None and too_big(seen)
        ),
        (client_frame(TEXT, declared=LIMIT + 1),),
    ),
    Difference(
        "code-1014",
        by_wsproto,
        "1014 (bad gateway) was registered with IANA later than the codes that wsproto knows.",
        lambda seen, ours, theirs: (
            theirs.refused == 1002
            and any(h.opcode == CLOSE and h.payload[:2] == b"\x03\xf6" for h in seen)
        ),
        (close(1014),),
    ),
    *[
        Difference(
            f"half-a-surrogate-{name}",
            who,
            "CPython's incremental decoder does not notice in ED A0 that no third octet can make "
            "it valid; we fail with the octet that makes it invalid, as section 8.1 suggests.",
            lambda seen, ours, theirs: (
                ours.refused == 1007 and any(b"\xed" in h.payload for h in seen)
            ),
            (text(b"\xed\xa0", fin=False), close(1000)),
        )
        for name, who in (("websockets", by_websockets), ("wsproto", by_wsproto))
    ],
]


def review(frames: Sequence[bytes]) -> None:
    """Compare our judgement with the others'."""
    ours = core(frames)
    for other in (by_websockets, by_wsproto):
        theirs = other(frames)
        if theirs == ours:
            continue
        seen = list(headers(frames))
        known = [d for d in REVIEWED if d.who is other and d.applies(seen, ours, theirs)]
        assert known, f"{other.__name__}: {theirs}, we: {ours}, on {[f.hex() for f in frames]}"


@pytest.mark.parametrize("difference", REVIEWED, ids=[d.name for d in REVIEWED])
def test_reviewed_differences_are_still_there(difference: Difference) -> None:
    frames = difference.example
    ours, theirs = core(frames), difference.who(frames)
    assert ours != theirs, "no longer a difference: take it off the list"
    assert difference.applies(list(headers(frames)), ours, theirs)
    review(frames)


EURO: Final = "€".encode()

ALPHABET: Final[dict[str, bytes]] = {
    "text": text("a"),
    "empty text": text(""),
    "text begins": text("b", fin=False),
    "half a character": text(EURO[:2], fin=False),
    "its rest": more(EURO[2:], fin=True),
    "nothing more": more(b""),
    "nothing, the end": more(b"", fin=True),
    "binary": binary(b"\xff"),
    "binary begins": binary(b"\xff", fin=False),
    "ping": ping(b"p"),
    "pong": pong(b"q"),
    "not utf-8": text(b"\xc0\x80"),
    "surrogate begins": text(b"\xed", fin=False),
    "surrogate goes on": more(b"\xa0"),
    "close": close(1000, b"bye"),
    "close, empty": close(),
    "close, 1 octet": client_frame(CLOSE, b"\x03"),
    "close, 1005": close(1005),
    "close, not utf-8": close(1000, b"\xff"),
    "reserved bit": client_frame(TEXT, b"r", rsv=4),
    "reserved opcode": client_frame(3),
    "not masked": client_frame(PING, mask=None),
    "fragmented ping": client_frame(PING, fin=False),
    "long form": client_frame(TEXT, b"l", width=2),
    "too large": client_frame(BINARY, declared=LIMIT + 1),
}
"""Legal ones in every state they can meet, and one of each way to be wrong."""


def test_f20_every_sequence_of_up_to_three_frames() -> None:
    number = 0
    ending = {
        name
        for name, frame in ALPHABET.items()
        if (verdict := core([frame])).refused is not None or verdict.closed is not None
    }
    # These end a connection in one state only; in another they go on.
    ending -= {"its rest", "nothing more", "nothing, the end", "surrogate goes on"}
    going_on = [name for name in ALPHABET if name not in ending]
    for length in (1, 2, 3):
        for start in itertools.product(going_on, repeat=length - 1):
            frames = [ALPHABET[name] for name in start]
            if length > 1 and core(frames[:-1]).refused is not None:
                continue  # nothing counts after the end: see F15
            for last in ALPHABET.values():
                review([*frames, last])
                number += 1
    assert number > 3000


@settings(max_examples=FUZZ_EXAMPLES or 250, deadline=None)
@given(frames=st.lists(st.one_of(legal(), st.sampled_from([*ALPHABET.values()])), max_size=8))
def test_f20_longer_sequences(frames: list[bytes]) -> None:
    review(frames)


@settings(max_examples=FUZZ_EXAMPLES or 250, deadline=None)
@given(frames=st.lists(st.one_of(legal(), any_frame(), closes), max_size=5))
def test_f20_frames_with_any_bits(frames: list[bytes]) -> None:
    review(frames)


def test_f13_f14_every_close_code() -> None:
    for code in (*range(1100), *range(1990, 2010), *range(2990, 3010), *range(3990, 5010), 65535):
        review([close(code, b"because")])
