"""Is this TDX quote genuine? Steps and codes as in docs/spec/dcap.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.intel import TcbInfo
from sealwright.errors import VerificationError
from sealwright.evidence.tdreport import TdReport
from sealwright.evidence.tdx import TdxQuote
from sealwright.verify.context import Context
from sealwright.verify.dcap import VerifiedDcap, check_quote, shared_fields
from sealwright.verify.dcap_tcb import judge_tdx, svn_level, tdx_module
from sealwright.verify.tdx_findings import conditions, facts


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedTdx(VerifiedDcap):
    """A genuine TDX quote. Made by `verify_tdx` alone."""

    quote: TdxQuote


def verify_tdx(
    quote: TdxQuote, endorsements: Endorsements, *, expected_report_data: bytes, context: Context
) -> VerifiedTdx:
    """Prove that a TD on an Intel platform made this quote over the expected report data.

    Args:
        expected_report_data: 64 bytes; compared whole.

    Raises:
        VerificationError: not genuine. RevokedError: a certificate was revoked.
        CollateralError: TCB info, identity or CRL is missing or not current.
        EvidenceFormatError: certificates or collateral are malformed.
    """
    report = quote.report
    proof = check_quote(
        quote.header,
        quote.signature,
        quote.signed,
        report.report_data,
        endorsements,
        expected_report_data=expected_report_data,
        context=context,
        tee="TDX",
    )
    # 7. The TDX module is Intel's; its SVN is judged with the TCB.
    _check_module(report, proof.tcb_info)
    qe = quote.signature.qe_report
    verdict = judge_tdx(
        proof.tcb_info,
        proof.pck.extension,
        svn_level(proof.identity.levels, qe.isv_svn),
        report.tee_tcb_svn,
        report.tee_tcb_svn_2,
    )
    return VerifiedTdx(
        platform="tdx",
        report_data=report.report_data,
        registers=_registers(report),
        quote=quote,
        **shared_fields(
            proof,
            quote.header,
            qe,
            verdict,
            what=f"TD {report.mr_td.hex()[:16]}…",
            facts=facts(quote),
            conditions=conditions(quote),
        ),
    )


def _check_module(report: TdReport, info: TcbInfo) -> None:
    """Prove that Intel signed the TDX module. Raises VerificationError `tdx-module-mismatch`."""
    module = tdx_module(info, report.tee_tcb_svn[1])
    if report.mr_signer_seam != module.mrsigner:
        _refuse("the TDX module was not signed by the one whom Intel names")
    if any(report.seam_attributes) or report.seam_attributes != module.attributes:
        _refuse("the TDX module has attributes other than Intel names; in production they are zero")


def _registers(report: TdReport) -> dict[str, bytes]:
    return {
        "mrtd": report.mr_td,
        "mrconfigid": report.mr_config_id,
        "mrowner": report.mr_owner,
        "mrownerconfig": report.mr_owner_config,
        "rtmr0": report.rt_mr[0],
        "rtmr1": report.rt_mr[1],
        "rtmr2": report.rt_mr[2],
        "rtmr3": report.rt_mr[3],
        "mrseam": report.mr_seam,
        "mrsignerseam": report.mr_signer_seam,
    }


def _refuse(message: str) -> NoReturn:
    raise VerificationError(message, code="tdx-module-mismatch", stage="tdx-module")
