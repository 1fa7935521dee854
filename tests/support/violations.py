"""What a client must not send, and the Close that it gets for it (threat cases F01 to F13)."""

from __future__ import annotations

from .frames import (
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    binary,
    client_frame,
    close,
    more,
    text,
)

PROTOCOL_ERROR = (1002, "WebSocket protocol error")
NOT_UTF8 = (1007, "text is not valid UTF-8")
TOO_BIG = (1009, "message too big")
TOO_MANY_FRAGMENTS = (1008, "too many fragments in one message")

VIOLATIONS: dict[str, tuple[bytes, tuple[int, str]]] = {
    # F01: reserved bits; none is defined, since no extension was agreed
    "F01-rsv1": (client_frame(TEXT, b"{}", rsv=4), PROTOCOL_ERROR),
    "F01-rsv2": (client_frame(TEXT, b"{}", rsv=2), PROTOCOL_ERROR),
    "F01-rsv3": (client_frame(TEXT, b"{}", rsv=1), PROTOCOL_ERROR),
    "F01-all": (client_frame(TEXT, b"{}", rsv=7), PROTOCOL_ERROR),
    "F01-continuation": (
        text("{", fin=False) + client_frame(CONTINUATION, b"}", rsv=4),
        PROTOCOL_ERROR,
    ),
    "F01-ping": (client_frame(PING, rsv=4), PROTOCOL_ERROR),
    "F01-close": (client_frame(CLOSE, rsv=4), PROTOCOL_ERROR),
    # F02: opcodes nobody has defined
    **{
        f"F02-opcode-{opcode}": (client_frame(opcode, b"x"), PROTOCOL_ERROR)
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    },
    # F03: a client must mask
    "F03-text": (client_frame(TEXT, b"{}", mask=None), PROTOCOL_ERROR),
    "F03-empty-text": (client_frame(TEXT, mask=None), PROTOCOL_ERROR),
    "F03-ping": (client_frame(PING, mask=None), PROTOCOL_ERROR),
    "F03-close": (client_frame(CLOSE, mask=None), PROTOCOL_ERROR),
    # F04: control frames are short and whole
    "F04-ping-fragment": (client_frame(PING, fin=False), PROTOCOL_ERROR),
    "F04-pong-fragment": (client_frame(PONG, fin=False), PROTOCOL_ERROR),
    "F04-close-fragment": (client_frame(CLOSE, fin=False), PROTOCOL_ERROR),
    "F04-ping-126": (client_frame(PING, bytes(126)), PROTOCOL_ERROR),
    "F04-ping-127": (client_frame(PING, b"", width=8, declared=126), PROTOCOL_ERROR),
    "F04-close-126": (client_frame(CLOSE, b"\x03\xe8" + b"x" * 124), PROTOCOL_ERROR),
    "F04-pong-65536": (client_frame(PONG, bytes(65_536)), PROTOCOL_ERROR),
    # F05: the most significant bit of a 64-bit length must be 0
    "F05-2^63": (client_frame(TEXT, declared=2**63, width=8), PROTOCOL_ERROR),
    "F05-2^64-1": (client_frame(TEXT, declared=2**64 - 1, width=8), PROTOCOL_ERROR),
    "F05-2^63+5": (client_frame(TEXT, b"12345", declared=2**63 + 5, width=8), PROTOCOL_ERROR),
    "F05-not-the-shortest-2": (client_frame(TEXT, b"{}", width=2), PROTOCOL_ERROR),
    "F05-not-the-shortest-8": (client_frame(TEXT, b"{}", width=8), PROTOCOL_ERROR),
    # F06: lengths that would overflow signed arithmetic
    "F06-2^62": (client_frame(TEXT, declared=2**62, width=8), TOO_BIG),
    "F06-2^63-1": (client_frame(TEXT, declared=2**63 - 1, width=8), TOO_BIG),
    "F06-2^63-1-behind-a-fragment": (
        text("{", fin=False) + client_frame(CONTINUATION, declared=2**63 - 1, width=8),
        TOO_BIG,
    ),
    "F06-2^32": (client_frame(TEXT, declared=2**32, width=8), TOO_BIG),
    "F06-2^32+10": (client_frame(TEXT, b"1234567890", declared=2**32 + 10, width=8), TOO_BIG),
    # F07: refused at the header: the payload never comes
    "F07-limit+1": (client_frame(TEXT, b"1234567890", declared=65_537, width=8), TOO_BIG),
    "F07-limit+1-binary": (client_frame(2, declared=65_537, width=8), TOO_BIG),
    # F08: fragments out of turn
    "F08-nothing-begun": (more(b"x", fin=True), PROTOCOL_ERROR),
    "F08-nothing-begun-unfinished": (more(b"x"), PROTOCOL_ERROR),
    "F08-text-inside": (text("{", fin=False) + text("}"), PROTOCOL_ERROR),
    "F08-binary-inside": (text("{", fin=False) + binary(b"}"), PROTOCOL_ERROR),
    "F08-end-twice": (
        text('{"type":', fin=False) + more(b'"presence"}', fin=True) + more(b"", fin=True),
        PROTOCOL_ERROR,
    ),
    # F09: the sum counts, and is known at the header of the fragment that crosses it
    "F09-sum": (
        text("x" * 40_000, fin=False) + client_frame(CONTINUATION, fin=False, declared=25_537),
        TOO_BIG,
    ),
    "F09-many": (text("", fin=False) + more(b"x" * 10_000) * 6 + more(b"x" * 5537), TOO_BIG),
    # F10: tiny fragments
    "F10-one-octet": (text("x", fin=False) + more(b"x") * 128, TOO_MANY_FRAGMENTS),
    "F10-no-octet": (text("", fin=False) + more(b"") * 128, TOO_MANY_FRAGMENTS),
    "F10-hundred-thousand": (text("x", fin=False) + more(b"x") * 100_000, TOO_MANY_FRAGMENTS),
    # F12: what is not UTF-8, as soon as it is known
    "F12-overlong": (text(b"\xc0\xaf"), NOT_UTF8),
    "F12-overlong-3": (text(b"\xe0\x80\xaf"), NOT_UTF8),
    "F12-surrogate": (text(b"\xed\xa0\x80"), NOT_UTF8),
    "F12-above-unicode": (text(b"\xf4\x90\x80\x80"), NOT_UTF8),
    "F12-f5": (text(b"\xf5"), NOT_UTF8),
    "F12-lone-continuation": (text(b"\x80"), NOT_UTF8),
    "F12-cut-off-at-the-end": (text(b'"\xe2\x82'), NOT_UTF8),
    "F12-cut-off-at-the-last-fragment": (
        text(b'"\xe2', fin=False) + more(b"\x82", fin=True),
        NOT_UTF8,
    ),
    "F12-fragment-before-the-end": (text(b'"\xff', fin=False), NOT_UTF8),
    "F12-split-over-fragments": (text(b'"\xed', fin=False) + more(b"\xa0"), NOT_UTF8),
    "F12-part-of-a-frame": (
        client_frame(TEXT, b"\xce\xba\xf4\x90", declared=1000, width=2),
        NOT_UTF8,
    ),
    # F13: Close frames that say what must not be said
    "F13-one-octet": (client_frame(CLOSE, b"\x03"), PROTOCOL_ERROR),
    **{
        f"F13-code-{code}": (close(code), PROTOCOL_ERROR)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535)
    },
    "F13-reason-not-utf8": (close(1000, b"\xff"), NOT_UTF8),
    "F13-reason-cut-off": (close(1000, b"\xe2\x82"), NOT_UTF8),
    "F13-reason-124": (close(1000, b"x" * 124), PROTOCOL_ERROR),
    # contract: text only
    "binary": (binary(b"{}"), (1003, "only text messages are supported")),
    "binary-fragments": (
        binary(b"{", fin=False) + more(b"}", fin=True),
        (1003, "only text messages are supported"),
    ),
}
"""By case: the octets, and code and reason of the Close."""
