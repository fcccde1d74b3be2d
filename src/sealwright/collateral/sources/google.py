"""Google's launch endorsements, in a public bucket, and the root that certifies their signers."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.hazmat.primitives.serialization import Encoding

from sealwright.collateral.need import Need
from sealwright.collateral.record import Dates
from sealwright.collateral.sources.examine import other, pem_certificates
from sealwright.collateral.sources.request import Answer, Request
from sealwright.endorsement.google import MAX_ENDORSEMENT, LaunchEndorsement
from sealwright.endorsement.x509 import MAX_CERTIFICATE, load_certificate

_FIRMWARE = "ovmf_x64_csm"


def request(need: Need) -> Request:
    """Return what to ask for `need`."""
    lane = need.facts.lane
    if need.kind == "google-root":
        path = f"/cloud_integrity/GCE-cc-tcb-root_{need.key}.crt"
        return Request(host="google_pki", path=path, lane=lane, limit=2 * MAX_CERTIFICATE)
    tee, measurement = need.parts
    path = f"/gce_tcb_integrity/{_FIRMWARE}/{tee}/{measurement}.binarypb"
    return Request(host="google_storage", path=path, lane=lane, limit=MAX_ENDORSEMENT)


def unwrap(need: Need, answer: Answer) -> tuple[bytes, ...]:
    """Return the blobs of an answer; a root that comes as PEM is kept as DER. Raises EvidenceFormatError."""
    if need.kind == "google-root" and b"-----BEGIN " in answer.body[:64]:
        match pem_certificates(answer.body):
            case [certificate]:
                return (certificate.public_bytes(Encoding.DER),)
        raise other("not one certificate")
    return (answer.body,)


def examine(need: Need, blobs: Sequence[bytes]) -> Dates:
    """Return the dates of blobs that are about `need`. Raises EvidenceFormatError."""
    if len(blobs) != 1:
        raise other(f"{len(blobs)} blobs for {need.kind}")
    if need.kind == "google-root":
        load_certificate(blobs[0])
        return Dates()
    tee, measurement = need.parts
    golden = LaunchEndorsement.parse(blobs[0]).unverified
    listed = golden.sev_snp.values() if tee == "sevsnp" else [one.mrtd for one in golden.tdx]
    if bytes.fromhex(measurement) not in listed:
        raise other("an endorsement of other measurements")
    return Dates(issued=golden.timestamp)
