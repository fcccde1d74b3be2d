"""How much privacy mechanisms cost together: Rényi divergences, added up. Spec: docs/spec/privacy.md, Accounting.

All bounds are upper bounds. Orders are integers, where sums of few exact terms stand for integrals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, lgamma, log, log1p, sqrt

ORDERS: tuple[int, ...] = (*range(2, 65), 72, 80, 96, 112, 128, 160, 192, 256, 384, 512, 768, 1024)
_ROUNDING = 1 + 1e-9  # more than float64 loses in a sum of 1025 terms


@dataclass(frozen=True, slots=True)
class Cost:
    """Rényi divergence at each of `ORDERS`, nats: an upper bound for any two neighbouring data sets."""

    values: tuple[float, ...]

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of both, also where the second was chosen after the first was seen."""
        return Cost(tuple((a + b) * _ROUNDING for a, b in zip(self.values, other.values, strict=True)))

    def times(self, count: int) -> Cost:
        """Return the cost of `count` such mechanisms."""
        if count < 0:
            raise ValueError("a negative count")
        return Cost(tuple(value * count * _ROUNDING for value in self.values))

    def epsilon(self, delta: float) -> float:
        """Return the least ε that this bound gives with `delta` (Canonne, Kamath, Steinke 2020, Proposition 12).

        Args:
            delta: over 0, under 1.
        """
        if not 0 < delta < 1:
            raise ValueError("delta is over 0 and under 1")
        found = inf
        for order, value in zip(ORDERS, self.values, strict=True):
            found = min(found, value + log1p(-1 / order) - (log(delta) + log(order)) / (order - 1))
        return max(0.0, found) * _ROUNDING


def nothing() -> Cost:
    """Return the cost of no release."""
    return Cost((0.0,) * len(ORDERS))


def concentrated(rho: float) -> Cost:
    """Return the cost of a ρ-zCDP mechanism: α·ρ at order α."""
    if not (isfinite(rho) and rho >= 0):
        raise ValueError("rho is finite and not negative")
    return Cost(tuple(order * rho * _ROUNDING for order in ORDERS))


def gaussian(noise_multiplier: float, sampling_rate: float = 1.0) -> Cost:
    """Return the cost of Gaussian noise on a sum, each unit in it with probability `sampling_rate` (Poisson).

    Args:
        noise_multiplier: standard deviation by sensitivity; neighbours differ in one unit added or removed.
        sampling_rate: 0 to 1. Under 1 only where who is drawn stays hidden.
    """
    if not (isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ValueError("noise_multiplier is finite and over 0")
    rho = 0.5 / noise_multiplier**2
    return Cost(tuple(_sampled(order, sampling_rate, lambda j: j * rho, factor=1.0) for order in ORDERS))


def sampled(rho: float, sampling_rate: float) -> Cost:
    """Return the cost of any ρ-zCDP mechanism on a Poisson sample (Zhu and Wang 2019, Theorem 5).

    The bound for the Gaussian is smaller, and not proved for others.
    """
    if sampling_rate == 1:
        return concentrated(rho)
    whole = concentrated(rho).values
    drawn = (_sampled(order, sampling_rate, lambda j: j * rho, factor=3.0) for order in ORDERS)
    return Cost(tuple(min(a, b) for a, b in zip(drawn, whole, strict=True)))


def _sampled(order: int, rate: float, cost: Callable[[int], float], factor: float) -> float:
    """1/(α-1) · log Σ_j C(α,j) (1-q)^(α-j) q^j exp((j-1)·cost(j)), terms from the third on by `factor`."""
    if not 0 <= rate <= 1:
        raise ValueError("sampling_rate is 0 to 1")
    if rate == 0:
        return 0.0
    if rate == 1:
        return cost(order) * _ROUNDING
    terms = [
        _log_binomial(order, j)
        + (order - j) * log1p(-rate)
        + j * log(rate)
        + (j - 1) * cost(j) * (j > 1)
        + (log(factor) if j > 2 else 0.0)
        for j in range(order + 1)
    ]
    return max(0.0, _log_sum(terms) + 1e-12) / (order - 1) * _ROUNDING


def _log_binomial(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def _log_sum(terms: Sequence[float]) -> float:
    top = max(terms)
    return top + log(sum(exp(term - top) for term in terms))


def discrete_gaussian_rho(sensitivity: float, variance: float) -> float:
    """Return ρ of one discrete Gaussian of parameter `variance` on integers (CKS 2020, Theorem 4).

    Args:
        sensitivity: L2, steps.
        variance: steps².
    """
    return sensitivity**2 / (2 * variance)


def sum_of_gaussians_rho(sensitivity: float, variance: float, count: int, elements: int) -> float:
    """Return ρ of the sum of `count` discrete Gaussians, of `variance` each, on `elements` integers.

    The sum is not itself a discrete Gaussian (Kairouz, Liu, Steinke 2021, Theorem 1): ρ = ε²/2 with
    ε = min(√(Δ²/(nσ²) + τd/2), Δ/(√n σ) + τ√d), τ = 10·Σ_{k<n} exp(-2π²σ²k/(k+1)).

    Args:
        sensitivity: Δ, L2, steps.
        variance: σ² of each, at least 1/4 steps².
        count: n, of those that are honest and in the sum.
        elements: d.
    """
    if variance < 0.25 or count < 1 or elements < 1:
        raise ValueError("variance under 1/4, or no noise")
    gap = _gap(variance, count)
    whole = sensitivity / sqrt(count * variance)
    least = min(sqrt(whole**2 + gap * elements / 2), whole + gap * sqrt(elements))
    return least**2 / 2 * _ROUNDING


def _gap(variance: float, count: int) -> float:
    """τ: how far the sum is from a discrete Gaussian."""
    pi2 = 9.8696044
    return 10 * sum(exp(-2 * pi2 * variance * k / (k + 1)) for k in range(1, count))
