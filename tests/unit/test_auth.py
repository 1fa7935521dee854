"""Tokens: every case of group A that concerns a token, each refused with AuthError alone.

Tokens are built by hand here (base64url and HMAC of the standard library), so that the tests share
no code with what they test; only the fuzz test and the happy path use issue_token.
"""

from __future__ import annotations

import base64
import builtins
import hashlib
import hmac
import json
import os
import random
import socket
import urllib.request
from collections.abc import Callable
from typing import NoReturn

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_fast import auth, jose, keys
from falcon_fast.auth import (
    MAX_LEEWAY,
    MAX_TOKEN_BYTES,
    TokenVerifier,
    generate_secret,
    issue_token,
)
from falcon_fast.clock import SystemClock
from falcon_fast.errors import AuthError, FalconError, SettingsError
from falcon_fast.identity import Identity

from ..support.clock import FakeClock

SECRET = "correct-horse-battery-staple-0123456789"
NOW = 1_700_000_000
USER = "3f2b8a52-1c4e-4b0a-9d55-0c6f1e2d3a4b"

HEADER: dict[str, object] = {"alg": "HS256", "typ": "JWT"}
CLAIMS: dict[str, object] = {
    "user_id": USER,
    "character_id": 2_112_345_678,
    "character_name": "Kaya O'Brien-Ström",
    "scopes": "publicData esi-mail.read_mail.v1",
    "exp": NOW + 3_600,
    "iat": NOW,
    "iss": "go-falcon",
    "jti": "e1b9c2a0-77f4-4f0e-8d4e-5a1f6b7c8d9e",
}
IDENTITY = Identity(
    user_id=USER,
    character_id=2_112_345_678,
    character_name="Kaya O'Brien-Ström",
    scopes="publicData esi-mail.read_mail.v1",
    expires_at=NOW + 3_600,
    token_id="e1b9c2a0-77f4-4f0e-8d4e-5a1f6b7c8d9e",
    issued_at=NOW,
)
MISSING = object()


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def sign(
    header: bytes, payload: bytes, *, key: bytes = SECRET.encode(), digest: str = "sha256"
) -> str:
    signed = f"{base64url(header)}.{base64url(payload)}"
    return f"{signed}.{base64url(hmac.digest(key, signed.encode(), digest))}"


def with_header(**header: object) -> str:
    """Make a good token but for some header fields; MISSING takes one out."""
    merged = {name: value for name, value in (HEADER | header).items() if value is not MISSING}
    return sign(dump(merged), dump(CLAIMS))


def with_claims(**claims: object) -> str:
    """Make a good token but for some claims; MISSING takes one out."""
    merged = {name: value for name, value in (CLAIMS | claims).items() if value is not MISSING}
    return sign(dump(HEADER), dump(merged))


def with_payload(payload: str | bytes) -> str:
    return sign(dump(HEADER), payload.encode() if isinstance(payload, str) else payload)


def verifier(
    *, now: float = NOW, leeway: int = 5, max_lifetime: int = 366 * 86_400
) -> TokenVerifier:
    return TokenVerifier(SECRET, clock=FakeClock(now), leeway=leeway, max_lifetime=max_lifetime)


VERIFIER = verifier()


def refusal(token: str, by: TokenVerifier = VERIFIER) -> str:
    """Return the text of the refusal, after checking that it gives nothing of the token away."""
    with pytest.raises(AuthError) as caught:
        by.verify(token)
    error = caught.value
    assert type(error) is AuthError
    # An error that was being handled would carry the text it failed on.
    assert error.__context__ is None
    assert error.__cause__ is None
    (text,) = error.args
    assert isinstance(text, str)
    assert text in RULES
    return text


GOOD = sign(dump(HEADER), dump(CLAIMS))
MISMATCH = "signature does not match"

RULES = {
    "token is not text",
    "token is too large",
    "token is not in compact form",
    "signature is not of HS256",
    "signature does not match",
    "base64url is not canonical",
    "segment is not a JSON object with unique names",
    "alg is not HS256",
    "typ is not JWT",
    "header has an unsupported extension",
    "exp is missing",
    "token has expired",
    "token is not valid yet",
    "iat is in the future",
    "token lives too long",
    "time claim is not an integer of seconds",
    "iss is not the configured issuer",
    "aud is not the configured audience",
    "user_id is missing or malformed",
    "character_id is missing or malformed",
    "character_name is missing or too long",
    "scopes is neither text nor a list of text",
    "jti is malformed or too long",
    "a claim contains control characters",
}


# --- what is accepted ----------------------------------------------------------------------------


def test_a_good_token_becomes_an_identity() -> None:
    assert VERIFIER.verify(sign(dump(HEADER), dump(CLAIMS))) == IDENTITY


def test_a_token_as_go_writes_it() -> None:
    """Go sorts the claims, keeps UTF-8 as it is, and ends no line."""
    payload = json.dumps(CLAIMS, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert VERIFIER.verify(with_payload(payload)) == IDENTITY


def test_optional_claims_may_be_absent() -> None:
    token = with_claims(scopes=MISSING, iat=MISSING, jti=MISSING)
    identity = VERIFIER.verify(token)
    assert (identity.scopes, identity.token_id, identity.issued_at) == ("", None, 0)


@pytest.mark.parametrize(
    "scopes, expected", [("", ""), ([], ""), (["a", "b.c"], "a b.c"), ("a  b", "a  b")]
)
def test_scopes_may_be_text_or_a_list(scopes: object, expected: str) -> None:
    assert VERIFIER.verify(with_claims(scopes=scopes)).scopes == expected


@pytest.mark.parametrize(
    "claim, value",
    [
        ("user_id", "a"),
        ("user_id", "-_" * 32),
        ("character_id", 0),
        ("character_id", 2**63 - 1),
        ("character_name", ""),
        ("character_name", "x" * 256),
        ("character_name", "Ünï 漢字 😀"),
        ("jti", "x" * 128),
        ("aud", ["anybody"]),
        ("sub", 42),
        ("weight", 1.5),
        ("nested", {"a": {"b": [1, 2, {"c": None}]}}),
    ],
)
def test_accepted_values(claim: str, value: object) -> None:
    identity = VERIFIER.verify(with_claims(**{claim: value}))
    if claim in {"user_id", "character_id", "character_name"}:
        assert getattr(identity, claim) == value


@pytest.mark.parametrize("typ", ["JWT", "jwt", "Jwt", MISSING])
def test_accepted_types(typ: object) -> None:
    assert VERIFIER.verify(with_header(typ=typ)) == IDENTITY


def test_the_audience_is_looked_at_if_one_is_configured() -> None:
    picky = TokenVerifier(SECRET, audience="falcon", clock=FakeClock(NOW))
    for aud in ("falcon", ["others", "falcon"]):
        assert picky.verify(with_claims(aud=aud)) == IDENTITY
    for wrong in (MISSING, None, "", "falcons", "falco", ["others"], [], {"falcon": 1}, 7, True):
        assert refusal(with_claims(aud=wrong), picky) == "aud is not the configured audience"


def test_the_issuer_can_be_set() -> None:
    other = TokenVerifier(SECRET, issuer="other", clock=FakeClock(NOW))
    assert other.verify(with_claims(iss="other")) == IDENTITY
    assert refusal(with_claims(), other) == "iss is not the configured issuer"


# --- A01: one algorithm --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "alg",
    [
        "none",
        "nOnE",
        "None",
        "NONE",
        "",
        "hs256",
        "HS256 ",
        "HS384",
        "HS512",
        "RS256",
        "ES256",
        "EdDSA",
        ["HS256"],
        {"HS256": 1},
        None,
        True,
        256,
        MISSING,
    ],
    ids=repr,
)
def test_other_algorithms_A01(alg: object) -> None:
    """Signed with our own key, so that only the header is wrong."""
    assert refusal(with_header(alg=alg)) == "alg is not HS256"


@pytest.mark.parametrize("alg", ["none", "nOnE", ""])
def test_unsigned_tokens_A01(alg: str) -> None:
    signed = f"{base64url(dump({'alg': alg, 'typ': 'JWT'}))}.{base64url(dump(CLAIMS))}"
    assert refusal(signed + ".") == "token is not in compact form"
    assert refusal(signed) == "token is not in compact form"
    assert refusal(signed + ".e30") == "signature is not of HS256"


@pytest.mark.parametrize("digest, alg", [("sha384", "HS384"), ("sha512", "HS512")])
def test_signatures_of_other_lengths_A01(digest: str, alg: str) -> None:
    token = sign(dump(HEADER | {"alg": alg}), dump(CLAIMS), digest=digest)
    assert refusal(token) == "signature is not of HS256"


# --- A02, A03: the secret ------------------------------------------------------------------------

ED25519_PEM = (
    "-----BEGIN PUBLIC KEY-----\n"
    "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n"
    "-----END PUBLIC KEY-----\n"
)


@pytest.mark.parametrize(
    "key",
    [
        ED25519_PEM,
        ED25519_PEM.replace("\n", "\r\n"),
        f"  {ED25519_PEM}  ",
        ED25519_PEM.splitlines()[1],
        '{"kty":"oct","k":"GbtEO2lhM3-hUG6wWfcO5bIUIaqMLa2ywxc"}',
    ],
    ids=["lf", "crlf", "spaces", "der-base64", "jwk"],
)
def test_a_public_key_is_no_secret_A02(key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        TokenVerifier(key, clock=SystemClock())
    assert "is a key or a certificate" in str(caught.value)
    assert key.strip()[:20] not in str(caught.value)
    with pytest.raises(SettingsError):
        issue_token(key, user_id="a", character_id=1, character_name="A", ttl=1, now=NOW)


def test_a_token_signed_with_a_public_key_A02() -> None:
    token = sign(dump(HEADER), dump(CLAIMS), key=ED25519_PEM.encode())
    assert refusal(token) == "signature does not match"


def test_what_only_pyjwt_recognises_as_a_key_A02(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyJWT's own guard stays in force behind ours."""
    monkeypatch.setattr(keys, "secret_problem", lambda secret: None)
    with pytest.raises(SettingsError, match="is a key or a certificate"):
        TokenVerifier(ED25519_PEM, clock=SystemClock())


@pytest.mark.parametrize("secret", ["", "x" * 31, " " * 64])
def test_a_short_secret_A03(secret: str) -> None:
    with pytest.raises(SettingsError, match="too short"):
        TokenVerifier(secret, clock=SystemClock())


def test_a_token_signed_with_no_key_A03() -> None:
    assert refusal(sign(dump(HEADER), dump(CLAIMS), key=b"")) == "signature does not match"


# --- A17: two secrets for a while ---------------------------------------------------------------

OLD = "the-secret-of-last-year-0123456789-0123456789"


def test_the_previous_secret_is_accepted_until_it_is_taken_out_A17() -> None:
    old = sign(dump(HEADER), dump(CLAIMS), key=OLD.encode())
    rotating = TokenVerifier(keys.SharedSecret(SECRET, OLD), clock=FakeClock(NOW))
    assert rotating.is_ready
    assert rotating.verify(old) == IDENTITY
    assert rotating.verify(GOOD) == IDENTITY
    assert refusal(sign(dump(HEADER), dump(CLAIMS), key=b"x" * 40), rotating) == MISMATCH
    assert refusal(old) == MISMATCH
    # Before the rotation reached this node, the new secret's tokens were unknown.
    assert refusal(GOOD, TokenVerifier(OLD, clock=FakeClock(NOW))) == MISMATCH


def test_the_previous_secret_gets_no_easier_rules_A17() -> None:
    rotating = TokenVerifier(keys.SharedSecret(SECRET, OLD), clock=FakeClock(NOW))
    expired = sign(dump(HEADER), dump(CLAIMS | {"exp": NOW - 60}), key=OLD.encode())
    assert refusal(expired, rotating) == "token has expired"
    other = sign(dump(HEADER | {"alg": "none"}), dump(CLAIMS), key=OLD.encode())
    assert refusal(other, rotating) == "alg is not HS256"


@pytest.mark.parametrize("previous", ["", "x" * 31, ED25519_PEM], ids=["empty", "short", "key"])
def test_the_previous_secret_is_checked_like_the_secret_A03(previous: str) -> None:
    with pytest.raises(SettingsError, match=r"^JWT_SECRET_PREVIOUS: "):
        keys.SharedSecret(SECRET, previous)


# --- A04: keys named by the token ----------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        {"kid": "../../../../dev/null"},
        {"kid": "' UNION SELECT 'x"},
        {"kid": "k" * 4_000},
        {"kid": 7},
        {"kid": None},
        {"jku": "http://127.0.0.1:9/jwks.json"},
        {"x5u": "file:///etc/passwd"},
        {"jwk": {"kty": "oct", "k": base64url(SECRET.encode())}},
        {"x5c": ["MIIB"]},
    ],
    ids=["path", "sql", "long", "number", "null", "jku", "x5u", "jwk", "x5c"],
)
def test_keys_in_the_header_are_ignored_A04(
    header: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def touched(*_args: object, **_kwargs: object) -> NoReturn:
        pytest.fail("verifying a token opened a file or a connection")

    good = with_header(**header)
    # The key is in the header, and the signature fits it: no reason to believe either.
    forged = sign(dump(HEADER | header), dump(CLAIMS), key=b"attacker" * 4)
    monkeypatch.setattr(builtins, "open", touched)
    monkeypatch.setattr(os, "open", touched)
    monkeypatch.setattr(socket, "socket", touched)
    monkeypatch.setattr(socket, "getaddrinfo", touched)
    monkeypatch.setattr(urllib.request, "urlopen", touched)
    identity = VERIFIER.verify(good)
    with pytest.raises(AuthError) as caught:
        VERIFIER.verify(forged)
    monkeypatch.undo()
    assert identity == IDENTITY
    assert str(caught.value) == "signature does not match"


def test_a_huge_kid_A04() -> None:
    assert refusal(with_header(kid="k" * 65_536)) == "token is too large"


# --- A05: the compact form -----------------------------------------------------------------------

HEAD, PAYLOAD, SIGNATURE = GOOD.split(".")


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "...",
        HEAD,
        f"{HEAD}.{PAYLOAD}",
        f"{HEAD}.{PAYLOAD}.",
        f".{PAYLOAD}.{SIGNATURE}",
        f"{HEAD}..{SIGNATURE}",
        f"{GOOD}.",
        f".{GOOD}",
        f"{GOOD}.{SIGNATURE}",
        f"{GOOD}.{SIGNATURE}.{SIGNATURE}",
        f" {GOOD}",
        f"{GOOD} ",
        f"{GOOD}\n",
        f"{GOOD}\r\n",
        f"{GOOD}\0",
        f"{HEAD}. {PAYLOAD}.{SIGNATURE}",
        f"{HEAD}.{PAYLOAD}.\n{SIGNATURE}",
        f"{GOOD}=",
        f"{HEAD}=.{PAYLOAD}.{SIGNATURE}",
        f"{HEAD}.{PAYLOAD}==.{SIGNATURE}",
        f"{HEAD}.{PAYLOAD}.+{SIGNATURE[1:]}",
        f"{HEAD}.{PAYLOAD}./{SIGNATURE[1:]}",
        f"Bearer {GOOD}",
        f'"{GOOD}"',
        f"{HEAD}.{PAYLOAD}.é{SIGNATURE[1:]}",
        f"{HEAD}.{PAYLOAD}.\ud800{SIGNATURE[1:]}",
        GOOD.replace(".", "\uff0e"),
    ],
    ids=ascii,
)
def test_malformed_tokens_A05(token: str) -> None:
    assert refusal(token) == "token is not in compact form"


@pytest.mark.parametrize("token", [None, 7, b"a.b.c", GOOD.encode(), ["a"], {}], ids=repr)
def test_what_is_no_text_A05(token: object) -> None:
    untyped: Callable[[object], Identity] = VERIFIER.verify  # type: ignore[assignment]
    with pytest.raises(AuthError, match="not text"):
        untyped(token)


def test_another_spelling_of_the_signature_A05() -> None:
    """The last character of 43 carries four bits; the two beyond must be zero."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    value = alphabet.index(SIGNATURE[-1])
    same_bytes = [alphabet[value + extra] for extra in (1, 2, 3)]
    for character in same_bytes:
        other = SIGNATURE[:-1] + character
        assert base64.urlsafe_b64decode(other + "=") == base64.urlsafe_b64decode(SIGNATURE + "=")
        assert refusal(f"{HEAD}.{PAYLOAD}.{other}") == "base64url is not canonical"


@pytest.mark.parametrize(
    "header, payload, rule",
    [
        # 4n + 1 characters encode nothing; 4n + 2 leave four bits, 4n + 3 leave two.
        (HEAD + "A" * ((1 - len(HEAD)) % 4), PAYLOAD, "base64url is not canonical"),
        (base64url(b'{"alg":"HS256"}     ')[:-1] + "B", PAYLOAD, "base64url is not canonical"),
        (base64url(b'{"alg":"HS256"}  ')[:-1] + "B", PAYLOAD, "base64url is not canonical"),
        (HEAD, base64url(b"{}  ")[:-1] + "B", "base64url is not canonical"),
    ],
)
def test_other_spellings_of_segments_A05(header: str, payload: str, rule: str) -> None:
    signed = f"{header}.{payload}"
    mac = hmac.digest(SECRET.encode(), signed.encode(), "sha256")
    assert refusal(f"{signed}.{base64url(mac)}") == rule


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"], "exp": 1},
        {"crit": ["b64"], "b64": False},
        {"crit": ["b64"], "b64": True},
        {"crit": []},
        {"crit": None},
        {"b64": False},
        {"b64": True},
    ],
    ids=repr,
)
def test_extensions_A05(header: dict[str, object]) -> None:
    assert refusal(with_header(**header)) == "header has an unsupported extension"


@pytest.mark.parametrize("typ", ["JWE", "at+jwt", "", None, 1, ["JWT"]], ids=repr)
def test_other_types_A05(typ: object) -> None:
    assert refusal(with_header(typ=typ)) == "typ is not JWT"


def test_a_detached_payload_A05() -> None:
    header = base64url(dump(HEADER | {"b64": False, "crit": ["b64"]}))
    mac = hmac.digest(SECRET.encode(), f"{header}.{dump(CLAIMS).decode()}".encode(), "sha256")
    assert refusal(f"{header}..{base64url(mac)}") == "token is not in compact form"


def test_a_token_in_a_token_A05() -> None:
    token = sign(dump(HEADER | {"cty": "JWT"}), GOOD.encode())
    assert refusal(token) == "segment is not a JSON object with unique names"
    encrypted = ".".join([base64url(dump({"alg": "dir", "enc": "A256GCM"})), "", "AA", "AA", "AA"])
    assert refusal(encrypted) == "token is not in compact form"


# --- A06: times ----------------------------------------------------------------------------------

NOT_AN_INTEGER = "time claim is not an integer of seconds"


@pytest.mark.parametrize("claim", ["exp", "iat", "nbf"])
@pytest.mark.parametrize(
    "value",
    [
        str(NOW + 60),
        float(NOW + 60),
        1e18,
        True,
        False,
        None,
        [NOW + 60],
        {},
        "",
        "2033-01-01T00:00:00Z",
        10**18,
        2**63,
        253_402_300_800,
        -1,
    ],
    ids=repr,
)
def test_times_that_are_no_integers_A06(claim: str, value: object) -> None:
    assert refusal(with_claims(**{claim: value})) == NOT_AN_INTEGER


def test_exp_is_required_A06() -> None:
    assert refusal(with_claims(exp=MISSING)) == "exp is missing"


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_times_that_are_no_json_A06(constant: str) -> None:
    payload = json.dumps(CLAIMS | {"exp": 7}).replace('"exp": 7', f'"exp": {constant}')
    assert constant in payload
    assert refusal(with_payload(payload)) == "segment is not a JSON object with unique names"


@pytest.mark.parametrize("leeway", [0, 5, MAX_LEEWAY])
def test_the_boundary_of_exp_A06(leeway: int) -> None:
    token = with_claims(exp=NOW, iat=MISSING)
    end = NOW + leeway
    assert verifier(now=end - 1, leeway=leeway).verify(token).expires_at == NOW
    assert verifier(now=end - 0.001, leeway=leeway).verify(token).expires_at == NOW
    assert refusal(token, verifier(now=end, leeway=leeway)) == "token has expired"
    assert refusal(token, verifier(now=end + 1, leeway=leeway)) == "token has expired"


@pytest.mark.parametrize(
    "claim, rule", [("nbf", "token is not valid yet"), ("iat", "iat is in the future")]
)
@pytest.mark.parametrize("leeway", [0, 5, MAX_LEEWAY])
def test_the_boundary_of_nbf_and_iat_A06(claim: str, rule: str, leeway: int) -> None:
    token = with_claims(**{claim: NOW})
    assert verifier(now=NOW - leeway, leeway=leeway).verify(token).user_id == USER
    assert refusal(token, verifier(now=NOW - leeway - 0.001, leeway=leeway)) == rule
    assert refusal(token, verifier(now=NOW - leeway - 1, leeway=leeway)) == rule


def test_time_passes_for_one_verifier_A06() -> None:
    clock = FakeClock(NOW)
    by = TokenVerifier(SECRET, clock=clock, leeway=0)
    token = with_claims(exp=NOW + 60)
    assert by.verify(token).expires_at == NOW + 60
    clock.advance(60)
    assert refusal(token, by) == "token has expired"


def test_the_longest_lifetime_A06() -> None:
    by = verifier(max_lifetime=3_600)
    assert by.verify(with_claims(exp=NOW + 3_600)).expires_at == NOW + 3_600
    assert refusal(with_claims(exp=NOW + 3_601), by) == "token lives too long"
    # Without iat the token may have been made by a clock that is ahead by the leeway.
    assert by.verify(with_claims(exp=NOW + 3_605, iat=MISSING)).expires_at == NOW + 3_605
    assert refusal(with_claims(exp=NOW + 3_606, iat=MISSING), by) == "token lives too long"
    # An old iat does not become a longer life.
    assert refusal(with_claims(iat=NOW - 3_600, exp=NOW + 60), by) == "token lives too long"


@pytest.mark.parametrize("iss", [MISSING, None, "", "go-falcon ", "go-falco", ["go-falcon"], 1])
def test_the_issuer_A06_CVE_2024_53861(iss: object) -> None:
    assert refusal(with_claims(iss=iss)) == "iss is not the configured issuer"


@pytest.mark.parametrize("leeway", [-1, 11])
def test_the_leeway_is_bounded_A06(leeway: int) -> None:
    with pytest.raises(ValueError, match="leeway"):
        TokenVerifier(SECRET, leeway=leeway, clock=SystemClock())


def test_the_lifetime_is_positive_A06() -> None:
    with pytest.raises(ValueError, match="max_lifetime"):
        TokenVerifier(SECRET, max_lifetime=0, clock=SystemClock())


# --- A07: the user, and the other claims ---------------------------------------------------------


@pytest.mark.parametrize(
    "user_id",
    [
        MISSING,
        None,
        42,
        True,
        "",
        "x" * 65,
        "x" * 5_000,
        "a\0b",
        "a\n",
        "\na",
        "a b",
        "user:a",
        "a:group:b",
        "*",
        "../a",
        "a/b",
        "a.b",
        "ünï",
        "а",  # the Cyrillic letter, which looks like a Latin one
        "１",  # a full-width digit
        "٣",
        "a\u200b",
        "a\ud800",
        ["a"],
        {"a": 1},
    ],
    ids=ascii,
)
def test_user_ids_A07(user_id: object) -> None:
    assert refusal(with_claims(user_id=user_id)) == "user_id is missing or malformed"


@pytest.mark.parametrize(
    "character_id", [MISSING, None, "1", 1.0, True, -1, 2**63, 10**30, [1]], ids=repr
)
def test_character_ids_A07(character_id: object) -> None:
    token = with_claims(character_id=character_id)
    assert refusal(token) == "character_id is missing or malformed"


@pytest.mark.parametrize("name", [MISSING, None, 1, "x" * 257, ["x"]], ids=lambda v: repr(v)[:20])
def test_character_names_A07(name: object) -> None:
    assert refusal(with_claims(character_name=name)) == "character_name is missing or too long"


@pytest.mark.parametrize("scopes", [None, 1, {"a": 1}, ["a", 1], [["a"]], True], ids=repr)
def test_scopes_A07(scopes: object) -> None:
    assert refusal(with_claims(scopes=scopes)) == "scopes is neither text nor a list of text"


@pytest.mark.parametrize("token_id", [1, True, ["x"], "x" * 129], ids=lambda v: repr(v)[:20])
def test_token_ids_A07(token_id: object) -> None:
    assert refusal(with_claims(jti=token_id)) == "jti is malformed or too long"


@pytest.mark.parametrize("claim", ["character_name", "scopes", "jti"])
@pytest.mark.parametrize(
    "character", ["\0", "\t", "\n", "\r", "\x1b", "\x7f", "\x85", "\u2028", "\u2029", "\ud800"]
)
def test_control_characters_A07(claim: str, character: str) -> None:
    token = with_claims(**{claim: f"a{character}b"})
    assert refusal(token) == "a claim contains control characters"


def test_control_characters_in_a_list_of_scopes_A07() -> None:
    assert refusal(with_claims(scopes=["a", "b\nc"])) == "a claim contains control characters"


# --- A08: hostile JSON ---------------------------------------------------------------------------

NOT_AN_OBJECT = "segment is not a JSON object with unique names"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b"7",
        b'"text"',
        b"[" * 5_000,
        b"[" * 2_500 + b"]" * 2_500,
        dump(CLAIMS) + b"x",
        dump(CLAIMS)[:-1],
        b"\xef\xbb\xbf" + dump(CLAIMS),
        dump(CLAIMS).decode().encode("utf-16"),
        dump(CLAIMS).replace(b"Kaya", b"\xff\xfe"),
        dump(CLAIMS).replace(b"Kaya", b"a\nb"),
        dump(CLAIMS).replace(b'"', b"'"),
        dump(CLAIMS).replace(b"1700003600", b"1" * 5_000),
        dump(CLAIMS).replace(b"1700003600", b"01700003600"),
    ],
    ids=[
        "empty",
        "blank",
        "null",
        "list",
        "number",
        "text",
        "open-lists",
        "deep-lists",
        "trailing",
        "cut-off",
        "byte-order-mark",
        "utf-16",
        "not-utf-8",
        "bare-newline",
        "single-quotes",
        "5000-digits",
        "leading-zero",
    ],
)
def test_payloads_A08(payload: bytes) -> None:
    # An empty segment is refused for its form already.
    expected = NOT_AN_OBJECT if payload else "token is not in compact form"
    assert refusal(with_payload(payload)) == expected


def test_deep_objects_A08() -> None:
    """The deepest object that fits: whether it can be read depends on the version of Python."""
    token = with_payload(b'{"a":' * 1_000 + b"1" + b"}" * 1_000)
    assert len(token) > 8_000
    assert refusal(token) in {NOT_AN_OBJECT, "exp is missing"}


def test_a_payload_of_depth_200_000_A08() -> None:
    assert refusal(with_payload(b"[" * 200_000)) == "token is too large"


@pytest.mark.parametrize(
    "addition",
    [
        '"user_id":"someone-else"',
        f'"user_id":"{USER}"',
        '"exp":1700003600',
        '"\\u0075ser_id":"someone-else"',
        '"x":1,"x":1',
        '"x":{"y":1,"y":2}',
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_duplicate_claims_A08(addition: str, first: bool) -> None:
    body = dump(CLAIMS).decode()
    payload = f"{{{addition},{body[1:]}" if first else f"{body[:-1]},{addition}}}"
    assert refusal(with_payload(payload)) == NOT_AN_OBJECT


def test_duplicate_header_fields_A08() -> None:
    header = b'{"alg":"HS256","typ":"JWT","alg":"HS256"}'
    assert refusal(sign(header, dump(CLAIMS))) == NOT_AN_OBJECT


@pytest.mark.parametrize("header", [b"[]", b'"HS256"', b"null", b"{", b"\xff{}"])
def test_headers_that_are_no_objects_A08(header: bytes) -> None:
    assert refusal(sign(header, dump(CLAIMS))) == NOT_AN_OBJECT


def test_nothing_is_parsed_before_the_signature_fits_A08(monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(*_args: object) -> NoReturn:
        pytest.fail("an unsigned token reached the JSON parser")

    monkeypatch.setattr(jose, "parse_json", parsed)
    token = sign(b"[" * 100, b"[" * 100, key=b"attacker" * 4)
    assert refusal(token) == "signature does not match"


# --- A09: size -----------------------------------------------------------------------------------


def test_the_size_of_a_token_A09() -> None:
    room = MAX_TOKEN_BYTES - len(with_claims(padding=""))
    sizes = {}
    for length in range(room * 3 // 4 - 8, room * 3 // 4 + 8):
        token = with_claims(padding="p" * length)
        sizes[len(token)] = token
    largest = max(size for size in sizes if size <= MAX_TOKEN_BYTES)
    smallest = min(size for size in sizes if size > MAX_TOKEN_BYTES)
    assert MAX_TOKEN_BYTES - 2 <= largest
    assert smallest <= MAX_TOKEN_BYTES + 2
    assert VERIFIER.verify(sizes[largest]) == IDENTITY
    assert refusal(sizes[smallest]) == "token is too large"


def test_8193_bytes_A09() -> None:
    assert refusal("a" * 8_193) == "token is too large"
    assert refusal("a" * 8_192) == "token is not in compact form"


def test_a_token_of_a_mebibyte_A09(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused for its length alone: neither searched nor hashed."""
    token = with_claims(padding="p" * 1_048_576)
    monkeypatch.setattr(auth, "split_token", None)
    assert refusal(token) == "token is too large"


# --- A10: two tokens -----------------------------------------------------------------------------


def test_two_tokens_in_one_A10() -> None:
    """Joined headers or cookies reach the verifier as one text, which is no token."""
    other = with_claims(user_id="someone-else")
    for separator in (",", ", ", ";", "; ", " ", ""):
        assert refusal(f"{GOOD}{separator}{other}") == "token is not in compact form"


# --- A16: time -----------------------------------------------------------------------------------


def test_signatures_are_compared_in_constant_time_A16(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    genuine = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return genuine(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    mac = hmac.digest(SECRET.encode(), f"{HEAD}.{PAYLOAD}".encode(), hashlib.sha256)
    VERIFIER.verify(GOOD)
    # A forgery that shares all but the last byte takes the very same road.
    near = mac[:-1] + bytes([mac[-1] ^ 1])
    assert refusal(f"{HEAD}.{PAYLOAD}.{base64url(near)}") == "signature does not match"
    assert [set(pair) for pair in compared] == [{mac}, {mac, near}]


# --- A18: anything at all ------------------------------------------------------------------------


def outcome(token: str) -> Identity | None:
    """Verify; any exception but AuthError fails the test that calls this."""
    try:
        return VERIFIER.verify(token)
    except AuthError:
        return None


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_A18(text: str) -> None:
    assert outcome(text) is None


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_signed_bytes_A18(header: bytes, payload: bytes) -> None:
    assert outcome(sign(header, payload)) is None
    assert outcome(sign(dump(HEADER), payload)) is None


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**70), max_value=2**70)
    | st.floats()
    | st.text(max_size=8)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*sorted(HEADER), "kid", "crit", "b64", "x"]), JSON, max_size=2
    ),
    st.dictionaries(st.sampled_from([*sorted(CLAIMS), "nbf", "x"]), JSON, max_size=3),
)
def test_any_signed_values_A18(header: dict[str, object], claims: dict[str, object]) -> None:
    """Genuine signatures over any JSON value in any field: refused, or a sane identity."""
    identity = outcome(sign(dump(HEADER | header), dump(CLAIMS | claims)))
    if identity is None:
        return
    assert 1 <= len(identity.user_id) <= 64
    assert identity.user_id.isascii()
    assert identity.user_id.replace("-", "a").replace("_", "a").isalnum()
    assert type(identity.character_id) is int
    assert 0 <= identity.character_id < 2**63
    assert type(identity.expires_at) is int
    assert identity.expires_at > NOW - 5
    for text in (identity.character_name, identity.scopes, identity.token_id or ""):
        assert text.encode().decode() == text
        assert "\n" not in text


def test_mutated_tokens_A18() -> None:
    """Cut, change, double, swap and splice a good token: never anything but AuthError."""
    chance = random.Random(18)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/ \n\0é"
    refused = 0
    for _ in range(4_000):
        token = GOOD
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(token) + 1)
            to = min(len(token), at + chance.choice([0, 1, 1, 4, 40]))
            new = "".join(chance.choices(alphabet, k=chance.choice([0, 1, 1, 4, 40])))
            token = token[:at] + chance.choice([new, token[at:to] * 2]) + token[to:]
            token = token or "."
        if token != GOOD:
            assert outcome(token) is None
            refused += 1
    assert refused > 3_500


def test_every_changed_bit_A18() -> None:
    """No single bit of the three segments can be changed, whatever it decodes to."""
    for at in range(len(GOOD)):
        for bit in range(7):
            changed = GOOD[:at] + chr(ord(GOOD[at]) ^ (1 << bit)) + GOOD[at + 1 :]
            assert outcome(changed) is None


def test_mutated_payloads_with_a_genuine_signature_A18() -> None:
    chance = random.Random(1_818)
    payload = dump(CLAIMS)
    for _ in range(2_000):
        data = bytearray(payload)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(data))
            data[at : at + chance.choice([0, 1, 3])] = chance.choice(
                [b"", b'"', b"{", b"\\", b"[", b":", b",", b"\xff", b"\0", b"9" * 30, b"null"]
            )
        outcome(with_payload(bytes(data)))


# --- issuing -------------------------------------------------------------------------------------


def issue(
    user_id: str = USER,
    character_id: int = 7,
    character_name: str = "Kaya",
    *,
    scopes: str = "publicData",
    ttl: int = 60,
    now: int = NOW,
) -> str:
    return issue_token(
        SECRET,
        user_id=user_id,
        character_id=character_id,
        character_name=character_name,
        scopes=scopes,
        ttl=ttl,
        now=now,
    )


def test_an_issued_token_is_accepted() -> None:
    identity = VERIFIER.verify(issue())
    assert identity.token_id is not None
    assert len(identity.token_id) == 36
    assert identity == Identity(USER, 7, "Kaya", "publicData", NOW + 60, identity.token_id, NOW)
    assert VERIFIER.verify(issue()).token_id != identity.token_id


def test_an_issued_token_can_be_read_by_pyjwt() -> None:
    token = issue()
    assert token.startswith(f"{base64url(dump({'alg': 'HS256', 'typ': 'JWT'}))}.")
    claims = jwt.decode(
        token,
        SECRET,
        algorithms=["HS256"],
        issuer="go-falcon",
        options={"verify_exp": False, "verify_iat": False},
    )
    assert sorted(claims) == sorted(CLAIMS)
    assert (claims["exp"], claims["iat"]) == (NOW + 60, NOW)


def test_an_expired_token_can_be_made() -> None:
    assert refusal(issue(ttl=-5)) == "token has expired"


@pytest.mark.parametrize(
    "make, rule",
    [
        (lambda: issue("user:a"), "user_id is missing or malformed"),
        (lambda: issue(character_id=-1), "character_id is missing or malformed"),
        (lambda: issue(character_name="a\nb"), "a claim contains control characters"),
        (lambda: issue(ttl=10**12), "time claim is not an integer of seconds"),
        (lambda: issue(now=-1), "time claim is not an integer of seconds"),
        (lambda: issue(scopes="s" * 8_000), "token is too large"),
    ],
)
def test_no_token_is_made_that_would_be_refused(make: Callable[[], str], rule: str) -> None:
    with pytest.raises(AuthError) as caught:
        make()
    assert str(caught.value) == rule


def test_generated_secrets() -> None:
    made = {generate_secret() for _ in range(100)}
    assert len(made) == 100
    for secret in made:
        assert len(secret) == 64
        assert secret.replace("-", "a").replace("_", "a").isalnum()
        assert TokenVerifier(secret, clock=SystemClock()) is not None


def test_nothing_of_the_secret_is_shown() -> None:
    """L01: neither by the verifier nor by what it raises."""
    assert SECRET not in repr(VERIFIER)
    assert not hasattr(VERIFIER, "__dict__")
    with pytest.raises(FalconError) as caught:
        TokenVerifier(SECRET[:20], clock=SystemClock())
    assert SECRET[:20] not in str(caught.value)
