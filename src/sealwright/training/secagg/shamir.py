"""Shamir's secret sharing over GF(2^256 + 297). Spec: docs/spec/secure-aggregation.md, Round.

Python's integers are not constant-time: what is shared lives for one round, inside one process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final

PRIME: Final = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(
    secret: bytes, threshold: int, points: Sequence[int], random: Callable[[int], bytes]
) -> list[bytes]:
    """Return a share (33 bytes) of `secret` for each point; `threshold` of them give it back, fewer say nothing.

    Args:
        secret: 32 bytes.
        points: distinct, from 1.
        random: of cryptographic quality.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes")
    if not 1 <= threshold <= len(points) or len(set(points)) != len(points) or min(points) < 1:
        raise ValueError("points are distinct, from 1, and no fewer than the threshold")
    coefficients = [_number(random) for _ in range(threshold - 1)] + [int.from_bytes(secret, "big")]
    return [_at(coefficients, point).to_bytes(SHARE_BYTES, "big") for point in points]


def combine(shares: Mapping[int, bytes]) -> bytes | None:
    """Return the secret that shares (by point) give; None where they cannot be shares of a 32-byte secret.

    Whoever combines checks the secret against a commitment: wrong shares give another secret.
    """
    if not all(len(share) == SHARE_BYTES for share in shares.values()):
        return None
    numbers = [int.from_bytes(share, "big") for share in shares.values()]
    if any(number >= PRIME for number in numbers):
        return None
    weights = lagrange(tuple(shares))
    total = sum(weight * number for weight, number in zip(weights, numbers, strict=True)) % PRIME
    return None if total >> (8 * SECRET_BYTES) else total.to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=1024)
def lagrange(points: tuple[int, ...]) -> tuple[int, ...]:
    """Return the weights at zero of a polynomial through these points."""
    weights = []
    for one in points:
        above = below = 1
        for other in points:
            if other != one:
                above = above * other % PRIME
                below = below * (other - one) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)


def _at(coefficients: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in coefficients:
        value = (value * point + coefficient) % PRIME
    return value


def _number(random: Callable[[int], bytes]) -> int:
    """Return a number below the prime, each as likely as any other to 2^-127."""
    return int.from_bytes(random(48), "big") % PRIME
