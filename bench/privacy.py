"""Measure what poisoning and membership inference achieve, with and without each defence, on real data.

Prints one JSON object a line, as bench/run.py says. Needs scikit-learn, for its digits and breast cancer data. Seeds are
fixed: the same numbers come each time.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sealwright.training.privacy.noise import private_encoder
from sealwright.training.privacy.randomness import stream_source
from sealwright.training.privacy.spec import NoisePlan, PrivacySpec
from sealwright.training.robust.means import clip_norms, median, multi_krum, trimmed_mean
from sealwright.training.secagg.fixed import decode_sum
from sealwright.training.secagg.spec import RunSpec

Floats = NDArray[np.float64]
Updates = list[Floats]
WORKERS, HOSTILE, ROUNDS = 10, 2, 30


def data(name: str) -> tuple[Floats, NDArray[np.int64], Floats, NDArray[np.int64]]:
    """Return rows and labels to train on and to test on, standardised, in an order of a fixed seed."""
    from sklearn import datasets

    loaded = getattr(datasets, f"load_{name}")()
    order = np.random.default_rng(5).permutation(len(loaded.target))
    rows, labels = loaded.data[order].astype(float), loaded.target[order].astype(np.int64)
    cut = len(rows) * 7 // 10
    rows = (rows - rows[:cut].mean(axis=0)) / (rows[:cut].std(axis=0) + 1e-6)
    rows = np.hstack([np.clip(rows, -5, 5), np.ones((len(rows), 1))])
    return rows[:cut], labels[:cut], rows[cut:], labels[cut:]


def losses(model: Floats, rows: Floats, labels: NDArray[np.int64]) -> Floats:
    """Return the cross-entropy of each row."""
    scores = rows @ model
    scores -= scores.max(axis=1, keepdims=True)
    found: Floats = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(rows)), labels]
    return found


def local_update(model: Floats, rows: Floats, labels: NDArray[np.int64], steps: int = 5) -> Floats:
    """Return what gradient descent on a worker's rows adds to the model."""
    new, hot = model.copy(), np.eye(model.shape[1])[labels]
    for _ in range(steps):
        scores = rows @ new
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        new -= 0.5 / len(rows) * rows.T @ (scores / scores.sum(axis=1, keepdims=True) - hot)
    return (new - model).ravel()


def accuracy(model: Floats, rows: Floats, labels: NDArray[np.int64]) -> float:
    """Return the share of rows that the model gets right."""
    return float(((rows @ model).argmax(axis=1) == labels).mean())


def poisoned(name: str, attack: str, mean: Callable[[Updates], Floats]) -> float:
    """Return accuracy on test rows after `ROUNDS` with `HOSTILE` of `WORKERS` hostile."""
    rows, labels, test, truth = data(name)
    classes = int(labels.max()) + 1
    shares = [(rows[w::WORKERS], labels[w::WORKERS]) for w in range(WORKERS)]
    model = np.zeros((rows.shape[1], classes))
    for _ in range(ROUNDS):
        updates = []
        for worker, (mine, said) in enumerate(shares):
            hostile = worker < HOSTILE and attack != "none"
            told = (said + 1) % classes if hostile else said
            updates.append(local_update(model, mine, told) * (20 if hostile and attack == "scaled" else 1))
        model += mean(updates).reshape(model.shape)
    return accuracy(model, test, truth)


def defences() -> dict[str, Callable[[Updates], Floats]]:
    """Return the ways to take a mean, by name."""
    return {
        "mean": lambda updates: np.mean(updates, axis=0),
        "clip": lambda updates: np.mean(clip_norms(updates, 0.5), axis=0),
        "median": median,
        "trimmed mean": lambda updates: trimmed_mean(updates, HOSTILE),
        "multi-krum": lambda updates: multi_krum(updates, HOSTILE, WORKERS - HOSTILE - 1),
    }


def plan_for(elements: int, noise_multiplier: str, workers: int) -> NoisePlan:
    """Return distributed noise for a run in which all survive."""
    run = RunSpec(
        run="bench", mode="masked", elements=elements, clip="20", max_weight=1, min_roster=workers,
        max_roster=workers, min_survivors=workers, degree=workers - 1, threshold=workers // 2 + 1,
        countersigner=bytes(32), enrolment_policy=bytes(32), purpose="bench",
    )  # fmt: skip
    privacy = PrivacySpec(
        run_spec=run.digest(), mechanism="distributed", norm="1", noise_multiplier=noise_multiplier,
        colluding=0, epsilon="1000", delta="0.001",
    )  # fmt: skip
    return NoisePlan(privacy, run)


def membership(noise_multiplier: str | None, workers: int = 60, rounds: int = 10) -> dict[str, float]:
    """Attack by loss: each worker has one row of digits, with a label drawn at random, which has to be learnt by heart.

    The advantage is the largest difference, over thresholds, of true and false positives of "a member's loss is low".
    """
    rows, labels, test, truth = data("digits")
    rng = np.random.default_rng(6)
    labels, others = rng.integers(0, 10, len(labels)), rng.integers(0, 10, len(truth))
    plan = plan_for(rows.shape[1] * 10, noise_multiplier or "1", workers)
    model = np.zeros((rows.shape[1], 10))
    source = stream_source(b"membership".ljust(32))
    for _ in range(rounds):
        total = np.zeros(model.size + 1, dtype=np.uint32)
        exact = np.zeros(model.size)
        for worker in range(workers):
            part = slice(worker, worker + 1)
            update = clip_norms([local_update(model, rows[part], labels[part])], 1.0)[0]
            if noise_multiplier is None:
                exact += update
                continue
            out = np.empty_like(total)
            private_encoder(plan, source=source)(update, 1, plan.run, out)
            total += out
        if noise_multiplier is not None:
            exact = decode_sum(total, plan.run, workers).mean().astype(float) * workers
        model += exact.reshape(model.shape) / 10
    inside, outside = losses(model, rows[:workers], labels[:workers]), losses(model, test, others)
    advantage = max((inside <= t).mean() - (outside <= t).mean() for t in np.sort(inside))
    epsilon = plan.cost(workers).times(rounds).epsilon(1e-3) if noise_multiplier else float("inf")
    return {"advantage": round(float(advantage), 4), "epsilon": round(epsilon, 2) if noise_multiplier else -1}


def rows() -> list[dict[str, object]]:
    """Return all that is measured: each defence beside the plain mean, and an attack with noise beside none."""
    found: list[dict[str, object]] = []
    for name in ("digits", "breast_cancer"):
        for attack in ("none", "labels", "scaled"):
            plain, *others = [(how, poisoned(name, attack, mean)) for how, mean in defences().items()]
            about = {
                "none": "nobody hostile",
                "labels": "labels changed",
                "scaled": "labels changed, times 20",
            }
            for how, accuracy in others:
                work = (
                    f"{name}, {HOSTILE} of {WORKERS} workers, {about[attack]}: {how}, against the plain mean"
                )
                found.append(row(work, accuracy, plain[1], "accuracy on test rows"))
    without = membership(None)["advantage"]
    for noise in ("1", "4"):
        said = membership(noise)
        work = (
            f"membership by loss, noise multiplier {noise} (ε {said['epsilon']}, δ 0.001), against no noise"
        )
        found.append(row(work, said["advantage"], without, "advantage"))
    return found


def row(work: str, ours: float, peer: float, unit: str) -> dict[str, object]:
    """Return a row as bench/run.py has it."""
    shown = {"ours": round(ours, 4), "peer": round(peer, 4), "ratio": round(ours / peer, 3)}
    return {"work": work, **shown, "unit": unit, "limit": "shown, no target"}


def main() -> None:
    """Print what is measured."""
    for one in rows():
        print(json.dumps(one))


if __name__ == "__main__":
    main()
