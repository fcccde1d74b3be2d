"""A round's weights on their way to the workers: encrypted once, the key sealed to each, all of it signed.

Spec: docs/spec/training.md, Weights.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray
from pydantic import Field

from sealwright.crypto.document import Bytes, Count, Digest, Record
from sealwright.crypto.encoding import joined
from sealwright.crypto.hpke import HpkePrivateKey, HpkePublicKey, open_from, seal_to
from sealwright.crypto.statement import Statement, ed25519
from sealwright.errors import VerificationError
from sealwright.training.secagg.enrol import refused

Weights = NDArray[np.float32]
MAX_MODEL = 8 << 20  # bytes of the statement: 4096 workers
_KEY = b"sealwright/train/model/v1"
_UPDATE = b"sealwright/train/update/v1"
_NONCE = bytes(12)  # each key is used once


class SealedKey(Record):
    """The weights' key, for one worker."""

    worker: Digest
    enc: Bytes
    ciphertext: Bytes


class RoundModel(Statement):
    """What a round begins with, signed by the aggregator."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.round-model.v1+json"

    format: Literal["sealwright-round-model/v1"] = "sealwright-round-model/v1"
    run_spec: Digest
    round: Count
    parent: Digest  # of the weights in clear
    body: Digest  # of the ciphertext
    keys: Annotated[list[SealedKey], Field(min_length=1, max_length=4096)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBox:
    """What the driver carries: one statement and one ciphertext, the same for all."""

    statement: bytes  # DSSE
    body: bytes


def weights_digest(weights: Weights) -> bytes:
    """Return SHA-256 of weights as little-endian float32 (32 bytes)."""
    return hashlib.sha256(np.ascontiguousarray(weights, dtype="<f4").tobytes()).digest()


def seal_model(
    weights: Weights,
    *,
    run_spec: bytes,
    round_number: int,
    to: Mapping[bytes, HpkePublicKey],
    key: Ed25519PrivateKey,
    random: Callable[[int], bytes],
) -> ModelBox:
    """Seal weights for the workers of a round.

    Args:
        to: sealing keys by worker id. key: the aggregator's `receipt_key`.
    """
    secret, raw = random(32), np.ascontiguousarray(weights, dtype="<f4").tobytes()
    parent = hashlib.sha256(raw).digest()
    body = AESGCM(secret).encrypt(_NONCE, raw, joined(_KEY, run_spec, round_number, parent))
    keys = []
    for worker, public in sorted(to.items()):
        enc, ciphertext = seal_to(public, _info(run_spec, round_number, worker), b"", secret)
        keys.append(SealedKey(worker=worker, enc=enc, ciphertext=ciphertext))
    said = RoundModel(
        run_spec=run_spec,
        round=round_number,
        parent=parent,
        body=hashlib.sha256(body).digest(),
        keys=keys,
    )
    return ModelBox(statement=said.sign(key), body=body)


def open_model(
    box: ModelBox,
    *,
    run_spec: bytes,
    round_number: int,
    worker: bytes,
    private: HpkePrivateKey,
    aggregator: bytes,
    elements: int,
) -> Weights:
    """Return the weights of a round, proved to be the aggregator's.

    Raises:
        MessageFormatError: malformed. VerificationError: `bad-signature`, `model-other-round`, `model-not-for-us`,
            `model-altered`.
    """
    said = RoundModel.verify(box.statement, [ed25519(aggregator)], stage="model", limit=MAX_MODEL)
    if (said.run_spec, said.round) != (run_spec, round_number):
        raise refused("the weights are of another run or round", "model-other-round", "model")
    mine = [one for one in said.keys if hmac.compare_digest(one.worker, worker)]
    if len(mine) != 1:
        raise refused("the weights are not sealed to this worker", "model-not-for-us", "model")
    if not hmac.compare_digest(hashlib.sha256(box.body).digest(), said.body):
        raise _altered()
    try:
        secret = open_from(
            private, mine[0].enc, _info(run_spec, round_number, worker), b"", mine[0].ciphertext
        )
        raw = AESGCM(secret).decrypt(_NONCE, box.body, joined(_KEY, run_spec, round_number, said.parent))
    except (InvalidTag, ValueError, VerificationError):
        raise _altered() from None
    if len(raw) != 4 * elements or hashlib.sha256(raw).digest() != said.parent:
        raise _altered()
    return np.frombuffer(raw, dtype="<f4").astype(np.float32)


def seal_update(
    masked: bytes | bytearray, to: HpkePublicKey, *, run_spec: bytes, round_number: int, worker: bytes
) -> tuple[bytes, bytes]:
    """Seal a worker's message to the aggregator; return (enc, ciphertext)."""
    info = joined(_UPDATE, run_spec, round_number)
    return seal_to(to, info, worker, bytes(masked))


def open_update(
    enc: bytes,
    ciphertext: bytes,
    private: HpkePrivateKey,
    *,
    run_spec: bytes,
    round_number: int,
    worker: bytes,
) -> bytes:
    """Return a worker's message. Who sent it is said by its own signature. Raises VerificationError: `update-altered`."""
    info = joined(_UPDATE, run_spec, round_number)
    try:
        return open_from(private, enc, info, worker, ciphertext)
    except (InvalidTag, ValueError, VerificationError):
        raise refused("an update that does not open", "update-altered", "masked") from None


def _info(run_spec: bytes, round_number: int, worker: bytes) -> bytes:
    return joined(_KEY, run_spec, round_number, worker)


def _altered() -> VerificationError:
    return refused("the weights do not open, or are not those that were signed", "model-altered", "model")
