"""Is a certificate still good? OCSP answers (RFC 6960) by its issuer or by a responder that the issuer named. No I/O."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import pairwise
from typing import NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, Hash
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.ocsp import OCSPCertStatus
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from sealwright.endorsement.ocsp import OcspAnswer, matching_answers
from sealwright.errors import CollateralError, RevokedError, VerificationError
from sealwright.verify.chain import extension
from sealwright.verify.context import CollateralKind, Context
from sealwright.verify.verified import CollateralUse

_HASHES = (SHA256, SHA384, SHA512)
_KNOWN_CRITICAL = frozenset(
    {ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.EXTENDED_KEY_USAGE}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the answers say of the certificates of a chain, none of which is revoked."""

    uses: tuple[CollateralUse, ...]
    held: tuple[str, ...]  # names of certificates whose issuer holds them back for the time being


def check_standing(
    certificates: Sequence[x509.Certificate],
    responses: Iterable[bytes],
    *,
    kind: CollateralKind,
    context: Context,
    stage: str,
    fix: str,
) -> Standing:
    """Prove that none of `certificates`, each issued by the next, is revoked; the last one is not asked about.

    Raises:
        RevokedError: `certificate-revoked`.
        CollateralError: `collateral-missing`, `collateral-stale`, `collateral-not-yet`.
        VerificationError: `bad-ocsp`, `certificate-unknown`.
        EvidenceFormatError: `too-large`: more answers about one certificate than are read.
    """
    responses = tuple(responses)
    uses, held = [], []
    for certificate, issuer in pairwise(certificates):
        answers = matching_answers(responses, certificate, parse=partial(context.parse, OcspAnswer.parse))
        if not answers:
            uses.append(context.without(kind, fix=f"{fix} ({_name(certificate)})"))
            continue
        use, on_hold = _first_good(answers, certificate, issuer, kind, context, stage, fix)
        uses.append(use)
        if on_hold:
            held.append(_name(certificate))
    return Standing(uses=tuple(uses), held=tuple(held))


def check_answer(
    answer: OcspAnswer,
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    *,
    kind: CollateralKind,
    context: Context,
    stage: str,
    fix: str,
    nonce: bytes | None = None,
) -> tuple[CollateralUse, bool]:
    """Prove that `answer` is genuine, about `certificate`, and current. Return its use, and whether it says: on hold.

    Args:
        nonce: the one that was sent; None: the answer was fetched earlier, and its dates alone bound its life.

    Raises:
        RevokedError, CollateralError, VerificationError: as `check_standing`.
    """
    # 1. It is about this certificate of this issuer.
    _check_identity(answer, certificate, issuer, stage)
    if nonce is not None and not hmac.compare_digest(answer.nonce or b"", nonce):
        _refuse("the OCSP response does not carry the nonce that was sent", "bad-ocsp", stage)
    # 2. The issuer signed it, or a responder that the issuer made for this.
    _check_signature(answer, _responder(answer, issuer, context, stage), context, stage)
    # 3. Revoked for good is revoked, however old the answer.
    response = answer.response
    revoked = response.certificate_status is OCSPCertStatus.REVOKED
    on_hold = revoked and response.revocation_reason is x509.ReasonFlags.certificate_hold
    if revoked and not on_hold:
        raise RevokedError(
            f"{_name(certificate)} was revoked by its issuer", code="certificate-revoked", stage=stage
        )
    # 4. It is current.
    use = context.use(kind, answer.digest, issued=answer.this_update, next_update=answer.next_update, fix=fix)
    # 5. The issuer knows the certificate.
    if response.certificate_status is OCSPCertStatus.UNKNOWN:
        _refuse(f"the issuer does not know {_name(certificate)}", "certificate-unknown", stage)
    return use, on_hold


def _first_good(
    answers: Sequence[OcspAnswer],
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    kind: CollateralKind,
    context: Context,
    stage: str,
    fix: str,
) -> tuple[CollateralUse, bool]:
    """Return the newest answer that holds: a forged one beside it must not keep a good one from being used."""
    first: VerificationError | CollateralError | None = None
    for answer in answers:
        try:
            return check_answer(answer, certificate, issuer, kind=kind, context=context, stage=stage, fix=fix)
        except (VerificationError, CollateralError) as exc:
            if exc.code == "certificate-unknown":
                raise
            first = first or exc
    if first is None:
        raise ValueError("no answers")
    raise first


def _check_identity(
    answer: OcspAnswer, certificate: x509.Certificate, issuer: x509.Certificate, stage: str
) -> None:
    response = answer.response
    algorithm = response.hash_algorithm
    if not isinstance(algorithm, _HASHES):
        _refuse("the OCSP response names its certificate by a weak hash", "bad-ocsp", stage)
    name, key = Hash(algorithm), Hash(algorithm)
    name.update(issuer.subject.public_bytes())
    key.update(_point(_key(issuer, stage)))
    same = response.issuer_name_hash == name.finalize() and response.issuer_key_hash == key.finalize()
    if not same or response.serial_number != certificate.serial_number:
        _refuse("the OCSP response is about another issuer's certificate", "bad-ocsp", stage)


def _responder(
    answer: OcspAnswer, issuer: x509.Certificate, context: Context, stage: str
) -> ec.EllipticCurvePublicKey:
    """Return the key of the responder that the response names."""
    certificates = (issuer, *answer.responders)
    responder = next((one for one in certificates if _is_named(answer, one, stage)), None)
    if responder is None:
        _refuse("the OCSP response's responder is not there", "bad-ocsp", stage)
    if responder != issuer:
        _check_responder(answer, responder, issuer, context, stage)
    return _key(responder, stage)


def _is_named(answer: OcspAnswer, certificate: x509.Certificate, stage: str) -> bool:
    name, key_hash = answer.response.responder_name, answer.response.responder_key_hash
    if name is not None:
        return name == certificate.subject
    return key_hash == x509.SubjectKeyIdentifier.from_public_key(_key(certificate, stage)).digest


def _check_responder(
    answer: OcspAnswer,
    responder: x509.Certificate,
    issuer: x509.Certificate,
    context: Context,
    stage: str,
) -> None:
    # An answer that the outage policy lets grow old was made, and had its end, while its responder was valid.
    at = min(context.at, answer.next_update)
    context.check_issued(responder, issuer, stage=stage)
    purposes = extension(responder, x509.ExtendedKeyUsage, stage=stage)
    usage = extension(responder, x509.KeyUsage, stage=stage)
    unknown = any(one.critical and one.oid not in _KNOWN_CRITICAL for one in responder.extensions)
    if (
        ExtendedKeyUsageOID.OCSP_SIGNING not in purposes
        or not usage.digital_signature
        or usage.key_cert_sign
        or unknown
    ):
        _refuse("the OCSP responder's certificate is of another purpose", "bad-certificate", stage)
    if not responder.not_valid_before_utc <= answer.response.produced_at_utc or not (
        responder.not_valid_before_utc <= at <= responder.not_valid_after_utc
    ):
        _refuse("the OCSP responder's certificate is not valid at this time", "certificate-expired", stage)


def _check_signature(
    answer: OcspAnswer, key: ec.EllipticCurvePublicKey, context: Context, stage: str
) -> None:
    response = answer.response
    algorithm = response.signature_hash_algorithm
    if not isinstance(algorithm, _HASHES):
        _refuse("the OCSP response is signed with a weak hash", "bad-ocsp", stage)
    signed_with = sha256(answer.digest + _point(key)).digest()
    try:
        context.check_signature(
            signed_with,
            lambda: key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(algorithm)),
        )
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        _refuse("the OCSP response was not signed by its responder", "bad-ocsp", stage)


def _key(certificate: x509.Certificate, stage: str) -> ec.EllipticCurvePublicKey:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        _refuse(f"{_name(certificate)} has no EC key", "bad-certificate", stage)
    return key


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return f"certificate {str(names[0].value)[:64]!r}" if names else "a certificate without a name"


def _refuse(message: str, code: str, stage: str) -> NoReturn:
    raise VerificationError(message, code=code, stage=stage)
