"""AWS Nitro without AWS: a hierarchy of its own that signs whatever document a test asks for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from sealwright.crypto.cbor import CborValue, Tagged, encode
from sealwright.endorsement.x509 import fingerprint, key_usage
from sealwright.evidence.nitro import COSE_SIGN1, ES384, SIGNATURE_SIZE, Kind
from sealwright.testing.software import FakePlatformWarning

INSTANCE = "i-0123456789abcdef0"
_MODULE_IDS = {"enclave": f"{INSTANCE}-enc0123456789abcdef", "nitrotpm": f"{INSTANCE}-tpm0000000000000000"}
_REGISTERS = {"enclave": "pcrs", "nitrotpm": "nitrotpm_pcrs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A key with its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.DER)


class NitroTestPlatform:
    """Root, region, zone and instance as Nitro has them, and a signing key for three hours from `now`.

    Nothing is measured: never trust its root.
    """

    def __init__(self, now: datetime) -> None:
        warnings.warn("NitroTestPlatform signs anything", FakePlatformWarning, stacklevel=2)
        self.now = now
        self.root = issue("aws.nitro-enclaves", None, now, timedelta(days=10950), path_length=None)
        self.region = issue("test-1.aws.nitro-enclaves", self.root, now, timedelta(days=20), path_length=2)
        self.zone = issue(
            "a.zonal.test-1.aws.nitro-enclaves", self.region, now, timedelta(days=6), path_length=1
        )
        self.instance = issue(
            f"{INSTANCE}.test-1.aws.nitro-enclaves", self.zone, now, timedelta(days=1), path_length=0
        )
        self.signer = issue(f"{_MODULE_IDS['enclave']}.test-1.aws", self.instance, now, timedelta(hours=3))

    @property
    def root_fingerprint(self) -> bytes:
        """SHA-256 of the root certificate (32 bytes)."""
        return fingerprint(self.root.certificate)

    def payload(self, kind: Kind = "enclave", **changes: CborValue) -> dict[str, CborValue]:
        """Return the members of a good document, with changes."""
        pcrs = {index: bytes([index + 1]) * 48 if index < 9 else bytes(48) for index in range(16)}
        return {
            "module_id": _MODULE_IDS[kind],
            "digest": "SHA384",
            "timestamp": int(self.now.timestamp() * 1000),
            _REGISTERS[kind]: pcrs,
            "certificate": self.signer.der,
            "cabundle": [one.der for one in (self.root, self.region, self.zone, self.instance)],
            "public_key": None,
            "user_data": None,
            "nonce": None,
            **changes,
        }

    def document(self, report_data: bytes, kind: Kind = "enclave", **changes: CborValue) -> bytes:
        """Return a document over `report_data` (64 bytes), with changes to its members."""
        return self.sign(encode(self.payload(kind, user_data=report_data, **changes)))

    def sign(
        self,
        payload: bytes,
        *,
        signer: Signer | None = None,
        protected: Mapping[int, CborValue] = ES384,
        tagged: bool = False,
    ) -> bytes:
        """Return `payload` as COSE_Sign1.

        Args:
            signer: another key than the platform's own.
            protected: the protected header.
        """
        header = encode(dict(protected))
        key = (signer or self.signer).key
        half = (key.curve.key_size + 7) // 8
        r, s = decode_dss_signature(
            key.sign(encode(["Signature1", header, b"", payload]), ec.ECDSA(SHA384()))
        )
        signature = (r.to_bytes(half, "big") + s.to_bytes(half, "big")).rjust(SIGNATURE_SIZE, b"\0")
        cose: list[CborValue] = [header, {}, payload, signature]
        return encode(Tagged(COSE_SIGN1, cose) if tagged else cose)


def issue(
    name: str,
    issuer: Signer | None,
    now: datetime,
    life: timedelta,
    *,
    path_length: int | None = -1,
    certifies: bool | None = None,
    curve: ec.EllipticCurve | None = None,
) -> Signer:
    """Return a key with a certificate by `issuer`, or by itself, valid from `now` for `life`.

    Args:
        path_length: of a CA; -1 makes a signer of documents.
        certifies: what its key usage says, if not the same.
        curve: P-384 if none is given.
    """
    key = ec.generate_private_key(curve or ec.SECP384R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Sealwright tests"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    is_ca = path_length != -1
    issues = is_ca if certifies is None else certifies
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.replace(microsecond=0))
        .not_valid_after(now.replace(microsecond=0) + life)
        .add_extension(
            x509.BasicConstraints(ca=is_ca, path_length=path_length if is_ca else None),
            critical=True,
        )
        .add_extension(
            key_usage(digital_signature=not issues, content_commitment=True, key_cert_sign=issues),
            critical=is_ca,
        )
        .sign(issuer.key if issuer else key, SHA384())
    )
    return Signer(key=key, certificate=certificate)
