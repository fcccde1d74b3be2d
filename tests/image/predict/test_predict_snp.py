"""SNP's launch measurement: against sev-snp-measure where it is installed, and against its values, frozen."""

from __future__ import annotations

import hashlib
from itertools import product
from pathlib import Path

import pytest
from tests.image.predict.support import SNP_SECTIONS, firmware

from sealwright.errors import FormatError
from sealwright.image.predict.firmware import Firmware
from sealwright.image.predict.snp import DirectBoot, SnpShape, predict_snp, vcpu_signature
from sealwright.image.predict.vmsa import VCPU_TYPES, Vmm

RAW = firmware()
BOOT = DirectBoot(kernel=b"kernel" * 100, initrd=b"initrd" * 99, cmdline="root=a b")
OVMF = [Path("/usr/share/ovmf/OVMF.fd"), Path("/usr/share/OVMF/OVMF_CODE_4M.fd")]
VMMS: tuple[Vmm, ...] = ("qemu", "ec2", "gce")
# sev-snp-measure 0.0.13 over the same firmware: vmm, vcpus, type, features, direct boot.
FROZEN = {
    (
        "qemu",
        1,
        "EPYC-Milan",
        0x1,
        True,
    ): "5e69aebf8cbcaf5b233883eb0b6cecfe64458c8e2c9489aa32d5a0b415ea65509474c122be7e43aa7aa0e313228526bd",
    (
        "qemu",
        4,
        "EPYC-Genoa",
        0x1,
        True,
    ): "4260adc1e92995f6a9d93f6ea5df474c2f09cf50d6c0227e265a43a4416f64b83695b03606c3376c0420c1194ee5abeb",
    (
        "qemu",
        2,
        "EPYC-Turin-v1",
        0x21,
        False,
    ): "485bb2e2044f0684845b89a135dcdd37edd74d53ee7d36a894c0de87036341638ad308ccee7fa69c2f18f66db9bbb025",
    (
        "ec2",
        2,
        "EPYC-Milan",
        0x1,
        True,
    ): "f8ad9dc02223c514537721bfff2b879796cf1866f47d25f7bcfa3a4a98249b831314ea590fc9a000b3933d36f4c107cb",
    (
        "gce",
        2,
        "EPYC-Milan",
        0x1,
        True,
    ): "168139c4fe1c4f8e18d8e4bb972e25563f56edd6fde62b1fe8a4c7e263c520f3640c28304ff52818bf233ab698b73bfe",
}


def measurement(
    raw: bytes = RAW,
    *,
    vmm: Vmm = "qemu",
    vcpus: int = 2,
    vcpu_type: str = "EPYC-Milan",
    features: int = 1,
    boot: DirectBoot | None = BOOT,
) -> bytes:
    shape = SnpShape(vcpus=vcpus, vcpu_type=vcpu_type, vmm=vmm, features=features)
    return predict_snp(Firmware.parse(raw), shape, boot).registers["measurement"]


def code(raw: bytes = RAW, **changes: object) -> str:
    with pytest.raises(FormatError) as caught:
        measurement(raw, **changes)  # type: ignore[arg-type]
    return caught.value.code


@pytest.mark.parametrize("case", FROZEN, ids=lambda case: "-".join(map(str, case)))
def test_values_of_the_oracle(case: tuple[Vmm, int, str, int, bool]) -> None:
    vmm, vcpus, kind, features, direct = case
    found = measurement(
        vmm=vmm, vcpus=vcpus, vcpu_type=kind, features=features, boot=BOOT if direct else None
    )
    assert found.hex() == FROZEN[case]


@pytest.mark.parametrize("path", [None, *OVMF], ids=lambda path: "made up" if path is None else path.name)
def test_the_oracle_itself(path: Path | None, tmp_path: Path) -> None:
    guest = pytest.importorskip("sevsnpmeasure.guest", reason="an oracle that is not installed")
    from sevsnpmeasure.sev_mode import SevMode
    from sevsnpmeasure.vcpu_types import CPU_SIGS
    from sevsnpmeasure.vmm_types import VMMType

    if path is not None and not path.is_file():
        pytest.skip("not installed: ovmf")
    raw = RAW if path is None else path.read_bytes()
    if "dc886566-984a-4798-a75e-5585a7bf67cc" not in map(str, Firmware.parse(raw).table):
        pytest.skip("this firmware has no SEV metadata")
    files = {"firmware": raw, "kernel": BOOT.kernel, "initrd": BOOT.initrd}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    named = {"qemu": VMMType.QEMU, "ec2": VMMType.ec2, "gce": VMMType.gce}
    counts = (1, 2, 3, 64) if path is None else (2,)
    boots = (BOOT, None) if path is None else (None,)
    for vmm, kind, vcpus, boot in product(VMMS, VCPU_TYPES, counts, boots):
        direct = (str(tmp_path / "kernel"), str(tmp_path / "initrd"), BOOT.cmdline) if boot else ("", "", "")
        wanted = guest.calc_launch_digest(
            SevMode.SEV_SNP,
            vcpus,
            CPU_SIGS[kind],
            str(tmp_path / "firmware"),
            *direct,
            1,
            vmm_type=named[vmm],
        )
        found = measurement(raw, vmm=vmm, vcpus=vcpus, vcpu_type=kind, boot=boot)
        assert found == wanted, (vmm, kind, vcpus, boot)


def test_everything_that_is_given_changes_the_measurement() -> None:
    other = firmware(snp=(*SNP_SECTIONS, (0x900000, 0x1000, 1)))
    found = [
        measurement(),
        measurement(other),
        measurement(vcpus=3),
        measurement(vcpu_type="EPYC-Genoa"),
        measurement(features=0x21),
        measurement(vmm="ec2"),
        measurement(vmm="gce"),
        measurement(boot=None),
        measurement(boot=DirectBoot(kernel=b"k", initrd=BOOT.initrd, cmdline=BOOT.cmdline)),
        measurement(boot=DirectBoot(kernel=BOOT.kernel, initrd=b"i", cmdline=BOOT.cmdline)),
        measurement(boot=DirectBoot(kernel=BOOT.kernel, initrd=BOOT.initrd, cmdline="root=a c")),
    ]
    assert len(set(found)) == len(found)


def test_clouds_do_not_show_the_processor() -> None:
    assert measurement(vmm="ec2", vcpu_type="EPYC") == measurement(vmm="ec2", vcpu_type="EPYC-Turin")


def test_the_hash_table() -> None:
    table = BOOT.table()
    assert len(table) == 176
    for data in (BOOT.kernel, BOOT.initrd, BOOT.cmdline.encode() + b"\0"):
        assert hashlib.sha256(data).digest() in table


def test_what_is_refused() -> None:
    without = tuple(section for section in SNP_SECTIONS if section[2] != 0x10)
    assert code(firmware(snp=without)) == "no-kernel-hashes"
    assert code(firmware(hashes_at=0x820000)) == "malformed-firmware"
    assert code(firmware(hashes_at=0x810F80)) == "malformed-firmware"
    assert code(firmware(snp=((0x810000, 0x2000, 0x10),))) == "malformed-firmware"
    assert code(firmware(snp=((0x80D000, 0x2000, 2), (0x810000, 0x1000, 0x10)))) == "malformed-firmware"
    assert code(firmware(snp=(*SNP_SECTIONS, (0x900000, 0x1000, 9)))) == "malformed-firmware"
    for changes in ({"vcpus": 0}, {"vcpus": 513}, {"features": 0}, {"features": 1 << 64}):
        assert code(**changes) == "unknown-shape"


@pytest.mark.parametrize("name", ["", "EPYC-v", "EPYC-vx", "EPYC-Naples", "Milan", "EPYC-Milan-v2-v3"])
def test_processors_that_are_not_known(name: str) -> None:
    with pytest.raises(FormatError) as caught:
        vcpu_signature(name)
    assert (caught.value.code, caught.value.stage) == ("unknown-shape", "shape")


def test_versions_of_a_processor_are_one() -> None:
    assert vcpu_signature("EPYC-Milan-v2") == vcpu_signature("EPYC-Milan") == 0xA00F11
