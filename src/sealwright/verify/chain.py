"""Certificate chains from a leaf to a root that is pinned or admitted by name, and CRLs. No I/O.

A root that comes with the evidence is worth nothing by itself: it counts if its bytes are pinned in this package or
its SHA-256 stands in `Context.roots`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from itertools import count, pairwise
from typing import NoReturn, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from sealwright.endorsement.x509 import fingerprint
from sealwright.errors import RevokedError, VerificationError
from sealwright.verify.context import CollateralKind, Context, Same
from sealwright.verify.verified import CollateralUse

MAX_CANDIDATES = 64
MAX_STEPS = 1024  # tries; the longest chain in use has six certificates
_CA_EXTENSIONS = frozenset({ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE})
_E = TypeVar("_E", bound=x509.ExtensionType)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Certificates from leaf to root, each signed by the next and valid at the time of verification."""

    certificates: tuple[x509.Certificate, ...]
    vendor: bool  # the root is pinned, not admitted by name

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate that was asked about."""
        return self.certificates[0]

    @property
    def root(self) -> x509.Certificate:
        """The anchor."""
        return self.certificates[-1]

    @property
    def until(self) -> datetime:
        """The earliest end of validity."""
        return min(certificate.not_valid_after_utc for certificate in self.certificates)


def build_chain(
    leaf: x509.Certificate,
    candidates: Collection[x509.Certificate],
    pinned: Sequence[x509.Certificate],
    *,
    context: Context,
    stage: str,
    longest: int = 4,
    known_critical: Collection[x509.ObjectIdentifier] = (),
) -> Chain:
    """Return the chain from `leaf` to a root that is pinned, or admitted by `context.roots`.

    Every certificate is valid at `context.at`; every issuer is a CA that may sign certificates and allows the
    length of the path; no certificate has a critical extension beyond basic constraints, key usage and
    `known_critical`. What the leaf may be used for is for the caller to check.

    Args:
        candidates: certificates that came along, in any order; roots among them count only if admitted by name.
        pinned: the vendor's roots.
        longest: certificates in the chain, root included.

    Raises:
        VerificationError: `unknown-root`: no path leads to a trusted root; `bad-certificate`, `certificate-expired`.
    """
    if len(candidates) > MAX_CANDIDATES:
        raise VerificationError(
            f"{len(candidates)} certificates are over the limit of {MAX_CANDIDATES}",
            code="bad-certificate",
            stage=stage,
        )
    known = frozenset(known_critical) | _CA_EXTENSIONS

    def prove() -> Chain:
        return _prove_chain(leaf, candidates, pinned, context, stage, longest, known)

    # All but the dates holds for ever, for these very certificates.
    objects = tuple(Same(one) for one in (leaf, *candidates, *pinned))
    chain = context.remember(("chain", objects, len(pinned), context.roots, longest, known), prove)
    check_dates(chain, context=context, stage=stage)
    return chain


def check_dates(chain: Chain, *, context: Context, stage: str) -> None:
    """Prove that every certificate is valid at `context.at`. Raises VerificationError `certificate-expired`."""
    for certificate in chain.certificates:
        _check_dates(certificate, context.at, stage)


def _prove_chain(
    leaf: x509.Certificate,
    candidates: Collection[x509.Certificate],
    pinned: Sequence[x509.Certificate],
    context: Context,
    stage: str,
    longest: int,
    known: frozenset[x509.ObjectIdentifier],
) -> Chain:
    anchors = {fingerprint(root): root for root in pinned}
    others = {fingerprint(one): one for one in candidates}
    admitted = {digest: one for digest, one in others.items() if digest in context.roots}
    path = next(_paths([leaf], others, anchors | admitted, longest, count(), stage), None)
    if path is None:
        raise VerificationError(
            f"no chain from {_name(leaf)} to a trusted root; are intermediates missing, or is this not the vendor's?",
            code="unknown-root",
            stage=stage,
        )
    for certificate, issuer in pairwise(path):
        context.check_issued(certificate, issuer, stage=stage)
    for depth, certificate in enumerate(path):
        _check_purpose(certificate, depth, known, stage)
    return Chain(certificates=tuple(path), vendor=fingerprint(path[-1]) in anchors)


def check_crl(
    crl: x509.CertificateRevocationList,
    issuer: x509.Certificate,
    certificates: Sequence[x509.Certificate],
    *,
    kind: CollateralKind,
    context: Context,
    stage: str,
    fix: str,
) -> CollateralUse:
    """Prove that `issuer` signed `crl`, that it is current enough, and that none of `certificates` is on it.

    Certificates are sought by serial number; those that `issuer` did not issue are refused as our bug.

    Raises:
        VerificationError: `bad-crl`. CollateralError: `collateral-stale`, `collateral-not-yet`.
        RevokedError: `certificate-revoked`.
    """
    if any(certificate.issuer != issuer.subject for certificate in certificates):
        raise ValueError("a certificate is looked for on the CRL of another issuer")
    digest = signed_crl(crl, issuer, context=context, stage=stage)
    if digest is None:
        _refuse("the CRL is of another issuer", "bad-crl", stage)
    return use_crl(crl, digest, certificates, kind=kind, context=context, stage=stage, fix=fix)


def use_crl(
    crl: x509.CertificateRevocationList,
    digest: bytes,
    certificates: Sequence[x509.Certificate],
    *,
    kind: CollateralKind,
    context: Context,
    stage: str,
    fix: str,
) -> CollateralUse:
    """Prove that a CRL of the certificates' issuer is current enough, and that none of them is on it.

    Args:
        digest: what `signed_crl` returned.

    Raises:
        CollateralError: `collateral-stale`, `collateral-not-yet`. RevokedError: `certificate-revoked`.
    """
    usage = context.use(kind, digest, issued=crl.last_update_utc, next_update=crl.next_update_utc, fix=fix)
    for certificate in certificates:
        # Whatever the reason: "removed" stands in delta CRLs alone, and those are refused.
        if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
            raise RevokedError(
                f"{_name(certificate)} was revoked by its issuer", code="certificate-revoked", stage=stage
            )
    return usage


def signed_crl(
    crl: x509.CertificateRevocationList, issuer: x509.Certificate, *, context: Context, stage: str
) -> bytes | None:
    """Return the digest of a CRL that `issuer` signed, 32 bytes; None if it names another issuer.

    Raises:
        VerificationError: `bad-crl`.
    """
    # It holds for ever, for these very objects.
    return context.remember(
        ("crl", Same(crl), Same(issuer)), lambda: _prove_crl(crl, issuer, context, stage), size=16 * 1024
    )


def _prove_crl(
    crl: x509.CertificateRevocationList, issuer: x509.Certificate, context: Context, stage: str
) -> bytes | None:
    """Return the digest of a CRL that `issuer` signed, and in which nothing is critical that is not known."""
    if crl.issuer != issuer.subject:
        return None
    digest = sha256(crl.public_bytes(Encoding.DER)).digest()
    if not extension(issuer, x509.KeyUsage, stage=stage).crl_sign:
        _refuse(f"{_name(issuer)} may not sign CRLs", "bad-crl", stage)
    _check_crl_signature(crl, issuer, digest, context, stage)
    if any(extension.critical for extension in crl.extensions):
        _refuse("the CRL has a critical extension that is not known", "bad-crl", stage)
    return digest


def find_crl(
    crls: Collection[x509.CertificateRevocationList], issuer: x509.Certificate
) -> x509.CertificateRevocationList | None:
    """Return the newest CRL that names `issuer`; nothing about it is verified."""
    named = [crl for crl in crls if crl.issuer == issuer.subject]
    return max(named, key=lambda crl: crl.last_update_utc, default=None)


def extension(certificate: x509.Certificate, kind: type[_E], *, stage: str) -> _E:
    """Return an extension that has to be there. Raises VerificationError `bad-certificate`."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        _refuse(f"{_name(certificate)} lacks {kind.__name__}", "bad-certificate", stage)


def _paths(
    path: list[x509.Certificate],
    others: dict[bytes, x509.Certificate],
    anchors: dict[bytes, x509.Certificate],
    longest: int,
    steps: Iterator[int],
    stage: str,
) -> Iterator[list[x509.Certificate]]:
    """Yield paths by names alone, shortest extension first, that end in an anchor."""
    if next(steps) >= MAX_STEPS:
        _refuse("certificates with the same names lead to too many paths", "bad-certificate", stage)
    last = path[-1]
    if fingerprint(last) in anchors:
        yield path
        return
    if len(path) >= longest:
        return
    pool = {**others, **anchors}  # an anchor's own bytes win
    for one in pool.values():
        if one.subject == last.issuer and one not in path and _could_have_signed(last, one):
            yield from _paths([*path, one], others, anchors, longest, steps, stage)


def _could_have_signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Say whether key identifiers, where both are there, let `issuer` be the issuer among others of its name."""
    try:
        wanted = certificate.extensions.get_extension_for_class(
            x509.AuthorityKeyIdentifier
        ).value.key_identifier
        found = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return True
    return wanted is None or wanted == found


def _check_dates(certificate: x509.Certificate, at: datetime, stage: str) -> None:
    if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
        _refuse(
            f"{_name(certificate)} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d}, not at the time of verification",
            "certificate-expired",
            stage,
        )


def _check_purpose(
    certificate: x509.Certificate, depth: int, known: frozenset[x509.ObjectIdentifier], stage: str
) -> None:
    if any(one.critical and one.oid not in known for one in certificate.extensions):
        _refuse(f"{_name(certificate)} has a critical extension that is not known", "bad-certificate", stage)
    if depth:
        _check_ca(certificate, depth, stage)


def _check_ca(certificate: x509.Certificate, depth: int, stage: str) -> None:
    constraints = extension(certificate, x509.BasicConstraints, stage=stage)
    usage = extension(certificate, x509.KeyUsage, stage=stage)
    too_long = constraints.path_length is not None and constraints.path_length < depth - 1
    if not constraints.ca or too_long or not usage.key_cert_sign:
        _refuse(f"{_name(certificate)} may not sign this certificate", "bad-certificate", stage)


def _check_crl_signature(
    crl: x509.CertificateRevocationList,
    issuer: x509.Certificate,
    digest: bytes,
    context: Context,
    stage: str,
) -> None:
    try:
        key = issuer.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
            raise TypeError("a CRL is signed by an EC or RSA key")
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

        def verify() -> None:
            if not crl.is_signature_valid(key):
                raise InvalidSignature

        context.check_signature(sha256(digest + spki).digest(), verify)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        _refuse("the CRL was not signed by its issuer", "bad-crl", stage)


def _name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return f"certificate {str(names[0].value)[:64]!r}" if names else "a certificate without a name"


def _refuse(message: str, code: str, stage: str) -> NoReturn:
    raise VerificationError(message, code=code, stage=stage)
