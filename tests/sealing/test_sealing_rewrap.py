"""Sealing anew: another key, the same plaintext, none of it on a disk."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tests.sealing.support import DEK, OWNER, SMALL
from tests.sealing.trees import SEALING, TREE, read_tree, sealed_tree, verified, write_tree

from sealwright.cli import main
from sealwright.errors import SealwrightError, VerificationError
from sealwright.sealing import Manifest, locate, open_to_folder, rewrap
from sealwright.sealing.draft import draft_path
from sealwright.sealing.location import LocalFile
from sealwright.sealing.rewrap import has_sha256

NEW = bytes(reversed(range(32)))
ANEW = replace(SEALING, dek=NEW, kid="second", resume=True)


def again(where: Path, **more: object) -> Manifest:
    old = locate(where / "model.sealed")
    return rewrap(
        old,
        verified(old),
        DEK,
        where / "new.sealed",
        replace(ANEW, **more),  # type: ignore[arg-type]
        as_folder=True,
        segment_bytes=SMALL,
    )


def test_the_new_key_opens_it_and_the_old_one_does_not(tmp_path: Path) -> None:
    sealed_tree(tmp_path, TREE, sha256=True)
    manifest = again(tmp_path, sha256=True, version=7)
    new = locate(tmp_path / "new.sealed")
    assert (manifest.kid, manifest.version) == ("second", 7)
    assert has_sha256(manifest, NEW)
    open_to_folder(new, verified(new), NEW, tmp_path / "opened", segment_bytes=SMALL)
    assert read_tree(tmp_path / "opened") == TREE
    with pytest.raises(VerificationError) as caught:
        open_to_folder(new, verified(new), DEK, tmp_path / "again", segment_bytes=SMALL)
    assert caught.value.stage == "key-commitment"
    old, other = (tmp_path / name for name in ("model.sealed", "new.sealed"))
    for path in sorted(os.listdir(old)):
        assert (old / path).read_bytes() != (other / path).read_bytes()


def test_no_plaintext_is_written(tmp_path: Path) -> None:
    marker = b"a secret that is easy to find" * 100
    sealed_tree(tmp_path, {"a": marker, "b": b"x"})
    (tmp_path / "model/a").unlink()

    def interrupted(done: int, _: int) -> None:
        if done > 2000:
            raise KeyboardInterrupt

    old = locate(tmp_path / "model.sealed")
    with pytest.raises(KeyboardInterrupt):
        rewrap(
            old,
            verified(old),
            DEK,
            tmp_path / "new.sealed",
            ANEW,
            as_folder=True,
            segment_bytes=SMALL,
            progress=interrupted,
        )
    assert draft_path(tmp_path / "new.sealed").is_dir()
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or marker[:29] not in path.read_bytes()
    again(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["model", "model.sealed", "new.sealed"]


def test_a_forged_segment_or_length_is_refused(tmp_path: Path) -> None:
    artefact = sealed_tree(tmp_path, TREE)
    path = artefact / "0004.sealed"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(VerificationError) as caught:
        again(tmp_path)
    assert caught.value.stage == "segments"
    path.write_bytes(raw[:-1])
    with pytest.raises(VerificationError) as caught:
        again(tmp_path)
    assert caught.value.stage == "lengths"
    assert not (tmp_path / "new.sealed").exists()


def test_another_plaintext_than_the_manifest_says_is_refused(tmp_path: Path) -> None:
    """Somebody with the DEK, who is not the owner, sealed other bytes of the same length: only the digest tells."""
    from sealwright.crypto.streaming import Layout, StreamingAead

    artefact = sealed_tree(tmp_path, {"a": b"1" * 300})
    manifest = verified(locate(artefact))
    entry = manifest.contents(DEK)[0]
    layout = Layout(length=300, segment_bytes=SMALL)
    aead = StreamingAead(DEK, manifest.associated_data(entry, 0), salt=bytes(32), prefix=bytes(7))
    out = bytearray(layout.sealed_length)
    out[:40] = aead.header
    for number in range(layout.segments):
        segment = layout.segment(number)
        target = memoryview(out)[segment.sealed_offset :][: segment.sealed_length]
        aead.encrypt_into(segment, b"2" * segment.length, target)
    (artefact / "0000.sealed").write_bytes(out)
    with pytest.raises(SealwrightError) as caught:
        again(tmp_path)
    assert caught.value.code == "input-changed"


def secret(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    path.chmod(0o600)


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tree(tmp_path / "model", TREE)
    secret(tmp_path / "dek", DEK)
    secret(tmp_path / "new", NEW)
    assert main(["owner-key", "new", "owner.pem"]) == 0
    key = ["--owner-key", "owner.pem", "--dek-file", "dek"]
    assert main(["seal", "model", *key]) == 0
    assert main(["seal", "model/config.json", *key, "--out", "."]) == 0
    capsys.readouterr()
    for name in ("model.sealed", "config.json.sealed"):
        args = [
            *("rewrap", name, *key, "--new-dek-file", "new"),
            *("--to", f"2-{name}", "--kid", "two", "--json"),
        ]
        assert main(args) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["kid"], said["admitted"]) == ("two", False)
    new = ["--owner-key", "owner.pem", "--dek-file", "new"]
    assert main(["open", "2-model.sealed", *new, "--to", "opened"]) == 0
    assert read_tree(tmp_path / "opened") == TREE
    assert main(["open", "2-config.json.sealed", *new, "--to", "config"]) == 0
    assert (tmp_path / "config").read_bytes() == TREE["config.json"]
    assert isinstance(locate(tmp_path / "2-config.json.sealed"), LocalFile)
    same = ["rewrap", "model.sealed", *key, "--new-dek-file", "dek", "--to", "3", "--kid", "three"]
    assert main(same) == 65
    assert "same-key" in capsys.readouterr().err
    assert main(["rewrap", "model.sealed", *key, "--to", "3", "--kid", "three"]) == 2
    assert OWNER is not None


def test_the_command_goes_on_and_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "big"
    source.write_bytes(os.urandom(3 << 20))
    secret(tmp_path / "dek", DEK)
    assert main(["owner-key", "new", "owner.pem"]) == 0
    key = ["--owner-key", "owner.pem", "--dek-file", "dek"]
    import sealwright.sealing.seal as module

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.Digests, "entry", stop)
        assert main(["seal", "big", *key]) == 130
    assert draft_path(tmp_path / "big.sealed").is_dir()
    source.write_bytes(os.urandom(3 << 20))
    capsys.readouterr()
    assert main(["seal", "big", *key]) == 69
    assert "--restart" in capsys.readouterr().err
    assert main(["seal", "big", *key, "--restart"]) == 0
    assert main(["open", "big.sealed", *key, "--to", "opened"]) == 0
    assert (tmp_path / "opened").read_bytes() == source.read_bytes()
    assert not draft_path(tmp_path / "big.sealed").exists()
