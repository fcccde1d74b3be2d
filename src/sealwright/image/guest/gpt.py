"""A GUID partition table, read strictly: the partitions of one disk by name. UEFI 2.10, section 5.3.

The host writes this table. Nothing in it is believed but where to look: what lies there is checked by dm-verity.
"""

from __future__ import annotations

import binascii
import itertools
import struct
from collections.abc import Callable
from dataclasses import dataclass

from sealwright.errors import FormatError

SECTOR = 512  # bytes; the images are made for disks of this logical sector alone
SIGNATURE = b"EFI PART"
ENTRY_SIZE = 128
MAX_ENTRIES = 128
HEADER = struct.Struct("<8s4sIIIQQQQ16sQIII")  # section 5.3.2, up to the end of its fields
ENTRY = struct.Struct("<16s16sQQQ72s")  # section 5.3.3
_REVISION = bytes.fromhex("00000100")

Read = Callable[[int, int], bytes]  # offset, length: exactly so many bytes, or a shorter answer at the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition: its name, and where it is, in sectors."""

    name: str
    first: int
    sectors: int


def has_gpt(read: Read) -> bool:
    """Return whether a disk says that it has a partition table."""
    return read(SECTOR, len(SIGNATURE)) == SIGNATURE


def read_gpt(read: Read, sectors: int) -> tuple[Partition, ...]:
    """Return the partitions of a disk of `sectors` sectors, in the order of the table.

    Raises:
        FormatError: `malformed-gpt`.
    """
    head = read(SECTOR, SECTOR)
    if len(head) != SECTOR:
        raise _malformed("the disk ends before its header")
    found = HEADER.unpack_from(head)
    (
        signature,
        revision,
        size,
        crc,
        reserved,
        here,
        _,
        first_usable,
        last_usable,
        _,
        at,
        count,
        entry,
        table_crc,
    ) = found
    if signature != SIGNATURE or revision != _REVISION or size != HEADER.size or reserved or here != 1:
        raise _malformed("its header has another form")
    if binascii.crc32(head[:16] + bytes(4) + head[20:size]) != crc:
        raise _malformed("the CRC of its header is wrong")
    if entry != ENTRY_SIZE or not 1 <= count <= MAX_ENTRIES or at != 2:
        raise _malformed("its table has another place or form")
    if not at + count * ENTRY_SIZE / SECTOR <= first_usable <= last_usable < sectors:
        raise _malformed("its usable sectors are not on the disk")
    table = read(at * SECTOR, count * ENTRY_SIZE)
    if len(table) != count * ENTRY_SIZE or binascii.crc32(table) != table_crc:
        raise _malformed("the CRC of its table is wrong")
    return _partitions(table, first_usable, last_usable)


def _partitions(table: bytes, first_usable: int, last_usable: int) -> tuple[Partition, ...]:
    found = []
    for kind, _, first, last, _, raw in ENTRY.iter_unpack(table):
        if not any(kind):
            continue
        if not first_usable <= first <= last <= last_usable:
            raise _malformed("a partition is outside the usable sectors")
        found.append(Partition(name=_name(raw), first=first, sectors=last - first + 1))
    ordered = sorted(found, key=lambda one: one.first)
    if any(a.first + a.sectors > b.first for a, b in itertools.pairwise(ordered)):
        raise _malformed("two partitions overlap")
    return tuple(found)


def _name(raw: bytes) -> str:
    try:
        name, _, rest = raw.decode("utf-16-le").partition("\0")
    except UnicodeDecodeError:
        raise _malformed("a partition's name is no UTF-16") from None
    if rest.strip("\0"):
        raise _malformed("a partition's name goes on after its end")
    return name


def _malformed(text: str) -> FormatError:
    return FormatError(f"a partition table is not in its format: {text}", code="malformed-gpt", stage="disk")
