"""Public keys: which tokens they accept, which keys are taken, and what other libraries got wrong.

Tests that carry a CVE number repeat a weakness of PyJWT or of a server that checked tokens.
"""

from __future__ import annotations

import builtins
import dataclasses
import hmac
import json
import os
import re
import socket
import tomllib
import urllib.request
from pathlib import Path
from typing import NoReturn

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed448
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_fast import keys
from falcon_fast.auth import TokenVerifier
from falcon_fast.errors import AuthError, SettingsError
from falcon_fast.identity import Identity
from falcon_fast.jose import parse_object
from falcon_fast.keys import Keys, KeySet, PinnedKeys, SharedSecret, keys_of
from falcon_fast.settings import ALGORITHM_FAMILIES, Settings, secret_problem

from ..support import ROOT
from ..support.clock import FakeClock
from ..support.keys import Issuer, base64url, dump, issuer, key_set

NOW = 1_700_000_000
USER = "3f2b8a52-1c4e-4b0a-9d55-0c6f1e2d3a4b"
CLAIMS: dict[str, object] = {
    "user_id": USER,
    "character_id": 7,
    "character_name": "Kaya",
    "exp": NOW + 3_600,
    "iat": NOW,
    "iss": "go-falcon",
}
IDENTITY = Identity(USER, 7, "Kaya", "", NOW + 3_600, None, NOW)

PUBLIC_FAMILIES = ALGORITHM_FAMILIES[1:]
ALGORITHMS = [name for family in PUBLIC_FAMILIES for name in family]

UNKNOWN = "kid is not of a known key"
OTHER = "alg is not of the configured family"
MISMATCH = "signature does not match"


def family(algorithm: str) -> tuple[str, ...]:
    return next(names for names in ALGORITHM_FAMILIES if algorithm in names)


def pinned(*issuers: Issuer, algorithms: tuple[str, ...] | None = None) -> TokenVerifier:
    pem = b"".join(one.pem() for one in issuers)
    found = PinnedKeys(pem, algorithms or family(issuers[0].algorithm))
    return TokenVerifier(found, clock=FakeClock(NOW))


def published(
    *jwks: dict[str, object], algorithms: tuple[str, ...], issuer: str = "go-falcon"
) -> KeySet:
    found = KeySet(algorithms, issuer=issuer)
    found.replace(key_set(*jwks))
    return found


def verifier(by: Keys) -> TokenVerifier:
    return TokenVerifier(by, clock=FakeClock(NOW))


def refusal(token: str, by: TokenVerifier) -> str:
    with pytest.raises(AuthError) as caught:
        by.verify(token)
    assert caught.value.__context__ is None
    return str(caught.value)


# --- what is accepted ----------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_token_of_each_algorithm(algorithm: str) -> None:
    signer = issuer(algorithm)
    for by in (
        pinned(signer),
        pinned(signer, algorithms=(algorithm,)),
        verifier(published(signer.jwk("k-1"), algorithms=family(algorithm))),
        verifier(published(signer.jwk("k-1", alg=algorithm, use="sig"), algorithms=(algorithm,))),
    ):
        assert by.is_ready
        # Twice: the header of a good token is not read again.
        for _ in range(2):
            assert by.verify(signer.token(CLAIMS, kid="k-1")) == IDENTITY
        assert refusal(signer.token(CLAIMS | {"exp": NOW - 60}, kid="k-1"), by) == (
            "token has expired"
        )


def test_ed448_is_EdDSA_too() -> None:
    signer = Issuer("EdDSA", ed448.Ed448PrivateKey.generate())
    assert pinned(signer).verify(signer.token(CLAIMS)) == IDENTITY


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_token_of_somebody_else(algorithm: str) -> None:
    stranger, signer = issuer(algorithm, "a stranger"), issuer(algorithm)
    assert refusal(stranger.token(CLAIMS), pinned(signer)) == MISMATCH
    found = verifier(published(signer.jwk("k-1"), algorithms=family(algorithm)))
    assert refusal(stranger.token(CLAIMS, kid="k-1"), found) == MISMATCH


def test_several_keys_in_one_file() -> None:
    old, new = issuer("ES256", "old"), issuer("ES256", "new")
    other_curve = issuer("ES384")
    by = pinned(old, new, other_curve)
    assert by.verify(old.token(CLAIMS)) == IDENTITY
    # The keys of a file have no names; what the token calls its key means nothing.
    assert by.verify(new.token(CLAIMS, kid="anything")) == IDENTITY
    assert by.verify(other_curve.token(CLAIMS)) == IDENTITY


def test_rsa_keys_in_their_older_form() -> None:
    signer = issuer("RS256")
    found = PinnedKeys(signer.pem("PKCS1"), ("RS256",))
    assert verifier(found).verify(signer.token(CLAIMS)) == IDENTITY
    assert len(found) == 1


# --- A01: one family ------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA"])
@pytest.mark.parametrize(
    "alg", ["none", "nOnE", "", "HS256", "HS512", "rs256", "RS256 ", ["RS256"], {"RS256": 1}, None]
)
def test_other_algorithms_A01(algorithm: str, alg: object) -> None:
    signer = issuer(algorithm)
    token = signer.token(CLAIMS, alg=alg)
    assert refusal(token, pinned(signer)) == OTHER


@pytest.mark.parametrize(
    "algorithm, meant",
    [("RS256", "PS256"), ("PS256", "RS256"), ("RS256", "ES256"), ("ES256", "EdDSA")],
)
def test_families_are_not_mixed_A01(algorithm: str, meant: str) -> None:
    assert refusal(issuer(meant).token(CLAIMS), pinned(issuer(algorithm))) == OTHER
    # The header may lie about what the signature is.
    lying = issuer(meant).token(CLAIMS, alg=algorithm)
    assert refusal(lying, pinned(issuer(algorithm))) == MISMATCH


def test_an_algorithm_of_the_family_that_is_not_listed_A01_CVE_2026_48523() -> None:
    """PyJWT took the algorithm from the key object and forgot the list of the allowed ones."""
    signer = issuer("RS256")
    only = ("RS256",)
    by_set = verifier(published(signer.jwk("k-1"), algorithms=only))
    for by in (pinned(signer, algorithms=only), by_set):
        assert refusal(signer.token(CLAIMS, kid="k-1", signed_with="RS512"), by) == OTHER
        assert by.verify(signer.token(CLAIMS, kid="k-1")) == IDENTITY
    with pytest.raises(ValueError, match="no public key for these algorithms"):
        published(signer.jwk("k-1", alg="RS512"), algorithms=only)
    both = verifier(published(signer.jwk("k-1", alg="RS512"), algorithms=("RS256", "RS512")))
    assert refusal(signer.token(CLAIMS, kid="k-1"), both) == MISMATCH
    assert both.verify(signer.token(CLAIMS, kid="k-1", signed_with="RS512")) == IDENTITY


def test_the_curve_belongs_to_the_algorithm_A01() -> None:
    """RFC 7518 3.4: ES256 is P-256 with SHA-256, and nothing else."""
    p384 = issuer("ES384")
    with pytest.raises(ValueError, match="block 1 is no key for ES256 "):
        PinnedKeys(p384.pem(), ("ES256",))
    by = pinned(p384)
    token = p384.token(CLAIMS, alg="ES256")
    assert refusal(token, by) == MISMATCH
    with pytest.raises(ValueError, match="no public key"):
        published(issuer("ES256K").jwk("k-1"), algorithms=family("ES256"))


# --- A02: a public key is no secret ---------------------------------------------------------------


def dresses(signer: Issuer) -> dict[str, bytes]:
    """Return a public key in the forms in which one was once taken for a secret."""
    pem = signer.pem()
    der = signer.key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    ssh = signer.key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    jwk = dump(signer.jwk("k-1"))
    return {
        "CVE-2017-11424-pem": pem,
        "CVE-2022-29217-ssh": ssh,
        "CVE-2026-48526-jwk": jwk,
        "CVE-2026-102268-crlf": pem.replace(b"\n", b"\r\n"),
        "CVE-2026-102268-spaces": b"  \n" + pem.replace(b"\n", b" \n ") + b"\t",
        "CVE-2026-102268-one-line": pem.replace(b"\n", b" "),
        "CVE-2026-102273-wrapped-jwk": dump({"keys": [signer.jwk("k-1")]}),
        "CVE-2026-102273-nested-jwk": dump([{"a": {"b": signer.jwk("k-1")}}]),
        "CVE-2026-102273-quoted-jwk": json.dumps(jwk.decode()).encode(),
        "der": der,
        "der-base64": base64url(der).encode(),
    }


@pytest.mark.parametrize("dress", dresses(issuer("RS256")).keys())
@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_an_hmac_with_the_public_key_A02(algorithm: str, dress: str) -> None:
    signer = issuer(algorithm)
    key = dresses(signer)[dress]
    head = base64url(dump({"alg": "HS256", "typ": "JWT", "kid": "k-1"}))
    signed = f"{head}.{base64url(dump(CLAIMS))}"
    token = f"{signed}.{base64url(hmac.digest(key, signed.encode(), 'sha256'))}"
    by_set = verifier(published(signer.jwk("k-1"), algorithms=family(algorithm)))
    for by in (pinned(signer), by_set):
        assert refusal(token, by) == OTHER
    # And it cannot be made the secret, whatever it is dressed as.
    text = key.decode("utf-8", "surrogateescape")
    assert secret_problem(text) is not None
    with pytest.raises(SettingsError):
        SharedSecret(text)


def test_a_shared_key_in_a_set_CVE_2026_102266() -> None:
    """An oct key, empty or not, would make everybody who reads the set an issuer."""
    for k in ("", base64url(b"x" * 40)):
        with pytest.raises(ValueError, match="no public key"):
            published({"kty": "oct", "k": k, "kid": "k-1"}, algorithms=family("RS256"))
    signer = issuer("RS256")
    found = published(
        {"kty": "oct", "k": "", "kid": "k-2"}, signer.jwk("k-1"), algorithms=family("RS256")
    )
    assert len(found) == 1
    head = base64url(dump({"alg": "HS256", "kid": "k-2"}))
    signed = f"{head}.{base64url(dump(CLAIMS))}"
    token = f"{signed}.{base64url(hmac.digest(b'', signed.encode(), 'sha256'))}"
    assert refusal(token, verifier(found)) == OTHER
    assert refusal(signer.token(CLAIMS, kid="k-2"), verifier(found)) == UNKNOWN


def test_a_private_key_in_a_set_CVE_2026_102275() -> None:
    """Who publishes a private key by mistake must notice; PyJWT took an OKP one for public."""
    private = {"d": base64url(b"d" * 32)}
    for algorithm in ("RS256", "ES256", "EdDSA"):
        with pytest.raises(ValueError, match="no public key"):
            published(issuer(algorithm).jwk("k-1", **private), algorithms=family(algorithm))


# --- A03: keys that are too weak ------------------------------------------------------------------


def test_short_rsa_keys_A03_CVE_2025_45768() -> None:
    weak = issuer("RS256", "weak", bits=1024)
    with pytest.raises(ValueError, match="RSA keys have 2048 to 8192 bits"):
        PinnedKeys(weak.pem(), ("RS256",))
    with pytest.raises(ValueError, match="no public key"):
        published(weak.jwk("k-1"), algorithms=("RS256",))


def test_endless_rsa_keys_A03() -> None:
    huge = issuer("RS256").jwk("k-1") | {"n": base64url(b"\xff" * 2_048)}
    with pytest.raises(ValueError, match="no public key"):
        published(huge, algorithms=("RS256",))


# --- A04: names of keys ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        {"kid": "../../../../dev/null"},
        {"kid": "' UNION SELECT 'x"},
        {"kid": "k" * 4_000},
        {"kid": 7},
        {"kid": ["k-1"]},
        {"kid": "k-1", "jku": "http://127.0.0.1:9/jwks.json"},
        {"kid": "k-1", "x5u": "file:///etc/passwd"},
        {"kid": "k-1", "jwk": issuer("ES256", "a stranger").jwk("k-1")},
        {"kid": "k-1", "x5c": ["MIIB"]},
    ],
    ids=["path", "sql", "long", "number", "list", "jku", "x5u", "jwk", "x5c"],
)
def test_keys_named_by_the_token_A04_CVE_2026_48522_CVE_2026_32301(
    header: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a token names, nothing is opened for it; at most a fetch of our own is asked for."""
    signer, stranger = issuer("ES256"), issuer("ES256", "a stranger")
    found = published(signer.jwk("k-1"), signer.jwk("k-2"), algorithms=family("ES256"))
    asked: list[None] = []
    found.on_unknown = lambda: asked.append(None)
    by = verifier(found)
    good, forged = signer.token(CLAIMS, **header), stranger.token(CLAIMS, **header)

    def touched(*_args: object, **_kwargs: object) -> NoReturn:
        pytest.fail("verifying a token opened a file or a connection")

    with monkeypatch.context() as guarded:
        guarded.setattr(builtins, "open", touched)
        guarded.setattr(os, "open", touched)
        guarded.setattr(socket, "socket", touched)
        guarded.setattr(socket, "getaddrinfo", touched)
        guarded.setattr(urllib.request, "urlopen", touched)
        if header["kid"] == "k-1":
            assert by.verify(good) == IDENTITY
            assert refusal(forged, by) == MISMATCH
        else:
            assert refusal(good, by) == UNKNOWN
    # Only what could be the name of a key is worth a fetch.
    is_name = isinstance(header["kid"], str) and len(header["kid"]) <= 256
    assert len(asked) == (is_name and header["kid"] != "k-1")


def test_a_token_without_kid_needs_a_set_of_one_key() -> None:
    signer, other = issuer("EdDSA"), issuer("EdDSA", "other")
    asked: list[None] = []
    for jwk in (signer.jwk("k-1"), signer.jwk()):
        one = published(jwk, algorithms=("EdDSA",))
        one.on_unknown = lambda: asked.append(None)
        assert verifier(one).verify(signer.token(CLAIMS)) == IDENTITY
    two = published(signer.jwk("k-1"), other.jwk("k-2"), algorithms=("EdDSA",))
    two.on_unknown = lambda: asked.append(None)
    assert refusal(signer.token(CLAIMS), verifier(two)) == UNKNOWN
    assert asked == []


def test_keys_of_one_name_and_different_kinds() -> None:
    """RFC 7517 4.5: keys of different kty may share a kid."""
    p256, p384 = issuer("ES256"), issuer("ES384")
    found = published(p256.jwk("k"), p384.jwk("k"), algorithms=family("ES256"))
    assert len(found) == 2
    for signer in (p256, p384):
        assert verifier(found).verify(signer.token(CLAIMS, kid="k")) == IDENTITY


def test_a_set_that_is_not_there_yet() -> None:
    found = KeySet(("ES256",), issuer="go-falcon")
    asked: list[None] = []
    found.on_unknown = lambda: asked.append(None)
    by = verifier(found)
    assert not by.is_ready
    assert refusal(issuer("ES256").token(CLAIMS, kid="k-1"), by) == UNKNOWN
    assert refusal(issuer("ES256").token(CLAIMS), by) == UNKNOWN
    assert len(asked) == 2


# --- A05: form ------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_other_spellings_of_a_signature_A05_CVE_2026_102269_CVE_2026_102270(algorithm: str) -> None:
    """One token has one spelling, or a list of revoked ones could be walked around."""
    signer = issuer(algorithm)
    token = signer.token(CLAIMS)
    by = pinned(signer)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    at = alphabet.index(token[-1])
    spare = {2: 16, 3: 4}.get(len(token.rpartition(".")[2]) % 4, 1)
    for character in alphabet[at + 1 : at + spare]:
        assert refusal(token[:-1] + character, by) == "base64url is not canonical"
    for other in (token + "=", token + "==", token + "\n", token.replace("_", "/", 1) + "="):
        assert refusal(other, by) == "token is not in compact form"
    assert by.verify(token) == IDENTITY


@pytest.mark.parametrize(
    "header",
    [{"crit": ["x"], "x": 1}, {"crit": []}, {"b64": False, "crit": ["b64"]}, {"b64": False}],
    ids=["CVE-2026-32597", "empty", "GHSA-w7vc", "b64"],
)
def test_extensions_A05(header: dict[str, object]) -> None:
    signer = issuer("ES256")
    expected = "header has an unsupported extension"
    assert refusal(signer.token(CLAIMS, **header), pinned(signer)) == expected
    assert refusal(signer.token(CLAIMS, typ="JWE"), pinned(signer)) == "typ is not JWT"


def test_extensions_are_refused_before_the_signature_is_computed_A05_GHSA_w7vc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signer = issuer("ES256")
    by = pinned(signer)
    token = signer.token(CLAIMS, b64=False, crit=["b64"])

    def computed(*_args: object) -> NoReturn:
        pytest.fail("a signature was computed")

    monkeypatch.setattr(keys, "_is_signed", computed)
    assert refusal(token, by) == "header has an unsupported extension"


def test_the_issuer_is_compared_as_a_whole_CVE_2024_53861() -> None:
    signer = issuer("ES256")
    for iss in ("go", "falcon", "go-falcon-2", "", ["go-falcon"]):
        token = signer.token(CLAIMS | {"iss": iss})
        assert refusal(token, pinned(signer)) == "iss is not the configured issuer"


def test_claims_are_not_read_before_the_signature_fits_A08_CVE_2026_101918(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signer, stranger = issuer("ES256"), issuer("ES256", "a stranger")
    by = pinned(signer)
    forged = stranger.token(b"[" * 2_000)
    unsigned = f"{base64url(dump({'alg': 'none'}))}.{base64url(dump(CLAIMS))}.AA"
    read: list[str] = []

    def noted(segment: str) -> dict[str, object]:
        read.append(segment)
        return parse_object(segment)

    monkeypatch.setattr(keys, "parse_object", noted)

    def claims_read(_segment: str) -> NoReturn:
        pytest.fail("the claims of a forged token were read")

    monkeypatch.setattr("falcon_fast.auth.parse_object", claims_read)
    assert refusal(forged, by) == MISMATCH
    assert refusal(unsigned, by) == OTHER
    assert read == [forged.partition(".")[0], unsigned.partition(".")[0]]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_signatures_of_any_length_CVE_2026_102274(algorithm: str) -> None:
    """None of them may raise anything but AuthError."""
    signer = issuer(algorithm)
    by = pinned(signer)
    signed = signer.token(CLAIMS).rpartition(".")[0]
    length = len(signer.signature(b""))
    for size in (1, 2, length - 1, length, length + 1, 2 * length, 4_000):
        for octet in (b"\0", b"\xff"):
            assert refusal(f"{signed}.{base64url(octet * size)}", by) == MISMATCH


def test_a_library_that_raises_is_a_signature_that_does_not_match_CVE_2026_102274(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signer = issuer("ES256")
    by = pinned(signer)

    def raising(*_args: object) -> NoReturn:
        raise ValueError("an odd signature")

    monkeypatch.setattr(jwt.algorithms.ECAlgorithm, "verify", raising)
    assert refusal(signer.token(CLAIMS), by) == MISMATCH


def test_the_version_of_pyjwt_has_a_floor() -> None:
    """Weaknesses that are known by their number only are mended in 2.15.1."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "pyjwt[crypto]>=2.15.1" in project["dependencies"]
    assert tuple(map(int, jwt.__version__.split(".")[:3])) >= (2, 15, 1)


# --- A17: keys that come and go -------------------------------------------------------------------


def test_a_key_set_is_replaced_as_a_whole_A17() -> None:
    old, new = issuer("ES256", "old"), issuer("ES256", "new")
    found = published(old.jwk("2024"), algorithms=("ES256",))
    by = verifier(found)
    assert by.verify(old.token(CLAIMS, kid="2024")) == IDENTITY
    assert refusal(new.token(CLAIMS, kid="2025"), by) == UNKNOWN
    assert found.replace(key_set(old.jwk("2024"), new.jwk("2025"))) == 2
    assert by.verify(old.token(CLAIMS, kid="2024")) == IDENTITY
    assert by.verify(new.token(CLAIMS, kid="2025")) == IDENTITY
    assert found.replace(key_set(new.jwk("2025"))) == 1
    # Its header is remembered; the key is not.
    assert refusal(old.token(CLAIMS, kid="2024"), by) == UNKNOWN
    assert by.verify(new.token(CLAIMS, kid="2025")) == IDENTITY


def test_names_of_keys_belong_to_their_issuer_A17_CVE_2026_49998() -> None:
    """Two issuers may call their keys the same; a key of one must not speak for the other."""
    ours, theirs = issuer("ES256"), issuer("ES256", "another issuer")
    mine = published(ours.jwk("k-1"), algorithms=("ES256",), issuer="go-falcon")
    other = published(theirs.jwk("k-1"), algorithms=("ES256",), issuer="elsewhere")
    assert sorted(mine._keys) == [("go-falcon", "k-1")]
    assert sorted(other._keys) == [("elsewhere", "k-1")]
    by = TokenVerifier(other, issuer="elsewhere", clock=FakeClock(NOW))
    claims = CLAIMS | {"iss": "elsewhere"}
    assert by.verify(theirs.token(claims, kid="k-1")) == IDENTITY
    assert refusal(ours.token(claims, kid="k-1"), by) == MISMATCH
    assert refusal(theirs.token(CLAIMS, kid="k-1"), by) == "iss is not the configured issuer"
    assert refusal(theirs.token(CLAIMS, kid="k-1"), verifier(mine)) == MISMATCH


def test_remembered_headers_are_bounded() -> None:
    signer = issuer("ES256")
    found = PinnedKeys(signer.pem(), ("ES256",))
    by = verifier(found)
    for number in range(keys.REMEMBERED_HEADERS + 10):
        assert by.verify(signer.token(CLAIMS, kid=str(number))) == IDENTITY
    assert len(found._headers) == keys.REMEMBERED_HEADERS


def test_headers_of_forged_tokens_are_not_remembered() -> None:
    found = PinnedKeys(issuer("ES256").pem(), ("ES256",))
    stranger = issuer("ES256", "a stranger")
    assert refusal(stranger.token(CLAIMS, kid="x"), verifier(found)) == MISMATCH
    assert found._headers == {}


# --- key sets that are broken ---------------------------------------------------------------------

GOOD = issuer("ES256").jwk("good")


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"keys": null}',
        b'{"keys": {}}',
        b'{"keys": "x"}',
        b"\xff",
        b"[" * 100_000,
        b'{"keys":' + b"[" * 100_000,
        key_set() + b"x",
        b'{"keys":[],"keys":[]}',
        b"<html>",
    ],
    ids=ascii,
)
def test_what_is_no_key_set(document: bytes) -> None:
    found = published(GOOD, algorithms=("ES256",))
    with pytest.raises(ValueError, match="not a JSON Web Key Set"):
        found.replace(document)
    assert verifier(found).verify(issuer("ES256").token(CLAIMS, kid="good")) == IDENTITY


@pytest.mark.parametrize(
    "jwk",
    [
        None,
        7,
        "key",
        [],
        {},
        {"kty": None},
        {"kty": "EC"},
        {"kty": "XX"},
        {"kty": ["EC"]},
        GOOD | {"x": ""},
        GOOD | {"x": None},
        GOOD | {"x": 7},
        GOOD | {"x": "é"},
        GOOD | {"x": "A" * 43},
        GOOD | {"crv": "P-384"},
        GOOD | {"crv": None},
        GOOD | {"use": "enc"},
        GOOD | {"use": None},
        GOOD | {"key_ops": ["sign"]},
        GOOD | {"key_ops": "verify"},
        GOOD | {"alg": "ES384"},
        GOOD | {"alg": "none"},
        GOOD | {"alg": 7},
        issuer("RS256").jwk("k"),
        issuer("RS256").jwk("k", n=""),
        issuer("EdDSA").jwk("k"),
    ],
    ids=ascii,
)
def test_keys_that_are_passed_over(jwk: object) -> None:
    """One key that cannot be used takes none of the others with it."""
    document = dump({"keys": [jwk, GOOD]})
    found = KeySet(("ES256",), issuer="go-falcon")
    assert found.replace(document) == 1
    assert verifier(found).verify(issuer("ES256").token(CLAIMS, kid="good")) == IDENTITY
    with pytest.raises(ValueError, match="no public key for these algorithms"):
        found.replace(dump({"keys": [jwk]}))
    assert len(found) == 1


def test_too_many_keys() -> None:
    found = KeySet(("ES256",), issuer="go-falcon")
    with pytest.raises(ValueError, match="more than 64 keys"):
        found.replace(key_set(*[GOOD | {"kid": str(n)} for n in range(65)]))
    assert found.replace(key_set(*[GOOD | {"kid": str(n)} for n in range(64)])) == 64


def test_a_name_that_is_too_long_is_none() -> None:
    found = published(GOOD | {"kid": "k" * 257}, algorithms=("ES256",))
    assert verifier(found).verify(issuer("ES256").token(CLAIMS)) == IDENTITY
    assert refusal(issuer("ES256").token(CLAIMS, kid="good"), verifier(found)) == UNKNOWN


# --- A18: anything at all -------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
MEMBERS = st.sampled_from(["kty", "crv", "x", "y", "n", "e", "use", "alg", "kid", "key_ops", "d"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(MEMBERS, JSON, max_size=3), max_size=3), st.booleans())
def test_any_key_set_A18(changes: list[dict[str, object]], is_rsa: bool) -> None:
    """Only ValueError, and never a key that was not in the set."""
    signer = issuer("RS256" if is_rsa else "ES256")
    found = KeySet(family(signer.algorithm), issuer="go-falcon")
    document = json.dumps({"keys": [signer.jwk("k") | change for change in changes]}).encode()
    try:
        found.replace(document)
    except ValueError:
        assert len(found) == 0
    stranger = issuer(signer.algorithm, "a stranger")
    with pytest.raises(AuthError):
        verifier(found).verify(stranger.token(CLAIMS, kid="k"))


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jwk", "x"]), JSON, max_size=3
    ),
    st.binary(max_size=80),
)
def test_any_header_and_signature_A18(header: dict[str, object], signature: bytes) -> None:
    head = base64url(json.dumps({"alg": "ES256", "kid": "k"} | header).encode())
    token = f"{head}.{base64url(dump(CLAIMS))}.{base64url(signature)}"
    found = published(issuer("ES256").jwk("k"), algorithms=family("ES256"))
    for by in (verifier(found), pinned(issuer("ES256"))):
        with pytest.raises(AuthError):
            by.verify(token)


def test_every_changed_bit_A18() -> None:
    signer = issuer("EdDSA")
    by = pinned(signer)
    token = signer.token(CLAIMS)
    for at in range(len(token)):
        changed = token[:at] + chr(ord(token[at]) ^ 1) + token[at + 1 :]
        with pytest.raises(AuthError):
            by.verify(changed)


# --- PEM files ------------------------------------------------------------------------------------

CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    "pem, problem",
    [
        (b"", "it is not a public key in PEM format"),
        (b"ssh-ed25519 AAAA", "it is not a public key in PEM format"),
        (issuer("ES256").pem()[:-30], "it is not a public key in PEM format"),
        (issuer("ES256").pem() + issuer("ES256").pem()[:60], "it is not a public key in PEM"),
        (issuer("ES256").private_pem(), "block 1 is a private key, which belongs to the issuer"),
        (issuer("ES256").pem() + issuer("ES256").private_pem(), "block 2 is a private key"),
        (CERTIFICATE, "block 1 is certificate, not a public key (its key: openssl x509"),
        (CERTIFICATE.replace(b"CERTIFICATE", b"DH PARAMETERS"), "block 1 is dh parameters, not"),
        (issuer("RS256").pem(), "block 1 is no key for ES256 "),
        (issuer("ES256").pem() + issuer("EdDSA").pem(), "block 2 is no key for ES256 "),
        (issuer("ES256").pem().replace(b"M", b"N"), "block 1 is no key for ES256 "),
        (issuer("ES256").pem() * 9, "it has more than 8 keys"),
        (issuer("ES256").pem() + b" " * 65_536, "it has more than 65536 bytes"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_files_that_are_no_public_keys(pem: bytes, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        PinnedKeys(pem, ("ES256",))
    path = tmp_path / "key.pem"
    path.write_bytes(pem)
    with pytest.raises(SettingsError) as caught:
        keys_of(Settings(jwt_public_key=str(path), jwt_algorithms=("ES256",)))
    (line,) = caught.value.problems
    assert line.startswith(f"JWT_PUBLIC_KEY: {str(path)!r}: ")
    assert problem[:40] in line
    assert "MII" not in line


def test_text_around_the_keys_of_a_file() -> None:
    signer = issuer("ES256")
    found = PinnedKeys(b"# the issuer's key\r\n" + signer.pem() + b"\n# end\n", ("ES256",))
    assert verifier(found).verify(signer.token(CLAIMS)) == IDENTITY


# --- from the settings ----------------------------------------------------------------------------


def test_keys_as_the_settings_say(tmp_path: Path) -> None:
    signer = issuer("ES256")
    path = tmp_path / "key.pem"
    path.write_bytes(signer.pem())
    by_file = Settings(jwt_public_key=str(path), jwt_algorithms=("ES256",))
    assert verifier(keys_of(by_file)).verify(signer.token(CLAIMS)) == IDENTITY
    by_url = Settings(jwt_jwks_url="https://issuer.example/jwks", jwt_algorithms=("ES256",))
    found = keys_of(dataclasses.replace(by_url, jwt_issuer="them"))
    assert isinstance(found, KeySet)
    assert not found.is_ready
    found.replace(key_set(signer.jwk("k")))
    assert list(found._keys) == [("them", "k")]
    assert isinstance(keys_of(Settings(jwt_secret="x" * 32)), SharedSecret)
    with pytest.raises(SettingsError, match="No such file"):
        keys_of(Settings(jwt_public_key=str(tmp_path / "none"), jwt_algorithms=("ES256",)))


@given(st.binary(max_size=150), st.binary(max_size=300))
def test_our_mac_is_hmac(key: bytes, text: bytes) -> None:
    assert keys._Mac(key).digest(text) == hmac.digest(key, text, "sha256")
