"""Secret sharing against vectors, an implementation of its own kind (tables), and by property."""

from __future__ import annotations

import json
import os
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealwright.crypto.shamir import combine, inverse, multiply, split

CASES = [
    case
    for case in json.loads((Path(__file__).parents[1] / "vectors" / "custody.json").read_text())
    if case["kind"] == "shamir"
]


def tables() -> tuple[list[int], list[int]]:
    """Return powers and logarithms of 3, the way that table implementations have them."""
    powers, logs, value = [], [0] * 256, 1
    for exponent in range(255):
        powers.append(value)
        logs[value] = exponent
        value ^= value << 1
        if value & 0x100:
            value ^= 0x11B
    return powers, logs


def test_the_field_is_that_of_aes() -> None:
    powers, logs = tables()
    for a in range(256):
        for b in range(256):
            expected = powers[(logs[a] + logs[b]) % 255] if a and b else 0
            assert multiply(a, b) == expected
    assert multiply(0x57, 0x83) == 0xC1  # FIPS 197, 4.2
    assert [a for a in range(1, 256) if multiply(a, inverse(a)) != 1] == []
    assert inverse(0) == 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_vector(case: dict[str, Any]) -> None:
    rows = iter(bytes.fromhex(row) for row in case["coefficients"])
    made = split(
        bytes.fromhex(case["secret"]),
        threshold=case["threshold"],
        total=case["total"],
        random=lambda size: next(rows),
    )
    assert {str(x): share.hex() for x, share in made.items()} == case["shares"]
    assert combine({x: made[x] for x in case["with"]}).hex() == case["secret"]


@given(st.binary(min_size=1, max_size=40), st.integers(2, 6), st.integers(0, 3), st.data())
def test_any_threshold_of_them_give_it_back(
    secret: bytes, threshold: int, more: int, data: st.DataObject
) -> None:
    shares = split(secret, threshold=threshold, total=threshold + more, random=os.urandom)
    picked = data.draw(st.permutations(sorted(shares)))[:threshold]
    assert combine({x: shares[x] for x in picked}) == secret


def test_all_choices_of_three_of_five() -> None:
    secret = os.urandom(32)
    shares = split(secret, threshold=3, total=5, random=os.urandom)
    for picked in combinations(shares, 3):
        assert combine({x: shares[x] for x in picked}) == secret


def test_one_fewer_fits_every_secret() -> None:
    """Perfect secrecy, counted: for each value of a byte there is exactly one polynomial through a share."""
    shares = {
        split(b"\x2a", threshold=2, total=2, random=lambda _, c=c: bytes([c]))[1][0] for c in range(256)
    }
    assert len(shares) == 256


def test_a_changed_share_gives_another_secret() -> None:
    secret = os.urandom(32)
    shares = split(secret, threshold=2, total=3, random=os.urandom)
    shares[2][7] ^= 1
    assert combine({1: shares[1], 2: shares[2]}) != secret


@pytest.mark.parametrize(("threshold", "total"), [(1, 3), (0, 0), (4, 3), (2, 256)])
def test_numbers_that_cannot_be(threshold: int, total: int) -> None:
    with pytest.raises(ValueError, match="threshold"):
        split(b"x", threshold=threshold, total=total, random=os.urandom)


@pytest.mark.parametrize(
    "shares", [{}, {1: b"a"}, {1: b"a", 2: b"bc"}, {0: b"a", 1: b"b"}, {1: b"a", 256: b"b"}]
)
def test_shares_that_cannot_be(shares: dict[int, bytes]) -> None:
    with pytest.raises(ValueError, match="shares"):
        combine(shares)
