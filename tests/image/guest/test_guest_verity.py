"""What the command line says, the table made of it, and device-mapper's ioctls byte for byte."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from sealwright.errors import FormatError
from sealwright.image.guest import devicemapper
from sealwright.image.guest.devicemapper import HEADER, TARGET, Target, create
from sealwright.image.guest.verity import VerityRoot

ROOT = VerityRoot(root_hash="ab" * 32, salt="00" * 32, blocks=100)
LINE = (
    f"console=ttyS0 sealwright.root={'ab' * 32} sealwright.salt={'00' * 32} sealwright.blocks=100 panic=-1\n"
)


def test_a_command_line_is_read() -> None:
    assert VerityRoot.parse(LINE) == ROOT


@pytest.mark.parametrize(
    "line",
    [
        "",
        LINE.replace("sealwright.root=", "sealwright.toor="),
        LINE.replace("ab" * 32, "ab" * 31),
        LINE.replace("ab" * 32, "AB" * 32),
        LINE.replace("00" * 32, ""),
        LINE.replace("00" * 32, "0"),
        LINE.replace("00" * 32, "0g"),
        LINE.replace("=100", "=0"),
        LINE.replace("=100", "=0100"),
        LINE.replace("=100", "=99999999"),
        LINE.replace("=100", "=٣"),
        LINE + f" sealwright.root={'cd' * 32}",
        LINE + " sealwright.debug=1",
        LINE + " sealwright.blocks=100",
    ],
)
def test_another_command_line_is_refused(line: str) -> None:
    with pytest.raises(FormatError) as caught:
        VerityRoot.parse(line)
    assert (caught.value.code, caught.value.stage) == ("malformed-command-line", "command-line")


def test_the_table_is_the_documented_line() -> None:
    """Documentation/admin-guide/device-mapper/verity.rst: version, devices, block sizes, counts, hash, root, salt."""
    assert ROOT.target("/dev/vda2", "/dev/vda3").line() == (
        f"0 800 verity 1 /dev/vda2 /dev/vda3 4096 4096 100 0 sha256 {'ab' * 32} {'00' * 32} 1 panic_on_corruption"
    )


class FakeMapper:
    """Stands in for dm-ioctl.c: parses each buffer as struct dm_ioctl with its targets."""

    def __init__(self, fails: int | None = None) -> None:
        self.fails = fails
        self.calls: list[tuple[int, str, int]] = []
        self.tables: list[tuple[int, int, str, str]] = []

    def __call__(self, number: int, buffer: bytearray) -> None:
        assert number >> 8 == 0xC138FD  # _IOWR(0xfd, command, 312 bytes)
        command = number & 0xFF
        head = HEADER.unpack_from(buffer)
        assert head[:3] == (4, 0, 0)
        size, start, targets = head[3:6]
        assert size == len(buffer)
        name = head[11].rstrip(b"\0").decode()
        self.calls.append((command, name, head[7]))
        if targets:
            assert start == 312
            first, sectors, _, following, kind = TARGET.unpack_from(buffer, start)
            text, _, _ = bytes(buffer[start + TARGET.size : start + following]).partition(b"\0")
            assert following % 8 == 0
            self.tables.append((first, sectors, kind.rstrip(b"\0").decode(), text.decode()))
        if command == self.fails:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if command == 3:
            struct.pack_into("=Q", buffer, 40, 0xFE07 & 0xFF00 | 0x12 | 1 << 20)  # minor 0x112


def test_sizes_are_those_of_the_kernel() -> None:
    assert (HEADER.size, TARGET.size) == (312, 40)
    assert struct.calcsize("=3I I I I i I I I") == 40  # offset of dev


def test_a_device_is_created_loaded_and_resumed() -> None:
    kernel = FakeMapper()
    path = create("sealwright-root", ROOT.target("/dev/vda2", "/dev/vda3"), ioctl=kernel)
    assert path == Path("/dev/dm-274")  # 0x112
    assert kernel.calls == [(command, "sealwright-root", 1) for command in (3, 9, 6)]
    ((first, sectors, kind, parameters),) = kernel.tables
    assert (first, sectors, kind) == (0, 800, "verity")
    assert parameters == ROOT.target("/dev/vda2", "/dev/vda3").parameters


@pytest.mark.parametrize("fails", [9, 6])
def test_a_device_that_cannot_be_is_removed(fails: int) -> None:
    kernel = FakeMapper(fails)
    with pytest.raises(OSError, match="Invalid argument"):
        create("x", Target(sectors=8, kind="linear", parameters="/dev/vdb 1"), ioctl=kernel)
    assert kernel.calls[-1][0] == 4


def test_a_machine_without_device_mapper_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devicemapper, "CONTROL", "/nowhere")
    with pytest.raises(FileNotFoundError):
        create("x", Target(sectors=8, kind="linear", parameters="/dev/vdb 1"))
