"""Folders: sealed whole, opened whole, or not at all."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sealing.support import DEK, SMALL
from tests.sealing.tink_oracle import tink_with
from tests.sealing.trees import SEALING, TREE, opened, read_tree, sealed_tree, verified, write_tree

from sealwright.errors import SealwrightError, UnavailableError, VerificationError
from sealwright.sealing import Manifest, locate, open_into, open_to_folder, seal_folder, tree
from sealwright.sealing.files import BytesSource, FileReader
from sealwright.sealing.seal import Input, seal_inputs

PARTS = st.sampled_from(["a", "b", "weights.bin", "ü", "with space"])
PATHS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
TREES = st.dictionaries(PATHS, st.binary(max_size=3 * SMALL), min_size=1, max_size=6)


def free_of_clashes(paths: dict[str, bytes]) -> bool:
    """Return whether no file is a folder of another."""
    return not any(other.startswith(f"{path}/") for path in paths for other in paths)


@settings(max_examples=60)
@given(files=TREES.filter(free_of_clashes), threads=st.integers(1, 3))
def test_a_folder_is_opened_as_it_was(
    files: dict[str, bytes], threads: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    where = tmp_path_factory.mktemp("tree")
    artefact = sealed_tree(where, files, threads=threads)
    assert opened(artefact, where / "opened", threads=threads) == files
    names = sorted(os.listdir(artefact))
    assert names == [*(f"{index:04d}.sealed" for index in range(len(files))), "manifest.json"]


def test_what_is_made_tells_no_names_and_is_private(tmp_path: Path) -> None:
    artefact = sealed_tree(tmp_path, TREE)
    for path in artefact.iterdir():
        assert b"tokenizer" not in path.read_bytes()
    opened(artefact, tmp_path / "opened")
    for path in (tmp_path / "opened").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert stat.S_IMODE((tmp_path / "opened").stat().st_mode) == 0o700
    assert sorted(os.listdir(tmp_path)) == ["model", "model.sealed", "opened"]


def test_tink_opens_each_file(tmp_path: Path) -> None:
    artefact = sealed_tree(tmp_path, TREE, segment_bytes=1 << 20)
    manifest = verified(locate(artefact))
    primitive = tink_with(DEK)
    for index, entry in enumerate(manifest.contents(DEK)):
        with (artefact / f"{index:04d}.sealed").open("rb") as stream:
            plain = primitive.new_decrypting_stream(stream, manifest.associated_data(entry, index)).read()
        assert plain == TREE[entry.path]


def cut(artefact: Path) -> None:
    path = artefact / "0001.sealed"
    path.write_bytes(path.read_bytes()[:-1])


def extended(artefact: Path) -> None:
    path = artefact / "0001.sealed"
    path.write_bytes(path.read_bytes() + b"\0")


def a_segment_cut_out(artefact: Path) -> None:
    path = artefact / "0001.sealed"
    raw = path.read_bytes()
    path.write_bytes(raw[:SMALL] + raw[2 * SMALL :])


def segments_swapped(artefact: Path) -> None:
    path = artefact / "0001.sealed"
    raw = path.read_bytes()
    path.write_bytes(raw[:SMALL] + raw[2 * SMALL : 3 * SMALL] + raw[SMALL : 2 * SMALL] + raw[3 * SMALL :])


def files_swapped(artefact: Path) -> None:
    one, two = artefact / "0003.sealed", artefact / "0004.sealed"
    one.rename(artefact / "kept")
    two.rename(one)
    (artefact / "kept").rename(two)


def removed(artefact: Path) -> None:
    (artefact / "0004.sealed").unlink()


def a_bit(artefact: Path) -> None:
    path = artefact / "0004.sealed"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def a_fifo(artefact: Path) -> None:
    (artefact / "0002.sealed").unlink()
    os.mkfifo(artefact / "0002.sealed")


@pytest.mark.parametrize(
    ("tamper", "code"),
    [
        (cut, "wrong-artefact-length"),
        (extended, "wrong-artefact-length"),
        (a_segment_cut_out, "wrong-artefact-length"),
        (segments_swapped, "bad-segment"),
        (files_swapped, "wrong-artefact-length"),
        (removed, "input-unreadable"),
        (a_bit, "bad-segment"),
        (a_fifo, "input-unreadable"),
    ],
    ids=lambda case: getattr(case, "__name__", None),
)
def test_what_was_tampered_with_leaves_nothing(
    tamper: Callable[[Path], None], code: str, tmp_path: Path
) -> None:
    artefact = sealed_tree(tmp_path, TREE)
    tamper(artefact)
    with pytest.raises(SealwrightError) as caught:
        opened(artefact, tmp_path / "opened")
    assert caught.value.code == code
    assert sorted(os.listdir(tmp_path)) == ["model", "model.sealed"]


def test_files_of_the_same_length_cannot_stand_in_for_each_other(tmp_path: Path) -> None:
    artefact = sealed_tree(tmp_path, {"a": b"1" * 300, "b": b"2" * 300})
    one, two = artefact / "0000.sealed", artefact / "0001.sealed"
    raw = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(raw)
    with pytest.raises(VerificationError) as caught:
        opened(artefact, tmp_path / "opened")
    assert caught.value.stage == "segments"


def test_files_of_another_version_cannot_stand_in(tmp_path: Path) -> None:
    one = sealed_tree(tmp_path / "1", {"a": b"1" * 300, "b": b"2" * 300}, artefact_id=bytes(16))
    two = sealed_tree(tmp_path / "2", {"a": b"1" * 300, "b": b"2" * 300}, artefact_id=bytes(16), version=2)
    shutil.copy(one / "0001.sealed", two / "0001.sealed")
    with pytest.raises(VerificationError) as caught:
        opened(two, tmp_path / "opened")
    assert caught.value.stage == "segments"


def test_several_files_are_no_single_file(tmp_path: Path) -> None:
    artefact = sealed_tree(tmp_path, TREE)
    from tests.sealing.support import Kept

    kept = Kept()
    with pytest.raises(SealwrightError) as caught:
        open_into(artefact / "0000.sealed", verified(locate(artefact)), DEK, kept, segment_bytes=SMALL)
    assert (caught.value.code, kept.ended) == ("too-many-files", ["abort"])


def test_links_and_special_files_are_refused(tmp_path: Path) -> None:
    def refused(make: Callable[[Path], object]) -> str:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        write_tree(folder, {"a": b"x"})
        make(folder)
        with pytest.raises(SealwrightError) as caught:
            seal_folder(folder, tmp_path / "model.sealed", SEALING)
        assert sorted(os.listdir(tmp_path)) == ["model"]
        return caught.value.code

    assert refused(lambda f: (f / "link").symlink_to("/etc/passwd")) == "not-a-plain-file"
    assert refused(lambda f: (f / "folder").symlink_to("/etc")) == "not-a-plain-file"
    assert refused(lambda f: os.mkfifo(f / "fifo")) == "not-a-plain-file"
    assert refused(lambda f: (f / "back\\slash").write_bytes(b"")) == "bad-artefact-path"
    assert refused(lambda f: (f / "a").unlink()) == "no-files"


@pytest.mark.parametrize("above", [False, True], ids=["the file", "a folder above it"])
def test_what_takes_a_files_place_after_the_folder_was_read_is_refused(above: bool, tmp_path: Path) -> None:
    """Somebody who can write into the folder would have the owner seal, or publish, what they cannot read."""
    secret = write_tree(tmp_path / "secret", {"merges.txt": b"s" * len(TREE["tokenizer/merges.txt"])})
    source = write_tree(tmp_path / "model", TREE)
    found = {one.path: one for one in tree.files_of(source)}
    if above:
        (source / "tokenizer").rename(tmp_path / "away")
        (source / "tokenizer").symlink_to(secret)
    else:
        (source / "tokenizer/merges.txt").unlink()
        (source / "tokenizer/merges.txt").symlink_to(secret / "merges.txt")
    with pytest.raises(UnavailableError) as caught:
        found["tokenizer/merges.txt"].open()
    assert caught.value.code == "input-changed"
    found["config.json"].open().close()


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_FILES", 2)
    with pytest.raises(UnavailableError) as caught:
        sealed_tree(tmp_path, {"a/1": b"", "b/2": b"", "c/3": b""})
    assert caught.value.code == "too-many-inputs"


def test_an_older_artefact_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    artefact = sealed_tree(tmp_path, TREE)
    shutil.rmtree(tmp_path / "model")
    sealed_tree(tmp_path, {"only": b"this"}, version=2)
    assert opened(artefact, tmp_path / "opened") == {"only": b"this"}
    assert sorted(os.listdir(tmp_path)) == ["model", "model.sealed", "opened"]
    shutil.rmtree(artefact)
    write_tree(artefact, {"mine": b"precious"})
    with pytest.raises(UnavailableError) as caught:
        sealed_tree(tmp_path, {"only": b"this"}, version=3)
    assert caught.value.code == "output-failed"
    assert read_tree(artefact) == {"mine": b"precious"}


def test_a_place_that_is_taken_is_refused(tmp_path: Path) -> None:
    artefact = sealed_tree(tmp_path, TREE)
    (tmp_path / "opened").mkdir()
    with pytest.raises(UnavailableError) as caught:
        opened(artefact, tmp_path / "opened")
    assert caught.value.code == "folder-exists"
    (tmp_path / "dangling").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnavailableError):
        opened(artefact, tmp_path / "dangling")
    assert not (tmp_path / "elsewhere").exists()


def test_an_owner_cannot_make_an_opener_write_elsewhere(tmp_path: Path) -> None:
    """The format refuses such paths in the manifest, whoever signed it."""
    for path in ("../out", "/abs", "a/../../b", "a//b", "C:x", "a\nb"):
        inputs = [Input(path=path, open=lambda: BytesSource(b"x"))]
        with pytest.raises(SealwrightError) as caught:
            seal_inputs(inputs, tmp_path / "m.sealed", SEALING, as_folder=True)
        assert caught.value.code == "bad-artefact-path"
    inputs = [Input(path="a", open=lambda: BytesSource(b"x"))] * 2
    with pytest.raises(SealwrightError):
        seal_inputs(inputs, tmp_path / "m.sealed", SEALING, as_folder=True)
    assert os.listdir(tmp_path) == []


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "model", TREE)

    def grows(done: int, _: int) -> None:
        if done < 20:
            (source / "tokenizer/merges.txt").write_bytes(b"longer now" * 1000)

    with pytest.raises(UnavailableError) as caught:
        seal_folder(source, tmp_path / "model.sealed", SEALING, progress=grows)
    assert caught.value.code == "input-changed"
    assert os.listdir(tmp_path) == ["model"]


def test_progress_counts_all_files(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "model", TREE)
    total = sum(map(len, TREE.values()))
    seen: list[tuple[int, int]] = []
    seal_folder(source, tmp_path / "model.sealed", SEALING, progress=lambda *now: seen.append(now))
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    again: list[tuple[int, int]] = []
    opened(tmp_path / "model.sealed", tmp_path / "opened", progress=lambda *now: again.append(now))
    assert again == seen


def test_a_wrong_key_or_owner_opens_nothing(tmp_path: Path) -> None:
    location = locate(sealed_tree(tmp_path, TREE))
    with pytest.raises(VerificationError) as caught:
        open_to_folder(location, verified(location), bytes(32), tmp_path / "opened", segment_bytes=SMALL)
    assert caught.value.stage == "key-commitment"
    stranger = Ed25519PrivateKey.generate().public_key()
    with pytest.raises(VerificationError):
        Manifest.verify_signed(location.envelope(), [stranger])


def test_a_manifest_larger_than_any_is_not_read(tmp_path: Path) -> None:
    artefact = sealed_tree(tmp_path, TREE)
    with (artefact / "manifest.json").open("r+b") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(SealwrightError) as caught:
        locate(artefact).envelope()
    assert caught.value.code == "too-large"


def test_sha256_is_checked_where_it_is_there(tmp_path: Path) -> None:
    artefact = sealed_tree(tmp_path, TREE, sha256=True)
    assert all(entry.sha256 for entry in verified(locate(artefact)).contents(DEK))
    assert opened(artefact, tmp_path / "opened") == TREE
    with pytest.raises(ValueError, match="a DEK has"):
        replace(SEALING, dek=b"short")


def test_sources_refuse_what_they_do_not_have(tmp_path: Path) -> None:
    source = BytesSource(b"abc")
    assert (source.size, source.holds(3), source.holds(4), source.changed()) == (3, True, False, False)
    with pytest.raises(VerificationError):
        source.read_into(2, memoryview(bytearray(2)))
    write_tree(tmp_path, {"f": b"abc"})
    with FileReader(tmp_path / "f") as reader, pytest.raises(VerificationError):
        reader.read_into(2, memoryview(bytearray(2)))
