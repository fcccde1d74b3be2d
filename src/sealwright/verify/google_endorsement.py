"""Did Google endorse this launch measurement? Its launch endorsements, proved up to a named root.

An endorsement says which values MEASUREMENT (SEV-SNP) or MRTD (TDX) a VM of Compute Engine starts with. It is no
evidence: the value that it lists must still stand in a report or quote that was verified. Spec: docs/spec/evidence.md.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealwright.endorsement.google import GoldenMeasurement, LaunchEndorsement
from sealwright.endorsement.x509 import fingerprint
from sealwright.errors import CollateralError, VerificationError
from sealwright.verify.chain import Chain, build_chain, extension
from sealwright.verify.context import Context
from sealwright.verify.verified import MADE_BY_VERIFY, Proof

STAGE = "launch-endorsement"
_SALT = 32  # bytes
_MIN_BITS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedLaunchEndorsement:
    """An endorsement whose signature and chain hold. Made by `verify_launch_endorsement` alone."""

    registers: Mapping[str, frozenset[bytes]]  # `measurement`, `mrtd`: the values endorsed, 48 bytes each
    golden: GoldenMeasurement
    proofs: tuple[Proof, ...]
    root: bytes  # SHA-256 of the root certificate, 32 bytes
    until: datetime  # the earliest end among certificates
    _made_by: object = field(repr=False)

    def __post_init__(self) -> None:
        if self._made_by is not MADE_BY_VERIFY:
            raise TypeError("a VerifiedLaunchEndorsement is made by verify_launch_endorsement alone")

    def require(self, register: str, value: bytes) -> None:
        """Prove that `value` of a verified report's `register` is endorsed.

        Raises:
            VerificationError: `launch-not-endorsed`.
        """
        endorsed = self.registers.get(register, frozenset())
        if not any(hmac.compare_digest(value, one) for one in endorsed):
            _refuse(f"{register} {value.hex()[:16]}… is not among the values endorsed", "launch-not-endorsed")


def verify_launch_endorsement(
    endorsement: LaunchEndorsement, certificates: Collection[x509.Certificate], *, context: Context
) -> VerifiedLaunchEndorsement:
    """Prove that a key which the root of Google's launch endorsements certifies signed `endorsement`.

    Args:
        certificates: where the root is, and intermediates if there are any. No vendor root is pinned for this: it
            counts if its SHA-256 stands in `context.roots`. Google's roots of TPM keys are for another purpose.

    Raises:
        VerificationError: `unknown-root`, `bad-certificate`, `certificate-expired`, `bad-signature`.
        CollateralError: `collateral-not-yet`: it is dated after `context.at`.
    """
    golden, leaf = endorsement.unverified, endorsement.unverified_certificate
    # 1. The signer's certificate, up to a root that was named.
    chain = build_chain(
        leaf, [*certificates, *endorsement.unverified_bundle], (), context=context, stage=STAGE
    )
    # 2. A key for signatures, not one that certifies others; a root is no signer.
    key = _signing_key(chain)
    # 3. RSASSA-PSS with SHA-256 over the signed bytes as received.
    _check_signature(endorsement, key, context)
    # 4. Not from the future.
    if golden.timestamp > context.at:
        raise CollateralError(
            "the launch endorsement was issued after the time of verification; check the clock, or --at",
            code="collateral-not-yet",
            stage=STAGE,
        )
    return VerifiedLaunchEndorsement(
        registers={
            "measurement": frozenset(golden.sev_snp.values()),
            "mrtd": frozenset(one.mrtd for one in golden.tdx),
        },
        golden=golden,
        proofs=(
            Proof(what=f"launch endorsement of {golden.timestamp:%Y-%m-%d}", by=_name(leaf)),
            *(
                Proof(what=_name(one), by=_name(issuer), until=one.not_valid_after_utc)
                for one, issuer in zip(chain.certificates, chain.certificates[1:], strict=False)
            ),
        ),
        root=fingerprint(chain.root),
        until=chain.until,
        _made_by=MADE_BY_VERIFY,
    )


def _signing_key(chain: Chain) -> rsa.RSAPublicKey:
    if len(chain.certificates) < 2:
        _refuse("the root itself signed the endorsement", "bad-certificate")
    usage = extension(chain.leaf, x509.KeyUsage, stage=STAGE)
    if not usage.digital_signature or usage.key_cert_sign:
        _refuse("the certificate is not one of a signing key", "bad-certificate")
    key = chain.leaf.public_key()
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < _MIN_BITS:
        _refuse("the certificate has no RSA key of a good size", "bad-certificate")
    return key


def _check_signature(endorsement: LaunchEndorsement, key: rsa.RSAPublicKey, context: Context) -> None:
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    parts = (STAGE.encode(), endorsement.signed, endorsement.signature, spki)
    digest = sha256(b"".join(sha256(part).digest() for part in parts)).digest()

    def verify() -> None:
        scheme = padding.PSS(mgf=padding.MGF1(SHA256()), salt_length=_SALT)
        key.verify(endorsement.signature, endorsement.signed, scheme, SHA256())

    try:
        context.check_signature(digest, verify)
    except InvalidSignature:
        _refuse("the signature of the launch endorsement does not hold", "bad-signature")


def _name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value)[:64] if names else "a certificate without a name"


def _refuse(message: str, code: str) -> NoReturn:
    raise VerificationError(message, code=code, stage=STAGE)
