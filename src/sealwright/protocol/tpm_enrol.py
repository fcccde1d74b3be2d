"""Enrolment of a TPM's attestation key with its owner's attestation CA: three messages, by credential activation.

Pure: time and randomness are arguments, and what has to be remembered between the messages is returned.
Spec: docs/spec/tpm.md, "Enrolment".
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Literal, NoReturn

from pydantic import BeforeValidator, Field

from sealwright.crypto.document import Bytes, Bytes32, Document
from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.x509 import load_certificate
from sealwright.errors import VerificationError
from sealwright.evidence.tpmkey import TpmtPublic
from sealwright.evidence.tpmwire import DIGEST_SIZE
from sealwright.protocol.tpm_credential import make_credential
from sealwright.verify.context import Context
from sealwright.verify.tpm import check_ak
from sealwright.verify.tpmek import VerifiedEk, verify_ek

ANSWER_TIME = timedelta(minutes=5)  # how long a challenge may be answered
SECRET_SIZE = 32  # bytes
_ONLY_HERE = object()


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class EnrolRequest(Document):
    """What a machine asks with."""

    format: Literal["sealwright-tpm-enrol/v1"] = "sealwright-tpm-enrol/v1"
    ek_certificate: Bytes  # DER
    ek_chain: Annotated[tuple[Bytes, ...], BeforeValidator(_tuple), Field(max_length=16)]  # and CRLs
    ak_public: Bytes  # TPMT_PUBLIC


class EnrolChallenge(Document):
    """What the CA answers: a secret that only the right TPM gives out."""

    format: Literal["sealwright-tpm-challenge/v1"] = "sealwright-tpm-challenge/v1"
    credential_blob: Bytes  # TPM2B_ID_OBJECT, its content
    encrypted_secret: Bytes  # TPM2B_ENCRYPTED_SECRET, its content


class EnrolAnswer(Document):
    """The secret."""

    format: Literal["sealwright-tpm-answer/v1"] = "sealwright-tpm-answer/v1"
    secret: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """What the CA keeps until the answer comes: in memory, for one answer, right or wrong."""

    ek: VerifiedEk
    ak: TpmtPublic
    secret: bytes = field(repr=False)
    expires: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivatedAk:
    """An attestation key that stands in the TPM of a certified endorsement key. Made by `finish` alone."""

    ek: VerifiedEk
    ak: TpmtPublic
    _made_by: object = field(repr=False)

    def __post_init__(self) -> None:
        if self._made_by is not _ONLY_HERE:
            raise TypeError("an ActivatedAk is made by sealwright.protocol.tpm_enrol alone")


def challenge(
    request: EnrolRequest, known: Endorsements, *, context: Context, random: Callable[[int], bytes]
) -> tuple[EnrolChallenge, Pending]:
    """Return the challenge for a machine whose endorsement key and attestation key are as they should be.

    Args:
        known: certificates and CRLs that the CA has, beside those that the request brings.
        context: `roots` names the TPM makers' roots.
        random: returns as many random bytes as it is asked for.

    Raises:
        EvidenceFormatError: a part of the request is not in its format.
        VerificationError, CollateralError, RevokedError: as `verify_ek` and `check_ak`.
    """
    ak = TpmtPublic.parse(request.ak_public)
    check_ak(ak)
    brought = Endorsements.detect(request.ek_chain)
    ek = verify_ek(load_certificate(request.ek_certificate), brought + known, context=context)
    secret, seed = random(SECRET_SIZE), random(DIGEST_SIZE[ek.public.nameAlg])
    credential = make_credential(ek.public, ak.name(), secret, seed=seed)
    return (
        EnrolChallenge(credential_blob=credential.blob, encrypted_secret=credential.secret),
        Pending(ek=ek, ak=ak, secret=secret, expires=context.at + ANSWER_TIME),
    )


def finish(pending: Pending, answer: EnrolAnswer, *, at: datetime) -> ActivatedAk:
    """Prove that the TPM of the endorsement key holds the attestation key. Forget `pending` either way.

    Raises:
        VerificationError: `challenge-expired`, `wrong-credential`.
    """
    if at >= pending.expires:
        _refuse("the challenge was answered too late; ask for another", "challenge-expired")
    if not hmac.compare_digest(answer.secret, pending.secret):
        _refuse("the answer is not the secret that the TPM was sent", "wrong-credential")
    return ActivatedAk(ek=pending.ek, ak=pending.ak, _made_by=_ONLY_HERE)


def _refuse(message: str, code: str) -> NoReturn:
    raise VerificationError(message, code=code, stage="activation")
