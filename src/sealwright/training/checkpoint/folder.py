"""Checkpoints on disk: a folder for each version, and what statements name by digest beside them. Nothing in it is believed.

Layout: docs/spec/checkpoint.md, Folder.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sealwright.errors import (
    CollateralError,
    FormatError,
    MessageFormatError,
    SealwrightError,
    UnavailableError,
)
from sealwright.protocol.checkpoint import MAX_STATEMENT, MODEL_FILE
from sealwright.sealing.files import FileReader, io_errors

STATEMENT, PROOF, MODEL_SIGNATURE = "statement.json", "statement.tlog-proof", "model.sig"
SEALED = f"{MODEL_FILE}.sealed"
MANIFEST = f"{SEALED}.json"
MAX_VERSIONS = 1 << 16
MAX_SIDECAR = 4 << 20  # bytes
_VERSION = re.compile(r"v([0-9]{6,10})", re.ASCII)


class CheckpointFolder:
    """One lineage's checkpoints."""

    def __init__(self, root: Path) -> None:
        """Args: root: the folder; it need not be there yet."""
        self.root = root

    def versions(self) -> list[int]:
        """Return the versions that are there, in order.

        Raises:
            UnavailableError: the folder cannot be read. MessageFormatError: `too-large`.
        """
        with io_errors("input-unreadable", "cannot read the folder of checkpoints"):
            names = [path.name for path in self.root.iterdir()] if self.root.exists() else []
        found = [_VERSION.fullmatch(name) for name in names]
        versions = sorted(int(one[1]) for one in found if one and one[0] == name_of(int(one[1])))
        if len(versions) > MAX_VERSIONS:
            raise MessageFormatError(f"more than {MAX_VERSIONS} versions", code="too-large", stage="folder")
        return versions

    def read(self, version: int, name: str) -> bytes:
        """Return a file of a version. Raises CollateralError: `checkpoint-file-missing`."""
        return _read(self.root / name_of(version) / name, f"{name} of version {version}")

    def artefact(self, version: int) -> Path:
        """Return where the sealed weights of a version are."""
        return self.root / name_of(version) / SEALED

    def sidecar(self, digest: bytes, what: str) -> bytes:
        """Return what is kept under a digest, unverified. Raises CollateralError: `checkpoint-file-missing`."""
        return _read(self.root / "sidecars" / digest.hex(), f"{what} {digest.hex()[:16]}…")

    def put_sidecar(self, digest: bytes, raw: bytes) -> None:
        """Keep a document under its digest. Raises UnavailableError: `output-failed`."""
        put_file(self.root / "sidecars" / digest.hex(), raw)

    def put_proof(self, version: int, proof: bytes) -> None:
        """Keep the proof that a version's statement is logged."""
        put_file(self.root / name_of(version) / PROOF, proof)

    @contextmanager
    def adding(self, version: int) -> Iterator[Path]:
        """Give a folder to write a version into, which appears under its name once it is whole.

        Raises:
            UnavailableError: `version-exists`, `output-failed`.
        """
        target = self.root / name_of(version)
        if target.exists():
            raise UnavailableError(
                f"version {version} is there already", code="version-exists", stage="output"
            )
        staged = self.root / f".{name_of(version)}.{secrets.token_hex(8)}"
        with io_errors("output-failed", "cannot write the checkpoint"):
            staged.mkdir(parents=True, mode=0o755)
        try:
            yield staged
            with io_errors("output-failed", "cannot name the checkpoint"):
                staged.rename(target)
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def name_of(version: int) -> str:
    """Return the name of a version's folder."""
    return f"v{version:06d}"


def put_file(path: Path, raw: bytes) -> None:
    """Write a file whole, or not at all. Raises UnavailableError: `output-failed`."""
    with io_errors("output-failed", f"cannot write {path.name}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            staged.write_bytes(raw)
            staged.rename(path)
        finally:
            staged.unlink(missing_ok=True)


def _read(path: Path, what: str) -> bytes:
    try:
        with FileReader(path) as reader:
            size = reader.size
            if size > max(MAX_SIDECAR, 2 * MAX_STATEMENT):
                raise FormatError(f"{what} is too large", code="too-large", stage="folder")
            raw = bytearray(size)
            reader.read_into(0, memoryview(raw))
    except FormatError:
        raise
    except SealwrightError:
        raise CollateralError(
            f"{what} is not there or cannot be read", code="checkpoint-file-missing", stage="folder"
        ) from None
    return bytes(raw)
