"""Tokens: text -> Identity, between the opening handshake and the session.

A token is a JSON Web Token (RFC 7519) in compact form, signed with an algorithm of the one family
that the settings name. The order of the checks is part of the design: size and alphabet first, then
the signature, and only what the issuer has really signed is believed. See
docs/explanation/tokens.md.
"""

from __future__ import annotations

import re
import secrets
import uuid
from typing import Final

import jwt

from falcon_fast._core import split_token
from falcon_fast.clock import Clock
from falcon_fast.identity import MAX_NAME_CHARACTERS, Identity
from falcon_fast.jose import parse_object, refuse
from falcon_fast.keys import HMAC, Keys, SharedSecret, signing_key
from falcon_fast.revocation import Revocations
from falcon_fast.settings import DEFAULT_ISSUER, DEFAULT_MAX_LIFETIME

__all__ = [
    "DEFAULT_ISSUER",
    "MAX_LEEWAY",
    "MAX_TOKEN_BYTES",
    "TokenVerifier",
    "generate_secret",
    "issue_token",
]

MAX_TOKEN_BYTES: Final = 8_192
"""A larger token would not fit into a header line either."""

MAX_LEEWAY: Final = 10
"""Seconds by which the issuer's clock may differ from ours; more would prolong every token."""

MAX_TOKEN_ID_CHARACTERS: Final = 128
MAX_CHARACTER_ID: Final = 2**63 - 1
"""Ids are signed 64-bit integers in every store."""

MAX_UNIX_TIME: Final = 253_402_300_799
"""The last second of the year 9999: later times cannot be written as RFC 3339."""

_USER_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Control characters and line separators forge log lines; lone surrogates (which JSON can spell
# as \\ud800) cannot be written as UTF-8 again.
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class TokenVerifier:
    """Checks tokens and tells whom they speak for.

    Args:
        keys: What signatures are checked with; a text is the secret shared with the issuer.
        issuer: The only accepted ``iss``.
        audience: What ``aud`` must be or contain; None does not look at it.
        leeway: Seconds, 0 to 10, by which clocks may differ.
        max_lifetime: Longest accepted time in seconds from ``iat`` (now, if there is none) to
            ``exp``.
        clock: Where the time comes from.
        revocations: Which tokens are taken back; none if None.

    Attributes:
        revocations: See above; whoever closes connections asks it too.

    Raises:
        SettingsError: The secret is too short or is a key of another kind.
        ValueError: ``leeway`` or ``max_lifetime`` is out of range.
    """

    __slots__ = (
        "_audience",
        "_clock",
        "_issuer",
        "_keys",
        "_leeway",
        "_max_lifetime",
        "revocations",
    )

    def __init__(
        self,
        keys: str | Keys,
        *,
        issuer: str = DEFAULT_ISSUER,
        audience: str | None = None,
        leeway: int = 5,
        max_lifetime: int = DEFAULT_MAX_LIFETIME,
        clock: Clock,
        revocations: Revocations | None = None,
    ) -> None:
        if not 0 <= leeway <= MAX_LEEWAY:
            raise ValueError(f"leeway must be from 0 to {MAX_LEEWAY} seconds")
        if max_lifetime < 1:
            raise ValueError("max_lifetime must be at least 1 second")
        self._keys: Keys = SharedSecret(keys) if isinstance(keys, str) else keys
        self._issuer = issuer
        self._audience = audience
        self._leeway = leeway
        self._max_lifetime = max_lifetime
        self._clock = clock
        self.revocations = Revocations() if revocations is None else revocations

    @property
    def is_ready(self) -> bool:
        """Whether there are keys to check with; without any, every token is refused."""
        return self._keys.is_ready

    def verify(self, token: str) -> Identity:
        """Check a token in every respect.

        Nothing outside the token, the keys, the revocations and the clock is looked at: no file, no
        network, no key named by the token itself.

        Args:
            token: The compact form, three segments of base64url.

        Returns:
            The user, and when the token began and ends.

        Raises:
            AuthError: The token is refused; the text is constant and names the broken rule.
        """
        if not isinstance(token, str):
            refuse("token is not text")
        if len(token) > MAX_TOKEN_BYTES:
            refuse("token is too large")
        segments = split_token(token)
        if segments is None:
            refuse("token is not in compact form")
        header, payload, signature, signing_input = segments
        self._keys.check(header, signing_input, signature)
        claims = parse_object(payload)
        issued_at, expires_at = self._check_times(claims)
        if claims.get("iss") != self._issuer:
            refuse("iss is not the configured issuer")
        if self._audience is not None:
            _check_audience(claims.get("aud"), self._audience)
        identity = _identity(claims, issued_at, expires_at)
        if self.revocations.any and self.revocations.covers(identity):
            refuse("token is revoked")
        return identity

    def _check_times(self, claims: dict[str, object]) -> tuple[int, int]:
        """Check exp, nbf and iat (RFC 7519 4.1.4 to 4.1.6); return iat, or 0, and exp."""
        now = self._clock.time()
        expires_at = _time_claim(claims, "exp")
        if expires_at is None:
            refuse("exp is missing")
        # RFC 7519 4.1.4: "the current date/time MUST be before the expiration date/time".
        if now >= expires_at + self._leeway:
            refuse("token has expired")
        not_before = _time_claim(claims, "nbf")
        if not_before is not None and now < not_before - self._leeway:
            refuse("token is not valid yet")
        issued_at = _time_claim(claims, "iat")
        if issued_at is not None and now < issued_at - self._leeway:
            refuse("iat is in the future")
        start = now + self._leeway if issued_at is None else issued_at
        if expires_at - start > self._max_lifetime:
            refuse("token lives too long")
        return issued_at or 0, expires_at


def issue_token(
    secret: str,
    *,
    user_id: str,
    character_id: int,
    character_name: str,
    scopes: str = "",
    ttl: int,
    now: int,
    issuer: str = DEFAULT_ISSUER,
    audience: str | None = None,
) -> str:
    """Make a token, as the go-falcon authentication service does: for trials, tests and tools.

    Args:
        secret: The secret shared with the verifier, at least 32 bytes.
        user_id: 1 to 64 characters of ``[A-Za-z0-9_-]``.
        character_id: 0 to 2**63 - 1.
        character_name: At most 256 characters, none of them a control character.
        scopes: Space separated.
        ttl: Seconds the token is valid; one that is not positive makes an expired token.
        now: Seconds since 1970 UTC.
        issuer: The ``iss``.
        audience: The ``aud``; None leaves it out.

    Returns:
        The compact form, with a random ``jti``.

    Raises:
        AuthError: A verifier would refuse these claims, or the token for its size.
        SettingsError: The secret is too short or is a key of another kind.
    """
    key = signing_key(secret)
    claims: dict[str, object] = {
        "user_id": user_id,
        "character_id": character_id,
        "character_name": character_name,
        "scopes": scopes,
        "exp": now + ttl,
        "iat": now,
        "iss": issuer,
        "jti": str(uuid.uuid4()),
    }
    if audience is not None:
        claims["aud"] = audience
    _time_claim(claims, "exp")
    _time_claim(claims, "iat")
    _identity(claims, now, now + ttl)
    token = jwt.encode(claims, key, algorithm=HMAC)
    if len(token) > MAX_TOKEN_BYTES:
        refuse("token is too large")
    return token


def generate_secret() -> str:
    """Return a new random signing secret: 64 URL-safe characters, 384 bits."""
    return secrets.token_urlsafe(48)


def _check_audience(value: object, audience: str) -> None:
    """Check aud: one text, or a list in which ours must be (RFC 7519 4.1.3)."""
    named = value if isinstance(value, list) else [value]
    if audience not in named:
        refuse("aud is not the configured audience")


def _time_claim(claims: dict[str, object], name: str) -> int | None:
    if name not in claims:
        return None
    value = claims[name]
    # type(), not isinstance(): True is an int for Python.
    if type(value) is not int or not 0 <= value <= MAX_UNIX_TIME:
        refuse("time claim is not an integer of seconds")
    return value


def _identity(claims: dict[str, object], issued_at: int, expires_at: int) -> Identity:
    user_id = claims.get("user_id")
    # The user id becomes part of a room name and of a Redis key.
    if not isinstance(user_id, str) or _USER_ID.fullmatch(user_id) is None:
        refuse("user_id is missing or malformed")
    character_id = claims.get("character_id")
    if type(character_id) is not int or not 0 <= character_id <= MAX_CHARACTER_ID:
        refuse("character_id is missing or malformed")
    character_name = claims.get("character_name")
    if not isinstance(character_name, str) or len(character_name) > MAX_NAME_CHARACTERS:
        refuse("character_name is missing or too long")
    scopes = claims.get("scopes", "")
    if isinstance(scopes, list) and all(isinstance(scope, str) for scope in scopes):
        scopes = " ".join(scopes)
    if not isinstance(scopes, str):
        refuse("scopes is neither text nor a list of text")
    token_id = claims.get("jti")
    if token_id is None:
        text = character_name + scopes
    elif isinstance(token_id, str) and len(token_id) <= MAX_TOKEN_ID_CHARACTERS:
        text = character_name + scopes + token_id
    else:
        refuse("jti is malformed or too long")
    # What Python calls printable has none of them.
    if not text.isprintable() and _UNPRINTABLE.search(text) is not None:
        refuse("a claim contains control characters")
    return Identity(user_id, character_id, character_name, scopes, expires_at, token_id, issued_at)
