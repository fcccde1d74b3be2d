"""A plan's trainer, round by round: what an agent trains with between two rounds. Spec: docs/spec/training.md, Training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealwright.errors import VerificationError
from sealwright.protocol.plan import Plan
from sealwright.training.agent.model import Weights
from sealwright.training.agent.worker import Trained
from sealwright.training.rerun import Batch, seeded, train
from sealwright.training.safetensors import Tensors

Initial = Callable[[Plan], Tensors]
Evaluate = Callable[[Plan, Tensors, Batch], Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a trainer needs to be used in rounds: where it begins, and how weights are measured."""

    initial: Initial
    evaluate: Evaluate


def softmax_initial(plan: Plan) -> Tensors:
    """Return what `rerun.softmax` begins with."""
    shape = int(plan.parameters["features"]) + 1, int(plan.parameters["classes"])
    return {"weights": seeded(shape, seed=plan.seed)}


def softmax_evaluate(_plan: Plan, tensors: Tensors, batch: Batch) -> Mapping[str, float]:
    """Return mean cross-entropy and accuracy on columns `x` and `y`."""
    x = np.column_stack([batch["x"].astype(np.float64), np.ones(len(batch["x"]))])
    y = batch["y"].astype(np.int64)
    scores = x @ tensors["weights"]
    scores = scores - scores.max(axis=1, keepdims=True)
    losses = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(y)), y]
    return {"loss": float(losses.mean()), "accuracy": float((scores.argmax(axis=1) == y).mean())}


TASKS: Mapping[str, Task] = {
    "sealwright.training.rerun:softmax": Task(initial=softmax_initial, evaluate=softmax_evaluate)
}


def task_of(plan: Plan) -> Task:
    """Return the plan's task. Raises VerificationError: `trainer-unknown`."""
    if plan.trainer not in TASKS:
        raise VerificationError(
            f"there is no trainer {plan.trainer} here that can be used in rounds",
            code="trainer-unknown",
            stage="train",
        )
    return TASKS[plan.trainer]


@dataclass(frozen=True, slots=True)
class Layout:
    """How tensors stand in one vector: in order of names."""

    shapes: tuple[tuple[str, tuple[int, ...], np.dtype[Any]], ...]

    @classmethod
    def of(cls, tensors: Tensors) -> Layout:
        """Return the layout of these tensors."""
        return cls(tuple((name, tensors[name].shape, tensors[name].dtype) for name in sorted(tensors)))

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return sum(int(np.prod(shape)) for _, shape, _ in self.shapes)

    def flat(self, tensors: Tensors) -> NDArray[np.float64]:
        """Return all numbers in one vector."""
        return np.concatenate(
            [np.asarray(tensors[name], dtype=np.float64).ravel() for name, _, _ in self.shapes]
        )

    def tensors(self, vector: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return tensors of a vector."""
        out, at = {}, 0
        for name, shape, dtype in self.shapes:
            size = int(np.prod(shape))
            out[name] = vector[at : at + size].reshape(shape).astype(dtype)
            at += size
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTrainer:
    """A `Trainer`: an epoch of the plan's own trainer on this worker's data, and its change within ±clip."""

    plan: Plan
    code: bytes  # digest of the trainers here
    batches: Callable[[int], Iterable[Batch]]  # of an epoch, which is the round
    clip: float
    max_weight: int
    rows_to_weight: int = 1  # so many rows count 1
    granted: Callable[[], tuple[Sequence[bytes], Sequence[bytes]]] = lambda: ((), ())  # grants, policies

    def train(self, weights: Weights, round_number: int) -> Trained:
        """As `Trainer` says. Raises VerificationError: `trainer-unknown`, `trainer-code`."""
        task = task_of(self.plan)
        layout = Layout.of(task.initial(self.plan))
        start = layout.tensors(weights)
        kept = [dict(batch) for batch in self.batches(round_number)]
        one = self.plan.model_copy(update={"epochs": 1})
        made = train(one, lambda _: kept, code=self.code, start=start)
        change = layout.flat(made) - weights.astype(np.float64)
        # The whole change is made smaller, not cut at its corners: its direction stays.
        largest = float(np.abs(change).max(initial=0.0))
        if largest > self.clip:
            change *= self.clip / largest
        rows = sum(len(next(iter(batch.values()))) for batch in kept)
        whole = {name: np.concatenate([batch[name] for batch in kept]) for name in kept[0]}
        grants, policies = self.granted()
        return Trained(
            update=np.clip(change, -self.clip, self.clip),
            weight=max(1, min(self.max_weight, rows // self.rows_to_weight)),
            metrics=task.evaluate(self.plan, start, whole),
            grants=grants,
            policies=policies,
        )
