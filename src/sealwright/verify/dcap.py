"""Is this quote genuine? What SGX and TDX share; steps and codes as in docs/spec/dcap.md."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from sealwright.crypto.encoding import rfc3339
from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.intel import EnclaveIdentity, IdentityId, TcbInfo, Tee
from sealwright.endorsement.intel_pck import PckExtension, common_name
from sealwright.errors import VerificationError
from sealwright.evidence.dcap import EnclaveReport, QuoteHeader, QuoteSignature
from sealwright.verify.context import Context
from sealwright.verify.dcap_index import ROOT_NAME, SIGNING_NAME, digest_of
from sealwright.verify.dcap_pck import PckChain, check_p256, check_pck, check_revocation
from sealwright.verify.dcap_signed import SignedCollateral, check_collateral
from sealwright.verify.dcap_tcb import TcbVerdict
from sealwright.verify.verified import (
    MADE_BY_VERIFY,
    CollateralUse,
    Condition,
    Fact,
    Proof,
    Verified,
)

INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
NOT_PROVED = (
    "Side channels and attacks on the memory bus are out of reach of this evidence.",
    "Whoever holds a PCK taken out of a processor can sign any quote; Intel's revocation is what stops it.",
    "Where the machine stands, and whose it is, is not said; a policy can list platforms it knows.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedDcap(Verified):
    """A genuine quote of SGX or TDX, with what appraisal asks about its platform."""

    header: QuoteHeader
    qe_report: EnclaveReport
    pck: PckExtension
    tcb: TcbVerdict
    tcb_evaluation_data_number: int  # the lower one of TCB info and QE identity


@dataclass(frozen=True, slots=True, kw_only=True)
class DcapProof:
    """What was proved about the platform and quoting enclave behind a quote."""

    pck: PckChain
    collateral: SignedCollateral
    revocation: tuple[CollateralUse, CollateralUse]
    root: bytes  # SHA-256 of the root certificate, 32 bytes

    @property
    def tcb_info(self) -> TcbInfo:
        """The platform's TCB info, proved."""
        return self.collateral.tcb_info

    @property
    def identity(self) -> EnclaveIdentity:
        """The quoting enclave's identity, proved."""
        return self.collateral.identity

    @property
    def uses(self) -> tuple[CollateralUse, ...]:
        """Every piece of collateral that the decision rests on."""
        return (*self.collateral.uses, *self.revocation)

    @property
    def evaluation_number(self) -> int:
        """The lower one of the evaluation data numbers."""
        return min(self.tcb_info.tcb_evaluation_data_number, self.identity.tcb_evaluation_data_number)

    @property
    def until(self) -> datetime:
        """The earliest end among certificates and collateral."""
        ends = [one.next_update for one in self.uses if one.next_update is not None]
        return min([self.pck.chain.until, *(chain.until for chain in self.collateral.chains), *ends])


def check_quote(
    header: QuoteHeader,
    signature: QuoteSignature,
    signed: bytes,
    report_data: bytes,
    endorsements: Endorsements,
    *,
    expected_report_data: bytes,
    context: Context,
    tee: Tee,
) -> DcapProof:
    """Prove freshness, the platform's PCK, the quoting enclave, the quote's signature, and the collateral.

    Raises:
        VerificationError, RevokedError, CollateralError, EvidenceFormatError: docs/spec/dcap.md lists the codes.
    """
    # 1. Freshness. A different length is a mismatch, never padded or cut.
    if not hmac.compare_digest(report_data, expected_report_data):
        _refuse("report-data", "report-data-mismatch", "the report data is not the expected value")
    # 2. The quoting enclave claims to be Intel's; steps 4 and 5 prove it.
    if header.qe_vendor_id != INTEL_QE_VENDOR:
        _refuse("qe-vendor", "unknown-qe-vendor", "the quoting enclave is not of Intel")
    # 3. PCK certificate -> its CA -> Intel's root; the PCK signed the QE report.
    pck = check_pck(signature, endorsements, context)
    # 4. TCB info and QE identity, signed by Intel, current.
    identity: IdentityId = "TD_QE" if tee == "TDX" else "QE"
    collateral = check_collateral(endorsements, pck, context, tee=tee, identity=identity)
    revocation = check_revocation(pck, collateral.signers, endorsements, context)
    # 5. The QE is the enclave that Intel's identity describes, and vouches for the attestation key.
    _check_qe_identity(signature.qe_report, collateral.identity)
    _check_attestation_key(signature)
    # 6. The quote's own signature, over the bytes as received.
    _check_signature(signature, signed)
    root = digest_of(pck.chain.root, context)
    return DcapProof(pck=pck, collateral=collateral, revocation=revocation, root=root)


def shared_fields(
    proof: DcapProof,
    header: QuoteHeader,
    qe: EnclaveReport,
    verdict: TcbVerdict,
    *,
    what: str,
    facts: Mapping[str, Fact],
    conditions: Iterable[Condition],
) -> dict[str, Any]:
    """Return the members of a `VerifiedDcap` that SGX and TDX fill alike.

    Args:
        what: name of what was attested, for people.
        facts, conditions: what the quote adds to those of the platform.
    """
    return {
        "facts": {**facts, **_facts(proof, header, qe, verdict)},
        "conditions": (*verdict.conditions(), *conditions),
        "proofs": _proofs(proof, what),
        "not_proved": NOT_PROVED,
        "collateral": proof.uses,
        "root": proof.root,
        "vendor_root": proof.pck.chain.vendor,
        "until": proof.until,
        "header": header,
        "qe_report": qe,
        "pck": proof.pck.extension,
        "tcb": verdict,
        "tcb_evaluation_data_number": proof.evaluation_number,
        "_made_by": MADE_BY_VERIFY,
    }


def _facts(proof: DcapProof, header: QuoteHeader, qe: EnclaveReport, verdict: TcbVerdict) -> dict[str, Fact]:
    """Return what is worth knowing of the platform, JSON values."""
    said = proof.pck.extension
    instance = said.platform_instance_id
    return {
        "quote_version": header.version,
        "user_data": header.user_data.hex(),
        "fmspc": said.fmspc.hex(),
        "pce_id": said.pce_id.hex(),
        "ppid": said.ppid.hex(),
        "platform_instance_id": instance.hex() if instance is not None else None,
        "sgx_type": said.sgx_type,
        "dynamic_platform": said.dynamic_platform,
        "cached_keys": said.cached_keys,
        "smt_enabled": said.smt_enabled,
        "cpu_svn": said.cpu_svn.hex(),
        "pce_svn": said.pce_svn,
        "qe": {
            "id": proof.identity.id,
            "isv_svn": qe.isv_svn,
            "isv_prod_id": qe.isv_prod_id,
            "mr_enclave": qe.mr_enclave.hex(),
            "mr_signer": qe.mr_signer.hex(),
        },
        "tcb": _tcb_facts(proof, verdict),
    }


def _proofs(proof: DcapProof, what: str) -> tuple[Proof, ...]:
    """Return the chain of trust for people, from the evidence up to the root."""
    leaf, ca, root = proof.pck.chain.certificates
    signer = proof.collateral.chains[0]
    said, issuer = proof.pck.extension, common_name(ca.subject)
    return (
        Proof(what=what, by=f"quoting enclave {proof.identity.id}"),
        Proof(
            what=f"quoting enclave {proof.identity.id}",
            by=f"PCK of platform {said.ppid.hex()[:16]}…, FMSPC {said.fmspc.hex()}",
        ),
        Proof(
            what="TCB info and QE identity",
            by=SIGNING_NAME,
            until=min(proof.tcb_info.next_update, proof.identity.next_update),
        ),
        Proof(what="PCK certificate", by=issuer, until=leaf.not_valid_after_utc),
        Proof(
            what=f"{issuer}, {SIGNING_NAME}",
            by=ROOT_NAME,
            until=min(ca.not_valid_after_utc, signer.leaf.not_valid_after_utc),
        ),
        Proof(
            what=ROOT_NAME,
            by="pinned in this package" if proof.pck.chain.vendor else "named by the policy",
            until=root.not_valid_after_utc,
        ),
    )


def _tcb_facts(proof: DcapProof, verdict: TcbVerdict) -> Mapping[str, Fact]:
    return {
        "status": verdict.status,
        "platform_status": verdict.platform_status,
        "module_status": verdict.module_status,
        "qe_status": verdict.qe_status,
        "advisory_ids": list(verdict.advisory_ids),
        "tcb_date": rfc3339(verdict.tcb_date) if verdict.tcb_date is not None else None,
        "tcb_info_version": proof.tcb_info.version,
        "tcb_evaluation_data_number": proof.evaluation_number,
    }


def _check_qe_identity(qe: EnclaveReport, identity: EnclaveIdentity) -> None:
    """Prove that the QE report is of the enclave that Intel describes; its SVN is judged with the TCB."""
    misc_select = qe.misc_select.to_bytes(4, "little")
    same = (
        hmac.compare_digest(qe.mr_signer, identity.mrsigner)
        and qe.isv_prod_id == identity.isvprodid
        and _masked(misc_select, identity.miscselect_mask) == identity.miscselect
        and _masked(qe.attributes, identity.attributes_mask) == identity.attributes
        and not qe.debug
    )
    if not same:
        _refuse(
            "qe-identity",
            "qe-identity-mismatch",
            f"the quoting enclave is not the one that Intel describes as {identity.id}",
        )


def _check_attestation_key(signature: QuoteSignature) -> None:
    digest = sha256(signature.attestation_key + signature.qe_auth_data).digest()
    if not hmac.compare_digest(signature.qe_report.report_data, digest + bytes(32)):
        _refuse(
            "attestation-key",
            "attestation-key-mismatch",
            "the quoting enclave does not vouch for the attestation key",
        )


def _check_signature(signature: QuoteSignature, signed: bytes) -> None:
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(
            ec.SECP256R1(), b"\x04" + signature.attestation_key
        )
        check_p256(key, signature.signature, signed)
    except (InvalidSignature, ValueError):
        _refuse("signature", "bad-signature", "the quote's signature does not hold")


def _masked(value: bytes, mask: bytes) -> bytes:
    return bytes(have & bit for have, bit in zip(value, mask, strict=True))


def _refuse(stage: str, code: str, message: str) -> NoReturn:
    raise VerificationError(message, code=code, stage=stage)
