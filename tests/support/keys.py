"""Issuers with asymmetric keys: they sign with `cryptography` itself, not with what is tested."""

from __future__ import annotations

import base64
import functools
import json
from typing import Final, cast

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

HASHES: Final[dict[str, type[hashes.HashAlgorithm]]] = {
    "256": hashes.SHA256,
    "384": hashes.SHA384,
    "512": hashes.SHA512,
}
CURVES: Final[dict[str, tuple[str, ec.EllipticCurve]]] = {
    "ES256": ("P-256", ec.SECP256R1()),
    "ES384": ("P-384", ec.SECP384R1()),
    "ES512": ("P-521", ec.SECP521R1()),
    "ES256K": ("secp256k1", ec.SECP256K1()),
}

PrivateKey = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)


def base64url(data: bytes) -> str:
    """Encode without padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def dump(value: object) -> bytes:
    """Write JSON; octets are taken as they are."""
    return value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()


class Issuer:
    """Somebody with a private key.

    Args:
        algorithm: what it signs with, such as ``RS256``.
        key: the private key.
    """

    def __init__(self, algorithm: str, key: PrivateKey) -> None:
        self.algorithm = algorithm
        self.key = key

    def pem(self, form: str = "SubjectPublicKeyInfo") -> bytes:
        """Return the public key in PEM; ``PKCS1`` is another form of RSA keys."""
        return self.key.public_key().public_bytes(
            serialization.Encoding.PEM, getattr(serialization.PublicFormat, form)
        )

    def private_pem(self) -> bytes:
        """Return the private key in PEM."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def jwk(self, kid: str | None = None, **members: object) -> dict[str, object]:
        """Return the public key as RFC 7517 writes it, with further members."""
        found = self._members()
        if kid is not None:
            found["kid"] = kid
        return found | members

    def _members(self) -> dict[str, object]:
        public = self.key.public_key()
        if isinstance(public, rsa.RSAPublicKey):
            numbers = public.public_numbers()
            return {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e)}
        if isinstance(public, ec.EllipticCurvePublicKey):
            point = public.public_numbers()
            size = (public.key_size + 7) // 8
            crv = next(n for n, curve in CURVES.values() if curve.name == public.curve.name)
            return {"kty": "EC", "crv": crv, "x": number(point.x, size), "y": number(point.y, size)}
        raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        crv = "Ed25519" if isinstance(public, ed25519.Ed25519PublicKey) else "Ed448"
        return {"kty": "OKP", "crv": crv, "x": base64url(raw)}

    def signature(self, signed: bytes, algorithm: str | None = None) -> bytes:
        """Sign as RFC 7518 section 3 and RFC 8037 say."""
        name = algorithm or self.algorithm
        key = self.key
        if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
            return key.sign(signed)
        digest = HASHES[name[2:5]]()
        if isinstance(key, ec.EllipticCurvePrivateKey):
            size = (key.key_size + 7) // 8
            r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(digest)))
            return r.to_bytes(size, "big") + s.to_bytes(size, "big")
        if name.startswith("PS"):
            mask = padding.MGF1(digest)
            pss = padding.PSS(mgf=mask, salt_length=digest.digest_size)
            return key.sign(signed, pss, digest)
        return key.sign(signed, padding.PKCS1v15(), digest)

    def token(self, claims: object, *, signed_with: object = None, **header: object) -> str:
        """Make a token.

        Args:
            claims: its payload, octets as they are.
            signed_with: the algorithm, if it is not the issuer's usual one.
            header: adds members to its header, or replaces them.
        """
        name = self.algorithm if signed_with is None else str(signed_with)
        head = {"alg": name, "typ": "JWT"} | header
        signed = f"{base64url(dump(head))}.{base64url(dump(claims))}"
        return f"{signed}.{base64url(self.signature(signed.encode(), name))}"


def number(value: int, size: int | None = None) -> str:
    """Write a positive integer as RFC 7518 section 2 does (Base64urlUInt)."""
    return base64url(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


@functools.cache
def issuer(algorithm: str, name: str = "the issuer", *, bits: int = 2048) -> Issuer:
    """Return an issuer; the same one for the same arguments, since keys take time to make.

    Args:
        algorithm: what it signs with.
        name: tells apart issuers of one algorithm.
        bits: of an RSA key.
    """
    if algorithm in CURVES:
        return Issuer(algorithm, ec.generate_private_key(CURVES[algorithm][1]))
    if algorithm == "EdDSA":
        return Issuer(algorithm, ed25519.Ed25519PrivateKey.generate())
    return Issuer(algorithm, _rsa(name, bits))


@functools.cache
def _rsa(name: str, bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65_537, key_size=bits)


def key_set(*keys: dict[str, object]) -> bytes:
    """Write a JSON Web Key Set."""
    return dump({"keys": cast(object, list(keys))})
