"""The whole disks of this machine, through sysfs, and the device of each of their partitions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sealwright.errors import UnavailableError
from sealwright.image.guest.gpt import Partition, Read

SYS_BLOCK = Path("/sys/class/block")
DEV = Path("/dev")
MAX_DISKS = 64
_NO_DISKS = ("loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A whole disk, and how many sectors of 512 bytes it has."""

    name: str
    path: Path
    sectors: int


def disks(sys_block: Path = SYS_BLOCK, dev: Path = DEV) -> list[Disk]:
    """Return the disks that hold something, by name.

    Raises:
        UnavailableError: `too-many-disks`.
    """
    names = sorted(one.name for one in sys_block.iterdir() if not one.name.startswith(_NO_DISKS))
    if len(names) > 4 * MAX_DISKS:
        raise UnavailableError("the machine has too many disks", code="too-many-disks", stage="disk")
    whole = [name for name in names if not (sys_block / name / "partition").exists()]
    found = [Disk(name=name, path=dev / name, sectors=_number(sys_block / name / "size")) for name in whole]
    return [disk for disk in found if disk.sectors]


def partition_path(disk: Disk, partition: Partition, sys_block: Path = SYS_BLOCK, dev: Path = DEV) -> Path:
    """Return the device that the kernel made of a partition that we found ourselves.

    Raises:
        UnavailableError: `partition-missing`: the kernel reads the table in another way.
    """
    for entry in sorted((sys_block / disk.name).iterdir()):
        if (entry / "partition").exists():
            place = (_number(entry / "start"), _number(entry / "size"))
            if place == (partition.first, partition.sectors):
                return dev / entry.name
    raise UnavailableError(
        f"the kernel has no device for partition {partition.name}", code="partition-missing", stage="disk"
    )


@contextmanager
def reading(path: Path) -> Iterator[Read]:
    """Open a disk for reading at offsets; what is past its end is not there."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield lambda offset, length: _pread(fd, offset, length)
    finally:
        os.close(fd)


def _pread(fd: int, offset: int, length: int) -> bytes:
    found = bytearray()
    while len(found) < length:
        part = os.pread(fd, length - len(found), offset + len(found))
        if not part:
            break
        found += part
    return bytes(found)


def _number(path: Path) -> int:
    text = path.read_text().strip()
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise UnavailableError(f"{path} is no number", code="too-many-disks", stage="disk")
    return int(text)
