"""Where the files of an artefact stand: NAME.sealed beside its manifest, a folder NAME.sealed, or an object store.

Spec: docs/spec/sealed-artefact.md, Files and folders.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sealwright.errors import ArtefactFormatError
from sealwright.sealing.files import FileReader, Source
from sealwright.sealing.manifest import MAX_ENVELOPE, manifest_path

MANIFEST = "manifest.json"  # in a folder


class Location(Protocol):
    """An artefact that is read. Nothing that it gives was checked."""

    def envelope(self) -> bytes:
        """Return the manifest's envelope, for `Manifest.verify`.

        Raises:
            ArtefactFormatError: it is larger than any manifest. UnavailableError: it cannot be read.
        """
        ...

    def ciphertext(self, index: int) -> Source:
        """Open the ciphertext of file `index`. Raises UnavailableError."""
        ...


@dataclass(frozen=True, slots=True)
class LocalFile:
    """NAME.sealed, with NAME.sealed.json beside it."""

    path: Path

    def envelope(self) -> bytes:
        """As the protocol says."""
        with FileReader(manifest_path(self.path)) as reader:
            return bounded(reader)

    def ciphertext(self, index: int) -> Source:
        """Open the one there is: an index beyond it finds a file of another key or length."""
        return FileReader(self.path)


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A folder with `manifest.json` and a ciphertext for each file."""

    path: Path

    def envelope(self) -> bytes:
        """As the protocol says."""
        with FileReader(self.path / MANIFEST) as reader:
            return bounded(reader)

    def ciphertext(self, index: int) -> Source:
        """As the protocol says."""
        return FileReader(self.path / ciphertext_name(index))


def locate(artefact: Path) -> Location:
    """Return the artefact at a path, a file or a folder."""
    return LocalFolder(artefact) if artefact.is_dir() else LocalFile(artefact)


def ciphertext_name(index: int) -> str:
    """Return the name of file `index` in a folder: it tells nothing of what is in it."""
    return f"{index:04d}.sealed"


def bounded(source: Source) -> bytes:
    """Return a whole envelope. Raises ArtefactFormatError `too-large`."""
    if source.size > MAX_ENVELOPE:
        raise ArtefactFormatError("the manifest is too large", code="too-large")
    raw = bytearray(source.size)
    source.read_into(0, memoryview(raw))
    return bytes(raw)
