"""An artefact that is being sealed: a folder beside the result, which takes its name when all is whole.

A draft that is kept can be gone on with after a crash. What makes that safe stands in docs/spec/sealed-artefact.md,
Going on: no segment is ever encrypted twice under one nonce with other plaintext.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from blake3 import blake3

from sealwright.crypto.canonical import canonical, parse_canonical
from sealwright.crypto.streaming import SALT_BYTES, Layout
from sealwright.errors import ArtefactFormatError, FormatError, UnavailableError
from sealwright.sealing.files import FileReader, io_errors, lock_file, read_whole
from sealwright.sealing.location import MANIFEST, ciphertext_name
from sealwright.sealing.manifest import derive

FORMAT = "sealwright-draft/v1"
MAX_STATE = 1 << 16
STATE = "state.json"
DIGEST = 32
_SLOT = DIGEST + 1  # keyed digest of the plaintext, and whether its ciphertext was written
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_CREATE = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is sealed: a draft of anything else is not gone on with."""

    kid: str
    version: int
    segment_bytes: int
    files: Sequence[tuple[str, int, str]]  # path, length, stamp of what is read

    def mac(self, dek: bytes, artefact_id: bytes, place: os.stat_result) -> str:
        """Return a MAC (hex) of the plan, of the artefact's id, and of the very file that holds the state.

        That file's place is in it so that a copy of a draft is no draft: two copies, gone on with apart, would use
        their nonces twice.
        """
        body = {
            "kid": self.kid,
            "version": self.version,
            "segment_bytes": self.segment_bytes,
            "files": [{"path": path, "length": length, "stamp": stamp} for path, length, stamp in self.files],
            "place": [str(place.st_dev), str(place.st_ino)],
        }
        key = derive(dek, "draft", artefact_id, self.version)
        return hmac.digest(key, canonical(body), "sha256").hex()


class Draft:
    """The folder in which an artefact grows."""

    def __init__(self, folder: Path, artefact_id: bytes, *, kept: bool, lock: int | None) -> None:
        self.folder = folder
        self.artefact_id = artefact_id
        self.kept = kept  # whether it is left after a failure, to be gone on with
        self._lock = lock

    @classmethod
    def new(cls, out: Path, artefact_id: bytes) -> Self:
        """Return one that nobody can go on with."""
        folder = out.with_name(f".{out.name}.{secrets.token_hex(8)}.tmp")
        with io_errors("output-failed", f"cannot write beside {out.name}"):
            folder.mkdir(mode=0o700)
        return cls(folder, artefact_id, kept=False, lock=None)

    @classmethod
    def resumed(cls, out: Path, plan: Plan, *, dek: bytes, artefact_id: bytes, given: bool) -> Self:
        """Return the draft of `out` that is there, or a new one that is kept.

        Args:
            artefact_id: of a new one. given: it was asked for, so that a draft must have the same.

        Raises:
            UnavailableError: `draft-differs`: of another sealing, or a copy; `draft-in-use`.
        """
        folder = draft_path(out)
        with io_errors("output-failed", f"cannot write beside {out.name}"):
            folder.mkdir(mode=0o700, exist_ok=True)
        lock = lock_file(folder / STATE)
        if lock is None:
            raise UnavailableError(
                "this is being sealed by another process", code="draft-in-use", stage="draft"
            )
        try:
            found = _read_state(folder / STATE)
            if found is None:
                _clear(folder)
            else:
                artefact_id = _checked(found, plan, dek, artefact_id if given else None, os.fstat(lock))
                if found["boot"] != _boot():
                    _clear(folder)
            _write_state(lock, plan.mac(dek, artefact_id, os.fstat(lock)), artefact_id)
        except BaseException:
            os.close(lock)
            raise
        return cls(folder, artefact_id, kept=True, lock=lock)

    def part(self, index: int) -> Path:
        """Return where the unfinished ciphertext of file `index` is."""
        return self.folder / f"{index:04d}.part"

    def finished(self, index: int) -> Path:
        """Return where it is once it is whole."""
        return self.folder / ciphertext_name(index)

    def seen(self, index: int) -> Path:
        """Return where the digests of what was encrypted are."""
        return self.folder / f"{index:04d}.seen"

    def begun(self, index: int, layout: Layout) -> Path | None:
        """Return the ciphertext of file `index` that can be gone on with. None: there is none, and nothing is left of it.

        One whose digests are not there is none: what was encrypted under its nonces is not known any more.
        """
        sized = {self.seen(index): layout.segments * _SLOT}
        for path in (self.finished(index), self.part(index)):
            sizes = {path: layout.sealed_length, **sized}
            if self.kept and all(one.is_file() and one.stat().st_size == size for one, size in sizes.items()):
                return path
        for path in (self.seen(index), self.finished(index), self.part(index)):
            path.unlink(missing_ok=True)
        return None

    def commit(self, out: Path, manifest: Path, envelope: bytes, *, as_folder: bool) -> None:
        """Give the artefact its name, in place of an artefact that had it before. Raises UnavailableError."""
        with io_errors("output-failed", f"cannot name {out.name}"):
            staged = self.folder / MANIFEST
            staged.write_bytes(envelope)
            _flush(staged)
            if as_folder:
                self._name_folder(out)
            else:
                if manifest.is_dir() or out.is_dir():
                    raise IsADirectoryError(0, "a folder has its name")
                # A crash between the two names leaves a pair that does not fit, which is refused when opened.
                os.replace(self.finished(0), out)
                os.replace(staged, manifest)
        self._release()
        shutil.rmtree(self.folder, ignore_errors=True)

    def abort(self) -> None:
        """Leave it if it is kept; else remove it."""
        self._release()
        if not self.kept:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _name_folder(self, out: Path) -> None:
        for path in [*self.folder.glob("*.seen"), self.folder / STATE]:
            path.unlink(missing_ok=True)
        old = out.with_name(f".{out.name}.{secrets.token_hex(8)}.old")
        if out.exists():
            if not (out / MANIFEST).is_file():
                raise FileExistsError(0, "something else than an artefact has its name")
            os.rename(out, old)
        self.folder.chmod(0o755)
        os.rename(self.folder, out)
        shutil.rmtree(old, ignore_errors=True)

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class Seen:
    """What was encrypted of one file, segment by segment: known before the ciphertext is written."""

    def __init__(self, path: Path, *, dek: bytes, salt: bytes, segments: int) -> None:
        """Args: salt: of the ciphertext, 32 bytes."""
        if len(salt) != SALT_BYTES:
            raise ValueError("a salt has 32 bytes")
        self._key = derive(dek, "seen", salt)
        with io_errors("output-failed", "cannot keep what was sealed"):
            self._fd = os.open(path, _CREATE, 0o600)
            os.ftruncate(self._fd, segments * _SLOT)
            self._slots = bytearray(os.pread(self._fd, segments * _SLOT, 0))

    def digest(self, index: int, plain: memoryview) -> bytes:
        """Return the keyed digest of a segment's plaintext. Without the DEK it says nothing of it."""
        return blake3(plain, key=self._key).update(index.to_bytes(8, "big")).digest()

    def known(self, index: int) -> bytes | None:
        """Return the digest of what was encrypted at `index`, None: nothing."""
        found = bytes(self._slots[index * _SLOT : index * _SLOT + DIGEST])
        return found if any(found) else None

    def written(self, index: int) -> bool:
        """Return whether the ciphertext of `index` was written."""
        return self._slots[index * _SLOT + DIGEST] == 1

    def note(self, index: int, digest: bytes) -> None:
        """Keep that `index` is about to be encrypted."""
        self._put(index * _SLOT, digest)

    def note_written(self, index: int) -> None:
        """Keep that it was written."""
        self._put(index * _SLOT + DIGEST, b"\x01")

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _put(self, at: int, data: bytes) -> None:
        with io_errors("output-failed", "cannot keep what was sealed"):
            if os.pwrite(self._fd, data, at) != len(data):
                raise OSError(0, "a short write")


def draft_path(out: Path) -> Path:
    """Return where the draft of `out` is that can be gone on with."""
    return out.with_name(f".{out.name}.part")


def discard_draft(out: Path) -> None:
    """Remove a draft of `out`, if there is one."""
    shutil.rmtree(draft_path(out), ignore_errors=True)


def _read_state(path: Path) -> Mapping[str, str] | None:
    raw = read_whole(path, MAX_STATE)
    if not raw:
        return None
    try:
        state = parse_canonical(raw, limit=MAX_STATE, error=ArtefactFormatError)
    except FormatError:
        state = {}
    names = {"format", "artefact_id", "boot", "mac"}
    if (
        set(state) != names
        or state["format"] != FORMAT
        or not all(isinstance(one, str) for one in state.values())
    ):
        raise _differs("its state cannot be read")
    return state


def _checked(
    state: Mapping[str, str], plan: Plan, dek: bytes, wanted: bytes | None, place: os.stat_result
) -> bytes:
    try:
        artefact_id = bytes.fromhex(state["artefact_id"])
    except ValueError:
        artefact_id = b""
    if not hmac.compare_digest(state["mac"].encode(), plan.mac(dek, artefact_id, place).encode()):
        raise _differs("it is of other files, another key, kid or version, or a copy")
    if wanted is not None and not hmac.compare_digest(wanted, artefact_id):
        raise _differs("it has another artefact id")
    return artefact_id


def _write_state(fd: int, mac: str, artefact_id: bytes) -> None:
    state = {"format": FORMAT, "artefact_id": artefact_id.hex(), "boot": _boot(), "mac": mac}
    with io_errors("output-failed", "cannot keep the draft's state"):
        raw = canonical(state)
        os.pwrite(fd, raw, 0)
        os.ftruncate(fd, len(raw))
        os.fsync(fd)


def _boot() -> str:
    """Return what names this boot: after another one nobody knows which writes reached the disk, and all begins anew."""
    with contextlib.suppress(OSError):
        return _BOOT.read_text().strip()
    return secrets.token_hex(16)


def _clear(folder: Path) -> None:
    for suffix in (".part", ".seen", ".sealed"):
        for path in _numbered(folder, suffix):
            path.unlink(missing_ok=True)


def _numbered(folder: Path, suffix: str) -> Iterator[Path]:
    return folder.glob(f"[0-9][0-9][0-9][0-9]{suffix}")


def _flush(path: Path) -> None:
    with FileReader(path) as file:
        os.fsync(file.fd)


def _differs(why: str) -> UnavailableError:
    return UnavailableError(
        f"the draft of an earlier sealing cannot be gone on with: {why}; seal anew with --restart",
        code="draft-differs",
        stage="draft",
    )
