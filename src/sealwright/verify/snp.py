"""Is this SEV-SNP report genuine? Steps, stages and codes as in docs/spec/snp.md, "Verification"."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from sealwright.endorsement.amd import VekCertificate, VekKind, ark, arks, signers, vek_name, veks
from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.x509 import fingerprint
from sealwright.errors import CollateralError, EvidenceFormatError, VerificationError
from sealwright.evidence.snp import SnpReport
from sealwright.evidence.snp_fields import Product
from sealwright.verify.chain import Chain, build_chain, check_dates, signed_crl, use_crl
from sealwright.verify.context import NO_TOLERANCE, Context, Same
from sealwright.verify.snp_findings import (
    MASKED_CHIP_ID,
    chain_proofs,
    conditions,
    facts,
    not_proved,
    report_proof,
    revocation_proof,
)
from sealwright.verify.verified import MADE_BY_VERIFY, CollateralUse, Condition, Fact, Proof, Verified

MAX_VEKS = 64
_ECDSA = ec.ECDSA(SHA384())
_REPORT_DATA, _REPORT_ID = 0x50, 0x140  # where these fields begin
_SALT = 48  # bytes, of AMD's RSA-PSS signatures
_FIX = "fetch AMD's CRL of this product, `sealwright collateral fetch`"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSnp(Verified):
    """A genuine SEV-SNP report. Made by `verify_snp` alone."""

    report: SnpReport
    product: Product
    signing_key: VekKind
    chip_id: (
        bytes | None
    )  # 8 bytes (Turin) or 64, from the VCEK's certificate, or signed by a VLEK; None: not told
    csp_id: str | None  # of a VLEK


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proved:
    """A VEK and its chain: what holds for ever once it was proved."""

    vek: VekCertificate
    chain: Chain
    key: ec.EllipticCurvePublicKey
    root: bytes  # SHA-256, 32 bytes
    since: datetime  # all certificates are valid from then
    until: datetime
    proofs: tuple[Proof, ...]
    not_proved: tuple[str, ...]


def verify_snp(
    report: SnpReport, endorsements: Endorsements, *, expected_report_data: bytes, context: Context
) -> VerifiedSnp:
    """Check freshness, the chain from the report's key to AMD's root for its product, revocation, and the signature.

    Args:
        endorsements: the VCEK's or VLEK's certificate and AMD's CRL at least; ASK, ASVK and ARK are known.
        expected_report_data: 64 bytes; compared whole.

    Raises:
        VerificationError: `report-data-mismatch`, `report-not-signed`, `product-mismatch`, `bad-certificate`,
            `unknown-root`, `certificate-expired`, `bad-crl`, `tcb-mismatch`, `chip-mismatch`, `bad-signature`.
        EvidenceFormatError: `malformed-vek`. RevokedError: `certificate-revoked`.
        CollateralError: `vek-missing`, `collateral-missing`, `collateral-stale`, `collateral-not-yet`.
    """
    # 1. Freshness. A different length is a mismatch, never padded or cut.
    if not hmac.compare_digest(report.report_data, expected_report_data):
        _refuse("report-data", "report-data-mismatch", "REPORT_DATA is not the expected value")
    # 2. The key that the report names, VCEK or VLEK, and a certificate for it.
    kind = _signing_key(report)
    leaf = _choose(report, veks(endorsements, kind), kind, context.at)
    # 3. VEK -> ASK or ASVK -> the ARK of its product. What was proved once holds for ever, but for the dates.
    proved = _proof_of(leaf, kind, endorsements, context)
    if not proved.since <= context.at <= proved.until:
        check_dates(proved.chain, context=context, stage="chain")  # names the certificate
    # 4. It is the product of the report, by CPUID where the report has it.
    _check_product(report, proved.vek)
    # 5. Revocation. AMD revokes ASKs, never VEKs: those all have the serial number 0.
    crl = _check_crls(proved.chain, endorsements, context)
    # 6. The key is the one of the TCB that is reported, and of this chip.
    _check_tcb_and_chip(report, proved.vek)
    # 7. The signature, over bytes 0x000-0x29F as received.
    try:
        proved.key.verify(encode_dss_signature(report.signature_r, report.signature_s), report.signed, _ECDSA)
    except InvalidSignature:
        _refuse("signature", "bad-signature", "the report's signature does not hold")
    return _verified(report, proved, crl, context)


def _signing_key(report: SnpReport) -> VekKind:
    key = report.key_info.signing_key
    if key == "none" or not report.is_signed:
        _refuse("key", "report-not-signed", "the report says that no key signed it")
    return key


def _choose(
    report: SnpReport, candidates: list[x509.Certificate], kind: VekKind, at: datetime
) -> x509.Certificate:
    """Return the certificate that fits the report, or one that almost does, for the refusal to name the difference."""
    if not candidates:
        raise CollateralError(
            f"no certificate of the {kind.upper()} came with the report: fetch it for CHIP_ID and reported TCB",
            code="vek-missing",
            stage="key",
        )
    if len(candidates) > MAX_VEKS:
        raise EvidenceFormatError(f"over {MAX_VEKS} certificates of {kind.upper()}s", code="too-large")
    if len(candidates) == 1:
        return candidates[0]
    return max(candidates, key=partial(_fit, report, kind, at))


def _fit(report: SnpReport, kind: VekKind, at: datetime, one: x509.Certificate) -> tuple[bool, bool, bool]:
    try:
        vek = VekCertificate.parse(one, kind)
    except EvidenceFormatError:
        return False, False, False
    valid = one.not_valid_before_utc <= at <= one.not_valid_after_utc
    return vek.is_of_chip(report.chip_id), vek.tcb == report.reported_tcb, valid


def _check_product(report: SnpReport, vek: VekCertificate) -> None:
    # A report of version 2 has no CPUID. Its TCB versions were read in the layout of Milan and Genoa.
    if vek.product != (report.product or vek.product) or (report.product is None and vek.product == "Turin"):
        said = report.product or "Milan or Genoa, by its version,"
        text = f"the report is of {said} and the certificate of {vek.product}"
        _refuse("product", "product-mismatch", text)


def _proof_of(leaf: x509.Certificate, kind: VekKind, endorsements: Endorsements, context: Context) -> _Proved:
    """Return what `_prove` does: from memory for this very object, or else for a certificate of the same bytes."""

    def same_bytes() -> _Proved:
        return context.remember(
            ("amd", leaf, kind, context.roots), lambda: _prove(leaf, kind, endorsements, context)
        )

    # To hash a certificate takes longer than all else here.
    return context.remember(("amd", Same(leaf), kind, context.roots), same_bytes)


def _prove(leaf: x509.Certificate, kind: VekKind, endorsements: Endorsements, context: Context) -> _Proved:
    if leaf.subject != vek_name(kind):
        _refuse("chain", "bad-certificate", f"the certificate is not one of a {kind.upper()} of AMD's")
    vek = VekCertificate.parse(leaf, kind)
    failure = None
    for signer, pinned, named in _routes(vek, endorsements, context):
        try:
            chain = build_chain(leaf, [signer, *named], pinned, context=context, stage="chain", longest=3)
        except VerificationError as exc:
            if exc.code not in ("bad-certificate", "unknown-root"):
                raise
            failure = exc
            continue
        _check_algorithms(chain)
        return _Proved(
            vek=vek,
            chain=chain,
            key=_key(leaf),
            root=fingerprint(chain.root),
            since=max(one.not_valid_before_utc for one in chain.certificates),
            until=chain.until,
            proofs=chain_proofs(vek, chain),
            not_proved=not_proved(vek),
        )
    raise failure or RuntimeError("no route to a root was tried")


def _routes(
    vek: VekCertificate, endorsements: Endorsements, context: Context
) -> Iterator[tuple[x509.Certificate, list[x509.Certificate], list[x509.Certificate]]]:
    """Yield (ASK or ASVK, pinned roots, roots that the policy may name): each by itself, so that none hides another."""
    pinned = ark(vek.product)
    for signer in signers(endorsements, vek.product, vek.kind):
        yield signer, [pinned], []
    if context.roots:
        named = [one for one in arks(endorsements, vek.product) if fingerprint(one) in context.roots]
        for root in named:
            for signer in signers(endorsements, vek.product, vek.kind):
                yield signer, [], [root]


def _check_algorithms(chain: Chain) -> None:
    """Prove that there is one ASK or ASVK in between, and that both signatures are RSA-PSS over SHA-384."""
    if len(chain.certificates) != 3:
        _refuse("chain", "bad-certificate", "the key was not certified by an ASK or ASVK")
    for certificate in chain.certificates[:2]:
        padding = certificate.signature_algorithm_parameters
        if not (
            isinstance(padding, PSS)
            and isinstance(padding.mgf, MGF1)
            and isinstance(padding.mgf._algorithm, SHA384)
            and padding._salt_length == _SALT
            and isinstance(certificate.signature_hash_algorithm, SHA384)
        ):
            _refuse("chain", "bad-certificate", "a certificate is not signed with RSA-PSS over SHA-384")
    usage = chain.root.extensions.get_extension_for_class(x509.KeyUsage).value
    if not usage.crl_sign:
        _refuse("chain", "bad-certificate", "the root may not sign CRLs")


def _key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    try:
        key = certificate.public_key()
    except ValueError:
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        _refuse("chain", "bad-certificate", "the certificate has no P-384 key")
    return key


def _check_crls(chain: Chain, endorsements: Endorsements, context: Context) -> CollateralUse:
    """Prove that ASK or ASVK is not on the newest CRL, nor on any other that is current.

    AMD serves one CRL for VCEKs and one for VLEKs, both by the ARK, and nothing in them tells which is which.
    """
    _, signer, root = chain.certificates
    named = []
    for crl in endorsements.crls:
        digest = signed_crl(crl, root, context=context, stage="crl")
        if digest is not None:
            named.append((crl, digest))
    if not named:
        return context.without("amd-crl", fix=_FIX)
    use = partial(use_crl, certificates=(signer,), kind="amd-crl", context=context, stage="crl", fix=_FIX)
    if len(named) == 1:
        return use(*named[0])
    newest, *others = sorted(
        named, key=lambda one: (one[0].last_update_utc <= context.at, one[0].last_update_utc), reverse=True
    )
    used = use(*newest)
    for crl, digest in others:
        if _is_current(crl, context.at):
            use(crl, digest)
    return used


def _is_current(crl: x509.CertificateRevocationList, at: datetime) -> bool:
    return crl.next_update_utc is not None and crl.last_update_utc <= at < crl.next_update_utc


def _check_tcb_and_chip(report: SnpReport, vek: VekCertificate) -> None:
    if vek.tcb != report.reported_tcb:
        text = f"the key is of TCB {vek.tcb}, and the report of {report.reported_tcb}"
        _refuse("tcb", "tcb-mismatch", text)
    # A VLEK belongs to no chip. A CHIP_ID that is masked is a condition.
    if vek.kind == "vcek" and report.chip_id != MASKED_CHIP_ID and not vek.is_of_chip(report.chip_id):
        _refuse("chip", "chip-mismatch", "CHIP_ID is not the chip of the VCEK")


def _verified(report: SnpReport, proved: _Proved, crl: CollateralUse, context: Context) -> VerifiedSnp:
    vek, until = proved.vek, proved.until
    said, states = _findings(report, proved, context)
    if crl.next_update is not None:
        until = min(until, crl.next_update + context.outage.get("amd-crl", NO_TOLERANCE).stale)
    return VerifiedSnp(
        platform="snp",
        report_data=report.report_data,
        registers={
            "measurement": report.measurement,
            "host_data": report.host_data,
            "id_key_digest": report.id_key_digest,
            "author_key_digest": report.author_key_digest,
        },
        facts=dict(said),
        conditions=states,
        proofs=(report_proof(report, vek), *proved.proofs, revocation_proof(vek, crl)),
        not_proved=proved.not_proved,
        collateral=(crl,),
        root=proved.root,
        vendor_root=proved.chain.vendor,
        until=until,
        report=report,
        product=vek.product,
        signing_key=vek.kind,
        chip_id=vek.hwid or _chip_id(report),
        csp_id=vek.csp_id,
        _made_by=MADE_BY_VERIFY,
    )


def _findings(
    report: SnpReport, proved: _Proved, context: Context
) -> tuple[dict[str, Fact], tuple[Condition, ...]]:
    """Return facts and conditions, which are the same in every report of one boot: they rest on none of the fields
    from REPORT_DATA to AUTHOR_KEY_DIGEST."""
    before, behind = report.signed[:_REPORT_DATA], report.signed[_REPORT_ID:]
    return context.remember(
        ("snp", Same(proved), before, behind),
        lambda: (facts(report, proved.vek), tuple(conditions(report))),
    )


def _chip_id(report: SnpReport) -> bytes | None:
    if report.chip_id == MASKED_CHIP_ID:
        return None
    return report.chip_id[:8] if report.product == "Turin" else report.chip_id


def _refuse(stage: str, code: str, message: str) -> NoReturn:
    raise VerificationError(message, code=code, stage=stage)
