"""The files of a folder that is sealed: plain files only, by the names that they are opened under again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sealwright.errors import UnavailableError
from sealwright.sealing.files import FileReader, io_errors
from sealwright.sealing.manifest import MAX_FILES, check_path


@dataclass(frozen=True, slots=True, order=True)
class Found:
    """One file of a folder, as it was when the folder was read."""

    path: str  # in the artefact
    file: Path
    place: tuple[int, int]  # device and inode

    def open(self) -> FileReader:
        """Open this very file: a link or another file that has taken its place, or that of a folder above it, is refused.

        Raises:
            UnavailableError: `input-changed`, `input-unreadable`.
        """
        reader = FileReader(self.file)
        if reader.place != self.place:
            reader.close()
            raise UnavailableError(
                f"another file has taken the place of {self.path}: seal anew with --restart",
                code="input-changed",
            )
        return reader


def files_of(folder: Path) -> list[Found]:
    """Return all files below `folder`, sorted. Empty folders are left out.

    Raises:
        UnavailableError: `not-a-plain-file`: a link or a special file; `no-files`, `too-many-inputs`.
        ArtefactFormatError: `bad-artefact-path`: a name that the format does not take.
    """
    found = sorted(_walk(folder, ""))
    if not found:
        raise UnavailableError(f"there is no file in {folder.name}", code="no-files", stage="input")
    return found


def _walk(folder: Path, prefix: str, seen: list[int] | None = None) -> Iterator[Found]:
    seen = [0] if seen is None else seen
    with (
        io_errors("input-unreadable", f"cannot read the folder {folder.name}"),
        os.scandir(folder) as entries,
    ):
        listed = list(entries)
    for entry in listed:
        name, path = prefix + entry.name, folder / entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(path, f"{name}/", seen)
        elif entry.is_file(follow_symlinks=False):
            check_path(name)
            seen[0] += 1
            if seen[0] > MAX_FILES:
                raise UnavailableError(
                    f"more than {MAX_FILES} files: seal parts of the folder apart",
                    code="too-many-inputs",
                    stage="input",
                )
            status = entry.stat(follow_symlinks=False)
            yield Found(name, path, (status.st_dev, status.st_ino))
        else:
            raise UnavailableError(
                f"{name} is a link or a special file: put a plain file there, or leave it out",
                code="not-a-plain-file",
                stage="input",
            )
