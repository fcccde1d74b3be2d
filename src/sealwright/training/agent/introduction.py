"""How agents show each other who they are: evidence, the broker's result about it, and keys of the run.

Spec: docs/spec/training.md, Introductions.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal, Protocol

from pydantic import Field

from sealwright.crypto.document import Bytes, Document
from sealwright.crypto.hpke import HpkePublicKey

MAX_INTRODUCTION = 6 << 20  # bytes


class Introduction(Document):
    """One agent, as it shows itself to all others."""

    format: Literal["sealwright-introduction/v1"] = "sealwright-introduction/v1"
    role: Literal["worker", "aggregator"]
    evidence: Bytes  # its evidence: what `Judge` takes
    result: Annotated[str, Field(max_length=256 << 10)]  # the broker's result about it, an EAR
    enrolment: Bytes  # of a worker (DSSE); of an aggregator empty


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """An agent whose evidence was appraised."""

    key: bytes  # Ed25519, 32 bytes: what signs for it
    seal_to: HpkePublicKey  # X-Wing
    until: datetime  # then it has to attest anew


class Judge(Protocol):
    """Appraises evidence of another agent by this agent's own rules, and the broker's."""

    def __call__(self, introduction: Introduction, /) -> Peer:
        """Return who it is, proved to run allowed code under an allowed config, for this run.

        Raises:
            SealwrightError: with the code that says why it is not admitted.
        """
        ...
