"""Several devices: each genuine, none twice, wired as the policy wants; and what a policy says about them."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from pydantic import ValidationError
from tests.nvidia.support import NONCE, NOW, OUTAGE, context, fake, nvidia

from sealwright.appraisal.nvgpu import DriverRule, GpuRules, VbiosRule
from sealwright.crypto.encoding import joined
from sealwright.endorsement.bag import Endorsements
from sealwright.errors import SealwrightError, VerificationError
from sealwright.evidence import nvopaque
from sealwright.evidence.envelope import DeviceEvidence
from sealwright.evidence.nvgpu import Stated
from sealwright.protocol.report_data import device_nonce
from sealwright.testing._nvidia_pki import issue
from sealwright.testing.nvgpu import DRIVER, GPU_VBIOS, SWITCH_VBIOS, FakeDevice
from sealwright.verify.context import Context
from sealwright.verify.nvgpu import VerifiedGpu
from sealwright.verify.nvgpu_devices import topology, verify_devices

PROTECTED = Stated(environment="production", cc_feature="off", devtools="off", multi_gpu="protected-pcie")


def verified(*devices: DeviceEvidence, nonce: bytes = NONCE) -> tuple[VerifiedGpu, ...]:
    """Verify devices of the fake NVIDIA."""
    return verify_devices(devices, Endorsements(), expected_nonce=nonce, context=context())


def evidence(*devices: FakeDevice, stated: Stated = PROTECTED) -> list[DeviceEvidence]:
    """Return the evidence of devices, as an envelope carries it."""
    return [nvidia().evidence(one, NONCE, stated=stated) for one in devices]


def rules(**changes: Any) -> GpuRules:
    """Return rules that admit one Hopper of the fake NVIDIA."""
    said: dict[str, Any] = {
        "architectures": ["HOPPER"],
        "driver": {"exact": [DRIVER]},
        "vbios": {"exact": [GPU_VBIOS]},
        "roots": [root.hex() for root in sorted(nvidia().roots)],
        "rim_roots": [root.hex() for root in sorted(nvidia().roots)],
    }
    return GpuRules.model_validate(said | changes)


def codes(found: GpuRules, *devices: VerifiedGpu) -> list[str]:
    """Return the codes of all refusals: each device's, then those of all together."""
    each = [one for device in devices for one in (*found.shared_refusals(device), *found.refusals(device))]
    return [one.code for one in (*each, *found.device_refusals(devices))]


def test_the_nonce_of_a_device() -> None:
    said = b"\0\0\0\x14sealwright/device/v1" + b"\0\0\0\x20" + bytes(32) + b"\0\0\0\x20" + bytes([1]) * 32
    assert device_nonce(bytes(32), bytes([1]) * 32) == hashlib.sha256(said).digest()
    assert said == joined("sealwright/device/v1", bytes(32), bytes([1]) * 32)
    for nonce, keyset in ((b"", bytes(32)), (bytes(32), bytes(31)), (bytes(64), bytes(32))):
        with pytest.raises(ValueError, match="32 bytes"):
            device_nonce(nonce, keyset)


def test_devices_in_their_slots() -> None:
    gpu, switch = nvidia().device(), nvidia().device("LS10")
    found = verified(*evidence(gpu, switch))
    assert [one.platform for one in found] == ["nvgpu", "nvswitch"]
    assert [one.pdi for one in found] == [gpu.pdi, switch.pdi]


def test_what_is_known_beside_the_evidence_counts_too() -> None:
    device = nvidia().device()
    bare = DeviceEvidence(type="nvgpu", evidence=device.document(NONCE), endorsements=())
    known = Endorsements.detect(nvidia().endorsements(device))
    assert verify_devices([bare], known, expected_nonce=NONCE, context=context())[0].compared


def test_no_device_stands_twice() -> None:
    gpu, other = nvidia().device(), nvidia().device()
    for devices in ([gpu, gpu], [gpu, other, gpu]):
        with pytest.raises(VerificationError) as caught:
            verified(*evidence(*devices))
        assert (caught.value.stage, caught.value.code) == ("devices", "duplicate-device")


def test_a_second_certificate_of_one_boot_rom_is_the_same_device() -> None:
    """New firmware, new attestation key: the device stays, and would be counted twice."""
    gpu = nvidia().device()
    dice = [
        (one.value, False)
        for one in gpu.entity.certificate.extensions
        if one.oid.dotted_string == "2.23.133.5.4.1"
    ]
    again = issue("GH100 A01 GSP FMC LF", gpu.entity.issuer, NOW, ca=False, extensions=dice)
    twin = FakeDevice("HOPPER", again, gpu.fwid, gpu.measurements, gpu.opaque)
    with pytest.raises(VerificationError) as caught:
        verified(*evidence(gpu, twin))
    assert caught.value.code == "duplicate-device"


def test_a_switch_that_stands_as_a_gpu() -> None:
    switch = evidence(nvidia().device("LS10"))[0]
    with pytest.raises(VerificationError) as caught:
        verified(DeviceEvidence(type="nvgpu", evidence=switch.evidence, endorsements=switch.endorsements))
    assert (caught.value.stage, caught.value.code) == ("devices", "device-type-mismatch")


def test_one_bad_device_is_enough() -> None:
    first, second = evidence(nvidia().device(), nvidia().device())
    with pytest.raises(SealwrightError) as caught:
        verified(first, second, nonce=bytes(32))
    assert caught.value.code == "report-data-mismatch"
    with pytest.raises(SealwrightError) as caught:
        verified(first, DeviceEvidence(type="nvgpu", evidence=second.evidence, endorsements=()))
    assert caught.value.code == "collateral-missing"


def test_a_machine_is_closed_and_another_is_not() -> None:
    gpus, switches = nvidia().machine(4, 2)
    found = verified(*evidence(*gpus, *switches))
    assert topology(found).closed
    assert not topology(found[:-1]).closed  # a switch that is not there
    assert not topology(found[1:]).closed  # a GPU that is not there
    stranger = fake(nvidia().device())
    assert not topology((*found, stranger)).closed
    assert topology(()).closed  # nothing sees nothing; the count is another rule


def test_a_policy_admits_exactly_what_it_names() -> None:
    assert codes(rules(), fake(nvidia().device())) == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"architectures": ["BLACKWELL"]}, "architecture-not-allowed"),
        ({"driver": {"exact": ["550.90.08"]}}, "driver-version-not-allowed"),
        ({"driver": {"minimum": "550.90.08"}}, "driver-version-not-allowed"),
        ({"vbios": {"exact": ["96.00.9F.00.02"]}}, "vbios-version-not-allowed"),
        ({"vbios": {"minimum": "96.00.A0.00.00"}}, "vbios-version-not-allowed"),
        ({"vbios": {"minimum": "96.01.00.00.00"}}, "vbios-version-not-allowed"),
        ({"vbios": {"minimum": "95.00.00.00.00"}}, "vbios-version-not-allowed"),
        ({"modes": ["ppcie"]}, "gpu-mode-not-allowed"),
        ({"rims": ["00" * 32]}, "rim-not-allowed"),
        ({"count": {"minimum": 2, "maximum": 8}}, "device-count-not-allowed"),
        ({"count": {"minimum": 0, "maximum": 0}}, "device-count-not-allowed"),
        ({"registers": {"msr0": ["00" * 48]}}, "measurement-not-allowed"),
        ({"registers": {"msr64": ["00" * 48]}}, "register-missing"),
    ],
)
def test_a_policy_refuses(changes: dict[str, Any], code: str) -> None:
    assert set(codes(rules(**changes), fake(nvidia().device()))) == {code}


@pytest.mark.parametrize(("flag", "status"), [(b"\7", b"\x55"), (b"\0", b"\xaa"), (b"\2", b"\x55")])
def test_a_mode_that_is_unknown_or_contradicts_itself_is_none_that_a_policy_lists(
    flag: bytes, status: bytes
) -> None:
    # `unknown-bits` is also what a newer driver's opaque fields give: to admit those admits no mode.
    device = nvidia().device()
    device.opaque[nvopaque.FEATURE_FLAG] = flag
    device.opaque[nvopaque.PROTECTED_PCIE_STATUS] = status
    found = codes(rules(admit=["unknown-bits"], modes=["spt", "mpt", "ppcie", "unstated"]), fake(device))
    assert found == ["gpu-mode-not-allowed"]


@pytest.mark.parametrize(
    "changes",
    [
        {"driver": {"minimum": "535.104"}},
        {"driver": {"any": True}},
        {"vbios": {"minimum": "96.00.9F.00.01"}},
        {"vbios": {"any": True}},
        {"modes": ["mpt", "spt"]},
        {"count": {"minimum": 0, "maximum": 8}},
    ],
)
def test_a_policy_admits(changes: dict[str, Any]) -> None:
    assert codes(rules(**changes), fake(nvidia().device())) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"driver": {}},
        {"driver": {"any": True, "minimum": "550.1"}},
        {"driver": {"exact": ["latest"]}},
        {"driver": {"minimum": "550"}},
        {"vbios": {"exact": ["96.00.9f.00.01"]}},
        {"vbios": {"minimum": "1.2"}},
        {"modes": []},
        {"modes": ["off"]},
        {"architectures": []},
        {"architectures": ["AMPERE"]},
        {"count": {"minimum": 2, "maximum": 1}},
        {"count": {"minimum": 1, "maximum": 33}},
        {"rims": ["00"]},
        {"unknown": True},
    ],
)
def test_a_policy_that_says_nothing_clear_is_malformed(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        rules(**changes)


def test_versions_are_numbers() -> None:
    driver = DriverRule(minimum="550.90.07")
    for version, allowed in (
        ("550.90.7", True),
        ("550.100", True),
        ("1000.1", True),
        ("550.90", False),
        ("", False),
    ):
        assert driver.allows(version, base=10) is allowed
    vbios = VbiosRule(minimum="96.00.9F.00.01", exact=["97.00.00.00.00"])
    for version, allowed in (
        ("96.00.A0.00.00", True),
        ("96.00.9E.FF.FF", False),
        ("97.00.00.00.00", True),
        ("97.00.00.00.01", False),
    ):
        assert vbios.allows(version) is allowed


def test_roots_of_device_and_rim_have_to_be_named_each() -> None:
    found = fake(nvidia().device())
    device, rim = found.root, found.rims[0].root
    assert codes(rules(roots=[], rim_roots=[]), found) == ["root-not-allowed"] * 3
    assert codes(rules(roots=[rim.hex()]), found) == ["root-not-allowed"]
    assert codes(rules(rim_roots=[device.hex()]), found) == ["root-not-allowed"] * 2
    apart = rules(roots=[device.hex()], rim_roots=[rim.hex()])
    assert codes(apart, found) == []
    assert apart.context(Context(at=NOW)).roots == {device, rim}
    swapped = rules(roots=[rim.hex()], rim_roots=[device.hex()])
    assert codes(swapped, found) == ["root-not-allowed"] * 3


def test_conditions_are_admitted_by_name_only() -> None:
    device = nvidia().device()
    whole = nvidia().endorsements(device)
    device.measurements[8] = bytes(48)
    found = fake(device, endorsements=whole)
    assert codes(rules(), found) == ["measurement-mismatch"]
    assert codes(rules(admit=["debug"]), found) == ["measurement-mismatch"]
    assert codes(rules(admit=["measurement-mismatch"]), found) == []


def test_measurements_that_were_not_compared_need_a_word_in_the_policy_beside_the_outage() -> None:
    device = nvidia().device()
    found = fake(device, endorsements=(), outage=OUTAGE)
    assert codes(rules(), found) == ["measurements-not-compared"]
    assert codes(rules(uncompared=True), found) == []


def test_every_failure_is_listed() -> None:
    found = fake(nvidia().device(), endorsements=(), outage=OUTAGE)
    strict = rules(
        architectures=["BLACKWELL"],
        driver={"exact": ["1.1"]},
        vbios={"exact": ["96.00.00.00.00"]},
        modes=["mpt"],
        roots=[],
    )
    assert codes(strict, found) == [
        "root-not-allowed",
        "architecture-not-allowed",
        "driver-version-not-allowed",
        "vbios-version-not-allowed",
        "gpu-mode-not-allowed",
        "measurements-not-compared",
    ]


def _machine_rules(**changes: Any) -> GpuRules:
    switches = {"count": {"minimum": 2, "maximum": 2}, "vbios": {"exact": [SWITCH_VBIOS]}} | changes
    return rules(
        architectures=["HOPPER", "LS10"],
        modes=["ppcie"],
        count={"minimum": 3, "maximum": 3},
        switches=switches,
    )


def test_switches() -> None:
    gpus, switches = nvidia().machine(3, 2)
    found = verified(*evidence(*gpus, *switches))
    assert codes(_machine_rules(), *found) == []
    assert (
        codes(_machine_rules(vbios={"exact": ["96.10.55.00.02"]}), *found)
        == ["vbios-version-not-allowed"] * 2
    )
    assert codes(_machine_rules(), *found[:-1]) == ["device-count-not-allowed", "device-topology"]
    assert codes(_machine_rules(), *found[:3]) == ["device-count-not-allowed"]
    stranger = fake(nvidia().device("LS10"))
    assert codes(_machine_rules(), *found[:-1], stranger) == ["device-topology"]
    assert codes(_machine_rules(topology=False), *found[:-1], stranger) == []


def test_switches_that_are_not_admitted_or_not_locked() -> None:
    switch = nvidia().device("LS10")
    assert codes(rules(count={"minimum": 0, "maximum": 0}), fake(switch)) == ["architecture-not-allowed"]
    switch.opaque[nvopaque.LOCK_STATUS] = b"\0\0"
    found = fake(switch)
    admitting = {"count": {"minimum": 1, "maximum": 1}, "vbios": {"any": True}, "topology": False}
    none = {"minimum": 0, "maximum": 0}
    assert codes(rules(architectures=["LS10"], count=none, switches=admitting), found) == [
        "switch-not-locked"
    ]
    assert (
        codes(rules(architectures=["LS10"], count=none, switches=admitting | {"locked": False}), found) == []
    )
    assert codes(rules(count=none, switches=admitting), found) == ["architecture-not-allowed"]
