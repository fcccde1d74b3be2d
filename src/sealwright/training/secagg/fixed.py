"""Numbers of an update as residues mod 2^32, and the sum back. Nothing wraps. Spec: secure-aggregation.md, Numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealwright.errors import MessageFormatError, VerificationError
from sealwright.training.secagg.spec import RunSpec

Residues = NDArray[np.uint32]
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


def encode_update(update: NDArray[Any], weight: int, spec: RunSpec) -> Residues:
    """Return `weight` times the update in fixed point, mod 2^32, and the weight behind it.

    Args:
        update: one dimension, `spec.elements` floats within ±clip.
        weight: 1 to `spec.max_weight`.

    Raises:
        MessageFormatError: `update-length`, `update-out-of-range`.
    """
    if update.shape != (spec.elements,):
        raise MessageFormatError(
            f"an update of shape {update.shape} where {spec.elements} numbers are wanted",
            code="update-length",
            stage="encode",
        )
    if type(weight) is not int or not 1 <= weight <= spec.max_weight:
        raise _out_of_range(f"a weight outside 1 to {spec.max_weight}")
    out = np.empty(spec.elements + 1, dtype=np.uint32)
    for start in range(0, spec.elements, BLOCK):
        _encode(
            update[start : start + BLOCK], weight, spec, out[start : start + BLOCK][: spec.elements - start]
        )
    out[-1] = weight
    return out


def _encode(part: NDArray[Any], weight: int, spec: RunSpec, out: Residues) -> None:
    numbers = part.astype(np.float64)
    # NaN is not <= anything, so it is refused here too.
    if not bool(np.all(np.abs(numbers) <= float(spec.clip_value))):
        raise _out_of_range(f"a number outside ±{spec.clip}, or not finite")
    numbers *= spec.scale
    np.rint(numbers, out=numbers)
    numbers *= weight
    out[:] = numbers.astype(np.int64).astype(np.uint32)


def decode_sum(residues: Residues, spec: RunSpec) -> Sum:
    """Return the sum that residues stand for.

    Raises:
        VerificationError: `sum-implausible`: a weight that no roster can have.
    """
    weight = int(residues[-1])
    if not 1 <= weight <= spec.max_roster * spec.max_weight:
        raise VerificationError(
            "the sum has an impossible weight: masks are left in it, or a worker sent nonsense",
            code="sum-implausible",
            stage="sum",
        )
    return Sum(total=residues[:-1].view(np.int32), weight=weight, scale=spec.scale)


def _out_of_range(what: str) -> MessageFormatError:
    return MessageFormatError(
        f"{what}: clip the update, or make another run", code="update-out-of-range", stage="encode"
    )
