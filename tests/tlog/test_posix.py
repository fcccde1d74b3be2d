"""The log directory: byte for byte a published one, crash-safe, exclusive, never shorter than it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.tlog.support import POLICY, SIGNER, entry, filled

from sealwright.errors import LogFormatError, UnavailableError, VerificationError
from sealwright.tlog.checkpoint import Checkpoint
from sealwright.tlog.keys import Signer
from sealwright.tlog.merkle import EMPTY_ROOT, leaf_hash, tree_root
from sealwright.tlog.monitor import verify_log
from sealwright.tlog.posix import PosixLog, directory_fetch
from sealwright.tlog.tiles import MAX_ENTRY, parse_bundle


def _tessera_signer(tessera: Path) -> Signer:
    for line in (tessera / "KEYS.txt").read_text().splitlines():
        if line.startswith("private:"):
            return Signer.parse(line.split()[1])
    raise AssertionError("no private key in KEYS.txt")


def test_tessera_log_byte_for_byte(tessera: Path, tmp_path: Path) -> None:
    published = tessera / "testdata" / "log"
    entries = parse_bundle((published / "tile/entries/000.p/15").read_bytes())
    with PosixLog.open(tmp_path, _tessera_signer(tessera), create=True) as log:
        for size, item in enumerate([None, *entries]):
            if item is not None:
                log.append([item])
            assert log.signed_checkpoint == (published / f"checkpoint.{size}").read_bytes()
    expected = [path for path in published.rglob("*") if path.is_file()]
    expected = [path for path in expected if path.name == "checkpoint" or "tile" in path.parts]
    assert len(expected) == 31  # checkpoint, 15 tiles, 15 bundles; the state is each writer's own
    for path in expected:
        assert (tmp_path / path.relative_to(published)).read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize("batch", [1, 7, 255, 256, 257, 1024])
def test_batches_of_any_size_give_the_same_log(tmp_path: Path, batch: int) -> None:
    size = 300 if batch < 10 else 1300
    log = filled(tmp_path, size, batch=batch)
    leaves = [leaf_hash(entry(i)) for i in range(size)]
    assert log.checkpoint == Checkpoint(origin=SIGNER.name, size=size, root=tree_root(leaves))
    log.close()
    report = verify_log(directory_fetch(tmp_path), POLICY, previous=None)
    assert report.verified.checkpoint.size == size
    assert not list((tmp_path / "tile/0/000.p").glob("*")), "partials of a full tile stay"


def test_every_proof_holds_and_only_for_its_entry(tmp_path: Path) -> None:
    with filled(tmp_path, 600) as log:
        for index in (0, 1, 255, 256, 511, 512, 598, 599):
            proof = log.prove(index)
            logged = proof.verify(entry(index), POLICY)
            assert (logged.index, logged.size, logged.origin) == (index, 600, SIGNER.name)
            with pytest.raises(VerificationError) as caught:
                proof.verify(entry(index) + b"!", POLICY)
            assert caught.value.code == "bad-inclusion-proof"
        with pytest.raises(ValueError, match="no leaf 600"):
            log.prove(600)


def test_reopened_logs_go_on(tmp_path: Path) -> None:
    filled(tmp_path, 300).close()
    with PosixLog.open(tmp_path, SIGNER) as log:
        assert log.append([entry(300), entry(300), b""]) == 300  # identical and empty entries are allowed
        assert log.append([]) == 303
        old = log.checkpoint
        log.append([entry(i) for i in range(303, 900)])
    with PosixLog.open(tmp_path, SIGNER, not_before=old) as log:
        assert log.checkpoint.size == 900
    assert verify_log(directory_fetch(tmp_path), POLICY, previous=old).previous_size == 303


def test_an_entry_has_a_limit(tmp_path: Path) -> None:
    with PosixLog.open(tmp_path, SIGNER, create=True) as log:
        with pytest.raises(LogFormatError) as caught:
            log.append([b"x" * (MAX_ENTRY + 1)])
        assert caught.value.code == "entry-too-large"
        assert log.append([b"x" * MAX_ENTRY]) == 0


def test_one_writer(tmp_path: Path) -> None:
    with PosixLog.open(tmp_path, SIGNER, create=True), pytest.raises(UnavailableError) as caught:
        PosixLog.open(tmp_path, SIGNER)
    assert caught.value.code == "log-locked"
    PosixLog.open(tmp_path, SIGNER).close()


def test_closed(tmp_path: Path) -> None:
    log = filled(tmp_path, 1)
    log.close()
    with pytest.raises(UnavailableError) as caught:
        log.append([b"x"])
    assert caught.value.code == "log-closed"


def _remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def _restore(old: Path, *names: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        for name in names:
            shutil.copy(old / name, root / name)

    return act


def _flip(name: str, at: int = -1) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        raw = bytearray((root / name).read_bytes())
        raw[at] ^= 1
        (root / name).write_bytes(raw)

    return act


@pytest.mark.parametrize(
    ("code", "spoil"),
    [
        ("log-missing", shutil.rmtree),
        ("log-state-missing", _remove(".state/state")),
        ("log-checkpoint-missing", _remove("checkpoint")),
        ("log-tile-missing", _remove("tile/0/001.p/44")),
        ("log-entries-missing", _remove("tile/entries/001.p/44")),
        ("log-root-mismatch", _flip("tile/1/000.p/1")),
        ("log-entry-edited", _flip("tile/entries/001.p/44")),
        ("malformed-bundle", _flip("tile/entries/001.p/44", 1)),
        ("bad-signature", _flip(".state/state", 0)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_log_is_not_opened(tmp_path: Path, code: str, spoil: Callable[[Path], None]) -> None:
    filled(tmp_path, 300).close()
    spoil(tmp_path)
    with pytest.raises((VerificationError, LogFormatError)) as caught:
        PosixLog.open(tmp_path, SIGNER)
    assert caught.value.code == code
    if code != "log-missing":  # nor does `create` start another log over it
        with pytest.raises((VerificationError, LogFormatError)):
            PosixLog.open(tmp_path, SIGNER, create=True)


def test_a_state_behind_its_checkpoint_is_refused(tmp_path: Path) -> None:
    root, old = tmp_path / "log", tmp_path / "old"
    filled(root, 10).close()
    shutil.copytree(root, old)
    with PosixLog.open(root, SIGNER) as log:
        log.append([b"more"])
    _restore(old, ".state/state")(root)
    with pytest.raises(VerificationError) as caught:
        PosixLog.open(root, SIGNER)
    assert caught.value.code == "log-rolled-back"


def test_nobody_else_can_make_the_log_sign_entries(tmp_path: Path) -> None:
    """Someone with the disk, but not the key, prepares what a crash before the checkpoint would leave."""
    filled(tmp_path / "log", 10).close()
    mallory = Signer(name=SIGNER.name, key=Ed25519PrivateKey.from_private_bytes(bytes(32)))
    with PosixLog.open(tmp_path / "forged", mallory, create=True) as log:
        log.append([*(entry(i) for i in range(10)), b"forged"])
    shutil.copytree(tmp_path / "forged/tile", tmp_path / "log/tile", dirs_exist_ok=True)
    _restore(tmp_path / "forged", ".state/state")(tmp_path / "log")
    with pytest.raises(VerificationError) as caught:
        PosixLog.open(tmp_path / "log", SIGNER)
    assert caught.value.code == "untrusted-signer"


def test_a_checkpoint_is_no_state(tmp_path: Path) -> None:
    filled(tmp_path, 10).close()
    shutil.copy(tmp_path / "checkpoint", tmp_path / ".state/state")
    with pytest.raises(LogFormatError) as caught:
        PosixLog.open(tmp_path, SIGNER)
    assert caught.value.code == "malformed-log-state"
    with PosixLog.open(tmp_path / "other", SIGNER, create=True):
        state = (tmp_path / "other/.state/state").read_bytes()
    with pytest.raises(LogFormatError):
        POLICY.verify(state)


def test_another_key_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, 1).close()
    other = Signer(name=SIGNER.name, key=Ed25519PrivateKey.from_private_bytes(bytes(32)))
    with pytest.raises(VerificationError) as caught:
        PosixLog.open(tmp_path, other)
    assert caught.value.code == "untrusted-signer"


def test_rolled_back_and_forked_logs_are_refused(tmp_path: Path) -> None:
    with filled(tmp_path / "log", 20) as log:
        held = log.checkpoint
    filled(tmp_path / "shorter", 19).close()
    with PosixLog.open(tmp_path / "other", SIGNER, create=True) as log:
        log.append([b"fork"] * 30)
    for name, code in (("shorter", "log-rolled-back"), ("other", "log-forked")):
        with pytest.raises(VerificationError) as caught:
            PosixLog.open(tmp_path / name, SIGNER, not_before=held)
        assert caught.value.code == code
        PosixLog.open(tmp_path / name, SIGNER).close()  # without a holder it goes unseen, as documented
    with pytest.raises(VerificationError) as caught:
        PosixLog.open(tmp_path / "new", SIGNER, not_before=held, create=True)
    assert caught.value.code == "log-rolled-back"
    foreign = Checkpoint(origin="example.com/another", size=0, root=EMPTY_ROOT)
    with pytest.raises(VerificationError) as caught:
        PosixLog.open(tmp_path / "log", SIGNER, not_before=foreign)
    assert caught.value.code == "log-origin-mismatch"


class _Crash(OSError):
    pass


def _crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Let the `step`-th fsync or rename from now fail, before or after it was done; return what was done."""
    done: list[str] = []

    def counted(name: str) -> None:
        real = getattr(os, name)

        def call(*args: object, **kwargs: object) -> object:
            if len(done) == step:
                raise _Crash(5, "injected")
            done.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "replace", "open"):
        counted(name)
    return done


def _code_of(act: Callable[[], object]) -> str | None:
    try:
        act()
    except UnavailableError as exc:
        return exc.code
    return None


@pytest.mark.parametrize(("start", "stride"), [(0, 1), (250, 1), (256, 1), (65530, 8)])
def test_a_crash_at_any_point_is_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, stride: int
) -> None:
    seed = tmp_path / "seed"
    filled(seed, start, batch=4096).close()
    batch = [b"new %d" % i for i in range(12)]
    step = 0
    outcomes = set()
    while True:
        root = tmp_path / f"log{step}"
        shutil.copytree(seed, root)
        log = PosixLog.open(root, SIGNER)
        before = log.checkpoint
        with monkeypatch.context() as patch:
            _crash_at(patch, step)
            crashed = _code_of(lambda log=log: log.append(batch)) == "log-write-failed"
        log.close()
        # A reader who comes before the writer is back sees a whole log, old or new.
        seen = verify_log(directory_fetch(root), POLICY, previous=before).verified.checkpoint
        with PosixLog.open(root, SIGNER, not_before=seen) as log:
            outcomes.add(log.checkpoint.size - start)
            log.append([b"after"])
        verify_log(directory_fetch(root), POLICY, previous=seen)
        shutil.rmtree(root)
        if not crashed:
            break
        step += stride
    assert step > 15  # files and directories, synced and renamed
    assert outcomes == {0, len(batch)}  # all of a batch or none of it


def test_a_crash_while_a_log_is_made_is_recovered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(40):
        root = tmp_path / f"log{step}"
        with monkeypatch.context() as patch:
            _crash_at(patch, step)
            try:
                PosixLog.open(root, SIGNER, create=True).close()
                crashed = False
            except OSError:
                crashed = True
        with PosixLog.open(root, SIGNER, create=True) as log:
            assert log.checkpoint.size == 0
        if not crashed:
            break
    assert step > 8
    assert not crashed


def test_only_public_files_are_fetched(tmp_path: Path) -> None:
    filled(tmp_path, 3).close()
    fetch = directory_fetch(tmp_path)
    for path in (".state/state", "../x", "tile/0/../../checkpoint", "tile/00/000", "/etc/passwd", ""):
        with pytest.raises(LogFormatError):
            fetch(path)
    with pytest.raises(FileNotFoundError):
        fetch("tile/0/001")
