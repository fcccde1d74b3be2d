"""The partition table as firmware measures it: EV_EFI_GPT_EVENT in PCR 5, RTMR1 of a boot from a disk.

Layouts: UEFI 2.10, section 5.3 (GPT); TCG PC Client Platform Firmware Profile 1.06, section 10.4.4 (UEFI_GPT_DATA).
"""

from __future__ import annotations

import struct
import zlib

from sealwright.image.predict.reader import Reader

SECTOR = 512
HEAD_BYTES = SECTOR * 34  # of a disk: what has to be given, for 128 entries
_HEADER_BYTES = 92
_MAX_ENTRIES = 128
_ENTRY_BYTES = 128


def gpt_event(disk: bytes) -> bytes:
    """Return the UEFI_GPT_DATA of a disk. Args: disk: its first `HEAD_BYTES` bytes, or more.

    Raises:
        FormatError: `malformed-gpt`.
    """
    reader = Reader(disk, "malformed-gpt")
    header = reader.take(SECTOR, _HEADER_BYTES, "GPT header")
    magic, _, size, crc = struct.unpack_from("<8sIII", header)
    first, count, each, entries_crc = struct.unpack_from("<QIII", header, 72)
    if magic != b"EFI PART" or size != _HEADER_BYTES:
        reader.refuse("no GPT")
    if zlib.crc32(header[:16] + bytes(4) + header[20:]) != crc:
        reader.refuse("a GPT header whose checksum does not hold")
    if each != _ENTRY_BYTES or not 1 <= count <= _MAX_ENTRIES:
        reader.refuse("a GPT with entries of another size or number")
    table = reader.take(first * SECTOR, count * each, "GPT entries")
    if zlib.crc32(table) != entries_crc:
        reader.refuse("GPT entries whose checksum does not hold")
    used = [table[at : at + each] for at in range(0, len(table), each) if any(table[at : at + 16])]
    return header + struct.pack("<Q", len(used)) + b"".join(used)
