"""A whole log checked again from its entries: every bundle, every tile, the root, the past."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sealwright.errors import LogFormatError, VerificationError
from sealwright.tlog.checkpoint import Checkpoint
from sealwright.tlog.edge import RightEdge
from sealwright.tlog.merkle import (
    HASH_SIZE,
    leaf_hash,
    tree_root,
    verify_consistency,
    verify_inclusion,
)
from sealwright.tlog.policy import LogPolicy, VerifiedCheckpoint
from sealwright.tlog.reader import TileReader
from sealwright.tlog.tiles import (
    CHECKPOINT,
    TILE_WIDTH,
    Fetch,
    read_bundle,
    read_tile,
    tile_path,
    width_at,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedLog:
    """A log whose entries, tiles and checkpoint agree. Made by `verify_log` only."""

    verified: VerifiedCheckpoint
    entry_bytes: int  # all entries together
    previous_size: int | None  # of the checkpoint it was proved to continue


def verify_log(fetch: Fetch, policy: LogPolicy, *, previous: Checkpoint | None) -> VerifiedLog:
    """Prove that every entry and tile of a log leads to a checkpoint `policy` admits, and continues `previous`.

    Without `previous` a log restored whole to an earlier time is not noticed.

    Raises:
        LogFormatError: a file is malformed.
        VerificationError: one code for each cause; docs/spec/log.md, "Checking a whole directory".
    """
    # 1. The checkpoint.
    try:
        verified = policy.verify(fetch(CHECKPOINT))
    except FileNotFoundError:
        raise VerificationError(
            "the log has no checkpoint", code="log-checkpoint-missing", stage="checkpoint"
        ) from None
    checkpoint = verified.checkpoint
    # 2. Not another log, not shorter than it was.
    if previous is not None:
        check_not_before(checkpoint, previous)
    # 3 and 4. Entries and tiles, to the root.
    scan = _Scan(fetch=fetch, checkpoint=checkpoint)
    scan.run()
    # 5. The past.
    if previous is not None and previous.size:
        check_continues(TileReader(fetch, checkpoint.size), checkpoint, previous)
    return VerifiedLog(
        verified=verified,
        entry_bytes=scan.entry_bytes,
        previous_size=None if previous is None else previous.size,
    )


def check_not_before(checkpoint: Checkpoint, previous: Checkpoint) -> None:
    """Check that `checkpoint` is of the same log as `previous`, and not smaller.

    Raises:
        VerificationError: `log-origin-mismatch`, `log-rolled-back`.
    """
    if checkpoint.origin != previous.origin:
        raise VerificationError(
            f"this is the log {checkpoint.origin!r}, wanted {previous.origin!r}",
            code="log-origin-mismatch",
            stage="consistency",
        )
    if checkpoint.size < previous.size:
        raise VerificationError(
            f"the log has {checkpoint.size} entries, and had {previous.size}",
            code="log-rolled-back",
            stage="consistency",
        )


def check_continues(reader: TileReader, checkpoint: Checkpoint, previous: Checkpoint) -> None:
    """Prove that the tree of `checkpoint` begins with that of `previous`; `reader` only supplies the proof.

    Raises:
        VerificationError: `log-forked`.
    """
    try:
        verify_consistency(
            previous.size,
            checkpoint.size,
            previous.root,
            checkpoint.root,
            reader.consistency_proof(previous.size),
        )
    except VerificationError as exc:
        if exc.code != "bad-consistency-proof":
            raise
        raise VerificationError(
            f"the first {previous.size} entries are not those of the earlier checkpoint",
            code="log-forked",
            stage="consistency",
        ) from exc


@dataclass(slots=True, kw_only=True)
class _Scan:
    """One pass over the entries, level by level upwards, comparing each tile with what follows from them."""

    fetch: Fetch
    checkpoint: Checkpoint
    entry_bytes: int = 0
    edited_tile: str | None = None  # the first that does not follow from the entries
    suspect: tuple[int, bytes] | None = None  # first entry that its tile contradicts, and the tile's hash

    def run(self) -> None:
        """Raise unless the root and every tile follow from the entries."""
        tail, above = self._level(0, self._leaves())
        rows = [tail]
        while above:
            tail, above = self._level(len(rows), _parts(above))
            rows.append(tail)
        root = RightEdge(size=self.checkpoint.size, rows=tuple(rows)).root()
        if not hmac.compare_digest(root, self.checkpoint.root):
            raise self._wrong_root()
        if self.edited_tile is not None:
            text = f"{self.edited_tile} does not hold the hashes that follow from the entries"
            raise VerificationError(text, code="log-tile-edited", stage="tiles")

    def _leaves(self) -> Iterator[list[bytes]]:
        """Yield the leaf hashes of each bundle."""
        size = self.checkpoint.size
        for index in range((size + TILE_WIDTH - 1) // TILE_WIDTH):
            entries = read_bundle(self.fetch, index, width_at(0, index, size))
            self.entry_bytes += sum(map(len, entries))
            yield [leaf_hash(entry) for entry in entries]

    def _level(self, level: int, parts: Iterable[list[bytes]]) -> tuple[tuple[bytes, ...], list[bytes]]:
        """Compare the tiles of a level; return the hashes of its partial tile, and the roots of the full ones."""
        tail: tuple[bytes, ...] = ()
        above = []
        for index, hashes in enumerate(parts):
            self._compare(level, index, hashes)
            if len(hashes) == TILE_WIDTH:
                above.append(tree_root(hashes))
            else:
                tail = tuple(hashes)
        return tail, above

    def _compare(self, level: int, index: int, hashes: list[bytes]) -> None:
        tile = read_tile(self.fetch, level, index, len(hashes))
        if tile == b"".join(hashes) or self.edited_tile is not None:
            return
        self.edited_tile = tile_path(level, index, len(hashes))
        if level == 0:
            found = [tile[at : at + HASH_SIZE] for at in range(0, len(tile), HASH_SIZE)]
            at = next(i for i, pair in enumerate(zip(found, hashes, strict=True)) if pair[0] != pair[1])
            self.suspect = (index * TILE_WIDTH + at, found[at])

    def _wrong_root(self) -> VerificationError:
        if self.suspect is not None and self._in_tree(*self.suspect):
            text = f"entry {self.suspect[0]} is not the one that was logged there"
            return VerificationError(text, code="log-entry-edited", stage="entries")
        text = f"the entries do not lead to the root of the checkpoint of size {self.checkpoint.size}"
        return VerificationError(text, code="log-root-mismatch", stage="root")

    def _in_tree(self, index: int, leaf: bytes) -> bool:
        """Say whether the tiles still prove `leaf`: then the entry was changed, and not its tile."""
        size, root = self.checkpoint.size, self.checkpoint.root
        try:
            verify_inclusion(index, size, leaf, root, TileReader(self.fetch, size).inclusion_proof(index))
        except (VerificationError, LogFormatError):
            return False
        return True


def _parts(row: list[bytes]) -> Iterator[list[bytes]]:
    return (row[at : at + TILE_WIDTH] for at in range(0, len(row), TILE_WIDTH))
