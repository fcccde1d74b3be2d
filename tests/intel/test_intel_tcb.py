"""TCB levels and statuses as Intel's own library has them: the table, the order, and relaunch advice."""

from __future__ import annotations

from typing import Any

import pytest
from tests.intel.support import NOW, verify

from sealwright.endorsement.bag import Endorsements
from sealwright.errors import VerificationError
from sealwright.testing.intel import SgxTestPlatform, TdxTestPlatform
from sealwright.testing.software import FakePlatformWarning

DATA = bytes(64)


@pytest.fixture
def tdx() -> TdxTestPlatform:
    with pytest.warns(FakePlatformWarning):
        return TdxTestPlatform(NOW)


def judged(platform: Any, **fields: Any) -> Any:
    raw, blobs = platform.evidence(DATA, **fields)
    return verify(raw, Endorsements.detect(blobs), NOW, roots=frozenset({platform.root_fingerprint})).tcb


# Platform level, level of TDX module or quoting enclave, and both together.
MERGED = (
    ("UpToDate", "UpToDate", "UpToDate"),
    ("UpToDate", "OutOfDate", "OutOfDate"),
    ("UpToDate", "SWHardeningNeeded", "OutOfDate"),  # whatever is not current counts as out of date
    ("UpToDate", "Revoked", "Revoked"),
    ("SWHardeningNeeded", "UpToDate", "SWHardeningNeeded"),
    ("SWHardeningNeeded", "OutOfDate", "OutOfDate"),
    ("ConfigurationNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
    ("ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
    ("OutOfDate", "OutOfDate", "OutOfDate"),
    ("OutOfDateConfigurationNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
    ("OutOfDateConfigurationNeeded", "Revoked", "Revoked"),
    ("Revoked", "OutOfDate", "Revoked"),
    ("NewWord", "UpToDate", "NotRecognised"),
    ("NewWord", "Revoked", "Revoked"),
)


@pytest.mark.parametrize(("platform", "component", "expected"), MERGED)
def test_merge(tdx: TdxTestPlatform, platform: str, component: str, expected: str) -> None:
    tdx.tcb_info["tcbLevels"] = [tdx.level(5, platform, advisories=["INTEL-SA-00020", "INTEL-SA-00010"])]
    tdx.identity["tcbLevels"] = [tdx.svn_level(8, component, ["INTEL-SA-00011"])]
    verdict = judged(tdx)
    assert verdict.status == expected
    assert verdict.advisory_ids == ("INTEL-SA-00010", "INTEL-SA-00011", "INTEL-SA-00020")
    tdx.identity["tcbLevels"] = [tdx.svn_level(8, "UpToDate")]
    tdx.tcb_info["tdxModuleIdentities"][0]["tcbLevels"] = [tdx.svn_level(5, component)]
    assert judged(tdx).status == expected


def test_levels_are_taken_from_the_highest(tdx: TdxTestPlatform) -> None:
    """Whatever order they are served in; a level counts only if everything in it is reached."""
    tdx.tcb_info["tcbLevels"] = [
        tdx.level(2, "OutOfDate"),
        tdx.level(4, "SWHardeningNeeded", pce_svn=12),
        tdx.level(4, "ConfigurationNeeded", pce_svn=13),
        tdx.level(6, "UpToDate"),
    ]
    assert judged(tdx).status == "ConfigurationNeeded"
    tdx.pce_svn = 12
    assert judged(tdx).status == "SWHardeningNeeded"
    tdx.tcb = bytes([5] * 7 + [3] + [0] * 8)
    tdx.tcb_info["tcbLevels"][0]["tcb"]["pcesvn"] = 12
    assert judged(tdx).status == "OutOfDate"


def test_module_bytes_count_only_without_a_version(tdx: TdxTestPlatform) -> None:
    """TEE_TCB_SVN[0] and [1] are the module's: with a version they are judged by its own levels."""
    tdx.tcb_info["tcbLevels"][0]["tcb"]["tdxtcbcomponents"][0]["svn"] = 200
    assert judged(tdx).status == "UpToDate"
    assert judged(tdx, tee_tcb_svn=bytes([5, 0, 5]) + bytes(13)).status == "OutOfDate"
    assert judged(tdx, tee_tcb_svn=bytes([201, 0, 5]) + bytes(13)).status == "UpToDate"
    assert judged(tdx, tee_tcb_svn=bytes([5, 1, 4]) + bytes(13)).status == "OutOfDate"
    assert judged(tdx, tee_tcb_svn=bytes([2, 1, 5]) + bytes(13)).status == "NotRecognised"


def _outdated_module(tdx: TdxTestPlatform, status: str = "UpToDate", qe: str = "UpToDate") -> None:
    tdx.tcb_info["tcbLevels"] = [tdx.level(5, status)]
    tdx.identity["tcbLevels"] = [tdx.svn_level(8, qe)]
    levels = [tdx.svn_level(7, "UpToDate"), tdx.svn_level(5, "OutOfDate")]
    tdx.tcb_info["tdxModuleIdentities"][0]["tcbLevels"] = levels


@pytest.mark.parametrize(
    ("status", "qe", "running", "expected"),
    [
        ("UpToDate", "UpToDate", (7, 1, 5), "TDRelaunchAdvised"),
        ("SWHardeningNeeded", "UpToDate", (7, 1, 5), "TDRelaunchAdvised"),
        ("ConfigurationNeeded", "UpToDate", (7, 1, 5), "TDRelaunchAdvisedConfigurationNeeded"),
        ("ConfigurationAndSWHardeningNeeded", "UpToDate", (9, 1, 9), "TDRelaunchAdvisedConfigurationNeeded"),
        ("UpToDate", "UpToDate", (6, 1, 5), "OutOfDate"),  # the running module is not the latest
        ("UpToDate", "UpToDate", (7, 1, 4), "OutOfDate"),  # the SEAM loader is not
        ("UpToDate", "UpToDate", (5, 0, 5), "TDRelaunchAdvised"),  # a module without a version
        ("UpToDate", "UpToDate", (4, 0, 5), "OutOfDate"),
        ("OutOfDate", "UpToDate", (7, 1, 5), "OutOfDate"),  # the platform is out of date itself
        ("Revoked", "UpToDate", (7, 1, 5), "Revoked"),
        ("UpToDate", "OutOfDate", (7, 1, 5), "OutOfDate"),
        ("UpToDate", "Revoked", (7, 1, 5), "Revoked"),
    ],
)
def test_relaunch(
    tdx: TdxTestPlatform, status: str, qe: str, running: tuple[int, ...], expected: str
) -> None:
    _outdated_module(tdx, status, qe)
    svn = bytes(running) + bytes(13)
    assert judged(tdx, version=5, tee_tcb_svn_2=svn).status == expected
    # TDX 1.0 has no second SVN: nothing is advised.
    assert not judged(tdx, version=5, body=2, tee_tcb_svn_2=svn).status.startswith("TDRelaunch")


def test_relaunch_with_a_module_that_intel_does_not_know(tdx: TdxTestPlatform) -> None:
    _outdated_module(tdx)
    with pytest.raises(VerificationError) as caught:
        judged(tdx, version=5, tee_tcb_svn_2=bytes([7, 9, 5]) + bytes(13))
    assert caught.value.code == "tdx-module-mismatch"


def test_version_2_of_tcb_info() -> None:
    """SGX only: components have names of their own, and there is no id."""
    with pytest.warns(FakePlatformWarning):
        sgx = SgxTestPlatform(NOW)
    old = {key: value for key, value in sgx.tcb_info.items() if key != "id"} | {"version": 2}
    for level in old["tcbLevels"]:
        components = level["tcb"].pop("sgxtcbcomponents")
        level["tcb"] |= {f"sgxtcbcomp{number:02}svn": one["svn"] for number, one in enumerate(components, 1)}
    sgx.tcb_info = old
    assert judged(sgx).status == "UpToDate"
    sgx.tcb = bytes([4] * 8 + [0] * 8)
    assert judged(sgx).status == "OutOfDate"
