"""Is a TPM quote genuine, and by a key that a TPM holds? Steps and codes as in docs/spec/tpm.md.

Log replay is `sealwright.verify.eventlog`; the checks of a quote under a trusted key are `verify.tpmquote`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Literal, NoReturn

from cryptography import x509

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.roots import anchors, intermediates
from sealwright.endorsement.tpm import AK_EKU, EK_EKU, certificates_of
from sealwright.endorsement.x509 import fingerprint
from sealwright.errors import VerificationError
from sealwright.evidence import tpmkey
from sealwright.evidence.tpm import TpmQuote
from sealwright.evidence.tpmkey import TpmtPublic
from sealwright.verify.chain import Chain, build_chain, check_crl, extension, find_crl
from sealwright.verify.context import Context
from sealwright.verify.tpmquote import check_quote, registers
from sealwright.verify.verified import MADE_BY_VERIFY, CollateralUse, Fact, Proof, Verified

KNOWN_CRITICAL = (x509.SubjectAlternativeName.oid, x509.ExtendedKeyUsage.oid)
_REQUIRED = {
    "fixedTPM": tpmkey.FIXED_TPM,
    "fixedParent": tpmkey.FIXED_PARENT,
    "sensitiveDataOrigin": tpmkey.SENSITIVE_DATA_ORIGIN,
    "restricted": tpmkey.RESTRICTED,
    "sign": tpmkey.SIGN,
}
_NOT_PROVED = (
    "A TPM measures what is started, not what the machine's owner or provider does with its memory: nothing here "
    "is hidden from them.",
    "That the firmware measured into every PCR bank, and that the TPM stands in the machine that answers.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedTpm(Verified):
    """A quote by an attestation key that a certificate vouches for."""

    quote: TpmQuote
    tpm: Literal["provider"] = "provider"  # it is run outside the TEE, by whoever runs the machine


def verify_tpm(
    quote: TpmQuote, endorsements: Endorsements, *, expected_report_data: bytes, context: Context
) -> VerifiedTpm:
    """Prove that a TPM's attestation key signed `quote`, and that a trusted CA vouches for that key.

    Args:
        expected_report_data: 64 bytes.

    Raises:
        VerificationError: `ak-missing`, `ak-not-restricted`, `ak-not-certified`, `unknown-root`, `bad-certificate`,
            `certificate-expired`, `bad-crl`, and those of `check_quote`.
        CollateralError: `collateral-missing`, `collateral-stale`, `collateral-not-yet`.
        RevokedError: `certificate-revoked`.
    """
    # 1. The key that it says signed it.
    ak = quote.ak_public
    if ak is None:
        _refuse("the evidence has no attestation key", "ak-missing", "attestation-key")
    # 2, 3. A CA that is trusted says so, and has not revoked it.
    chain, collateral = verify_ak(ak, endorsements, context=context)
    # 4. Freshness, signature, PCRs.
    if ak.scheme != quote.signature.scheme:
        _refuse("the signature's scheme is not that of the attestation key", "signature-scheme", "quote")
    conditions = check_quote(quote, ak.key(), expected_report_data=expected_report_data)
    return VerifiedTpm(
        platform="tpm",
        report_data=quote.attest.extraData,
        registers=registers(quote.pcrs),
        facts=_facts(quote, ak, chain),
        conditions=conditions,
        proofs=_proofs(ak, chain),
        not_proved=_NOT_PROVED,
        collateral=collateral,
        root=fingerprint(chain.root),
        vendor_root=chain.vendor,
        until=earliest(chain, collateral),
        quote=quote,
        _made_by=MADE_BY_VERIFY,
    )


def verify_ak(
    ak: TpmtPublic, endorsements: Endorsements, *, context: Context
) -> tuple[Chain, tuple[CollateralUse, ...]]:
    """Prove that `ak` is an attestation key that a CA of TPMs vouches for: Google's, or one that `context.roots` names.

    Raises:
        VerificationError, CollateralError, RevokedError: as `verify_tpm`, but for the quote's own.
    """
    # 1. The key signs nothing but what its TPM made, and never leaves it.
    check_ak(ak)
    # 2. A certificate of exactly this key, up to a root that is pinned or named.
    chain = _ak_chain(ak, endorsements, context)
    # 3. Revocation.
    return chain, check_revocation(chain, endorsements, context=context, always=not chain.vendor)


def check_ak(ak: TpmtPublic, *, stage: str = "attestation-key") -> None:
    """Prove that `ak` is an attestation key: restricted, signing only, made in its TPM and fixed to it.

    A key without these signs whatever it is handed, also a made-up quote.

    Raises:
        VerificationError: `ak-not-restricted`.
    """
    missing = [name for name, bit in _REQUIRED.items() if not ak.objectAttributes & bit]
    if missing or ak.objectAttributes & tpmkey.DECRYPT or ak.scheme is None or ak.symmetric_bits:
        text = ", ".join(missing) or "a signing scheme alone"
        _refuse(f"the key is no attestation key: it lacks {text}", "ak-not-restricted", stage)
    if ak.nameAlg == "sha1":
        _refuse("the attestation key is named by SHA-1", "ak-not-restricted", stage)


def check_revocation(
    chain: Chain, endorsements: Endorsements, *, context: Context, always: bool
) -> tuple[CollateralUse, ...]:
    """Prove that no certificate of `chain` stands on a CRL of its issuer.

    A CRL is needed of every issuer that says in a certificate where it publishes one.

    Args:
        always: a CRL is needed of every issuer.

    Raises:
        VerificationError: `bad-crl`. CollateralError, RevokedError: as `check_crl` and `Context.without`.
    """
    used = []
    for certificate, issuer in pairwise(chain.certificates):
        crl = find_crl(endorsements.crls, issuer)
        fix = f"bring the CRL of {common_name(issuer)}"
        if crl is not None:
            use = check_crl(
                crl, issuer, [certificate], kind="tpm-crl", context=context, stage="revocation", fix=fix
            )
            used.append(use)
        elif always or _has(certificate, x509.CRLDistributionPoints):
            used.append(context.without("tpm-crl", fix=fix))
    return tuple(used)


def earliest(chain: Chain, collateral: tuple[CollateralUse, ...]) -> datetime:
    """Return when the first certificate or CRL ends."""
    return min([chain.until, *(use.next_update for use in collateral if use.next_update is not None)])


def common_name(certificate: x509.Certificate) -> str:
    """Return what to call a certificate's subject."""
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value)[:64] if names else "a CA without a common name"


def _ak_chain(ak: TpmtPublic, endorsements: Endorsements, context: Context) -> Chain:
    found = certificates_of(ak.key(), endorsements)
    if not found:
        _refuse(
            "no certificate among the endorsements is of this attestation key",
            "ak-not-certified",
            "attestation-key",
        )
    in_force = [one for one in found if one.not_valid_before_utc <= context.at <= one.not_valid_after_utc]
    chain = _first_chain(in_force or found, endorsements, context)
    _check_purpose(chain)
    return chain


def _first_chain(
    certificates: Sequence[x509.Certificate], endorsements: Endorsements, context: Context
) -> Chain:
    """Return the chain of the first certificate that leads to a trusted root: a key may be certified twice."""
    for number, certificate in enumerate(certificates):
        try:
            return build_chain(
                certificate,
                (*endorsements.certificates, *intermediates("google")),
                anchors("google"),
                context=context,
                stage="chain",
                known_critical=KNOWN_CRITICAL,
            )
        except VerificationError as exc:
            if exc.code != "unknown-root" or number == len(certificates) - 1:
                raise
    raise ValueError("no certificates")


def _check_purpose(chain: Chain) -> None:
    """Prove that the leaf is a certificate of an attestation key.

    Google's certificates tell its vTPMs' attestation keys from their endorsement keys by key usage alone: the
    extended key usage is missing, or the same for both.
    """
    usage = extension(chain.leaf, x509.KeyUsage, stage="chain")
    constraints = extension(chain.leaf, x509.BasicConstraints, stage="chain")
    others = usage.key_cert_sign or usage.crl_sign or usage.key_encipherment or usage.key_agreement
    if constraints.ca or others or not usage.digital_signature:
        _refuse("the certificate is not one of an attestation key", "bad-certificate", "chain")
    named = not chain.vendor or _has(chain.leaf, x509.ExtendedKeyUsage)
    purposes = set(extension(chain.leaf, x509.ExtendedKeyUsage, stage="chain")) if named else {AK_EKU}
    allowed = {AK_EKU, EK_EKU} if chain.vendor else {AK_EKU}
    if not purposes <= allowed:
        _refuse("the certificate's extended key usage is not that of an AK", "bad-certificate", "chain")


def _facts(quote: TpmQuote, ak: TpmtPublic, chain: Chain) -> dict[str, Fact]:
    attest = quote.attest
    return {
        "tpm": "provider",
        "ak_name": ak.name().hex(),
        "ak_subject": chain.leaf.subject.rfc4514_string(),
        "qualifiedSigner": attest.qualifiedSigner.hex(),
        "signature_scheme": f"{quote.signature.scheme.name}-{quote.signature.scheme.hash}",
        "clock": attest.clock,
        "resetCount": attest.resetCount,
        "restartCount": attest.restartCount,
        "safe": attest.safe,
        "firmwareVersion": f"{attest.firmwareVersion:016x}",
        "banks": {bank: sorted(values) for bank, values in quote.pcrs.items()},
    }


def _proofs(ak: TpmtPublic, chain: Chain) -> tuple[Proof, ...]:
    name = ak.name().hex()[:20]
    steps = [Proof(what="quote over PCRs and report data", by=f"attestation key {name}…")]
    what = f"attestation key {name}…"
    for certificate, issuer in pairwise(chain.certificates):
        steps.append(Proof(what=what, by=common_name(issuer), until=certificate.not_valid_after_utc))
        what = common_name(issuer)
    by = "pinned in this package" if chain.vendor else "named by the policy"
    return (*steps, Proof(what=what, by=by, until=chain.root.not_valid_after_utc))


def _has(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> bool:
    return any(isinstance(one.value, kind) for one in certificate.extensions)


def _refuse(message: str, code: str, stage: str) -> NoReturn:
    raise VerificationError(message, code=code, stage=stage)
