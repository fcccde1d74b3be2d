"""A tar archive that has one spelling: regular files in a given order, ustar headers with fixed values.

Written so that any `tar` lists and unpacks it; read so that nothing else than what is written here is accepted. What
was read is written again and compared: so there are no paths to climb, links, sparse files, duplicates, compression,
or bytes that one reader sees and another does not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sealwright.errors import EvidenceFormatError

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_NAME = re.compile(r"[a-z0-9][a-z0-9./-]{0,98}[a-z0-9]")
_SIZE = re.compile(rb"[0-7]{11}\0")


def write_tar(files: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the archive of `files`, in this order. Two archives of the same files are the same bytes."""
    out = bytearray()
    for name, data in files:
        out += _header(name, len(data)) + data + bytes(-len(data) % _BLOCK)
    return bytes(out) + _END


def read_tar(raw: bytes, *, max_files: int, max_file: int) -> list[tuple[str, bytes]]:
    """Return (name, content) of each file of an archive that `write_tar` could have written.

    Args:
        max_file: bytes of one file.

    Raises:
        EvidenceFormatError: `malformed-pack`, `too-large`.
    """
    files: list[tuple[str, bytes]] = []
    at = 0
    while raw[at : at + _BLOCK] != _END[:_BLOCK]:
        name, size = _parse(raw[at : at + _BLOCK])
        if len(files) >= max_files or size > max_file:
            raise EvidenceFormatError(
                f"over {max_files} files, or one over {max_file} bytes", code="too-large"
            )
        at += _BLOCK
        files.append((name, raw[at : at + size]))
        at += size + -size % _BLOCK
    if write_tar(files) != raw or len({name for name, _ in files}) != len(files):
        raise _malformed("it is not written in its one form")
    return files


def _parse(header: bytes) -> tuple[str, int]:
    if len(header) < _BLOCK:
        raise _malformed("it ends too early")
    name = header[:100].rstrip(b"\0").decode("ascii", "replace")
    if not _NAME.fullmatch(name) or ".." in name or "//" in name:
        raise _malformed("a file name that has no place in it")
    if not _SIZE.fullmatch(header[124:136]):
        raise _malformed("a size that is not octal")
    return name, int(header[124:135], 8)


def _header(name: str, size: int) -> bytes:
    """Return a ustar header: mode 0644, owner 0, time 0."""
    fields = (
        name.encode("ascii").ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" + b"0000000\0",
        b"%011o\0" % size + b"%011o\0" % 0,
        b" " * 8,  # the checksum, as it counts in its own sum
        b"0" + bytes(100),
        b"ustar\0" + b"00",
    )
    header = b"".join(fields).ljust(_BLOCK, b"\0")
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def _malformed(what: str) -> EvidenceFormatError:
    return EvidenceFormatError(f"not a collateral pack: {what}", code="malformed-pack")
