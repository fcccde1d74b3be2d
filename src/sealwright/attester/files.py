"""The few file operations that kernel interfaces need, so that tests can stand in for the kernel."""

from __future__ import annotations

import errno
import os
from typing import Protocol

MAX_READ = 512 * 1024  # bytes; the largest is the log area of a CCEL


class Files(Protocol):
    """Kernel pseudo-files. Each call opens, acts once and closes; failures are OSError."""

    def mkdir(self, path: str) -> None:
        """Make a directory."""

    def rmdir(self, path: str) -> None:
        """Remove a directory; in configfs its attributes go with it."""

    def read(self, path: str) -> bytes:
        """Return all that can be read, at most `MAX_READ` bytes (else EFBIG)."""

    def write(self, path: str, data: bytes) -> None:
        """Write `data` in one call: kernel attributes take no partial writes."""


class OsFiles:
    """The real ones."""

    def mkdir(self, path: str) -> None:
        """Make a directory."""
        os.mkdir(path)

    def rmdir(self, path: str) -> None:
        """Remove a directory."""
        os.rmdir(path)

    def read(self, path: str) -> bytes:
        """Return all that can be read."""
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = bytearray()
            # os.read, not a file object: that would turn EAGAIN into "nothing there".
            while part := os.read(handle, MAX_READ + 1 - len(found)):
                found += part
                if len(found) > MAX_READ:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        finally:
            os.close(handle)
        return bytes(found)

    def write(self, path: str, data: bytes) -> None:
        """Write in one call, never creating or truncating a file."""
        handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if os.write(handle, data) != len(data):
                raise OSError(errno.EIO, "a partial write", path)
        finally:
            os.close(handle)
