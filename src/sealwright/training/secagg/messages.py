"""What travels in a round: signed headers, and the masked residues behind one. Spec: docs/spec/secure-aggregation.md, Round."""

from __future__ import annotations

import struct
from typing import Annotated, ClassVar, Literal, Self

import blake3
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, model_validator

from sealwright.crypto.document import Bytes, Bytes32, Count, Digest, Document, Record
from sealwright.crypto.dsse import Envelope
from sealwright.crypto.statement import Statement
from sealwright.errors import MessageFormatError
from sealwright.training.secagg.fixed import Residues
from sealwright.training.secagg.shamir import SHARE_BYTES
from sealwright.training.secagg.spec import MAX_ROSTER

MAX_HEADER = 64 * 1024 * 1024  # bytes; what a worker of 4096 neighbours would write
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

    def place(self, worker: bytes) -> int:
        """Return a worker's place, from 1; 0: it is not listed."""
        for place, member in enumerate(self.members, 1):
            if member.worker == worker:
                return place
        return 0


class Commitment(Record):
    """A commitment to the seed that a worker shares with a neighbour."""

    neighbour: Place
    digest: Digest


class SealedShares(Record):
    """Shares for a neighbour: of the self seed, then of each pair seed in order of places; AES-256-GCM."""

    neighbour: Place
    ciphertext: Annotated[Bytes, Field(max_length=(MAX_ROSTER + 1) * SHARE_BYTES + 16)]


class Masked(Statement):
    """The head of a worker's masked update."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.secagg-masked.v1+json"

    format: Literal["sealwright-masked/v1"] = "sealwright-masked/v1"
    run_spec: Digest
    round: Count
    roster: Digest
    worker: Digest
    self_commitment: Digest
    commitments: Annotated[list[Commitment], Field(max_length=MAX_ROSTER)]
    shares: Annotated[list[SealedShares], Field(max_length=MAX_ROSTER)]
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
    self_shares: Annotated[list[SelfShare], Field(max_length=MAX_ROSTER)]
    pair_seeds: Annotated[list[PairSeed], Field(max_length=MAX_ROSTER)]
    pair_shares: Annotated[list[PairShare], Field(max_length=MAX_ROSTER * 64)]
    unopened: Annotated[list[Place], Field(max_length=MAX_ROSTER)]  # neighbours whose shares did not open
    next_nonce: Bytes32


class Hello(Statement):
    """A worker's nonce for its next round, where it has answered no unmask."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.secagg-hello.v1+json"

    format: Literal["sealwright-hello/v1"] = "sealwright-hello/v1"
    run_spec: Digest
    enrolment: Digest
    after_round: Count
    nonce: Bytes32


def body_digest(residues: Residues) -> bytes:
    """Return BLAKE3 (32 bytes) of residues as they travel."""
    return blake3.blake3(np.ascontiguousarray(residues, dtype="<u4").data.cast("B")).digest()


def encode_masked(head: Masked, residues: Residues, key: Ed25519PrivateKey) -> bytes:
    """Return the message: length of the head (u32), its DSSE envelope, residues."""
    envelope = head.sign(key)
    body = np.ascontiguousarray(residues, dtype="<u4").data.cast("B")
    return b"".join((_LENGTH.pack(len(envelope)), envelope, body))


def split_masked(message: bytes | memoryview, elements: int) -> tuple[bytes, Residues]:
    """Return envelope and residues of a masked update, nothing verified.

    Args:
        elements: residues that must be there.

    Raises:
        MessageFormatError: `masked-malformed`.
    """
    view = memoryview(message)
    length = _LENGTH.unpack(view[:4])[0] if len(view) >= 4 else MAX_HEADER + 1
    if length > MAX_HEADER or len(view) != 4 + length + 4 * elements:
        raise MessageFormatError(
            f"a masked update is its head and {elements} residues", code="masked-malformed"
        )
    residues: Residues = np.frombuffer(view[4 + length :], dtype="<u4")
    return bytes(view[4 : 4 + length]), residues


def verify_masked(envelope: bytes, key: Ed25519PublicKey, residues: Residues) -> Masked:
    """Return the head of a masked update, proved to be signed and to belong to these residues.

    Raises:
        MessageFormatError: malformed. VerificationError: `bad-signature`.
    """
    payload = Envelope.parse(envelope, limit=MAX_HEADER).verify(Masked.PAYLOAD_TYPE, [key], stage="masked")
    head = Masked.parse(payload, limit=MAX_HEADER)
    if head.body != body_digest(residues):
        raise MessageFormatError("the residues are not those that were signed", code="masked-malformed")
    return head
