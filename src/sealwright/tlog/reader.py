"""Proofs and entries read out of a log's tiles. Nothing read is verified here: verify the proofs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache

from sealwright.tlog import merkle
from sealwright.tlog.merkle import HASH_SIZE
from sealwright.tlog.tiles import TILE_HEIGHT, TILE_WIDTH, Fetch, read_bundle, read_tile, width_at

CACHED_TILES = 4096  # 16 KiB each with their inner nodes: all of a log of a million entries

_Rows = tuple[bytes, ...]  # of one tile, by height 0 to 8: the complete nodes, joined


class TileReader:
    """The tree of `size` leaves that a log's tiles claim."""

    def __init__(self, fetch: Fetch, size: int, *, cached_tiles: int = CACHED_TILES) -> None:
        """Args: fetch: returns the bytes under a path; size: leaves; cached_tiles: how many are kept."""
        self.size = size
        self._fetch = fetch
        self._rows: Callable[[int, int], _Rows] = lru_cache(cached_tiles)(self._load)

    def node(self, height: int, index: int) -> bytes:
        """Return the hash of the perfect subtree over leaves [index << height, (index + 1) << height)."""
        level, above = divmod(height, TILE_HEIGHT)
        tile, at = divmod(index, TILE_WIDTH >> above)
        at *= HASH_SIZE
        return self._rows(level, tile)[above][at : at + HASH_SIZE]

    def root(self, size: int | None = None) -> bytes:
        """Return the root over the first `size` leaves (all, if None), as the tiles claim it."""
        return merkle.range_hash(self.node, 0, self.size if size is None else size)

    def inclusion_proof(self, index: int) -> tuple[bytes, ...]:
        """Return the inclusion proof of leaf `index` in this tree. ValueError: there is no such leaf."""
        return merkle.inclusion_proof(self.node, index, self.size)

    def consistency_proof(self, old: int) -> tuple[bytes, ...]:
        """Return the consistency proof from the tree of `old` leaves to this one. ValueError: not 0 < old <= size."""
        return merkle.consistency_proof(self.node, old, self.size)

    def entry(self, index: int) -> bytes:
        """Return entry `index`, as its bundle claims it. ValueError: there is no such entry."""
        if not 0 <= index < self.size:
            raise ValueError(f"no entry {index} in a log of {self.size}")
        bundle, at = divmod(index, TILE_WIDTH)
        return read_bundle(self._fetch, bundle, width_at(0, bundle, self.size))[at]

    def find(self, leaf: bytes) -> int | None:
        """Return the first index with this leaf hash, or None. Reads every level-0 tile."""
        for tile in range((self.size + TILE_WIDTH - 1) // TILE_WIDTH):
            row = read_tile(self._fetch, 0, tile, width_at(0, tile, self.size))
            hashes = [row[at : at + HASH_SIZE] for at in range(0, len(row), HASH_SIZE)]
            if leaf in hashes:
                return tile * TILE_WIDTH + hashes.index(leaf)
        return None

    def _load(self, level: int, index: int) -> _Rows:
        row = read_tile(self._fetch, level, index, width_at(level, index, self.size))
        rows = [row]
        for _ in range(TILE_HEIGHT - 1):
            row = b"".join(
                [
                    hashlib.sha256(b"\x01" + row[at : at + 2 * HASH_SIZE]).digest()
                    for at in range(0, len(row) - HASH_SIZE, 2 * HASH_SIZE)
                ]
            )
            rows.append(row)
        return tuple(rows)
