"""Frames of one connection, right and wrong: what is delivered, and what is written back.

The numbers in the names of the tests are the cases of the list of threats.
"""

from __future__ import annotations

from typing import Final

import pytest

from falcon_fast.codes import CloseReason

from ..support.core import CoreFactory, Event, Message, Rig, closed, said
from ..support.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    ServerFrame,
    binary,
    client_frame,
    close,
    cut,
    more,
    ping,
    pong,
    says,
    text,
    wire,
)

LIMIT: Final = 65536
"""Octets of a message by default."""

EURO: Final = "€".encode()


def hears(content: str | bytes, *, is_text: bool = True) -> Message:
    """Describe the callback for a message of the connection."""
    return Message("a", content if isinstance(content, bytes) else content.encode(), is_text)


# (id, what is sent, why it is refused)
WRONG: Final[list[tuple[str, bytes, CloseReason]]] = [
    # F01: reserved bits; no extension is ever agreed on.
    *[
        (f"F01-rsv{rsv}-opcode{opcode}", client_frame(opcode, b"\x03\xe8", rsv=rsv), reason)
        for rsv in (4, 2, 1, 7)
        for opcode in (TEXT, BINARY, CLOSE, PING, PONG)
        for reason in (CloseReason.PROTOCOL_ERROR,)
    ],
    (
        "F01-rsv1-continuation",
        text("a", fin=False) + client_frame(CONTINUATION, b"b", rsv=4),
        CloseReason.PROTOCOL_ERROR,
    ),
    # F02: opcodes nobody has defined.
    *[
        (f"F02-opcode{opcode}-fin{fin:d}", client_frame(opcode, b"x", fin=fin), reason)
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
        for fin in (True, False)
        for reason in (CloseReason.PROTOCOL_ERROR,)
    ],
    ("F02-inside-message", text("a", fin=False) + client_frame(3), CloseReason.PROTOCOL_ERROR),
    # F03: a client masks, always.
    *[
        (f"F03-opcode{opcode}", client_frame(opcode, b"\x03\xe8", mask=None), reason)
        for opcode in (TEXT, BINARY, CLOSE, PING, PONG)
        for reason in (CloseReason.PROTOCOL_ERROR,)
    ],
    ("F03-empty", client_frame(TEXT, mask=None), CloseReason.PROTOCOL_ERROR),
    (
        "F03-continuation",
        text("a", fin=False) + client_frame(CONTINUATION, b"b", mask=None),
        CloseReason.PROTOCOL_ERROR,
    ),
    # F04: control frames are short and whole.
    *[
        (f"F04-fragmented-opcode{opcode}", client_frame(opcode, b"\x03\xe8", fin=False), reason)
        for opcode in (CLOSE, PING, PONG)
        for reason in (CloseReason.PROTOCOL_ERROR,)
    ],
    *[
        (f"F04-length{width}-opcode{opcode}", client_frame(opcode, bytes(5), width=width), reason)
        for opcode in (CLOSE, PING, PONG)
        for width in (2, 8)
        for reason in (CloseReason.PROTOCOL_ERROR,)
    ],
    ("F04-126-octets", client_frame(PING, bytes(126)), CloseReason.PROTOCOL_ERROR),
    # F05: the most significant bit of a 64-bit length.
    *[
        (f"F05-{declared:x}-opcode{opcode}", client_frame(opcode, b"x" * 20, declared=declared), r)
        for declared in (1 << 63, (1 << 64) - 1, (1 << 63) + 5, (1 << 63) + LIMIT)
        for opcode in (TEXT, BINARY)
        for r in (CloseReason.PROTOCOL_ERROR,)
    ],
    (
        "F05-continuation",
        text("a", fin=False) + client_frame(CONTINUATION, declared=(1 << 64) - 1),
        CloseReason.PROTOCOL_ERROR,
    ),
    # RFC 6455 section 5.2: the minimal number of bytes MUST be used to encode the length.
    ("F05-long-form-of-5", client_frame(TEXT, b"hello", width=2), CloseReason.PROTOCOL_ERROR),
    ("F05-long-form-of-125", client_frame(TEXT, bytes(125), width=2), CloseReason.PROTOCOL_ERROR),
    ("F05-longest-form-of-5", client_frame(TEXT, b"hello", width=8), CloseReason.PROTOCOL_ERROR),
    (
        "F05-longest-form-of-65535",
        client_frame(BINARY, bytes(65535), width=8),
        CloseReason.PROTOCOL_ERROR,
    ),
    # F06: lengths that overflow when something is added to them.
    ("F06-2^62", client_frame(TEXT, b"x" * 20, declared=1 << 62), CloseReason.MESSAGE_TOO_BIG),
    (
        "F06-2^63-1",
        client_frame(TEXT, b"x" * 20, declared=(1 << 63) - 1),
        CloseReason.MESSAGE_TOO_BIG,
    ),
    *[
        (
            f"F06-{declared:x}-after-a-fragment",
            text("ab", fin=False) + client_frame(CONTINUATION, b"x" * 20, declared=declared),
            CloseReason.MESSAGE_TOO_BIG,
        )
        for declared in ((1 << 63) - 1, (1 << 63) - 2, 1 << 62, (1 << 32) - 1, 1 << 32)
    ],
    # F07: refused at the header, before anything of the payload has come.
    ("F07-limit+1", client_frame(TEXT, declared=LIMIT + 1), CloseReason.MESSAGE_TOO_BIG),
    ("F07-binary", client_frame(BINARY, declared=LIMIT + 1), CloseReason.MESSAGE_TOO_BIG),
    # F08: fragments out of order.
    ("F08-nothing-to-continue", more(b"a"), CloseReason.PROTOCOL_ERROR),
    ("F08-nothing-to-finish", more(b"a", fin=True), CloseReason.PROTOCOL_ERROR),
    ("F08-text-in-message", text("a", fin=False) + text("b"), CloseReason.PROTOCOL_ERROR),
    ("F08-binary-in-message", text("a", fin=False) + binary(b"b"), CloseReason.PROTOCOL_ERROR),
    (
        "F08-begun-twice",
        text("a", fin=False) + text("b", fin=False),
        CloseReason.PROTOCOL_ERROR,
    ),
    # F09: the sum of the fragments, at the header of the one that exceeds it.
    (
        "F09-sum",
        text(b"x" * 40_000, fin=False) + client_frame(CONTINUATION, declared=25_537, fin=False),
        CloseReason.MESSAGE_TOO_BIG,
    ),
    (
        "F09-sum-at-fin",
        binary(b"x" * LIMIT, fin=False) + client_frame(CONTINUATION, declared=1),
        CloseReason.MESSAGE_TOO_BIG,
    ),
    # F10: many small fragments.
    (
        "F10-129-empty",
        text("", fin=False) + more(b"") * 128,
        CloseReason.TOO_MANY_FRAGMENTS,
    ),
    (
        "F10-129th-is-the-last",
        text("a", fin=False) + more(b"b") * 127 + more(b"c", fin=True),
        CloseReason.TOO_MANY_FRAGMENTS,
    ),
    # F12: what is not UTF-8 (RFC 3629).
    *[
        (f"F12-{name}", text(wrong), CloseReason.INVALID_PAYLOAD)
        for name, wrong in [
            ("lone-continuation", b"\x80"),
            ("last-continuation", b"ok\xbf"),
            ("overlong-2", b"\xc0\xaf"),
            ("overlong-2-max", b"\xc1\xbf"),
            ("overlong-3", b"\xe0\x80\xaf"),
            ("overlong-3-max", b"\xe0\x9f\xbf"),
            ("overlong-4", b"\xf0\x80\x80\xaf"),
            ("overlong-4-max", b"\xf0\x8f\xbf\xbf"),
            ("surrogate-first", b"\xed\xa0\x80"),
            ("surrogate-last", b"\xed\xbf\xbf"),
            ("surrogate-pair", b"\xed\xa0\x80\xed\xb0\x80"),
            ("above-10ffff", b"\xf4\x90\x80\x80"),
            ("f5", b"\xf5\x80\x80\x80"),
            ("five-octets", b"\xf8\x88\x80\x80\x80"),
            ("six-octets", b"\xfc\x84\x80\x80\x80\x80"),
            ("fe", b"\xfe"),
            ("ff", b"\xff"),
            ("broken-2", b"\xc3x"),
            ("broken-3", b"\xe2\x82x"),
            ("broken-4", b"\xf0\x9f\x98x"),
            ("truncated-2", b"\xc3"),
            ("truncated-3", b"\xe2\x82"),
            ("truncated-4", b"\xf0\x9f\x98"),
            ("after-eight-ascii", b"ABCDEFGH\xff"),
            ("in-the-middle-of-words", b"ABCDEFGH" * 20 + b"A\xc0B" + b"ABCDEFGH" * 20),
            ("latin-1", "schön".encode("latin-1")),
        ]
    ],
    (
        "F12-truncated-at-fin-of-fragments",
        text(b"ab", fin=False) + more(EURO[:2], fin=True),
        CloseReason.INVALID_PAYLOAD,
    ),
    (
        "F12-truncated-before-empty-fin",
        text(EURO[:2], fin=False) + more(b"", fin=True),
        CloseReason.INVALID_PAYLOAD,
    ),
    (
        "F12-split-surrogate",
        text(b"\xed", fin=False) + more(b"\xa0"),
        CloseReason.INVALID_PAYLOAD,
    ),
    (
        "F12-split-overlong",
        text(b"\xf0", fin=False) + more(b"") + more(b"\x80"),
        CloseReason.INVALID_PAYLOAD,
    ),
    # F13: what may not be in a Close.
    ("F13-one-octet", client_frame(CLOSE, b"\x03"), CloseReason.PROTOCOL_ERROR),
    *[
        (f"F13-code-{code}", close(code), CloseReason.PROTOCOL_ERROR)
        for code in (
            *(0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999),
            *(5000, 9999, 65535),
        )
    ],
    ("F13-code-0-and-text", close(0, b"bye"), CloseReason.PROTOCOL_ERROR),
    ("F13-bad-code-and-bad-text", close(999, b"\xff"), CloseReason.PROTOCOL_ERROR),
    ("F13-text-not-utf8", close(1000, b"\xff"), CloseReason.INVALID_PAYLOAD),
    ("F13-text-cut-off", close(1000, b"bye" + EURO[:2]), CloseReason.INVALID_PAYLOAD),
    ("F13-text-124-octets", close(1000, b"x" * 124), CloseReason.PROTOCOL_ERROR),
]


@pytest.mark.parametrize(
    ("wrong", "reason"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
@pytest.mark.parametrize("dribbled", [False, True], ids=["at-once", "dribbled"])
def test_wrong_frames_close(rig: Rig, wrong: bytes, reason: CloseReason, dribbled: bool) -> None:
    peer = rig.connect()
    stream = text("before") + wrong + text("after") + ping() + close(1000)
    # A long frame is dribbled at its ends: between them each octet is like any other.
    places = range(1, len(stream)) if len(stream) < 2000 else [1, 2, 7, 20, len(stream) - 40]
    peer.feed(*(cut(stream, places) if dribbled else [stream]))
    rig.turn()
    assert rig.take() == [hears("before"), closed("a", reason)]
    assert bytes(peer.transport.written) == said(reason).to_bytes()
    assert peer.transport.eof_written
    assert not peer.dropped()
    rig.wait(1.0)
    assert peer.dropped()
    assert rig.core.count == 0
    assert rig.take() == []


def test_f07_the_header_is_enough_to_refuse(rig: Rig) -> None:
    peer = rig.connect()
    header = client_frame(TEXT, declared=LIMIT + 1)
    peer.feed(header[:-1])
    assert peer.alive()
    peer.feed(header[-1:])
    assert rig.take() == [closed("a", CloseReason.MESSAGE_TOO_BIG)]
    assert peer.frames() == [said(CloseReason.MESSAGE_TOO_BIG)]


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT])
def test_f07_a_message_up_to_the_limit_is_delivered(rig: Rig, size: int) -> None:
    peer = rig.connect()
    peer.feed(text(b"x" * size), binary(bytes(size)))
    assert rig.take() == [hears(b"x" * size), hears(bytes(size), is_text=False)]
    assert peer.alive()


@pytest.mark.parametrize("limit", [0, 1, 125, 126, 65535, 65536, 70_000])
def test_f07_the_limit_is_the_one_that_was_given(make: CoreFactory, limit: int) -> None:
    rig = Rig(make, {"max_message_bytes": limit})
    peer = rig.connect()
    peer.feed(binary(bytes(limit)))
    assert rig.take() == [hears(bytes(limit), is_text=False)]
    peer.feed(client_frame(BINARY, declared=limit + 1))
    assert rig.take() == [closed("a", CloseReason.MESSAGE_TOO_BIG)]


def test_f09_fragments_up_to_the_limit_are_delivered(rig: Rig) -> None:
    peer = rig.connect()
    peer.feed(text(b"x" * 40_000, fin=False), more(b"y" * 25_536), more(b"", fin=True))
    assert rig.take() == [hears(b"x" * 40_000 + b"y" * 25_536)]


def test_f10_as_many_fragments_as_allowed_are_delivered_again_and_again(rig: Rig) -> None:
    peer = rig.connect()
    whole = text("a", fin=False) + more(b"b") * 126 + more(b"c", fin=True)
    peer.feed(whole, whole, text("d"), whole)
    message = hears(b"a" + b"b" * 126 + b"c")
    assert rig.take() == [message, message, hears("d"), message]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_f10_the_limit_is_the_one_that_was_given(make: CoreFactory, limit: int) -> None:
    rig = Rig(make, {"max_fragments": limit})
    peer = rig.connect()
    peer.feed(
        text("a", fin=limit == 1) + (more(b"b") * (limit - 2) + more(b"", fin=True)) * (limit > 1)
    )
    assert len(rig.take()) == 1
    assert peer.alive()
    peer.feed(text("a", fin=False) + more(b"b") * (limit - 1))
    assert rig.take() == []
    peer.feed(more(b"", fin=True))
    assert rig.take() == [closed("a", CloseReason.TOO_MANY_FRAGMENTS)]


@pytest.mark.parametrize(
    "frame",
    [
        text("hello"),
        text(""),
        binary(bytes(range(256))),
        text(EURO * 70),
        ping(b"payload"),
        close(1000, b"bye"),
        text(EURO[:1], fin=False) + ping(b"p") + more(b"") + more(EURO[1:], fin=True),
    ],
    ids=["text", "empty", "binary-256", "euros", "ping", "close", "fragments"],
)
def test_f11_dribbled_one_octet_a_read(make: CoreFactory, frame: bytes) -> None:
    at_once, dribbled = Rig(make), Rig(make)
    one, other = at_once.connect(), dribbled.connect()
    one.feed(frame)
    other.feed(*cut(frame, range(len(frame))))
    assert dribbled.events == at_once.events
    assert other.transport.written == one.transport.written
    assert one.transport.written or at_once.events


@pytest.mark.parametrize(
    "content",
    [
        "",
        "κόσμε",
        "\u0000\u007f\u0080\u07ff\u0800\ud7ff\ue000\ufffd\uffff",
        "\U00010000\U0010ffff",
        "\ufeffBOM",
        "😀" * 40,
        "ABCDEFG€" * 30,
    ],
)
def test_f12_valid_text_is_delivered_however_it_is_cut(rig: Rig, content: str) -> None:
    peer = rig.connect()
    data = content.encode()
    peer.feed(text(data))
    expected = [hears(data)]
    for place in range(min(len(data), 100)):
        peer.feed(text(data[:place], fin=False) + ping() + more(data[place:], fin=True))
        expected.append(hears(data))
    assert rig.take() == expected


def test_f12_fails_at_the_octet_where_it_becomes_invalid(rig: Rig) -> None:
    peer = rig.connect()
    # A frame that announces much more, and breaks in its third octet.
    frame = client_frame(TEXT, b"ab\xff" + b"c" * 1000)
    peer.feed(frame[:10])
    assert rig.take() == []
    peer.feed(frame[10:11])
    assert rig.take() == [closed("a", CloseReason.INVALID_PAYLOAD)]


def test_f12_fails_with_the_fragment_not_at_its_end(rig: Rig) -> None:
    peer = rig.connect()
    peer.feed(text("κόσμε".encode() + b"\xed", fin=False))
    assert rig.take() == []
    peer.feed(more(b"\xa0\x80edited"))
    assert rig.take() == [closed("a", CloseReason.INVALID_PAYLOAD)]


def test_f12_binary_may_be_anything(rig: Rig) -> None:
    peer = rig.connect()
    junk = b"\xff\xfe\x80\xed\xa0\x80"
    peer.feed(binary(junk), binary(junk, fin=False) + more(junk, fin=True))
    assert rig.take() == [hears(junk, is_text=False), hears(junk * 2, is_text=False)]
    assert peer.alive()


@pytest.mark.parametrize(
    "code",
    [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4401, 4999],
)
@pytest.mark.parametrize("reason", [b"", b"bye", "schön €".encode(), b"x" * 123])
def test_f14_close_is_answered_with_its_code_alone(rig: Rig, code: int, reason: bytes) -> None:
    peer = rig.connect()
    peer.feed(close(code, reason))
    assert rig.take() == [closed("a", CloseReason.PEER_CLOSED, code)]
    assert bytes(peer.transport.written) == b"\x88\x02" + code.to_bytes(2, "big")
    assert peer.transport.eof_written
    rig.wait(1.0)
    assert peer.dropped()


def test_f14_an_empty_close_is_answered_with_an_empty_one(rig: Rig) -> None:
    peer = rig.connect()
    peer.feed(close())
    assert rig.take() == [closed("a", CloseReason.PEER_CLOSED, 1005)]
    assert bytes(peer.transport.written) == b"\x88\x00"
    assert peer.transport.eof_written


def test_f14_what_was_said_before_goes_out_before_the_answer(rig: Rig) -> None:
    peer = rig.connect()
    rig.core.send(peer.handle, b"last words")
    peer.feed(close(1001))
    assert peer.frames() == [says("last words"), ServerFrame(CLOSE, b"\x03\xe9")]


def test_f14_close_in_the_middle_of_a_message(rig: Rig) -> None:
    peer = rig.connect()
    peer.feed(text("half", fin=False) + close(1000) + more(b"", fin=True))
    assert rig.take() == [closed("a", CloseReason.PEER_CLOSED, 1000)]


@pytest.mark.parametrize("first", [close(1000), close(), client_frame(3)])
def test_f15_nothing_counts_after_a_close(rig: Rig, first: bytes) -> None:
    peer = rig.connect()
    more_input = text("late") + ping(b"late") + close(1001) + client_frame(5) + binary(b"late")
    peer.feed(first + more_input)
    answer, events = bytes(peer.transport.written), rig.take()
    assert len(events) == 1
    peer.feed(more_input, *cut(more_input, range(0, len(more_input), 3)))
    rig.turn()
    assert rig.take() == []
    assert bytes(peer.transport.written) == answer
    assert rig.core.messages_in == 0


def test_f15_nothing_counts_after_a_close_of_ours(rig: Rig) -> None:
    peer = rig.connect()
    rig.core.close(peer.handle, CloseReason.KICKED)
    assert rig.take() == [closed("a", CloseReason.KICKED, 4403)]
    assert peer.frames() == [said(CloseReason.KICKED)]
    peer.feed(text("late") + ping() + close(4403))
    assert rig.take() == []
    assert peer.frames() == []


def test_f16_end_of_file_without_a_close(rig: Rig) -> None:
    peer = rig.connect()
    peer.feed(text("begun", fin=False))
    assert peer.link.eof_received() is False
    assert rig.take() == [closed("a", CloseReason.CONNECTION_LOST, 1006)]
    assert peer.dropped()
    assert not peer.transport.written
    peer.link.connection_lost(None)
    assert rig.take() == []


def test_f16_end_of_file_after_a_close_ends_the_lingering(rig: Rig) -> None:
    peer = rig.connect()
    peer.feed(close(1000))
    assert not peer.dropped()
    peer.link.eof_received()
    assert peer.dropped()
    assert rig.take() == [closed("a", CloseReason.PEER_CLOSED, 1000)]


def test_f16_reset_while_we_have_something_to_say(rig: Rig) -> None:
    peer = rig.connect()
    peer.transport.stall()
    rig.core.send(peer.handle, b"x" * 100_000)
    rig.core.send(peer.handle, b"y")
    peer.link.connection_lost(ConnectionResetError())
    rig.turn()
    assert rig.take() == [closed("a", CloseReason.CONNECTION_LOST, 1006)]
    assert peer.dropped()
    assert rig.core.count == 0


def test_f17_pings_are_answered_in_order(rig: Rig) -> None:
    peer = rig.connect()
    payloads = [b"a", b"", b"b" * 125]
    peer.feed(*[ping(payload) for payload in payloads])
    assert peer.frames() == [ServerFrame(PONG, payload) for payload in payloads]
    peer.feed(b"".join([ping(payload) for payload in payloads]))
    assert peer.frames() == [ServerFrame(PONG, payload) for payload in payloads]
    assert rig.take() == []


@pytest.mark.parametrize("number", [15, 16, 17, 1000])
def test_f17_a_flood_of_pings_gets_a_few_pongs_a_read(rig: Rig, number: int) -> None:
    peer = rig.connect()
    payloads = [b"%d" % i for i in range(number)]
    peer.feed(b"".join([ping(payload) for payload in payloads]))
    # RFC 6455 section 5.5.3: of the pings not yet answered only the most recent needs to be.
    expected = payloads if number <= 15 else [*payloads[:15], payloads[-1]]
    assert peer.frames() == [ServerFrame(PONG, payload) for payload in expected]


def test_f17_ping_inside_a_message_and_a_frame_that_is_not_whole(rig: Rig) -> None:
    peer = rig.connect()
    peer.feed(text("a", fin=False) + ping(b"1") + more(b"b")[:3])
    assert peer.frames() == [ServerFrame(PONG, b"1")]
    peer.feed(more(b"b")[3:] + ping(b"12")[:-1])
    assert peer.frames() == []
    peer.feed(ping(b"12")[-1:] + more(b"c", fin=True))
    assert peer.frames() == [ServerFrame(PONG, b"12")]
    assert rig.take() == [hears("abc")]


def test_f17_pongs_come_before_the_answer_to_a_close(rig: Rig) -> None:
    peer = rig.connect()
    peer.feed(ping(b"x") + close(1000))
    assert peer.frames() == [ServerFrame(PONG, b"x"), ServerFrame(CLOSE, b"\x03\xe8")]


def test_pong_is_taken_without_a_word(rig: Rig) -> None:
    peer = rig.connect()
    peer.feed(
        pong(), pong(b"unasked"), text("a", fin=False) + pong(b"x" * 125) + more(b"", fin=True)
    )
    assert rig.take() == [hears("a")]
    assert peer.frames() == []


def test_f18_a_peer_that_does_not_read_is_owed_one_pong(rig: Rig) -> None:
    peer = rig.connect()
    peer.transport.stall()
    rig.core.send(peer.handle, b"x" * 70_000)
    rig.turn()
    peer.feed(ping(b"first"))
    # The transport has asked for a pause, so this pong is the first thing in the queue.
    assert rig.core.queued_bytes(peer.handle) == len(b"\x8a\x05first")
    for number in range(2000):
        peer.feed(ping(b"%d" % number) * 5)
    assert rig.core.queued_bytes(peer.handle) == len(b"\x8a\x05first")
    assert peer.alive()
    peer.transport.drain()
    rig.turn()
    assert peer.frames() == [
        says(b"x" * 70_000),
        ServerFrame(PONG, b"first"),
        ServerFrame(PONG, b"1999"),
    ]
    peer.feed(ping(b"again"))
    assert peer.frames() == [ServerFrame(PONG, b"again")]


def test_f19_every_length_and_every_key_is_echoed_exactly(make: CoreFactory) -> None:
    rig = Rig(make, {"max_message_bytes": 70_000})
    peer = rig.connect()

    def echo(event: Event) -> None:
        assert isinstance(event, Message)
        rig.core.send(peer.handle, event.payload, binary=True)

    rig.hook = echo
    keys = [bytes(4), b"\xff" * 4, b"\x01\x02\x03\x04", b"\x00\xff\x80\x7f"]
    sizes = [*range(301), 65_534, 65_535, 65_536, 70_000]
    payloads = [bytes([(size + i) * 7 & 0xFF for i in range(size)]) for size in sizes]
    for key in keys:
        # In one piece, so that payloads begin at every alignment, and cut where it hurts.
        stream = b"".join([client_frame(BINARY, payload, mask=key) for payload in payloads[:301]])
        peer.feed(*cut(stream, range(11, len(stream), 997)))
        for payload in payloads[301:]:
            frame = client_frame(BINARY, payload, mask=key)
            peer.feed(*cut(frame, [1, 9, 13, 14, 15, 4000, len(frame) - 1]))
        assert peer.frames() == [ServerFrame(BINARY, payload) for payload in payloads]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
def test_what_is_sent_has_the_shortest_header(rig: Rig, size: int) -> None:
    peer = rig.connect()
    rig.core.send(peer.handle, b"x" * size)
    rig.core.send(peer.handle, b"y" * size, binary=True)
    rig.turn()
    expected = wire(says(b"x" * size), ServerFrame(BINARY, b"y" * size))
    assert bytes(peer.transport.written) == expected


def test_frames_are_counted(rig: Rig) -> None:
    peer = rig.connect()
    stream = text("a", fin=False) + more(b"b", fin=True) + ping() + pong() + binary(b"c")
    peer.feed(stream, text("never whole")[:-1])
    assert (rig.core.frames_in, rig.core.messages_in) == (6, 2)
    assert rig.core.bytes_in == len(stream) + len(text("never whole")) - 1
