"""Agents in one process, with a stand-in for attestation: who is admitted is said by a table."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.training.secagg.support import Remembered, run_spec

from sealwright.crypto.hpke import HpkePrivateKey, HpkePublicKey, Kem
from sealwright.errors import VerificationError
from sealwright.training.agent.aggregator import AggregatorAgent, NoRecords, RoundResult
from sealwright.training.agent.introduction import Introduction, Peer
from sealwright.training.agent.model import Weights
from sealwright.training.agent.wire import Call, answered
from sealwright.training.agent.worker import Agency, AgentKeys, Shown, Trained, WorkerAgent
from sealwright.training.drive import Driver, Node
from sealwright.training.secagg.countersigner import Countersigner
from sealwright.training.secagg.messages import Roster, Survivors
from sealwright.training.secagg.spec import RunSpec

START = datetime(2026, 6, 1, tzinfo=UTC)
LIFE = timedelta(hours=1)


@dataclass
class Register:
    """The stand-in: evidence is the signing key and the sealing key; who may do what stands in tables."""

    now: datetime = START
    banned: dict[bytes, str] = field(default_factory=dict)  # by signing key: code
    bans_of: dict[bytes, dict[bytes, str]] = field(default_factory=dict)  # of one judge
    unattested: dict[bytes, str] = field(default_factory=dict)
    attested: dict[bytes, datetime] = field(default_factory=dict)

    def attest(self, keys: AgentKeys) -> Shown:
        public = keys.sign.public_key().public_bytes_raw()
        if public in self.unattested:
            raise VerificationError("the broker refuses", code=self.unattested[public], stage="appraise")
        self.attested[public] = self.now
        return Shown(evidence=public + keys.seal.public.raw, result="allowed")

    def judge(self, own: bytes, said: Introduction) -> Peer:
        key = said.evidence[:32]
        code = self.banned.get(key) or self.bans_of.get(own, {}).get(key)
        if code is not None or key not in self.attested:
            raise VerificationError("not allowed", code=code or "not-attested", stage="appraise")
        return Peer(
            key=key,
            seal_to=HpkePublicKey(kem=Kem.XWING, raw=said.evidence[32:]),
            until=self.attested[key] + LIFE,
        )


class Steps:
    """A trainer whose update is known: its number, in every place, halved each round."""

    def __init__(self, value: float, weight: int = 1) -> None:
        self.value, self.weight = value, weight
        self.seen: list[Weights] = []

    def train(self, weights: Weights, round_number: int) -> Trained:
        self.seen.append(weights.copy())
        update = np.full(weights.shape, self.value / 2 ** (round_number - 1))
        return Trained(update=update, weight=self.weight, metrics={"loss": abs(self.value)})


@dataclass
class Hooked:
    """A transport in this process. Hooks may change, lose or stop what is carried."""

    agents: dict[Node, WorkerAgent]
    before: Callable[[Node, Call], Call | None] = lambda _, call: call
    after: Callable[[Node, Call, Call], Call | None] = lambda _node, _call, answer: answer
    carried: list[tuple[Node, str]] = field(default_factory=list)

    def nodes(self) -> Sequence[Node]:
        return list(self.agents)

    def exchange(self, calls: Mapping[Node, Call], *, timeout_s: float) -> Mapping[Node, Call]:
        answers = {}
        for node, call in calls.items():
            self.carried.append((node, call.name))
            asked = self.before(node, Call.parse(call.encode()))
            if asked is None or node not in self.agents:
                continue
            answer = self.after(node, asked, answered(self.agents[node], asked))
            if answer is not None:
                answers[node] = Call.parse(answer.encode())
        return answers


@dataclass
class Signing:
    """The countersigner, in this process."""

    countersigner: Countersigner

    def next_round(self) -> int:
        return self.countersigner.next_round

    def open(self, roster: bytes) -> bytes:
        return self.countersigner.open(Roster.parse(roster))

    def sign(self, survivors: bytes) -> bytes:
        return self.countersigner.sign(Survivors.parse(survivors))


@dataclass
class Stage:
    """A whole run."""

    spec: RunSpec
    register: Register
    aggregator: AggregatorAgent
    transport: Hooked
    driver: Driver
    trainers: dict[Node, Steps]
    keys: dict[Node, AgentKeys]
    results: list[Any]
    told: list[tuple[str, Mapping[str, Any]]]

    def key_of(self, node: Node) -> bytes:
        return self.keys[node].sign.public_key().public_bytes_raw()


class Kept(NoRecords):
    """Keeps results."""

    def __init__(self, results: list[Any]) -> None:
        self.results = results

    def finished(self, result: RoundResult) -> None:
        self.results.append(result)


def make_keys() -> AgentKeys:
    return AgentKeys(
        sign=Ed25519PrivateKey.generate(), seal=HpkePrivateKey.generate(Kem.XWING), boot_id=os.urandom(16)
    )


def agency(spec: RunSpec, register: Register, keys: AgentKeys) -> Agency:
    own = keys.sign.public_key().public_bytes_raw()
    return Agency(
        spec=spec,
        keys=keys,
        attest=lambda: register.attest(keys),
        judge=lambda said: register.judge(own, said),
        clock=lambda: register.now,
        metrics=("loss",),
    )


def make_stage(values: Sequence[float], *, weights: Sequence[int] | None = None, **changes: Any) -> Stage:
    """Return a run with one worker for each value; five weights and a metric."""
    signer = Ed25519PrivateKey.generate()
    spec = run_spec(len(values), signer, **{"elements": 6, **changes})
    register, results, told = Register(), [], []
    counts = weights or [1] * len(values)
    names = [f"node-{at}" for at in range(len(values))]
    trainers = {name: Steps(value, count) for name, value, count in zip(names, values, counts, strict=True)}
    keys = {name: make_keys() for name in names}
    agents = {name: WorkerAgent(agency(spec, register, keys[name]), trainers[name]) for name in names}
    aggregator = AggregatorAgent(
        agency(spec, register, make_keys()), np.zeros(5, dtype=np.float32), records=Kept(results)
    )
    transport = Hooked(agents)
    driver = Driver(
        transport,
        lambda call: answered(aggregator, call),
        Signing(Countersigner(spec, signer, Remembered(), random=os.urandom)),
        told=lambda event, said: told.append((event, said)),
    )
    return Stage(spec, register, aggregator, transport, driver, trainers, keys, results, told)
