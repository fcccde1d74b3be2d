"""The right edge of a tiled tree: all that a writer has to keep to append to it.

It is a compact range of radix 256: for each level the hashes of the tile that is not yet full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from sealwright.errors import VerificationError
from sealwright.tlog.merkle import EMPTY_ROOT, HASH_SIZE, leaf_hash, tree_root
from sealwright.tlog.tiles import (
    TILE_HEIGHT,
    TILE_WIDTH,
    Fetch,
    encode_bundle,
    entries_path,
    read_bundle,
    read_tile,
    tile_path,
    width_at,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RightEdge:
    """A tree of `size` leaves, ready to grow. Immutable: `extended` returns the next one."""

    size: int = 0
    rows: tuple[tuple[bytes, ...], ...] = ()  # by level, hashes of the partial tile
    entries: tuple[bytes, ...] = ()  # of the partial bundle

    @classmethod
    def read(cls, fetch: Fetch, size: int) -> Self:
        """Read the edge of a tree of `size` leaves from its tiles and its last bundle.

        Raises:
            VerificationError: a file is missing, or the last entries do not have the hashes of their tile.
            LogFormatError: a file is malformed.
        """
        rows, level = [], 0
        while size >> (TILE_HEIGHT * level):
            index = size >> (TILE_HEIGHT * (level + 1))
            width = width_at(level, index, size)
            raw = read_tile(fetch, level, index, width) if width else b""
            rows.append(tuple(raw[at : at + HASH_SIZE] for at in range(0, len(raw), HASH_SIZE)))
            level += 1
        last, width = divmod(size, TILE_WIDTH)
        entries = tuple(read_bundle(fetch, last, width)) if width else ()
        if width and tuple(leaf_hash(entry) for entry in entries) != rows[0]:
            text = f"{entries_path(last, width)} does not have the hashes of its tile"
            raise VerificationError(text, code="log-entry-edited", stage="entries")
        return cls(size=size, rows=tuple(rows), entries=entries)

    def root(self) -> bytes:
        """Return the root of the tree."""
        carried: tuple[bytes, ...] = ()  # the incomplete subtree right of the row
        for row in self.rows:
            if row or carried:
                carried = (tree_root(row + carried),)
        return carried[0] if carried else EMPTY_ROOT

    def extended(self, entries: Sequence[bytes]) -> tuple[RightEdge, dict[str, bytes], dict[str, bytes]]:
        """Return the edge after `entries`, and the bundles and tiles to publish, by path.

        Raises:
            LogFormatError: `entry-too-large`.
        """
        pending = [*self.entries, *entries]
        bundles = {
            entries_path(index, len(part)): encode_bundle(part)
            for index, part in _split(self.size >> TILE_HEIGHT, pending)
        }
        rows, tiles = list(self.rows), {}
        level, added = 0, [leaf_hash(entry) for entry in entries]
        while added:
            row = [*(rows[level] if level < len(rows) else ()), *added]
            added = []
            for index, part in _split(self.size >> (TILE_HEIGHT * (level + 1)), row):
                tiles[tile_path(level, index, len(part))] = b"".join(part)
                if len(part) == TILE_WIDTH:
                    added.append(tree_root(part))
            rows[level : level + 1] = [tuple(_tail(row))]
            level += 1
        edge = RightEdge(size=self.size + len(entries), rows=tuple(rows), entries=tuple(_tail(pending)))
        return edge, bundles, tiles


def _split(first: int, items: list[bytes]) -> list[tuple[int, list[bytes]]]:
    """Return `items` by tile: (index of the tile, its items)."""
    starts = range(0, len(items), TILE_WIDTH)
    return [(first + at // TILE_WIDTH, items[at : at + TILE_WIDTH]) for at in starts]


def _tail(items: list[bytes]) -> list[bytes]:
    return items[len(items) // TILE_WIDTH * TILE_WIDTH :]
