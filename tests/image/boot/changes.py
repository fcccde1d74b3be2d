"""Images in which one thing was changed after they were built: what an attacker with the disk in hand can do."""

from __future__ import annotations

from pathlib import Path

from tests.image.boot.support import Stage, quietly

from sealwright.image.predict.pe import PeImage
from sealwright.testing.qemu import SecureBootKeys


def with_section(uki: Path, name: str, old: bytes, new: bytes, out: Path) -> Path:
    """Write a copy of a unified kernel image with bytes of one section replaced by as many others; return `out`."""
    assert len(old) == len(new)
    raw = uki.read_bytes()
    (section,) = (one for one in PeImage.parse(raw).sections if one.name == name)
    start, end = section.pointer_to_raw_data, section.pointer_to_raw_data + section.size_of_raw_data
    assert raw.count(old, start, end) >= 1
    at = raw.rindex(old, start, end)
    out.write_bytes(raw[:at] + new + raw[at + len(old) :])
    return out


def changed_command_line(made: Stage, folder: Path) -> Path:
    """Return an image signed by the owner whose command line says something else."""
    old = b"panic=-1"
    changed = with_section(made.image / "guest.efi", ".cmdline", old, b"panic=-2", folder / "cmdline.efi")
    return made.keys.sign(changed, folder / "cmdline.signed.efi")


def changed_initrd(made: Stage, folder: Path) -> Path:
    """Return an image signed by the owner with another initrd: one byte of its last file's padding or end mark."""
    raw = (made.image / "initrd").read_bytes()
    tail = raw[-64:]
    changed = with_section(
        made.image / "guest.efi", ".initrd", tail, tail[:-1] + bytes([tail[-1] ^ 1]), folder / "initrd.efi"
    )
    return made.keys.sign(changed, folder / "initrd.signed.efi")


def stranger(made: Stage, folder: Path) -> tuple[Path, Path]:
    """Return the same image signed by somebody else, and variables in which only his key counts."""
    keys = quietly(lambda: SecureBootKeys(folder / "stranger", "Somebody else"))
    uki = keys.sign(made.image / "guest.efi", folder / "stranger.efi")
    return uki, keys.variables(folder / "stranger.variables")
