"""Keys and certificates of a TPM: the TCG's templates of endorsement keys, and which certificate is of which key.

TCG EK Credential Profile for TPM 2.0, section 2 (templates, NV indices) and 3 (certificates). No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealwright.endorsement.bag import Endorsements
from sealwright.errors import EvidenceFormatError
from sealwright.evidence.tpmkey import CURVE_IDS, PublicKey, TpmtPublic
from sealwright.evidence.tpmwire import ALG_ECC, ALG_RSA, Bank

EK_EKU = x509.ObjectIdentifier("2.23.133.8.1")  # tcg-kp-EKCertificate
AK_EKU = x509.ObjectIdentifier("2.23.133.8.3")  # tcg-kp-AIKCertificate

# fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt; H: userWithAuth too
_LOW, _HIGH = 0x000300B2, 0x000300F2
# PolicySecret(endorsement hierarchy); H: PolicyOR of that and of a policy in NV
_POLICY_A = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_POLICY_B: Mapping[Bank, bytes] = MappingProxyType(
    {
        "sha256": bytes.fromhex("ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0"),
        "sha384": bytes.fromhex(
            "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EkTemplate:
    """One of the TCG's templates: what CreatePrimary in the endorsement hierarchy is asked for."""

    name: str  # "L-1", "H-3", …
    certificate_index: int  # where its certificate is in NV
    public: TpmtPublic
    by_policy: bool  # used through PolicySecret; else its empty password does


def _rsa(name: str, index: int, bits: int, hash_: Bank, aes: int, *, low: bool = False) -> EkTemplate:
    public = TpmtPublic(
        type=ALG_RSA,
        nameAlg=hash_,
        objectAttributes=_LOW if low else _HIGH,
        authPolicy=_POLICY_A if low else _POLICY_B[hash_],
        symmetric_bits=aes,
        keyBits=bits,
        unique=(bytes(bits // 8) if low else b"",),
    )
    return EkTemplate(name=name, certificate_index=index, public=public, by_policy=low)


def _ecc(name: str, index: int, curve: str, hash_: Bank, aes: int, *, low: bool = False) -> EkTemplate:
    public = TpmtPublic(
        type=ALG_ECC,
        nameAlg=hash_,
        objectAttributes=_LOW if low else _HIGH,
        authPolicy=_POLICY_A if low else _POLICY_B[hash_],
        symmetric_bits=aes,
        curveID=CURVE_IDS[curve],
        unique=(bytes(32), bytes(32)) if low else (b"", b""),
    )
    return EkTemplate(name=name, certificate_index=index, public=public, by_policy=low)


EK_TEMPLATES = (
    _ecc("H-3", 0x01C00016, "secp384r1", "sha384", 256),
    _rsa("H-7", 0x01C0001E, 4096, "sha384", 256),
    _rsa("H-6", 0x01C0001C, 3072, "sha384", 256),
    _ecc("H-2", 0x01C00014, "secp256r1", "sha256", 128),
    _rsa("H-1", 0x01C00012, 2048, "sha256", 128),
    _ecc("L-2", 0x01C0000A, "secp256r1", "sha256", 128, low=True),
    _rsa("L-1", 0x01C00002, 2048, "sha256", 128, low=True),
)  # the strongest first


def ek_public(key: PublicKey) -> TpmtPublic:
    """Return the public area that the TCG's template gives an endorsement key.

    L and H templates differ in how a TPM lets the key be used, in nothing that is needed to encrypt to it.

    Raises:
        EvidenceFormatError: `unsupported-tpm-algorithm`: no template makes such a key.
    """
    if isinstance(key, ec.EllipticCurvePublicKey):
        size = (key.curve.key_size + 7) // 8
        numbers = key.public_numbers()
        unique: tuple[bytes, ...] = (numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big"))
        wanted = (0, CURVE_IDS.get(key.curve.name, -1))
    else:
        unique = (key.public_numbers().n.to_bytes((key.key_size + 7) // 8, "big"),)
        wanted = (key.key_size, 0)
    for template in EK_TEMPLATES:
        if (template.public.keyBits, template.public.curveID) == wanted:
            public = TpmtPublic.parse(replace(template.public, unique=unique).encode())
            if spki(public.key()) == spki(key):  # an exponent that TPMs do not have would differ here
                return public
    raise EvidenceFormatError("no TCG template makes such an EK", code="unsupported-tpm-algorithm")


def spki(key: PublicKey) -> bytes:
    """Return SubjectPublicKeyInfo in DER: modulus and exponent, or curve and point."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def certificate_key(certificate: x509.Certificate) -> PublicKey | None:
    """Return the certificate's key, or None if it is neither RSA nor EC."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey) else None


def certificates_of(key: PublicKey, endorsements: Endorsements) -> tuple[x509.Certificate, ...]:
    """Return the certificates of `key`, the newest first. Nothing about them is verified."""
    wanted = spki(key)
    found = [
        certificate
        for certificate in endorsements.certificates
        if (own := certificate_key(certificate)) is not None and spki(own) == wanted
    ]
    return tuple(sorted(found, key=lambda certificate: certificate.not_valid_before_utc, reverse=True))
