"""NVIDIA's RIM service and OCSP responder."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from hashlib import sha256

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from sealwright.collateral.need import Need
from sealwright.collateral.record import MAX_BLOB, Dates
from sealwright.collateral.sources.examine import other
from sealwright.collateral.sources.request import Answer, Request
from sealwright.crypto.canonical import parse_json
from sealwright.errors import EvidenceFormatError

_MAX_OCSP = 64 * 1024  # bytes
_MAX_RIM = 3 * 1024 * 1024  # bytes of JSON with base64 in it
_IDENTITY = re.compile(rb"<(?:\w{1,16}:)?SoftwareIdentity\s")
_VERSION = re.compile(rb'\scolloquialVersion="([0-9A-Za-z.]{1,64})"')


def request(need: Need) -> Request:
    """Return what to ask for `need`."""
    lane = need.facts.lane
    if need.kind == "nvidia-rim":
        return Request(host="nvidia_rim", path=f"/v1/rim/{need.key}", lane=lane, limit=_MAX_RIM)
    name, key, serial = need.parts
    # The responder knows certificates by SHA-384 alone. No nonce: the answer is kept and given to others.
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(
        bytes.fromhex(name), bytes.fromhex(key), int(serial, 16), SHA384()
    )
    return Request(
        host="nvidia_ocsp",
        path="/",
        headers=(("Content-Type", "application/ocsp-request"), ("Accept", "application/ocsp-response")),
        body=builder.build().public_bytes(Encoding.DER),
        lane=lane,
        limit=_MAX_OCSP,
    )


def unwrap(need: Need, answer: Answer) -> tuple[bytes, ...]:
    """Return the blobs of an answer. Raises EvidenceFormatError."""
    if need.kind == "nvidia-ocsp":
        return (answer.body,)
    match parse_json(answer.body, limit=_MAX_RIM, error=EvidenceFormatError):
        case {"id": need.key, "rim": str(text), **rest}:
            rim = _b64(text)
            if rest.get("sha256", sha256(rim).hexdigest()) != sha256(rim).hexdigest():
                raise other("a RIM that has not the digest it came with")
            return (rim,)
    raise other(f"not the RIM service's JSON for {need.key}")


def _b64(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise EvidenceFormatError("a RIM that is not base64", code="malformed-base64") from None


def examine(need: Need, blobs: Sequence[bytes]) -> Dates:
    """Return the dates of blobs that are about `need`. Raises EvidenceFormatError."""
    if len(blobs) != 1 or len(blobs[0]) > MAX_BLOB:
        raise other(f"{len(blobs)} blobs for {need.kind}, or a large one")
    return _rim(need, blobs[0]) if need.kind == "nvidia-rim" else _ocsp(need, blobs[0])


def _rim(need: Need, blob: bytes) -> Dates:
    """A RIM names its driver or VBIOS version in full, its id the same without the dots of a VBIOS."""
    versions = _VERSION.findall(blob)
    if not blob.lstrip().startswith(b"<") or len(_IDENTITY.findall(blob)) != 1 or len(versions) != 1:
        raise other("not a RIM in XML")
    wanted = need.key.rpartition("_")[2]
    if versions[0].decode().replace(".", "").lower() != wanted.replace(".", "").lower():
        raise other("a RIM of another version")
    return Dates()


def _ocsp(need: Need, blob: bytes) -> Dates:
    name, key, serial = need.parts
    try:
        response = ocsp.load_der_ocsp_response(blob)
        (single,) = response.responses
        found = (single.issuer_name_hash.hex(), single.issuer_key_hash.hex(), f"{single.serial_number:x}")
        sha384 = isinstance(single.hash_algorithm, SHA384)
        dates = Dates(issued=single.this_update_utc, next_update=single.next_update_utc)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise EvidenceFormatError("not a good OCSP response", code="unknown-endorsement") from exc
    if not sha384 or found != (name, key, serial):
        raise other("an OCSP response about another certificate")
    return dates
