"""The bound for a sum of discrete Gaussians, held against its Rényi divergence, summed term by term."""

from __future__ import annotations

import numpy as np
import pytest

from sealwright.training.privacy.accountant import (
    ORDERS,
    concentrated,
    discrete_gaussian_rho,
    sum_of_gaussians_rho,
)

REACH = 400  # integers on each side: what lies beyond is under 10^-300 for these variances


def log_pmf(variance: float, count: int) -> np.ndarray:
    """Return log P(sum of `count` discrete Gaussians = k) for k from -REACH to REACH."""
    k = np.arange(-REACH, REACH + 1, dtype=np.longdouble)
    one = np.exp(-(k**2) / (2 * np.longdouble(variance)))
    one /= one.sum()
    whole = one
    for _ in range(count - 1):
        whole = np.convolve(whole, one)[REACH:-REACH]
    with np.errstate(divide="ignore"):
        return np.log(whole)


def renyi(p: np.ndarray, q: np.ndarray, order: int) -> float:
    """Return the Rényi divergence of P from Q, nats, where both are over the smallest number that a float tells."""
    told = (p > -10_000) & (q > -10_000) & np.isfinite(p) & np.isfinite(q)
    terms = order * p[told] + (1 - order) * q[told]
    top = terms.max()
    return float((top + np.log(np.exp(terms - top).sum())) / (order - 1))


@pytest.mark.parametrize("variance", [0.25, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("sensitivity", [1, 3])
def test_the_bound_is_over_what_it_bounds(variance: float, count: int, sensitivity: int) -> None:
    p = log_pmf(variance, count)
    q = np.roll(p, sensitivity)
    inner = slice(REACH // 2, -REACH // 2)
    bound = concentrated(sum_of_gaussians_rho(sensitivity, variance, count, 1))
    checked = 0
    for order, allowed in zip(ORDERS, bound.values, strict=True):
        if order > 32:  # beyond, its mean lies where the table ends
            break
        exact = renyi(p[inner], q[inner], order)
        assert exact <= allowed * (1 + 1e-6)
        checked += 1
    assert checked > 25


def test_the_bound_of_one_is_that_of_the_discrete_gaussian_and_is_tight() -> None:
    assert sum_of_gaussians_rho(2, 3.0, 1, 7) == pytest.approx(discrete_gaussian_rho(2, 3.0), rel=1e-6)
    p = log_pmf(4.0, 1)
    exact = renyi(p[100:-100], np.roll(p, 2)[100:-100], 2)
    assert exact == pytest.approx(2 * discrete_gaussian_rho(2, 4.0), rel=1e-6)


def test_a_smaller_bound_would_be_seen() -> None:
    """Without τ the bound is under the divergence for little noise, so the comparison can fail."""
    p = log_pmf(0.25, 2)
    exact = renyi(p[200:-200], np.roll(p, 1)[200:-200], 4)
    without = 4 * 1 / (2 * 2 * 0.25)
    assert exact > 1.03 * without
    assert exact <= 4 * sum_of_gaussians_rho(1, 0.25, 2, 1)
