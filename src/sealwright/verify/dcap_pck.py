"""The PCK certificate of a quote: found, chained to Intel's root, named as Intel names it, not revoked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.intel_pck import PCK_NAME, PckExtension, common_name, parse_pck_chain
from sealwright.endorsement.roots import anchors
from sealwright.errors import CollateralError, EvidenceFormatError, VerificationError
from sealwright.evidence.dcap import PCK_CHAIN, PckIdentifier, QuoteSignature
from sealwright.verify.chain import Chain, build_chain, check_crl, extension
from sealwright.verify.context import CollateralKind, Context, Same
from sealwright.verify.dcap_index import CA_NAMES, ROOT_NAME, digest_of, intel_part
from sealwright.verify.verified import CollateralUse

_STAGE = "pck-certificate"
_CHAIN = 3  # certificates: PCK certificate, CA, root
_FETCH = "fetch it from Intel's provisioning certification service, or a cache of it"


@dataclass(frozen=True, slots=True, kw_only=True)
class PckChain:
    """A PCK certificate whose chain holds, and what it says of the platform."""

    chain: Chain
    extension: PckExtension

    @property
    def ca(self) -> x509.Certificate:
        """The CA that issued it: of single packages (Processor) or of whole platforms (Platform)."""
        return self.chain.certificates[1]


@dataclass(frozen=True, slots=True)
class _Came:
    """The certificates that a quote carries, and the SGX extension of the first."""

    certificates: tuple[x509.Certificate, ...]
    extension: PckExtension


def check_pck(signature: QuoteSignature, endorsements: Endorsements, context: Context) -> PckChain:
    """Prove that Intel certified the key that signed the QE report; which QE that is, is not checked here.

    Raises:
        VerificationError: `bad-certificate`, `certificate-expired`, `unknown-root`, `bad-qe-report-signature`.
        CollateralError: `pck-certificate-missing`.
        EvidenceFormatError: the chain in the quote is malformed.
    """
    came = _came(signature, endorsements, context)
    others = list(came.certificates[1:])
    if len(came.certificates) < _CHAIN:
        others += intel_part(endorsements, context).cas
    others = [one for one in others if _may_issue(one, context)] + _admitted(endorsements, context)
    chain = build_chain(came.certificates[0], others, anchors("intel"), context=context, stage=_STAGE)
    context.remember(
        ("pck-chain", Same(chain), Same(came)), lambda: _check_shape(chain, came.certificates, context)
    )
    check_qe_report_signature(signature, chain.leaf, context)
    return PckChain(chain=chain, extension=came.extension)


def check_revocation(
    pck: PckChain,
    signers: Sequence[x509.Certificate],
    endorsements: Endorsements,
    context: Context,
) -> tuple[CollateralUse, CollateralUse]:
    """Prove that neither the PCK certificate, its CA, the root nor the collateral's `signers` are revoked.

    Raises:
        RevokedError: `certificate-revoked`. VerificationError: `bad-crl`.
        CollateralError: `collateral-missing`, `collateral-stale`, `collateral-not-yet`.
    """
    root = pck.chain.root
    return (
        _revocation("intel-root-crl", root, [pck.ca, root, *signers], endorsements, context),
        _revocation("intel-pck-crl", pck.ca, [pck.chain.leaf], endorsements, context),
    )


def key_of(certificate: x509.Certificate) -> object:
    """Return the key of a certificate; None if it is of a kind, or on a curve, that cannot be read."""
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None


def check_p256(key: object, signature: bytes, message: bytes) -> None:
    """Prove an ECDSA P-256 signature of r and s, 32 bytes each, big-endian.

    Raises:
        InvalidSignature: it does not hold, or the key is no P-256 key.
    """
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidSignature
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    key.verify(encode_dss_signature(r, s), message, ec.ECDSA(SHA256()))


def check_qe_report_signature(signature: QuoteSignature, pck: x509.Certificate, context: Context) -> None:
    """Prove that the PCK signed the QE report. Raises VerificationError `bad-qe-report-signature`.

    The QE report stays the same for months, so the signature cache may know it.
    """
    key = sha256(signature.qe_report_raw + signature.qe_report_signature + digest_of(pck, context)).digest()
    try:
        context.check_signature(
            key, lambda: check_p256(key_of(pck), signature.qe_report_signature, signature.qe_report_raw)
        )
    except InvalidSignature:
        _refuse("the PCK did not sign the QE report", "bad-qe-report-signature")


def _came(signature: QuoteSignature, endorsements: Endorsements, context: Context) -> _Came:
    data = signature.certification
    if isinstance(data, PckIdentifier):
        return _find_pck(data, signature, endorsements, context)
    return context.parse(_parse_chain if data.type == PCK_CHAIN else _parse_leaf, data.pem)


def _parse_chain(pem: bytes) -> _Came:
    return _parse(pem, _CHAIN)


def _parse_leaf(pem: bytes) -> _Came:
    return _parse(pem, 1)


def _parse(pem: bytes, count: int) -> _Came:
    certificates = parse_pck_chain(pem)
    if len(certificates) != count:
        raise EvidenceFormatError(
            f"certification data with {len(certificates)} certificates where {count} are wanted",
            code="malformed-chain",
        )
    return _Came(certificates, PckExtension.of(certificates[0]))


def _find_pck(
    data: PckIdentifier, signature: QuoteSignature, endorsements: Endorsements, context: Context
) -> _Came:
    """Return the certificate among the endorsements that the quote means: its key signed the QE report."""
    for one, said in intel_part(endorsements, context).pcks:
        same = (said.cpu_svn, said.pce_svn) == (data.cpu_svn, data.pce_svn)
        if not same or data.pce_id not in (b"", said.pce_id):
            continue
        try:
            check_p256(key_of(one), signature.qe_report_signature, signature.qe_report_raw)
        except InvalidSignature:
            continue
        return context.remember(("pck-found", Same(one)), lambda: _Came((one,), said))  # noqa: B023
    raise CollateralError(
        f"the quote names its PCK certificate (type {data.type}) but does not carry it: {_FETCH}",
        code="pck-certificate-missing",
        stage=_STAGE,
    )


def _may_issue(certificate: x509.Certificate, context: Context) -> bool:
    """Say whether a certificate that came with the quote can stand in its chain: as CA, or as admitted root."""

    def name() -> str:
        return common_name(certificate.subject)

    found = context.remember(("common-name", Same(certificate)), name)
    return found in CA_NAMES or (found == ROOT_NAME and digest_of(certificate, context) in context.roots)


def _admitted(endorsements: Endorsements, context: Context) -> list[x509.Certificate]:
    if not context.roots:
        return []
    return [root for digest, root in intel_part(endorsements, context).roots if digest in context.roots]


def _check_shape(chain: Chain, came: Sequence[x509.Certificate], context: Context) -> None:
    """Prove names and purpose; what the quote carries is this chain, in its order."""
    names = [common_name(one.subject) for one in chain.certificates]
    if len(names) != _CHAIN or names[0] != PCK_NAME or names[1] not in CA_NAMES or names[2] != ROOT_NAME:
        _refuse(f"a chain of {', '.join(names)[:200]} is not one of a PCK certificate", "bad-certificate")
    constraints = extension(chain.leaf, x509.BasicConstraints, stage=_STAGE)
    usage = extension(chain.leaf, x509.KeyUsage, stage=_STAGE)
    if constraints.ca or not usage.digital_signature or usage.key_cert_sign:
        _refuse("the PCK certificate may not sign reports", "bad-certificate")
    for one, proved in zip(came, chain.certificates, strict=False):
        if one != proved:
            _check_reissued(one, chain.root, context)


def _check_reissued(certificate: x509.Certificate, root: x509.Certificate, context: Context) -> None:
    """Prove that a certificate is another issue of the root: same name, same key, signed by it."""
    if certificate.subject != root.subject or key_of(certificate) != key_of(root):
        _refuse("the quote carries a certificate that is not of its chain", "bad-certificate")
    context.check_issued(certificate, root, stage=_STAGE)


def _revocation(
    kind: CollateralKind,
    issuer: x509.Certificate,
    certificates: Sequence[x509.Certificate],
    endorsements: Endorsements,
    context: Context,
) -> CollateralUse:
    def of_issuer() -> tuple[tuple[datetime, x509.CertificateRevocationList], ...]:
        return tuple((crl.last_update_utc, crl) for crl in endorsements.crls if crl.issuer == issuer.subject)

    crls = context.remember(("crls-of", Same(endorsements), Same(issuer)), of_issuer)
    if not crls:
        return context.without(kind, fix=_FETCH)
    # The newest that had been issued at the time: a later one says nothing of it.
    _, crl = max(crls, key=lambda one: (one[0] <= context.at, one[0]))
    return check_crl(crl, issuer, certificates, kind=kind, context=context, stage="revocation", fix=_FETCH)


def _refuse(message: str, code: str) -> NoReturn:
    raise VerificationError(message, code=code, stage=_STAGE)
