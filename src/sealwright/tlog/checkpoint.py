"""Checkpoints (c2sp.org/tlog-checkpoint): the text of a signed tree head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from sealwright.errors import LogFormatError
from sealwright.tlog.keys import Signer
from sealwright.tlog.merkle import EMPTY_ROOT, HASH_SIZE
from sealwright.tlog.note import Note
from sealwright.tlog.text import b64, b64_decode, decimal_decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The head of a tree: `size` leaves under `root`. As good as where it came from: parsing proves nothing."""

    origin: str
    size: int
    root: bytes  # 32 bytes
    extensions: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Parse the text of a checkpoint, without signatures.

        Raises:
            LogFormatError: not a checkpoint, or an empty tree with another root than SHA-256 of nothing.
        """
        try:
            lines = text.decode("utf-8").split("\n")
        except UnicodeDecodeError:
            raise _malformed("a checkpoint is UTF-8") from None
        if len(lines) < 4 or lines.pop() or not all(lines):
            raise _malformed("a checkpoint is an origin, a size and a root, a line each")
        if any(char < " " for line in lines for char in line):
            raise _malformed("a checkpoint has no control characters but newlines")
        origin, size, root = lines[0], decimal_decode(lines[1]), b64_decode(lines[2], length=HASH_SIZE)
        if size == 0 and root != EMPTY_ROOT:
            raise _malformed("the root of an empty tree is SHA-256 of nothing")
        return cls(origin=origin, size=size, root=root, extensions=tuple(lines[3:]))

    def encode(self) -> bytes:
        """Return the text that is signed."""
        return "".join(
            f"{line}\n" for line in (self.origin, self.size, b64(self.root), *self.extensions)
        ).encode()


def sign_checkpoint(checkpoint: Checkpoint, signer: Signer) -> bytes:
    """Return the signed note of a checkpoint: the `checkpoint` file of a log."""
    text = checkpoint.encode()
    return Note(unverified_text=text, signatures=(signer.sign(text),)).encode()


def _malformed(text: str) -> LogFormatError:
    return LogFormatError(text, code="malformed-checkpoint")
