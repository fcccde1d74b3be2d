"""What a policy refuses of genuine SEV-SNP evidence: every rule, every reason at once."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from tests.snp.support import DATA, platform, verify_fake

from sealwright.appraisal.snp import SnpRules
from sealwright.crypto.canonical import canonical, parse_canonical
from sealwright.evidence.snp import HOST_VMPL
from sealwright.evidence.snp_fields import TcbVersion
from sealwright.testing.snp import SnpTestPlatform

FLOOR = {"boot_loader": 10, "tee": 1, "snp": 27, "microcode": 219}
TURIN_FLOOR = FLOOR | {"fmc": 1}


def rules(fake: SnpTestPlatform, product: dict[str, Any] | None = None, **changes: Any) -> SnpRules:
    """Return rules that the fake's usual report meets, with changes."""
    floor = TURIN_FLOOR if fake.product == "Turin" else FLOOR
    said = {
        "roots": [fake.root_fingerprint.hex()],
        "products": {fake.product: {"minimum_tcb": floor, **(product or {})}},
        "registers": {"measurement": ["00" * 48]},
    }
    if fake.kind == "vlek":
        said |= {"signing_keys": ["vlek"], "csp_ids": [fake.csp_id]}
    return SnpRules.model_validate(said | changes)


def codes(fake: SnpTestPlatform, wanted: SnpRules, **changes: Any) -> list[str]:
    """Return the codes of all refusals of a report with changes."""
    verified = verify_fake(fake, fake.report(DATA, **changes))
    return [failure.code for failure in (*wanted.shared_refusals(verified), *wanted.refusals(verified))]


@pytest.fixture(scope="module")
def genoa() -> SnpTestPlatform:
    return platform("Genoa")


@pytest.mark.parametrize("kind", ["vcek", "vlek"])
@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_report_that_is_allowed(product: Any, kind: Any) -> None:
    fake = platform(product, kind=kind)
    assert codes(fake, rules(fake)) == []


def test_generation_that_is_not_named(genoa: SnpTestPlatform) -> None:
    milan = platform("Milan")
    both = rules(genoa, roots=[milan.root_fingerprint.hex(), genoa.root_fingerprint.hex()])
    assert codes(genoa, both) == []
    assert codes(milan, both) == ["product-not-allowed"]


@pytest.mark.parametrize("name", FLOOR)
def test_lowest_tcb(genoa: SnpTestPlatform, name: str) -> None:
    higher = FLOOR | {name: FLOOR[name] + 1}
    assert codes(genoa, rules(genoa, {"minimum_tcb": higher})) == ["tcb-below-minimum"] * 2
    assert codes(genoa, rules(genoa, {"minimum_launch_tcb": higher})) == ["tcb-below-minimum"]
    lower = TcbVersion(fmc=None, **FLOOR | {name: FLOOR[name] - 1})
    assert codes(genoa, rules(genoa), launch_tcb=lower) == ["tcb-below-minimum"]
    old = FLOOR | {name: FLOOR[name] - 1}
    assert codes(genoa, rules(genoa, {"minimum_launch_tcb": old}), launch_tcb=lower) == []


def test_lowest_fmc_of_turin() -> None:
    turin = platform("Turin")
    assert codes(turin, rules(turin, {"minimum_tcb": TURIN_FLOOR | {"fmc": 2}})) == ["tcb-below-minimum"] * 2


@pytest.mark.parametrize(
    ("version", "build", "allowed"),
    [
        ("1.55", 40, True),
        ("1.55", 41, False),
        ("1.54", 255, True),
        ("1.56", 0, False),
        ("2.0", 0, False),
        ("0.99", 99, True),
    ],
)
def test_lowest_firmware(genoa: SnpTestPlatform, version: str, build: int, allowed: bool) -> None:
    wanted = rules(genoa, {"minimum_version": version, "minimum_build": build})
    assert codes(genoa, wanted) == ([] if allowed else ["firmware-below-minimum"])


def test_lowest_firmware_is_the_one_that_is_committed(genoa: SnpTestPlatform) -> None:
    wanted = rules(genoa, {"minimum_version": "1.55", "minimum_build": 40}, admit=["provisional-firmware"])
    assert codes(genoa, wanted, committed=(1, 55, 39)) == ["firmware-below-minimum"]
    assert codes(genoa, wanted, current=(1, 55, 41)) == []


def test_mitigations(genoa: SnpTestPlatform) -> None:
    for name in ("launch", "current"):
        wanted = rules(genoa, {f"minimum_{name}_mit_vector": "0x5"})
        for vector, allowed in ((0, False), (4, False), (5, True), (7, True), (0xA, False)):
            found = codes(genoa, wanted, **{f"{name}_mit_vector": vector})
            assert found == ([] if allowed else ["mitigation-missing"])
        assert codes(genoa, wanted, version=3) == ["mitigation-missing"]


def test_vleks_are_admitted_by_name_only() -> None:
    fake = platform("Genoa", kind="vlek")
    vcek_only = rules(fake, signing_keys=["vcek"], csp_ids=[])
    assert codes(fake, vcek_only) == ["signing-key-not-allowed", "csp-not-allowed"]
    assert SnpRules.model_validate({"products": {"Genoa": {"minimum_tcb": FLOOR}}}).signing_keys == ["vcek"]
    assert codes(fake, rules(fake, csp_ids=["CN=other.example.com"])) == ["csp-not-allowed"]


def test_chips(genoa: SnpTestPlatform) -> None:
    assert codes(genoa, rules(genoa, chips=[genoa.hwid.hex()])) == []
    assert codes(genoa, rules(genoa, chips=["00" * 64])) == ["chip-not-allowed"]
    vlek = platform("Genoa", kind="vlek")
    assert codes(vlek, rules(vlek, chips=[genoa.hwid.hex()])) == ["chip-not-allowed"]
    masked = rules(genoa, chips=[genoa.hwid.hex()], admit=["chip-id-masked"])
    assert codes(genoa, masked, chip_id=bytes(64)) == []


def test_vmpl(genoa: SnpTestPlatform) -> None:
    assert codes(genoa, rules(genoa), vmpl=1) == ["vmpl-not-allowed"]
    assert codes(genoa, rules(genoa, vmpl=[0, 2]), vmpl=2) == []
    assert codes(genoa, rules(genoa, vmpl=[0, 1, 2, 3]), vmpl=HOST_VMPL) == ["vmpl-not-allowed"]


def test_guest_policy(genoa: SnpTestPlatform) -> None:
    assert codes(genoa, rules(genoa), policy=0x230000) == ["guest-policy-not-allowed"]  # CXL
    free = rules(genoa, guest_policy={"forbid": []})
    assert codes(genoa, free, policy=0x230000) == []
    strict = rules(
        genoa,
        guest_policy={"require": ["single_socket", "rapl_dis"], "forbid": ["smt"], "minimum_abi": "1.55"},
    )
    assert codes(genoa, strict) == ["guest-policy-not-allowed"] * 4
    assert codes(genoa, strict, policy=0x920000 | 0x0137) == []
    assert codes(genoa, strict, policy=0x920000 | 0x0136) == ["guest-policy-not-allowed"]


def test_platform_info(genoa: SnpTestPlatform) -> None:
    strict = rules(genoa, platform_info={"require": ["alias_check_complete", "ecc_en"], "forbid": ["smt_en"]})
    assert codes(genoa, strict) == ["platform-info-not-allowed"]
    assert codes(genoa, strict, platform_info=0x24) == []
    assert codes(genoa, strict, platform_info=0) == [
        "alias-check-incomplete",
        *["platform-info-not-allowed"] * 2,
    ]
    loose = rules(genoa, admit=["alias-check-incomplete"])
    assert codes(genoa, loose, platform_info=0) == []


def test_id_block(genoa: SnpTestPlatform) -> None:
    one, two = b"1" * 48, b"2" * 48
    wanted = rules(genoa, id_keys=[one.hex()], author_keys=[two.hex()])
    refusal = ["id-block-not-allowed"]
    assert codes(genoa, wanted) == refusal
    assert codes(genoa, wanted, id_key_digest=one) == []
    assert codes(genoa, wanted, id_key_digest=two) == refusal
    assert codes(genoa, wanted, author_key_digest=two, key_info=1) == []
    assert codes(genoa, wanted, author_key_digest=two) == refusal  # it says that there was no author key
    assert codes(genoa, wanted, author_key_digest=one, key_info=1) == refusal
    by_author = rules(genoa, id_keys=[one.hex()], author_keys=[two.hex()], require_author_key=True)
    assert codes(genoa, by_author, id_key_digest=one) == refusal
    assert codes(genoa, by_author, id_key_digest=one, author_key_digest=two, key_info=1) == []
    assert codes(genoa, rules(genoa, minimum_guest_svn=2), guest_svn=1) == refusal
    assert codes(genoa, rules(genoa, minimum_guest_svn=2), guest_svn=2) == []


@pytest.mark.parametrize(
    ("rule", "field", "length"),
    [
        ("family_ids", "family_id", 16),
        ("image_ids", "image_id", 16),
        ("report_ids", "report_id", 32),
        ("report_ids_ma", "report_id_ma", 32),
    ],
)
def test_guest_identity(genoa: SnpTestPlatform, rule: str, field: str, length: int) -> None:
    wanted = rules(genoa, **{rule: [(b"x" * length).hex()], "admit": ["migration"]})
    assert codes(genoa, wanted, **{field: b"x" * length}) == []
    assert codes(genoa, wanted, **{field: b"y" * length}) == ["guest-identity-not-allowed"]


def test_registers_roots_and_conditions(genoa: SnpTestPlatform) -> None:
    wanted = rules(genoa, registers={"measurement": ["00" * 48], "host_data": ["11" * 32]}, roots=[])
    found = codes(genoa, wanted, policy=0xB0000)
    assert found == ["debug", "root-not-allowed", "measurement-not-allowed"]


def test_every_reason_is_told() -> None:
    fake = platform("Milan", kind="vlek")
    wanted = rules(platform("Genoa"), roots=[fake.root_fingerprint.hex()], minimum_guest_svn=1)
    assert codes(fake, wanted, vmpl=2, policy=0x230000) == [
        "product-not-allowed",
        "signing-key-not-allowed",
        "csp-not-allowed",
        "vmpl-not-allowed",
        "guest-policy-not-allowed",
        "id-block-not-allowed",
    ]


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"products": {}},
        {"products": {"Venice": {"minimum_tcb": FLOOR}}},
        {"products": {"Genoa": {}}},
        {"products": {"Genoa": {"minimum_tcb": {}}}},
        {"products": {"Genoa": {"minimum_tcb": TURIN_FLOOR}}},
        {"products": {"Turin": {"minimum_tcb": FLOOR}}},
        {"products": {"Turin": {"minimum_tcb": TURIN_FLOOR, "minimum_launch_tcb": FLOOR}}},
        {"signing_keys": []},
        {"signing_keys": ["vcek", "vlek"]},
        {"vmpl": []},
        {"vmpl": [4]},
        {"chips": []},
        {"chips": "all"},
        {"family_ids": None},
        {"require_author_key": True},
        {"guest_policy": {"require": ["sev_es"]}},
        {"platform_info": {"forbid": ["unknown"]}},
        {"unknown_rule": 1},
    ],
)
def test_rules_that_are_not_accepted(said: dict[str, Any]) -> None:
    base = {"products": {"Genoa": {"minimum_tcb": FLOOR}}}
    with pytest.raises(ValidationError):
        SnpRules.model_validate(base | said if said else {})


def test_rules_are_one_document(genoa: SnpTestPlatform) -> None:
    wanted = rules(genoa, chips=[genoa.hwid.hex()], id_keys=["ab" * 48])
    raw = canonical(wanted.to_json())
    assert SnpRules.model_validate(parse_canonical(raw)) == wanted
