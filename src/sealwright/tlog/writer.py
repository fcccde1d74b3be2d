"""Many threads, one log: entries are gathered into batches, and answered when their checkpoint is durable."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Protocol, Self

from sealwright.errors import LogFormatError, UnavailableError
from sealwright.tlog.checkpoint import Checkpoint
from sealwright.tlog.proof import LogProof
from sealwright.tlog.tiles import MAX_ENTRY

MAX_BATCH = 256  # entries
MAX_WAIT_S = 0.25  # from the first entry of a batch
IDLE_S = 0.001  # no further entry for so long ends a batch
MAX_PENDING = 4096  # entries; beyond, callers are refused


class BatchLog(Protocol):
    """A log that takes batches from one thread: see `sealwright.tlog.posix.PosixLog`."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The latest published checkpoint."""
        ...

    @property
    def signed_checkpoint(self) -> bytes:
        """The latest published checkpoint as a signed note."""
        ...

    def append(self, entries: Sequence[bytes]) -> int:
        """Append a batch durably, publish its checkpoint, and return the index of its first entry."""
        ...

    def prove(self, index: int) -> LogProof:
        """Return the proof of entry `index` under the latest checkpoint. Any thread."""
        ...

    def close(self) -> None:
        """Release the log."""
        ...


class LogWriter:
    """Appends from any thread. It owns `log`, and closes it.

    A batch ends at `max_batch` entries, `max_wait_s` after its first, or when none came for `idle_s`.
    After a failed write nothing more is accepted: open the log again.
    """

    def __init__(
        self,
        log: BatchLog,
        *,
        max_batch: int = MAX_BATCH,
        max_wait_s: float = MAX_WAIT_S,
        idle_s: float = IDLE_S,
        max_pending: int = MAX_PENDING,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the writing thread. Args: monotonic: seconds of a clock that never goes back."""
        self._log = log
        self._max_batch, self._max_wait_s, self._idle_s = max_batch, max_wait_s, idle_s
        self._max_pending = max_pending
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._pending: list[tuple[bytes, Future[int]]] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def append(self, entry: bytes) -> Future[int]:
        """Queue an entry; the future holds its index once a durable checkpoint covers it.

        Raises:
            LogFormatError: `entry-too-large`.
            UnavailableError: `log-busy`: too many entries wait; `log-closed`.
        """
        if len(entry) > MAX_ENTRY:
            raise LogFormatError(f"an entry has at most {MAX_ENTRY} bytes", code="entry-too-large")
        future: Future[int] = Future()
        with self._changed:
            if self._closed:
                raise _closed()
            if len(self._pending) >= self._max_pending:
                raise UnavailableError(
                    f"{self._max_pending} entries wait for the log", code="log-busy", stage="log"
                )
            self._pending.append((entry, future))
            self._changed.notify()
        return future

    def add_and_wait(self, entry: bytes, *, timeout_s: float | None = None) -> int:
        """Append an entry and return its index, once a durable checkpoint covers it.

        Raises:
            LogFormatError, UnavailableError: as `append`, or the write failed.
            TimeoutError: not durable within `timeout_s`; it may still become so.
        """
        return self.append(entry).result(timeout_s)

    @property
    def checkpoint(self) -> Checkpoint:
        """The latest published checkpoint."""
        return self._log.checkpoint

    @property
    def signed_checkpoint(self) -> bytes:
        """The latest published checkpoint as a signed note."""
        return self._log.signed_checkpoint

    def prove(self, index: int) -> LogProof:
        """Return the proof of entry `index` under the latest checkpoint. ValueError: no such entry."""
        return self._log.prove(index)

    def check_writable(self) -> None:
        """Say whether entries are still taken. Raises UnavailableError: `log-closed`."""
        with self._changed:
            if self._closed:
                raise _closed()

    def close(self) -> None:
        """Write what is queued, and release the log."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while batch := self._next_batch():
            # A future that its caller has cancelled is not written.
            live = [(entry, future) for entry, future in batch if future.set_running_or_notify_cancel()]
            try:
                first = self._log.append([entry for entry, _ in live])
            except Exception as exc:  # noqa: BLE001 - whatever it was, every caller has to hear of it
                self._fail([future for _, future in live], exc)
                return
            for offset, (_, future) in enumerate(live):
                future.set_result(first + offset)

    def _next_batch(self) -> list[tuple[bytes, Future[int]]]:
        """Wait for a batch; empty: closed, and nothing is left."""
        with self._changed:
            while not self._pending and not self._closed:
                self._changed.wait()
            end = self._monotonic() + self._max_wait_s
            seen = 0
            while seen < len(self._pending) < self._max_batch and not self._closed:
                seen = len(self._pending)
                left = min(self._idle_s, end - self._monotonic())
                if left > 0:
                    self._changed.wait(left)
            batch = self._pending[: self._max_batch]
            del self._pending[: self._max_batch]
            return batch

    def _fail(self, futures: list[Future[int]], exc: Exception) -> None:
        with self._changed:
            self._closed = True
            futures += [future for _, future in self._pending if future.set_running_or_notify_cancel()]
            self._pending.clear()
        for future in futures:
            future.set_exception(exc)


def _closed() -> UnavailableError:
    return UnavailableError("the log is closed; open it again", code="log-closed", stage="log")
