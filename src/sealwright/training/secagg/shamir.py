"""Shamir's secret sharing over GF(2^256 + 297), and decoding with wrong shares. Spec: docs/spec/secure-aggregation.md.

Python's integers are not constant-time: what is shared lives for one round, inside one process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import zip_longest
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
    values = [element(share) for share in shares.values()]
    if None in values:
        return None
    weights = lagrange(tuple(shares))
    return _secret(sum(w * value for w, value in zip(weights, values, strict=True) if value) % PRIME)


def correct(shares: Mapping[int, bytes], threshold: int) -> tuple[bytes, frozenset[int]] | None:
    """Return the secret, and the points whose shares do not fit; None: more than (shares − threshold) / 2 are wrong.

    Gao's decoder of Reed-Solomon codes: with g through all shares and m zero at all points, the extended Euclidean
    algorithm on (m, g), stopped half way, gives f·v and v, where v is zero at the wrong points.
    """
    values = {point: value for point, share in shares.items() if (value := element(share)) is not None}
    if len(values) < threshold:
        return None
    points = tuple(values)
    zero, through = _interpolated(points, tuple(values.values()))
    before, now, v_before, v_now = zero, through, [], [1]
    while 2 * len(now) > len(points) + threshold + 1:  # degree at least (points + threshold) / 2
        quotient, rest = _divided(before, now)
        before, now = now, rest
        v_before, v_now = v_now, _minus(v_before, _times(quotient, v_now))
    found, rest = _divided(now, v_now)
    secret = _secret(found[0] if found else 0)
    if rest or len(found) > threshold or secret is None:
        return None
    fitting = {point for point, value in values.items() if _at(found[::-1], point) == value}
    return secret, frozenset(shares) - fitting


def element(share: bytes) -> int | None:
    """Return the number of the field that a share is, or None."""
    value = int.from_bytes(share, "big")
    return value if len(share) == SHARE_BYTES and value < PRIME else None


def _secret(value: int) -> bytes | None:
    return None if value >> (8 * SECRET_BYTES) else value.to_bytes(SECRET_BYTES, "big")


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


# Polynomials: coefficients from the constant one on, without zeros at the end.


def _interpolated(points: Sequence[int], values: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the polynomial that is zero at `points`, and the one of lowest degree through `values` (Newton's form)."""
    zero, through = [1], list[int]()
    for point, value in zip(points, values, strict=True):
        missing = (value - _at(through[::-1], point)) * pow(_at(zero[::-1], point), -1, PRIME) % PRIME
        through = _minus(through, _times([-missing % PRIME], zero))
        zero = _times(zero, [-point % PRIME, 1])
    return zero, through


def _trimmed(poly: list[int]) -> list[int]:
    while poly and not poly[-1]:
        poly.pop()
    return poly


def _minus(one: list[int], other: list[int]) -> list[int]:
    return _trimmed([(a - b) % PRIME for a, b in zip_longest(one, other, fillvalue=0)])


def _times(one: list[int], other: list[int]) -> list[int]:
    out = [0] * (len(one) + len(other))
    for at, a in enumerate(one):
        for place, b in enumerate(other):
            out[at + place] += a * b
    return _trimmed([value % PRIME for value in out])


def _divided(one: list[int], by: list[int]) -> tuple[list[int], list[int]]:
    rest, inverse = list(one), pow(by[-1], -1, PRIME)
    quotient = [0] * max(len(one) - len(by) + 1, 0)
    for at in reversed(range(len(quotient))):
        factor = quotient[at] = rest[at + len(by) - 1] * inverse % PRIME
        for place, b in enumerate(by):
            rest[at + place] = (rest[at + place] - factor * b) % PRIME
    return _trimmed(quotient), _trimmed(rest)
