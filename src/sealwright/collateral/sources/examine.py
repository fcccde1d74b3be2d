"""Helpers to see what a blob is about. None of them proves anything."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from cryptography import x509

from sealwright.collateral.record import MAX_BLOB, Dates
from sealwright.crypto.canonical import parse_json
from sealwright.crypto.encoding import rfc3339_decode
from sealwright.endorsement.x509 import load_certificate, load_crl, pem_blocks
from sealwright.errors import EvidenceFormatError


def other(message: str) -> EvidenceFormatError:
    """Return the error for a blob that is not what was asked for."""
    return EvidenceFormatError(message, code="unknown-endorsement")


def common_name(name: x509.Name) -> str:
    """Return the common name, or nothing."""
    found = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else ""


def pem_certificates(blob: bytes) -> list[x509.Certificate]:
    """Return the certificates of a PEM text that holds nothing else. Raises EvidenceFormatError."""
    found = pem_blocks(blob)
    if any(label != "CERTIFICATE" for label, _ in found):
        raise other("a PEM text with something else than certificates")
    return [load_certificate(der, serial_zero=True) for _, der in found]


def crl_dates(blob: bytes, issuer: str) -> Dates:
    """Return the dates of a DER CRL whose issuer has the common name `issuer`. Raises EvidenceFormatError."""
    crl = load_crl(blob)
    if common_name(crl.issuer) != issuer:
        raise other(f"a CRL of {common_name(crl.issuer)[:64]!r}, not of {issuer!r}")
    return Dates(issued=crl.last_update_utc, next_update=crl.next_update_utc)


def signed_json(blob: bytes, member: str) -> Mapping[str, Any]:
    """Return `member` of a signed JSON document of Intel's. Raises EvidenceFormatError."""
    match parse_json(blob, limit=MAX_BLOB, error=EvidenceFormatError):
        case {"signature": str(), **rest} if list(rest) == [member]:
            match rest[member]:
                case dict(found):
                    return found
    raise other(f"not a signed {member}")


def json_dates(body: Mapping[str, Any]) -> Dates:
    """Return issueDate and nextUpdate. Raises EvidenceFormatError."""
    return Dates(issued=_time(body, "issueDate"), next_update=_time(body, "nextUpdate"))


def _time(body: Mapping[str, Any], name: str) -> datetime:
    text = body.get(name)
    if not isinstance(text, str):
        raise other(f"no {name}")
    return rfc3339_decode(text, error=EvidenceFormatError)
