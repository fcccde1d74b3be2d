"""Is this software quote genuine? Steps and codes as in docs/spec/software-platform.md, "Verification"."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import NoReturn, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from sealwright.endorsement.software import QUOTING_EKU, SoftwareEndorsement
from sealwright.errors import CollateralError, RevokedError, VerificationError
from sealwright.evidence.software import Claims, SoftwareQuote
from sealwright.verify.verified import MADE_BY_VERIFY, CollateralUse, Proof, Verified

_T = TypeVar("_T", bound=x509.ExtensionType)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSoftware(Verified):
    """A quote whose signature, chain and report data hold; `root` is the machine's quoting root."""

    claims: Claims
    stated: tuple[str, ...]  # claims that rest on the word of the measured code


def verify_software(
    quote: SoftwareQuote, endorsement: SoftwareEndorsement, *, expected_report_data: bytes, at: datetime
) -> VerifiedSoftware:
    """Check freshness, the chain and CRL at `at`, and the quote's signature.

    Args:
        expected_report_data: 64 bytes; compared whole.
        at: aware time of verification.

    Raises:
        VerificationError: not genuine.
        CollateralError: the CRL is not current.
        RevokedError: the quoting key was revoked.
    """
    body = quote.unverified_body
    # 1. Freshness. A different length is a mismatch, never padded or cut.
    if not hmac.compare_digest(body.report_data, expected_report_data):
        _refuse("report-data", "report-data-mismatch", "the report data is not the expected value")
    # 2. The root, which the result names and the appraisal must know.
    root_key = _root_key(endorsement.unverified_root, at)
    # 3. The quoting certificate.
    quoting_key = _quoting_key(endorsement, at)
    # 4. Revocation.
    crl = _check_crl(endorsement, root_key, at)
    # 5. The signature, over the bytes as received.
    _check_signature(quoting_key, quote)
    root = endorsement.root_fingerprint()
    return VerifiedSoftware(
        platform="software",
        report_data=body.report_data,
        registers=dict(zip(("code", "config"), body.registers, strict=True)),
        facts={**body.claims.to_json()},
        conditions=(),
        proofs=(
            Proof(what="quote of one process", by="the quoting key of this start of the quoter"),
            Proof(
                what="quoting key",
                by=f"quoting root {root.hex()[:16]}… of one machine",
                until=endorsement.unverified_quoting.not_valid_after_utc,
            ),
        ),
        not_proved=("anything against the machine's administrators: this is a stand-in",),
        collateral=(crl,),
        root=root,
        vendor_root=False,
        until=crl.next_update,
        claims=body.claims,
        stated=body.stated,
        _made_by=MADE_BY_VERIFY,
    )


def _root_key(root: x509.Certificate, at: datetime) -> ec.EllipticCurvePublicKey:
    key = _p384(root, "root")
    _issued(root, root, "root")
    _dates(root, at, "root")
    constraints = _extension(root, ExtensionOID.BASIC_CONSTRAINTS, x509.BasicConstraints, "root")
    usage = _extension(root, ExtensionOID.KEY_USAGE, x509.KeyUsage, "root")
    if not (constraints.ca and constraints.path_length == 0 and usage.key_cert_sign and usage.crl_sign):
        _refuse("root", "bad-certificate", "the root may not sign certificates and CRLs")
    _known_only(root, {ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE}, "root")
    return key


def _quoting_key(endorsement: SoftwareEndorsement, at: datetime) -> ec.EllipticCurvePublicKey:
    certificate, root = endorsement.unverified_quoting, endorsement.unverified_root
    key = _p384(certificate, "chain")
    _issued(certificate, root, "chain")
    _dates(certificate, at, "chain")
    constraints = _extension(certificate, ExtensionOID.BASIC_CONSTRAINTS, x509.BasicConstraints, "chain")
    usage = _extension(certificate, ExtensionOID.KEY_USAGE, x509.KeyUsage, "chain")
    purpose = _extension(certificate, ExtensionOID.EXTENDED_KEY_USAGE, x509.ExtendedKeyUsage, "chain")
    if constraints.ca or not usage.digital_signature or usage.key_cert_sign or list(purpose) != [QUOTING_EKU]:
        _refuse("chain", "bad-certificate", "the certificate is not one of a quoting key")
    known = {ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.EXTENDED_KEY_USAGE}
    _known_only(certificate, known, "chain")
    return key


def _check_crl(
    endorsement: SoftwareEndorsement, root_key: ec.EllipticCurvePublicKey, at: datetime
) -> CollateralUse:
    crl = endorsement.unverified_crl
    if crl.issuer != endorsement.unverified_root.subject or not _holds(
        lambda: crl.is_signature_valid(root_key)
    ):
        _refuse("crl", "bad-crl", "the CRL was not signed by the root")
    if any(extension.critical for extension in crl.extensions):
        _refuse("crl", "bad-crl", "the CRL has a critical extension that is not known")
    next_update = crl.next_update_utc
    if next_update is None or not crl.last_update_utc <= at < next_update:
        raise CollateralError(
            "the CRL is not current at this time: start the quoter again, it signs a new one",
            code="crl-stale",
            stage="crl",
        )
    serial = endorsement.unverified_quoting.serial_number
    if crl.get_revoked_certificate_by_serial_number(serial) is not None:
        raise RevokedError("the quoting key was revoked", code="quoting-key-revoked", stage="crl")
    return CollateralUse(
        kind="software-crl",
        digest=sha256(crl.public_bytes(Encoding.DER)).digest(),
        issued=crl.last_update_utc,
        next_update=next_update,
        age_s=int((at - crl.last_update_utc).total_seconds()),
    )


def _check_signature(key: ec.EllipticCurvePublicKey, quote: SoftwareQuote) -> None:
    half = len(quote.signature) // 2
    r, s = (int.from_bytes(part, "big") for part in (quote.signature[:half], quote.signature[half:]))
    try:
        key.verify(encode_dss_signature(r, s), quote.signed, ec.ECDSA(SHA384()))
    except InvalidSignature:
        _refuse("signature", "bad-signature", "the quote's signature does not hold")


def _p384(certificate: x509.Certificate, stage: str) -> ec.EllipticCurvePublicKey:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        _refuse(stage, "bad-certificate", "the certificate has no P-384 key")
    return key


def _issued(certificate: x509.Certificate, issuer: x509.Certificate, stage: str) -> None:
    if not _holds(lambda: certificate.verify_directly_issued_by(issuer)):
        _refuse(stage, "bad-certificate", "the certificate was not issued by the root that came along")


def _dates(certificate: x509.Certificate, at: datetime, stage: str) -> None:
    if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
        _refuse(stage, "certificate-expired", "the certificate is not valid at this time")


def _extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier, kind: type[_T], stage: str) -> _T:
    try:
        value = certificate.extensions.get_extension_for_oid(oid).value
    except x509.ExtensionNotFound:
        value = None
    if not isinstance(value, kind):
        _refuse(stage, "bad-certificate", f"the certificate lacks {kind.__name__}")
    return value


def _known_only(certificate: x509.Certificate, known: set[x509.ObjectIdentifier], stage: str) -> None:
    if any(extension.critical and extension.oid not in known for extension in certificate.extensions):
        _refuse(stage, "bad-certificate", "the certificate has a critical extension that is not known")


def _holds(check: Callable[[], object]) -> bool:
    """Return whether a check of pyca's holds; it answers False, or raises one of these."""
    try:
        return check() is not False
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False


def _refuse(stage: str, code: str, message: str) -> NoReturn:
    raise VerificationError(message, code=code, stage=stage)
