"""The hash tree of dm-verity: format 1, SHA-256, blocks of 4096 bytes, salt before the block, no superblock.

Linux: Documentation/admin-guide/device-mapper/verity.rst. The levels stand in the file from the top down.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 4096  # bytes
_DIGEST = 32
_FANOUT = BLOCK // _DIGEST


@dataclass(frozen=True, slots=True, kw_only=True)
class HashTree:
    """A tree: what the kernel is told, and the bytes of the hash device."""

    root_hash: bytes  # 32 bytes
    salt: bytes
    blocks: int  # of data
    levels: bytes

    @property
    def command_line(self) -> str:
        """The words of the kernel's command line that name it."""
        return f"sealwright.root={self.root_hash.hex()} sealwright.salt={self.salt.hex()} sealwright.blocks={self.blocks}"


def hash_tree(data: BinaryIO, salt: bytes) -> HashTree:
    """Return the tree over a file of whole blocks, read from its beginning.

    Raises:
        ValueError: no blocks, or not whole ones.
    """
    digests: list[bytes] = []
    while block := data.read(BLOCK):
        if len(block) != BLOCK:
            raise ValueError(f"data is whole blocks of {BLOCK} bytes")
        digests.append(hashlib.sha256(salt + block).digest())
    if not digests:
        raise ValueError("there is no data")
    blocks = len(digests)
    levels: list[bytes] = []
    # One block of data has its own digest as the root, and a level with that one digest.
    while len(digests) > 1 or not levels:
        level = [_padded(digests[at : at + _FANOUT]) for at in range(0, len(digests), _FANOUT)]
        levels.append(b"".join(level))
        digests = [hashlib.sha256(salt + block).digest() for block in level]
    return HashTree(root_hash=digests[0], salt=salt, blocks=blocks, levels=b"".join(reversed(levels)))


def _padded(digests: list[bytes]) -> bytes:
    return b"".join(digests).ljust(BLOCK, b"\0")
