"""A token into `TokenVerifier.verify`: an identity within its rules or an AuthError.

An input is a token as a stranger sends it, or, behind an octet with its lowest bit set, a header
and a payload that are signed with the right secret: what only the issuer can send gets past the
signature to the parsers behind it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import Final

from falcon_fast.auth import TokenVerifier
from falcon_fast.errors import AuthError

from ...support.clock import FakeClock

SECRET: Final = "only-for-fuzzing-" + "0" * 32
CLOCK: Final = FakeClock()
VERIFIER: Final = TokenVerifier(SECRET, clock=CLOCK)

USER_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
LEEWAY: Final = 5


def one_input(data: bytes) -> None:
    """Check one token."""
    signed = bool(data[:1] and data[0] & 1)
    token = sign(*data[1:].partition(b"\0")[::2]) if signed else data[1:].decode("latin-1")
    try:
        identity = VERIFIER.verify(token)
    except AuthError as error:
        check_error(error, token)
        return
    assert signed, "a forged token was accepted"
    assert USER_ID.fullmatch(identity.user_id)
    assert type(identity.character_id) is int
    assert 0 <= identity.character_id < 2**63
    assert len(identity.character_name) <= 256
    (identity.character_name + identity.scopes + (identity.token_id or "")).encode()
    assert type(identity.expires_at) is int
    assert identity.expires_at > CLOCK.time() - LEEWAY


def check_error(error: AuthError, token: str) -> None:
    """The reason may be logged, so nothing of the token is in it."""
    assert token not in str(error) or len(token) < 20
    assert error.__cause__ is None, "a cause may quote the token"


def sign(header: bytes, payload: bytes) -> str:
    """Make a token as the issuer does."""
    content = b".".join([segment(header), segment(payload)])
    signature = hmac.digest(SECRET.encode(), content, hashlib.sha256)
    return (content + b"." + segment(signature)).decode()


def segment(content: bytes) -> bytes:
    """Encode in base64url without padding."""
    return base64.urlsafe_b64encode(content).rstrip(b"=")
