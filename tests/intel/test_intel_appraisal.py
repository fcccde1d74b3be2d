"""Rules of SGX and TDX: what each refuses, by code; all failures are listed."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from tests.intel.support import NOW, verify

from sealwright.appraisal.dcap import DcapRules
from sealwright.appraisal.sgx import SgxRules
from sealwright.appraisal.tdx import TdxRules
from sealwright.endorsement.bag import Endorsements
from sealwright.testing.intel import SgxTestPlatform, TdxTestPlatform, td_extension
from sealwright.testing.software import FakePlatformWarning

DATA = bytes(64)


@pytest.fixture
def tdx() -> TdxTestPlatform:
    with pytest.warns(FakePlatformWarning):
        return TdxTestPlatform(NOW)


@pytest.fixture
def sgx() -> SgxTestPlatform:
    with pytest.warns(FakePlatformWarning):
        return SgxTestPlatform(NOW)


def verified(platform: Any, **fields: Any) -> Any:
    raw, blobs = platform.evidence(DATA, **fields)
    return verify(raw, Endorsements.detect(blobs), NOW, roots=frozenset({platform.root_fingerprint}))


def rules(platform: Any, **said: Any) -> DcapRules:
    base: dict[str, Any] = {"minimum_tcb_evaluation": 20, "roots": [platform.root_fingerprint.hex()]}
    if isinstance(platform, TdxTestPlatform):
        code = {name: ["00" * 48] for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2")}
        return TdxRules.model_validate(base | {"registers": code} | said)
    return SgxRules.model_validate(base | {"registers": {"mrenclave": ["00" * 32]}} | said)


def codes(platform: Any, rule: dict[str, Any] | None = None, **fields: Any) -> list[str]:
    """Return the codes of every failure; the rules are as strict as can be, but for `rule`."""
    found, said = verified(platform, **fields), rules(platform, **(rule or {}))
    return [one.code for one in (*said.shared_refusals(found), *said.refusals(found))]


def test_what_is_up_to_date_passes(tdx: TdxTestPlatform, sgx: SgxTestPlatform) -> None:
    assert codes(tdx) == []
    assert codes(sgx) == []


def test_roots(tdx: TdxTestPlatform) -> None:
    assert codes(tdx, {"roots": []}) == ["root-not-allowed"]


def test_registers(tdx: TdxTestPlatform, sgx: SgxTestPlatform) -> None:
    rest = {"unchecked": ["rtmr0", "rtmr1", "rtmr2"]}
    wanted = {"registers": {"mrtd": ["01" * 48], "rtmr3": ["00" * 48], "pcr4": ["00" * 32]}} | rest
    assert codes(tdx, wanted) == ["measurement-not-allowed", "register-missing"]
    assert codes(tdx, wanted, mrtd=b"\1" * 48) == ["register-missing"]
    assert codes(sgx, mrenclave=b"\1" * 32) == ["measurement-not-allowed"]


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ("0100001000000000", "debug"),
        ("1000001000000000", "profiling"),
        ("0000003000000000", "migration"),
        ("0000005000000000", "supervisor-keys-enabled"),
        ("0000009000000000", "key-locker-enabled"),
        ("0000001000000080", "perfmon-enabled"),
        ("0000000000000000", "sept-ve-enabled"),
        ("0200001000000000", "debug"),
        ("0000001000000040", "unknown-bits"),
        ("0000011000000000", "unknown-bits"),
        ("0000021000000000", "initial-platform"),
    ],
)
def test_td_attributes_are_refused_unless_admitted(tdx: TdxTestPlatform, attributes: str, code: str) -> None:
    raw = bytes.fromhex(attributes)
    assert codes(tdx, td_attributes=raw) == [code]
    assert codes(tdx, {"admit": [code]}, td_attributes=raw) == []


def test_mrtd_alone_names_firmware_and_no_kernel(tdx: TdxTestPlatform) -> None:
    alone = {"registers": {"mrtd": ["00" * 48]}}
    assert codes(tdx, alone) == ["register-not-listed"] * 3
    assert codes(tdx, alone | {"unchecked": ["rtmr0"]}) == ["register-not-listed"] * 2
    assert codes(tdx, alone | {"unchecked": ["rtmr0", "rtmr1", "rtmr2"]}) == []
    none = {"registers": {}, "unchecked": ["rtmr0", "rtmr1", "rtmr2"]}
    assert codes(tdx, none) == ["no-code-named"]
    for name in ("mrtd", "rtmr3", "pcr4"):
        with pytest.raises(ValidationError):
            rules(tdx, unchecked=[name])


def test_config_id(sgx: SgxTestPlatform) -> None:
    """Whoever loads the enclave chooses it."""
    other = b"\1" * 64
    assert codes(sgx, config_id=other) == ["enclave-not-allowed"]
    assert codes(sgx, {"config_ids": [other.hex()]}, config_id=other) == []
    assert codes(sgx, {"config_ids": "any"}, config_id=other) == []
    assert codes(sgx, {"config_ids": [other.hex()]}) == ["enclave-not-allowed"]
    assert codes(sgx, {"minimum_config_svn": 2}, config_svn=1) == ["enclave-below-minimum"]
    assert codes(sgx, {"minimum_config_svn": 2}, config_svn=2) == []
    for wrong in ([], ["00" * 63]):
        with pytest.raises(ValidationError):
            rules(sgx, config_ids=wrong)


def test_migration_by_service_td(tdx: TdxTestPlatform) -> None:
    assert codes(tdx, version=5, mr_servicetd=b"\1" * 48) == ["migration"]
    both = {"version": 5, "mr_servicetd": b"\1" * 48, "td_attributes": bytes.fromhex("0000003000000000")}
    assert codes(tdx, **both) == ["migration"]


def test_service_tds_that_may_move_it_are_listed(tdx: TdxTestPlatform) -> None:
    fields = {"version": 5, "mr_servicetd": b"\1" * 48}
    assert codes(tdx, {"admit": ["migration"]}, **fields) == ["service-td-not-allowed"]
    for listed in (["01" * 48], "any"):
        assert codes(tdx, {"admit": ["migration"], "service_tds": listed}, **fields) == []
    assert codes(tdx, {"service_tds": "any"}, **fields) == ["migration"]


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ({"init_servtd_hash": b"\1" * 48}, "migration"),
        ({"curr_servtd_hash": b"\1" * 48}, "migration"),
        ({"vmid": 1}, "td-partitioned"),
        ({"dev_info": bytes(47) + b"\1"}, "devices-assigned"),
    ],
)
def test_extension(tdx: TdxTestPlatform, field: dict[str, Any], code: str) -> None:
    fields = {"version": 5, "body": 4, "extension": td_extension(**field)}
    assert codes(tdx, **fields) == [code]
    assert codes(tdx, {"admit": [code], "service_tds": ["01" * 48]}, **fields) == []


def test_extension_without_a_mover(tdx: TdxTestPlatform) -> None:
    raw, blobs = tdx.evidence(bytes(64), version=5, body=4, extension=td_extension(td_id=b"\1" * 32))
    found = verify(raw, Endorsements.detect(blobs), NOW, roots=frozenset({tdx.root_fingerprint}))
    assert found.conditions == ()
    assert found.facts["body"] == "TD 1.5, extended"
    assert found.facts["extension"]["td_id"] == "01" * 32
    assert found.facts["extension"]["vmid"] == 0


def test_unknown_xfam(tdx: TdxTestPlatform) -> None:
    assert codes(tdx, xfam=bytes.fromhex("0302000000000080")) == ["unknown-bits"]


@pytest.mark.parametrize(
    ("flags", "misc", "code"),
    [
        (0x07, 0, "debug"),
        (0x15, 0, "provisioning-key"),
        (0x25, 0, "provisioning-key"),
        (0x0D, 0, "unknown-bits"),
        (0x05, 4, "unknown-bits"),
    ],
)
def test_sgx_attributes(sgx: SgxTestPlatform, flags: int, misc: int, code: str) -> None:
    fields = {"attributes": bytes([flags]) + bytes(15), "misc_select": misc}
    assert codes(sgx, **fields) == [code]
    assert codes(sgx, {"admit": [code]}, **fields) == []


def test_statuses(tdx: TdxTestPlatform) -> None:
    tdx.tcb_info["tcbLevels"] = [
        tdx.level(5, "ConfigurationAndSWHardeningNeeded", advisories=["INTEL-SA-00334"])
    ]
    refusals = ["tcb-configuration-needed", "tcb-sw-hardening-needed", "advisory-not-allowed"]
    assert codes(tdx) == refusals
    assert codes(tdx, {"tcb_statuses": ["SWHardeningNeeded"]}) == refusals
    admitted = {"tcb_statuses": ["UpToDate", "ConfigurationAndSWHardeningNeeded"]}
    assert codes(tdx, admitted) == ["advisory-not-allowed"]
    assert codes(tdx, admitted | {"advisories": ["INTEL-SA-00001"]}) == ["advisory-not-allowed"]
    assert codes(tdx, admitted | {"advisories": ["INTEL-SA-00334"]}) == []
    assert codes(tdx, admitted | {"advisories": "any"}) == []
    same = {"admit": ["tcb-configuration-needed", "tcb-sw-hardening-needed"], "advisories": "any"}
    assert codes(tdx, same) == []
    assert codes(tdx, same | {"admit": same["admit"][:1]}) == ["tcb-sw-hardening-needed"]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("UpToDate", []),
        ("OutOfDate", ["tcb-out-of-date"]),
        ("OutOfDateConfigurationNeeded", ["tcb-out-of-date", "tcb-configuration-needed"]),
        ("Revoked", ["tcb-revoked"]),
        ("SomethingNew", ["tcb-not-recognised"]),
    ],
)
def test_words_of_intel(sgx: SgxTestPlatform, status: str, expected: list[str]) -> None:
    sgx.tcb_info["tcbLevels"] = [sgx.level(5, status)]
    assert codes(sgx) == expected
    assert verified(sgx).facts["tcb"]["platform_status"] == (
        status if expected[:1] != ["tcb-not-recognised"] else "NotRecognised"
    )


def test_nothing_below_the_lowest_level(tdx: TdxTestPlatform, sgx: SgxTestPlatform) -> None:
    for platform in (tdx, sgx):
        platform.tcb = bytes([2] * 16)
        assert codes(platform) == ["tcb-not-recognised"]
        platform.tcb, platform.pce_svn = bytes([5] * 8 + [0] * 8), 12
        assert codes(platform) == ["tcb-not-recognised"]
        platform.pce_svn, platform.qe["isv_svn"] = 13, 3
        assert codes(platform) == ["tcb-not-recognised"]


def test_revoked_cannot_be_listed_as_a_status(tdx: TdxTestPlatform) -> None:
    for word in ("Revoked", "NotRecognised", "uptodate"):
        with pytest.raises(ValidationError):
            rules(tdx, tcb_statuses=[word])


def test_floors(tdx: TdxTestPlatform, sgx: SgxTestPlatform) -> None:
    assert codes(tdx, {"minimum_tcb_evaluation": 21}) == ["tcb-evaluation-too-old"]
    tdx.identity["tcbEvaluationDataNumber"] = 19  # the lower one counts
    assert codes(tdx) == ["tcb-evaluation-too-old"]
    tdx.identity["tcbEvaluationDataNumber"] = 20
    assert codes(tdx, {"minimum_qe_svn": 9, "minimum_pce_svn": 14}) == [
        "tcb-below-minimum",
        "tcb-below-minimum",
    ]
    assert codes(tdx, {"minimum_tee_tcb_svn": "050106" + "00" * 13}) == ["tcb-below-minimum"]
    assert codes(tdx, {"minimum_tee_tcb_svn": "050105" + "00" * 13}) == []
    assert codes(sgx, {"minimum_isv_svn": 2}, isv_svn=1) == ["enclave-below-minimum"]
    with pytest.raises(ValidationError):
        TdxRules()  # the floor of Intel's evaluation has to be written


def test_platforms(tdx: TdxTestPlatform) -> None:
    fmspc, ppid, instance = tdx.fmspc.hex(), tdx.ppid.hex(), "".join(f"{n:02x}" for n in range(16, 32))
    assert codes(tdx, {"fmspc": [fmspc]}) == []
    assert codes(tdx, {"fmspc": ["00" * 6]}) == ["product-not-allowed"]
    assert codes(tdx, {"fmspc_banned": [fmspc]}) == ["product-not-allowed"]
    assert codes(tdx, {"fmspc": [fmspc], "fmspc_banned": [fmspc]}) == ["product-not-allowed"]
    for known in (ppid, instance):
        assert codes(tdx, {"platforms": [known], "providers": {"acme": ["ff" * 16, known]}}) == []
    assert codes(tdx, {"platforms": ["00" * 16]}) == ["chip-not-allowed"]
    assert codes(tdx, {"platforms": []}) == ["chip-not-allowed"]
    assert codes(tdx, {"providers": {"acme": ["00" * 16]}}) == ["provider-not-allowed"]
    assert codes(tdx, {"providers": {}}) == ["provider-not-allowed"]
    assert rules(tdx, providers={"acme": [ppid]}).provider(verified(tdx)) == "acme"
    assert rules(tdx).provider(verified(tdx)) is None
    for member, value in (
        ("fmspc_banned", [fmspc + "00"]),
        ("platforms", [ppid[2:]]),
        ("fmspc", [fmspc.upper()]),
    ):
        with pytest.raises(ValidationError):
            rules(tdx, **{member: value})


def test_tdx_bits_and_module(tdx: TdxTestPlatform) -> None:
    exact = "0000001000000000"
    assert codes(tdx, {"td_attributes": exact, "td_attributes_required": exact}) == []
    assert codes(tdx, {"td_attributes": "00" * 8}) == ["attributes-not-allowed"]
    assert codes(tdx, {"td_attributes_required": "0000003000000000"}) == ["attributes-not-allowed"]
    assert codes(tdx, {"xfam_allowed": "e702060000000000"}) == []
    assert codes(tdx, {"xfam_allowed": "e702000000000000"}) == ["attributes-not-allowed"]
    assert codes(tdx, {"mr_seam": ["00" * 48]}) == []
    assert codes(tdx, {"mr_seam": ["01" * 48]}) == ["measurement-not-allowed"]


def test_sgx_rules_name_the_code(sgx: SgxTestPlatform) -> None:
    signer = {"registers": {"mrsigner": ["00" * 32]}}
    assert codes(sgx, signer | {"isv_prod_id": [7]}, isv_prod_id=7) == []
    assert codes(sgx, signer | {"isv_prod_id": [7]}, isv_prod_id=8) == ["enclave-not-allowed"]
    for said in (
        signer,
        {"registers": {}},
        {"registers": {"mrenclave": []}},
        signer | {"isv_prod_id": "any"},
    ):
        with pytest.raises(ValidationError):
            rules(sgx, **said)


def test_every_failure_is_listed(tdx: TdxTestPlatform) -> None:
    tdx.tcb = bytes([3] * 8 + [0] * 8)
    found = codes(
        tdx,
        {
            "registers": {"mrtd": ["01" * 48], "rtmr1": ["00" * 48], "rtmr2": ["00" * 48]},
            "fmspc": [],
            "minimum_qe_svn": 9,
            "mr_seam": [],
        },
        td_attributes=bytes.fromhex("0100000000000000"),
    )
    assert found == [
        "tcb-out-of-date",
        "debug",
        "sept-ve-enabled",
        "measurement-not-allowed",
        "register-not-listed",
        "advisory-not-allowed",
        "tcb-below-minimum",
        "product-not-allowed",
        "measurement-not-allowed",
    ]


def test_rules_of_the_other_platform(tdx: TdxTestPlatform, sgx: SgxTestPlatform) -> None:
    with pytest.raises(TypeError):
        list(rules(sgx).refusals(verified(tdx)))
    with pytest.raises(TypeError):
        list(rules(tdx).refusals(verified(sgx)))
