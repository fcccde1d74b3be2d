"""Means that a few hostile updates cannot move far. Only inside the TEE, in mode `tee`. Spec: privacy.md, Robustness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealwright.errors import MessageFormatError, VerificationError

Floats = NDArray[np.float64]
MAX_UPDATES = 4096
_BLOCK = 1 << 16  # numbers of each update that are sorted at a time


def stacked(updates: Sequence[NDArray[Any]]) -> Floats:
    """Return the updates as rows, checked: as many numbers in each, all finite.

    Raises:
        MessageFormatError: `update-length`, `update-out-of-range`.
        VerificationError: `robust-too-few`: none, or more than 4096.
    """
    if not 1 <= len(updates) <= MAX_UPDATES:
        raise _too_few(f"{len(updates)} updates where 1 to {MAX_UPDATES} are wanted")
    rows = [np.asarray(update) for update in updates]
    if any(row.ndim != 1 or row.shape != rows[0].shape or not row.size for row in rows):
        raise MessageFormatError("updates of different lengths", code="update-length", stage="robust")
    if any(row.dtype.kind not in "fiu" or not np.all(np.isfinite(row)) for row in rows):
        raise MessageFormatError(
            "an update with a number that is not finite", code="update-out-of-range", stage="robust"
        )
    return np.stack(rows).astype(np.float64)


def clip_norms(updates: Sequence[NDArray[Any]], bound: float) -> list[Floats]:
    """Return the updates, each scaled down to an L2 norm of at most `bound`.

    Raises:
        MessageFormatError: see `stacked`. VerificationError: `robust-too-few`.
    """
    if not (np.isfinite(bound) and bound > 0):
        raise ValueError("bound is finite and over 0")
    return [_clipped(row, bound) for row in stacked(updates)]


def median(updates: Sequence[NDArray[Any]]) -> Floats:
    """Return the median of each number: it lies among honest values while hostile updates are under half.

    Raises:
        As `stacked`; `robust-too-few` under 3 updates.
    """
    rows = _at_least(updates, 3)
    return _by_block(rows, lambda part: np.median(part, axis=0))


def trimmed_mean(updates: Sequence[NDArray[Any]], trim: int) -> Floats:
    """Return the mean of each number without its `trim` largest and `trim` smallest values.

    Args:
        trim: how many updates may be hostile.

    Raises:
        As `stacked`; `robust-too-few` unless more than 2 · `trim` updates are there.
    """
    if trim < 0:
        raise ValueError("trim is not negative")
    rows = _at_least(updates, 2 * trim + 1)
    return _by_block(rows, lambda part: np.sort(part, axis=0)[trim : len(rows) - trim].mean(axis=0))


def multi_krum(updates: Sequence[NDArray[Any]], hostile: int, keep: int) -> Floats:
    """Return the mean of the `keep` updates that lie nearest to their neighbours (Blanchard et al. 2017).

    Args:
        hostile: how many updates may be hostile.
        keep: 1 to count - `hostile`.

    Raises:
        As `stacked`; `robust-too-few` unless at least 2 · `hostile` + 3 updates are there.
    """
    if hostile < 0:
        raise ValueError("hostile is not negative")
    rows = _at_least(updates, 2 * hostile + 3)
    if not 1 <= keep <= len(rows) - hostile:
        raise ValueError("keep is 1 to count - hostile")
    distances = np.array([[float(np.sum((a - b) ** 2)) for b in rows] for a in rows])
    near = np.sort(distances, axis=1)[:, 1 : len(rows) - hostile - 1]  # without itself
    best = np.argsort(near.sum(axis=1), kind="stable")[:keep]
    chosen: Floats = rows[best].mean(axis=0)
    return chosen


def _clipped(row: Floats, bound: float) -> Floats:
    largest = float(np.abs(row).max())
    if not largest:
        return row
    length = float(np.linalg.norm(row / largest))
    clipped = row * min(1.0, bound / largest / length)
    while float(np.linalg.norm(clipped)) > bound:  # float64 rounds up too
        clipped *= 1 - 2.0**-50
    return clipped


def _by_block(rows: Floats, mean: Any) -> Floats:
    out = np.empty(rows.shape[1])
    for start in range(0, out.size, _BLOCK):
        out[start : start + _BLOCK] = mean(rows[:, start : start + _BLOCK])
    return out


def _at_least(updates: Sequence[NDArray[Any]], count: int) -> Floats:
    rows = stacked(updates)
    if len(rows) < count:
        raise _too_few(f"{len(rows)} updates where {count} are needed")
    return rows


def _too_few(what: str) -> VerificationError:
    return VerificationError(what, code="robust-too-few", stage="robust")
