"""permessage-deflate agreed on: what a client offers -> a window and our answer, or nothing.

Pure, part of the opening handshake (RFC 7692 section 7.1). Neither side takes context from one
message to the next: so an idle connection keeps no state of zlib's, and what is compressed for one
receiver is right for all that agreed on the same window. The first offer that can be accepted is;
one that cannot is passed over, whatever is wrong with it, and never the end of the handshake.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Final

__all__ = ["Deflate", "agree"]

_NAME: Final = "permessage-deflate"
_FLAGS: Final = frozenset({"server_no_context_takeover", "client_no_context_takeover"})
_CLIENT_WINDOW: Final = "client_max_window_bits"
_SERVER_WINDOW: Final = "server_max_window_bits"

#: Section 7.1.2: "a decimal integer value without leading zeroes between 8 to 15, inclusive".
_BITS: Final = {str(bits): bits for bits in range(8, 16)}

#: zlib cannot compress with a window of 2**8 octets, so an offer that asks for one is passed over.
_SMALLEST: Final = 9
_LARGEST: Final = 15

#: Offers of one header that are looked into: an honest client makes one or two.
_MAX_TRIES: Final = 32

#: A header up to this size may be remembered: browsers and libraries all send one of a few.
_REMEMBERED_BYTES: Final = 128

# One element of the list, with its quoted strings whole, up to the comma or the end.
_OFFER: Final = re.compile(r'((?:[^",]++|"(?:[^"\\]++|\\.)*+")*+)(,|\Z)')
_QUOTED_PAIR: Final = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Deflate:
    """What was agreed on.

    Attributes:
        window: How many bits the window of our compressor has, 9 to 15.
        answer: The value of Sec-WebSocket-Extensions in the 101.
    """

    window: int
    answer: str


# Section 7.1.1.2 lets a server ask for client_no_context_takeover whether it was offered or not.
_PLAIN_ANSWER: Final = f"{_NAME}; server_no_context_takeover; client_no_context_takeover"

#: The answers to offers that do not limit our window, and to those that do.
_UNLIMITED: Final = Deflate(_LARGEST, _PLAIN_ANSWER)
_LIMITED: Final = {
    bits: Deflate(bits, f"{_PLAIN_ANSWER}; {_SERVER_WINDOW}={bits}")
    for bits in range(_SMALLEST, _LARGEST + 1)
}


def agree(offers: tuple[str, ...]) -> Deflate | None:
    """Choose from what a client offers.

    Args:
        offers: Every Sec-WebSocket-Extensions header of the request, in order.

    Returns:
        The first offer of permessage-deflate that can be accepted; None if there is none. Takes
        time in proportion to the headers.
    """
    if len(offers) == 1 and len(offers[0]) <= _REMEMBERED_BYTES:
        return _remembered(offers[0])
    for value in offers:
        agreed = _agree_on_one(value)
        if agreed is not None:
            return agreed
    return None


def _agree_on_one(value: str) -> Deflate | None:
    at = tries = 0
    while (match := _OFFER.match(value, at)) is not None:
        if _NAME in match[1]:
            agreed = _accept(match[1])
            tries += 1
            if agreed is not None or tries == _MAX_TRIES:
                return agreed
        if not match[2]:
            return None
        at = match.end()
    return None  # a quote that is never closed: what is behind it cannot be told apart


_remembered: Final = functools.lru_cache(maxsize=64)(_agree_on_one)


def _accept(offer: str) -> Deflate | None:
    """Accept one offer, or say that it cannot be."""
    # A semicolon within quotes ends up in a value that is wrong either way.
    name, *parameters = offer.split(";")
    if name.strip(" \t") != _NAME:
        return None
    seen: set[str] = set()
    agreed = _UNLIMITED
    for parameter in parameters:
        key, equals, value = parameter.strip(" \t").partition("=")
        key, value = key.rstrip(" \t"), value.lstrip(" \t")
        # Section 7.1: decline an offer with an unknown or repeated parameter, or a wrong value.
        if key in seen:
            return None
        seen.add(key)
        if key in _FLAGS:
            if equals:
                return None
        elif key == _CLIENT_WINDOW:
            # A hint; we inflate with the largest window, so it is nothing to us.
            if equals and _bits(value) is None:
                return None
        elif key == _SERVER_WINDOW:
            limited = _LIMITED.get(_bits(value) or 0)
            if limited is None:
                return None
            agreed = limited
        else:
            return None
    return agreed


def _bits(value: str) -> int | None:
    # RFC 6455 section 9.1: "When using the quoted-string syntax variant, the value after
    # quoted-string unescaping MUST conform to the 'token' ABNF."
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = _QUOTED_PAIR.sub(r"\1", value[1:-1])
    return _BITS.get(value)
