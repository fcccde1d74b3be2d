"""The discrete Gaussian, sampled exactly (Canonne, Kamath, Steinke 2020). Spec: docs/spec/privacy.md, Noise."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt

import numpy as np

from sealwright.training.privacy.randomness import Ints, Source, below, linear_coins, square_coins

MAX_VARIANCE = 1 << 56  # steps²: what the sum of a run can hold is far under it
_BATCH = 1 << 16


def discrete_gaussian(variance: Fraction | int, count: int, source: Source) -> Ints:
    """Return `count` independent integers x, each with probability proportional to exp(-x² / (2 · `variance`)).

    No floating-point number stands in the result, so none leaks through its low bits.

    Args:
        variance: the parameter σ² (the variance itself is never above it), over 0, in steps².
        count: how many.
        source: bytes; `system_source()` outside tests.
    """
    sigma2 = Fraction(variance)
    if not 0 < sigma2 <= MAX_VARIANCE or count < 0:
        raise ValueError("variance outside 0 to 2^56, or a negative count")
    out = np.empty(count, dtype=np.int64)
    done = 0
    while done < count:
        found = _batch(sigma2, min(_BATCH, 2 * (count - done) + 64), source)[: count - done]
        out[done : done + found.size] = found
        done += found.size
    return out


def _batch(sigma2: Fraction, count: int, source: Source) -> Ints:
    """Candidates from a discrete Laplace of scale t = ⌊σ⌋ + 1; which are kept is exact."""
    t = isqrt(sigma2.numerator // sigma2.denominator) + 1
    laplace = _discrete_laplace(t, count, source)

    # γ = (|y| - σ²/t)² / (2σ²) = (|y|·t·q - p)² / (2·p·q·t²), where σ² = p/q
    p, q = sigma2.numerator, sigma2.denominator

    def gamma(size: int) -> Fraction:
        return Fraction((size * t * q - p) ** 2, 2 * p * q * t * t)

    sizes = np.abs(laplace)
    keep = square_coins(source, sizes, gamma, shift=float(sigma2 / t), scale=float(1 / (2 * sigma2)))
    kept: Ints = laplace[keep]
    return kept


def _discrete_laplace(t: int, count: int, source: Source) -> Ints:
    """Integers with probability proportional to exp(-|x| / t); fewer than `count`."""
    u = below(source, t, count)
    u = u[linear_coins(source, u, t)]
    size = u + t * _geometric(u.size, source)
    negative = (np.frombuffer(source(size.size), dtype=np.uint8) & 1).astype(bool)
    kept = ~(negative & (size == 0))  # else zero would count twice
    signed: Ints = np.where(negative, -size, size)[kept]
    return signed


def _geometric(count: int, source: Source) -> Ints:
    """How often a coin of probability 1/e comes up before it does not."""
    out = np.zeros(count, dtype=np.int64)
    going = np.arange(count)
    while going.size:
        going = going[linear_coins(source, np.ones(going.size, dtype=np.int64), 1)]
        out[going] += 1
    return out
