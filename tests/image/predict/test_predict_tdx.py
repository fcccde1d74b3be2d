"""TDX: MRTD against an independent reading of the rules, RTMRs against real logs as far as these go."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from tests.image.predict.support import TDX_SECTIONS, firmware, gpt, parsed
from tests.vector_files import vector

from sealwright.errors import FormatError
from sealwright.evidence.eventlog import EventLog
from sealwright.image.predict.firmware import Firmware
from sealwright.image.predict.gpt import gpt_event
from sealwright.image.predict.pcr import Digests
from sealwright.image.predict.tdx import TdxBoot, mrtd, predict_tdx
from sealwright.verify.measured import EV_EFI_ACTION, EV_EFI_PLATFORM_FIRMWARE_BLOB2

RAW = firmware()
UKI = Digests.of(parsed(), "sha384")
LOGS = (
    "trustee-ccel/eventlog__test_data__CCEL_data_ovmf",
    "attestation-rs/attestation__test_data__tdx_ccel_live2.dat",
)


def slow_mrtd(raw: bytes, *, by_page: bool) -> bytes:
    """Return MRTD, written down a second time from the TDX module's specification."""
    records: list[bytes] = []
    for offset, size, address, memory, _, attributes in TDX_SECTIONS:
        adds = {
            page: b"MEM.PAGE.ADD" + bytes(4) + struct.pack("<Q", address + page) + bytes(104)
            for page in range(0, memory, 4096)
            if not attributes & 2
        }
        extends: dict[int, bytes] = {}
        for at in range(0, memory if attributes & 1 else 0, 256):
            head = b"MR.EXTEND" + bytes(7) + struct.pack("<Q", address + at) + bytes(104)
            extends[at] = head + raw[offset : offset + size][at : at + 256]
        if not by_page:
            records += [*adds.values(), *extends.values()]
            continue
        for page, add in adds.items():
            records += [add, *(extends[page + at] for at in range(0, 4096, 256) if page + at in extends)]
    return hashlib.sha384(b"".join(records)).digest()


def test_mrtd() -> None:
    found = Firmware.parse(RAW)
    assert mrtd(found) == slow_mrtd(RAW, by_page=True)
    assert mrtd(found, "section") == slow_mrtd(RAW, by_page=False)
    assert mrtd(found) != mrtd(found, "section")


def test_a_byte_of_code_changes_mrtd_and_one_of_variables_does_not() -> None:
    code, variables = bytearray(RAW), bytearray(RAW)
    code[0x2000] ^= 1
    variables[0x1000] ^= 1
    assert mrtd(Firmware.parse(bytes(code))) != mrtd(Firmware.parse(RAW))
    assert mrtd(Firmware.parse(bytes(variables))) == mrtd(Firmware.parse(RAW))


def test_unknown_attributes_are_refused() -> None:
    raw = firmware(tdx=((0x2000, 0xD000, 0xFFFF2000, 0xD000, 0, 5),))
    with pytest.raises(FormatError) as caught:
        mrtd(Firmware.parse(raw))
    assert caught.value.code == "malformed-firmware"


def test_what_the_vmm_decides_is_typed_as_not_predicted() -> None:
    found = predict_tdx(Firmware.parse(RAW), UKI, TdxBoot())
    assert list(found.registers) == ["mrtd", "rtmr1", "rtmr2"]
    (missing,) = found.missing
    assert missing.register == "rtmr0"
    assert "TD HOB" in missing.reason
    assert "ACPI" in missing.reason


def test_without_firmware_mrtd_is_left_to_its_vendor() -> None:
    found = predict_tdx(None, UKI, TdxBoot())
    assert "mrtd" not in found.registers
    assert [one.register for one in found.missing] == ["mrtd", "rtmr0"]


def test_a_boot_from_a_disk_needs_its_partition_table() -> None:
    unknown = predict_tdx(None, UKI, TdxBoot(boot="disk"))
    assert [one.register for one in unknown.missing] == ["mrtd", "rtmr0", "rtmr1"]
    known = predict_tdx(None, UKI, TdxBoot(boot="disk", gpt=gpt_event(gpt())))
    whats = [event.what for event in known.events if event.register == "rtmr1"]
    assert whats == [
        "Calling EFI Application from Boot Option",
        "separator",
        "partition table of the disk",
        "unified kernel image",
        "kernel, section .linux",
        "Exit Boot Services Invocation",
        "Exit Boot Services Returned with Success",
    ]


def test_beside_a_tpm_the_kernel_measures_into_that_alone() -> None:
    alone, beside = (
        [
            event.what
            for event in predict_tdx(None, UKI, TdxBoot(vtpm=vtpm)).events
            if event.register == "rtmr2"
        ]
        for vtpm in (False, True)
    )
    assert alone == [*beside, "command line", "initrd"]


def test_secure_boot_takes_the_kernel_out_of_rtmr1() -> None:
    plain, secure = (predict_tdx(None, UKI, TdxBoot(secure=on)).registers for on in (False, True))
    assert plain["rtmr1"] != secure["rtmr1"]
    assert plain["rtmr2"] == secure["rtmr2"]


@pytest.mark.parametrize("name", LOGS)
def test_real_tds_measured_what_is_predicted_of_any_guest(name: str) -> None:
    """Texts of the firmware in RTMR1, in order; and the configuration volume of Debian's OVMF, which these TDs ran."""
    log = EventLog.parse(vector(f"tdx/{name}"))
    logged = [
        event.digest("sha384") for event in log.events if event.type == EV_EFI_ACTION and event.index == 2
    ]
    wanted = [event.digest for event in predict_tdx(None, UKI, TdxBoot()).events if "Boot" in event.what]
    assert logged == wanted
    variables = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
    if not variables.is_file():
        pytest.skip("not installed: ovmf")
    raw = variables.read_bytes()
    section = ((0, len(raw), 0xFFC00000, len(raw), 1, 0),)
    found = Firmware.parse(raw + firmware(tdx=section))
    events = predict_tdx(found, UKI, TdxBoot()).events
    (digest,) = [event.digest for event in events if event.what == "configuration volume"]
    (volume,) = [event for event in log.events if event.type == EV_EFI_PLATFORM_FIRMWARE_BLOB2]
    assert volume.digest("sha384") == digest


def test_tables_of_partitions() -> None:
    good = gpt()
    assert len(gpt_event(good)) == 92 + 8 + 2 * 128
    assert gpt_event(good + bytes(1000)) == gpt_event(good)
    for at in (512, 512 + 16, 512 + 40, 512 + 80, 1024, 1024 + 127 * 128):
        raw = bytearray(good)
        raw[at] ^= 1
        with pytest.raises(FormatError) as caught:
            gpt_event(bytes(raw))
        assert caught.value.code == "malformed-gpt"
    for raw in (b"", good[:1000], good[:-1]):
        with pytest.raises(FormatError):
            gpt_event(raw)
