"""The order of rows: from a seed, the same on every machine and with every numpy. Spec: docs/spec/training-data.md, Order."""

from __future__ import annotations

from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from sealwright.crypto.encoding import digest

LABEL = "sealwright/data-order/v1"


def permutation(length: int, *, seed: int, epoch: int, what: str, block: int = 0) -> NDArray[np.int64]:
    """Return a permutation of range(length): the stable order of `length` 64-bit numbers of an AES-256-CTR stream.

    Args:
        what: what is ordered: a shard's name, or empty for shards themselves.
        block: which part of it.
    """
    key = digest(LABEL, seed, epoch, what, block)
    stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(8 * length))
    return np.argsort(np.frombuffer(stream, dtype="<u8"), kind="stable").astype(np.int64)


def rows_of(values: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return a copy of some rows, which owns its memory."""
    return np.ascontiguousarray(values[rows])
