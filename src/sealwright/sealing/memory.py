"""Opening into memory that nobody can change afterwards: a sealed memfd (Linux)."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

from sealwright.crypto.streaming import SEGMENT_BYTES
from sealwright.errors import UnavailableError
from sealwright.sealing.files import io_errors, write_all
from sealwright.sealing.manifest import Manifest
from sealwright.sealing.open import Progress, open_into

_NOEXEC_SEAL = 0x0008  # MFD_NOEXEC_SEAL, linux/memfd.h, from kernel 6.3
F_ADD_SEALS, F_GET_SEALS = 1033, 1034  # linux/fcntl.h
SEALS = 0x1 | 0x2 | 0x4 | 0x8  # F_SEAL_SEAL, SHRINK, GROW, WRITE


class MemfdSink:
    """An unnamed memory file. `fd` may be used after `commit` only; its owner closes it."""

    def __init__(self) -> None:
        """Make the file.

        Raises:
            UnavailableError: this system has no memfd.
        """
        if not hasattr(os, "memfd_create"):
            raise UnavailableError("opening into memory needs Linux", code="no-memfd")
        with io_errors("no-memfd", "cannot make a memfd"):
            self.fd = _memfd_create()
        self._lock = threading.Lock()
        self._open = True

    def start(self, length: int) -> None:
        """Set its length in bytes; memory is taken as it is written."""
        with io_errors("out-of-memory", "cannot make room for the plaintext"):
            os.ftruncate(self.fd, length)

    def write(self, offset: int, data: memoryview) -> None:
        """Copy `data` in. Never through a mapping: a writable one would bar the seals."""
        with io_errors("out-of-memory", "cannot keep the plaintext in memory"):
            write_all(self.fd, offset, data, self._lock)

    def commit(self) -> None:
        """Seal it: nobody can write, cut or extend it any more, or add or lift seals."""
        import fcntl  # Linux only

        with io_errors("no-memfd", "cannot seal the memfd"):
            fcntl.fcntl(self.fd, F_ADD_SEALS, SEALS)
            seals = fcntl.fcntl(self.fd, F_GET_SEALS)
        if seals & SEALS != SEALS:
            raise UnavailableError("the kernel did not set the memfd's seals", code="no-memfd")

    def abort(self) -> None:
        """Close it: the kernel frees the memory, and clears it before anyone else gets it."""
        if self._open:
            self._open = False
            os.close(self.fd)


def open_memfd(
    artefact: Path | int,
    manifest: Manifest,
    dek: bytes,
    *,
    threads: int = 2,
    progress: Progress | None = None,
    segment_bytes: int = SEGMENT_BYTES,
) -> int:
    """Return a sealed memfd with the plaintext, made only after every step has passed.

    The descriptor is close-on-exec and not executable where the kernel knows how; the caller closes it.
    Arguments and errors are those of `open_into`.
    """
    sink = MemfdSink()
    open_into(artefact, manifest, dek, sink, threads=threads, progress=progress, segment_bytes=segment_bytes)
    return sink.fd


def _memfd_create() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("", flags | _NOEXEC_SEAL)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # an older kernel says EINVAL to a flag it does not know
            raise
    return os.memfd_create("", flags)
