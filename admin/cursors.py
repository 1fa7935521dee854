"""Cursors: where a listing goes on, as a text that its reader cannot make use of otherwise.

A cursor is the URL-safe base64 of a version, a mark and a position. The mark is keyed with a secret
of the cluster and covers what is listed and by which filters, so a cursor that was changed, made
up, or taken from another listing or another cluster is told from a good one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Final

__all__ = ["Cursors"]

_VERSION: Final = 2
_MAX_POSITION_BYTES: Final = 256
_MARK_BYTES: Final = 10
"""80 bits: a guess cannot do more than begin a page elsewhere, so there is little to win."""

_HEAD: Final = 1 + _MARK_BYTES


class Cursors:
    """Makes and reads the cursors of a cluster.

    Args:
        key: what marks are made with; random by default.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = secrets.token_bytes(32) if key is None else key

    def write(self, kind: str, filters: Mapping[str, object], position: str) -> str:
        """Make a cursor.

        Args:
            kind: what is listed.
            filters: by which filters.
            position: where the next page begins, 1 to 256 bytes as UTF-8.
        """
        told = position.encode()
        octets = bytes([_VERSION]) + self._mark(kind, filters, told) + told
        return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()

    def read(self, kind: str, filters: Mapping[str, object], cursor: str) -> str:
        """Return the position that a cursor names.

        Raises:
            ValueError: it is none of this listing.
        """
        try:
            octets = base64.b64decode(
                cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True
            )
        except (UnicodeEncodeError, binascii.Error):
            raise ValueError("not a cursor") from None
        mark, told = octets[1:_HEAD], octets[_HEAD:]
        if not 0 < len(told) <= _MAX_POSITION_BYTES or octets[0] != _VERSION:
            raise ValueError("not a cursor")
        if not hmac.compare_digest(mark, self._mark(kind, filters, told)):
            raise ValueError("a cursor of another listing")
        position = told.decode()
        # One position has one spelling: base64 leaves bits of the last character unused.
        if self.write(kind, filters, position) != cursor:
            raise ValueError("not a cursor")
        return position

    def _mark(self, kind: str, filters: Mapping[str, object], told: bytes) -> bytes:
        # repr keeps 1 and "1" apart, and a separator cannot be forged inside a quoted text.
        scope = repr((kind, sorted(filters.items()))).encode()
        return hashlib.blake2b(told + scope, digest_size=_MARK_BYTES, key=self._key).digest()
