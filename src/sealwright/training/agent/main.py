"""The measured process of one agent. Entry `sealwright.training.agent.main:main`. Spec: docs/spec/training.md, Agents.

It makes its keys, and attests when its first call comes: nothing is opened, and nothing answered, before that.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import numpy as np

from sealwright.crypto.canonical import parse_json
from sealwright.crypto.hpke import HpkePrivateKey
from sealwright.enclave.clock import EnclaveClock
from sealwright.enclave.http import Answer, HttpConnection
from sealwright.enclave.keyset import EnclaveKeys
from sealwright.enclave.notes import silence_libraries, to_stderr
from sealwright.enclave.workload import Workload
from sealwright.errors import SettingsError, VerificationError
from sealwright.protocol.enclave_config import MAX_CONFIG
from sealwright.protocol.training_data import DataPolicy
from sealwright.training.agent.aggregator import AggregatorAgent
from sealwright.training.agent.attested import Attestation
from sealwright.training.agent.checkpoints import Checkpoints
from sealwright.training.agent.config import AgentPayload, TrainingConfig
from sealwright.training.agent.wire import AgentServer, Handler
from sealwright.training.agent.worker import Agency, AgentKeys, WorkerAgent
from sealwright.training.broker import Request, TrainingBroker
from sealwright.training.data import Loader, OpenShard, data_request, open_shard
from sealwright.training.federated import Layout, PlanTrainer, task_of
from sealwright.training.rerun import Batch, own_code

MAX_PAYLOAD = 64 << 20  # bytes


def main(workload: Workload) -> int:
    """Answer calls until told to end; return the exit code."""
    silence_libraries()
    if workload.listener is None:
        raise SettingsError("an agent needs a listener", code="no-listener", stage="start")
    server = AgentServer(workload.listener, build(workload))
    signal.signal(signal.SIGTERM, lambda *_: server.close())
    to_stderr("serving", role=TrainingConfig.parse(workload.config).role)
    server.run()
    return 0


def build(workload: Workload) -> Handler:
    """Return the agent that a config describes. Raises SettingsError, FormatError."""
    config = TrainingConfig.parse(workload.config, limit=MAX_CONFIG, error=SettingsError)
    payload = AgentPayload.parse(workload.unverified_payload, limit=MAX_PAYLOAD)
    keys = EnclaveKeys.generate("default", created=datetime.now(UTC))
    attestation = Attestation(
        config=config,
        config_bytes=workload.config,
        keyset=keys.keyset,
        quote=lambda bound: dict(parse_json(workload.quote(bound))),
        broker=TrainingBroker(_over(workload, config), config.brokers[0].root),
        kids=payload.kids,
        clock=EnclaveClock(),
    )
    agency = Agency(
        spec=config.spec(),
        keys=AgentKeys(sign=keys.receipt, seal=keys.releases, boot_id=keys.keyset.boot_id),
        attest=attestation.attest,
        judge=attestation.judge,
        clock=attestation.clock.now,
        metrics=config.metrics,
        threads=config.threads,
    )
    if config.role == "aggregator":
        return _aggregator(config, agency, attestation)
    shards = Shards(workload, payload, attestation, keys.releases, agency)
    return WorkerAgent(agency, _trainer(config, agency, shards))


class Shards:
    """This worker's data: opened for one epoch at a time, under grants of the broker."""

    def __init__(
        self,
        workload: Workload,
        payload: AgentPayload,
        attestation: Attestation,
        tee: HpkePrivateKey,
        agency: Agency,
    ) -> None:
        self._fds, self._payload, self._attestation = workload.extra_fds, payload, attestation
        self._tee, self._agency = tee, agency
        self.policies = payload.policies
        self.grants: list[bytes] = []  # DSSE, of the epoch opened last

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch. Raises SealwrightError: not granted, or not what the owner sealed."""
        plan = self._attestation.config.plan
        self.grants = []
        for raw in self._payload.policies:
            policy = DataPolicy.unverified(raw)  # the broker has its own copy: this one says what to ask for
            names = {shard.name: shard.kid for shard in policy.shards if shard.kid in self._payload.manifests}

            def opened(
                name: str, policy: DataPolicy = policy, names: dict[str, str] = names
            ) -> closing[OpenShard]:
                return closing(self._open(policy, names[name], epoch))

            yield from Loader(
                shards=sorted(names), open=opened, batch_rows=plan.batch_rows, seed=plan.seed, epoch=epoch
            )

    def _open(self, policy: DataPolicy, kid: str, epoch: int) -> OpenShard:
        keys, attestation = self._agency.keys, self._attestation
        request = data_request(
            policy,
            kid,
            attestation.config.plan,
            keyset_digest=attestation.keyset.digest(),
            epoch=epoch,
        )
        released = attestation.broker.release(request, keys.sign, self._tee, attestation.enrolment)
        self.grants.append(released.grant_envelope)
        if kid not in self._fds:
            raise VerificationError(f"the host did not hand over {kid}", code="shard-missing", stage="input")
        return open_shard(self._fds[kid], self._payload.manifests[kid], policy.shard(kid), released)


def _trainer(config: TrainingConfig, agency: Agency, shards: Shards) -> PlanTrainer:
    task_of(config.plan)  # an unknown one ends the agent before anything is attested
    return PlanTrainer(
        plan=config.plan,
        code=own_code(),
        batches=shards.batches,
        clip=float(agency.spec.clip_value),
        max_weight=agency.spec.max_weight,
        granted=lambda: (shards.grants, shards.policies),
    )


def _aggregator(config: TrainingConfig, agency: Agency, attestation: Attestation) -> AggregatorAgent:
    tensors = task_of(config.plan).initial(config.plan)
    layout = Layout.of(tensors)
    records = Checkpoints(config.plan, layout, agency, lambda: attestation.enrolment)
    return AggregatorAgent(agency, layout.flat(tensors).astype(np.float32), records=records)


def _over(workload: Workload, config: TrainingConfig) -> Request:
    """Return requests to the first broker of the config, over what the platform connects."""
    url = config.brokers[0].url

    def ask(method: str, path: str, body: bytes) -> Answer:
        connection = HttpConnection(url, workload.connect)
        try:
            return connection.request(method, path, body, {"content-type": "application/json"})
        finally:
            connection.close()

    return ask
