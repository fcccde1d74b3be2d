"""Intel's Provisioning Certification Service, version 4, and caching services (PCCS) that answer in its place."""

from __future__ import annotations

from collections.abc import Sequence

from sealwright.collateral.need import Need
from sealwright.collateral.record import MAX_BLOB, Dates
from sealwright.collateral.sources.examine import (
    crl_dates,
    json_dates,
    other,
    pem_certificates,
    signed_json,
)
from sealwright.collateral.sources.request import Answer, Hosts, Request, chain_header
from sealwright.crypto.encoding import hex_decode
from sealwright.endorsement.x509 import MAX_CRL, pem_blocks
from sealwright.errors import EvidenceFormatError

_IDENTITY = {"sgx": "QE", "tdx": "TD_QE"}
_CHAIN = {  # the header that brings the issuers' certificates
    "intel-tcb-info": "tcb-info-issuer-chain",
    "intel-qe-identity": "sgx-enclave-identity-issuer-chain",
    "intel-pck-crl": "sgx-pck-crl-issuer-chain",
    "intel-tcb-numbers": "tcb-evaluation-data-numbers-issuer-chain",
}


def request(need: Need, hosts: Hosts) -> Request:
    """Return what to ask for `need`."""
    host = "intel_pccs" if hosts.intel_pccs else "intel_pcs"
    query: tuple[tuple[str, str], ...] = ()
    match need.kind, need.parts:
        case "intel-tcb-info", [tee, fmspc, *update]:
            path = f"/{tee}/certification/v4/tcb"
            query = (("fmspc", fmspc), *_update(update))
        case "intel-qe-identity", [tee, *update]:
            path = f"/{tee}/certification/v4/qe/identity"
            query = _update(update)
        case "intel-pck-crl", [ca]:
            path = "/sgx/certification/v4/pckcrl"
            query = (("ca", ca), ("encoding", "der"))
        case "intel-tcb-numbers", [tee]:
            path = f"/{tee}/certification/v4/tcbevaluationdatanumbers"
        case _ if hosts.intel_pccs:
            path = "/sgx/certification/v4/rootcacrl"
        case _:
            host, path = "intel_certificates", "/IntelSGXRootCA.der"
    keep = (_CHAIN[need.kind],) if need.kind in _CHAIN else ()
    limit = 2 * MAX_CRL if "crl" in need.kind else MAX_BLOB
    return Request(host=host, path=path, query=query, lane=need.facts.lane, limit=limit, keep=keep)  # type: ignore[arg-type]


def _update(update: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return how to name the update wanted; `update` and a number cannot be asked for together."""
    if not update:
        return (("update", "standard"),)
    (value,) = update
    return (("update", value),) if value == "early" else (("tcbEvaluationDataNumber", value),)


def unwrap(need: Need, answer: Answer) -> tuple[bytes, ...]:
    """Return the blobs of an answer: the document verbatim, or the CRL as DER, then its issuers' certificates.

    Raises:
        EvidenceFormatError.
    """
    body = _crl(answer.body) if need.kind in ("intel-pck-crl", "intel-root-crl") else answer.body
    header = _CHAIN.get(need.kind)
    return (body,) if header is None else (body, chain_header(answer, header))


def _crl(body: bytes) -> bytes:
    """Return the DER of a CRL: the service sends PEM or DER, caching services hex."""
    if body.startswith((b"\x30\x82", b"\x30\x81")):
        return body
    if body.lstrip().startswith(b"-----BEGIN "):
        match pem_blocks(body):
            case [("X509 CRL", der)]:
                return der
        raise other("PEM of something else than one CRL")
    try:
        return hex_decode(body.decode("ascii").strip().lower(), error=EvidenceFormatError)
    except UnicodeDecodeError:
        raise EvidenceFormatError("a CRL that is neither DER, PEM nor hex", code="malformed-crl") from None


def examine(need: Need, blobs: Sequence[bytes]) -> Dates:
    """Return the dates of blobs that are about `need`. Raises EvidenceFormatError."""
    if len(blobs) != (2 if need.kind in _CHAIN else 1):
        raise other(f"{len(blobs)} blobs for {need.kind}")
    for chain in blobs[1:]:
        pem_certificates(chain)
    match need.kind, need.parts:
        case "intel-tcb-info", [tee, fmspc, *update]:
            return _tcb_info(blobs[0], tee, fmspc, update)
        case "intel-qe-identity", [tee, *update]:
            return _identity(blobs[0], tee, update)
        case "intel-pck-crl", [ca]:
            return crl_dates(blobs[0], f"Intel SGX PCK {ca.title()} CA")
        case "intel-tcb-numbers", [tee]:
            body = signed_json(blobs[0], "tcbEvaluationDataNumbers")
            if body.get("id") != tee.upper():
                raise other(f"not the TCB evaluation data numbers of {tee}")
            return json_dates(body)
    return crl_dates(blobs[0], "Intel SGX Root CA")


def _tcb_info(blob: bytes, tee: str, fmspc: str, update: Sequence[str]) -> Dates:
    body = signed_json(blob, "tcbInfo")
    found = body.get("fmspc")
    if body.get("id") != tee.upper() or not isinstance(found, str) or found.lower() != fmspc:
        raise other(f"not the {tee} TCB info of FMSPC {fmspc}")
    _check_number(body.get("tcbEvaluationDataNumber"), update)
    return json_dates(body)


def _identity(blob: bytes, tee: str, update: Sequence[str]) -> Dates:
    body = signed_json(blob, "enclaveIdentity")
    if body.get("id") != _IDENTITY[tee]:  # a TD quote is made by another enclave than an SGX quote
        raise other(f"not the identity of {_IDENTITY[tee]}")
    _check_number(body.get("tcbEvaluationDataNumber"), update)
    return json_dates(body)


def _check_number(found: object, update: Sequence[str]) -> None:
    if update and update[0] != "early" and str(found) != update[0]:
        raise other(f"not of TCB evaluation data number {update[0]}")
