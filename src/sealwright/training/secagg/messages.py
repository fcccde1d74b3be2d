"""What travels in a round: signed headers, and the masked residues behind one. Spec: docs/spec/secure-aggregation.md, Round."""

from __future__ import annotations

import struct
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


class Commitment(Record):
    """A commitment to the seed that a worker shares with a neighbour."""

    neighbour: Place
    digest: Digest


class SealedShares(Record):
    """Shares for a neighbour: of the self seed, then of each pair seed in order of places; AES-256-GCM."""

    neighbour: Place
    ciphertext: Annotated[Bytes, Field(max_length=(MAX_DEGREE + 1) * SHARE_BYTES + 16)]


class Masked(Statement):
    """The head of a worker's masked update."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.secagg-masked.v1+json"

    format: Literal["sealwright-masked/v1"] = "sealwright-masked/v1"
    run_spec: Digest
    round: Count
    roster: Digest
    worker: Digest
    self_commitment: Digest
    commitments: Annotated[list[Commitment], Field(max_length=MAX_DEGREE)]
    shares: Annotated[list[SealedShares], Field(max_length=MAX_DEGREE)]
    body: Digest  # BLAKE3 of the residues, little-endian


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


def head_limit(spec: RunSpec) -> int:
    """Return the size of the largest head of a masked update, bytes: what is longer is not parsed."""
    neighbours = min(spec.degree, spec.max_roster - 1)
    return 4096 + neighbours * (256 + (neighbours + 2) * SHARE_BYTES * 4 // 3)


def unmask_limit(spec: RunSpec) -> int:
    """Return the size of the largest unmask, bytes: less than half of each neighbour's neighbours have dropped."""
    neighbours = min(spec.degree, spec.max_roster - 1)
    return 4096 + 512 * neighbours + 112 * (neighbours * neighbours // 2)


def residues_of(message: bytearray) -> Residues:
    """Return the residues in the memory of a message under way."""
    return np.frombuffer(message, dtype="<u4")


def encode_masked(message: bytearray, head: Masked, key: Ed25519PrivateKey) -> None:
    """Complete a message of residues: behind them the DSSE envelope of its head, and its length (u32)."""
    envelope = head.sign(key)
    message += envelope + _LENGTH.pack(len(envelope))


def body_digest(residues: Residues, *, threads: int = 1) -> bytes:
    """Return BLAKE3 (32 bytes) of residues as they travel."""
    body = np.ascontiguousarray(residues, dtype="<u4").data.cast("B")
    return blake3.blake3(body, max_threads=threads).digest()


def split_masked(message: bytes | bytearray | memoryview, spec: RunSpec) -> tuple[bytes, Residues]:
    """Return envelope and residues of a masked update, nothing verified.

    Raises:
        MessageFormatError: `masked-malformed`.
    """
    view, body = memoryview(message).cast("B"), 4 * (spec.elements + 1)
    length = len(view) - body - _LENGTH.size
    if not 0 < length <= 2 * head_limit(spec) or _LENGTH.unpack(view[-_LENGTH.size :])[0] != length:
        raise MessageFormatError(
            f"a masked update is {spec.elements + 1} residues and their head", code="masked-malformed"
        )
    residues: Residues = np.frombuffer(view[:body], dtype="<u4")
    return bytes(view[body : body + length]), residues
