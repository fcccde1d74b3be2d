"""The same questions to dcap-qvl: every real quote, and every mix of statuses. Each disagreement is explained."""

from __future__ import annotations

from itertools import product

import pytest
from tests.intel.oracle import Answer, ask, dcap_qvl
from tests.intel.support import NOW, caches, day, everything, quote_bytes, verify
from tests.intel.test_intel_vectors import CASES, Case

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.roots import anchors
from sealwright.testing.intel import SgxTestPlatform, TdxTestPlatform, td_extension
from sealwright.testing.software import FakePlatformWarning
from sealwright.verify.sgx import VerifiedSgx
from sealwright.verify.tdx import VerifiedTdx

# What is a condition here, which appraisal refuses unless a policy admits it, is a refusal there; first match counts.
REFUSALS = (
    ("tcb-not-recognised", "No matching TCB level found"),
    ("tcb-revoked", "TCB status is invalid: Revoked"),
    ("debug", "Debug mode is enabled"),
    ("migration", "Invalid MR service TD"),
    ("sept-ve-enabled", "SEPT_VE_DISABLE is not enabled"),
)
# Where the questions cannot be the same.
OTHER_REFUSALS = {
    ("sgx/fortanix-pcs/tests__data__quote.bin", "2020-05-25"): (
        "Failed to parse root CA CRL",
        "no root CRL of 2020 is public; the outage policy of our test decides without",
    ),
    ("sgx/trustee/occlum_quote.dat", "2025-02-20"): (
        "missing field `sgxtcbcomponents`",
        "it does not read TCB info of version 2, which was in force then",
    ),
    ("tdx/attestation-rs/attestation__test_data__tdx_quote_live.dat", "2026-04-01"): (
        "TCBInfo expired",
        "the outage policy of our test takes TCB info for a day longer",
    ),
    ("tdx/premai/quote.dat", "2026-03-01"): (
        "TCBInfo expired",
        "the outage policy of our test takes TCB info for a year longer",
    ),
    ("tdx/premai/quote.test", "2026-03-01"): (
        "TCBInfo expired",
        "the outage policy of our test takes TCB info for a year longer",
    ),
    ("tdx/trustee/tdx_quote_6.dat", "2025-10-30"): (
        "CrlExpired",
        "the outage policy of our test takes the PCK CRL for four months longer",
    ),
}
PLATFORM = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)
COMPONENT = ("UpToDate", "OutOfDate", "Revoked")
CACHES = caches()


def _agrees(ours: VerifiedSgx | VerifiedTdx, theirs: Answer) -> bool:
    codes = {one.code for one in ours.conditions}
    expected = next((text for code, text in REFUSALS if code in codes), None)
    if expected is not None:
        return expected in theirs.refusal
    return (theirs.status, theirs.advisories) == (ours.tcb.status, ours.tcb.advisory_ids)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.file}@{case.at}")
def test_real_quote(case: Case) -> None:
    dcap_qvl()
    raw, at = quote_bytes(case.file), day(case.at)
    found = everything(at)
    theirs = ask(raw, found, at, anchors("intel")[0])
    ours = verify(raw, found, at, case.outage, **CACHES)
    if (case.file, case.at) in OTHER_REFUSALS:
        text, _ = OTHER_REFUSALS[case.file, case.at]
        assert text in theirs.refusal
        assert not _agrees(ours, theirs)
    else:
        assert _agrees(ours, theirs), theirs


@pytest.mark.parametrize(
    ("version", "body", "runs"), [(4, None, None), (5, 3, 5), (5, 3, 7), (5, 4, 5), (5, 4, 7)]
)
def test_every_mix_of_statuses_on_tdx(version: int, body: int | None, runs: int | None) -> None:
    """Platform, TDX module and QE; on TDX 1.5 also with a newer module running than at the TD's start."""
    dcap_qvl()
    with pytest.warns(FakePlatformWarning):
        platform = TdxTestPlatform(NOW)
    fields = (
        {}
        if runs is None
        else {"version": version, "body": body, "tee_tcb_svn_2": bytes([runs, 1, 5]) + bytes(13)}
    )
    seen = set()
    for status, module, qe in product(PLATFORM, COMPONENT, COMPONENT):
        platform.tcb_info["tcbLevels"] = [platform.level(5, status, advisories=["INTEL-SA-00010"])]
        platform.identity["tcbLevels"] = [platform.svn_level(8, qe, ["INTEL-SA-00011"])]
        platform.tcb_info["tdxModuleIdentities"][0]["tcbLevels"] = [
            platform.svn_level(7, "UpToDate"),
            platform.svn_level(5, module, ["INTEL-SA-00012"]),
        ]
        raw, blobs = platform.evidence(bytes(64), **fields)
        found = Endorsements.detect(blobs)
        ours = verify(raw, found, NOW, roots=frozenset({platform.root_fingerprint}))
        theirs = ask(raw, found, NOW, platform.pki.root)
        assert _agrees(ours, theirs), (status, module, qe, theirs)
        seen.add(ours.tcb.status)
    assert ("TDRelaunchAdvised" in seen) == (runs == 7)
    assert len(seen) == len(PLATFORM) + 2 * (runs == 7)


def test_every_mix_of_statuses_on_sgx() -> None:
    dcap_qvl()
    with pytest.warns(FakePlatformWarning):
        platform = SgxTestPlatform(NOW)
    for status, qe in product(PLATFORM, COMPONENT):
        platform.tcb_info["tcbLevels"] = [platform.level(5, status, advisories=["INTEL-SA-00010"])]
        platform.identity["tcbLevels"] = [platform.svn_level(8, qe, ["INTEL-SA-00011"])]
        raw, blobs = platform.evidence(bytes(64))
        found = Endorsements.detect(blobs)
        ours = verify(raw, found, NOW, roots=frozenset({platform.root_fingerprint}))
        theirs = ask(raw, found, NOW, platform.pki.root)
        assert _agrees(ours, theirs), (status, qe, theirs)


def test_extension_of_a_td_report() -> None:
    """Both read the same fields. What is a condition here is nothing there: it looks at MRSERVICETD alone."""
    module = dcap_qvl()
    with pytest.warns(FakePlatformWarning):
        platform = TdxTestPlatform(NOW)
    extension = td_extension(
        vmid=2,
        td_id=b"\1" * 32,
        dev_info=b"\2" * 48,
        init_servtd_hash=b"\3" * 48,
        init_servtd_attr=b"\4" * 8,
        init_cpu_svn=b"\5" * 16,
        init_tee_tcb_svn=b"\6" * 16,
        init_tee_fmspc=b"\7" * 12,
        curr_servtd_hash=b"\x08" * 48,
        curr_servtd_attr=b"\x09" * 8,
    )
    raw, blobs = platform.evidence(bytes(64), version=5, body=4, extension=extension)
    found = Endorsements.detect(blobs)
    ours = verify(raw, found, NOW, roots=frozenset({platform.root_fingerprint}))
    assert isinstance(ours, VerifiedTdx)
    mine, theirs = ours.quote.report.extension, module.parse_quote(raw).report
    assert mine is not None
    assert (mine.vmid, mine.td_id, mine.dev_info) == (theirs.vmid, theirs.td_id, theirs.dev_info)
    assert mine.init_servtd_hash == theirs.init_service_td_hash
    assert mine.init_servtd_attr == theirs.init_service_td_attributes
    assert mine.init_cpu_svn == theirs.init_cpu_svn
    assert mine.init_tee_tcb_svn == theirs.init_tee_tcb_svn
    assert mine.init_tee_fmspc == theirs.init_tee_fmspc
    assert mine.curr_servtd_hash == theirs.cur_service_td_hash
    assert mine.curr_servtd_attr == theirs.cur_service_td_attributes
    assert {one.code for one in ours.conditions} == {"migration", "td-partitioned", "devices-assigned"}
    assert ask(raw, found, NOW, platform.pki.root).status == "UpToDate"
