"""The save area (VMSA) of a virtual processor as a VMM first fills it: it is part of SNP's launch measurement.

Layout: AMD64 APM volume 2, appendix B, table B-4. The values are those that QEMU, EC2 and GCE with KVM are known to set.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from sealwright.image.predict.firmware import PAGE

Vmm = Literal["qemu", "ec2", "gce"]
BOOT_EIP = 0xFFFFFFF0  # where the first processor begins
_PAT = 0x0007040600070406  # reset value of the PAT MSR
_SEGMENT = struct.Struct("<HHIQ")  # selector, attributes, limit, base


def _signature(family: int, model: int, stepping: int) -> int:
    """Return CPUID Fn0000_0001 EAX (AMD 25481)."""
    low, high = (0xF, family - 0xF) if family > 0xF else (family, 0)
    return high << 20 | model >> 4 << 16 | low << 8 | (model & 0xF) << 4 | stepping


# QEMU's names of processor models; a version of a model (-v2) has the same signature.
VCPU_TYPES: Mapping[str, int] = MappingProxyType(
    {
        "EPYC": _signature(0x17, 0x01, 2),
        "EPYC-Rome": _signature(0x17, 0x31, 0),
        "EPYC-Milan": _signature(0x19, 0x01, 1),
        "EPYC-Genoa": _signature(0x19, 0x11, 0),
        "EPYC-Turin": _signature(0x1A, 0x00, 0),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """How a VMM's first state differs from another's."""

    cs: int  # attributes
    ss: int
    tr: int
    pat: int
    rdx: int
    mxcsr: int
    fcw: int


def vmsa_page(eip: int, *, vmm: Vmm, vcpu_signature: int, features: int) -> bytes:
    """Return the page of one processor.

    Args:
        eip: where it begins.
        vcpu_signature: what QEMU's processor model has in RDX at reset.
        features: SEV_FEATURES; 1 is SNP alone.
    """
    start, page = _start(vmm, eip, vcpu_signature), bytearray(PAGE)
    for offset, segment in _segments(eip, start).items():
        _SEGMENT.pack_into(page, offset, *segment)
    for offset, value in _registers(eip, start, features).items():
        struct.pack_into("<Q", page, offset, value)
    struct.pack_into("<I", page, 0x408, start.mxcsr)
    struct.pack_into("<H", page, 0x410, start.fcw)
    return bytes(page)


def _start(vmm: Vmm, eip: int, signature: int) -> _Start:
    if vmm == "qemu":
        return _Start(cs=0x9B, ss=0x93, tr=0x8B, pat=_PAT, rdx=signature, mxcsr=0x1F80, fcw=0x37F)
    if vmm == "ec2":
        cs = 0x9A if eip == BOOT_EIP else 0x9B
        return _Start(cs=cs, ss=0x92, tr=0x83, pat=_PAT, rdx=0x600, mxcsr=0, fcw=0)
    return _Start(cs=0x9B, ss=0x93, tr=0x8B, pat=0x00070106, rdx=0x600, mxcsr=0, fcw=0)


def _segments(eip: int, start: _Start) -> dict[int, tuple[int, int, int, int]]:
    data = (0, 0x93, 0xFFFF, 0)
    return {
        0x00: data,  # ES
        0x10: (0xF000, start.cs, 0xFFFF, eip & 0xFFFF0000),  # CS
        0x20: (0, start.ss, 0xFFFF, 0),  # SS
        0x30: data,  # DS
        0x40: data,  # FS
        0x50: data,  # GS
        0x60: (0, 0, 0xFFFF, 0),  # GDTR
        0x70: (0, 0x82, 0xFFFF, 0),  # LDTR
        0x80: (0, 0, 0xFFFF, 0),  # IDTR
        0x90: (0, start.tr, 0xFFFF, 0),  # TR
    }


def _registers(eip: int, start: _Start, features: int) -> dict[int, int]:
    return {
        0x0D0: 0x1000,  # EFER: KVM sets SVME
        0x148: 0x40,  # CR4: KVM sets MCE
        0x158: 0x10,  # CR0
        0x160: 0x400,  # DR7
        0x168: 0xFFFF0FF0,  # DR6
        0x170: 0x2,  # RFLAGS
        0x178: eip & 0xFFFF,  # RIP
        0x268: start.pat,  # G_PAT
        0x310: start.rdx,  # RDX
        0x3B0: features,  # SEV_FEATURES
        0x3E8: 0x1,  # XCR0
    }
