"""Is the evidence of an Azure confidential VM genuine? Steps, stages and codes as in docs/spec/azure.md.

Hardware signs what the paravisor (HCL) says; the paravisor names the key of its vTPM; that key signs the nonce and PCRs.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from cryptography.hazmat.primitives.asymmetric import rsa

from sealwright.endorsement.bag import Endorsements
from sealwright.errors import VerificationError
from sealwright.evidence.azure import AzureEvidence, HclReport, RuntimeClaims
from sealwright.evidence.snp import SnpReport
from sealwright.evidence.tdreport import TdReport
from sealwright.evidence.tdx import TdxQuote
from sealwright.evidence.tpm import TpmQuote
from sealwright.verify.context import Context
from sealwright.verify.snp import VerifiedSnp, verify_snp
from sealwright.verify.tdx import VerifiedTdx, verify_tdx
from sealwright.verify.tpmquote import check_quote, registers
from sealwright.verify.verified import MADE_BY_VERIFY, Condition, Fact, Proof, Verified

RSA_BITS = 2048
RSA_EXPONENT = 65537
# Where a TDREPORT has what a quote's body has too: REPORTDATA, and TDINFO up to the RTMRs.
_REPORT_DATA = slice(128, 192)
_TD_INFO = slice(512, 720)
_NOT_PROVED = (
    "The launch measurement covers Azure's paravisor alone: firmware, kernel and programs of the guest stand only in "
    "the PCRs, which that paravisor keeps.",
    "When the hardware made its report: the nonce stands in the vTPM's quote alone.",
    "That the vTPM's key signs nothing but quotes rests on the paravisor, which made it.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedAzure(Verified):
    """A quote of the vTPM of a genuine paravisor. Made by `verify_azure` alone."""

    hardware: VerifiedSnp | VerifiedTdx
    claims: RuntimeClaims
    quote: TpmQuote


def verify_azure(
    evidence: AzureEvidence, endorsements: Endorsements, *, expected_report_data: bytes, context: Context
) -> VerifiedAzure:
    """Prove that a paravisor in a genuine TEE keeps the vTPM that signed the expected report data and these PCRs.

    Args:
        endorsements: those of the hardware: VCEK and AMD's CRL, or Intel's collateral.
        expected_report_data: 64 bytes; the quote holds them without their zero padding.

    Raises:
        VerificationError: `runtime-data-mismatch`, `td-report-mismatch`, `vmpl-mismatch`, `ak-not-usable`, those of
            `check_quote`, and of the hardware.
        EvidenceFormatError: hardware report, quote or runtime data are malformed.
        CollateralError, RevokedError: as for the hardware.
    """
    # 1. The hardware's report is over the hash of the runtime data, zero-padded; and is genuine.
    # 2. It was asked for by the paravisor, not by the guest.
    hardware = _hardware(evidence, endorsements, context)
    # 3. The vTPM's key, from these runtime data alone: modulus and exponent.
    claims = RuntimeClaims.parse(evidence.hcl.runtime_data)
    ak = _attestation_key(claims)
    # 4. Freshness, the quote's signature, its selection of PCRs and their digest.
    found = check_quote(evidence.quote, ak, expected_report_data=expected_report_data)
    return VerifiedAzure(
        platform=f"az-{evidence.hcl.kind}-vtpm",
        report_data=evidence.quote.attest.extraData,
        registers=dict(hardware.registers) | registers(evidence.quote.pcrs),
        facts=_facts(evidence, claims, hardware),
        conditions=(*hardware.conditions, *found, *_conditions(claims)),
        proofs=(*_proofs(claims), *hardware.proofs),
        not_proved=(*_NOT_PROVED, *hardware.not_proved),
        collateral=hardware.collateral,
        root=hardware.root,
        vendor_root=hardware.vendor_root,
        until=hardware.until,
        hardware=hardware,
        claims=claims,
        quote=evidence.quote,
        _made_by=MADE_BY_VERIFY,
    )


def _hardware(
    evidence: AzureEvidence, endorsements: Endorsements, context: Context
) -> VerifiedSnp | VerifiedTdx:
    expected = evidence.hcl.expected_report_data()
    if evidence.td_quote is None:
        report = SnpReport.parse(evidence.hcl.hardware_report)
        _check_bound(report.report_data, expected)
        snp = verify_snp(report, endorsements, expected_report_data=expected, context=context)
        if report.vmpl != 0:
            _refuse(f"the report was asked for at VMPL {report.vmpl}: by the guest", "vmpl-mismatch", "vmpl")
        return snp
    quote = TdxQuote.parse(evidence.td_quote)
    _check_bound(quote.report.report_data, expected)
    _check_td_report(evidence.hcl, quote.report)
    return verify_tdx(quote, endorsements, expected_report_data=expected, context=context)


def _check_bound(report_data: bytes, expected: bytes) -> None:
    if not hmac.compare_digest(report_data, expected):
        text = "the hardware's REPORT_DATA is not the hash of the runtime data that came along"
        _refuse(text, "runtime-data-mismatch", "runtime-data")


def _check_td_report(hcl: HclReport, report: TdReport) -> None:
    """Prove that the TDREPORT beside the runtime data is of the TD that was quoted. It is no proof by itself."""
    found = hcl.hardware_report
    owner = report.mr_config_id + report.mr_owner + report.mr_owner_config
    info = report.td_attributes + report.xfam + report.mr_td + owner
    same = hmac.compare_digest(found[_TD_INFO], info)
    if not hmac.compare_digest(found[_REPORT_DATA], report.report_data) or not same:
        _refuse("the TDREPORT is of another TD than the quote", "td-report-mismatch", "runtime-data")


def _attestation_key(claims: RuntimeClaims) -> rsa.RSAPublicKey:
    key = claims.ak()
    fits = key.key_size == RSA_BITS and claims.ak_exponent == RSA_EXPONENT
    if not fits or "sign" not in claims.ak_operations:
        text = f"the attestation key has {key.key_size} bits, exponent {claims.ak_exponent}, or may not sign"
        _refuse(text, "ak-not-usable", "attestation-key")
    return key


def _facts(
    evidence: AzureEvidence, claims: RuntimeClaims, hardware: VerifiedSnp | VerifiedTdx
) -> dict[str, Fact]:
    attest = evidence.quote.attest
    return {
        "hcl_padding": evidence.hcl.padding,
        "vm_configuration": dict(claims.vm_configuration),
        "user_data": claims.user_data.hex(),
        "hardware": dict(hardware.facts),
        "tpm": {
            "clock": attest.clock,
            "resetCount": attest.resetCount,
            "restartCount": attest.restartCount,
            "firmwareVersion": attest.firmwareVersion.to_bytes(8, "big").hex(),
            "banks": sorted(evidence.quote.pcrs),
        },
    }


def _conditions(claims: RuntimeClaims) -> Iterator[Condition]:
    if claims.vm_configuration.get("secure-boot") is not True:
        yield Condition(
            code="secure-boot-off",
            text="the paravisor says that the VM runs without Secure Boot",
            claim="configuration",
        )


def _proofs(claims: RuntimeClaims) -> Iterator[Proof]:
    yield Proof(what="PCRs and nonce", by=f"vTPM key {hex(claims.ak_modulus)[2:18]}…")
    yield Proof(what="vTPM key and VM configuration", by="paravisor (HCL), in the hardware's REPORT_DATA")


def _refuse(message: str, code: str, stage: str) -> NoReturn:
    raise VerificationError(message, code=code, stage=stage)
