"""AMD's Key Distribution Service (57230, chapter 4) and Azure's cache of it in the metadata service (THIM)."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509

from sealwright.collateral.need import Need
from sealwright.collateral.record import Dates
from sealwright.collateral.sources.examine import common_name, crl_dates, other, pem_certificates
from sealwright.collateral.sources.request import Answer, Request
from sealwright.crypto.canonical import parse_json
from sealwright.endorsement.x509 import MAX_CRL, load_certificate
from sealwright.errors import EvidenceFormatError

_MAX = 64 * 1024  # bytes of a certificate or chain
_OID = "1.3.6.1.4.1.3704.1"
HWID = x509.ObjectIdentifier(f"{_OID}.4")
_SPL = {  # the order of the key's parts: query parameter, extension
    "blSPL": x509.ObjectIdentifier(f"{_OID}.3.1"),
    "teeSPL": x509.ObjectIdentifier(f"{_OID}.3.2"),
    "snpSPL": x509.ObjectIdentifier(f"{_OID}.3.3"),
    "ucodeSPL": x509.ObjectIdentifier(f"{_OID}.3.8"),
    "fmcSPL": x509.ObjectIdentifier(f"{_OID}.3.9"),
}


def request(need: Need) -> Request:
    """Return what to ask for `need`."""
    lane = need.facts.lane
    match need.kind, need.parts:
        case "amd-vcek", [product, hwid, *spl]:
            query = tuple(zip(_SPL, spl, strict=False))
            return Request(
                host="amd_kds", path=f"/vcek/v1/{product}/{hwid}", query=query, lane=lane, limit=_MAX
            )
        case "amd-chain", [vek, product]:
            return Request(host="amd_kds", path=f"/{vek}/v1/{product}/cert_chain", lane=lane, limit=_MAX)
        case "amd-crl", [vek, product]:
            return Request(host="amd_kds", path=f"/{vek}/v1/{product}/crl", lane=lane, limit=MAX_CRL)
        case _:
            return Request(
                host="azure_imds",
                path="/metadata/THIM/amd/certification",
                headers=(("Metadata", "true"),),
                lane=lane,
                limit=_MAX,
            )


def unwrap(need: Need, answer: Answer) -> tuple[bytes, ...]:
    """Return the blobs of an answer. Raises EvidenceFormatError."""
    if need.kind != "azure-thim":
        return (answer.body,)
    match parse_json(answer.body, limit=_MAX, error=EvidenceFormatError):
        case {"vcekCert": str(vcek), "certificateChain": str(chain)}:
            return vcek.encode(), chain.encode()
    raise other("not THIM's JSON: vcekCert or certificateChain is missing")


def examine(need: Need, blobs: Sequence[bytes]) -> Dates:
    """Return the dates of blobs that are about `need`. Raises EvidenceFormatError."""
    match need.kind, need.parts, blobs:
        case "amd-vcek", [product, hwid, *spl], [blob]:
            _check_vcek(load_certificate(blob, serial_zero=True), product, hwid, spl)
            return Dates()
        case "amd-chain", [vek, product], [blob]:
            _check_chain(blob, "SEV-VLEK-" if vek == "vlek" else "SEV-", product)
            return Dates()
        case "amd-crl", [_, product], [blob]:
            return crl_dates(blob, f"ARK-{product}")
        case "azure-thim", _, [vcek, chain]:
            if len(pem_certificates(vcek)) != 1 or len(pem_certificates(chain)) != 2:
                raise other("not one VCEK and two issuers")
            return Dates()
    raise other(f"{len(blobs)} blobs for {need.kind}")


def _check_vcek(certificate: x509.Certificate, product: str, hwid: str, spl: list[str]) -> None:
    if common_name(certificate.subject) != "SEV-VCEK" or common_name(certificate.issuer) != f"SEV-{product}":
        raise other(f"not a VCEK of {product}")
    if _extension(certificate, HWID).hex() != hwid:
        raise other("a VCEK of another chip")
    for (name, oid), wanted in zip(_SPL.items(), spl, strict=False):
        value = int(wanted)
        encoded = bytes([2, 1, value]) if value < 0x80 else bytes([2, 2, 0, value])  # DER INTEGER
        if _extension(certificate, oid) != encoded:
            raise other(f"a VCEK of another {name}")


def _extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> bytes:
    try:
        value = certificate.extensions.get_extension_for_oid(oid).value
    except x509.ExtensionNotFound:
        return b""
    return value.value if isinstance(value, x509.UnrecognizedExtension) else b""


def _check_chain(blob: bytes, issuer: str, product: str) -> None:
    names = [common_name(one.subject) for one in pem_certificates(blob)]
    if names != [f"{issuer}{product}", f"ARK-{product}"]:
        raise other(f"not the chain of {product}")
