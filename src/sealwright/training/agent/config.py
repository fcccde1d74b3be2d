"""What an agent is measured with: its role, its run, whom it trusts. Spec: docs/spec/training.md, Config."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sealwright.appraisal.policy import KeyPolicy
from sealwright.crypto.document import Bytes, Bytes32, Document, Name
from sealwright.errors import FormatError
from sealwright.protocol.enclave_config import BrokerAddress, LogConfig, Workload
from sealwright.protocol.plan import Plan
from sealwright.training.secagg.spec import RunSpec

ENTRY = "sealwright.training.agent.main:main"
Role = Literal["worker", "aggregator"]


class TrainingConfig(Document):
    """Fixed before any secret, and measured; the same for all agents of a run but for `role`."""

    format: Literal["sealwright-training-config/v1"] = "sealwright-training-config/v1"
    workload: Workload
    role: Role
    brokers: Annotated[list[BrokerAddress], Field(min_length=1, max_length=8)]
    policy_signers: Annotated[list[Bytes32], Field(max_length=32)]
    log: LogConfig
    egress: Annotated[list[str], Field(max_length=0)]
    plan: Plan
    run_spec: dict[str, Any]
    peers: KeyPolicy  # whom this agent admits: `enrolment_policy` of the run specification is its digest
    metrics: Annotated[list[Name], Field(max_length=16)]
    threads: Annotated[int, Field(ge=1, le=64)] = 1

    @model_validator(mode="after")
    def _one_run(self) -> Self:
        try:
            spec = self.spec()
        except FormatError as exc:
            raise ValueError("run_spec is no run specification") from exc
        if self.plan.aggregation != spec.digest():
            raise ValueError("the plan names another run specification")
        if spec.enrolment_policy != self.peers.digest():
            raise ValueError("the run specification names another policy for peers")
        return self

    def spec(self) -> RunSpec:
        """Return the run specification."""
        return RunSpec.from_json(self.run_spec)

    def as_other(self, role: Role) -> Self:
        """Return the config of an agent of the same run in another role."""
        return self.model_copy(update={"role": role})


class AgentPayload(Document):
    """What the host hands to a worker: nothing of it is believed before it is verified."""

    format: Literal["sealwright-agent-payload/v1"] = "sealwright-agent-payload/v1"
    kids: Annotated[list[Name], Field(min_length=1, max_length=1025)]  # keys that it will ask for
    policies: Annotated[list[Bytes], Field(max_length=64)]  # owners' data policies (DSSE)
    manifests: Annotated[
        dict[Name, Bytes], Field(max_length=1024)
    ]  # envelopes, by kid; descriptors by kid, too
