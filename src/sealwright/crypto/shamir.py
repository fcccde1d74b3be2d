"""Shamir's secret sharing, byte by byte over GF(2^8). Spec: docs/spec/root-of-keys.md, Sharing.

It proves nothing of a share: who combines must hold a commitment to each, and to the secret.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

MAX_SHARES = 255
_POLYNOMIAL = 0x11B  # x^8 + x^4 + x^3 + x + 1


def split(
    secret: bytes | bytearray, *, threshold: int, total: int, random: Callable[[int], bytes]
) -> dict[int, bytearray]:
    """Return shares 1 … `total` of `secret`, any `threshold` of which give it back. The caller wipes them.

    Args:
        random: returns that many uniform bytes.

    Raises:
        ValueError: numbers that cannot be (our bug, or an unchecked setting).
    """
    if not 2 <= threshold <= total <= MAX_SHARES or not secret:
        raise ValueError("2 <= threshold <= total <= 255, of a secret that is not empty")
    rows = [secret, *(random(len(secret)) for _ in range(threshold - 1))]
    shares = {}
    for x in range(1, total + 1):
        share = bytearray(len(secret))
        for row in reversed(rows):  # Horner
            for i, coefficient in enumerate(row):
                share[i] = multiply(share[i], x) ^ coefficient
        shares[x] = share
    return shares


def combine(shares: Mapping[int, bytes | bytearray]) -> bytearray:
    """Return the secret of exactly `threshold` shares; of others, something else. The caller wipes it.

    Args:
        shares: by their number, 1 to 255; all of one length.

    Raises:
        ValueError: numbers or lengths that cannot be.
    """
    lengths = {len(share) for share in shares.values()}
    if len(shares) < 2 or len(lengths) != 1 or not all(1 <= x <= MAX_SHARES for x in shares):
        raise ValueError("two or more shares of one length, numbered 1 to 255")
    secret = bytearray(lengths.pop())
    for x, share in shares.items():
        # Public: only the numbers of the shares.
        weight = 1
        for other in shares:
            if other != x:
                weight = multiply(weight, multiply(other, inverse(other ^ x)))
        for i, value in enumerate(share):
            secret[i] ^= multiply(weight, value)
    return secret


def multiply(a: int, b: int) -> int:
    """Return the product in GF(2^8), with the same steps whatever the values are."""
    product = 0
    for bit in range(8):
        product ^= -(b >> bit & 1) & (a << bit)
    for bit in range(14, 7, -1):
        product ^= -(product >> bit & 1) & (_POLYNOMIAL << (bit - 8))
    return product


def inverse(a: int) -> int:
    """Return 1/a in GF(2^8): a^254, with the same steps whatever the value is; 0 for 0."""
    result, power = 1, a
    for _ in range(7):  # 254 = 2 + 4 + … + 128
        power = multiply(power, power)
        result = multiply(result, power)
    return result
