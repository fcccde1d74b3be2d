"""What the attacks achieve on real data, with and without each defence: bench/privacy.py with its fixed seeds."""

from __future__ import annotations

import pytest
from bench.privacy import defences, membership, poisoned

pytest.importorskip("sklearn")


def test_a_scaled_update_ruins_the_mean_and_no_defence() -> None:
    ways = defences()
    assert poisoned("digits", "scaled", ways["mean"]) < 0.6
    for name in ("clip", "median", "trimmed mean", "multi-krum"):
        assert poisoned("digits", "scaled", ways[name]) > 0.88


def test_noise_takes_away_from_membership_inference() -> None:
    plain, private = membership(None), membership("4")
    assert plain["advantage"] > private["advantage"] + 0.15
    assert private["epsilon"] < 3
