"""DSSE envelopes (secure-systems-lab/dsse v1.0.2) with Ed25519: one payload type for each signed thing.

The envelope itself is canonical JSON; its binary fields are standard base64 with padding, as DSSE
asks. Keys are named by `key_id`: SHA-256 of their SubjectPublicKeyInfo, hex.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealwright.crypto.canonical import MAX_JSON, canonical, parse_canonical
from sealwright.errors import FormatError, MessageFormatError, VerificationError

MAX_SIGNATURES = 16


def key_id(key: Ed25519PublicKey) -> str:
    """Return the name of a key: SHA-256 of its SubjectPublicKeyInfo, lower-case hex."""
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding: the bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A payload and signatures over it. Nothing in it is believed before `verify` has returned."""

    payload_type: str
    unverified_payload: bytes
    signatures: tuple[tuple[str, bytes], ...]  # (key id, 64-byte Ed25519 signature)

    @classmethod
    def sign(cls, payload_type: str, payload: bytes, *keys: Ed25519PrivateKey) -> Self:
        """Sign `payload` (bytes, as they stand) with each of `keys`."""
        message = pae(payload_type, payload)
        signed = tuple((key_id(key.public_key()), key.sign(message)) for key in keys)
        return cls(payload_type=payload_type, unverified_payload=payload, signatures=signed)

    @classmethod
    def parse(
        cls, raw: bytes, *, limit: int = 2 * MAX_JSON, error: type[FormatError] = MessageFormatError
    ) -> Self:
        """Parse an envelope; nothing is verified.

        Raises:
            FormatError: as `error`: not canonical JSON, or not DSSE's members.
        """
        doc = parse_canonical(raw, limit=limit, error=error)
        match doc:
            case {"payload": str(payload), "payloadType": str(kind), "signatures": list(signatures)} if (
                len(doc) == 3
            ):
                pass
            case _:
                raise error("not a DSSE envelope", code="malformed-envelope")
        if not 1 <= len(signatures) <= MAX_SIGNATURES:
            raise error(f"a DSSE envelope has 1 to {MAX_SIGNATURES} signatures", code="malformed-envelope")
        return cls(
            payload_type=kind,
            unverified_payload=_b64(payload, error),
            signatures=tuple(_signature(item, error) for item in signatures),
        )

    def encode(self) -> bytes:
        """Return the envelope as canonical JSON."""
        std = base64.b64encode
        signatures = [{"keyid": name, "sig": std(sig).decode()} for name, sig in self.signatures]
        payload = std(self.unverified_payload).decode()
        return canonical({"payload": payload, "payloadType": self.payload_type, "signatures": signatures})

    def verify(
        self,
        payload_type: str,
        keys: Iterable[Ed25519PublicKey],
        *,
        threshold: int = 1,
        stage: str = "signature",
    ) -> bytes:
        """Return the payload, proved to be signed as `payload_type` by `threshold` different keys of `keys`.

        Raises:
            VerificationError: another type, too few signatures by trusted keys, or one that fails.
        """
        if self.payload_type != payload_type:
            raise VerificationError(
                f"signed as {self.payload_type!r}, wanted {payload_type!r}",
                code="wrong-payload-type",
                stage=stage,
            )
        if threshold < 1:
            raise ValueError("at least one signature has to be wanted")
        trusted = {key_id(key): key for key in keys}
        message = pae(payload_type, self.unverified_payload)
        signers: set[str] = set()
        for name, signature in self.signatures:
            if name not in trusted or len(signers) == threshold:
                continue
            try:
                trusted[name].verify(signature, message)
            except InvalidSignature:
                raise VerificationError(
                    f"the signature by key {name[:16]}… does not hold", code="bad-signature", stage=stage
                ) from None
            signers.add(name)
        if len(signers) < threshold:
            text = (
                "no signature by a trusted key"
                if not signers
                else f"{len(signers)} of {threshold} signatures"
            )
            raise VerificationError(text, code="untrusted-signer", stage=stage)
        return self.unverified_payload


def _b64(text: str, error: type[FormatError]) -> bytes:
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise error("not base64", code="malformed-base64") from None
    if base64.b64encode(raw).decode() != text:
        raise error("not base64", code="malformed-base64")
    return raw


def _signature(item: object, error: type[FormatError]) -> tuple[str, bytes]:
    match item:
        case {"keyid": str(name), "sig": str(sig), **rest} if not rest:
            raw = _b64(sig, error)
        case _:
            raise error("not a DSSE signature", code="malformed-envelope")
    if len(raw) != 64:
        raise error("an Ed25519 signature has 64 bytes", code="malformed-envelope")
    return name, raw
