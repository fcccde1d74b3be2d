"""The highest version that was accepted of each lineage, kept through restarts. Spec: docs/spec/checkpoint.md, Rollback."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Protocol

from sealwright.crypto.canonical import parse_json
from sealwright.crypto.document import validated
from sealwright.errors import SettingsError, UnavailableError, VerificationError
from sealwright.protocol.checkpoint import CheckpointStatement
from sealwright.training.checkpoint.trust import Known

MAX_STATE = 4096  # bytes


class Newest(Protocol):
    """Where the highest version is kept: a broker's rows (`DataKeys.newest`), or a file out of the host's reach."""

    def newest(self, lineage: bytes) -> tuple[int, bytes] | None:
        """Return version and statement digest of the highest; None: nothing was accepted."""
        ...


def check_newest(statement: CheckpointStatement, held: tuple[int, bytes] | None) -> None:
    """Prove that a checkpoint is not older than the highest that is known, nor another of its version.

    Raises:
        VerificationError: `checkpoint-rollback`, `checkpoint-forked`; stage `lineage`.
    """
    if held is None:
        return
    version, digest = held
    said = statement.predicate
    if said.version < version:
        raise VerificationError(
            f"version {said.version} is older than version {version}, which is known",
            code="checkpoint-rollback",
            stage="lineage",
        )
    if said.version == version and statement.digest() != digest:
        raise VerificationError(
            f"another version {version} is known", code="checkpoint-forked", stage="lineage"
        )


class NewestFile:
    """The highest version in a file, for who has no broker at hand. Whoever can write the file can set it back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def newest(self, lineage: bytes) -> tuple[int, bytes] | None:
        """Return version and digest. Raises SettingsError: `malformed-newest`; VerificationError: `lineage-foreign`."""
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise UnavailableError(
                f"cannot read {self._path.name}: {exc.strerror}", code="input-unreadable", stage="lineage"
            ) from None
        known = _parse(raw)
        if known.lineage != lineage:
            raise VerificationError("the file is of another lineage", code="lineage-foreign", stage="lineage")
        return known.version, known.statement

    def accept(self, statement: CheckpointStatement) -> None:
        """Record a verified checkpoint as the highest; durable when this returns.

        Raises:
            VerificationError: as `check_newest`. UnavailableError: `output-failed`.
        """
        with self._lock:
            check_newest(statement, self.newest(statement.predicate.lineage))
            known = Known(
                lineage=statement.predicate.lineage,
                version=statement.predicate.version,
                statement=statement.digest(),
            )
            self._write(json.dumps(known.to_json()).encode())

    def _write(self, raw: bytes) -> None:
        staged = self._path.with_name(f".{self._path.name}.tmp")
        try:
            fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, raw)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.replace(staged, self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as exc:
            raise UnavailableError(
                f"cannot write {self._path.name}: {exc.strerror}", code="output-failed", stage="lineage"
            ) from None


def _parse(raw: bytes) -> Known:
    try:
        return validated(Known, parse_json(raw, limit=MAX_STATE, error=SettingsError), SettingsError)
    except SettingsError as exc:
        raise SettingsError(
            f"the file of the highest version is damaged: {exc}", code="malformed-newest", stage="lineage"
        ) from None
