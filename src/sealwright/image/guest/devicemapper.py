"""Device-mapper devices by ioctl: read-only mappings of one target. Interface: include/uapi/linux/dm-ioctl.h, 4.x."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CONTROL = "/dev/mapper/control"
HEADER = struct.Struct("=3I I I I i I I I Q 128s 129s 7x")  # struct dm_ioctl, 312 bytes
TARGET = struct.Struct("=Q Q i I 16s")  # struct dm_target_spec
_VERSION = (4, 0, 0)
_READ_ONLY = 1
_CREATE, _REMOVE, _RESUME, _LOAD = 3, 4, 6, 9
_BUFFER = 4096  # bytes

Ioctl = Callable[[int, bytearray], None]  # request number, buffer in and out; raises OSError


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a device is made of: one line of `dmsetup table`."""

    sectors: int  # of 512 bytes
    kind: str
    parameters: str

    def line(self) -> str:
        """Return the line as `dmsetup table` prints it."""
        return f"0 {self.sectors} {self.kind} {self.parameters}"


def create(name: str, target: Target, *, ioctl: Ioctl | None = None, dev: Path = Path("/dev")) -> Path:
    """Make a read-only device of one target and return its path; if a step fails there is none."""
    if ioctl is not None:
        return _create(name, target, ioctl, dev)
    fd = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        return _create(name, target, lambda number, buffer: _real(fd, number, buffer), dev)
    finally:
        os.close(fd)


def _create(name: str, target: Target, ioctl: Ioctl, dev: Path) -> Path:
    made = _command(ioctl, _CREATE, name)
    try:
        _command(ioctl, _LOAD, name, _table(target))
        _command(ioctl, _RESUME, name)
    except OSError:
        _command(ioctl, _REMOVE, name)
        raise
    number = HEADER.unpack_from(made)[10]
    return dev / f"dm-{number & 0xFF | number >> 12 & 0xFFF00}"


def _command(ioctl: Ioctl, command: int, name: str, table: bytes = b"") -> bytearray:
    size = max(_BUFFER, HEADER.size + len(table))
    targets = 1 if table else 0
    head = HEADER.pack(
        *_VERSION, size, HEADER.size, targets, 0, _READ_ONLY, 0, 0, 0, name.encode("ascii"), b""
    )
    buffer = bytearray((head + table).ljust(size, b"\0"))
    ioctl(0xC0000000 | HEADER.size << 16 | 0xFD00 | command, buffer)
    return buffer


def _table(target: Target) -> bytes:
    parameters = target.parameters.encode("ascii") + b"\0"
    padded = parameters.ljust(-(-len(parameters) // 8) * 8, b"\0")
    return TARGET.pack(0, target.sectors, 0, TARGET.size + len(padded), target.kind.encode("ascii")) + padded


def _real(fd: int, number: int, buffer: bytearray) -> None:
    fcntl.ioctl(fd, number, buffer, True)
