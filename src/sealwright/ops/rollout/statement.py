"""The statement of one step of a rollout. Spec: docs/spec/rollout.md, Statement. No I/O."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sealwright.crypto.canonical import canonical
from sealwright.crypto.document import Bytes32, Count, Digest, Id16, Name, Record, Time
from sealwright.crypto.statement import Statement
from sealwright.protocol.receipt import Sha256, Subject

Step = Literal["plan", "dry-run", "canary", "promote", "retire", "revoke"]
Stage = Literal["current", "canary", "promote", "retire"]
STAGES: tuple[Stage, ...] = ("current", "canary", "promote", "retire")
MAX_STATEMENT = 512 * 1024  # bytes
_Names = Annotated[list[Name], Field(max_length=1000)]
_Text = Annotated[str, Field(min_length=1, max_length=500)]


class Plan(Record):
    """What the whole rollout will do, fixed before its first step: policies by digest, and the gate of promotion."""

    current: Digest
    canary: Digest
    promote: Digest
    retire: Digest
    attestations: Annotated[int, Field(ge=1, le=1000)]
    within_s: Annotated[int, Field(ge=1, le=30 * 86400)]

    def digest_of(self, stage: Stage) -> bytes:
        """Return the digest of one of the four policies."""
        return {
            "current": self.current,
            "canary": self.canary,
            "promote": self.promote,
            "retire": self.retire,
        }[stage]


class EvidenceSet(Record):
    """What recorded evidence showed, by the names of its cases."""

    digest: Digest
    cases: Count
    admitted: _Names
    locked_out: _Names
    newly_admitted: _Names
    refused: _Names
    retired: _Names


class Counted(Record):
    """One decision of the broker's log that counted towards promotion."""

    index: Count
    commitment: Digest


class RolloutPredicate(Record):
    """What a step says."""

    rollout: Id16
    sequence: Annotated[int, Field(ge=1, le=9999)]
    step: Step
    previous: Digest | None = None
    at: Time
    operator: Annotated[str, Field(min_length=1, max_length=128)]
    kid: Name
    broker: Bytes32
    broker_log: _Text  # verifier key
    log: _Text  # verifier key
    plan: Plan | None = None
    evidence: EvidenceSet | None = None
    forced: bool | None = None
    attested: Annotated[list[Counted], Field(max_length=2000)] | None = None
    reason: _Text | None = None

    @model_validator(mode="after")
    def _members(self) -> Self:
        wanted: dict[Step, set[str]] = {
            "plan": {"plan"},
            "dry-run": {"evidence", "forced"},
            "promote": {"attested"},
            "revoke": {"reason"},
        }
        own = {
            name
            for name in ("plan", "evidence", "forced", "attested", "reason")
            if getattr(self, name) is not None
        }
        optional = {"evidence"} if self.step == "revoke" else set()
        if own - optional != wanted.get(self.step, set()) - optional:
            raise ValueError(f"a {self.step} has other members")
        if (self.previous is None) != (self.sequence == 1):
            raise ValueError("all statements but the first name the one before")
        return self


class RolloutStatement(Statement):
    """The signed statement of one step."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.in-toto+json"

    statement_type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")] = (
        "https://in-toto.io/Statement/v1"
    )
    subject: Annotated[list[Subject], Field(min_length=2, max_length=2)]
    predicateType: Literal["urn:sealwright:rollout:v1"] = "urn:sealwright:rollout:v1"
    predicate: RolloutPredicate

    @model_validator(mode="after")
    def _subjects(self) -> Self:
        if [one.name for one in self.subject] != ["policy/before", "policy/after"]:
            raise ValueError("the subjects are the policy before and the policy after")
        return self

    @classmethod
    def of(cls, predicate: RolloutPredicate, *, before: bytes, after: bytes) -> Self:
        """Return the statement of a step from the policy `before` to `after` (digests, 32 bytes)."""
        names = {"policy/before": before, "policy/after": after}
        return cls(
            subject=[Subject(name=name, digest=Sha256(sha256=digest)) for name, digest in names.items()],
            predicate=predicate,
        )

    @property
    def before(self) -> bytes:
        """Digest of the policy before."""
        return self.subject[0].digest.sha256

    @property
    def after(self) -> bytes:
        """Digest of the policy after."""
        return self.subject[1].digest.sha256

    @property
    def name(self) -> str:
        """The name of its file, without ending."""
        return f"{self.predicate.sequence:04}-{self.predicate.step}"

    def log_entry(self) -> bytes:
        """Return the entry that the log holds for this statement."""
        said = {"commitment": self.digest().hex(), "type": "rollout"}
        return canonical(
            {**said, "rollout": self.predicate.rollout.hex(), "sequence": self.predicate.sequence}
        )
