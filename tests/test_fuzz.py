"""A short slice of the fuzzing: changed evidence of the fakes, to every parser and to the whole verification."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from scripts import fuzz

from sealwright.errors import EvidenceFormatError

INPUTS = 100  # of each target; `scripts/fuzz.py` runs for hours


@pytest.fixture(scope="module")
def pool() -> Sequence[bytes]:
    return fuzz.fakes()


@pytest.mark.parametrize("name", sorted(fuzz.TARGETS))
def test_only_its_own_errors_come_out(name: str, pool: Sequence[bytes]) -> None:
    target, chance = fuzz.TARGETS[name], random.Random(f"1 {name}")
    corpus = fuzz.seeds(target, pool)
    for _ in range(INPUTS):
        raw = fuzz.changed(chance, corpus)
        assert fuzz.failure(target, raw) == "", raw.hex()


@pytest.mark.parametrize(
    "name", sorted(set(fuzz.TARGETS) - {"azure-trustee", "ccel-table", "certificate-intel"})
)
def test_every_target_has_evidence_to_begin_with(name: str, pool: Sequence[bytes]) -> None:
    target = fuzz.TARGETS[name]
    assert any(fuzz.accepts(target, raw) for raw in pool)


def test_what_may_not_come_out_is_found_and_kept(tmp_path, monkeypatch) -> None:
    def act(raw: bytes) -> None:
        if b"\xff" in raw:
            raise EvidenceFormatError("refused")
        if len(raw) % 2:
            raise KeyError("an error of ours")

    monkeypatch.setattr(fuzz, "KEPT", tmp_path)
    monkeypatch.setattr(fuzz, "TARGETS", {"broken": fuzz.Target(act=act)})
    (found,) = fuzz.hunt(["broken"], [bytes(100)], seconds=0.2, seed=1)
    assert "KeyError: 'an error of ours'" in found
    (kept,) = tmp_path.iterdir()
    assert "KeyError" in fuzz.failure(fuzz.TARGETS["broken"], kept.read_bytes())
    assert fuzz.report([found]) == 1
    assert fuzz.report([]) == 0


def test_what_takes_too_long_is_found(monkeypatch) -> None:
    monkeypatch.setattr(fuzz, "SLOW_S", -1)
    assert fuzz.failure(fuzz.Target(act=len), b"").startswith("slow")


def test_the_same_seed_makes_the_same_changes() -> None:
    made = [[fuzz.changed(random.Random(seed), [bytes(64), b"{}"]) for _ in range(20)] for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
