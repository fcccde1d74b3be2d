"""dcap-qvl, another verifier (Rust), asked the same questions. Tests only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from tests.intel.support import parse_quote

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.intel import (
    EnclaveIdentity,
    TcbInfo,
    choose_identity,
    choose_tcb_info,
    parse_intel_json,
)
from sealwright.endorsement.intel_pck import PckExtension, common_name, parse_pck_chain
from sealwright.evidence.dcap import PckCertificates


@dataclass(frozen=True)
class Answer:
    """A status with advisories, or the text of a refusal."""

    status: str = ""
    advisories: tuple[str, ...] = ()
    refusal: str = ""


def dcap_qvl() -> Any:
    """Return the module; skip the test by name where it is not installed."""
    return pytest.importorskip("dcap_qvl", reason="dcap-qvl is not installed")


def ask(raw: bytes, found: Endorsements, at: datetime, root: x509.Certificate) -> Answer:
    """Return what dcap-qvl says of a quote with the collateral that we would choose."""
    module = dcap_qvl()
    try:
        said = module.verify_with_root_ca(
            raw,
            _collateral(module, raw, found, at, root),
            root.public_bytes(Encoding.DER),
            int(at.timestamp()),
        )
    except ValueError as exc:
        return Answer(refusal=str(exc))
    return Answer(status=said.status, advisories=tuple(sorted(said.advisory_ids)))


def _collateral(module: Any, raw: bytes, found: Endorsements, at: datetime, root: x509.Certificate) -> Any:
    quote = parse_quote(raw)
    sgx = quote.header.version == 3
    assert isinstance(quote.signature.certification, PckCertificates)
    leaf, ca, _ = parse_pck_chain(quote.signature.certification.pem)
    said = PckExtension.of(leaf)
    parsed = [parse_intel_json(one) for one in found.intel_json]
    info = choose_tcb_info(
        [one for one in parsed if isinstance(one, TcbInfo)],
        tee="SGX" if sgx else "TDX",
        fmspc=said.fmspc,
        pce_id=said.pce_id,
        at=at,
    )
    identity = choose_identity(
        [one for one in parsed if isinstance(one, EnclaveIdentity)], identity="QE" if sgx else "TD_QE", at=at
    )
    assert info is not None
    assert identity is not None
    chain = _pem([_signer(found, at), root])
    return module.QuoteCollateralV3(
        pck_crl_issuer_chain=_pem([ca, root]),
        root_ca_crl=_crl(found, common_name(root.subject)),
        pck_crl=_crl(found, common_name(ca.subject)),
        tcb_info_issuer_chain=chain,
        tcb_info=info.signed.decode(),
        tcb_info_signature=info.signature,
        qe_identity_issuer_chain=chain,
        qe_identity=identity.signed.decode(),
        qe_identity_signature=identity.signature,
    )


def _signer(found: Endorsements, at: datetime) -> x509.Certificate:
    named = [one for one in found.certificates if common_name(one.subject) == "Intel SGX TCB Signing"]
    valid = [one for one in named if one.not_valid_before_utc <= at <= one.not_valid_after_utc]
    # Two of them have the same key: the newest will do for everything after its start.
    return max(valid, key=lambda one: one.not_valid_before_utc)


def _crl(found: Endorsements, issuer: str) -> bytes:
    named = [one for one in found.crls if common_name(one.issuer) == issuer]
    newest = max(named, key=lambda one: one.last_update_utc, default=None)
    return newest.public_bytes(Encoding.DER) if newest is not None else b""


def _pem(certificates: Sequence[x509.Certificate]) -> str:
    return "".join(one.public_bytes(Encoding.PEM).decode() for one in certificates)
