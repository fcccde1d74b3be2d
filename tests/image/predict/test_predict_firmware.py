"""Firmware: its table of GUIDs, and metadata of SEV and TDX."""

from __future__ import annotations

import struct

import pytest
from tests.image.predict.support import SIZE, SNP_SECTIONS, TDX_SECTIONS, firmware

from sealwright.errors import FormatError
from sealwright.image.predict.firmware import Firmware

GOOD = firmware()


def at(offset: int, layout: str, *values: int | bytes) -> bytes:
    """Return the firmware with something else at `offset` from its end."""
    raw = bytearray(GOOD)
    struct.pack_into(layout, raw, len(raw) - offset, *values)
    return bytes(raw)


def read(raw: bytes) -> None:
    found = Firmware.parse(raw)
    found.snp_sections()
    found.tdx_sections()
    found.sev_es_reset()


def code(raw: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        read(raw)
    return caught.value.code


def test_metadata() -> None:
    found = Firmware.parse(GOOD)
    assert found.gpa == (1 << 32) - SIZE
    assert [(one.gpa, one.size, one.kind) for one in found.snp_sections()] == list(SNP_SECTIONS)
    assert [one.memory_address for one in found.tdx_sections()] == [one[2] for one in TDX_SECTIONS]
    assert (found.sev_es_reset(), found.sev_hash_table()) == (0x80B004, 0x810C00)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        GOOD[:-1],
        bytes(65 << 20),
        bytes(SIZE),
        at(32 + 18, "<H", 17),
        at(32 + 18, "<H", 0xFFFF),
        at(32 + 36, "<H", 17),  # the last entry: shorter than its own head
        at(32 + 36, "<H", 200),  # or longer than the table
        at(4096, "<4s", b"XXXX"),
        at(4096 - 8, "<I", 2),
        at(4096 - 12, "<I", 0),
        at(4096 - 12, "<I", 65),
        at(4096 - 16, "<I", 0x800001),
        at(4096 - 20, "<I", 0x900),
        at(4096 - 20, "<I", 0x80000000),
        at(3072, "<4s", b"XXXX"),
        at(3072 - 8, "<I", 2),
        at(3072 - 12, "<I", 0),
        at(3072 - 12, "<I", 65),
        at(3072 - 16, "<I", SIZE),  # data beyond the file
        at(3072 - 20, "<I", 0xF000),  # more data than memory
        at(3072 - 20, "<I", 0x100),
        at(3072 - 24, "<Q", 1),
        at(3072 - 32, "<Q", 1 << 40),
    ],
)
def test_what_is_refused(raw: bytes) -> None:
    assert code(raw) == "malformed-firmware"


@pytest.mark.parametrize(
    ("guid", "wanted"),
    [("dc886566", "no-snp-metadata"), ("00f771de", "no-snp-metadata"), ("e47a6535", "no-tdx-metadata")],
)
def test_firmware_for_another_platform_is_refused(guid: str, wanted: str) -> None:
    assert code(firmware(without=(guid,))) == wanted
