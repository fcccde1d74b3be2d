"""Small files, whole or not at all, readable by the broker's user only."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from sealwright.errors import FormatError, SettingsError, UnavailableError

_OPEN_TO_OTHERS = 0o077
LEAST_ROOM = 16 << 20  # bytes free; a decision with its evidence takes up to four MiB


def write_file(path: Path, data: bytes) -> None:
    """Write `path` durably and atomically, mode 0600.

    Raises:
        UnavailableError: `file-unwritable`.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_directory(path.parent)
    except OSError as exc:
        raise UnavailableError(
            f"{path} cannot be written: {exc.strerror}", code="file-unwritable", stage="files"
        ) from exc


def read_file(path: Path, limit: int) -> bytes | None:
    """Return a file of at most `limit` bytes, or None if there is none.

    Raises:
        FormatError: `too-large`. UnavailableError: `file-unreadable`.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise UnavailableError(
            f"{path} cannot be read: {exc.strerror}", code="file-unreadable", stage="files"
        ) from exc
    if len(raw) > limit:
        raise FormatError(f"{path} is over the limit of {limit} bytes", code="too-large")
    return raw


def read_secret(path: Path, limit: int = 4096) -> bytes:
    """Return a file that must be there, and closed to other users.

    Raises:
        SettingsError: `broker-file-missing`, `broker-files-exposed`.
    """
    raw = read_file(path, limit)
    if raw is None:
        raise SettingsError(f"{path} is not there; make it with `broker init`", code="broker-file-missing")
    check_private(path)
    return raw


def check_private(path: Path) -> None:
    """Refuse a file or directory that others may read or write.

    Raises:
        SettingsError: `broker-files-exposed`.
    """
    if path.stat().st_mode & _OPEN_TO_OTHERS:
        raise SettingsError(
            f"{path} can be reached by other users; chmod go= {path}", code="broker-files-exposed"
        )


def check_room(directory: Path) -> None:
    """Refuse a directory that no further file could be written to.

    Raises:
        UnavailableError: `file-unwritable`.
    """
    try:
        disk = os.statvfs(directory)
    except OSError as exc:
        raise _no_room(directory, exc.strerror or "unknown") from exc
    if disk.f_bavail * disk.f_frsize < LEAST_ROOM:
        raise _no_room(directory, f"less than {LEAST_ROOM >> 20} MiB are free")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise _no_room(directory, "it is read-only")


def _no_room(directory: Path, why: str) -> UnavailableError:
    return UnavailableError(f"{directory} cannot be written: {why}", code="file-unwritable", stage="files")


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
