"""What travels in a round: signed headers, and the masked residues behind one. Spec: docs/spec/secure-aggregation.md, Round."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import blake3
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, model_validator

from sealwright.crypto.document import Bytes, Bytes32, Count, Digest, Document, Record
from sealwright.crypto.statement import Statement, ed25519
from sealwright.errors import MessageFormatError, VerificationError
from sealwright.training.secagg.enrol import refused
from sealwright.training.secagg.fixed import Residues
from sealwright.training.secagg.shamir import SHARE_BYTES
from sealwright.training.secagg.spec import MAX_DEGREE, MAX_ROSTER, RunSpec

COMMITMENT_BYTES = 32
MAX_HEAD = 1024  # bytes
MAX_OPENING = 2 << 20  # bytes; a roster of 4096 has under 1 MiB
_LENGTH = struct.Struct(">I")
Place = Annotated[int, Field(ge=1, le=MAX_ROSTER)]  # in the roster, from 1
Share = Annotated[Bytes, Field(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]


class Member(Record):
    """One worker of a round."""

    worker: Digest
    enrolment: Digest
    nonce: Bytes32


class Roster(Document):
    """Who takes part in a round; ordered by worker. `digest()` is what masks depend on."""

    format: Literal["sealwright-roster/v1"] = "sealwright-roster/v1"
    run_spec: Digest
    round: Count
    members: Annotated[list[Member], Field(min_length=2, max_length=MAX_ROSTER)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        workers = [member.worker for member in self.members]
        if workers != sorted(set(workers)):
            raise ValueError("roster-order: members are ordered by worker, each once")
        return self

    def check(self, spec: RunSpec) -> None:
        """Prove that the roster is of this run, and of a size that it admits.

        Raises:
            VerificationError: `other-run`, `roster-size`.
        """
        if self.run_spec != spec.digest():
            raise refused("the roster is of another run", "other-run", "roster")
        if not spec.min_roster <= len(self.members) <= spec.max_roster:
            raise refused(f"a roster of {len(self.members)} workers", "roster-size", "roster")

    def place(self, worker: bytes) -> int:
        """Return a worker's place, from 1; 0: it is not listed."""
        for place, member in enumerate(self.members, 1):
            if member.worker == worker:
                return place
        return 0


class Opening(Statement):
    """A round that the countersigner has opened: its one roster, and what nobody could know before it was fixed."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.secagg-opening.v1+json"

    format: Literal["sealwright-opening/v1"] = "sealwright-opening/v1"
    roster: Roster
    beacon: Bytes32

    @classmethod
    def opened(cls, envelope: bytes, spec: RunSpec) -> Self:
        """Return an opening, proved to be the countersigner's.

        Raises:
            MessageFormatError: malformed. VerificationError: `roster-unsigned`, `other-run`, `roster-size`.
        """
        try:
            said = cls.verify(envelope, [ed25519(spec.countersigner)], stage="roster", limit=MAX_OPENING)
        except VerificationError as error:
            raise refused(f"the roster is not countersigned: {error}", "roster-unsigned", "roster") from None
        said.roster.check(spec)
        return said


class Masked(Statement):
    """The head of a worker's masked update."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.secagg-masked.v1+json"

    format: Literal["sealwright-masked/v1"] = "sealwright-masked/v1"
    run_spec: Digest
    round: Count
    roster: Digest
    worker: Digest
    self_commitment: Digest
    body: Digest  # BLAKE3 of what stands before: residues, commitments, shares


class Survivors(Statement):
    """Whose masked updates are in the sum of a round. One is countersigned for a round."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.secagg-survivors.v1+json"

    format: Literal["sealwright-survivors/v1"] = "sealwright-survivors/v1"
    run_spec: Digest
    round: Count
    roster: Digest
    alive: Annotated[list[Place], Field(min_length=1, max_length=MAX_ROSTER)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.alive != sorted(set(self.alive)):
            raise ValueError("alive is ordered, each place once")
        return self

    def is_of(self, roster: Roster) -> bool:
        """Return whether the set names this roster and its round; nothing is proved."""
        return (self.run_spec, self.round, self.roster) == (roster.run_spec, roster.round, roster.digest())


class SelfShare(Record):
    """A share of the self seed of an alive neighbour."""

    of: Place
    share: Share


class PairShare(Record):
    """A share of the seed that an alive neighbour has with a dropped worker."""

    of: Place
    dropped: Place
    share: Share


class PairSeed(Record):
    """The seed that the worker itself has with a dropped neighbour."""

    dropped: Place
    seed: Bytes32


class Unmask(Statement):
    """What a worker opens, once in a round; and its nonce for the next."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.secagg-unmask.v1+json"

    format: Literal["sealwright-unmask/v1"] = "sealwright-unmask/v1"
    survivors: Digest
    worker: Digest
    self_shares: Annotated[list[SelfShare], Field(max_length=MAX_DEGREE)]
    pair_seeds: Annotated[list[PairSeed], Field(max_length=MAX_DEGREE)]
    pair_shares: Annotated[list[PairShare], Field(max_length=MAX_DEGREE * MAX_DEGREE // 2)]
    unopened: Annotated[list[Place], Field(max_length=MAX_DEGREE)]  # neighbours whose shares did not open
    next_nonce: Bytes32


class Hello(Statement):
    """A worker's nonce for its next round, where it has answered no unmask."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.secagg-hello.v1+json"

    format: Literal["sealwright-hello/v1"] = "sealwright-hello/v1"
    run_spec: Digest
    enrolment: Digest
    after_round: Count
    nonce: Bytes32


def sealed_bytes(neighbours: int) -> int:
    """Return the length of what is sealed for a neighbour: shares of the self seed and each pair seed, AES-256-GCM."""
    return (1 + neighbours) * SHARE_BYTES + 16


def unmask_limit(spec: RunSpec) -> int:
    """Return the size of the largest unmask, bytes: less than half of each neighbour's neighbours have dropped."""
    neighbours = min(spec.degree, spec.max_roster - 1)
    return 4096 + 512 * neighbours + 112 * (neighbours * neighbours // 2)


def residues_of(message: bytearray) -> Residues:
    """Return the residues in the memory of a message under way."""
    return np.frombuffer(message, dtype="<u4")


def encode_masked(message: bytearray, head: Masked, key: Ed25519PrivateKey) -> None:
    """Complete a message of residues, commitments and shares: the DSSE envelope of its head, and its length (u32)."""
    envelope = head.sign(key)
    message += envelope + _LENGTH.pack(len(envelope))


def body_digest(body: bytes | bytearray | memoryview, *, threads: int = 1) -> bytes:
    """Return BLAKE3 (32 bytes) of what stands before the head of a masked update."""
    return blake3.blake3(body, max_threads=threads).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A masked update in its parts, nothing verified. The parts look into the message."""

    envelope: bytes
    body: memoryview  # all that is signed by its digest: residues, commitments and shares
    residues: Residues
    commitments: bytes  # to the seed with each neighbour, in order of places: `COMMITMENT_BYTES` each
    shares: bytes  # what is sealed for each neighbour, in order of places: `sealed_bytes` each

    @classmethod
    def parse(cls, message: bytes | bytearray | memoryview, spec: RunSpec, neighbours: int) -> Self:
        """Return the parts of a masked update of a worker with so many neighbours.

        Raises:
            MessageFormatError: `masked-malformed`.
        """
        view, residues = memoryview(message).cast("B"), 4 * (spec.elements + 1)
        shares = residues + neighbours * COMMITMENT_BYTES
        end = shares + neighbours * sealed_bytes(neighbours)
        length = len(view) - end - _LENGTH.size
        if not 0 < length <= 2 * MAX_HEAD or _LENGTH.unpack(view[-_LENGTH.size :])[0] != length:
            raise MessageFormatError(
                f"a masked update is {spec.elements + 1} residues, what is for {neighbours} neighbours, and a head",
                code="masked-malformed",
            )
        return cls(
            envelope=bytes(view[end : end + length]),
            body=view[:end],
            residues=np.frombuffer(view[:residues], dtype="<u4"),
            commitments=bytes(view[residues:shares]),
            shares=bytes(view[shares:end]),
        )
