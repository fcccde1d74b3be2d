"""Numbers of an update as residues mod 2^32, and the sum back. Nothing wraps. Spec: secure-aggregation.md, Numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealwright.errors import MessageFormatError, VerificationError
from sealwright.training.secagg.spec import RunSpec

Residues = NDArray[np.uint32]
Encoder = Callable[[NDArray[Any], int, RunSpec, Residues], None]  # writes elements + 1 residues
BLOCK = 1 << 18  # numbers encoded at a time: their float64 copies stay in the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """A weighted sum: `mean` is what training takes."""

    total: NDArray[np.int32]  # scaled
    weight: int
    scale: int

    def mean(self) -> NDArray[np.float32]:
        """Return the weighted mean of the updates."""
        return (self.total * (1.0 / (self.scale * self.weight))).astype(np.float32)


def encode_update(update: NDArray[Any], weight: int, spec: RunSpec, out: Residues) -> None:
    """Write `weight` times the update in fixed point, mod 2^32, and the weight behind it, to `out`.

    Args:
        update: one dimension, `spec.elements` floats within ±clip.
        weight: 1 to `spec.max_weight`.
        out: `spec.elements` + 1 residues.

    Raises:
        MessageFormatError: `update-length`, `update-out-of-range`.
    """
    update = np.asarray(update)  # a subclass can hide numbers from a check: masked arrays do
    if update.dtype.kind not in "fiu":
        raise _out_of_range(f"numbers of type {update.dtype}")
    if update.shape != (spec.elements,):
        raise MessageFormatError(
            f"an update of shape {update.shape} where {spec.elements} numbers are wanted",
            code="update-length",
            stage="encode",
        )
    if type(weight) is not int or not 1 <= weight <= spec.max_weight:
        raise _out_of_range(f"a weight outside 1 to {spec.max_weight}")
    for start in range(0, spec.elements, BLOCK):
        part = update[start : start + BLOCK]
        _encode(part, weight, spec, out[start : start + part.size])
    out[-1] = weight


def _encode(part: NDArray[Any], weight: int, spec: RunSpec, out: Residues) -> None:
    numbers = np.array(part, dtype=np.float64)  # a copy: nobody changes it after the check
    # NaN is not <= anything, so it is refused here too.
    if not bool(np.all(np.abs(numbers) <= float(spec.clip_value))):
        raise _out_of_range(f"a number outside ±{spec.clip}, or not finite")
    numbers *= float(spec.scale)
    np.rint(numbers, out=numbers)
    numbers *= weight
    out[:] = numbers.astype(np.int64).astype(np.uint32)


def decode_sum(residues: Residues, spec: RunSpec, survivors: int) -> Sum:
    """Return the sum that residues stand for.

    Args:
        survivors: how many updates are in it.

    Raises:
        VerificationError: `sum-implausible`: a weight or a number that so many survivors cannot give.
    """
    weight, total = int(residues[-1]), residues[:-1].view(np.int32)
    largest = max(int(total.max()), -int(total.min()))
    if not survivors <= weight <= survivors * spec.max_weight or largest > weight * spec.steps:
        raise VerificationError(
            "the sum is more than its workers can give: masks are left in it, or a worker sent nonsense",
            code="sum-implausible",
            stage="sum",
        )
    return Sum(total=total, weight=weight, scale=spec.scale)


def _out_of_range(what: str) -> MessageFormatError:
    return MessageFormatError(
        f"{what}: clip the update, or make another run", code="update-out-of-range", stage="encode"
    )
