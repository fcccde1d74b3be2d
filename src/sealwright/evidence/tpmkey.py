"""Keys and signatures of TPM 2.0: TPMT_PUBLIC and TPMT_SIGNATURE, exact. TPM 2.0 Library part 2.

RSA-2048 to 4096 with exponent 65537, and NIST P-256 and P-384; symmetric part AES-CFB or none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sealwright.evidence.tpmwire import (
    ALG_AES,
    ALG_CFB,
    ALG_ECC,
    ALG_ECDSA,
    ALG_NULL,
    ALG_OAEP,
    ALG_RSA,
    ALG_RSAPSS,
    ALG_RSASSA,
    HASH_IDS,
    Bank,
    Reader,
    malformed,
    sized,
    u16,
    u32,
)

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

FIXED_TPM = 1 << 1
ST_CLEAR = 1 << 2
FIXED_PARENT = 1 << 4
SENSITIVE_DATA_ORIGIN = 1 << 5
USER_WITH_AUTH = 1 << 6
ADMIN_WITH_POLICY = 1 << 7
NO_DA = 1 << 10
ENCRYPTED_DUPLICATION = 1 << 11
RESTRICTED = 1 << 16
DECRYPT = 1 << 17
SIGN = 1 << 18
X509_SIGN = 1 << 19
_KNOWN_ATTRIBUTES = (
    FIXED_TPM | ST_CLEAR | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | ADMIN_WITH_POLICY
    | NO_DA | ENCRYPTED_DUPLICATION | RESTRICTED | DECRYPT | SIGN | X509_SIGN
)  # fmt: skip

RSA_BITS = (2048, 3072, 4096)
RSA_EXPONENT = 65537
CURVES: Mapping[int, ec.EllipticCurve] = {0x0003: ec.SECP256R1(), 0x0004: ec.SECP384R1()}
CURVE_IDS: Mapping[str, int] = {curve.name: number for number, curve in CURVES.items()}
SCHEMES: Mapping[int, str] = {
    ALG_RSASSA: "rsassa",
    ALG_RSAPSS: "rsapss",
    ALG_OAEP: "oaep",
    ALG_ECDSA: "ecdsa",
}
_SCHEME_IDS: Mapping[str, int] = {name: number for number, name in SCHEMES.items()}
_TYPE_SCHEMES = {ALG_RSA: ("rsassa", "rsapss", "oaep"), ALG_ECC: ("ecdsa",)}
_MAX_SIGNATURE = 512  # bytes: RSA-4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A signing or decryption scheme with its hash."""

    name: str  # rsassa, rsapss, ecdsa, oaep
    hash: Bank


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmtPublic:
    """TPMT_PUBLIC: the public area of an RSA or ECC key. What it says of a key is worth what vouches for its name."""

    type: int  # ALG_RSA or ALG_ECC
    nameAlg: Bank
    objectAttributes: int
    authPolicy: bytes = b""
    symmetric_bits: int = 0  # AES-CFB; 0: none
    scheme: Scheme | None = None
    keyBits: int = 0
    exponent: int = 0  # RSA, as sent: 0 stands for 65537
    curveID: int = 0
    unique: tuple[bytes, ...] = ()  # RSA: the modulus; ECC: x, y; as sent

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse a whole public area. Raises EvidenceFormatError: `malformed-tpm`, `unsupported-tpm-algorithm`."""
        reader = Reader(raw, "a TPM public area")
        public = cls._read(reader)
        reader.end()
        public.key()
        return public

    @classmethod
    def _read(cls, reader: Reader) -> Self:
        kind = reader.integer(2)
        if kind not in _TYPE_SCHEMES:
            malformed(f"a TPM key of type {kind:#06x}", code="unsupported-tpm-algorithm")
        name_alg, attributes, policy = reader.hash_name(), reader.integer(4), reader.sized(64)
        if attributes & ~_KNOWN_ATTRIBUTES:
            malformed("a TPM key has reserved attributes")
        bits, scheme = _read_symmetric(reader), _read_scheme(reader, _TYPE_SCHEMES[kind])
        key_bits = exponent = curve = 0
        if kind == ALG_RSA:
            key_bits, exponent = reader.integer(2), reader.integer(4)
            unique: tuple[bytes, ...] = (reader.sized(512),)
        else:
            curve = reader.integer(2)
            if reader.integer(2) != ALG_NULL:
                malformed("a TPM key with a key derivation scheme", code="unsupported-tpm-algorithm")
            unique = (reader.sized(48), reader.sized(48))
        return cls(
            type=kind,
            nameAlg=name_alg,
            objectAttributes=attributes,
            authPolicy=policy,
            symmetric_bits=bits,
            scheme=scheme,
            keyBits=key_bits,
            exponent=exponent,
            curveID=curve,
            unique=unique,
        )

    def encode(self) -> bytes:
        """Return the bytes that `parse` accepts, or a template for a TPM if `unique` is empty."""
        symmetric = (
            u16(ALG_AES) + u16(self.symmetric_bits) + u16(ALG_CFB) if self.symmetric_bits else u16(ALG_NULL)
        )
        scheme = (
            u16(ALG_NULL)
            if self.scheme is None
            else u16(_SCHEME_IDS[self.scheme.name]) + u16(HASH_IDS[self.scheme.hash])
        )
        own = (
            u16(self.keyBits) + u32(self.exponent)
            if self.type == ALG_RSA
            else u16(self.curveID) + u16(ALG_NULL)
        )
        parts = self.unique or ((b"",) if self.type == ALG_RSA else (b"", b""))
        head = u16(self.type) + u16(HASH_IDS[self.nameAlg]) + u32(self.objectAttributes)
        return head + sized(self.authPolicy) + symmetric + scheme + own + b"".join(map(sized, parts))

    def name(self) -> bytes:
        """Return the Name: algorithm and digest of the public area. It stands for the key with all its attributes."""
        return u16(HASH_IDS[self.nameAlg]) + hashlib.new(self.nameAlg, self.encode()).digest()

    def key(self) -> PublicKey:
        """Return the key itself.

        Raises:
            EvidenceFormatError: not a point of the curve, or a modulus or exponent of another form.
        """
        if self.type == ALG_RSA:
            return self._rsa()
        curve = CURVES.get(self.curveID)
        if curve is None:
            malformed(f"a TPM key on curve {self.curveID:#06x}", code="unsupported-tpm-algorithm")
        size = (curve.key_size + 7) // 8
        x, y = self.unique
        if not (0 < len(x) <= size and 0 < len(y) <= size):  # older TPMs leave out leading zeros
            malformed("a TPM key's point has another length than its curve")
        point = b"\x04" + x.rjust(size, b"\0") + y.rjust(size, b"\0")
        try:
            return ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
        except ValueError:
            malformed("a TPM key is not a point of its curve")

    def _rsa(self) -> rsa.RSAPublicKey:
        (modulus,) = self.unique
        number = int.from_bytes(modulus, "big")
        if self.keyBits not in RSA_BITS or self.exponent not in (0, RSA_EXPONENT):
            malformed(
                f"an RSA key of {self.keyBits} bits, exponent {self.exponent}",
                code="unsupported-tpm-algorithm",
            )
        if len(modulus) * 8 != self.keyBits or number.bit_length() != self.keyBits or not number & 1:
            malformed("a TPM key's modulus has another length than its size")
        return rsa.RSAPublicNumbers(RSA_EXPONENT, number).public_key()


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmtSignature:
    """TPMT_SIGNATURE: RSASSA, RSAPSS or ECDSA."""

    scheme: Scheme
    values: tuple[bytes, ...]  # RSA: the signature; ECDSA: r, s; as sent

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse a whole signature. Raises EvidenceFormatError: `malformed-tpm`, `unsupported-tpm-algorithm`."""
        reader = Reader(raw, "a TPM signature")
        scheme = _read_scheme(reader, ("rsassa", "rsapss", "ecdsa"))
        if scheme is None:
            malformed("a TPM signature without a scheme")
        if scheme.name == "ecdsa":
            values: tuple[bytes, ...] = (reader.sized(48), reader.sized(48))
        else:
            values = (reader.sized(_MAX_SIGNATURE),)
        reader.end()
        if not all(values):
            malformed("a TPM signature is empty")
        return cls(scheme=scheme, values=values)

    def encode(self) -> bytes:
        """Return the bytes that `parse` accepts."""
        head = u16(_SCHEME_IDS[self.scheme.name]) + u16(HASH_IDS[self.scheme.hash])
        return head + b"".join(map(sized, self.values))


def _read_symmetric(reader: Reader) -> int:
    algorithm = reader.integer(2)
    if algorithm == ALG_NULL:
        return 0
    bits, mode = reader.integer(2), reader.integer(2)
    if algorithm != ALG_AES or mode != ALG_CFB or bits not in (128, 256):
        malformed("a TPM key whose symmetric part is not AES-CFB", code="unsupported-tpm-algorithm")
    return bits


def _read_scheme(reader: Reader, allowed: tuple[str, ...]) -> Scheme | None:
    number = reader.integer(2)
    if number == ALG_NULL:
        return None
    name = SCHEMES.get(number)
    if name not in allowed:
        malformed(f"a TPM scheme {number:#06x}", code="unsupported-tpm-algorithm")
    return Scheme(name=name, hash=reader.hash_name())
