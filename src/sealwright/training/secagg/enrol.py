"""Keys of one boot, enrolments and pairings, and the secret of each pair. Spec: docs/spec/secure-aggregation.md, Enrolment."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from pydantic import Field

from sealwright.crypto.document import Bytes, Bytes32, Count, Digest, Id16
from sealwright.crypto.encoding import joined
from sealwright.crypto.statement import Statement, ed25519
from sealwright.errors import VerificationError

NONCE_BYTES = 32
MLKEM_PUBLIC, MLKEM_CIPHERTEXT = 1184, 1088  # bytes
_PAIR = b"sealwright/secagg/pair/v1"


class Enrolment(Statement):
    """A worker's keys of one boot, signed by the key that its evidence vouches for."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.secagg-enrolment.v1+json"

    format: Literal["sealwright-enrolment/v1"] = "sealwright-enrolment/v1"
    run_spec: Digest
    key: Bytes32  # Ed25519: `receipt_key` of the worker's attested keyset
    boot_id: Id16
    x25519: Bytes32
    mlkem768: Annotated[Bytes, Field(min_length=MLKEM_PUBLIC, max_length=MLKEM_PUBLIC)]
    nonce: Bytes32  # of the first round
    first_round: Count  # the worker takes part in no earlier one

    @property
    def worker(self) -> bytes:
        """The worker's id: SHA-256 of its key (32 bytes)."""
        return hashlib.sha256(self.key).digest()

    @classmethod
    def opened(cls, envelope: bytes, *, run_spec: bytes) -> Self:
        """Return the enrolment in a DSSE envelope, proved to be signed by its own key and of this run.

        That its key is an attested worker's is for the caller to prove.

        Raises:
            MessageFormatError: malformed. VerificationError: `bad-signature`, `other-run`, `peer-key`.
        """
        said = cls.unverified(envelope)
        try:
            X25519PublicKey.from_public_bytes(said.x25519)
            MLKEM768PublicKey.from_public_bytes(said.mlkem768)
            key = ed25519(said.key)
        except ValueError:
            raise refused("the enrolment's keys are no keys", "peer-key") from None
        proved = cls.verify(envelope, [key], stage="enrolment")
        if proved.run_spec != run_spec:
            raise refused("the enrolment is of another run specification", "other-run")
        return proved


class Pairing(Statement):
    """An ML-KEM ciphertext from the worker with the lower id to the other of a pair."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.secagg-pairing.v1+json"

    format: Literal["sealwright-pairing/v1"] = "sealwright-pairing/v1"
    sender: Digest  # digest of its enrolment
    recipient: Digest
    ciphertext: Annotated[Bytes, Field(min_length=MLKEM_CIPHERTEXT, max_length=MLKEM_CIPHERTEXT)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSecret:
    """What two workers share for one boot of both."""

    key: bytes = field(repr=False)  # 32 bytes

    def derive(self, label: str, *context: bytes | str | int) -> bytes:
        """Return 32 bytes for one use."""
        return HKDFExpand(algorithm=SHA256(), length=32, info=joined(label, *context)).derive(self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerKeys:
    """A worker's private keys of one boot. They never leave the process."""

    sign: Ed25519PrivateKey = field(repr=False)
    x25519: X25519PrivateKey = field(repr=False)
    mlkem: MLKEM768PrivateKey = field(repr=False)

    @classmethod
    def make(cls, sign: Ed25519PrivateKey) -> Self:
        """Return fresh keys for a worker that signs with `sign`, the key in its keyset."""
        return cls(sign=sign, x25519=X25519PrivateKey.generate(), mlkem=MLKEM768PrivateKey.generate())

    def enrolment(
        self, *, run_spec: bytes, boot_id: bytes, first_round: int, random: Callable[[int], bytes]
    ) -> Enrolment:
        """Return what the worker signs of itself."""
        return Enrolment(
            run_spec=run_spec,
            key=self.sign.public_key().public_bytes_raw(),
            boot_id=boot_id,
            x25519=self.x25519.public_key().public_bytes_raw(),
            mlkem768=self.mlkem.public_key().public_bytes_raw(),
            nonce=random(NONCE_BYTES),
            first_round=first_round,
        )

    def pair_with(self, own: Enrolment, peer: Enrolment) -> tuple[bytes, PairSecret]:
        """Return the signed pairing (DSSE) for a peer with a higher id, and the secret.

        Raises:
            VerificationError: `peer-key`.
        """
        secret, ciphertext = MLKEM768PublicKey.from_public_bytes(peer.mlkem768).encapsulate()
        pairing = Pairing(sender=own.digest(), recipient=peer.digest(), ciphertext=ciphertext)
        return pairing.sign(self.sign), self._secret(own, peer, secret, ciphertext)

    def accept(self, own: Enrolment, peer: Enrolment, envelope: bytes) -> PairSecret:
        """Return the secret of a pairing that a peer with a lower id signed.

        Raises:
            MessageFormatError: malformed. VerificationError: `bad-signature`, `other-pair`, `peer-key`.
        """
        pairing = Pairing.verify(envelope, [ed25519(peer.key)], stage="pairing")
        if (pairing.sender, pairing.recipient) != (peer.digest(), own.digest()):
            raise refused("the pairing is of other enrolments", "other-pair", "pairing")
        secret = self.mlkem.decapsulate(pairing.ciphertext)
        return self._secret(own, peer, secret, pairing.ciphertext)

    def _secret(self, own: Enrolment, peer: Enrolment, kem: bytes, ciphertext: bytes) -> PairSecret:
        try:
            shared = self.x25519.exchange(X25519PublicKey.from_public_bytes(peer.x25519))
        except ValueError:  # a point of small order
            raise refused("the peer's X25519 key is no key", "peer-key", "pairing") from None
        low, high = sorted((own, peer), key=lambda one: one.worker)
        material = joined(shared, kem, low.digest(), high.digest(), hashlib.sha256(ciphertext).digest())
        return PairSecret(key=HKDF(algorithm=SHA256(), length=32, salt=_PAIR, info=b"").derive(material))


def refused(text: str, code: str, stage: str = "enrolment") -> VerificationError:
    """Return an error of this protocol."""
    return VerificationError(text, code=code, stage=stage)
