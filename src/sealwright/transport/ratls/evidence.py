"""The extension of an attested certificate: evidence and claims buffer, as bytes. Spec: docs/spec/attested-tls.md.

The claims buffer names the certificate's key and a nonce; report data is its SHA-256, so that evidence made for one
key proves nothing of another.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Literal, NoReturn, Self

from sealwright.crypto.canonical import parse_json
from sealwright.crypto.cbor import CborValue, Tagged, decode, encode
from sealwright.crypto.encoding import b64url_decode
from sealwright.errors import EvidenceFormatError, VerificationError
from sealwright.evidence.envelope import EvidenceEnvelope

MAX_EXTENSION = 64 * 1024  # bytes
MAX_CLAIMS = 4096
MAX_NONCE = 512
REPORT_DATA_SIZE = 64
INTEL_QUOTE = 60000  # CBOR tag: SGX and TDX quotes
MEDIA_TYPE = "application/vnd.sealwright.attested-tls.v1+cbor"
EVIDENCE = 4  # CMW indicator: bit 2

_HASHES = {1: "sha256", 7: "sha384", 8: "sha512"}  # IANA, named information
_SHA256 = 1
_TDX = 0x81  # tee_type


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """A claims buffer, parsed."""

    pubkey_hash: tuple[int, bytes]  # algorithm, digest of the SubjectPublicKeyInfo
    nonce: bytes | None
    buffer: bytes  # as received

    @classmethod
    def make(cls, spki: bytes, nonce: bytes | None) -> Self:
        """Return the claims of a key, given as DER, and a nonce."""
        pubkey_hash = (_SHA256, hashlib.sha256(spki).digest())
        claims = {"pubkey-hash": encode(pubkey_hash)}
        if nonce is not None:
            claims["nonce"] = nonce
        return cls(pubkey_hash=pubkey_hash, nonce=nonce, buffer=encode(claims))

    @classmethod
    def parse(cls, buffer: bytes) -> Self:
        """Parse a claims buffer; claims that are not known are passed over.

        Raises:
            EvidenceFormatError: `malformed-claims`, or what strict CBOR refuses.
        """
        claims = decode(buffer, limit=MAX_CLAIMS, error=EvidenceFormatError)
        if not isinstance(claims, dict) or not all(
            isinstance(name, str) and isinstance(value, bytes) for name, value in claims.items()
        ):
            _malformed("claims are a map from text to bytes")
        nonce = claims.get("nonce")
        if "pubkey-hash" not in claims or not (nonce is None or 1 <= len(nonce) <= MAX_NONCE):
            _malformed(f"there is a pubkey-hash, and a nonce has 1 to {MAX_NONCE} bytes")
        return cls(pubkey_hash=_hash_entry(claims["pubkey-hash"]), nonce=nonce, buffer=buffer)

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the evidence has to hold."""
        return hashlib.sha256(self.buffer).digest().ljust(REPORT_DATA_SIZE, b"\0")

    def check_key(self, spki: bytes) -> None:
        """Prove that the claims name this key, given as DER. Raises VerificationError `key-not-attested`."""
        algorithm, digest = self.pubkey_hash
        if not hmac.compare_digest(hashlib.new(_HASHES[algorithm], spki).digest(), digest):
            raise VerificationError(
                "the evidence was made for another key than the certificate's",
                code="key-not-attested",
                stage="key",
            )


def _hash_entry(raw: bytes) -> tuple[int, bytes]:
    entry = decode(raw, limit=128, error=EvidenceFormatError)
    if not isinstance(entry, list) or len(entry) != 2:
        _malformed("pubkey-hash is an algorithm with its digest")
    algorithm, digest = entry
    if isinstance(algorithm, bool) or not isinstance(algorithm, int) or algorithm not in _HASHES:
        _malformed("pubkey-hash is made with SHA-256, SHA-384 or SHA-512")
    if not isinstance(digest, bytes) or len(digest) != hashlib.new(_HASHES[algorithm]).digest_size:
        _malformed("pubkey-hash has the length of its algorithm")
    return algorithm, digest


def encode_extension(envelope: EvidenceEnvelope, claims: Claims) -> bytes:
    """Return the extension: a bare SGX or TDX quote under Intel's tag, else a CMW record with the whole envelope.

    Raises:
        ValueError: over 64 KiB.
    """
    if _is_bare_quote(envelope):
        raw = encode(Tagged(INTEL_QUOTE, [envelope.evidence, claims.buffer]))
    else:
        raw = encode([MEDIA_TYPE, encode([envelope.encode(), claims.buffer]), EVIDENCE])
    if len(raw) > MAX_EXTENSION:
        raise ValueError(f"evidence of {len(raw)} bytes does not fit into a certificate: {MAX_EXTENSION}")
    return raw


def decode_extension(raw: bytes) -> tuple[EvidenceEnvelope, Claims]:
    """Return evidence and claims of an extension.

    Raises:
        EvidenceFormatError: `too-large`, `malformed-claims`, `unsupported-evidence`, or what the parts refuse.
    """
    if raw[:1] == b"[":
        return _from_record(_json_record(raw))
    item = decode(raw, limit=MAX_EXTENSION, tags=(INTEL_QUOTE,), error=EvidenceFormatError)
    if isinstance(item, Tagged):
        quote, buffer = _pair(item.value)
        return _quote(quote), Claims.parse(buffer)
    return _from_record(item)


def _is_bare_quote(envelope: EvidenceEnvelope) -> bool:
    """Say whether nothing is lost when only the evidence travels."""
    bare = EvidenceEnvelope(type=envelope.type, evidence=envelope.evidence, endorsements=())
    return envelope.type in ("sgx", "tdx") and envelope == bare


def _quote(quote: bytes) -> EvidenceEnvelope:
    version, tee = int.from_bytes(quote[:2], "little"), int.from_bytes(quote[4:8], "little")
    # In version 3, which is SGX alone, the second field is reserved.
    if len(quote) < 48 or version not in (3, 4, 5) or (version != 3 and tee not in (0, _TDX)):
        raise EvidenceFormatError("neither an SGX nor a TDX quote", code="unsupported-evidence")
    kind: Literal["sgx", "tdx"] = "tdx" if version != 3 and tee == _TDX else "sgx"
    return EvidenceEnvelope(type=kind, evidence=quote, endorsements=())


def _from_record(record: CborValue) -> tuple[EvidenceEnvelope, Claims]:
    if not isinstance(record, list) or len(record) not in (2, 3) or record[2:] not in ([], [EVIDENCE]):
        _malformed("not a CMW record of evidence")
    if record[0] != MEDIA_TYPE or not isinstance(record[1], bytes):
        raise EvidenceFormatError("a CMW record of a type that is not known", code="unsupported-evidence")
    envelope, buffer = _pair(decode(record[1], limit=MAX_EXTENSION, error=EvidenceFormatError))
    return EvidenceEnvelope.parse(envelope), Claims.parse(buffer)


def _json_record(raw: bytes) -> CborValue:
    record = parse_json(raw, limit=MAX_EXTENSION, error=EvidenceFormatError)
    if len(record) < 2 or not isinstance(record[1], str):
        _malformed("not a CMW record of evidence")
    return [record[0], b64url_decode(record[1], error=EvidenceFormatError), *record[2:]]


def _pair(value: CborValue) -> tuple[bytes, bytes]:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(one, bytes) for one in value):
        _malformed("not a pair of evidence and claims buffer")
    return value[0], value[1]


def _malformed(what: str) -> NoReturn:
    raise EvidenceFormatError(f"not an attested certificate: {what}", code="malformed-claims")
