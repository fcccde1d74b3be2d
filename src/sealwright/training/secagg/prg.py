"""Masks: AES-256-CTR under a seed, read as little-endian u32. Spec: docs/spec/secure-aggregation.md, Round."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from sealwright.training.secagg.fixed import Residues

BLOCK = 1 << 16  # numbers: accumulator, stream and zeros stay in the cache together


@dataclass(frozen=True, slots=True)
class Mask:
    """A seed (32 bytes), and whether its stream is added or taken away."""

    seed: bytes
    add: bool


def apply_masks(residues: Residues, masks: Sequence[Mask], *, threads: int = 1) -> None:
    """Add the streams of `masks` to `residues`, in place, mod 2^32.

    Args:
        threads: parts of the residues that are worked on at the same time.
    """
    if threads <= 1 or residues.size < 2 * BLOCK:
        _apply(residues, masks, first=0)
        return
    # A stream is entered at a multiple of 16 bytes, so at a multiple of 4 numbers.
    size = -(-residues.size // (threads * BLOCK)) * BLOCK
    parts = [(residues[start : start + size], start) for start in range(0, residues.size, size)]
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(_apply, part, masks, first=start) for part, start in parts]:
            done.result()


def _apply(residues: Residues, masks: Sequence[Mask], *, first: int) -> None:
    """Blocks outside, masks inside: each block of the residues is read and written once."""
    counter = (first // 4).to_bytes(16, "big")
    streams = [(Cipher(AES256(mask.seed), CTR(counter)).encryptor(), mask.add) for mask in masks]
    size = min(BLOCK, residues.size)
    zeros, room = bytes(4 * size), bytearray(4 * size + 15)
    stream: NDArray[np.uint32] = np.frombuffer(room, dtype="<u4", count=size)
    for start in range(0, residues.size, size):
        block = residues[start : start + size]
        zero, used = (
            (zeros, stream) if block.size == size else (zeros[: 4 * block.size], stream[: block.size])
        )
        for encryptor, add in streams:
            encryptor.update_into(zero, room)
            if add:
                np.add(block, used, out=block)
            else:
                np.subtract(block, used, out=block)
    room[:] = bytes(len(room))
