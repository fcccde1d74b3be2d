"""The parts of a guest image, each held against somebody else's program where there is one."""

from __future__ import annotations

import io
import lzma
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealwright.errors import FormatError, SettingsError
from sealwright.image.cpio import cpio
from sealwright.image.disk import ESP, ROOT_X86_64, Part, write_disk
from sealwright.image.fat import SECTOR, write_esp
from sealwright.image.guest.gpt import read_gpt
from sealwright.image.hashtree import BLOCK, hash_tree
from sealwright.image.modules import module_tree
from sealwright.image.ocitar import Node
from sealwright.image.predict.pe import PeImage
from sealwright.image.uki import SECTIONS, unified_kernel_image

SALT = bytes(range(32))


def needs(program: str, package: str) -> pytest.MarkDecorator:
    reason = f"{program} is not installed: apt-get install {package}"
    return pytest.mark.skipif(shutil.which(program) is None, reason=reason)


@needs("veritysetup", "cryptsetup-bin")
@pytest.mark.parametrize("blocks", [1, 2, 127, 128, 129, 128 * 128 + 1])
def test_a_hash_tree_is_what_veritysetup_accepts(blocks: int, tmp_path: Path) -> None:
    data, tree = tmp_path / "data", tmp_path / "tree"
    data.write_bytes(os.urandom(BLOCK) + bytes(BLOCK) * (blocks - 1))
    with data.open("rb") as file:
        made = hash_tree(file, SALT)
    tree.write_bytes(made.levels)
    command = ["veritysetup", "verify", "--no-superblock", "--salt", SALT.hex(), "--data-blocks", str(blocks)]
    command += ["--hash", "sha256", str(data), str(tree)]
    assert subprocess.run([*command, made.root_hash.hex()], capture_output=True).returncode == 0
    changed = bytearray(data.read_bytes())
    changed[-1] ^= 1
    data.write_bytes(changed)
    assert subprocess.run([*command, made.root_hash.hex()], capture_output=True).returncode != 0
    assert f"sealwright.root={made.root_hash.hex()} " in made.command_line


@pytest.mark.parametrize("data", [b"", b"x", bytes(BLOCK + 1)])
def test_a_hash_tree_is_over_whole_blocks(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"block|data"):
        hash_tree(io.BytesIO(data), SALT)


@needs("fsck.vfat", "dosfstools")
@needs("mcopy", "mtools")
@pytest.mark.parametrize("size", [1, SECTOR, SECTOR + 1, 40 << 20])
def test_an_esp_is_a_file_system(size: int, tmp_path: Path) -> None:
    program, image = os.urandom(size), tmp_path / "esp"
    with image.open("wb") as out:
        sectors = write_esp(out, program)
    assert image.stat().st_size == sectors * SECTOR
    checked = subprocess.run(["fsck.vfat", "-n", "-v", str(image)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    read = ["mcopy", "-i", str(image), "::EFI/BOOT/BOOTX64.EFI", "-"]
    assert subprocess.run(read, capture_output=True, check=True).stdout == program


def test_a_disk_is_what_the_guest_reads(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    contents = [os.urandom(3 * SECTOR), os.urandom(5000 * SECTOR)]
    with disk.open("w+b") as out:
        parts = [
            Part(
                kind=kind,
                guid=bytes([at]) * 16,
                name=name,
                content=io.BytesIO(raw),
                sectors=len(raw) // SECTOR,
            )
            for at, (kind, name, raw) in enumerate(
                zip((ESP, ROOT_X86_64), ("esp", "sealwright-root"), contents, strict=True), 1
            )
        ]
        write_disk(out, parts, seed=b"x")
    raw = disk.read_bytes()
    found = read_gpt(lambda offset, length: raw[offset : offset + length], len(raw) // SECTOR)
    assert [part.name for part in found] == ["esp", "sealwright-root"]
    for part, content in zip(found, contents, strict=True):
        assert raw[part.first * SECTOR :][: len(content)] == content
        assert part.first % 2048 == 0
    # The copy at the end says the same.
    assert raw[-SECTOR:][:8] == b"EFI PART"
    assert raw[-33 * SECTOR : -SECTOR] == raw[2 * SECTOR : 34 * SECTOR]


@needs("sgdisk", "gdisk")
def test_a_disk_is_what_sgdisk_accepts(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("w+b") as out:
        part = Part(kind=ESP, guid=b"\1" * 16, name="esp", content=io.BytesIO(bytes(SECTOR)), sectors=1)
        write_disk(out, [part], seed=b"x")
    said = subprocess.run(
        ["sgdisk", "--verify", str(disk)], capture_output=True, text=True, check=True
    ).stdout
    assert "No problems found" in said


TREE = {
    "init": Node(mode=0o755, content=b"#!/x\n"),
    "usr/lib/a": Node(mode=0o644, content=b"12345"),
    "lib": Node(mode=0o777, target="usr/lib"),
    "dev": Node(),
}


@needs("cpio", "cpio")
def test_an_initrd_is_what_cpio_unpacks(tmp_path: Path) -> None:
    subprocess.run(["cpio", "-idm", "--quiet"], input=cpio(TREE), cwd=tmp_path, check=True)
    assert (tmp_path / "init").read_bytes() == b"#!/x\n"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "lib").is_symlink()
    assert (tmp_path / "lib" / "a").read_bytes() == b"12345"
    assert (tmp_path / "dev").is_dir()


def test_an_initrd_depends_on_its_files_alone() -> None:
    assert cpio(TREE) == cpio(dict(reversed(TREE.items())))
    with pytest.raises(SettingsError, match="no path"):
        cpio({"../x": Node(content=b"")})


def pe(sections: int = 2, room: int = 0x400) -> bytes:
    """Return a small PE32+ image with sections of one page."""
    optional = bytearray(240)
    struct.pack_into("<H", optional, 0, 0x20B)
    struct.pack_into("<II", optional, 32, 0x1000, 0x200)
    struct.pack_into("<III", optional, 56, 0x1000 * (sections + 1), room, 0)
    struct.pack_into("<I", optional, 108, 16)
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40) + b"PE\0\0"
    head += struct.pack("<HHIIIHH", 0x8664, sections, 0, 0, 0, len(optional), 0x22) + optional
    for at in range(sections):
        fields = (
            f".s{at}".encode(),
            0x100,
            0x1000 * (at + 1),
            0x200,
            room + 0x200 * at,
            0,
            0,
            0,
            0,
            0x60000020,
        )
        head += struct.pack("<8sIIIIIIHHI", *fields)
    return head.ljust(room, b"\0") + b"".join(bytes([at + 1]) * 0x200 for at in range(sections))


CONTENTS = {name: f"{name} content".encode() * 100 for name in SECTIONS}


def test_a_unified_kernel_image_has_all_sections() -> None:
    made = PeImage.parse(unified_kernel_image(pe(), CONTENTS))
    for name, content in CONTENTS.items():
        assert made.section(name) == content
    assert made.section(".s0") == (b"\1" * 0x200)[:0x100]


def test_what_is_no_stub_is_refused() -> None:
    with pytest.raises(FormatError) as caught:
        unified_kernel_image(b"MZ", CONTENTS)
    assert caught.value.code == "malformed-pe"
    for stub, contents in ((pe(room=0x200), CONTENTS), (pe(), {".linux": b"x"})):
        with pytest.raises(FormatError) as caught:
            unified_kernel_image(stub, contents)
        assert caught.value.code == "malformed-uki"
    with pytest.raises(FormatError) as caught:
        unified_kernel_image(unified_kernel_image(pe(), CONTENTS), CONTENTS)
    assert caught.value.code == "malformed-uki"


def module(*depends: str) -> Node:
    info = b"\0license=GPL\0depends=" + ",".join(depends).encode() + b"\0name=x\0"
    return Node(mode=0o644, content=lzma.compress(b"\x7fELF" + info))


def test_modules_are_loaded_after_what_they_need() -> None:
    folder = "usr/lib/modules/6.1-x/kernel"
    kernel = {
        f"{folder}/a/a.ko.xz": module("b", "c-d"),
        f"{folder}/b.ko.xz": module("c_d"),
        f"{folder}/c-d.ko.xz": module(),
        f"{folder}/other.ko.xz": module(),
    }
    tree = module_tree(kernel, ["a", "built_in"], ["built_in"])
    listed = tree["lib/modules/sealwright.list"].content
    assert listed == b"c_d.ko\nb.ko\na.ko\n"
    content = tree["lib/modules/a.ko"].content
    assert content is not None
    assert content.startswith(b"\x7fELF")
    assert "lib/modules/other.ko" not in tree
    for wanted in (["missing"], ["lost"]):
        with pytest.raises(SettingsError) as caught:
            module_tree({**kernel, f"{folder}/lost.ko.xz": module("gone")}, wanted)
        assert caught.value.code == "module-missing"


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=400))
def test_a_stub_of_any_bytes_is_refused_in_order(raw: bytes) -> None:
    with pytest.raises(FormatError):
        unified_kernel_image(b"MZ" + raw, CONTENTS)
