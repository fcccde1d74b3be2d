"""Many threads on one log: batches, push-back, failure reaches every caller."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.tlog.support import POLICY, SIGNER

from sealwright.errors import LogFormatError, UnavailableError
from sealwright.tlog.monitor import verify_log
from sealwright.tlog.posix import PosixLog, directory_fetch
from sealwright.tlog.tiles import MAX_ENTRY
from sealwright.tlog.writer import LogWriter


class Spy:
    """A log that notes its batches, and waits at the gate before each."""

    def __init__(self, root: Path) -> None:
        self.log = PosixLog.open(root, SIGNER, create=True)
        self.batches: list[list[bytes]] = []
        self.gate = threading.Event()
        self.gate.set()

    def append(self, entries: list[bytes]) -> int:
        self.gate.wait(30)
        self.batches.append(entries)
        return self.log.append(entries)

    def __getattr__(self, name: str) -> object:
        return getattr(self.log, name)


def _writer(spy: Spy, **limits: float) -> LogWriter:
    return LogWriter(spy, **limits)  # type: ignore[arg-type]


def test_one_entry_is_durable_when_it_is_answered(tmp_path: Path) -> None:
    with LogWriter(PosixLog.open(tmp_path, SIGNER, create=True)) as writer:
        index = writer.add_and_wait(b"decision")
        proof = writer.prove(index)
        assert proof.verify(b"decision", POLICY).index == 0
        # What a reader of the directory sees at this moment already covers it.
        assert POLICY.verify((tmp_path / "checkpoint").read_bytes()).checkpoint == writer.checkpoint
        assert writer.signed_checkpoint == proof.unverified_checkpoint


def test_many_threads(tmp_path: Path) -> None:
    with LogWriter(PosixLog.open(tmp_path, SIGNER, create=True)) as writer:
        with ThreadPoolExecutor(16) as pool:
            indexes = list(pool.map(lambda i: writer.add_and_wait(b"%d" % i, timeout_s=60), range(600)))
        assert sorted(indexes) == list(range(600))
        for value, index in enumerate(indexes):
            assert writer.prove(index).verify(b"%d" % value, POLICY).index == index
    assert verify_log(directory_fetch(tmp_path), POLICY, previous=None).verified.checkpoint.size == 600


def test_batches_are_bounded_and_keep_their_order(tmp_path: Path) -> None:
    spy = Spy(tmp_path)
    spy.gate.clear()
    with _writer(spy) as writer:
        futures = [writer.append(b"%d" % i) for i in range(1000)]
        spy.gate.set()
        assert [future.result(60) for future in futures] == list(range(1000))
    assert max(map(len, spy.batches)) == 256
    assert [entry for batch in spy.batches for entry in batch] == [b"%d" % i for i in range(1000)]


def test_a_batch_ends_when_its_time_is_up(tmp_path: Path) -> None:
    """Entries that keep coming do not hold a batch back: the clock, not idleness, ends it."""
    now = [0.0]

    def monotonic() -> float:
        now[0] += 1.0
        return now[0]

    spy = Spy(tmp_path)
    with LogWriter(spy, idle_s=3600, monotonic=monotonic) as writer:  # type: ignore[arg-type]
        assert writer.add_and_wait(b"x", timeout_s=30) == 0


def test_push_back(tmp_path: Path) -> None:
    spy = Spy(tmp_path)
    spy.gate.clear()
    with _writer(spy, max_pending=10, max_batch=1) as writer:
        futures = [writer.append(b"x")]
        with pytest.raises(UnavailableError) as caught:
            futures += [writer.append(b"x") for _ in range(12)]
        assert caught.value.code == "log-busy"
        spy.gate.set()
        futures[0].result(30)


def test_cancelled_entries_are_not_written(tmp_path: Path) -> None:
    spy = Spy(tmp_path)
    spy.gate.clear()
    with _writer(spy, max_batch=1) as writer:
        writer.append(b"first")
        second, third = writer.append(b"second"), writer.append(b"third")
        assert second.cancel()
        spy.gate.set()
        assert third.result(30) == 1


def test_too_large(tmp_path: Path) -> None:
    with (
        LogWriter(PosixLog.open(tmp_path, SIGNER, create=True)) as writer,
        pytest.raises(LogFormatError) as caught,
    ):
        writer.append(b"x" * (MAX_ENTRY + 1))
    assert caught.value.code == "entry-too-large"


def test_a_failed_write_reaches_every_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(tmp_path)
    spy.gate.clear()
    writer = _writer(spy, max_batch=2)
    futures = [writer.append(b"%d" % i) for i in range(6)]

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        spy.gate.set()
        codes = [future.exception(30).code for future in futures]  # type: ignore[union-attr]
    assert codes == ["log-write-failed"] * 6
    with pytest.raises(UnavailableError) as caught:
        writer.append(b"x")
    assert caught.value.code == "log-closed"
    writer.close()
    with LogWriter(PosixLog.open(tmp_path, SIGNER)) as again:
        assert again.add_and_wait(b"x") == 0


def test_close_writes_what_is_queued(tmp_path: Path) -> None:
    spy = Spy(tmp_path)
    writer = _writer(spy)
    futures = [writer.append(b"%d" % i) for i in range(300)]
    writer.close()
    assert [future.result(0) for future in futures] == list(range(300))
    with pytest.raises(UnavailableError):
        writer.append(b"late")
    PosixLog.open(tmp_path, SIGNER).close()  # the lock is free
