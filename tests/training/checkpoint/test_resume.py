"""Training goes on only from a chain that holds, with the weights that were signed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.training.checkpoint.chains import Run

from sealwright.errors import SealwrightError, VerificationError
from sealwright.training.checkpoint import CheckpointFolder, open_weights, resume


def test_the_newest_weights_come_back(honest: Run) -> None:
    before = len(os.listdir("/proc/self/fd"))
    found = resume(
        honest.folder.root, honest.trust(), honest.site.weights_dek, at=honest.now, newest=honest.site.keys
    )
    assert found.chain.newest.version == 2
    np.testing.assert_array_equal(found.tensors["w"], np.full((3, 2), honest.epoch, dtype=np.float32))
    found.tensors["w"][0, 0] = 7  # theirs to change
    assert len(os.listdir("/proc/self/fd")) == before


def test_nothing_is_opened_of_a_chain_that_does_not_hold(
    honest: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = honest.copy(tmp_path / "copy").root
    shutil.rmtree(folder / "v000002")

    def opened(*_: object, **__: object) -> int:
        raise AssertionError("opened")

    monkeypatch.setattr("sealwright.training.checkpoint.weights.open_memfd", opened)
    with pytest.raises(VerificationError) as caught:
        resume(folder, honest.trust(), honest.site.weights_dek, at=honest.now, newest=honest.site.keys)
    assert caught.value.code == "checkpoint-rollback"


def test_another_key_or_ciphertext_is_refused(honest: Run, tmp_path: Path) -> None:
    newest = honest.verify().newest
    with pytest.raises(SealwrightError) as caught:
        open_weights(honest.folder, newest, bytes(32))
    assert caught.value.code == "wrong-dek"
    folder = honest.copy(tmp_path / "copy")
    path = folder.artefact(2)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(SealwrightError) as caught:
        open_weights(folder, newest, honest.site.weights_dek)
    assert (caught.value.stage, caught.value.code) == ("segments", "bad-segment")


def test_sealed_weights_that_the_statement_is_not_about(honest: Run, tmp_path: Path) -> None:
    """A broken worker signs a statement about some weights, and seals others."""
    from dataclasses import replace

    newest = honest.verify().newest
    said = newest.statement.model_copy(
        update={"subject": [newest.statement.subject[0].model_copy(update={"digest": _digest(bytes(32))})]}
    )
    with pytest.raises(VerificationError) as caught:
        open_weights(
            CheckpointFolder(honest.folder.root), replace(newest, statement=said), honest.site.weights_dek
        )
    assert (caught.value.stage, caught.value.code) == ("weights", "model-differs")


def _digest(raw: bytes) -> object:
    from sealwright.protocol.receipt import Sha256

    return Sha256(sha256=raw)
