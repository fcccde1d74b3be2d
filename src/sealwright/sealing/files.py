"""Files read and written at offsets, from several threads, and replaced only when whole."""

from __future__ import annotations

import os
import secrets
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from sealwright.errors import UnavailableError, VerificationError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Not every system has these: no waiting for a FIFO's writer, no text translation.
_READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
SECTOR = 512  # bytes: what the size of any disk is a multiple of
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class Source(Protocol):
    """Ciphertext or plaintext that is read at offsets, from several threads: a file, a disk, an object of a store."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def holds(self, length: int) -> bool:
        """Return whether it holds `length` bytes and no more."""
        ...

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` from `offset`. Raises VerificationError: too short; UnavailableError: it cannot be read."""
        ...

    def changed(self) -> bool:
        """Return whether it was written to since it was opened, as far as can be told."""
        ...

    def stamp(self) -> str:
        """Return what is another when something else is there, or it was written to; empty: that cannot be told."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class FileReader:
    """A regular file or a disk, opened once: what happens to its name later does not matter."""

    def __init__(self, source: Path | int) -> None:
        """Open a path, or a descriptor that stays its owner's: an enclave reaches files by no path.

        Raises:
            UnavailableError: it cannot be opened, or is neither a regular file nor, as a descriptor, a disk.
        """
        name = source.name if isinstance(source, Path) else "the descriptor"
        with io_errors("input-unreadable", f"cannot read {name}"):
            self.fd = os.open(source, _READ) if isinstance(source, Path) else os.dup(source)
        self._lock = threading.Lock()
        self._status = os.fstat(self.fd)
        self._disk = stat.S_ISBLK(self._status.st_mode) and not isinstance(source, Path)
        if not stat.S_ISREG(self._status.st_mode) and not self._disk:
            self.close()
            raise UnavailableError(f"{name} is not a regular file", code="input-unreadable")

    @property
    def size(self) -> int:
        """Length in bytes when it was opened; of a disk, in whole sectors."""
        return os.lseek(self.fd, 0, os.SEEK_END) if self._disk else self._status.st_size

    def holds(self, length: int) -> bool:
        """Return whether it holds `length` bytes and no more: a disk's last sector may go on after them."""
        return length <= self.size < length + SECTOR if self._disk else self.size == length

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` from `offset`.

        Raises:
            VerificationError: the file has become shorter.
            UnavailableError: it cannot be read.
        """
        done = 0
        while done < len(out):
            with io_errors("input-unreadable", "reading failed"):
                count = read_at(self.fd, offset + done, out[done:], self._lock)
            if not count:
                raise VerificationError(
                    "the file was cut while it was read", code="file-truncated", stage="segments"
                )
            done += count

    def changed(self) -> bool:
        """Return whether the file was written to since it was opened (a hint: its clock is the host's)."""
        now = os.fstat(self.fd)
        return (now.st_size, now.st_mtime_ns) != (self._status.st_size, self._status.st_mtime_ns)

    @property
    def place(self) -> tuple[int, int]:
        """Device and inode: which file it is, whatever its name leads to now."""
        return self._status.st_dev, self._status.st_ino

    def stamp(self) -> str:
        """Return which file it is, and when it was written to (a hint: its clock is the host's)."""
        status = self._status
        return f"{status.st_dev}.{status.st_ino}.{status.st_mtime_ns}"

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class BytesSource:
    """Bytes at hand. A `Source`."""

    raw: bytes = field(repr=False)

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.raw)

    def holds(self, length: int) -> bool:
        """Return whether there are `length` bytes."""
        return length == len(self.raw)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` from `offset`. Raises VerificationError: `file-truncated`."""
        part = self.raw[offset : offset + len(out)]
        if len(part) != len(out):
            raise VerificationError("there are fewer bytes", code="file-truncated", stage="segments")
        out[:] = part

    def changed(self) -> bool:
        """Return False."""
        return False

    def stamp(self) -> str:
        """Return nothing."""
        return ""

    def close(self) -> None:
        """Do nothing."""


class NewFile:
    """A file that appears under its name on `commit`, whole, or not at all. A `Sink`."""

    def __init__(self, path: Path, *, mode: int) -> None:
        """Args: mode: permission bits, lessened by the umask."""
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        self._lock = threading.Lock()
        with io_errors("output-failed", f"cannot write beside {path.name}"):
            self._fd = os.open(self._temporary, _CREATE, mode)
        self._open = True

    def start(self, length: int) -> None:
        """Take the file's length in bytes."""
        with io_errors("output-failed", "cannot make room"):
            os.ftruncate(self._fd, length)

    def write(self, offset: int, data: memoryview) -> None:
        """Write `data` at `offset`."""
        with io_errors("output-failed", "writing failed"):
            write_all(self._fd, offset, data, self._lock)

    def commit(self) -> None:
        """Give the file its name, in place of what had it before."""
        self._close()
        with io_errors("output-failed", f"cannot name {self._path.name}"):
            os.replace(self._temporary, self._path)

    def abort(self) -> None:
        """Remove the file."""
        self._close()
        self._temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._fd)


class GrowingFile:
    """A file that is written at offsets, and takes another name when it is whole. Its contents outlive a failure."""

    def __init__(self, path: Path, *, mode: int) -> None:
        """Open it, or make it. Args: mode: permission bits, lessened by the umask."""
        self._path = path
        self._lock = threading.Lock()
        with io_errors("output-failed", "cannot write the ciphertext"):
            self._fd = os.open(path, _CREATE & ~os.O_EXCL, mode)

    def start(self, length: int) -> None:
        """Make it `length` zero bytes."""
        with io_errors("output-failed", "cannot make room"):
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._fd, length)

    def write(self, offset: int, data: memoryview) -> None:
        """Write `data` at `offset`."""
        with io_errors("output-failed", "writing failed"):
            write_all(self._fd, offset, data, self._lock)

    def name(self, path: Path) -> None:
        """Give it the name `path`, in place of what had it before."""
        with io_errors("output-failed", f"cannot name {path.name}"):
            os.replace(self._path, path)

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)


def read_at(fd: int, offset: int, out: memoryview, lock: threading.Lock) -> int:
    """Read at most `len(out)` bytes at `offset`; return how many. `lock` serves systems without preadv."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [out], offset)
    with lock:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(out))
    out[: len(data)] = data
    return len(data)


def write_all(fd: int, offset: int, data: memoryview, lock: threading.Lock) -> None:
    """Write all of `data` at `offset`."""
    # The kernel lets one writer into a file at a time; waiting here costs less than spinning there.
    with lock:
        while data:
            if hasattr(os, "pwrite"):
                count = os.pwrite(fd, data, offset)
            else:
                os.lseek(fd, offset, os.SEEK_SET)
                count = os.write(fd, data)
            data, offset = data[count:], offset + count


def lock_file(path: Path) -> int | None:
    """Return a descriptor of `path`, made if need be, that one process alone can have; None: another one has it."""
    with io_errors("output-failed", f"cannot make {path.name}"):
        fd = os.open(path, _CREATE & ~os.O_EXCL, 0o600)
    if fcntl is None:  # pragma: no cover - Windows
        return fd
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def read_whole(path: Path, limit: int) -> bytes:
    """Return the bytes of a small file. Raises UnavailableError: it cannot be read, or has more than `limit`."""
    with FileReader(path) as reader:
        if reader.size > limit:
            raise UnavailableError(f"{path.name} is too large", code="input-unreadable")
        raw = bytearray(reader.size)
        reader.read_into(0, memoryview(raw))
    return bytes(raw)


@contextmanager
def io_errors(code: str, message: str) -> Iterator[None]:
    """Turn an OSError into an UnavailableError that names the system's reason, not the path."""
    try:
        yield
    except OSError as exc:
        raise UnavailableError(f"{message}: {exc.strerror or type(exc).__name__}", code=code) from exc
