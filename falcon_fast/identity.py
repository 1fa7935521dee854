"""Who a connection speaks for, and the ids of connections, messages and nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias, cast

from falcon_fast._core import new_id, squeeze, stretch

__all__ = ["Identity", "new_id", "packed_character", "unpack"]


MAX_NAME_CHARACTERS: Final = 256
"""Of a character's name."""


_CHARACTER_BYTES: Final = 8

_Facts: TypeAlias = tuple[str, str, str, int, str | None, int]


@dataclass(frozen=True, slots=True)
class Identity:
    """A user as vouched for by a token.

    Attributes:
        user_id: 1 to 64 characters of ``[A-Za-z0-9_-]``, so it is safe in a room name.
        character_id: The character the token was issued to, 0 to 2**63 - 1.
        character_name: At most 256 characters, none of them a control character.
        scopes: Space separated; may be empty.
        expires_at: Seconds since 1970 UTC; the connection ends then unless refreshed.
        token_id: The token's ``jti``, or None if it has none.
        issued_at: The token's ``iat``, seconds since 1970 UTC; 0 if it has none.
    """

    user_id: str
    character_id: int
    character_name: str
    scopes: str
    expires_at: int
    token_id: str | None = None
    issued_at: int = 0

    def pack(self) -> bytes:
        """Return it in a sixth of the memory, for `unpack` in this process."""
        # In front and of fixed size, since connections are searched by it.
        return self.character_id.to_bytes(_CHARACTER_BYTES, "little") + squeeze(
            self.user_id,
            self.character_name,
            self.scopes,
            self.expires_at,
            self.token_id,
            self.issued_at,
        )


def unpack(packed: bytes, at: int = 0) -> Identity:
    """Return what was packed by `Identity.pack`, and ends where the octets do.

    Args:
        packed: the octets.
        at: where it begins.
    """
    facts = stretch(packed, at + _CHARACTER_BYTES)
    user_id, name, scopes, expires_at, token_id, issued_at = cast("_Facts", facts)
    character_id = packed_character(packed, at)
    return Identity(user_id, character_id, name, scopes, expires_at, token_id, issued_at)


def packed_character(packed: bytes, at: int = 0) -> int:
    """Return the character of a packed identity."""
    return int.from_bytes(packed[at : at + _CHARACTER_BYTES], "little")
