"""Clip an update, round it and add noise, in integers, before any mask. Spec: docs/spec/privacy.md, Noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealwright.errors import MessageFormatError, SettingsError, VerificationError
from sealwright.training.privacy.gaussian import discrete_gaussian
from sealwright.training.privacy.randomness import Ints, Source, system_source, words
from sealwright.training.privacy.spec import NoisePlan
from sealwright.training.secagg.fixed import Encoder, Residues, Sum
from sealwright.training.secagg.spec import RunSpec

_TRIES = 32
_ROUND = 1 << 18


def private_encoder(plan: NoisePlan, *, source: Source | None = None) -> Encoder:
    """Return what a worker's `mask` takes as `encode`: the update clipped, rounded, with its share of the noise.

    It refuses a weight other than 1 and another run specification (`dp-plan`), besides what `bounded` refuses.

    Args:
        source: bytes; the system's, where none is given.
    """

    def encode(update: NDArray[Any], weight: int, spec: RunSpec, out: Residues) -> None:
        if type(weight) is not int or weight != 1 or spec != plan.run:
            raise SettingsError(
                "a weight other than 1, or another run than the noise was planned for",
                code="dp-plan",
                stage="dp",
            )
        encode_private(update, plan, out, source=source)

    return encode


def encode_private(
    update: NDArray[Any], plan: NoisePlan, out: Residues, *, source: Source | None = None
) -> None:
    """Write the update, clipped, rounded and with this worker's share of the noise, mod 2^32, to `out`.

    Args:
        update: one dimension, `run.elements` finite floats. Longer ones than `norm` are scaled down.
        out: `run.elements` + 1 residues.
        source: bytes; the system's, where none is given.

    Raises:
        MessageFormatError: `update-length`, `update-out-of-range`.
    """
    random = source if source is not None else system_source()
    values = bounded(update, plan, random)
    if plan.share_variance:
        values += discrete_gaussian(plan.share_variance, values.size, random)
    out[:-1] = values.astype(np.uint32)  # wraps, as the sum does: what wraps in the end is refused there
    out[-1] = 1


def bounded(update: NDArray[Any], plan: NoisePlan, source: Source) -> Ints:
    """Return the update in steps, its L2 norm at most the plan's bound, counted in integers.

    Raises:
        MessageFormatError: `update-length`, `update-out-of-range`.
    """
    scaled = _clipped(update, plan)
    for _ in range(_TRIES):
        values = _rounded(scaled, source)
        if norm2(values) <= plan.bound2:
            return values
    values = np.trunc(scaled).astype(np.int64)  # towards zero: never longer than before
    while norm2(values) > plan.bound2:  # only where float64 summed the norm a little short
        scaled *= 1 - 2.0**-20
        values = np.trunc(scaled).astype(np.int64)
    return values


def norm2(values: Ints) -> int:
    """Return the exact square of the L2 norm of integers under 2^31. No sum in it wraps for up to 2^29 of them."""
    high, low = values >> 16, values & 0xFFFF
    return (int(high @ high) << 32) + (int(high @ low) << 17) + int(low @ low)


def add_central_noise(total: Sum, plan: NoisePlan, *, source: Source | None = None) -> Sum:
    """Return the sum with the aggregator's noise: what may leave the TEE.

    Raises:
        VerificationError: `sum-implausible`: with the noise it is over what a sum can hold.
    """
    noise = discrete_gaussian(plan.central_variance, total.total.size, source or system_source())
    noisy = total.total.astype(np.int64) + noise
    if int(np.abs(noisy).max()) >= 1 << 31:
        raise VerificationError(
            "the sum with its noise is over 31 bits: repeat the round", code="sum-implausible", stage="dp"
        )
    return Sum(total=noisy.astype(np.int32), weight=total.weight, scale=total.scale)


def _clipped(update: NDArray[Any], plan: NoisePlan) -> NDArray[np.float64]:
    update = np.asarray(update)
    if update.shape != (plan.run.elements,):
        raise MessageFormatError(
            f"an update of shape {update.shape} where {plan.run.elements} numbers are wanted",
            code="update-length",
            stage="dp",
        )
    if update.dtype.kind not in "fiu":
        raise _not_finite()
    scaled = update.astype(np.float64)
    largest = float(np.abs(scaled).max())
    if not np.isfinite(largest):
        raise _not_finite()
    if largest:
        # by the largest number first: squares of numbers near the end of float64 would be infinite
        length = float(np.linalg.norm(scaled / largest))
        factor = min(float(plan.run.scale), float(plan.norm) / largest / length)
        scaled *= factor
    return scaled


def _rounded(scaled: NDArray[np.float64], source: Source) -> Ints:
    """Each number up or down, with its fraction as the chance of up: no bias in the mean."""
    floor = np.floor(scaled)
    out = floor.astype(np.int64)
    for start in range(0, out.size, _ROUND):
        part = slice(start, start + _ROUND)
        coin = (words(source, out[part].size) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        out[part] += coin < scaled[part] - floor[part]
    return out


def _not_finite() -> MessageFormatError:
    return MessageFormatError(
        "an update that is not of finite real numbers", code="update-out-of-range", stage="dp"
    )
