"""What the measured command line says of the root, and the dm-verity device made of it.

Documentation/admin-guide/device-mapper/verity.rst: hash type 1, SHA-256, blocks of 4096 bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sealwright.errors import FormatError
from sealwright.image.guest.devicemapper import Target

BLOCK = 4096  # bytes
MAX_BLOCKS = 1 << 24  # 64 GiB
_SECTORS = BLOCK // 512
_HEX = re.compile(r"(?:[0-9a-f]{2}){1,256}", re.ASCII)
_NUMBER = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_PREFIX = "sealwright."


@dataclass(frozen=True, slots=True, kw_only=True)
class VerityRoot:
    """A root file system's digest and what it is made with."""

    root_hash: str  # 64 hex digits
    salt: str  # hex
    blocks: int  # of data, 4096 bytes each

    @classmethod
    def parse(cls, command_line: str) -> VerityRoot:
        """Return what a kernel's command line says: each of our words exactly once, and no other.

        Raises:
            FormatError: `malformed-command-line`.
        """
        words = [word for word in command_line.split() if word.startswith(_PREFIX)]
        said = dict(word.removeprefix(_PREFIX).partition("=")[::2] for word in words)
        if len(said) != len(words) or said.keys() != {"root", "salt", "blocks"}:
            raise _malformed("it needs sealwright.root, .salt and .blocks, each once, and no other")
        if not _HEX.fullmatch(said["root"]) or len(said["root"]) != 64 or not _HEX.fullmatch(said["salt"]):
            raise _malformed("sealwright.root or .salt is not lower-case hex")
        if not _NUMBER.fullmatch(said["blocks"]) or int(said["blocks"]) > MAX_BLOCKS:
            raise _malformed(f"sealwright.blocks is not 1 to {MAX_BLOCKS}")
        return cls(root_hash=said["root"], salt=said["salt"], blocks=int(said["blocks"]))

    def target(self, data: str, tree: str) -> Target:
        """Return the device's table. Args: data, tree: device paths of the two partitions."""
        words: Sequence[object] = (
            *(1, data, tree, BLOCK, BLOCK, self.blocks, 0, "sha256", self.root_hash, self.salt),
            *(1, "panic_on_corruption"),
        )
        return Target(
            sectors=self.blocks * _SECTORS, kind="verity", parameters=" ".join(str(word) for word in words)
        )


def _malformed(text: str) -> FormatError:
    return FormatError(
        f"the kernel's command line: {text}", code="malformed-command-line", stage="command-line"
    )
