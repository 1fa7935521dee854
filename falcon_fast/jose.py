"""The outside of tokens: base64url, JSON and the header, read in one strict way, below `auth`.

JSON Web Signature is RFC 7515, base64url without padding RFC 4648 section 5. Where readers are used
to be forgiving, and so come to differ from each other, these refuse.
"""

from __future__ import annotations

import json
from typing import Final, NoReturn

import orjson

from falcon_fast._core import from_base64url, scan_json
from falcon_fast.errors import AuthError

__all__ = ["check_header", "decode", "parse_json", "parse_object", "refuse"]

MAX_DEPTH: Final = 8
"""Nesting up to which JSON is read in the quick way: claims are flat, or nearly so."""


def refuse(rule: str) -> NoReturn:
    """Refuse a token.

    Args:
        rule: Names the broken rule; a constant, in which nothing of the token is.
    """
    raise AuthError(rule)


def decode(segment: str) -> bytes:
    """Decode base64url without padding, in its one canonical spelling (RFC 4648 5, 3.5)."""
    decoded = from_base64url(segment)
    if decoded is None:
        refuse("base64url is not canonical")
    return decoded


def parse_object(segment: str) -> dict[str, object]:
    """Read a segment that must be a JSON object."""
    members = parse_json(decode(segment))
    # Raised here and not while the parser's error is being handled: that one keeps the text it
    # failed on, and would travel along as the context of ours.
    if members is None:
        refuse("segment is not a JSON object with unique names")
    return members


def parse_json(data: bytes) -> dict[str, object] | None:
    """Read a JSON object in UTF-8 with unique names; None for anything else."""
    value: object
    try:
        value = orjson.loads(data)
    except ValueError:
        value = None  # also for what only orjson refuses, such as half a surrogate pair
    # As many keys in the text as members in the object: no object is inside it, and no name came
    # twice. Nor is there an integer that orjson would have rounded.
    if isinstance(value, dict) and scan_json(data, MAX_DEPTH, len(value)) == 0:
        return value
    try:
        value = _JSON.decode(data.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def check_header(header: dict[str, object]) -> None:
    """Check what a header says beside its algorithm.

    jku, x5u, jwk and x5c are never looked at (RFC 8725 3.10).
    """
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.upper() != "JWT":
        refuse("typ is not JWT")
    # RFC 7515 4.1.11: a JWS with an extension in crit that is not supported is invalid; none is
    # supported here. b64 changes what is signed (RFC 7797).
    if "crit" in header or "b64" in header:
        refuse("header has an unsupported extension")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build an object, refusing what JSON parsers disagree about: two members of one name."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError
    return members


def _no_constant(_text: str) -> NoReturn:
    """Refuse NaN and Infinity, which are not JSON (RFC 8259 6) but which Python reads."""
    raise ValueError


_JSON: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
