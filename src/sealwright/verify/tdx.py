"""Is this TDX quote genuine? Steps and codes as in docs/spec/dcap.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import NoReturn

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.intel import TcbInfo
from sealwright.errors import VerificationError
from sealwright.evidence.tdx import TdReport, TdxQuote
from sealwright.verify.context import Context
from sealwright.verify.dcap import (
    NOT_PROVED,
    VerifiedDcap,
    check_quote,
    shared_facts,
    shared_proofs,
)
from sealwright.verify.dcap_tcb import judge_tdx, svn_level, tdx_module
from sealwright.verify.verified import MADE_BY_VERIFY, Condition, Fact

# Bits whose effect this package judges; every other bit that is set is reported as `unknown-bits`.
_BITS = MappingProxyType(
    {
        "DEBUG": ("debug", "the TD runs in debug mode: its memory and registers can be read", 96),
        "HGS_PLUS_PROF": ("profiling", "the host may profile the TD (HGS_PLUS_PROF)", 96),
        "PERF_PROF": ("profiling", "the host may profile the TD (PERF_PROF)", 96),
        "PMT_PROF": ("profiling", "the host may profile the TD (PMT_PROF)", 96),
        "MIGRATABLE": ("migration", "the TD may be migrated to another machine", 32),
        "PERFMON": ("perfmon-enabled", "the TD may use performance monitoring, a side channel", 32),
        "KL": ("key-locker-enabled", "the TD may use Key Locker, whose keys the platform handles", 32),
        "PKS": ("supervisor-keys-enabled", "the TD may use supervisor protection keys", 32),
    }
)
_UNDER_DEBUG = frozenset(range(8))  # the group TUD: with any of its bits a TD is not to be trusted
_JUDGED = frozenset({*_BITS, "SEPT_VE_DISABLE"})


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
        facts=_facts(quote) | shared_facts(proof, quote.header, qe, verdict),
        conditions=(*verdict.conditions(), *_conditions(quote)),
        proofs=shared_proofs(proof, f"TD {report.mr_td.hex()[:16]}…"),
        not_proved=NOT_PROVED,
        collateral=proof.uses,
        root=proof.root,
        vendor_root=proof.pck.chain.vendor,
        until=proof.until,
        header=quote.header,
        qe_report=qe,
        pck=proof.pck.extension,
        tcb=verdict,
        tcb_evaluation_data_number=proof.evaluation_number,
        quote=quote,
        _made_by=MADE_BY_VERIFY,
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


def _facts(quote: TdxQuote) -> dict[str, Fact]:
    report = quote.report
    later, service = report.tee_tcb_svn_2, report.mr_servicetd
    return {
        "body": "TD 1.0" if later is None else "TD 1.5",
        "tee_tcb_svn": report.tee_tcb_svn.hex(),
        "tee_tcb_svn_2": later.hex() if later is not None else None,
        "mr_servicetd": service.hex() if service is not None else None,
        "seam_attributes": report.seam_attributes.hex(),
        "td_attributes": report.td_attributes.hex(),
        "td_attribute_bits": list(quote.attributes.names),
        "xfam": report.xfam.hex(),
        "xfam_bits": list(quote.xfam.names),
        "padding": quote.padding,
    }


def _conditions(quote: TdxQuote) -> Iterator[Condition]:
    found: dict[str, Condition] = {}
    for name in quote.attributes.names:
        if name in _BITS:
            code, text, value = _BITS[name]
            found.setdefault(code, _condition(code, text, value))
    nameless = sorted(_UNDER_DEBUG & set(quote.attributes.unknown))
    if nameless:
        text = f"attributes are set that mean a TD under debug: {', '.join(map(str, nameless))}"
        found.setdefault("debug", _condition("debug", text, 96))
    if any(quote.report.mr_servicetd or b"") and "migration" not in found:
        text = "a service TD is bound to the TD, such as one that migrates it"
        found["migration"] = Condition(code="migration", text=text, claim="configuration", value=32)
    yield from found.values()
    if "SEPT_VE_DISABLE" not in quote.attributes:
        text = "the host can inject exceptions by taking pages away (SEPT_VE_DISABLE is not set)"
        yield Condition(code="sept-ve-enabled", text=text, claim="configuration")
    unknown = [name for name in quote.attributes.names if name not in _JUDGED]
    unknown += [f"attribute {bit}" for bit in quote.attributes.unknown if bit not in _UNDER_DEBUG]
    unknown += [f"XFAM {bit}" for bit in quote.xfam.unknown]
    if unknown:
        text = f"bits are set whose effect is not judged: {', '.join(unknown)}"
        yield Condition(code="unknown-bits", text=text, claim="configuration")


def _condition(code: str, text: str, value: int) -> Condition:
    looked_into = code in ("debug", "profiling")
    return Condition(
        code=code, text=text, claim="runtime-opaque" if looked_into else "configuration", value=value
    )


def _refuse(message: str) -> NoReturn:
    raise VerificationError(message, code="tdx-module-mismatch", stage="tdx-module")
