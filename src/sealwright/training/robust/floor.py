"""Sparse updates: an index that too few workers touched is not released. Spec: docs/spec/privacy.md, Floor.

A run specification of 2·m elements carries m numbers and, behind them, m indicators: 1 where this worker contributes.
Indicators are added as they stand, one step each, so their sums are counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealwright.errors import MessageFormatError, SettingsError, VerificationError
from sealwright.training.secagg.fixed import Encoder, Residues, Sum, encode_update
from sealwright.training.secagg.spec import RunSpec

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparse:
    """What a floor leaves of a sum."""

    mean: NDArray[np.float32]  # by the number of contributors; 0 where withheld
    released: Bools


def sparse_encoder(contributes: Bools, *, inner: Encoder = encode_update) -> Encoder:
    """Return what a worker's `mask` takes as `encode`, for updates of m numbers in a run of 2·m elements.

    Args:
        contributes: one for each number; where false, the number is sent as zero.
        inner: encodes numbers. The weight is 1, so that counts count workers.
    """

    def encode(update: NDArray[Any], weight: int, spec: RunSpec, out: Residues) -> None:
        half = _half(spec)
        values = np.asarray(update)
        if values.shape != (half,) or contributes.shape != (half,) or contributes.dtype != np.bool_:
            raise MessageFormatError(
                f"an update or indicators of another length than {half}", code="update-length", stage="floor"
            )
        if values.dtype.kind not in "fiu":
            raise MessageFormatError("numbers of no real type", code="update-out-of-range", stage="floor")
        wide = np.zeros(spec.elements, dtype=values.dtype)
        wide[:half] = np.where(contributes, values, 0)
        inner(wide, weight, spec, out)
        out[half:-1] = contributes

    return encode


def counts(total: Sum, spec: RunSpec) -> NDArray[np.int32]:
    """Return how many workers contributed to each number.

    Raises:
        VerificationError: `floor-counts`: a count that so many workers cannot give.
    """
    found = total.total[_half(spec) :]
    if int(found.min()) < 0 or int(found.max()) > total.weight:
        raise VerificationError(
            "a number of contributors under 0 or over the number of workers: one of them sent nonsense",
            code="floor-counts",
            stage="floor",
        )
    return found


def release(total: Sum, spec: RunSpec, floor: int) -> Sparse:
    """Return means of the numbers that at least `floor` workers contributed to, and nothing of the others.

    Inside a TEE. In mode `masked` the coordinator has the sums already: there workers first agree on `allowed`.

    Raises:
        SettingsError: `floor-spec`. VerificationError: `floor-counts`.
    """
    _check_floor(floor)
    found = counts(total, spec)
    released = found >= floor
    sums = np.where(released, total.total[: found.size], 0)
    mean = (sums / (np.maximum(found, 1) * float(total.scale))).astype(np.float32)
    return Sparse(mean=mean, released=released)


def allowed(total: Sum, spec: RunSpec, floor: int) -> Bools:
    """Return the numbers that workers may send in a second round, after one that carried indicators alone.

    Whoever drops out between the two may be a contributor: as many are added to the floor as may drop out.
    The second round's survivors have to be among the first's.

    Raises:
        SettingsError: `floor-spec`. VerificationError: `floor-counts`.
    """
    _check_floor(floor)
    return counts(total, spec) >= floor + total.weight - spec.min_survivors


def _half(spec: RunSpec) -> int:
    if spec.elements % 2 or spec.max_weight != 1:
        raise _unfit("a floor needs an even number of elements, and max_weight 1")
    return spec.elements // 2


def _check_floor(floor: int) -> None:
    if floor < 2:
        raise _unfit("a floor under 2 hides nobody")


def _unfit(what: str) -> SettingsError:
    return SettingsError(what, code="floor-spec", stage="floor")
