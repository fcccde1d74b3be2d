"""The disk of a guest: a GUID partition table (UEFI 2.10, section 5), the ESP, the root and its hash tree."""

from __future__ import annotations

import binascii
import hashlib
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from sealwright.image.guest.gpt import ENTRY, ENTRY_SIZE, HEADER, MAX_ENTRIES, SECTOR, SIGNATURE

ALIGNMENT = 2048  # sectors: 1 MiB
ESP = bytes.fromhex("28732ac11ff8d211ba4b00a0c93ec93b")
ROOT_X86_64 = bytes.fromhex("e3bc684fcde8b14d96e7fbcaf984b709")  # Discoverable Partitions: root, x86-64
VERITY_X86_64 = bytes.fromhex("ed57732cd2ebd946aec123d437ec2bf5")
_TABLE_SECTORS = MAX_ENTRIES * ENTRY_SIZE // SECTOR
_REVISION = bytes.fromhex("00000100")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A partition: type and own GUID as they are stored, its name, and a file with its content."""

    kind: bytes
    guid: bytes  # 16 bytes
    name: str
    content: BinaryIO
    sectors: int


def write_disk(out: BinaryIO, parts: Sequence[Part], *, seed: bytes) -> None:
    """Write a disk with `parts` in their order, each at a whole MiB.

    Args:
        seed: the disk's GUID is made of it, so that the same content gives the same disk.
    """
    starts, at = [], ALIGNMENT
    for part in parts:
        starts.append(at)
        at = -(-(at + part.sectors) // ALIGNMENT) * ALIGNMENT
    total = at + ALIGNMENT
    table = b"".join(
        ENTRY.pack(part.kind, part.guid, first, first + part.sectors - 1, 0, part.name.encode("utf-16-le"))
        for part, first in zip(parts, starts, strict=True)
    ).ljust(MAX_ENTRIES * ENTRY_SIZE, b"\0")
    guid = hashlib.sha256(b"sealwright/disk/v1" + seed).digest()[:16]
    out.truncate(total * SECTOR)
    out.write(_protective(total) + _header(table, guid, total, here=1, other=total - 1, at=2) + table)
    for part, first in zip(parts, starts, strict=True):
        out.seek(first * SECTOR)
        part.content.seek(0)
        shutil.copyfileobj(part.content, out, 1 << 20)
    out.seek((total - 1 - _TABLE_SECTORS) * SECTOR)
    out.write(table + _header(table, guid, total, here=total - 1, other=1, at=total - 1 - _TABLE_SECTORS))


def _header(table: bytes, guid: bytes, total: int, *, here: int, other: int, at: int) -> bytes:
    def packed(crc: int) -> bytes:
        first = 2 + _TABLE_SECTORS
        usable = (first, total - first)
        rest = (at, MAX_ENTRIES, ENTRY_SIZE, binascii.crc32(table))
        return HEADER.pack(SIGNATURE, _REVISION, HEADER.size, crc, 0, here, other, *usable, guid, *rest)

    return packed(binascii.crc32(packed(0))).ljust(SECTOR, b"\0")


def _protective(total: int) -> bytes:
    """Return the protective MBR: one partition over the whole disk, for tools that know no GPT."""
    size = min(total - 1, 0xFFFFFFFF)
    entry = bytes((0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF)) + struct.pack("<II", 1, size)
    return bytes(446) + entry.ljust(64, b"\0") + b"\x55\xaa"
