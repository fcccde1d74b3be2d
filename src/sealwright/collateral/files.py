"""Files of the cache: replaced whole, private, locked between processes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from sealwright.errors import UnavailableError


def read_bytes(path: Path, limit: int) -> bytes | None:
    """Return the bytes of a file of ours; None: it is not there, not a file, or too large."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(path, flags | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            raw = file.read(limit + 1)
    except (FileNotFoundError, IsADirectoryError):
        return None
    return raw if len(raw) <= limit else None


def replace_file(path: Path, data: bytes) -> None:
    """Write `path` whole or not at all, for its owner alone."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    try:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(aside, flags, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def mtime(path: Path) -> float:
    """Return when a file was last touched, seconds; 0 where it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def check_private(folder: Path) -> None:
    """Refuse a folder that others can write to: they could make us forget, or fill the disk."""
    if sys.platform != "win32":
        state = folder.stat()
        if state.st_mode & 0o022 or state.st_uid != os.geteuid():
            raise PermissionError(1, "it belongs to another user, or others can write to it")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the exclusive lock of a file, against other processes and threads alike."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(handle)
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)


@contextlib.contextmanager
def reported(path: Path) -> Iterator[None]:
    """Raise what the system refuses as UnavailableError `cache-unusable`."""
    try:
        yield
    except OSError as exc:
        raise UnavailableError(
            f"the collateral cache cannot be used: {path}: {exc.strerror or type(exc).__name__}; name another "
            "folder (--cache), or mend its owner and mode",
            code="cache-unusable",
            stage="cache",
        ) from exc
