"""Tiles and entry bundles (c2sp.org/tlog-tiles): their paths, their bytes, and how they are read.

`Fetch` returns the bytes under a path of a log, or raises FileNotFoundError. It may return
anything: what is read here has the right form, and nothing more is known of it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from sealwright.errors import LogFormatError, VerificationError
from sealwright.tlog.merkle import HASH_SIZE
from sealwright.tlog.text import MAX_NUMBER

Fetch = Callable[[str], bytes]

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT  # hashes in a full tile, entries in a full bundle
MAX_ENTRY = 0xFFFF  # bytes
MAX_BUNDLE = TILE_WIDTH * (2 + MAX_ENTRY)  # bytes
MAX_LEVEL = 63
CHECKPOINT = "checkpoint"
_PATH = re.compile(
    r"tile/(entries|0|[1-9][0-9]?)/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?", re.ASCII
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TilePath:
    """Where a tile (`level` 0 to 63) or an entry bundle (`level` None) lies. `width` 256 is a full one."""

    level: int | None
    index: int
    width: int = TILE_WIDTH

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a path below the log's prefix.

        Raises:
            LogFormatError: not the one spelling of a tile's path.
        """
        match = _PATH.fullmatch(text)
        if match is None:
            raise LogFormatError("not the path of a tile", code="malformed-path")
        kind, groups, width = match.groups()
        path = cls(
            level=None if kind == "entries" else int(kind),
            index=int(groups.replace("/", "").replace("x", "")),
            width=TILE_WIDTH if width is None else int(width),
        )
        if (path.level or 0) > MAX_LEVEL or path.index > MAX_NUMBER or path.encode() != text:
            raise LogFormatError("not the path of a tile", code="malformed-path")
        return path

    def encode(self) -> str:
        """Return the path: `tile/<L>/<N>[.p/<W>]`, N in groups of three digits."""
        groups = [f"{self.index % 1000:03d}"]
        rest = self.index // 1000
        while rest:
            groups.insert(0, f"x{rest % 1000:03d}")
            rest //= 1000
        kind = "entries" if self.level is None else self.level
        part = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{kind}/{'/'.join(groups)}{part}"


def tile_path(level: int, index: int, width: int = TILE_WIDTH) -> str:
    """Return the path of a tile of `width` hashes."""
    return TilePath(level=level, index=index, width=width).encode()


def entries_path(index: int, width: int = TILE_WIDTH) -> str:
    """Return the path of a bundle of `width` entries."""
    return TilePath(level=None, index=index, width=width).encode()


def width_at(level: int, index: int, size: int) -> int:
    """Return how wide tile `index` of `level` is in a tree of `size` leaves: 0 to 256."""
    return max(0, min(TILE_WIDTH, (size >> (TILE_HEIGHT * level)) - index * TILE_WIDTH))


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """Return entries as a bundle: each preceded by its length, u16 big-endian.

    Raises:
        LogFormatError: an entry is over 65,535 bytes.
    """
    if any(len(entry) > MAX_ENTRY for entry in entries):
        raise LogFormatError(f"an entry has at most {MAX_ENTRY} bytes", code="entry-too-large")
    return b"".join([len(entry).to_bytes(2, "big") + entry for entry in entries])


def parse_bundle(raw: bytes) -> list[bytes]:
    """Return the entries of a bundle: 1 to 256.

    Raises:
        LogFormatError: `malformed-bundle`.
    """
    entries, at, size = [], 0, len(raw)
    if size > MAX_BUNDLE:
        raise LogFormatError(f"an entry bundle of {size} bytes is over the limit", code="malformed-bundle")
    try:
        while at < size:
            end = at + 2 + _LENGTH.unpack_from(raw, at)[0]
            entries.append(raw[at + 2 : end])
            at = end
    except struct.error:
        at = -1
    if at != size or not 1 <= len(entries) <= TILE_WIDTH:
        raise LogFormatError("an entry bundle is cut, too long or empty", code="malformed-bundle")
    return entries


def read_bundle(fetch: Fetch, index: int, width: int) -> list[bytes]:
    """Return the first `width` entries of bundle `index`; the full bundle may stand in for a partial one.

    Raises:
        VerificationError: `log-entries-missing`.
        LogFormatError: `malformed-bundle`.
    """
    path, raw, full = _read(fetch, TilePath(level=None, index=index, width=width), "log-entries-missing")
    try:
        entries = parse_bundle(raw)
    except LogFormatError as exc:
        raise LogFormatError(f"{path}: {exc}", code=exc.code, stage="entries") from exc
    if len(entries) != (TILE_WIDTH if full else width):
        raise LogFormatError(f"{path} holds {len(entries)} entries", code="malformed-bundle", stage="entries")
    return entries[:width]


def read_tile(fetch: Fetch, level: int, index: int, width: int) -> bytes:
    """Return the first `width` hashes of a tile, joined; the full tile may stand in for a partial one.

    Raises:
        VerificationError: `log-tile-missing`.
        LogFormatError: `malformed-tile`.
    """
    path, raw, full = _read(fetch, TilePath(level=level, index=index, width=width), "log-tile-missing")
    if len(raw) != HASH_SIZE * (TILE_WIDTH if full else width):
        raise LogFormatError(f"{path} has {len(raw)} bytes", code="malformed-tile", stage="tiles")
    return raw[: HASH_SIZE * width]


_LENGTH = struct.Struct(">H")


def _read(fetch: Fetch, path: TilePath, code: str) -> tuple[str, bytes, bool]:
    """Return the path found, its bytes, and whether it is a full one."""
    full = TilePath(level=path.level, index=path.index)
    for candidate in (path, full):
        try:
            return candidate.encode(), fetch(candidate.encode()), candidate == full
        except FileNotFoundError:
            continue
    stage = "entries" if path.level is None else "tiles"
    raise VerificationError(f"{path.encode()} is missing", code=code, stage=stage)
