"""A run in one process: workers, coordinator and countersigner that pass bytes to each other."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from sealwright.training.secagg.coordinator import Coordinator, make_roster
from sealwright.training.secagg.countersigner import Countersigner, Kind
from sealwright.training.secagg.enrol import Enrolment, WorkerKeys
from sealwright.training.secagg.fixed import Sum
from sealwright.training.secagg.messages import Opening, Roster
from sealwright.training.secagg.spec import RunSpec
from sealwright.training.secagg.worker import Worker


@dataclass(slots=True)
class Remembered:
    """Signed rounds, in memory; a restart of the countersigner keeps it."""

    signed: dict[tuple[bytes, str], bytes] = field(default_factory=dict)

    def last(self, run_spec: bytes, kind: Kind) -> bytes | None:
        return self.signed.get((run_spec, kind))

    def record(self, run_spec: bytes, kind: Kind, envelope: bytes) -> None:
        self.signed[run_spec, kind] = envelope


@dataclass(slots=True)
class Run:
    """Workers in order of their ids, so in order of places where all take part."""

    spec: RunSpec
    workers: list[Worker]
    countersigner: Countersigner
    remembered: Remembered
    nonces: dict[bytes, bytes]
    number: int = 0

    @classmethod
    def make(cls, count: int, **changes: Any) -> Run:
        key = Ed25519PrivateKey.generate()
        spec = run_spec(count, key, **changes)
        workers = [make_worker(spec) for _ in range(count)]
        workers.sort(key=lambda worker: worker.enrolment.worker)
        introduce(workers)
        remembered = Remembered()
        nonces = {worker.enrolment.worker: worker.enrolment.nonce for worker in workers}
        countersigner = Countersigner(spec, key, remembered, random=os.urandom)
        return cls(spec, workers, countersigner, remembered, nonces)

    def roster(self, workers: Iterable[Worker] | None = None) -> Roster:
        self.number += 1
        chosen = self.workers if workers is None else workers
        members = [(worker.enrolment, self.nonces[worker.enrolment.worker]) for worker in chosen]
        return make_roster(self.spec, self.number, members)

    def coordinator(self, roster: Roster) -> Coordinator:
        return Coordinator(self.spec, self.opened(roster), [worker.enrolment for worker in self.workers])

    def opened(self, roster: Roster) -> bytes:
        """Return what the countersigner opens the round with."""
        return self.countersigner.open(roster)

    def forced(self, roster: Roster, beacon: bytes = bytes(32)) -> bytes:
        """Return an opening that the countersigner would not sign: it has remembered nothing."""
        return Opening(roster=roster, beacon=beacon).sign(self.countersigner._key)

    def by_place(self, roster: Roster, place: int) -> Worker:
        wanted = roster.members[place - 1].worker
        return next(worker for worker in self.workers if worker.enrolment.worker == wanted)

    def round(
        self,
        updates: Sequence[NDArray[Any]],
        weights: Sequence[int] | None = None,
        *,
        drop: Iterable[int] = (),
        silent: Iterable[int] = (),
        threads: int = 1,
    ) -> Sum:
        """Run a round; the workers at places `drop` send nothing, those at `silent` do not unmask."""
        roster = self.roster()
        coordinator = self.coordinator(roster)
        weights = weights or [1] * len(self.workers)
        for place in range(1, len(self.workers) + 1):
            if place in set(drop):
                continue
            worker = self.by_place(roster, place)
            at = self.workers.index(worker)
            coordinator.receive(worker.mask(self.opened(roster), updates[at], weights[at], threads=threads))
        signed = self.countersigner.sign(coordinator.survivors())
        for place in coordinator.received:
            worker = self.by_place(roster, place)
            if place in set(silent):
                continue
            self.nonces[worker.enrolment.worker] = coordinator.open(
                worker.unmask(signed, coordinator.shares_for(place))
            )
        for place in {*drop, *silent}:
            self.greet(self.by_place(roster, place))
        return coordinator.sum(threads=threads)

    def greet(self, worker: Worker) -> None:
        """Take a worker's new nonce."""
        from sealwright.training.secagg.coordinator import verify_hello

        self.nonces[worker.enrolment.worker] = verify_hello(worker.hello(), worker.enrolment).nonce


def run_spec(count: int, key: Ed25519PrivateKey, **changes: Any) -> RunSpec:
    fields: dict[str, Any] = {
        "run": "test",
        "mode": "masked",
        "elements": 64,
        "clip": "4",
        "max_weight": 8,
        "min_roster": 2,
        "max_roster": max(count, 2),
        "min_survivors": 2,
        "degree": 63,
        "threshold": 40,
        "countersigner": key.public_key().public_bytes_raw(),
        "enrolment_policy": bytes(32),
        "purpose": "to test",
    }
    return RunSpec.model_validate(fields | changes)


def make_worker(spec: RunSpec, *, sign: Ed25519PrivateKey | None = None, first_round: int = 1) -> Worker:
    keys = WorkerKeys.make(sign or Ed25519PrivateKey.generate())
    return Worker(spec, keys, boot_id=os.urandom(16), first_round=first_round, random=os.urandom)


def introduce(workers: Sequence[Worker]) -> None:
    """Let all workers verify and pair with each other."""
    by_id = {worker.enrolment.worker: worker for worker in workers}
    pairings: list[tuple[bytes, bytes, bytes]] = []
    for worker in workers:
        for peer in workers:
            if peer is worker:
                continue
            pairing = worker.admit(peer.signed_enrolment())
            if pairing is not None:
                pairings.append((worker.enrolment.worker, peer.enrolment.worker, pairing))
    for sender, recipient, pairing in pairings:
        by_id[recipient].pair(sender, pairing)


def updates(run: Run, seed: int = 1) -> list[NDArray[np.float64]]:
    """Return an update for each worker, within the clip."""
    random = np.random.default_rng(seed)
    clip = float(run.spec.clip_value)
    return [random.uniform(-clip, clip, run.spec.elements) for _ in run.workers]


def expected(
    given: Sequence[NDArray[Any]], weights: Sequence[int], alive: Iterable[int], spec: RunSpec
) -> NDArray[np.int64]:
    """Return the sum that fixed-point numbers of the alive (from 0) give, exactly."""
    total = np.zeros(spec.elements, dtype=np.int64)
    for at in alive:
        total += weights[at] * np.rint(given[at].astype(np.float64) * spec.scale).astype(np.int64)
    return total


def enrolments(run: Run) -> list[Enrolment]:
    return [worker.enrolment for worker in run.workers]
