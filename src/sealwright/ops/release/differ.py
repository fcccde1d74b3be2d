"""Where two builds of one file differ: the first byte, and the first member of an archive."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path

_CHUNK = 1 << 20  # bytes
_MAX_MEMBERS = 100_000
_MAX_BYTES = 4 << 30  # unpacked: whoever made the archive may want to keep us busy


def first_difference(theirs: Path, ours: Path) -> str:
    """Return in words where two files differ first; empty: they are the same bytes."""
    offset = _offset(theirs, ours)
    if offset is None:
        return ""
    sizes = f"{theirs.stat().st_size} and {ours.stat().st_size} bytes"
    return "; ".join([f"first at byte {offset} ({sizes})", *_member(theirs, ours)])


def _offset(theirs: Path, ours: Path) -> int | None:
    at = 0
    with theirs.open("rb") as one, ours.open("rb") as other:
        while True:
            left, right = one.read(_CHUNK), other.read(_CHUNK)
            if left != right:
                common = (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
                return at + next(common, min(len(left), len(right)))
            if not left:
                return None
            at += len(left)


def _member(theirs: Path, ours: Path) -> Iterator[str]:
    """Yield a sentence on the first member that differs, where both files are archives of one kind."""
    try:
        for members in (_zip, _tar):
            one, other = members(theirs), members(ours)
            if one is not None and other is not None:
                yield _first(one, other)
                return
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, NotImplementedError, ValueError):
        return  # whoever made the release can have put any bytes there: the offset is enough


def _first(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    for left, right in zip_longest(theirs.items(), ours.items()):
        if left == right:
            continue
        names = [pair[0] for pair in (left, right) if pair is not None]
        if left is None or right is None or left[0] != right[0]:
            return f"the order or number of members, from {' / '.join(names)} on"
        return f"first in member {names[0]}"
    return "every member has the same content: the archives were written differently"


def _zip(path: Path) -> dict[str, str] | None:
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > _MAX_BYTES:
            return None
        found = {}
        for member in archive.infolist()[:_MAX_MEMBERS]:
            with archive.open(member) as stream:
                said = f"{member.date_time} {member.external_attr}"
                found[member.filename] = f"{hashlib.file_digest(stream, 'sha256').hexdigest()} {said}"  # type: ignore[arg-type]
        return found


def _tar(path: Path) -> dict[str, str] | None:
    found: dict[str, str] = {}
    try:
        opened = tarfile.open(path, "r:")  # noqa: SIM115 - not compressed: nothing in it can grow
    except tarfile.ReadError:
        return None
    with opened as archive:
        for member in archive:
            stream = archive.extractfile(member)
            digest = "" if stream is None else hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
            said = f"{member.mode} {member.mtime} {member.uid} {member.gid} {member.linkname}"
            found[member.name] = f"{digest} {said}"
            if len(found) == _MAX_MEMBERS:
                break
    return found
