"""The files of a release folder: listed, digested, copied, and nothing but plain files."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from sealwright.errors import ArtefactFormatError, UnavailableError
from sealwright.ops.release.manifest import Artefact, Kind
from sealwright.sealing.files import io_errors

_CHUNK = 1 << 20  # bytes
MAX_TEXT = 8 << 20  # bytes of a JSON document of a release


def walk(folder: Path) -> Iterator[str]:
    """Yield the path of every file below `folder`, in order, with `/` between its parts.

    Raises:
        ArtefactFormatError: `release-not-plain`: a link, device or socket. UnavailableError: unreadable.
    """
    found = []
    with io_errors("input-unreadable", f"cannot read {folder}"):
        for directory, _, names in os.walk(folder, onerror=_raise, followlinks=False):
            found += [Path(directory, name) for name in names]
            for name in os.listdir(directory):
                check_plain(Path(directory, name))
    yield from sorted(path.relative_to(folder).as_posix() for path in found)


def check_plain(path: Path) -> None:
    """Check that `path` is a plain file or a directory. Raises ArtefactFormatError `release-not-plain`."""
    mode = path.lstat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ArtefactFormatError(
            f"{path.name} is neither file nor folder", code="release-not-plain", stage="artefacts"
        )


def measured(folder: Path, path: str, kind: Kind) -> Artefact:
    """Return the artefact at `path` below `folder`, with its size and digest. Raises UnavailableError."""
    digest, size = hashlib.sha256(), 0
    with io_errors("input-unreadable", f"cannot read {path}"), (folder / path).open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return Artefact(path=path, kind=kind, size=size, sha256=digest.digest())


def read(path: Path, *, limit: int = MAX_TEXT) -> bytes:
    """Return the bytes of a document. Raises ArtefactFormatError `too-large`, UnavailableError."""
    with io_errors("input-unreadable", f"cannot read {path.name}"), path.open("rb") as stream:
        raw = stream.read(limit + 1)
    if len(raw) > limit:
        raise ArtefactFormatError(f"{path.name} is over the limit of {limit} bytes", code="too-large")
    return raw


def write(path: Path, raw: bytes) -> None:
    """Write a public file in one step. Raises UnavailableError."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with io_errors("file-unwritable", f"cannot write {path.name}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(raw)
        os.replace(aside, path)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder of plain files; `target` must not exist. Raises ArtefactFormatError, UnavailableError."""
    for path in walk(source):
        to = target / path
        with io_errors("file-unwritable", f"cannot write {path}"):
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, to, follow_symlinks=False)


def _raise(error: OSError) -> None:
    raise UnavailableError(
        f"cannot read {error.filename}: {error.strerror}", code="input-unreadable", stage="artefacts"
    )
