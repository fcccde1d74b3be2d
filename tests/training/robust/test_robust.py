"""Hostile updates move robust means little; nothing under the floor leaves; the gate signs only what passes."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from sealwright.errors import SealwrightError
from sealwright.training.robust.floor import allowed, release, sparse_encoder
from sealwright.training.robust.gate import GateResult, GateRule, sign_gate
from sealwright.training.robust.means import clip_norms, median, multi_krum, trimmed_mean
from sealwright.training.robust.modes import possible, require
from sealwright.training.robust.outliers import Outliers
from sealwright.training.secagg.fixed import Sum, decode_sum
from sealwright.training.secagg.spec import RunSpec

SPEC = RunSpec(
    run="r", mode="masked", elements=16, clip="4", max_weight=1, min_roster=4, max_roster=8, min_survivors=3,
    degree=7, threshold=4, countersigner=bytes(32), enrolment_policy=bytes(32), purpose="test",
)  # fmt: skip


def summed(masks: list[list[bool]]) -> Sum:
    total = np.zeros(17, dtype=np.uint32)
    for mask in masks:
        out = np.empty(17, dtype=np.uint32)
        sparse_encoder(np.array(mask))(np.full(8, 1.5), 1, SPEC, out)
        total += out
    return decode_sum(total, SPEC, len(masks))


MASKS = st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=3, max_size=8)


@given(MASKS, st.integers(2, 6))
def test_no_index_under_the_floor_is_released(masks: list[list[bool]], floor: int) -> None:
    found, touched = release(summed(masks), SPEC, floor), np.array(masks).sum(axis=0)
    assert np.array_equal(found.released, touched >= floor)
    assert not found.mean[touched < floor].any()
    assert np.allclose(found.mean[touched >= floor], 1.5, atol=1e-6)


@settings(max_examples=200)
@given(MASKS, st.integers(2, 4), st.data())
def test_dropouts_after_the_count_leave_no_index_under_the_floor(
    masks: list[list[bool]], floor: int, data: st.DataObject
) -> None:
    admitted = allowed(summed(masks), SPEC, floor)
    alive = data.draw(st.sets(st.integers(0, len(masks) - 1), min_size=SPEC.min_survivors))
    still = np.array([masks[place] for place in alive]).sum(axis=0)
    assert (still[admitted] >= floor).all()


def test_floor_refusals() -> None:
    good = summed([[True] * 8] * 3)
    lie = Sum(total=np.where(np.arange(16) == 9, 5, good.total).astype(np.int32), weight=3, scale=good.scale)
    for call, code in [
        (lambda: release(good, SPEC, 1), "floor-spec"),
        (lambda: release(lie, SPEC, 2), "floor-counts"),
        (lambda: release(good, SPEC.model_copy(update={"elements": 15}), 2), "floor-spec"),
    ]:
        with pytest.raises(SealwrightError) as caught:
            call()
        assert (caught.value.code, caught.value.stage) == (code, "floor")


@given(st.integers(0, 2**32 - 1), st.floats(-1e6, 1e6))
def test_two_hostile_updates_of_nine_do_not_leave_the_honest_range(seed: int, value: float) -> None:
    rng = np.random.default_rng(seed)
    honest = [rng.normal(size=5) for _ in range(7)]
    updates = [*honest, np.full(5, value), np.full(5, value)]
    low, high = np.min(honest, axis=0), np.max(honest, axis=0)
    for mean in (median(updates), trimmed_mean(updates, 2)):
        assert (mean >= low - 1e-9).all()
        assert (mean <= high + 1e-9).all()


def test_multi_krum_leaves_out_those_far_away() -> None:
    rng = np.random.default_rng(3)
    updates = [*rng.normal(size=(7, 20)), *rng.normal(50, 1, size=(2, 20))]
    assert np.abs(multi_krum(updates, hostile=2, keep=5)).max() < 3
    assert np.abs(np.mean(updates, axis=0)).max() > 8


@given(st.lists(st.floats(-1e300, 1e300), min_size=3, max_size=3), st.floats(1e-3, 1e6))
def test_clipped_norms_hold(numbers: list[float], bound: float) -> None:
    assert np.linalg.norm(clip_norms([np.array(numbers)], bound)[0]) <= bound


def test_refusals_of_means() -> None:
    two, bad = [np.zeros(3)] * 2, [np.zeros(3), np.array([np.nan, 0, 0])]
    for call, code in [
        (lambda: median(two), "robust-too-few"),
        (lambda: trimmed_mean(two, 1), "robust-too-few"),
        (lambda: multi_krum(two, 1, 1), "robust-too-few"),
        (lambda: clip_norms(bad, 1), "update-out-of-range"),
        (lambda: clip_norms([np.zeros(2), np.zeros(3)], 1), "update-length"),
        (lambda: Outliers(two), "robust-too-few"),
        (lambda: require("masked", "median"), "robust-needs-tee"),
        (lambda: require("tee+masked", "outliers"), "robust-needs-tee"),
    ]:
        with pytest.raises(SealwrightError) as caught:
            call()
        assert caught.value.code == code
    require("tee", "median")
    assert possible("masked") == {"clip", "range", "floor", "gate"}


def test_the_outlier_report_has_no_number_of_a_single_update() -> None:
    rng = np.random.default_rng(4)
    updates = [*(rng.normal(1, 0.1, size=(8, 10))), np.full(10, -40.0)]
    found = Outliers(updates)
    assert found.suspects() == [8]
    report = found.report(3)
    assert (report.long, report.against, report.updates) == ("some", "some", 9)
    other = Outliers([*updates[:8], np.full(10, -90.0)]).report(3)
    assert other == report


def test_the_gate_signs_what_passes_and_nothing_else() -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    rule = GateRule(metric="accuracy", better="higher", threshold="0.9", data=bytes(32), rows=100)

    def sign(value: float, data: bytes = bytes(32)) -> bytes:
        return sign_gate(
            rule, value, data=data, rows=100, checkpoint=b"c" * 32, run_spec=bytes(32), round_number=1,
            time=datetime(2026, 1, 1, tzinfo=UTC), key=key,
        )  # fmt: skip

    envelope = sign(0.95)
    opened = GateResult.opened(envelope, key=key.public_key(), rule=rule, checkpoint=b"c" * 32)
    assert opened.value.startswith("0.9")
    public = key.public_key()
    harder = rule.model_copy(update={"threshold": "0.99"})
    for call, code in [
        (lambda: sign(0.9 - 1e-12), "gate-failed"),
        (lambda: sign(float("nan")), "gate-failed"),
        (lambda: sign(0.95, b"x" * 32), "gate-other"),
        (lambda: GateResult.opened(envelope, key=public, rule=rule, checkpoint=bytes(32)), "gate-other"),
        (lambda: GateResult.opened(envelope, key=public, rule=harder, checkpoint=b"c" * 32), "gate-other"),
        (
            lambda: GateResult.opened(envelope, key=other.public_key(), rule=rule, checkpoint=b"c" * 32),
            "untrusted-signer",
        ),
    ]:
        with pytest.raises(SealwrightError) as caught:
            call()
        assert caught.value.code == code
