"""How an agent attests, and how it judges others: evidence by its own rules, and the broker's result beside it.

Spec: docs/spec/training.md, Mutual attestation.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sealwright.appraisal.evidence import appraise_evidence
from sealwright.crypto.hpke import HpkePublicKey, Kem
from sealwright.enclave.clock import EnclaveClock
from sealwright.errors import VerificationError
from sealwright.protocol.keyset import Keyset
from sealwright.protocol.lease import SKEW, verify_broker_keys
from sealwright.protocol.report_data import Purpose, report_data
from sealwright.protocol.worker import MAX_WORKER_EVIDENCE, Appraise, WorkerEvidence, appraise_worker
from sealwright.training.agent.config import Role, TrainingConfig
from sealwright.training.agent.introduction import Introduction, Peer
from sealwright.training.agent.worker import Shown
from sealwright.training.broker import Enrolment, TrainingBroker
from sealwright.training.checkpoint.attested import issued_at, verified_result
from sealwright.training.secagg.enrol import refused

RESULT_LIFE = timedelta(hours=1)  # of evidence, from the broker's result; as long as the broker enrols for
Quote = Callable[[bytes], dict[str, Any]]
"""Returns an evidence envelope (JSON values) over 64 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """What attests one agent, and judges others for it."""

    config: TrainingConfig
    config_bytes: bytes
    keyset: Keyset
    quote: Quote
    broker: TrainingBroker
    kids: Sequence[str]  # keys that it will ask for: the broker appraises by their policies
    clock: EnclaveClock  # anchored by the broker's results: the host's clock decides nothing
    life: timedelta = RESULT_LIFE
    appraise: Appraise = appraise_evidence
    enrolled: list[Enrolment] = field(default_factory=list, repr=False)  # the last

    def attest(self) -> Shown:
        """Quote for a fresh nonce of the broker, and have it appraised; the agent's clock follows. Raises SealwrightError."""
        sent = self.clock.elapsed()
        enrolled = self.broker.enrol(self._evidence, self.kids, at=None)
        self.clock.anchor(enrolled.issued, sent)
        self.enrolled[:] = [enrolled]
        return Shown(evidence=enrolled.evidence.encode(), result=enrolled.result)

    @property
    def enrolment(self) -> Enrolment:
        """What the broker said last, its keys in force now.

        Raises:
            VerificationError: `not-enrolled`, `broker-keys-…`.
        """
        if not self.enrolled:
            raise refused("this agent has not enrolled since it started", "not-enrolled", "broker")
        last = self.enrolled[0]
        roots = [address.root for address in self.config.brokers]
        verify_broker_keys(last.broker_keys_envelope, roots, at=self.clock.now())
        return last

    def _evidence(self, nonce: bytes) -> WorkerEvidence:
        run_spec = self.config.spec().digest()
        bare = WorkerEvidence(
            evidence={}, nonce=nonce, config=self.config_bytes, keyset=self.keyset.encode(), run_spec=run_spec
        )
        bound = report_data(
            Purpose.ENROL,
            nonce=nonce,
            config_digest=bare.config_digest,
            keyset_digest=self.keyset.digest(),
            run_spec_digest=run_spec,
        )
        return bare.model_copy(update={"evidence": self.quote(bound)})

    def judge(self, said: Introduction) -> Peer:
        """As `Judge` says.

        Raises:
            SealwrightError: of appraisal and of the broker's result; `peer-other-run`, `peer-role`, `peer-expired`.
        """
        evidence = WorkerEvidence.parse(said.evidence, limit=MAX_WORKER_EVIDENCE)
        config = self.config
        if not hmac.compare_digest(evidence.run_spec, config.spec().digest()):
            raise refused("the evidence is of another run", "peer-other-run", "evidence")
        now = self.clock.now()
        at = issued_at(verified_result(said.result.encode(), evidence, self.enrolment.broker_keys))
        if at > now + SKEW or now >= at + self.life:
            raise refused("the broker's result is too old: attest again", "peer-expired", "result")
        appraise_worker(evidence, config.peers, appraise=self.appraise, at=at)
        check_same_run(evidence.config, config, said.role)
        keyset = evidence.parsed_keyset()
        keyset.check_time(now)
        return Peer(
            key=keyset.receipt_key,
            seal_to=HpkePublicKey(kem=Kem.XWING, raw=keyset.tee_pubkey.pub),
            until=at + self.life,
        )


def check_same_run(raw: bytes, own: TrainingConfig, role: Role) -> None:
    """Prove that another agent was measured with our own config, but for its role.

    Raises:
        MessageFormatError: not a config. VerificationError: `peer-other-run`, `peer-role`.
    """
    other = TrainingConfig.parse(raw)
    if other.role != role:
        raise refused(f"a {other.role} that says it is a {role}", "peer-role", "config")
    if other.as_other(own.role) != own:
        raise VerificationError(
            "the agent was started with another plan, run or trust than ours",
            code="peer-other-run",
            stage="config",
        )
