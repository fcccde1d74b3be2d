"""Sealing that was interrupted: gone on with where nothing speaks against it, and never with one nonce for two plaintexts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sealing.support import DEK, SMALL
from tests.sealing.trees import SEALING, TREE, opened, write_tree

from sealwright.errors import UnavailableError
from sealwright.sealing import Manifest, draft, seal_folder
from sealwright.sealing.draft import Draft, Seen, discard_draft, draft_path
from sealwright.sealing.files import lock_file
from sealwright.sealing.model_signing import verify_model
from sealwright.sealing.seal import Sealing, seal_one

KEPT = replace(SEALING, resume=True, threads=1)


class Interrupted(Exception):
    """What ends a sealing in these tests."""


def seal(where: Path, sealing: Sealing = KEPT, *, stop_at: int | None = None) -> Manifest:
    """Seal the folder `model` of `where`; be interrupted once `stop_at` bytes are done."""

    def progress(done: int, _: int) -> None:
        if stop_at is not None and done >= stop_at:
            raise Interrupted

    return seal_folder(where / "model", where / "model.sealed", sealing, progress=progress)


def interrupt(where: Path, at: int, sealing: Sealing = KEPT) -> Path:
    """Seal as far as `at`; return the draft."""
    with pytest.raises(Interrupted):
        seal(where, sealing, stop_at=at)
    return draft_path(where / "model.sealed")


@pytest.fixture
def where(tmp_path: Path) -> Path:
    write_tree(tmp_path / "model", TREE)
    return tmp_path


def segments(folder: Path) -> dict[tuple[bytes, int], bytes]:
    """Return the segments that were written, by header and number."""
    found = {}
    for path in sorted([*folder.glob("*.part"), *folder.glob("*.sealed")]):
        raw = path.read_bytes()
        header, body = raw[:40], raw[40:]
        first = SMALL - 40
        parts = [body[:first], *(body[at : at + SMALL] for at in range(first, len(body), SMALL))]
        found |= {(header, number): part for number, part in enumerate(parts) if any(part)}
    return found


@settings(max_examples=60, deadline=None)
@given(stops=st.lists(st.integers(0, 1500), max_size=4), threads=st.integers(1, 3), sha256=st.booleans())
def test_whatever_interrupts_it_the_result_is_whole_and_no_nonce_is_used_twice(
    stops: list[int], threads: int, sha256: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    where = tmp_path_factory.mktemp("on")
    write_tree(where / "model", TREE)
    sealing = replace(KEPT, threads=threads, sha256=sha256)
    encrypted: dict[tuple[bytes, int], bytes] = {}
    for stop in stops:
        try:
            seal(where, sealing, stop_at=stop)
        except Interrupted:
            now = segments(draft_path(where / "model.sealed"))
            assert all(now.get(key, part) == part for key, part in encrypted.items())
            encrypted |= now
        else:
            encrypted = {}
            break
    seal(where, sealing)
    final = segments(where / "model.sealed")
    assert {key: final.get(key) for key in encrypted} == encrypted
    assert opened(where / "model.sealed", where / "opened") == TREE
    assert sorted(os.listdir(where)) == ["model", "model.sealed", "opened"]


def test_what_was_sealed_is_not_sealed_again(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(where, 1100)
    calls: list[int] = []
    noted = Seen.note

    def counted(self: Seen, index: int, digest: bytes) -> None:
        calls.append(index)
        noted(self, index, digest)

    monkeypatch.setattr(Seen, "note", counted)
    seal(where)
    total = sum(max(1, -(-len(raw) // (SMALL - 16))) for raw in TREE.values())
    assert 0 < len(calls) < total / 2


@pytest.mark.parametrize("threads", [1, 3])
def test_kill_9_loses_nothing(where: Path, threads: int) -> None:
    script = f"""
import os, signal
from dataclasses import replace
from pathlib import Path
from tests.sealing.trees import SEALING
from sealwright.sealing import seal_folder
def progress(done, total):
    if done >= 900:
        os.kill(os.getpid(), signal.SIGKILL)
where = Path({str(where)!r})
sealing = replace(SEALING, resume=True, threads={threads})
seal_folder(where / "model", where / "model.sealed", sealing, progress=progress)
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False, cwd=Path(__file__).parents[2])
    assert ended.returncode == -signal.SIGKILL
    before = segments(draft_path(where / "model.sealed"))
    assert before
    seal(where)
    after = segments(where / "model.sealed")
    assert {key: after.get(key) for key in before} == before
    assert opened(where / "model.sealed", where / "opened") == TREE


def test_a_source_that_changed_in_between_is_refused(where: Path) -> None:
    interrupt(where, 700)
    path = where / "model/model-00001-of-00002.safetensors"
    raw = bytearray(path.read_bytes())
    raw[5] ^= 1
    before = path.stat()
    path.write_bytes(raw)
    with pytest.raises(UnavailableError) as caught:
        seal(where)
    assert caught.value.code == "draft-differs"
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # so that only what was encrypted tells
    with pytest.raises(UnavailableError) as caught:
        seal(where)
    assert caught.value.code == "input-changed"
    discard_draft(where / "model.sealed")
    seal(where)
    assert opened(where / "model.sealed", where / "opened") == {
        **TREE,
        "model-00001-of-00002.safetensors": bytes(raw),
    }


def test_a_draft_of_something_else_is_refused(where: Path) -> None:
    interrupt(where, 700)

    def refused(sealing: Sealing) -> None:
        with pytest.raises(UnavailableError) as caught:
            seal(where, sealing)
        assert (caught.value.code, caught.value.stage) == ("draft-differs", "draft")

    refused(replace(KEPT, version=2))
    refused(replace(KEPT, kid="other"))
    refused(replace(KEPT, dek=bytes(32)))
    refused(replace(KEPT, artefact_id=bytes(16)))
    refused(replace(KEPT, segment_bytes=SMALL * 2))
    (where / "model/new").write_bytes(b"")
    refused(KEPT)
    (where / "model/new").unlink()
    seal(where)


def test_a_copy_of_a_draft_is_none(where: Path) -> None:
    folder = interrupt(where, 700)
    shutil.copytree(folder, where / "copy")
    shutil.rmtree(folder)
    (where / "copy").rename(folder)
    with pytest.raises(UnavailableError) as caught:
        seal(where)
    assert caught.value.code == "draft-differs"


@pytest.mark.parametrize(
    "raw",
    [b"{", b"[]", b"{}", b'{"format":1}', bytes(70_000)],
    ids=["cut", "list", "empty", "wrong", "large"],
)
def test_a_state_that_cannot_be_read_is_refused(where: Path, raw: bytes) -> None:
    state = interrupt(where, 700) / "state.json"
    with state.open("r+b") as stream:
        stream.truncate(0)
        stream.write(raw)
    with pytest.raises(UnavailableError) as caught:
        seal(where)
    assert caught.value.code in ("draft-differs", "input-unreadable")


@pytest.mark.parametrize("name", ["format", "artefact_id", "mac"])
def test_each_member_of_the_state_counts(where: Path, name: str) -> None:
    state = interrupt(where, 700) / "state.json"
    said = json.loads(state.read_bytes())
    said[name] = said[name][:-1] + ("0" if said[name][-1] != "0" else "1")
    with state.open("r+b") as stream:
        stream.truncate(0)
        stream.write(json.dumps(said, separators=(",", ":"), sort_keys=True).encode())
    with pytest.raises(UnavailableError) as caught:
        seal(where)
    assert caught.value.code == "draft-differs"


def test_a_draft_without_its_digests_begins_its_files_anew(where: Path) -> None:
    folder = interrupt(where, 1100)
    before = segments(folder)
    for path in folder.glob("*.seen"):
        path.unlink()
    seal(where)
    assert not set(before) & set(segments(where / "model.sealed"))
    assert opened(where / "model.sealed", where / "opened") == TREE


def test_after_another_boot_all_begins_anew(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a crash of the machine left of writes and digests is not known, so their nonces are not used again."""
    before = segments(interrupt(where, 800))
    monkeypatch.setattr(draft, "_boot", lambda: "another")
    seal(where)
    assert not {header for header, _ in before} & {header for header, _ in segments(where / "model.sealed")}
    assert opened(where / "model.sealed", where / "opened") == TREE


def test_one_process_at_a_time(where: Path) -> None:
    folder = interrupt(where, 700)
    lock = lock_file(folder / "state.json")
    assert lock is not None
    with pytest.raises(UnavailableError) as caught:
        seal(where)
    assert caught.value.code == "draft-in-use"
    os.close(lock)
    seal(where)


def test_a_single_file_goes_on_too(tmp_path: Path) -> None:
    source = tmp_path / "f"
    source.write_bytes(bytes(range(256)) * 8)
    stopped: list[int] = []

    def progress(done: int, _: int) -> None:
        if not stopped and done > 1000:
            stopped.append(done)
            raise Interrupted

    with pytest.raises(Interrupted):
        seal_one(source, tmp_path / "f.sealed", KEPT, progress=progress)
    before = segments(draft_path(tmp_path / "f.sealed"))
    seal_one(source, tmp_path / "f.sealed", KEPT, progress=progress)
    raw = (tmp_path / "f.sealed").read_bytes()
    assert next(iter(before))[0] == raw[:40]
    assert sorted(os.listdir(tmp_path)) == ["f", "f.sealed", "f.sealed.json"]


@pytest.mark.parametrize("stop_at", [700, 1800])
def test_a_signed_model_goes_on_with_the_same_signature(where: Path, stop_at: int) -> None:
    key = generate_private_key(SECP256R1())
    stopped: list[int] = []

    def progress(done: int, _: int) -> None:
        if not stopped and done >= stop_at:
            stopped.append(done)
            raise Interrupted

    for expected in (Interrupted, None):
        with pytest.raises(expected) if expected else contextlib.nullcontext():
            seal_folder(where / "model", where / "model.sealed", KEPT, model_key=key, progress=progress)
    files = opened(where / "model.sealed", where / "opened")
    digests = {path: hashlib.sha256(raw).digest() for path, raw in TREE.items()}
    assert verify_model(files["model.sig"], digests, key.public_key()) == "model"


def test_without_resume_nothing_is_left(where: Path) -> None:
    with pytest.raises(Interrupted):
        seal(where, SEALING, stop_at=700)
    assert sorted(os.listdir(where)) == ["model"]


def test_the_digests_say_nothing_without_the_key(where: Path) -> None:
    from blake3 import blake3

    folder = interrupt(where, 700)
    seen = b"".join(path.read_bytes() for path in sorted(folder.glob("*.seen")))
    first = TREE["config.json"]
    assert blake3(first).digest() not in seen
    assert blake3(first, key=bytes(32)).digest() not in seen
    assert DEK not in seen + (folder / "state.json").read_bytes()
    assert (folder.stat().st_mode & 0o777) == 0o700


def test_a_draft_needs_a_salt_of_the_right_length(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Seen(tmp_path / "seen", dek=DEK, salt=b"short", segments=1)
    assert Draft.new(tmp_path / "out", bytes(16)).kept is False
