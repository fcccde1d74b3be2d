"""The digest of training code: of exactly these files, under these names. Spec: docs/spec/training-data.md, Code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from sealwright.crypto.canonical import canonical_digest


def code_digest(files: Mapping[str, bytes]) -> bytes:
    """Return SHA-256 (32 bytes) over the names and contents of `files`."""
    return canonical_digest({name: hashlib.sha256(raw).hexdigest() for name, raw in files.items()})


def folder_code_digest(folder: Path) -> bytes:
    """Return `code_digest` of the Python files below `folder`, by their paths below it."""
    found = sorted(path for path in folder.rglob("*.py") if path.is_file())
    return code_digest({path.relative_to(folder).as_posix(): path.read_bytes() for path in found})
