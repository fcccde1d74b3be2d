"""Uniform and biased bits, exact, from a source of bytes. Spec: docs/spec/privacy.md, Noise."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

Source = Callable[[int], bytes]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# exp of float64 is off by a few units in the last place, and its argument by 2^-50 of at most 2^7: far under this.
_SLACK = 2.0**-40
_BITS = 53


def system_source() -> Source:
    """Return AES-256-CTR under a fresh seed from the operating system: fast, and never the same twice."""
    return stream_source(os.urandom(32))


def stream_source(seed: bytes) -> Source:
    """Return AES-256-CTR under `seed` (32 bytes). A seed that anybody knows gives no privacy: tests only."""
    encryptor = Cipher(AES256(seed), CTR(bytes(16))).encryptor()
    return lambda count: encryptor.update(bytes(count))


def words(source: Source, count: int) -> NDArray[np.uint64]:
    """Return `count` uniform 64-bit numbers."""
    return np.frombuffer(source(8 * count), dtype="<u8")


def below(source: Source, bound: int, count: int) -> Ints:
    """Return `count` numbers, uniform in 0 to `bound` - 1 (at most 2^62). Those outside are drawn again: no bias."""
    if not 1 <= bound <= 1 << 62:
        raise ValueError("bound outside 1 to 2^62")
    mask = np.uint64((1 << (bound - 1).bit_length()) - 1)
    out = (words(source, count) & mask).astype(np.int64)
    while (wrong := np.flatnonzero(out >= bound)).size:
        out[wrong] = (words(source, wrong.size) & mask).astype(np.int64)
    return out


def square_coins(
    source: Source, sizes: Ints, exact: Callable[[int], Fraction], *, shift: float, scale: float
) -> Bools:
    """Return coins, each true with probability exp(-γ), exactly.

    A uniform real number of which more bits are drawn as they are needed is compared with exp(-γ). Where float64
    cannot tell which is larger (one in 2^38), rational arithmetic does.

    Args:
        sizes: not negative.
        exact: γ of a size.
        shift, scale: γ is about (size - `shift`)² · `scale`.
    """
    gamma = np.square(sizes.astype(np.float64) - shift) * scale
    return _compare(source, gamma, lambda index: exact(int(sizes[index])))


def linear_coins(source: Source, numerators: Ints, denominator: int) -> Bools:
    """Return coins, each true with probability exp(-numerator / denominator), exactly."""
    gamma = numerators / denominator
    return _compare(source, gamma, lambda index: Fraction(int(numerators[index]), denominator))


def _compare(source: Source, gamma: NDArray[np.float64], exact: Callable[[int], Fraction]) -> Bools:
    bits = words(source, gamma.size) >> np.uint64(64 - _BITS)
    low = bits.astype(np.float64) * 2.0**-_BITS
    chance = np.exp(-gamma)
    coins: Bools = low < chance
    # Unclear also where both are tiny: exp(-γ) of float64 is then no measure of the exact one.
    unclear = np.flatnonzero(np.abs(low - chance) <= _SLACK)
    for index in unclear:
        coins[index] = _slow_compare(source, int(bits[index]), exact(int(index)))
    return coins


def _slow_compare(source: Source, bits: int, gamma: Fraction) -> bool:
    """Whether a uniform number that begins with `bits` is under exp(-γ): ever more bits of both."""
    known = _BITS
    while True:
        low, high = exp_bounds(gamma, known + 16)
        if Fraction(bits + 1, 1 << known) <= low:
            return True
        if Fraction(bits, 1 << known) >= high:
            return False
        bits = bits << 64 | int.from_bytes(source(8), "little")
        known += 64


def exp_bounds(gamma: Fraction, bits: int) -> tuple[Fraction, Fraction]:
    """Return rational numbers under and over exp(-γ), closer than about 2^-`bits`.

    γ is halved until it is under 1; there the series alternates with falling terms, so two neighbouring partial
    sums enclose it. Squaring undoes the halving. All in fixed point, rounded outwards.
    """
    halvings = max(0, (gamma.numerator // gamma.denominator).bit_length() + 1)
    one = 1 << (bits + 2 * halvings + 16)
    small = gamma / (1 << halvings)
    low, high = _series(small, one)
    for _ in range(halvings):
        low, high = low * low // one, -(-high * high // one)
    return Fraction(low, one), Fraction(high, one)


def _series(x: Fraction, one: int) -> tuple[int, int]:
    total, term, index = Fraction(0), Fraction(1), 0
    while term * one >= 1 or index % 2:  # ends after an even count: the sum is a lower bound
        total += -term if index % 2 else term
        index += 1
        term = _rounded(term * x / index, one)
    low = (total.numerator * one) // total.denominator - index - 1
    return max(low, 0), min(low + 2 * index + 4, one)


def _rounded(value: Fraction, one: int) -> Fraction:
    return Fraction(value.numerator * one // value.denominator, one)
