"""Who issues tokens, and the keys that count for it: a JWKS that the caller has pinned. Nothing is fetched.

Spec: docs/spec/token.md.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from types import MappingProxyType
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealwright.crypto.canonical import parse_json
from sealwright.crypto.encoding import b64url_decode
from sealwright.endorsement.x509 import load_certificate
from sealwright.errors import FormatError, SettingsError
from sealwright.evidence.token import TokenKind

MAX_JWKS = 256 * 1024  # bytes
MAX_KEYS = 64
LEAST_RSA = 2048  # bits
_CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1()}

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIssuer:
    """A service whose word the caller takes, as far as its policy goes."""

    kind: TokenKind
    issuer: str  # `iss`, exactly
    audience: str = ""  # `aud`, exactly; empty: tokens have none
    keys: Mapping[str, PublicKey]  # by `kid`

    def __post_init__(self) -> None:
        if not self.issuer:
            raise ValueError("an issuer has a name")
        if self.kind == "google" and not self.audience:
            raise ValueError("tokens of Google are made for an audience: name it")


def parse_jwks(raw: bytes) -> Mapping[str, PublicKey]:
    """Return the keys of a JWKS by `kid`; from their numbers, or from their certificate where only that is there.

    Raises:
        SettingsError: `malformed-jwks`: a key without `kid` or with one that stands twice; one that is neither RSA
            of 2048 bits nor on P-256 or P-384; numbers that are not the certificate's; or no key.
    """
    match parse_json(raw, limit=MAX_JWKS, error=SettingsError):
        case {"keys": [*keys]} if 1 <= len(keys) <= MAX_KEYS:
            found = [_key(one) for one in keys]
        case _:
            raise _malformed(f"it has no list of 1 to {MAX_KEYS} keys")
    if len({kid for kid, _ in found}) != len(found):
        raise _malformed("a kid stands twice")
    return MappingProxyType(dict(found))


def key_digest(key: PublicKey) -> bytes:
    """Return SHA-256 of the key's SubjectPublicKeyInfo (32 bytes): how a policy names it."""
    return sha256(_spki(key)).digest()


def _key(jwk: Any) -> tuple[str, PublicKey]:
    match jwk:
        case {"kid": str() as kid} if kid:
            keys = [key for key in (_from_numbers(jwk), _from_certificate(jwk)) if key is not None]
        case _:
            raise _malformed("a key has no kid")
    if not keys or len({_spki(key) for key in keys}) != 1:
        raise _malformed("a key has neither numbers nor a certificate, or they differ")
    key = keys[0]
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < LEAST_RSA:
        raise _malformed(f"an RSA key is shorter than {LEAST_RSA} bits")
    if isinstance(key, ec.EllipticCurvePublicKey) and not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        raise _malformed("an EC key is on another curve than P-256 and P-384")
    return kid, key


def _from_numbers(jwk: Mapping[str, Any]) -> PublicKey | None:
    try:
        match jwk:
            case {"kty": "RSA", "n": str() as n, "e": str() as e}:
                return rsa.RSAPublicNumbers(_number(e), _number(n)).public_key()
            case {"kty": "EC", "crv": "P-256" | "P-384" as curve, "x": str() as x, "y": str() as y}:
                return ec.EllipticCurvePublicNumbers(_number(x), _number(y), _CURVES[curve]).public_key()
            case {"kty": "RSA" | "EC"}:
                return None
    except (ValueError, UnsupportedAlgorithm):
        raise _malformed("a key's numbers are no key") from None
    raise _malformed("a key is neither RSA nor EC")


def _from_certificate(jwk: Mapping[str, Any]) -> PublicKey | None:
    match jwk:
        case {"x5c": [str() as first, *_]}:
            pass
        case {"x5c": _}:
            raise _malformed("x5c is not a list of certificates")
        case _:
            return None
    try:
        key = load_certificate(base64.b64decode(first, validate=True)).public_key()
    except (binascii.Error, ValueError, UnsupportedAlgorithm, FormatError):
        raise _malformed("a certificate is not DER in base64, or its key is not known") from None
    wanted = rsa.RSAPublicKey if jwk["kty"] == "RSA" else ec.EllipticCurvePublicKey
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey) or not isinstance(key, wanted):
        raise _malformed("a certificate has a key of another kind")
    return key


def _number(text: str) -> int:
    return int.from_bytes(b64url_decode(text, error=SettingsError), "big")


def _spki(key: PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _malformed(what: str) -> SettingsError:
    return SettingsError(f"not a JWKS to pin: {what}", code="malformed-jwks")
