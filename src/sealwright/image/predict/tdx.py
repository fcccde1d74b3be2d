"""TDX: MRTD from the firmware's metadata, RTMR 0 to 3 as far as files give them.

Facts: Intel TDX Module ABI (TDH.MEM.PAGE.ADD, TDH.MR.EXTEND), TDX Virtual Firmware Design Guide; UEFI 2.10, section 38.4.1
(PCR to RTMR); TianoCore OvmfPkg/Tcg/TdTcg2Dxe. Spec: docs/spec/predicted-measurements.md, "TDX".
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sealwright.errors import FormatError
from sealwright.image.predict.events import (
    NotPredicted,
    PredictedEvent,
    Prediction,
    measured,
    predicted,
)
from sealwright.image.predict.firmware import PAGE, Firmware, TdxSection
from sealwright.image.predict.pcr import (
    Boot,
    Digests,
    exit_events,
    image_events,
    kernel_events,
    section_events,
)

# How a VMM adds memory: each page is extended as it is added (Linux 6.16 and QEMU 10.1 on), or a section is added whole
# and then extended (the first patches for TDX, QEMU 8).
PageOrder = Literal["page", "section"]
_MR_EXTEND, _PAGE_AUG = 1, 2  # attributes of a section
_CONFIGURATION = 1  # kind of the section with UEFI variables
_CHUNK = 256  # bytes of one TDH.MR.EXTEND
_PADDED = 128  # bytes of the record before it


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxBoot:
    """How a TD boots, as far as it is measured.

    `vtpm`: beside a TPM the kernel measures into that alone, while the stub measures into both (Google's TDs).
    """

    boot: Boot = "kernel"
    secure: bool = False
    vtpm: bool = False
    page_order: PageOrder = "page"
    gpt: bytes | None = None  # UEFI_GPT_DATA of the disk, for a boot from one


def predict_tdx(firmware: Firmware | None, uki: Digests, how: TdxBoot) -> Prediction:
    """Return MRTD and RTMR0 to RTMR2; RTMR3 holds the config, or nothing.

    Args:
        uki: its SHA-384 digests.
        firmware: None: the cloud's, which its vendor's endorsement speaks for.

    Raises:
        FormatError: `no-tdx-metadata`, `malformed-firmware`.
    """
    events = [*_rtmr0(firmware), *_rtmr1(uki, how), *_rtmr2(uki, how)]
    rest = predicted(("rtmr0", "rtmr1", "rtmr2"), events, "sha384")
    if firmware is None:
        reason = "the cloud's firmware is not given: its vendor endorses MRTD"
        return Prediction(registers={}, missing=(NotPredicted(register="mrtd", reason=reason),)) | rest
    return Prediction(registers={"mrtd": mrtd(firmware, how.page_order)}) | rest


def mrtd(firmware: Firmware, order: PageOrder = "page") -> bytes:
    """Return MRTD (48 bytes): SHA-384 over every page added and every chunk extended.

    Raises:
        FormatError: `no-tdx-metadata`, `malformed-firmware`.
    """
    digest = hashlib.sha384()
    for section in firmware.tdx_sections():
        for record in _records(firmware, section, order):
            digest.update(record)
    return digest.digest()


def _records(firmware: Firmware, section: TdxSection, order: PageOrder) -> Iterator[bytes]:
    if section.attributes & ~(_MR_EXTEND | _PAGE_AUG):
        raise FormatError("a TDX section with unknown attributes", code="malformed-firmware")
    pages = range(0, section.memory_data_size, PAGE)
    steps = [_added, _extended] if order == "section" else [_added_and_extended]
    for step in steps:
        for page in pages:
            yield from step(firmware, section, page)


def _added_and_extended(firmware: Firmware, section: TdxSection, page: int) -> Iterator[bytes]:
    yield from _added(firmware, section, page)
    yield from _extended(firmware, section, page)


def _added(_: Firmware, section: TdxSection, page: int) -> Iterator[bytes]:
    if not section.attributes & _PAGE_AUG:
        yield _record(b"MEM.PAGE.ADD", section.memory_address + page)


def _extended(firmware: Firmware, section: TdxSection, page: int) -> Iterator[bytes]:
    if not section.attributes & _MR_EXTEND:
        return
    data = firmware.raw[section.data_offset : section.data_offset + section.raw_data_size]
    for at in range(page, page + PAGE, _CHUNK):
        yield _record(b"MR.EXTEND", section.memory_address + at)
        yield data[at : at + _CHUNK].ljust(_CHUNK, b"\0")


def _record(name: bytes, gpa: int) -> bytes:
    return (name.ljust(16, b"\0") + struct.pack("<Q", gpa)).ljust(_PADDED, b"\0")


def _rtmr0(firmware: Firmware | None) -> Iterator[PredictedEvent]:
    """Memory map and ACPI tables are the VMM's, boot variables follow from its devices."""
    yield PredictedEvent(register="rtmr0", what="the VMM's memory map (TD HOB)", digest=None)
    for section in firmware.tdx_sections() if firmware is not None else ():
        if section.kind == _CONFIGURATION and firmware is not None:
            data = firmware.raw[section.data_offset : section.data_offset + section.raw_data_size]
            yield measured("rtmr0", "configuration volume", data, "sha384")
    yield PredictedEvent(
        register="rtmr0", what="UEFI variables, ACPI tables and boot options of the VMM", digest=None
    )


def _rtmr1(uki: Digests, how: TdxBoot) -> Iterator[PredictedEvent]:
    images = image_events("rtmr1", uki, boot=how.boot, secure=how.secure)
    if how.boot == "disk":
        calling, separator, *rest = images
        yield from (calling, separator, _gpt(how.gpt), *rest)
    else:
        yield from images
    yield from exit_events("rtmr1", "sha384")


def _gpt(data: bytes | None) -> PredictedEvent:
    what = "partition table of the disk"
    if data is None:
        return PredictedEvent(register="rtmr1", what=what, digest=None)
    return measured("rtmr1", what, data, "sha384")


def _rtmr2(uki: Digests, how: TdxBoot) -> list[PredictedEvent]:
    sections = section_events("rtmr2", uki)
    if how.vtpm:
        return sections
    return [*sections, *kernel_events("rtmr2", uki)]
