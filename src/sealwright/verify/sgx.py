"""Is this SGX quote genuine? Steps and codes as in docs/spec/dcap.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sealwright.endorsement.bag import Endorsements
from sealwright.evidence.sgx import SgxQuote
from sealwright.verify.context import Context
from sealwright.verify.dcap import VerifiedDcap, check_quote, shared_fields
from sealwright.verify.dcap_tcb import judge_sgx, svn_level
from sealwright.verify.verified import Condition, Fact


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSgx(VerifiedDcap):
    """A genuine SGX quote. Made by `verify_sgx` alone."""

    quote: SgxQuote


def verify_sgx(
    quote: SgxQuote, endorsements: Endorsements, *, expected_report_data: bytes, context: Context
) -> VerifiedSgx:
    """Prove that an enclave on an Intel platform made this quote over the expected report data.

    Args:
        expected_report_data: 64 bytes; compared whole.

    Raises:
        VerificationError: not genuine. RevokedError: a certificate was revoked.
        CollateralError: TCB info, identity or CRL is missing or not current.
        EvidenceFormatError: certificates or collateral are malformed.
    """
    proof = check_quote(
        quote.header,
        quote.signature,
        quote.signed,
        quote.report.report_data,
        endorsements,
        expected_report_data=expected_report_data,
        context=context,
        tee="SGX",
    )
    qe = quote.signature.qe_report
    verdict = judge_sgx(proof.tcb_info, proof.pck.extension, svn_level(proof.identity.levels, qe.isv_svn))
    report = quote.report
    return VerifiedSgx(
        platform="sgx",
        report_data=report.report_data,
        registers={"mrenclave": report.mr_enclave, "mrsigner": report.mr_signer},
        quote=quote,
        **shared_fields(
            proof,
            quote.header,
            qe,
            verdict,
            what=f"enclave {report.mr_enclave.hex()[:16]}…",
            facts=_facts(quote),
            conditions=_conditions(quote),
        ),
    )


def _facts(quote: SgxQuote) -> dict[str, Fact]:
    report, bits = quote.report, quote.attributes
    return {
        "attributes": report.attributes.hex(),
        "attribute_flags": list(bits.flags),
        "xfrm": f"{bits.xfrm:#x}",
        "miscselect": list(bits.miscselect),
        "isv_prod_id": report.isv_prod_id,
        "isv_svn": report.isv_svn,
        "isv_ext_prod_id": report.isv_ext_prod_id.hex(),
        "isv_family_id": report.isv_family_id.hex(),
        "config_id": report.config_id.hex(),
        "config_svn": report.config_svn,
        "padding": quote.padding,
    }


def _conditions(quote: SgxQuote) -> Iterator[Condition]:
    bits = quote.attributes
    if "DEBUG" in bits.flags:
        text = "the enclave runs in debug mode: its memory can be read"
        yield Condition(code="debug", text=text, claim="runtime-opaque")
    if "PROVISIONKEY" in bits.flags or "EINITTOKENKEY" in bits.flags:
        yield Condition(
            code="provisioning-key",
            text="the enclave may derive the platform's provisioning or launch key",
            claim="configuration",
            value=32,
        )
    unknown = [f"attribute {bit}" for bit in bits.unknown_flags]
    unknown += [f"MISCSELECT {bit}" for bit in bits.unknown_miscselect]
    if unknown:
        text = f"bits are set whose meaning is not known: {', '.join(unknown)}"
        yield Condition(code="unknown-bits", text=text, claim="configuration")
