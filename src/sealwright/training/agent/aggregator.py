"""The aggregator's agent: adds updates, and keeps the weights. Spec: docs/spec/training.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sealwright.crypto.encoding import hex_decode
from sealwright.crypto.statement import ed25519
from sealwright.errors import MessageFormatError, SealwrightError
from sealwright.training.agent.introduction import Introduction, Peer
from sealwright.training.agent.model import Weights, open_update, seal_model
from sealwright.training.agent.wire import Call, malformed
from sealwright.training.agent.worker import Agency, expired
from sealwright.training.secagg.coordinator import Coordinator, make_roster, verify_hello
from sealwright.training.secagg.enrol import Enrolment, refused
from sealwright.training.secagg.messages import Opening, Roster, Survivors


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """What a round gave."""

    round: int
    weights: Weights
    contributors: list[bytes]  # worker ids
    weight: int  # sum of the weights of updates
    metrics: Mapping[str, float]  # weighted means
    norm: float  # of the mean update
    opening: bytes  # DSSE
    survivors: bytes  # DSSE


class Rule(Protocol):
    """How weights go on from a mean update."""

    def __call__(self, weights: Weights, mean: Weights, contributors: int, /) -> Weights:
        """Return the next weights."""
        ...


def add_mean(weights: Weights, mean: Weights, _contributors: int) -> Weights:
    """Return weights and mean update, added: federated averaging."""
    return weights + mean


class Records(Protocol):
    """What an aggregator remembers of its rounds, for checkpoints."""

    def admitted(self, said: Introduction, worker: bytes) -> None:
        """Remember a worker's evidence."""
        ...

    def brought(
        self, worker: bytes, round_number: int, grants: Sequence[bytes], policies: Sequence[bytes]
    ) -> None:
        """Take what a worker trained on. Raises SealwrightError: not granted to it, for this round."""
        ...

    def finished(self, result: RoundResult) -> None:
        """Take the result of a round."""
        ...

    def checkpoint(self, call: Call) -> Call:
        """Return a checkpoint of what stands now."""
        ...


class NoRecords:
    """For aggregators that write no checkpoints."""

    def admitted(self, said: Introduction, worker: bytes) -> None:
        """Remember nothing."""

    def brought(
        self, worker: bytes, round_number: int, grants: Sequence[bytes], policies: Sequence[bytes]
    ) -> None:
        """Take nothing."""

    def finished(self, result: RoundResult) -> None:
        """Keep nothing."""

    def checkpoint(self, call: Call) -> Call:
        """Refuse. Raises MessageFormatError: `malformed-call`."""
        raise malformed("this aggregator writes no checkpoints")


@dataclass(slots=True)
class _Open:
    """The round under way."""

    roster: Roster
    coordinator: Coordinator
    opening: bytes
    survivors: Survivors | None = None
    signed: bytes = b""


class AggregatorAgent:
    """Answers the calls of docs/spec/training.md. Not thread-safe."""

    def __init__(
        self,
        agency: Agency,
        weights: Weights,
        *,
        rule: Rule = add_mean,
        records: Records | None = None,
    ) -> None:
        """Args: weights: to begin with. records: told each round's result, inside."""
        if weights.shape != (agency.parameters,):
            raise ValueError("weights and run specification are of different lengths")
        self._agency, self._weights = agency, weights.astype(np.float32)
        self._rule, self._records = rule, records or NoRecords()
        self._workers: dict[bytes, tuple[Enrolment, Peer]] = {}
        self._nonces: dict[bytes, bytes] = {}
        self._open: _Open | None = None
        self._calls: dict[str, Callable[[Call], Call]] = {
            "introduce": self._introduce,
            "admit": self._admit,
            "begin": self._begin,
            "open": self._opened,
            "receive": self._receive,
            "survivors": self._survivors,
            "signed": self._signed,
            "shares": self._shares,
            "unmask": self._unmask,
            "hello": self._hello,
            "finish": self._finish,
            "checkpoint": self._records.checkpoint,
        }

    def handle(self, call: Call) -> Call:
        """As `Handler` says."""
        work = self._calls.get(call.name)
        if work is None:
            raise malformed("a call that an aggregator does not answer")
        return work(call)

    def _introduce(self, _: Call) -> Call:
        shown = self._agency.attest()
        said = Introduction(role="aggregator", evidence=shown.evidence, result=shown.result, enrolment=b"")
        return Call("ok", {}, [said.encode()])

    def _admit(self, call: Call) -> Call:
        """Judge workers; return who is admitted, and by place in the call who is not."""
        admitted, refusals = [], {}
        for at, raw in enumerate(call.parts):
            try:
                said, peer = self._agency.judged(raw)
                enrolment = self._agency.enrolled(said, peer)
            except SealwrightError as error:
                refusals[str(at)] = error.code
                continue
            before = self._workers.get(enrolment.worker)
            self._workers[enrolment.worker] = enrolment, peer
            if before is None or before[0] != enrolment:
                self._nonces[enrolment.worker] = enrolment.nonce
            self._records.admitted(said, enrolment.worker)
            admitted.append(enrolment.worker.hex())
        return Call("ok", {"workers": admitted, "refused": refusals})

    def _begin(self, call: Call) -> Call:
        """Return the roster of a round, for the countersigner."""
        names = call.said.get("workers")
        if not isinstance(names, list):
            raise malformed("a round is of workers")
        members = [(self._in_force(_worker(name))[0], self._nonces[_worker(name)]) for name in names]
        roster = make_roster(self._agency.spec, call.number("round"), members)
        return Call("ok", {}, [roster.encode()])

    def _opened(self, call: Call) -> Call:
        """Open a round; return its weights, sealed to its workers."""
        opening, agency = bytes(call.part()), self._agency
        roster = Opening.opened(opening, agency.spec).roster
        known = {member.worker: self._in_force(member.worker) for member in roster.members}
        coordinator = Coordinator(agency.spec, opening, [enrolment for enrolment, _ in known.values()])
        box = seal_model(
            self._weights,
            run_spec=agency.spec.digest(),
            round_number=roster.round,
            to={worker: peer.seal_to for worker, (_, peer) in known.items()},
            key=agency.keys.sign,
            random=agency.random,
        )
        self._open = _Open(roster=roster, coordinator=coordinator, opening=opening)
        return Call("ok", {"round": roster.round}, [box.statement, box.body])

    def _receive(self, call: Call) -> Call:
        now, agency = self._under_way(), self._agency
        count = call.number("grants")
        if len(call.parts) < 2 + count:
            raise malformed("a masked update is two parts, then grants and policies")
        worker = _worker(call.text("worker"))
        grants, policies = call.parts[2 : 2 + count], call.parts[2 + count :]
        self._records.brought(worker, now.roster.round, list(map(bytes, grants)), list(map(bytes, policies)))
        masked = open_update(
            bytes(call.parts[0]),
            bytes(call.parts[1]),
            agency.keys.seal,
            run_spec=agency.spec.digest(),
            round_number=now.roster.round,
            worker=worker,
        )
        return Call("ok", {"place": now.coordinator.receive(masked, threads=agency.threads)})

    def _survivors(self, _: Call) -> Call:
        """Fix who is in the sum."""
        now = self._under_way()
        if now.survivors is None:
            now.survivors = now.coordinator.survivors()
        return Call("ok", {"workers": [name.hex() for name in _alive(now)]}, [now.survivors.encode()])

    def _signed(self, call: Call) -> Call:
        """Take the countersigned survivor set."""
        now, envelope = self._under_way(), bytes(call.part())
        said = Survivors.verify(envelope, [ed25519(self._agency.spec.countersigner)], stage="survivors")
        if said != now.survivors:
            raise refused("another survivor set was countersigned", "survivors-other-roster", "survivors")
        now.signed = envelope
        return Call("ok")

    def _shares(self, call: Call) -> Call:
        now = self._under_way()
        shares = now.coordinator.shares_for(now.roster.place(_worker(call.text("worker"))))
        return Call("ok", {"places": list(shares)}, list(shares.values()))

    def _unmask(self, call: Call) -> Call:
        envelope = bytes(call.part())
        nonce = self._under_way().coordinator.open(envelope)
        self._nonces[_worker(call.text("worker"))] = nonce
        return Call("ok")

    def _hello(self, call: Call) -> Call:
        worker = _worker(call.text("worker"))
        self._nonces[worker] = verify_hello(bytes(call.part()), self._in_force(worker)[0]).nonce
        return Call("ok")

    def _finish(self, _: Call) -> Call:
        """Add the mean update to the weights; tell what everybody may know."""
        now, agency = self._under_way(), self._agency
        if now.survivors is None or not now.signed:
            raise refused("the survivors of this round are not countersigned", "survivors-unsigned", "sum")
        total = now.coordinator.sum(threads=agency.threads)
        mean = total.mean()
        update, numbers = mean[: agency.parameters], mean[agency.parameters :]
        alive = _alive(now)
        self._weights = self._rule(self._weights, update, len(alive)).astype(np.float32)
        result = RoundResult(
            round=now.roster.round,
            weights=self._weights,
            contributors=alive,
            weight=total.weight,
            metrics={name: float(value) for name, value in zip(agency.metrics, numbers, strict=True)},
            norm=float(np.linalg.norm(update)),
            opening=now.opening,
            survivors=now.signed,
        )
        self._open = None
        self._records.finished(result)
        suspects = {str(place): why for place, why in now.coordinator.suspects.items()}
        return Call("ok", {**_shown(result), "suspects": suspects})

    def _under_way(self) -> _Open:
        if self._open is None:
            raise refused("no round is under way", "no-round", "call")
        return self._open

    def _in_force(self, worker: bytes) -> tuple[Enrolment, Peer]:
        found = self._workers.get(worker)
        if found is None:
            raise refused("a worker that was not admitted", "peer-unverified", "roster")
        if self._agency.clock() >= found[1].until:
            raise expired()
        return found


def _alive(now: _Open) -> list[bytes]:
    if now.survivors is None:
        return []
    return [now.roster.members[place - 1].worker for place in now.survivors.alive]


def _shown(result: RoundResult) -> dict[str, object]:
    """Return what leaves the agent in clear: means over all survivors, as texts."""
    return {
        "round": result.round,
        "contributors": len(result.contributors),
        "weight": result.weight,
        "metrics": {name: f"{value:.9g}" for name, value in result.metrics.items()},
        "norm": f"{result.norm:.9g}",
    }


def _worker(text: object) -> bytes:
    if not isinstance(text, str):
        raise malformed("a worker's id is a text")
    return hex_decode(text, length=32, error=MessageFormatError)
