"""The partition table: what is not exactly in its form is refused, and nothing else is raised."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.image.guest.disks import SECTORS, entry, reader, table

from sealwright.errors import FormatError
from sealwright.image.guest.gpt import HEADER, Partition, has_gpt, read_gpt

ROOT, TREE = entry("sealwright-root", 64, 1063), entry("sealwright-verity", 1064, 1100)


def read(raw: bytes) -> tuple[Partition, ...]:
    return read_gpt(reader(raw), SECTORS)


def test_partitions_are_read_by_name() -> None:
    assert read(table([bytes(128), ROOT, TREE])) == (
        Partition(name="sealwright-root", first=64, sectors=1000),
        Partition(name="sealwright-verity", first=1064, sectors=37),
    )
    assert has_gpt(reader(table([])))
    assert not has_gpt(reader(bytes(1024)))


@pytest.mark.parametrize(
    "raw",
    [
        table([ROOT])[:600],
        table([ROOT], signature=b"EFI PARX"),
        table([ROOT], revision=bytes.fromhex("00000200")),
        table([ROOT], size=HEADER.size + 4),
        table([ROOT], crc=1),
        table([ROOT], reserved=1),
        table([ROOT], here=2),
        table([ROOT], at=3),
        table([ROOT], count=0),
        table([ROOT], count=129),
        table([ROOT], entry=256),
        table([ROOT], table=1),
        table([ROOT], first=33),
        table([ROOT], last=SECTORS),
        table([ROOT], first=2000, last=1999),
        table([ROOT])[:-1],
        table([entry("a", 33, 40)]),
        table([entry("a", 64, 63)]),
        table([entry("a", 64, SECTORS)]),
        table([ROOT, entry("b", 1063, 1063)]),
        table([entry("a\0b", 64, 64)]),
        table([ROOT[:56] + b"\0\xd8" + ROOT[58:]]),
    ],
)
def test_another_form_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        read(raw)
    assert (caught.value.code, caught.value.stage) == ("malformed-gpt", "disk")


@given(at=st.integers(512, 512 + HEADER.size - 1), bit=st.integers(0, 7))
def test_no_bit_of_the_header_may_change(at: int, bit: int) -> None:
    raw = bytearray(table([ROOT, TREE]))
    raw[at] ^= 1 << bit
    with pytest.raises(FormatError):
        read(bytes(raw))


@given(at=st.integers(1024, 1024 + 128 * 128 - 1), bit=st.integers(0, 7))
def test_no_bit_of_the_table_may_change(at: int, bit: int) -> None:
    raw = bytearray(table([ROOT, TREE]))
    raw[at] ^= 1 << bit
    with pytest.raises(FormatError):
        read(bytes(raw))


@given(entries=st.lists(st.binary(min_size=128, max_size=128), max_size=4))
def test_nothing_but_its_own_error_is_raised(entries: list[bytes]) -> None:
    try:
        found = read(table(entries))
    except FormatError:
        return
    assert all(34 <= one.first <= one.first + one.sectors - 1 <= SECTORS - 34 for one in found)


@pytest.mark.skipif(shutil.which("sfdisk") is None, reason="sfdisk is not installed")
def test_a_table_of_sfdisk_is_read(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(8 << 20))
    script = (
        "label: gpt\nstart=2048,size=1000,name=sealwright-root\nstart=4096,size=37,name=sealwright-verity\n"
    )
    subprocess.run(["sfdisk", "-q", str(disk)], input=script.encode(), check=True, capture_output=True)
    raw = disk.read_bytes()
    assert read_gpt(reader(raw), len(raw) // 512) == (
        Partition(name="sealwright-root", first=2048, sectors=1000),
        Partition(name="sealwright-verity", first=4096, sectors=37),
    )
