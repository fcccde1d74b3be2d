"""The agent of one worker: its keys, its data through its trainer, and its updates stay in here. Spec: docs/spec/training.md."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from sealwright.crypto.encoding import hex_decode
from sealwright.crypto.hpke import HpkePrivateKey
from sealwright.errors import MessageFormatError, SealwrightError, VerificationError
from sealwright.training.agent.introduction import MAX_INTRODUCTION, Introduction, Judge, Peer
from sealwright.training.agent.model import ModelBox, Weights, open_model, seal_update
from sealwright.training.agent.wire import Call, malformed
from sealwright.training.secagg.enrol import Enrolment, WorkerKeys, refused
from sealwright.training.secagg.messages import Opening, Roster
from sealwright.training.secagg.spec import RunSpec
from sealwright.training.secagg.worker import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What one round of training gives."""

    update: NDArray[Any]  # what changes each weight; within ±clip
    weight: int  # how much it counts: examples, say
    metrics: Mapping[str, float] = field(
        default_factory=dict
    )  # summed like weights: nobody sees one worker's
    grants: Sequence[bytes] = ()  # of the broker (DSSE), for the data that it was trained on
    policies: Sequence[bytes] = ()  # of the data's owners (DSSE), that these grants name


class Trainer(Protocol):
    """Training code of the run: the same for all workers, by its digest."""

    def train(self, weights: Weights, round_number: int) -> Trained:
        """Train one round on this worker's data."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentKeys:
    """Keys of the agent's attested keyset."""

    sign: Ed25519PrivateKey = field(repr=False)
    seal: HpkePrivateKey = field(repr=False)
    boot_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What shows others who an agent is."""

    evidence: bytes
    result: str  # the broker's, an EAR


Attest = Callable[[], Shown]
"""Quotes afresh, and has the broker appraise it. Raises SealwrightError: the broker refuses, or is not reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agency:
    """What any agent of a run has."""

    spec: RunSpec
    keys: AgentKeys
    attest: Attest
    judge: Judge
    clock: Callable[[], datetime]
    metrics: Sequence[str] = ()  # names, in the order of the numbers behind the weights
    random: Callable[[int], bytes] = secrets.token_bytes
    threads: int = 1

    @property
    def parameters(self) -> int:
        """How many weights there are: an update has the metrics behind them."""
        return self.spec.elements - len(self.metrics)

    def judged(self, raw: bytes | bytearray | memoryview) -> tuple[Introduction, Peer]:
        """Return another agent, appraised. Raises SealwrightError."""
        said = Introduction.parse(bytes(raw), limit=MAX_INTRODUCTION)
        return said, self.judge(said)

    def enrolled(self, said: Introduction, peer: Peer) -> Enrolment:
        """Return a worker's enrolment, proved to be by the key that its evidence vouches for.

        Raises:
            SealwrightError: see `Enrolment.opened`; `peer-key-mismatch`.
        """
        enrolment = Enrolment.opened(said.enrolment, run_spec=self.spec.digest())
        if enrolment.key != peer.key:
            raise refused("the enrolment is by another key than was attested", "peer-key-mismatch")
        return enrolment


class WorkerAgent:
    """Answers the calls of docs/spec/training.md. Not thread-safe: `AgentServer` makes one call at a time."""

    def __init__(self, agency: Agency, trainer: Trainer) -> None:
        self._agency, self._trainer = agency, trainer
        self._worker: Worker | None = None
        self._peers: dict[bytes, Peer] = {}  # by worker id
        self._aggregator: Peer | None = None
        self._calls: dict[str, Callable[[Call], Call]] = {
            "enrol": self._enrol,
            "admit": self._admit,
            "pair": self._pair,
            "train": self._train,
            "unmask": self._unmask,
            "hello": self._hello,
        }

    def handle(self, call: Call) -> Call:
        """As `Handler` says."""
        work = self._calls.get(call.name)
        if work is None:
            raise malformed("a call that a worker does not answer")
        return work(call)

    def _enrol(self, call: Call) -> Call:
        """Attest, with fresh keys for masks. Whoever this worker knew has to be shown to it again."""
        agency = self._agency
        shown = agency.attest()
        self._worker = Worker(
            agency.spec,
            WorkerKeys.make(agency.keys.sign),
            boot_id=agency.keys.boot_id,
            first_round=call.number("first_round"),
            random=agency.random,
        )
        self._peers, self._aggregator = {}, None
        said = Introduction(
            role="worker",
            evidence=shown.evidence,
            result=shown.result,
            enrolment=self._worker.signed_enrolment(),
        )
        return Call("ok", {"worker": self._worker.enrolment.worker.hex()}, [said.encode()])

    def _admit(self, call: Call) -> Call:
        """Judge the others; return pairings for those this worker encapsulates to, and who was refused."""
        worker, pairings, refusals = self._own(), {}, {}
        for at, raw in enumerate(call.parts):
            try:
                said, peer = self._agency.judged(raw)
                if said.role == "aggregator":
                    self._aggregator = peer
                    continue
                enrolment = self._agency.enrolled(said, peer)
                if enrolment.worker == worker.enrolment.worker:
                    continue
                pairing = worker.admit(said.enrolment)
                self._peers[enrolment.worker] = peer
                if pairing is not None:
                    pairings[enrolment.worker.hex()] = pairing
            except SealwrightError as error:
                refusals[str(at)] = error.code
        return Call("ok", {"to": list(pairings), "refused": refusals}, list(pairings.values()))

    def _pair(self, call: Call) -> Call:
        for sender, pairing in zip(call.texts("from"), call.parts, strict=True):
            self._own().pair(hex_decode(sender, length=32, error=MessageFormatError), bytes(pairing))
        return Call("ok")

    def _train(self, call: Call) -> Call:
        worker, agency = self._own(), self._agency
        if len(call.parts) != 3:
            raise malformed("a round is its opening, a statement and the weights")
        opening, statement, body = map(bytes, call.parts)
        roster = Opening.opened(opening, agency.spec).roster
        aggregator = self._in_force(roster)
        weights = open_model(
            ModelBox(statement=statement, body=body),
            run_spec=agency.spec.digest(),
            round_number=roster.round,
            worker=worker.enrolment.worker,
            private=agency.keys.seal,
            aggregator=aggregator.key,
            elements=agency.parameters,
        )
        worker.check(opening)  # before the work, which may take hours
        trained = self._trainer.train(weights, roster.round)
        vector = with_metrics(trained, agency.metrics, float(agency.spec.clip_value))
        masked = worker.mask(opening, vector, trained.weight, threads=agency.threads)
        run, own = agency.spec.digest(), worker.enrolment.worker
        sealed = seal_update(masked, aggregator.seal_to, run_spec=run, round_number=roster.round, worker=own)
        said = {"worker": own.hex(), "grants": len(trained.grants)}
        return Call("ok", said, [*sealed, *trained.grants, *trained.policies])

    def _unmask(self, call: Call) -> Call:
        places = call.said.get("places")
        if (
            not isinstance(places, list)
            or len(places) != len(call.parts) - 1
            or not all(type(place) is int for place in places)
        ):
            raise malformed("an unmask is a survivor set, and shares by place")
        survivors, *shares = map(bytes, call.parts)
        return Call("ok", {}, [self._own().unmask(survivors, dict(zip(places, shares, strict=True)))])

    def _hello(self, _: Call) -> Call:
        return Call("ok", {}, [self._own().hello()])

    def _own(self) -> Worker:
        if self._worker is None:
            raise refused("this worker has not enrolled since it started", "not-enrolled", "call")
        return self._worker

    def _in_force(self, roster: Roster) -> Peer:
        """Return the aggregator, where its evidence and that of all members still counts."""
        own, now = self._own().enrolment.worker, self._agency.clock()
        if self._aggregator is None:
            raise refused("the aggregator has not shown who it is", "peer-unverified", "roster")
        for member in roster.members:
            peer = self._aggregator if member.worker == own else self._peers.get(member.worker)
            if peer is None:
                raise refused("a member that was not verified", "peer-unverified", "roster")
            if now >= peer.until or now >= self._aggregator.until:
                raise expired()
        return self._aggregator


def with_metrics(trained: Trained, names: Sequence[str], clip: float) -> NDArray[np.float64]:
    """Return an update with its metrics behind it, within ±clip. A metric that is missing is 0."""
    numbers = [float(np.clip(np.nan_to_num(trained.metrics.get(name, 0.0)), -clip, clip)) for name in names]
    return np.concatenate([np.asarray(trained.update, dtype=np.float64).ravel(), np.asarray(numbers)])


def expired() -> VerificationError:
    """Return the error for evidence that counts no more."""
    return refused("evidence of a member counts no more: enrol again", "peer-expired", "roster")
