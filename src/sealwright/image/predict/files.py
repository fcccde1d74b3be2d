"""What a prediction is made from: the folder that `image build` writes, or files named one by one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sealwright.client.trust_source import read_file
from sealwright.errors import FormatError, SettingsError
from sealwright.image.predict.gpt import HEAD_BYTES, gpt_event
from sealwright.image.predict.reader import MAX_FILE
from sealwright.image.predict.stub import Uki, stub_command_line

NAMES = {"uki": "guest.efi", "kernel": "kernel", "initrd": "initrd", "cmdline": "cmdline", "disk": "disk.raw"}
MAX_COMMAND_LINE = 4096  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestFiles:
    """The parts of one guest, as far as they were given."""

    uki: Uki | None = None
    kernel: bytes | None = None
    initrd: bytes | None = None
    cmdline: str | None = None
    gpt: bytes | None = None  # UEFI_GPT_DATA

    @classmethod
    def read(cls, paths: dict[str, Path]) -> Self:
        """Return the files at `paths`, by the names of `NAMES`.

        Raises:
            SettingsError: `unreadable-file`, `too-large`. FormatError: a file is not in its format, or
                `image-parts-differ`: kernel, initrd or command line are not those in the unified kernel image.
        """
        raw = {name: read_file(path, limit=MAX_FILE) for name, path in paths.items() if name != "disk"}
        guest = cls(
            uki=Uki.parse(raw["uki"]) if "uki" in raw else None,
            kernel=raw.get("kernel"),
            initrd=raw.get("initrd"),
            cmdline=command_line(raw["cmdline"]) if "cmdline" in raw else None,
            gpt=gpt_event(_head(paths["disk"])) if "disk" in paths else None,
        )
        guest.check()
        return guest

    def check(self) -> None:
        """Prove that the parts beside the unified kernel image are the ones in it. Raises `image-parts-differ`."""
        if self.uki is None:
            return
        inside = self.uki.sections
        pairs = {
            "kernel": (self.kernel, inside[".linux"]),
            "initrd": (self.initrd, inside[".initrd"]),
            "cmdline": (self.cmdline, self.uki.command_line()),
        }
        for name, (beside, within) in pairs.items():
            if beside is not None and beside != within:
                raise FormatError(
                    f"{name} is not the one in the unified kernel image: they are of different builds",
                    code="image-parts-differ",
                )


def in_folder(folder: Path) -> dict[str, Path]:
    """Return the files of `NAMES` that are in a folder."""
    return {name: folder / file for name, file in NAMES.items() if (folder / file).is_file()}


def command_line(raw: bytes) -> str:
    """Return the line in a file, without the newline at its end. Raises FormatError `malformed-uki`.

    What stub or shell would change on the way is refused: a hash of it would be of another line.
    """
    line = raw.removesuffix(b"\n")
    if len(line) > MAX_COMMAND_LINE or stub_command_line(line).encode("ascii") != line:
        raise FormatError(
            "a command line over 4096 bytes, with spaces at its ends, or with control characters",
            code="malformed-uki",
        )
    return line.decode("ascii")


def _head(path: Path) -> bytes:
    """Return the beginning of a disk image, which may be large. Raises SettingsError `unreadable-file`."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as exc:
        raise SettingsError(f"cannot read {path}: {exc.strerror}", code="unreadable-file") from exc
