"""Running a plan again: the same weights' digest on the same data, or exactly what differs.

Spec: docs/spec/checkpoint.md, Reruns.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealwright.crypto.encoding import digest
from sealwright.errors import VerificationError
from sealwright.protocol.checkpoint import CheckpointStatement
from sealwright.protocol.plan import Plan
from sealwright.training.checkpoint.environment import Environment, differences
from sealwright.training.code import code_digest
from sealwright.training.safetensors import Tensors, encode_safetensors

Batch = Mapping[str, NDArray[Any]]
Batches = Callable[[int], Iterable[Batch]]
"""The batches of an epoch, from 1: a `Loader` for each."""
Trainer = Callable[[Plan, Batches, "Tensors | None"], Tensors]
"""Weights of a plan and its data, from other weights or from the seed. It depends on nothing else."""


def softmax(plan: Plan, batches: Batches, start: Tensors | None) -> Tensors:
    """Return the weights of multinomial logistic regression by gradient descent, in float64, on columns `x` and `y`.

    Parameters: `features`, `classes` (integers), `rate` (decimal).
    """
    features, classes = int(plan.parameters["features"]), int(plan.parameters["classes"])
    rate = float(plan.parameters["rate"])
    weights = seeded((features + 1, classes), seed=plan.seed) if start is None else np.array(start["weights"])
    for epoch in range(1, plan.epochs + 1):
        for batch in batches(epoch):
            x = np.column_stack([batch["x"].astype(np.float64), np.ones(len(batch["x"]))])
            scores = x @ weights
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
            scores[np.arange(len(x)), batch["y"].astype(np.int64)] -= 1
            weights = weights - rate * (x.T @ scores) / len(x)
    return {"weights": weights}


def seeded(shape: tuple[int, ...], *, seed: int, scale: float = 0.01) -> NDArray[np.float64]:
    """Return numbers in ±`scale`, uniform and the same on every machine: from an expanded SHA-256, not a library's generator."""
    count = int(np.prod(shape))
    raw = hashlib.shake_256(digest("sealwright/initial-weights/v1", seed)).digest(8 * count)
    unit = (np.frombuffer(raw, dtype="<u8") >> np.uint64(11)).astype(np.float64) / float(1 << 53)
    return ((2 * unit - 1) * scale).reshape(shape)


TRAINERS: Mapping[str, Trainer] = {"sealwright.training.rerun:softmax": softmax}


def own_code() -> bytes:
    """Return the digest of the trainers in this file: what a plan for them names as `code`."""
    return code_digest({"rerun.py": Path(__file__).read_bytes()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """What came out, beside what was signed."""

    weights: bytes  # SHA-256 of the file, 32 bytes
    tensors: Tensors
    same: bool
    differs: tuple[str, ...]  # environment first, then tensors; empty where `same` and nothing else differs


def train(
    plan: Plan,
    batches: Batches,
    *,
    code: bytes,
    start: Tensors | None = None,
    trainers: Mapping[str, Trainer] = TRAINERS,
) -> Tensors:
    """Return the weights of a plan.

    Args:
        code: digest of the code that `trainers` are: it has to be the plan's.

    Raises:
        VerificationError: `trainer-unknown`, `trainer-code`, stage `rerun`.
    """
    if plan.trainer not in trainers:
        raise VerificationError(
            f"there is no trainer {plan.trainer} here", code="trainer-unknown", stage="rerun"
        )
    if not hmac.compare_digest(plan.code, code):
        raise VerificationError(
            "the trainer's code is not the one that the plan names", code="trainer-code", stage="rerun"
        )
    return trainers[plan.trainer](plan, batches, start)


def rerun(
    statement: CheckpointStatement,
    plan: Plan,
    batches: Batches,
    *,
    code: bytes,
    signed_in: Environment,
    here: Environment,
    start: Tensors | None = None,
    original: Tensors | None = None,
    trainers: Mapping[str, Trainer] = TRAINERS,
) -> Rerun:
    """Train a checkpoint's plan again, and compare. Not the same is a result, not an error.

    Args:
        statement: verified; it names `plan`.
        signed_in, here: the environments of the checkpoint, and of this process.
        original: the checkpoint's tensors, to say how far others are from them.

    Raises:
        VerificationError: `plan-mismatch`: the statement is of another plan; and as `train`.
    """
    said = statement.predicate
    if said.plan != plan.digest() or said.environment != signed_in.digest():
        raise VerificationError(
            "the statement is of another plan or environment", code="plan-mismatch", stage="rerun"
        )
    tensors = train(plan, batches, code=code, start=start, trainers=trainers)
    weights = hashlib.sha256(encode_safetensors(tensors)).digest()
    same = hmac.compare_digest(weights, statement.weights)
    found = differences(signed_in, here)
    if not same:
        found += _tensors_differ(original, tensors) if original is not None else ["weights: another digest"]
    return Rerun(weights=weights, tensors=tensors, same=same, differs=tuple(found))


def statements_differ(one: CheckpointStatement, other: CheckpointStatement) -> list[str]:
    """Return the members of two statements that differ, a line each; what is new in every statement is left out."""
    left, right = one.to_json(), other.to_json()
    lines = [] if one.weights == other.weights else ["subject: other weights"]
    skipped = {
        "created",
        "log",
        "artefact",
        "model_key",
        "signer",
        "workers",
        "broker_keys",
        "lineage",
    }
    for name in sorted({*left["predicate"], *right["predicate"]} - skipped):
        before, after = left["predicate"].get(name), right["predicate"].get(name)
        if before != after:
            lines.append(f"{name}: {before} -> {after}")
    return lines


def _tensors_differ(original: Tensors, made: Tensors) -> list[str]:
    lines = []
    for name in sorted({*original, *made}):
        before, after = original.get(name), made.get(name)
        if before is None or after is None:
            lines.append(f"tensor {name}: {'new' if before is None else 'absent'}")
        elif before.shape != after.shape or before.dtype != after.dtype:
            lines.append(f"tensor {name}: {before.dtype}{before.shape} -> {after.dtype}{after.shape}")
        elif (count := int((before != after).sum())) > 0:
            apart = float(np.abs(before.astype(np.float64) - after.astype(np.float64)).max())
            lines.append(f"tensor {name}: {count} of {before.size} numbers differ, by {apart:.3g} at most")
    return lines
