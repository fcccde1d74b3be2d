"""Security rows and the root that authenticates them together. Spec: docs/spec/broker-state.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from sealwright.appraisal.guest import GuestPolicy
from sealwright.appraisal.limits import Limits
from sealwright.appraisal.policy import KeyPolicy
from sealwright.appraisal.signed import Signers
from sealwright.crypto.document import Bytes, Bytes32, Count, Digest, Document, Id16, Name, Record, Time
from sealwright.crypto.encoding import joined
from sealwright.protocol.kbs_guest import RESOURCE
from sealwright.tlog.merkle import leaf_hash, tree_root

RowKey = tuple[str, str]  # (kind, id)
Rows = Mapping[RowKey, bytes]  # canonical bodies
Changes = Mapping[RowKey, bytes | None]  # None removes the row


class BrokerRow(Document):
    """Binds the database to one broker and one log."""

    root: Bytes32
    log_key: str
    created: Time


class Admitted(Record):
    """The one manifest that a key may open."""

    artefact_id: Id16
    version: Count
    manifest_digest: Digest


class KeyRow(Document):
    """One key, wrapped, with its policy."""

    kid: Name
    tenant: Name
    model: Name
    status: Literal["active", "revoked"] = "active"
    created: Time
    revoked: Time | None = None
    reason: Annotated[str, Field(min_length=1, max_length=512)] | None = None  # of its revocation
    epoch: Count  # of the change that wrapped it
    policy: KeyPolicy
    wrapped: Bytes
    admitted: Admitted | None = None
    generation: Count | None = None  # counts up with each rotation; absent: 1

    @property
    def row_key(self) -> RowKey:
        """Where it stands."""
        return "key", self.kid

    @property
    def number(self) -> int:
        """The generation, from 1."""
        return self.generation or 1

    @property
    def wrapped_as(self) -> str:
        """The name that its key is wrapped for: no kid is written as later generations are."""
        return self.kid if self.number == 1 else f"{self.kid}@{self.number}"


Place = Literal["next", "previous"]


class GenerationRow(KeyRow):
    """The generation of a key after, or before, the current one: docs/spec/life-cycle.md, Rotation."""

    place: Place

    @property
    def row_key(self) -> RowKey:
        """Where it stands."""
        return "generation", f"{self.kid}@{self.place}"


class GuestPolicyRow(Document):
    """The policy of resources that guests' administrators store without one, a tenant's."""

    tenant: Name
    policy: GuestPolicy


class ResourceRow(Document):
    """What a guest of Confidential Containers may fetch, under its policy. The ciphertext lies beside the rows."""

    path: Annotated[str, Field(pattern=f"^{RESOURCE.pattern}$")]
    tenant: Name
    created: Time
    epoch: Count  # of the change that wrapped its key
    policy: GuestPolicy
    wrapped: Bytes
    content: Digest  # SHA-256 of nonce and ciphertext

    @property
    def row_key(self) -> RowKey:
        """Where it stands."""
        return "resource", self.path

    @property
    def wrapped_as(self) -> str:
        """The name that its key is wrapped for: no kid is written so."""
        return f"kbs:///{self.path}"


class BackendRow(Document):
    """A key backend that an administrator made active, with the settings it was approved with."""

    name: Name
    kind: str
    key: str  # the root key's name there
    settings_digest: Digest
    status: Literal["active", "former"]


class CallerRow(Document):
    """Someone who may ask enclaves for answers."""

    tenant: Name
    caller: Name
    credential_digest: Digest


class OwnerRow(Document):
    """An Ed25519 key whose manifests are admitted for this tenant."""

    tenant: Name
    key: Bytes32


class LeaseRow(Document):
    """A lease that was given; `answers` is what its holder said later that it had answered under it."""

    lease_id: Id16
    tenant: Name
    keyset_digest: Digest
    config_digest: Digest
    receipt_key: Bytes32
    not_before: Time
    not_after: Time
    answers: Count | None = None
    claimed: Time | None = None  # when `answers` was said; absent again once it was checked
    build: Digest | None = None  # `Appraisal.code` of its holder; absent in rows of older versions
    # What follows is absent in rows of older versions, too.
    record: Digest | None = None  # commitment of the log's entry with its holder's evidence
    kids: list[Name] | None = None
    grounds: Digest | None = None  # what decided, see `sealwright.broker.notices`


class MismatchRow(Document):
    """Fewer receipts were logged under a lease than answers were given."""

    lease_id: Id16
    tenant: Name
    keyset_digest: Digest
    answers: Count
    logged: Count
    found: Time


RevokedKind = Literal["measurement", "tcb", "cpu", "enclave", "config", "manifest", "tenant"]


class RevocationRow(Document):
    """What nobody gets a key for any more."""

    kind: RevokedKind
    value: Annotated[str, Field(min_length=1, max_length=128)]
    reason: Annotated[str, Field(min_length=1, max_length=512)]
    at: Time

    @property
    def row_key(self) -> RowKey:
        """Where it stands."""
        return "revocation", f"{self.kind}/{self.value}"


Scope = Literal["key", "tenant"]


class BudgetRow(Document):
    """Limits that the administrator set, beside those of policies."""

    scope: Scope
    name: Name
    limits: Limits
    at: Time

    @property
    def row_key(self) -> RowKey:
        """Where it stands."""
        return "budget", f"{self.scope}/{self.name}"


class Span(Record):
    """Epochs of one run that were used: from first to last, both included."""

    run: str
    first: Count
    last: Count


class SpentRow(Document):
    """What was used of a budget since there is one."""

    scope: Scope
    name: Name
    releases: Count = 0
    rows: Count = 0
    epochs: list[Span]

    @property
    def row_key(self) -> RowKey:
        """Where it stands."""
        return "spent", f"{self.scope}/{self.name}"


class MachinesRow(Document):
    """An operator's signed list of machines, as it was handed in; judged by whoever names the operator's key."""

    operator: Name
    region: Name
    envelope: Bytes  # DSSE of `protocol.machines.Machines`
    at: Time

    @property
    def row_key(self) -> RowKey:
        """Where it stands."""
        return "machines", f"{self.operator}/{self.region}"


class SiteRow(Document):
    """The site that writes, since which term, and who approves the next."""

    site: Name
    term: Count
    signers: Signers


class ErasureRow(Document):
    """Entries of the log that nobody is to open any more."""

    commitments: Annotated[list[Digest], Field(min_length=1, max_length=256)]
    at: Time


WrappedRow = KeyRow | ResourceRow


def state_root(rows: Rows) -> bytes:
    """Return the Merkle root (32 bytes) over all security rows."""
    return tree_root(
        [
            leaf_hash(joined("sealwright/state-row/v1", kind, row_id, body))
            for (kind, row_id), body in sorted(rows.items())
        ]
    )


def changed(rows: Rows, changes: Changes) -> dict[RowKey, bytes]:
    """Return `rows` after `changes`."""
    merged: dict[RowKey, bytes | None] = {**rows, **changes}
    return {key: body for key, body in merged.items() if body is not None}
