"""What the tests of Rego policies share: policies of our own in Trustee's shapes, and fake platforms to hold against them."""

from __future__ import annotations

import functools
import json
import warnings
from datetime import UTC, datetime
from typing import Any

from sealwright.appraisal.rego import RegoRule
from sealwright.appraisal.rego_engine import Engine, evaluate
from sealwright.endorsement.bag import Endorsements
from sealwright.evidence.tdx import TdxQuote
from sealwright.testing.intel import TdxTestPlatform
from sealwright.testing.software import FakePlatformWarning
from sealwright.verify.context import Context
from sealwright.verify.tdx import VerifiedTdx, verify_tdx

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
REPORT_DATA = bytes(range(64))
HEAD = "package policy\nimport rego.v1\n"

# The members, rule names and functions that Trustee's policies have; the rules are our own.
POLICY = (
    HEAD
    + """
default executables := 33
default hardware := 97
default configuration := 36
default file_system := 0

trust_claims := {
    "executables": executables,
    "hardware": hardware,
    "configuration": configuration,
    "file-system": file_system,
}

executables := 3 if {
    input.tdx
    input.tdx.quote.body.rtmr_1 in query_reference_value("rtmr_1")
} else := 4 if {
    input.tdx.quote.body.rtmr_2 in query_reference_value("rtmr_2")
}

hardware := 2 if {
    input.tdx.quote.header.tee_type == "81000000"
    input.tdx.quote.body.mr_td in query_reference_value("mr_td")
    input.tdx.tcb_status == "UpToDate"
    input.tdx.collateral_expiration_status == "0"
}

configuration := 2 if {
    input.tdx.td_attributes.debug == false
    input.tdx.quote.body.xfam in query_reference_value("xfam")
}
"""
)
VALUES = {"rtmr_1": ["22" * 48], "mr_td": ["11" * 48], "xfam": ["e702060000000000"]}


@functools.cache
def tdx(**fields: Any) -> VerifiedTdx:
    """Return a genuine quote of a fake TD."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        platform = TdxTestPlatform(NOW)
    rtmrs = (bytes(48), b"\x22" * 48, bytes(48), bytes(48))
    raw, blobs = platform.evidence(REPORT_DATA, mrtd=b"\x11" * 48, rtmrs=rtmrs, **fields)
    context = Context(at=NOW, roots=frozenset({platform.root_fingerprint}))
    quote, endorsements = TdxQuote.parse(raw), Endorsements.detect(blobs)
    return verify_tdx(quote, endorsements, expected_report_data=REPORT_DATA, context=context)


def rule(policy: str = POLICY, **members: Any) -> RegoRule:
    """Return the rule with the reference values that the fake TD has."""
    return RegoRule.model_validate({"policy": policy, "reference_values": VALUES} | members)


def codes(found: RegoRule, engine: Engine | None = evaluate) -> list[str]:
    """Return the codes of all failures of the fake TD. Policies that crash the engine are tested apart."""
    return [failure.code for failure in found.failures(tdx(), engine)]


def job(policy: str, document: Any = None, rules: tuple[str, ...] = ("r",), **reference: Any) -> bytes:
    """Return what the engine takes."""
    members = {"policy": HEAD + policy, "input": document or {}, "reference": reference, "rules": rules}
    return json.dumps(members).encode()
