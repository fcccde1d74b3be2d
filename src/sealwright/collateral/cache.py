"""Collateral on disk: blobs by their SHA-256, and one small index file a piece. For several processes at once.

    DIR/entries/<SHA-256 of kind and key>.json     canonical JSON: format, and the members of `Entry`
    DIR/blobs/<SHA-256>                            as fetched
    DIR/lock

Writers hold the lock; readers need none, since files are only ever replaced or removed whole. What does not have its
digest, or is not in its format, is removed and counts as not there. Everything is verified again when it is used: the
cache is trusted with nothing but not to lose things.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Literal

from sealwright.collateral.files import check_private, locked, mtime, read_bytes, replace_file, reported
from sealwright.collateral.need import Need
from sealwright.collateral.record import MAX_BLOB, Entry, Piece
from sealwright.crypto.document import Document
from sealwright.crypto.encoding import digest
from sealwright.errors import FormatError

MAX_BYTES = 256 * 1024 * 1024  # of blobs
MAX_ENTRIES = 16 * 1024
_MAX_ENTRY = 4 * 1024  # bytes of an index file


class _IndexFile(Document, Entry):
    format: Literal["sealwright-collateral-cache/v1"] = "sealwright-collateral-cache/v1"


class _Damaged(Exception):
    """A piece is not as it was written."""


class Cache:
    """A folder of collateral. Nothing that comes out of it is verified."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES, max_entries: int = MAX_ENTRIES) -> None:
        """Open the folder, or make it, for its owner alone.

        Raises:
            UnavailableError: `cache-unusable`.
        """
        self._entries, self._blobs, self._lock = folder / "entries", folder / "blobs", folder / "lock"
        self._max_bytes, self._max_entries = max_bytes, max_entries
        self.damaged = 0  # pieces found damaged, and removed, since this object was made
        with reported(folder):
            for one in (folder, self._entries, self._blobs):
                one.mkdir(mode=0o700, parents=True, exist_ok=True)
                check_private(one)

    def get(self, need: Need, *, used: bool = True) -> Piece | None:
        """Return what is kept of `need`, however old: look at its `state`. None: nothing, or it was damaged.

        Args:
            used: count this as a use; what was not used for longest is removed first.

        Raises:
            UnavailableError: `cache-unusable`.
        """
        path = self._path(need)
        with reported(path):
            try:
                piece = self._read(path, need)
            except _Damaged:
                piece = self._read_again(path, need)
            if piece is not None and used:
                with contextlib.suppress(OSError):  # another process may have removed it meanwhile
                    os.utime(path)
            return piece

    def put(self, piece: Piece, *, replace: bool = False) -> bool:
        """Keep a piece, and remove what was not used for longest if there is too much. Return whether it was kept.

        A piece that was issued before the one that is kept is left out: what a vendor has replaced does not come back.

        Args:
            replace: keep it in any case.

        Raises:
            UnavailableError: `cache-unusable`.
        """
        entry = _IndexFile(**piece.entry().model_dump())
        with reported(self._lock), locked(self._lock):
            if not replace and _older(piece, self._kept(piece.need)):
                return False
            for name, blob in zip(entry.blobs, piece.blobs, strict=True):
                if self._blob(name) is None:
                    replace_file(self._blobs / name.hex(), blob)
            path = self._path(piece.need)
            last_used = mtime(path)
            replace_file(path, entry.encode())
            if last_used:  # to be replaced is no use
                os.utime(path, (last_used, last_used))
            self._bound(path)
        return True

    def remove(self, need: Need) -> None:
        """Remove a piece; its blobs go when room is made. Raises UnavailableError `cache-unusable`."""
        with reported(self._lock), locked(self._lock):
            self._path(need).unlink(missing_ok=True)

    def entries(self, *, used_since: datetime | None = None) -> Iterator[Entry]:
        """Yield what is kept, by kind and key; blobs are not read.

        Args:
            used_since: leave out what was last used before.

        Raises:
            UnavailableError: `cache-unusable`.
        """
        found = []
        with reported(self._entries):
            for path in self._entries.glob("*.json"):
                with contextlib.suppress(_Damaged):
                    entry = self._entry(path)
                    if entry is not None and (used_since is None or mtime(path) >= used_since.timestamp()):
                        found.append(entry)
        yield from sorted(found, key=lambda entry: (entry.kind, entry.key))

    def _path(self, need: Need) -> Path:
        return self._entries / f"{digest(need.kind, need.key).hex()}.json"

    def _read(self, path: Path, need: Need) -> Piece | None:
        entry = self._entry(path)
        if entry is None:
            return None
        blobs = [self._blob(name) for name in entry.blobs]
        whole = tuple(blob for blob in blobs if blob is not None)
        if len(whole) != len(blobs):
            raise _Damaged
        return Piece(
            need=need,
            blobs=whole,
            fetched=entry.fetched,
            issued=entry.issued,
            next_update=entry.next_update,
        )

    def _read_again(self, path: Path, need: Need) -> Piece | None:
        """Read with the lock held, since a writer may have been in between; remove what is damaged indeed."""
        with locked(self._lock):
            try:
                return self._read(path, need)
            except _Damaged:
                self.damaged += 1
                path.unlink(missing_ok=True)
                return None

    def _kept(self, need: Need) -> Piece | None:
        try:
            return self._read(self._path(need), need)
        except _Damaged:
            return None

    def _entry(self, path: Path) -> _IndexFile | None:
        raw = read_bytes(path, _MAX_ENTRY)
        if raw is None:
            return None
        try:
            entry = _IndexFile.parse(raw, limit=_MAX_ENTRY)
        except FormatError:
            raise _Damaged from None
        if path != self._path(entry.need()):
            raise _Damaged
        return entry

    def _blob(self, name: bytes) -> bytes | None:
        raw = read_bytes(self._blobs / name.hex(), MAX_BLOB)
        return raw if raw is not None and sha256(raw).digest() == name else None

    def _bound(self, keep: Path) -> None:
        """Make room if there is too much. The lock is held."""
        sizes = {path.name: path.stat().st_size for path in self._blobs.iterdir()}
        pieces = [path for path in self._entries.glob("*.json") if path != keep]
        if len(pieces) >= self._max_entries or sum(sizes.values()) > self._max_bytes:
            self._shrink(sizes, sorted(pieces, key=mtime), keep)

    def _shrink(self, sizes: dict[str, int], oldest_first: list[Path], keep: Path) -> None:
        """Remove blobs that no piece names, and pieces until a tenth is free; `keep` stays."""
        named = {path: self._names(path) for path in [*oldest_first, keep]}
        for path in oldest_first:
            size = sum(sizes.get(name, 0) for name in set().union(*named.values()))
            if len(named) <= self._max_entries * 0.9 and size <= self._max_bytes * 0.9:
                break
            del named[path]
            path.unlink(missing_ok=True)
        for name in sizes.keys() - set().union(*named.values()):
            (self._blobs / name).unlink(missing_ok=True)

    def _names(self, path: Path) -> set[str]:
        with contextlib.suppress(_Damaged):
            if entry := self._entry(path):
                return {name.hex() for name in entry.blobs}
        return set()


def default_folder() -> Path:
    """Return where this user's collateral is kept: SEALWRIGHT_COLLATERAL, else below the user's cache folder."""
    if named := os.environ.get("SEALWRIGHT_COLLATERAL"):
        return Path(named)
    base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sealwright" / "collateral"


def _older(piece: Piece, kept: Piece | None) -> bool:
    # Nobody has issued anything after it was fetched: such a date must not keep the truth out.
    if kept is None or kept.issued is None or piece.issued is None:
        return False
    return piece.issued < kept.issued <= kept.fetched + timedelta(minutes=5)
