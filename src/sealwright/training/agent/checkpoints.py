"""Checkpoints made in the aggregator's agent: sealed, signed, and telling what they rest on. Spec: docs/spec/training.md, Checkpoints.

Nothing is written here: what a checkpoint consists of is no secret, and goes out as parts of an answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sealwright.crypto.encoding import hex_decode
from sealwright.crypto.hpke import open_from
from sealwright.crypto.statement import ed25519
from sealwright.errors import MessageFormatError, VerificationError
from sealwright.protocol.checkpoint import (
    Aggregation,
    Attested,
    CheckpointStatement,
    DataUse,
    LogPosition,
    WorkerEntry,
)
from sealwright.protocol.plan import Plan, decimal_text
from sealwright.protocol.sealing_key import SealingKey
from sealwright.protocol.training_data import DataGrant, DataPolicy
from sealwright.protocol.worker import MAX_WORKER_EVIDENCE, WorkerEvidence
from sealwright.training.agent.aggregator import RoundResult
from sealwright.training.agent.introduction import Introduction
from sealwright.training.agent.wire import Call
from sealwright.training.agent.worker import Agency
from sealwright.training.broker import Enrolment
from sealwright.training.checkpoint import CheckpointKeys, Draft, this_environment
from sealwright.training.checkpoint.write import Made, make_checkpoint
from sealwright.training.federated import Layout
from sealwright.training.secagg.enrol import refused
from sealwright.training.secagg.messages import Opening, Survivors


@dataclass(slots=True)
class _Known:
    """A worker's evidence, and what was granted to it since the last checkpoint."""

    evidence: bytes
    result: bytes
    keyset_digest: bytes
    grants: dict[bytes, bytes] = field(default_factory=dict)  # DSSE by digest


class Checkpoints:
    """`Records` that make checkpoints. Not thread-safe."""

    def __init__(
        self, plan: Plan, layout: Layout, agency: Agency, enrolment: Callable[[], Enrolment]
    ) -> None:
        """Args: enrolment: what the broker said of this agent last."""
        self._plan, self._layout, self._agency, self._enrolment = plan, layout, agency, enrolment
        self._keys = CheckpointKeys(receipt=agency.keys.sign)
        self._known: dict[bytes, _Known] = {}
        self._policies: dict[bytes, bytes] = {}
        self._contributed: set[bytes] = set()  # since the last checkpoint
        self._last: RoundResult | None = None
        self._parent: CheckpointStatement | None = None

    def admitted(self, said: Introduction, worker: bytes) -> None:
        """As `Records` says. What was granted to an earlier boot of a worker is kept with its evidence no more."""
        evidence = WorkerEvidence.parse(said.evidence, limit=MAX_WORKER_EVIDENCE)
        digest = evidence.parsed_keyset().digest()
        before = self._known.get(worker)
        grants = before.grants if before is not None and before.keyset_digest == digest else {}
        self._known[worker] = _Known(said.evidence, said.result.encode(), digest, grants)

    def brought(
        self, worker: bytes, round_number: int, grants: Sequence[bytes], policies: Sequence[bytes]
    ) -> None:
        """As `Records` says. Raises VerificationError: `grant-mismatch`, and what grants raise."""
        known = self._known.get(worker)
        if known is None:
            raise refused("an update of a worker that was not admitted", "peer-unverified", "masked")
        release = ed25519(self._enrolment().broker_keys.release_key)
        owners = {DataPolicy.unverified(raw).digest(): raw for raw in policies}
        for raw in grants:
            grant = DataGrant.verify(raw, [release], stage="grant")
            mine = grant.keyset_digest == known.keyset_digest and grant.run == self._plan.digest()
            if not mine or grant.epoch != round_number or grant.policy not in owners:
                raise refused(
                    "a grant of another worker, run or round, or without its policy",
                    "grant-mismatch",
                    "grant",
                )
            known.grants[grant.digest()] = raw
            self._policies[grant.policy] = owners[grant.policy]

    def finished(self, result: RoundResult) -> None:
        """As `Records` says."""
        self._last = result
        self._contributed |= set(result.contributors)

    def checkpoint(self, call: Call) -> Call:
        """Return a checkpoint of the last round's weights: the version's files, and what it names by digest.

        Raises:
            VerificationError: `no-round`: nothing new; `sealing-key-foreign`, `bad-signature`. MessageFormatError.
        """
        last = self._last
        if last is None or not self._contributed:
            raise refused("no round was finished since the last checkpoint", "no-round", "checkpoint")
        kid, dek = self._dek(bytes(call.part()))
        said, sidecars = self._draft(call, last)
        made = make_checkpoint(self._layout.tensors(last.weights), said, keys=self._keys, dek=dek, kid=kid)
        self._parent = made.statement
        self._contributed.clear()
        for one in self._known.values():
            one.grants = {}
        return _answer(made, {**sidecars, **made.sidecars})

    def _dek(self, envelope: bytes) -> tuple[str, bytes]:
        """Return name and key that the model's owner had sealed to this agent."""
        keys = self._enrolment().broker_keys
        said = SealingKey.verify(envelope, [ed25519(keys.release_key)], stage="sealing-key")
        own = self._agency.keys.seal
        if said.recipient != hashlib.sha256(own.public.raw).digest():
            raise VerificationError(
                "the key is sealed to somebody else", code="sealing-key-foreign", stage="sealing-key"
            )
        return said.kid, open_from(own, said.enc, said.hpke_info(), b"", said.ciphertext)

    def _draft(self, call: Call, last: RoundResult) -> tuple[Draft, dict[bytes, bytes]]:
        enrolled, spec = self._enrolment(), self._agency.spec
        opening = Opening.opened(last.opening, spec)
        survivors = Survivors.verify(last.survivors, [ed25519(spec.countersigner)], stage="survivors")
        evidence, result = enrolled.evidence.encode(), enrolled.result.encode()
        sidecars = {
            _sha(evidence): evidence,
            _sha(result): result,
            enrolled.broker_keys.digest(): enrolled.broker_keys_envelope,
            spec.digest(): spec.encode(),
            opening.digest(): last.opening,
            survivors.digest(): last.survivors,
            **self._policies_used(),
        }
        masked = spec.masked
        draft = Draft(
            lineage=hex_decode(call.text("lineage"), length=16, error=MessageFormatError),
            parent=self._parent,
            plan=self._plan,
            epoch=last.round,
            created=self._agency.clock().replace(microsecond=0),
            signer=Attested(evidence=_sha(evidence), result=_sha(result)),
            broker_keys=enrolled.broker_keys.digest(),
            data=tuple(DataUse(policy=digest, stages=[]) for digest in self._policies_used()),
            workers=tuple(self._entries(sidecars)),
            aggregation=Aggregation(
                mode=spec.mode,
                contributors=len(last.contributors),
                opening=opening.digest() if masked else None,
                survivors=survivors.digest() if masked else None,
            ),
            metrics={name: decimal_text(value) for name, value in last.metrics.items()},
            environment=this_environment(),
            log=LogPosition(origin=call.text("origin"), size=call.number("log_size")),
        )
        return draft, sidecars

    def _policies_used(self) -> dict[bytes, bytes]:
        used = {
            DataGrant.unverified(raw).policy
            for worker in self._contributed
            for raw in self._known[worker].grants.values()
        }
        return {digest: self._policies[digest] for digest in used}

    def _entries(self, sidecars: dict[bytes, bytes]) -> list[WorkerEntry]:
        entries = []
        for worker in sorted(self._contributed):
            known = self._known[worker]
            sidecars |= {
                _sha(known.evidence): known.evidence,
                _sha(known.result): known.result,
                **known.grants,
            }
            entries.append(
                WorkerEntry(
                    worker=worker,
                    evidence=_sha(known.evidence),
                    result=_sha(known.result),
                    grants=sorted(known.grants),
                )
            )
        return entries


def _answer(made: Made, sidecars: dict[bytes, bytes]) -> Call:
    said = {
        "version": made.version,
        "files": list(made.files),
        "sidecars": [digest.hex() for digest in sidecars],
    }
    return Call("ok", said, [*made.files.values(), *sidecars.values()])


def _sha(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()
