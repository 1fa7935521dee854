"""Keys that tokens are checked with: settings, a PEM file or a key set -> keys, for `auth`.

Which kind of key, and which algorithms, is fixed by the settings at the start. A token's header
chooses among the keys of one family of algorithms and no further: nothing in it names a file, an
address or a key of its own. PyJWT reads the keys and computes; its client for key sets is not used.
"""

from __future__ import annotations

import abc
import hashlib
import hmac
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from jwt.algorithms import Algorithm, AllowedKeys, HMACAlgorithm, get_default_algorithms

from falcon_fast.errors import SettingsError
from falcon_fast.jose import check_header, decode, parse_json, parse_object, refuse
from falcon_fast.settings import Settings, secret_problem

__all__ = [
    "HMAC",
    "KeySet",
    "Keys",
    "PinnedKeys",
    "SharedSecret",
    "keys_of",
    "signing_key",
]

HMAC: Final = "HS256"

MAX_KEYS: Final = 64
"""Keys of one file or set; an issuer has two or three, and each costs memory."""

MAX_PINNED_KEYS: Final = 8
"""Keys of a PEM file: they have no names, so a forged token costs a check with each of them."""

MAX_PEM_BYTES: Final = 65_536
MAX_KEY_BITS: Final = 8_192
"""A check with a longer RSA key takes milliseconds."""

MAX_KEY_ID_CHARACTERS: Final = 256

REMEMBERED_HEADERS: Final = 64
"""Headers of good tokens that are not read again: an issuer writes the same one each time."""

_SIGNATURE_CHARACTERS: Final = 43
"""The 32 bytes of HMAC-SHA-256 in base64url."""

# What go-falcon and PyJWT write, byte for byte: the header of nearly every token, in advance.
_USUAL_HEADERS: Final = frozenset({"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"})

_PEM_BLOCK: Final = re.compile(
    rb"-----BEGIN ([A-Z0-9 ]{1,40})-----\s[A-Za-z0-9+/=\s]{1,16384}-----END \1-----"
)
_PEM_BEGIN: Final = re.compile(rb"-----BEGIN")

_Key: TypeAlias = AllowedKeys

_BLOCK: Final = 64
"""Octets in which SHA-256 works."""

_UNUSABLE: Final = (ValueError, TypeError, KeyError, UnsupportedAlgorithm, jwt.PyJWTError)
"""What reading a key of another kind leads to, by its kind and the version of the library."""


class Keys(Protocol):
    """What checks the signature of a token."""

    @property
    def is_ready(self) -> bool:
        """Whether there are keys at all; a key set may not have been fetched yet."""

    def check(self, header: str, signing_input: str, signature: str) -> None:
        """Check header and signature.

        Args:
            header: The first segment.
            signing_input: The first two segments with the dot between them.
            signature: The third segment. The alphabet of all three has been checked.

        Raises:
            AuthError: The token is not signed with a key of these, or its header is refused.
        """


# --- a shared secret -----------------------------------------------------------------------------


class SharedSecret:
    """HS256 with the secret that the issuer has too, and for a while the one before it.

    Args:
        secret: At least 32 bytes.
        previous: What the issuer signed with before; None if there is none.

    Raises:
        SettingsError: A secret is too short or is a key of another kind.
    """

    __slots__ = ("_mac", "_previous")

    def __init__(self, secret: str, previous: str | None = None) -> None:
        self._mac = _Mac(signing_key(secret))
        self._previous = None
        if previous is not None:
            self._previous = _Mac(signing_key(previous, setting="JWT_SECRET_PREVIOUS"))

    @property
    def is_ready(self) -> bool:
        """See `Keys`."""
        return True

    def check(self, header: str, signing_input: str, signature: str) -> None:
        """See `Keys`."""
        # The signature comes before any parsing, so that only the issuer's own JSON is read. The
        # algorithm is ours and fixed; what the header says cannot choose another.
        if len(signature) != _SIGNATURE_CHARACTERS:
            refuse("signature is not of HS256")
        signed, given = signing_input.encode(), decode(signature)
        if not hmac.compare_digest(given, self._mac.digest(signed)) and (
            self._previous is None or not hmac.compare_digest(given, self._previous.digest(signed))
        ):
            refuse("signature does not match")
        if header not in _USUAL_HEADERS:
            members = parse_object(header)
            if members.get("alg") != HMAC:
                refuse("alg is not HS256")
            check_header(members)


class _Mac:
    """HMAC-SHA256 (RFC 2104 section 2) with the key already in it.

    A copy of `hmac.new` costs twice as much for a token: OpenSSL's object has more to copy than the
    two hashes that it consists of.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        if len(key) > _BLOCK:
            key = hashlib.sha256(key).digest()
        key = key.ljust(_BLOCK, b"\0")
        self._inner = hashlib.sha256(bytes(octet ^ 0x36 for octet in key))
        self._outer = hashlib.sha256(bytes(octet ^ 0x5C for octet in key))

    def digest(self, text: bytes) -> bytes:
        """Return the 32 octets for a text."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(text)
        outer.update(inner.digest())
        return outer.digest()


def signing_key(secret: str, *, setting: str = "JWT_SECRET") -> bytes:
    """Turn a secret into the key, past our own check for keys of other kinds and PyJWT's.

    Args:
        secret: The text.
        setting: Where it is from, for the problem.

    Raises:
        SettingsError: It is too short or is a key of another kind.
    """
    problem = secret_problem(secret)
    if problem is None:
        # surrogateescape gives back the very bytes that were in the environment.
        key = secret.encode("utf-8", "surrogateescape")
        try:
            return HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(key)
        except jwt.InvalidKeyError:
            problem = "it is a key or a certificate, not a secret"
    raise SettingsError([f"{setting}: {problem}"])


# --- public keys ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key, ready for the algorithms it may be used with."""

    by_algorithm: dict[str, _Key]
    name: str | None = None


class _PublicKeys(abc.ABC):
    """Signatures of one asymmetric family; who inherits says which keys a token may mean."""

    __slots__ = ("_algorithms", "_headers")

    def __init__(self, algorithms: Iterable[str]) -> None:
        self._algorithms = _algorithms(algorithms)
        self._headers: dict[str, tuple[str, str | None]] = {}

    def check(self, header: str, signing_input: str, signature: str) -> None:
        """See `Keys`."""
        name, kid = self._headers.get(header) or self._read(header)
        given, signed = decode(signature), signing_input.encode()
        algorithm = self._algorithms[name]
        for key in self._candidates(name, kid):
            if _is_signed(algorithm, key, signed, given):
                break
        else:
            refuse("signature does not match")
        if header not in self._headers and len(self._headers) < REMEMBERED_HEADERS:
            self._headers[header] = name, kid

    def _read(self, header: str) -> tuple[str, str | None]:
        members = parse_object(header)
        name = members.get("alg")
        if not isinstance(name, str) or name not in self._algorithms:
            refuse("alg is not of the configured family")
        check_header(members)
        kid = members.get("kid")
        return name, kid if isinstance(kid, str) and len(kid) <= MAX_KEY_ID_CHARACTERS else None

    @abc.abstractmethod
    def _candidates(self, name: str, kid: str | None) -> Iterable[_Key]:
        """Return the keys that a token with an algorithm and a key id may be signed with."""


class PinnedKeys(_PublicKeys):
    """The public keys of a PEM file. They have no names, so each that fits is tried.

    Args:
        pem: One or several blocks ``PUBLIC KEY`` or ``RSA PUBLIC KEY``.
        algorithms: Of one asymmetric family.

    Raises:
        ValueError: Something in it is not a public key for these algorithms; says what.
    """

    __slots__ = ("_keys",)

    def __init__(self, pem: bytes, algorithms: Iterable[str]) -> None:
        super().__init__(algorithms)
        self._keys = list(_from_pem(pem, self._algorithms))

    @property
    def is_ready(self) -> bool:
        """See `Keys`."""
        return True

    def __len__(self) -> int:
        return len(self._keys)

    def _candidates(self, name: str, kid: str | None) -> Iterable[_Key]:
        return [key.by_algorithm[name] for key in self._keys if name in key.by_algorithm]


class KeySet(_PublicKeys):
    """The public keys that an issuer publishes as a JSON Web Key Set (RFC 7517), by their names.

    Keys are kept by issuer and name: a name says nothing without knowing whose it is.

    Args:
        algorithms: Of one asymmetric family.
        issuer: Whose keys they are.

    Attributes:
        on_unknown: Called when a token is refused because its key is not here; must return at once.
    """

    __slots__ = ("_issuer", "_keys", "on_unknown")

    def __init__(self, algorithms: Iterable[str], *, issuer: str) -> None:
        super().__init__(algorithms)
        self._issuer = issuer
        self._keys: dict[tuple[str, str | None], list[PublicKey]] = {}
        self.on_unknown: Callable[[], None] = _nothing

    @property
    def is_ready(self) -> bool:
        """See `Keys`."""
        return bool(self._keys)

    def __len__(self) -> int:
        return sum(map(len, self._keys.values()))

    def replace(self, document: bytes) -> int:
        """Take over a key set in place of the keys that are here.

        Args:
            document: The JSON text. Keys for other uses and of other families are passed over.

        Returns:
            How many keys it has that can be used.

        Raises:
            ValueError: It is no key set, or has no key that can be used; the keys stay.
        """
        entries = _entries(document)
        if entries is None:
            raise ValueError("it is not a JSON Web Key Set")
        if len(entries) > MAX_KEYS:
            raise ValueError(f"it has more than {MAX_KEYS} keys")
        keys: dict[tuple[str, str | None], list[PublicKey]] = {}
        for entry in entries:
            key = _from_jwk(entry, self._algorithms)
            if key is not None:
                keys.setdefault((self._issuer, key.name), []).append(key)
        if not keys:
            raise ValueError("it has no public key for these algorithms")
        self._keys = keys
        return len(self)

    def _candidates(self, name: str, kid: str | None) -> Iterable[_Key]:
        if kid is not None:
            found = self._keys.get((self._issuer, kid))
        elif len(self) == 1:
            # RFC 7515 4.1.4: kid is optional; without it there must be nothing to choose.
            (found,) = self._keys.values()
        else:
            found = None
        if found is None:
            # Of several keys without a name given, another fetch would not choose one either.
            if kid is not None or not self._keys:
                self.on_unknown()
            refuse("kid is not of a known key")
        return [key.by_algorithm[name] for key in found if name in key.by_algorithm]


def _nothing() -> None:
    """Stand in for `KeySet.on_unknown` until somebody fetches keys."""


def _algorithms(names: Iterable[str]) -> dict[str, Algorithm]:
    known = get_default_algorithms()
    return {name: known[name] for name in names}


def _is_signed(algorithm: Algorithm, key: _Key, signed: bytes, signature: bytes) -> bool:
    try:
        return algorithm.verify(signed, key, signature)
    except (ValueError, TypeError):  # what a signature of another shape has led to before
        return False


def _prepared(algorithm: Algorithm, key: object) -> _Key | None:
    """Return a public key that the algorithm can use, else None."""
    try:
        prepared: _Key = algorithm.prepare_key(key)
    except _UNUSABLE:
        return None
    if hasattr(prepared, "private_bytes") or algorithm.check_key_length(prepared) is not None:
        return None
    return prepared if getattr(prepared, "key_size", 0) <= MAX_KEY_BITS else None


def _usable(key: object, algorithms: dict[str, Algorithm]) -> PublicKey | None:
    found = {name: _prepared(algorithm, key) for name, algorithm in algorithms.items()}
    usable = {name: prepared for name, prepared in found.items() if prepared is not None}
    return PublicKey(usable) if usable else None


def _from_pem(pem: bytes, algorithms: dict[str, Algorithm]) -> Iterator[PublicKey]:
    if len(pem) > MAX_PEM_BYTES:
        raise ValueError(f"it has more than {MAX_PEM_BYTES} bytes")
    blocks = list(_PEM_BLOCK.finditer(pem))
    if not blocks or len(blocks) != len(_PEM_BEGIN.findall(pem)):
        raise ValueError("it is not a public key in PEM format")
    if len(blocks) > MAX_PINNED_KEYS:
        raise ValueError(f"it has more than {MAX_PINNED_KEYS} keys")
    for number, block in enumerate(blocks, 1):
        label = block[1].decode()
        if "PRIVATE" in label:
            raise ValueError(
                f"block {number} is a private key, which belongs to the issuer alone (the public "
                "half: openssl pkey -pubout)"
            )
        if label not in {"PUBLIC KEY", "RSA PUBLIC KEY"}:
            hint = " (its key: openssl x509 -pubkey -noout)" if "CERTIFICATE" in label else ""
            raise ValueError(f"block {number} is {label.lower()}, not a public key{hint}")
        key = _usable(block[0], algorithms)
        if key is None:
            raise ValueError(
                f"block {number} is no key for {', '.join(algorithms)} (RSA keys have 2048 to "
                f"{MAX_KEY_BITS} bits)"
            )
        yield key


def _entries(document: bytes) -> list[object] | None:
    members = parse_json(document)
    entries = members.get("keys") if members is not None else None
    return entries if isinstance(entries, list) else None


def _key_id(jwk: dict[str, object]) -> str | None:
    kid = jwk.get("kid")
    return kid if isinstance(kid, str) and len(kid) <= MAX_KEY_ID_CHARACTERS else None


# RFC 7518 6.2.2, 6.3.2, 6.4.1 and RFC 8037 2: members that only a private or shared key has.
_PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


def _from_jwk(jwk: object, algorithms: dict[str, Algorithm]) -> PublicKey | None:
    """Read a key of a set; None for what must not or cannot check tokens here."""
    if not isinstance(jwk, dict) or not _PRIVATE_MEMBERS.isdisjoint(jwk):
        return None
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list):
        return None
    if "verify" not in operations:
        return None
    meant = jwk.get("alg")
    keys: dict[str, _Key] = {}
    for name, algorithm in algorithms.items():
        if meant is not None and meant != name:
            continue
        try:
            # The algorithm is named by us: left to itself, PyJWK takes it from the key.
            key = _prepared(algorithm, jwt.PyJWK(jwk, name).key)
        except _UNUSABLE:
            continue
        if key is not None:
            keys[name] = key
    return PublicKey(keys, _key_id(jwk)) if keys else None


# --- from the settings ---------------------------------------------------------------------------


def keys_of(settings: Settings) -> SharedSecret | PinnedKeys | KeySet:
    """Return the keys that the settings name; a key set is still empty.

    Raises:
        SettingsError: They cannot be used.
    """
    if settings.jwt_jwks_url is not None:
        return KeySet(settings.algorithms, issuer=settings.jwt_issuer)
    if settings.jwt_public_key is not None:
        path = settings.jwt_public_key
        try:
            if os.path.getsize(path) > MAX_PEM_BYTES:
                raise ValueError(f"it has more than {MAX_PEM_BYTES} bytes")
            with open(path, "rb") as file:
                return PinnedKeys(file.read(), settings.algorithms)
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise SettingsError([f"JWT_PUBLIC_KEY: {path!r}: {reason}"]) from error
    return SharedSecret(settings.jwt_secret, settings.jwt_secret_previous)
