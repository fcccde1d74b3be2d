"""Is this an endorsement key of a TPM by a maker that is trusted? Spec: docs/spec/tpm.md, "Enrolment"."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import NoReturn

from cryptography import x509

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.roots import intermediates, pinned
from sealwright.endorsement.tpm import AK_EKU, EK_EKU, certificate_key, ek_public
from sealwright.endorsement.x509 import fingerprint
from sealwright.errors import EvidenceFormatError, VerificationError
from sealwright.evidence.tpmkey import TpmtPublic
from sealwright.evidence.tpmwire import ALG_RSA
from sealwright.verify.chain import Chain, build_chain, extension
from sealwright.verify.context import Context
from sealwright.verify.tpm import KNOWN_CRITICAL, check_revocation
from sealwright.verify.verified import MADE_BY_VERIFY, CollateralUse

STAGE = "ek-certificate"
# TCG EK Credential Profile, section 3.2.9: the TPM's maker, model and version
_MADE_BY = x509.ObjectIdentifier("2.23.133.2.1")
_MODEL = x509.ObjectIdentifier("2.23.133.2.2")
_VERSION = x509.ObjectIdentifier("2.23.133.2.3")
_ID = re.compile(r"id:[0-9A-Fa-f]{8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedEk:
    """An endorsement key that a trusted maker's certificate vouches for. Made by `verify_ek` alone."""

    public: TpmtPublic  # as the TCG's template makes it from the certified key
    certificate: x509.Certificate
    manufacturer: str  # "id:49424D00"
    model: str
    version: str
    root: bytes  # SHA-256 of the root certificate, 32 bytes
    collateral: tuple[CollateralUse, ...]
    until: datetime  # of the chain of certificates
    _made_by: object = field(repr=False)

    def __post_init__(self) -> None:
        if self._made_by is not MADE_BY_VERIFY:
            raise TypeError("a VerifiedEk is made by verify_ek alone")


def verify_ek(certificate: x509.Certificate, endorsements: Endorsements, *, context: Context) -> VerifiedEk:
    """Prove that a TPM maker whose root `context.roots` names certified an endorsement key of the TCG's templates.

    That some TPM holds the key is shown by credential activation alone.

    Args:
        endorsements: intermediates, the root if it is not pinned, CRLs.

    Raises:
        VerificationError: `unknown-root`, `bad-certificate`, `certificate-expired`, `bad-crl`.
        CollateralError, RevokedError: as `check_revocation`.
    """
    # 1. The chain, to a root that the owner named: makers are many, none is trusted unasked.
    google = [one.certificate for one in pinned() if one.vendor == "google" and one.anchor]
    chain = build_chain(
        certificate,
        (*endorsements.certificates, *intermediates("google"), *google),
        (),
        context=context,
        stage=STAGE,
        known_critical=KNOWN_CRITICAL,
    )
    # 2. What the certificate is for.
    public = _public(certificate)
    _check_purpose(chain, public)
    made = _maker(certificate)
    # 3. Revocation.
    collateral = check_revocation(chain, endorsements, context=context, always=False)
    return VerifiedEk(
        public=public,
        certificate=certificate,
        manufacturer=made[_MADE_BY],
        model=made[_MODEL],
        version=made[_VERSION],
        root=fingerprint(chain.root),
        collateral=collateral,
        until=chain.until,
        _made_by=MADE_BY_VERIFY,
    )


def _public(certificate: x509.Certificate) -> TpmtPublic:
    key = certificate_key(certificate)
    if key is None:
        _refuse("the EK certificate's key is neither RSA nor EC")
    try:
        return ek_public(key)
    except EvidenceFormatError as exc:
        raise VerificationError(str(exc), code="bad-certificate", stage=STAGE) from exc


def _check_purpose(chain: Chain, public: TpmtPublic) -> None:
    usage = extension(chain.leaf, x509.KeyUsage, stage=STAGE)
    purposes = set(extension(chain.leaf, x509.ExtendedKeyUsage, stage=STAGE))
    fits = usage.key_encipherment if public.type == ALG_RSA else usage.key_agreement
    if EK_EKU not in purposes or AK_EKU in purposes or not fits or usage.digital_signature:
        _refuse("the certificate is not one of an endorsement key")
    constraints = [one.value for one in chain.leaf.extensions if isinstance(one.value, x509.BasicConstraints)]
    if usage.key_cert_sign or usage.crl_sign or any(one.ca for one in constraints):
        _refuse("an endorsement key's certificate that may sign certificates")


def _maker(certificate: x509.Certificate) -> dict[x509.ObjectIdentifier, str]:
    names = extension(certificate, x509.SubjectAlternativeName, stage=STAGE)
    attributes = list(_directory(names))
    found = {one.oid: str(one.value) for one in attributes}
    wanted = (_MADE_BY, _MODEL, _VERSION)
    if any([one.oid for one in attributes].count(oid) != 1 for oid in wanted) or not _ID.fullmatch(
        found[_MADE_BY]
    ):
        _refuse("the EK certificate does not name the TPM's maker, model and version")
    return found


def _directory(names: x509.SubjectAlternativeName) -> Iterator[x509.NameAttribute[str | bytes]]:
    for name in names:
        if isinstance(name, x509.DirectoryName):
            yield from name.value


def _refuse(message: str) -> NoReturn:
    raise VerificationError(message, code="bad-certificate", stage=STAGE)
