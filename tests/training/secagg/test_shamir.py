"""Secret sharing: any threshold of shares gives the secret, fewer say nothing, and the prime is one."""

from __future__ import annotations

import os
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealwright.training.secagg.shamir import PRIME, combine, lagrange, split


def test_the_prime_is_one() -> None:
    # Strong pseudoprime test to 64 bases: of a fixed number, no chance that matters.
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 66):
        power = pow(base, odd, PRIME)
        passed = power == 1
        for _ in range(twos):
            passed = passed or power == PRIME - 1
            power = power * power % PRIME
        assert passed
    assert PRIME > 1 << 256


@settings(max_examples=100, deadline=None)
@given(
    secret=st.binary(min_size=32, max_size=32),
    points=st.sets(st.integers(1, 4096), min_size=2, max_size=12),
    data=st.data(),
)
def test_any_threshold_of_shares_gives_the_secret(
    secret: bytes, points: set[int], data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(1, len(points)))
    order = sorted(points)
    shares = dict(zip(order, split(secret, threshold, order, os.urandom), strict=True))
    chosen = data.draw(st.lists(st.sampled_from(order), min_size=threshold, max_size=threshold, unique=True))
    assert combine({point: shares[point] for point in chosen}) == secret


def test_fewer_shares_fit_every_secret() -> None:
    """With one share too few, any secret is still possible: there is a polynomial for each."""
    shares = dict(zip((1, 2, 3), split(bytes(32), 3, (1, 2, 3), os.urandom), strict=True))
    known = {point: int.from_bytes(shares[point], "big") for point in (1, 2)}
    for other in (0, 1, 12345):
        weights = lagrange((1, 2, 3))
        third = (other - weights[0] * known[1] - weights[1] * known[2]) * pow(weights[2], -1, PRIME) % PRIME
        made = {**{point: shares[point] for point in (1, 2)}, 3: third.to_bytes(33, "big")}
        assert combine(made) == other.to_bytes(32, "big")


def test_lagrange_against_fractions() -> None:
    points = (1, 4, 9, 200)
    for at, one in enumerate(points):
        exact = Fraction(1)
        for other in points:
            if other != one:
                exact *= Fraction(other, other - one)
        assert lagrange(points)[at] == exact.numerator * pow(exact.denominator, -1, PRIME) % PRIME


def test_what_is_no_share_gives_nothing() -> None:
    assert combine({1: b"short"}) is None
    assert combine({1: b"\xff" * 33}) is None
    assert combine({1: PRIME.to_bytes(33, "big")}) is None
    assert combine({1: (PRIME - 1).to_bytes(33, "big")}) is None  # in the field, and no 32-byte secret
    for bad in (
        (b"x", 1, (1,)),
        (bytes(32), 0, (1,)),
        (bytes(32), 3, (1, 2)),
        (bytes(32), 1, (0,)),
        (bytes(32), 2, (1, 1)),
    ):
        with pytest.raises(ValueError, match=r"secret|points"):
            split(*bad, os.urandom)
