"""A log in a directory: the one place of this package that touches files.

Everything is written aside, synced and renamed; a batch is published as bundles, tiles, state,
checkpoint (docs/spec/log.md). Writing is for Linux; `directory_fetch` reads anywhere.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from sealwright.errors import LogFormatError, UnavailableError, VerificationError
from sealwright.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealwright.tlog.edge import RightEdge
from sealwright.tlog.keys import Signer, VerifierKey
from sealwright.tlog.merkle import HASH_SIZE
from sealwright.tlog.monitor import check_continues, check_not_before
from sealwright.tlog.note import Note
from sealwright.tlog.policy import NO_QUORUM, LogPolicy
from sealwright.tlog.proof import LogProof
from sealwright.tlog.reader import TileReader
from sealwright.tlog.text import b64, b64_decode, decimal_decode
from sealwright.tlog.tiles import CHECKPOINT, MAX_BUNDLE, Fetch, TilePath

STATE = ".state/state"
_LOCK = ".state/lock"
_ASIDE = ".state/tmp"
_MAX_STATE = 4096  # bytes
_SYNCS = 8  # files synced at a time
_STATE_HEADER = "sealwright/log-state/v1"


def directory_fetch(root: Path) -> Fetch:
    """Return a Fetch over the public files of a log directory: its checkpoint, tiles and bundles."""

    def fetch(path: str) -> bytes:
        if path != CHECKPOINT:
            TilePath.parse(path)  # nothing else is public, and no path leads outside
        return read_file(root / path, MAX_BUNDLE)

    return fetch


class PosixLog:
    """The one writer of a log directory. Not thread-safe: see `writer.LogWriter`."""

    def __init__(self, root: Path, signer: Signer, lock: int) -> None:
        """Use `open`. Args: lock: file descriptor that holds the directory's lock."""
        self.fetch = directory_fetch(root)
        self._root = root
        self._signer = signer
        self._policy = LogPolicy(logs=(signer.vkey,), quorum=NO_QUORUM)
        self._lock: int | None = lock
        self._known: set[Path] = set()  # directories that exist and are durable
        self._staged: dict[str, Path] = {}  # written and synced, not yet in place
        self._pool = ThreadPoolExecutor(_SYNCS, thread_name_prefix="log-sync")
        self._edge = RightEdge()
        self._signed: tuple[Checkpoint, bytes, TileReader]

    @classmethod
    def open(
        cls, root: Path, signer: Signer, *, not_before: Checkpoint | None = None, create: bool = False
    ) -> Self:
        """Lock a log directory, finish what a crash left, and return its writer.

        Args:
            signer: the log's key; its name is the origin.
            not_before: the highest checkpoint the caller holds of this log.
            create: start an empty log where there is none, which is refused otherwise. A deleted log then
                goes unseen, unless `not_before` is given.

        Raises:
            UnavailableError: `log-locked`: another writer has it.
            VerificationError: the directory is not what its key signed, or `log-rolled-back`,
                `log-forked`, `log-origin-mismatch` against `not_before`; `log-missing`.
            LogFormatError: a file is malformed.
        """
        if not create and not (root / CHECKPOINT).exists() and not (root / STATE).exists():
            raise VerificationError(f"{root} holds no log", code="log-missing", stage="open")
        log = cls(root, signer, _locked(root))
        try:
            log._recover()
            if not_before is not None:
                check_not_before(log.checkpoint, not_before)
                if not_before.size:
                    check_continues(log._signed[2], log.checkpoint, not_before)
        except BaseException:
            log.close()
            raise
        return log

    @property
    def checkpoint(self) -> Checkpoint:
        """The latest published checkpoint."""
        return self._signed[0]

    @property
    def signed_checkpoint(self) -> bytes:
        """The latest published checkpoint as a signed note."""
        return self._signed[1]

    def append(self, entries: Sequence[bytes]) -> int:
        """Append a batch durably, publish its checkpoint, and return the index of its first entry.

        After any error but LogFormatError the log must be opened again, which recovers it.

        Raises:
            LogFormatError: `entry-too-large`; nothing was written.
            UnavailableError: `log-write-failed`, or `log-closed`.
        """
        if self._lock is None:
            raise UnavailableError("the log is closed; open it again", code="log-closed", stage="log")
        first = self._edge.size
        if not entries:
            return first
        edge, bundles, tiles = self._edge.extended(entries)
        try:
            self._stage({**bundles, **tiles, STATE: encode_state(edge, self._signer)})
            self._place([*bundles, *tiles])
            self._place([STATE])
            self._edge = edge
            self._publish_checkpoint()
            self._drop_partials([*bundles, *tiles])
        except BaseException as exc:
            self.close()
            if not isinstance(exc, OSError):
                raise
            raise UnavailableError(
                f"the log could not be written: {exc.strerror}", code="log-write-failed", stage="log"
            ) from exc
        return first

    def prove(self, index: int) -> LogProof:
        """Return the proof of entry `index` under the latest checkpoint. ValueError: no such entry. Any thread."""
        _, raw, reader = self._signed
        hashes = reader.inclusion_proof(index)
        return LogProof(index=index, hashes=hashes, unverified_checkpoint=raw)

    def close(self) -> None:
        """Release the directory."""
        if self._lock is not None:
            self._pool.shutdown()  # before the lock: nothing may still be writing
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _recover(self) -> None:
        """Bring memory to the durable state, and the checkpoint up to it."""
        shutil.rmtree(self._root / _ASIDE, ignore_errors=True)
        size, root = self._read_state()
        self._edge = RightEdge.read(self.fetch, size)
        if self._edge.root() != root:
            raise VerificationError(
                "the tiles do not lead to the root in the state", code="log-root-mismatch", stage="root"
            )
        try:
            raw = self.fetch(CHECKPOINT)
        except FileNotFoundError:  # a crash before the very first checkpoint
            if size:
                raise VerificationError(
                    "the log has no checkpoint", code="log-checkpoint-missing", stage="checkpoint"
                ) from None
            self._publish_checkpoint()
            return
        signed = self._policy.verify(raw).checkpoint
        current = Checkpoint(origin=self._signer.name, size=size, root=root)
        check_not_before(current, signed)
        reader = TileReader(self.fetch, size)
        if signed.size:
            check_continues(reader, current, signed)
        if signed.size < size:
            self._publish_checkpoint()
        else:
            self._signed = (signed, raw, reader)

    def _read_state(self) -> tuple[int, bytes]:
        try:
            return decode_state(read_file(self._root / STATE, _MAX_STATE), self._signer.vkey)
        except FileNotFoundError:
            if (self._root / CHECKPOINT).exists() or (self._root / "tile").exists():
                raise VerificationError(
                    f"{self._root} has entries and no state", code="log-state-missing", stage="open"
                ) from None
        self._stage({STATE: encode_state(RightEdge(), self._signer)})
        self._place([STATE])
        return 0, RightEdge().root()

    def _publish_checkpoint(self) -> None:
        """Sign and publish a checkpoint of the durable state; before that, a crash could make us sign a fork."""
        edge = self._edge
        checkpoint = Checkpoint(origin=self._signer.name, size=edge.size, root=edge.root())
        raw = sign_checkpoint(checkpoint, self._signer)
        self._stage({CHECKPOINT: raw})
        self._place([CHECKPOINT])
        self._signed = (checkpoint, raw, TileReader(self.fetch, edge.size))

    def _stage(self, files: Mapping[str, bytes]) -> None:
        """Write files aside and sync them, side by side: the file system commits them together."""
        aside = self._root / _ASIDE
        aside.mkdir(exist_ok=True)
        self._staged = {path: aside / str(number) for number, path in enumerate(files)}
        list(self._pool.map(_write, self._staged.values(), files.values()))

    def _place(self, paths: Iterable[str]) -> None:
        """Rename staged files into place, in order, and sync their directories."""
        touched: set[Path] = set()
        for path in paths:
            target = self._root / path
            touched |= self._make(target.parent)
            os.replace(self._staged.pop(path), target)
        list(self._pool.map(_sync_directory, touched))
        self._known |= touched

    def _make(self, directory: Path) -> set[Path]:
        """Make a directory and those above it; return what has to be synced."""
        directory.mkdir(parents=True, exist_ok=True)
        touched = {directory}
        while directory != self._root and directory not in self._known:
            directory = directory.parent
            touched.add(directory)
        return touched

    def _drop_partials(self, paths: Iterable[str]) -> None:
        """Remove the partial forms of tiles that are now full; what remains of them does no harm."""
        for path in paths:
            if ".p/" not in path:
                partials = self._root / f"{path}.p"
                self._known.discard(partials)
                shutil.rmtree(partials, ignore_errors=True)


def _locked(root: Path) -> int:
    """Return a file descriptor that holds the exclusive lock of a log directory."""
    import fcntl  # not on Windows, where logs are only read

    (root / _LOCK).parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UnavailableError(f"{root} has another writer", code="log-locked", stage="open") from None
    return lock


def encode_state(edge: RightEdge, signer: Signer) -> bytes:
    """Return the state file: a note of two lines, which is no checkpoint, signed by the log's key.

    Were it not signed, whoever can write to the disk could have us sign entries of theirs at the next start.
    """
    text = f"{_STATE_HEADER}\n{edge.size} {b64(edge.root())}\n".encode()
    return Note(unverified_text=text, signatures=(signer.sign(text),)).encode()


def decode_state(raw: bytes, key: VerifierKey) -> tuple[int, bytes]:
    """Return size and root of a state file that `key` signed."""
    note = Note.parse(raw)
    if key not in note.verify([key]):
        raise VerificationError(
            "the state of the log is not signed by its key", code="untrusted-signer", stage="open"
        )
    match note.unverified_text.decode().split("\n"):
        case [header, line, ""] if header == _STATE_HEADER and line.count(" ") == 1:
            size, root = line.split(" ")
            return decimal_decode(size), b64_decode(root, length=HASH_SIZE)
        case _:
            raise LogFormatError("the state of the log is malformed", code="malformed-log-state")


def read_file(path: Path, limit: int) -> bytes:
    """Return a regular file of at most `limit` bytes.

    Raises:
        FileNotFoundError: there is none.
        UnavailableError: `log-unreadable`.
        LogFormatError: `too-large`.
    """
    try:
        if not path.is_file():  # a FIFO in somebody's log would hold us for ever
            raise FileNotFoundError(str(path))
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise UnavailableError(
            f"{path} cannot be read: {exc.strerror}", code="log-unreadable", stage="log"
        ) from exc
    if len(raw) > limit:
        raise LogFormatError(f"{path.name} is over the limit of {limit} bytes", code="too-large")
    return raw


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, handle)
        os.fsync(handle)
