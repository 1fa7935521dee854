"""Tokens: text -> Identity, between the opening handshake and the session.

A token is a JSON Web Token (RFC 7519) in compact form, signed with HS256 and nothing else. The
order of the checks is part of the design: size and alphabet first, then the signature, and only
what the issuer has really signed is parsed. See docs/explanation/tokens.md.
"""

from __future__ import annotations

import binascii
import json
import re
import secrets
import uuid
from typing import Final, NoReturn

import jwt
from jwt.algorithms import HMACAlgorithm

from falcon_fast.clock import Clock
from falcon_fast.errors import AuthError, SettingsError
from falcon_fast.identity import Identity
from falcon_fast.settings import secret_problem

__all__ = [
    "DEFAULT_ISSUER",
    "MAX_LEEWAY",
    "MAX_TOKEN_BYTES",
    "TokenVerifier",
    "generate_secret",
    "issue_token",
]

DEFAULT_ISSUER: Final = "go-falcon"
"""The ``iss`` of tokens made by the go-falcon authentication service."""

MAX_TOKEN_BYTES: Final = 8_192
"""A larger token would not fit into a header line either."""

MAX_LEEWAY: Final = 10
"""Seconds by which the issuer's clock may differ from ours; more would prolong every token."""

MAX_NAME_CHARACTERS: Final = 256
MAX_TOKEN_ID_CHARACTERS: Final = 128
MAX_CHARACTER_ID: Final = 2**63 - 1
"""Ids are signed 64-bit integers in every store."""

MAX_UNIX_TIME: Final = 253_402_300_799
"""The last second of the year 9999: later times cannot be written as RFC 3339."""

_ALGORITHM: Final = "HS256"
_SIGNATURE_CHARACTERS: Final = 43
"""The 32 bytes of HMAC-SHA-256 in base64url."""

_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_FROM_BASE64URL: Final = bytes.maketrans(b"-_", b"+/")
# RFC 4648 3.5: the bits of the last character beyond the last whole byte "MUST be set to zero".
# Otherwise one token would have several spellings. Index: the length modulo 4.
_LAST_CHARACTERS: Final = ("", "", "AQgw", "AEIMQUYcgkosw048")
_PADDING: Final = (b"", b"", b"==", b"=")

_USER_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Control characters and line separators forge log lines; lone surrogates (which JSON can spell
# as \\ud800) cannot be written as UTF-8 again.
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class TokenVerifier:
    """Checks tokens and tells whom they speak for.

    Args:
        secret: The secret shared with the issuer, at least 32 bytes.
        issuer: The only accepted ``iss``.
        leeway: Seconds, 0 to 10, by which clocks may differ.
        max_lifetime: Longest accepted time in seconds from ``iat`` (now, if there is none) to
            ``exp``; None is no limit.
        clock: Where the time comes from.

    Raises:
        SettingsError: The secret is too short or is a key of another kind.
        ValueError: ``leeway`` or ``max_lifetime`` is out of range.
    """

    __slots__ = ("_clock", "_hmac", "_issuer", "_key", "_leeway", "_max_lifetime")

    def __init__(
        self,
        secret: str,
        *,
        issuer: str = DEFAULT_ISSUER,
        leeway: int = 5,
        max_lifetime: int | None = None,
        clock: Clock,
    ) -> None:
        if not 0 <= leeway <= MAX_LEEWAY:
            raise ValueError(f"leeway must be from 0 to {MAX_LEEWAY} seconds")
        if max_lifetime is not None and max_lifetime < 1:
            raise ValueError("max_lifetime must be at least 1 second")
        self._hmac = HMACAlgorithm(HMACAlgorithm.SHA256)
        self._key = _signing_key(secret, self._hmac)
        self._issuer = issuer
        self._leeway = leeway
        self._max_lifetime = max_lifetime
        self._clock = clock

    def verify(self, token: str) -> Identity:
        """Check a token in every respect.

        Nothing outside the token and the clock is looked at: no file, no network, no key named
        by the token itself.

        Args:
            token: The compact form, three segments of base64url.

        Returns:
            The user, and when the token ends.

        Raises:
            AuthError: The token is refused; the text is constant and names the broken rule.
        """
        if not isinstance(token, str):
            _refuse("token is not text")
        if len(token) > MAX_TOKEN_BYTES:
            _refuse("token is too large")
        if _COMPACT.fullmatch(token) is None:
            _refuse("token is not in compact form")
        signing_input, _, signature = token.rpartition(".")
        # The signature comes before any parsing, so that only the issuer's own JSON is read. The
        # algorithm is ours and fixed; what the header says cannot choose another.
        if len(signature) != _SIGNATURE_CHARACTERS:
            _refuse("signature is not of HS256")
        if not self._hmac.verify(signing_input.encode(), self._key, _decode(signature)):
            _refuse("signature does not match")
        header, _, payload = signing_input.partition(".")
        if header not in _USUAL_HEADERS:
            _check_header(_parse_object(header))
        claims = _parse_object(payload)
        expires_at = self._check_times(claims)
        if claims.get("iss") != self._issuer:
            _refuse("iss is not the configured issuer")
        return _identity(claims, expires_at)

    def _check_times(self, claims: dict[str, object]) -> int:
        """Check exp, nbf and iat (RFC 7519 4.1.4 to 4.1.6); return exp."""
        now = self._clock.time()
        expires_at = _time_claim(claims, "exp")
        if expires_at is None:
            _refuse("exp is missing")
        # RFC 7519 4.1.4: "the current date/time MUST be before the expiration date/time".
        if now >= expires_at + self._leeway:
            _refuse("token has expired")
        not_before = _time_claim(claims, "nbf")
        if not_before is not None and now < not_before - self._leeway:
            _refuse("token is not valid yet")
        issued_at = _time_claim(claims, "iat")
        if issued_at is not None and now < issued_at - self._leeway:
            _refuse("iat is in the future")
        if self._max_lifetime is not None:
            start = now + self._leeway if issued_at is None else issued_at
            if expires_at - start > self._max_lifetime:
                _refuse("token lives too long")
        return expires_at


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

    Returns:
        The compact form, with a random ``jti``.

    Raises:
        AuthError: A verifier would refuse these claims, or the token for its size.
        SettingsError: The secret is too short or is a key of another kind.
    """
    key = _signing_key(secret, HMACAlgorithm(HMACAlgorithm.SHA256))
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
    _time_claim(claims, "exp")
    _time_claim(claims, "iat")
    _identity(claims, now + ttl)
    token = jwt.encode(claims, key, algorithm=_ALGORITHM)
    if len(token) > MAX_TOKEN_BYTES:
        _refuse("token is too large")
    return token


def generate_secret() -> str:
    """Return a new random signing secret: 64 URL-safe characters, 384 bits."""
    return secrets.token_urlsafe(48)


def _refuse(rule: str) -> NoReturn:
    raise AuthError(rule)


def _signing_key(secret: str, algorithm: HMACAlgorithm) -> bytes:
    """Turn the secret into the key, past our own check for keys of other kinds and PyJWT's."""
    problem = secret_problem(secret)
    if problem is None:
        # surrogateescape gives back the very bytes that were in the environment.
        key = secret.encode("utf-8", "surrogateescape")
        try:
            return algorithm.prepare_key(key)
        except jwt.InvalidKeyError:
            problem = "it is a key or a certificate, not a secret"
    raise SettingsError([f"JWT_SECRET: {problem}"])


def _decode(segment: str) -> bytes:
    """Decode base64url without padding, in its one canonical spelling (RFC 4648 5, 3.5).

    The alphabet has been checked before; this checks the length and the last character.
    """
    over = len(segment) % 4
    if over and segment[-1] not in _LAST_CHARACTERS[over]:
        _refuse("base64url is not canonical")
    return binascii.a2b_base64(segment.encode().translate(_FROM_BASE64URL) + _PADDING[over])


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


def _parse_object(segment: str) -> dict[str, object]:
    members = _parse(_decode(segment))
    # Raised here and not while the parser's error is being handled: that one keeps the text it
    # failed on, and would travel along as the context of ours.
    if members is None:
        _refuse("segment is not a JSON object with unique names")
    return members


def _parse(data: bytes) -> dict[str, object] | None:
    try:
        value: object = _JSON.decode(data.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# What go-falcon and PyJWT write, byte for byte: the header of nearly every token, in advance.
_USUAL_HEADERS: Final = frozenset({"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"})


def _check_header(header: dict[str, object]) -> None:
    """Check the header; kid, jku, x5u, jwk and x5c are never looked at (RFC 8725 3.10)."""
    if header.get("alg") != _ALGORITHM:
        _refuse("alg is not HS256")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.upper() != "JWT":
        _refuse("typ is not JWT")
    # RFC 7515 4.1.11: a JWS with an extension in crit that is not supported is invalid; none is
    # supported here. b64 changes what is signed (RFC 7797).
    if "crit" in header or "b64" in header:
        _refuse("header has an unsupported extension")


def _time_claim(claims: dict[str, object], name: str) -> int | None:
    if name not in claims:
        return None
    value = claims[name]
    # type(), not isinstance(): True is an int for Python.
    if type(value) is not int or not 0 <= value <= MAX_UNIX_TIME:
        _refuse("time claim is not an integer of seconds")
    return value


def _identity(claims: dict[str, object], expires_at: int) -> Identity:
    user_id = claims.get("user_id")
    # The user id becomes part of a room name and of a Redis key.
    if not isinstance(user_id, str) or _USER_ID.fullmatch(user_id) is None:
        _refuse("user_id is missing or malformed")
    character_id = claims.get("character_id")
    if type(character_id) is not int or not 0 <= character_id <= MAX_CHARACTER_ID:
        _refuse("character_id is missing or malformed")
    character_name = claims.get("character_name")
    if not isinstance(character_name, str) or len(character_name) > MAX_NAME_CHARACTERS:
        _refuse("character_name is missing or too long")
    scopes = claims.get("scopes", "")
    if isinstance(scopes, list) and all(isinstance(scope, str) for scope in scopes):
        scopes = " ".join(scopes)
    if not isinstance(scopes, str):
        _refuse("scopes is neither text nor a list of text")
    token_id = claims.get("jti")
    if token_id is None:
        text = character_name + scopes
    elif isinstance(token_id, str) and len(token_id) <= MAX_TOKEN_ID_CHARACTERS:
        text = character_name + scopes + token_id
    else:
        _refuse("jti is malformed or too long")
    if _UNPRINTABLE.search(text) is not None:
        _refuse("a claim contains control characters")
    return Identity(user_id, character_id, character_name, scopes, expires_at, token_id)
