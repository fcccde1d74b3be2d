"""Medians of paired measurements, with a 95 % bootstrap interval."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import NamedTuple

RESAMPLES = 10_000


class Estimate(NamedTuple):
    """A median, and the interval that holds 95 % of the medians of resampled pairs."""

    median: float
    low: float
    high: float


def estimate(pairs: Sequence[float]) -> Estimate:
    """Return the median of one figure a pair (a ratio or a difference) with its interval."""
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    edge = round(RESAMPLES * 0.025)
    return Estimate(statistics.median(pairs), medians[edge], medians[-1 - edge])


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of all lie (nearest rank)."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
