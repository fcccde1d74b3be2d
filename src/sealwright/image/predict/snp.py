"""SEV-SNP's launch measurement for direct boot: firmware, its metadata pages, kernel hashes, processors.

Facts: AMD 56860 (SNP Firmware ABI), section 8.17 (PAGE_INFO); QEMU target/i386/sev.c (hash table, order of pages).
Spec: docs/spec/predicted-measurements.md, "SNP".
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from sealwright.errors import FormatError
from sealwright.image.predict.events import Prediction
from sealwright.image.predict.firmware import PAGE, Firmware, SnpSection
from sealwright.image.predict.vmsa import BOOT_EIP, VCPU_TYPES, Vmm, vmsa_page

SNP_ACTIVE = 1  # SEV_FEATURES of a guest that uses SNP and nothing else
MAX_VCPUS = 512
# Section kinds of OVMF's SEV metadata.
_MEMORY, _SECRETS, _CPUID, _SVSM_CAA, _KERNEL_HASHES = 1, 2, 3, 4, 0x10
# Page types of SNP_LAUNCH_UPDATE.
_NORMAL, _VMSA, _ZERO, _UNMEASURED, _SECRETS_PAGE, _CPUID_PAGE = 1, 2, 3, 4, 5, 6
_VMSA_GPA = 0xFFFFFFFFF000
_NOTHING = bytes(48)
_TABLE = UUID("9438d606-4f22-4cc9-b479-a793d411fd21")
_ENTRIES = (  # in the order of the table
    ("cmdline", UUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")),
    ("initrd", UUID("44baf731-3a2f-4bd7-9af1-41e29169781d")),
    ("kernel", UUID("4de79437-abd2-427f-b835-d5b172d2045b")),
)
_ENTRY_BYTES = 16 + 2 + 32
_TABLE_BYTES = 18 + 3 * _ENTRY_BYTES

_Page = tuple[int, int, bytes]  # type, guest physical address, SHA-384 of the content or zeros


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectBoot:
    """What QEMU is given beside the firmware, with `kernel-hashes=on`."""

    kernel: bytes
    initrd: bytes
    cmdline: str

    def table(self) -> bytes:
        """Return the hash table that QEMU writes into the guest, padded to 16 bytes."""
        contents = {"kernel": self.kernel, "initrd": self.initrd, "cmdline": self.cmdline.encode() + b"\0"}
        entries = b"".join(
            guid.bytes_le + struct.pack("<H", _ENTRY_BYTES) + hashlib.sha256(contents[name]).digest()
            for name, guid in _ENTRIES
        )
        table = _TABLE.bytes_le + struct.pack("<H", _TABLE_BYTES) + entries
        return table + bytes(-len(table) % 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpShape:
    """What of a guest's shape is measured."""

    vcpus: int
    vcpu_type: str = "EPYC-Milan"  # for QEMU alone; clouds hide it
    vmm: Vmm = "qemu"
    features: int = SNP_ACTIVE


def predict_snp(firmware: Firmware, shape: SnpShape, boot: DirectBoot | None) -> Prediction:
    """Return register `measurement`. Args: boot: None: the firmware boots from a disk, which is not measured here.

    Raises:
        FormatError: `no-snp-metadata`, `no-kernel-hashes`, `malformed-firmware`, `unknown-shape`.
    """
    digest = _NOTHING
    for page in _pages(firmware, shape, boot):
        digest = _extended(digest, page)
    return Prediction(registers={"measurement": digest})


def _pages(firmware: Firmware, shape: SnpShape, boot: DirectBoot | None) -> Iterator[_Page]:
    for offset in range(0, len(firmware.raw), PAGE):
        yield _NORMAL, firmware.gpa + offset, _sha384(firmware.raw[offset : offset + PAGE])
    sections = _ordered(firmware.snp_sections(), shape.vmm)
    if boot is not None and not any(section.kind == _KERNEL_HASHES for section in sections):
        raise FormatError(
            "this firmware has no page for kernel hashes: it would start any kernel; build OVMF's AmdSevX64",
            code="no-kernel-hashes",
        )
    for section in sections:
        yield from _section_pages(firmware, section, shape.vmm, boot)
    yield from _processors(firmware, shape)


def _ordered(sections: tuple[SnpSection, ...], vmm: Vmm) -> list[SnpSection]:
    """EC2 adds the CPUID page last."""
    return sorted(sections, key=lambda section: vmm == "ec2" and section.kind == _CPUID)


def _section_pages(
    firmware: Firmware, section: SnpSection, vmm: Vmm, boot: DirectBoot | None
) -> Iterator[_Page]:
    if section.kind in (_SECRETS, _CPUID) and section.size == PAGE:
        yield _SECRETS_PAGE if section.kind == _SECRETS else _CPUID_PAGE, section.gpa, _NOTHING
    elif section.kind == _KERNEL_HASHES and boot is not None:
        yield _NORMAL, section.gpa, _sha384(_hash_page(firmware, section, boot))
    elif section.kind in (_MEMORY, _SVSM_CAA, _KERNEL_HASHES):
        kind = _UNMEASURED if vmm == "gce" and section.kind == _MEMORY else _ZERO
        for offset in range(0, section.size, PAGE):
            yield kind, section.gpa + offset, _NOTHING
    else:
        raise FormatError(f"SEV metadata with a section of kind {section.kind:#x}", code="malformed-firmware")


def _hash_page(firmware: Firmware, section: SnpSection, boot: DirectBoot) -> bytes:
    address, table = firmware.sev_hash_table(), boot.table()
    if section.size != PAGE or not section.gpa <= address <= section.gpa + PAGE - len(table):
        raise FormatError("the table of kernel hashes does not lie in its page", code="malformed-firmware")
    return (bytes(address - section.gpa) + table).ljust(PAGE, b"\0")


def _processors(firmware: Firmware, shape: SnpShape) -> Iterator[_Page]:
    if not 1 <= shape.vcpus <= MAX_VCPUS or not 0 < shape.features < 1 << 64:
        raise FormatError(f"1 to {MAX_VCPUS} processors, and features", code="unknown-shape")
    signature = vcpu_signature(shape.vcpu_type)
    for number in range(shape.vcpus):
        eip = BOOT_EIP if number == 0 else firmware.sev_es_reset()
        page = vmsa_page(eip, vmm=shape.vmm, vcpu_signature=signature, features=shape.features)
        yield _VMSA, _VMSA_GPA, _sha384(page)


def vcpu_signature(name: str) -> int:
    """Return the CPUID signature of one of QEMU's processor models. Raises FormatError `unknown-shape`."""
    model = re.sub(r"-v[0-9]{1,2}\Z", "", name)
    if model not in VCPU_TYPES:
        raise FormatError(
            f"processor {name!r} is none of {', '.join(VCPU_TYPES)}", code="unknown-shape", stage="shape"
        )
    return VCPU_TYPES[model]


def _extended(digest: bytes, page: _Page) -> bytes:
    """Return the digest after a page: SHA-384 over PAGE_INFO."""
    kind, gpa, content = page
    # Length, type, IMI flag, permissions of VMPL 3, 2, 1, reserved, address.
    return _sha384(digest + content + struct.pack("<HBBBBBBQ", 0x70, kind, 0, 0, 0, 0, 0, gpa))


def _sha384(raw: bytes) -> bytes:
    return hashlib.sha384(raw).digest()
