"""Enclave config and tenant lists. Spec: docs/spec/enclave-config.md."""

from __future__ import annotations

import hmac
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sealwright.crypto.canonical import canonical
from sealwright.crypto.document import Bytes32, Digest, Document, Name, Record
from sealwright.crypto.encoding import b64url, digest
from sealwright.errors import VerificationError

MAX_CONFIG = 64 * 1024  # bytes


class Workload(Record):
    """What runs: `entry` is `module:function` inside the measured code."""

    name: Name
    entry: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_.]*:[a-z_]+$")]


class EngineConfig(Record):
    """The inference engine and its fixed parameters."""

    name: Literal["llama.cpp"]
    context_tokens: Annotated[int, Field(ge=256, le=1 << 20)]
    slots: Annotated[int, Field(ge=1, le=64)]
    threads: Annotated[int, Field(ge=1, le=256)]


class BrokerAddress(Record):
    """A broker: where it is, and the Ed25519 root that must vouch for it."""

    url: Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.\[\]:-]+$", max_length=256)]
    root: Bytes32


class LogConfig(Record):
    """The log that decisions and receipts go to."""

    origin: Annotated[str, Field(min_length=1, max_length=256)]
    keys: Annotated[list[str], Field(min_length=1, max_length=8)]
    witnesses: Annotated[list[str], Field(max_length=32)]
    quorum: Annotated[int, Field(ge=0, le=32)]


class TenantEntry(Record):
    """A tenant and the salted digest of its list of artefacts."""

    tenant: Name
    artefacts: Digest


class Limits(Record):
    """Bounds the enclave enforces."""

    request_bytes: Annotated[int, Field(ge=1024, le=1 << 26)]
    response_tokens: Annotated[int, Field(ge=1, le=1 << 20)]
    concurrency: Annotated[int, Field(ge=1, le=1024)]
    receipt_backlog: Annotated[int, Field(ge=1, le=1 << 20)]


class EnclaveConfig(Document):
    """Everything about an enclave that is fixed before any secret; `digest()` is `config_digest`."""

    format: Literal["sealwright-enclave-config/v1"] = "sealwright-enclave-config/v1"
    suite: Literal["default", "classical"]
    workload: Workload
    engine: EngineConfig
    brokers: Annotated[list[BrokerAddress], Field(min_length=1, max_length=8)]
    policy_signers: Annotated[list[Bytes32], Field(max_length=32)]
    log: LogConfig
    tenants: Annotated[list[TenantEntry], Field(min_length=1, max_length=256)]
    egress: Annotated[
        list[Annotated[str, Field(pattern=r"^[A-Za-z0-9.\[\]:-]+:[0-9]{1,5}$")]], Field(max_length=64)
    ]
    limits: Limits

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [entry.tenant for entry in self.tenants]
        if len(set(names)) != len(names):
            raise ValueError("a tenant stands twice")
        return self


class ArtefactEntry(Record):
    """One sealed artefact a tenant lets the enclave open."""

    kid: Name
    manifest_digest: Digest
    model: Name
    checkpoint: Digest | None = None  # of the statement of the checkpoint that it is, if it is one


class TenantList(Document):
    """A tenant's list of artefacts, opened to the broker and that tenant only."""

    tenant: Name
    salt: Bytes32
    artefacts: Annotated[list[ArtefactEntry], Field(min_length=1, max_length=64)]

    def commitment(self) -> bytes:
        """Return the salted digest (32 bytes) that stands in the enclave config."""
        listed = canonical([entry.to_json() for entry in self.artefacts])
        return digest("sealwright/tenant-list/v1", self.tenant, self.salt, listed)

    def check(self, config: EnclaveConfig) -> None:
        """Prove that this is the list that `config` commits to.

        Raises:
            VerificationError: `tenant-list-mismatch`.
        """
        for entry in config.tenants:
            if entry.tenant == self.tenant and hmac.compare_digest(entry.artefacts, self.commitment()):
                return
        raise VerificationError(
            f"the list of tenant {self.tenant!r} is not the one in the enclave config (salt {b64url(self.salt)[:6]}…)",
            code="tenant-list-mismatch",
            stage="config",
        )
