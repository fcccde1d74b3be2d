"""An EFI system partition: FAT32 with one program in it, written as Microsoft's FAT specification 1.03 has it.

Times, labels and serial number are fixed, so that it depends on the program alone.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

SECTOR = 512  # bytes, and a cluster's
_RESERVED, _FATS = 32, 2  # sectors, tables
_MIN_CLUSTERS = 65525  # fewer, and it would be FAT16
_SLACK = 4096  # clusters left free
_END = 0x0FFFFFF8
_DIRECTORY, _FILE = 0x10, 0x20
_DATE = (1 << 5) | 1  # 1980-01-01, the first there is
_SERIAL, _LABEL = 0x5EA1_0001, b"SEALWRIGHT "
_ROOT, _EFI, _BOOT, _PROGRAM = 2, 3, 4, 5  # first clusters


def write_esp(out: BinaryIO, program: bytes) -> int:
    """Write a file system with `program` as EFI/BOOT/BOOTX64.EFI; return its size in sectors."""
    used = -(-len(program) // SECTOR)
    clusters = max(_MIN_CLUSTERS + 16, _PROGRAM - 2 + used + _SLACK)
    table = -(-(clusters + 2) * 4 // SECTOR)
    total = _RESERVED + _FATS * table + clusters
    boot, info = _boot_sector(total, table), _info_sector(clusters - 3 - used, _PROGRAM + used)
    reserved = [bytes(SECTOR)] * _RESERVED
    reserved[0], reserved[1], reserved[6], reserved[7] = boot, info, boot, info
    out.write(b"".join(reserved))
    fat = _table(used).ljust(table * SECTOR, b"\0")
    out.write(fat * _FATS)
    out.write(_folder([(_LABEL, 0x08, 0, 0), (b"EFI        ", _DIRECTORY, _EFI, 0)]))
    out.write(_folder([*_dots(_EFI, 0), (b"BOOT       ", _DIRECTORY, _BOOT, 0)]))
    out.write(_folder([*_dots(_BOOT, _EFI), (b"BOOTX64 EFI", _FILE, _PROGRAM, len(program))]))
    out.write(program + bytes(-len(program) % SECTOR))
    left = clusters - 3 - used
    out.write(bytes(left * SECTOR))
    return total


def _boot_sector(total: int, table: int) -> bytes:
    head = struct.pack(
        "<3s8sHBHBHHBHHHII",
        *(b"\xeb\x58\x90", b"SEALWRT ", SECTOR, 1, _RESERVED, _FATS, 0, 0, 0xF8, 0, 32, 8, 0, total),
    )
    more = struct.pack(
        "<IHHIHH12sBBBI11s8s",
        table,
        0,
        0,
        _ROOT,
        1,
        6,
        bytes(12),
        0x80,
        0,
        0x29,
        _SERIAL,
        _LABEL,
        b"FAT32   ",
    )
    return (head + more).ljust(SECTOR - 2, b"\0") + b"\x55\xaa"


def _info_sector(free: int, following: int) -> bytes:
    return struct.pack(
        "<4s480s4sII12sI", b"RRaA", bytes(480), b"rrAa", free, following, bytes(12), 0xAA550000
    )


def _table(used: int) -> bytes:
    chain = [_PROGRAM + at + 1 for at in range(used - 1)] + ([_END] if used else [])
    entries = [0x0FFFFFF8, 0x0FFFFFFF, _END, _END, _END, *chain]
    return struct.pack(f"<{len(entries)}I", *entries)


def _folder(entries: list[tuple[bytes, int, int, int]]) -> bytes:
    out = b"".join(
        struct.pack(
            "<11sBBBHHHHHHHI", name, kind, 0, 0, 0, _DATE, _DATE, first >> 16, 0, _DATE, first & 0xFFFF, size
        )
        for name, kind, first, size in entries
    )
    return out.ljust(SECTOR, b"\0")


def _dots(own: int, parent: int) -> list[tuple[bytes, int, int, int]]:
    return [(b".          ", _DIRECTORY, own, 0), (b"..         ", _DIRECTORY, parent, 0)]
