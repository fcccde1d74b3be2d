"""Public documents in a log directory: what is appended, its proof, and no second version of one thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from sealwright.errors import UnavailableError
from sealwright.tlog.keys import Signer
from sealwright.tlog.posix import PosixLog
from sealwright.tlog.reader import TileReader

Check = Callable[[bytes], None]  # raises, if an entry of the log forbids the new one


def publish(directory: Path, signer: Signer, entry: bytes, *, check: Check | None = None) -> bytes:
    """Return the `.tlog-proof` of `entry` in the log at `directory`; what stands there already is not added again.

    Args:
        signer: the log's key.
        check: sees every earlier entry first.

    Raises:
        VerificationError, LogFormatError, UnavailableError: as `PosixLog.open` and `append`, or what `check` raises.
    """
    if not directory.is_dir():
        raise UnavailableError(
            f"{directory} is not there; make a log with `sealwright log new`",
            code="log-unreadable",
            stage="log",
        )
    with PosixLog.open(directory, signer) as log:
        index = None
        for at, found in _entries(log):
            if found == entry:
                index = at
            elif check is not None:
                check(found)
        if index is None:
            index = log.append([entry])
        return log.prove(index).encode()


def find(directory: Path, signer: Signer, entry: bytes) -> bytes | None:
    """Return the `.tlog-proof` of `entry` in the log at `directory`; None: it is not there. Raises as `publish`."""
    with PosixLog.open(directory, signer) as log:
        for index, found in _entries(log):
            if found == entry:
                return log.prove(index).encode()
    return None


def _entries(log: PosixLog) -> Iterator[tuple[int, bytes]]:
    size = log.checkpoint.size
    reader = TileReader(log.fetch, size)
    for index in range(size):
        yield index, reader.entry(index)
