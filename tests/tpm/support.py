"""Helpers of the TPM tests."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.tpm import EK_EKU
from sealwright.endorsement.x509 import key_usage
from sealwright.evidence.tpm import TpmQuote
from sealwright.testing.software import FakePlatformWarning
from sealwright.testing.tpm import SwTpm, TpmTestPlatform
from sealwright.verify.context import CollateralKind, Context, Tolerance
from sealwright.verify.tpm import VerifiedTpm, verify_tpm

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
REPORT_DATA = hashlib.sha384(b"a nonce").digest() + bytes(16)
NO_CRL: dict[CollateralKind, Tolerance] = {"tpm-crl": Tolerance(missing=True)}


def platform(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None) -> TpmTestPlatform:
    """Return a made-up TPM."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        return TpmTestPlatform(NOW, key=key)


def verify(
    tpm: TpmTestPlatform,
    quote: TpmQuote | None = None,
    *,
    endorsements: Endorsements | None = None,
    context: Context | None = None,
    expected: bytes = REPORT_DATA,
) -> VerifiedTpm:
    """Verify a quote of `tpm` whose root is named, in all that is not given as it should be."""
    return verify_tpm(
        quote or tpm.quote(REPORT_DATA),
        endorsements or Endorsements.detect(tpm.endorsements()),
        expected_report_data=expected,
        context=context or Context(at=NOW, roots=frozenset({tpm.root_fingerprint})),
    )


@contextmanager
def running(made: Path) -> Iterator[SwTpm]:
    """Start a software TPM on a copy of the one in `made`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        tpm = SwTpm(made)
    with tpm:
        yield tpm


class Maker:
    """A maker of TPMs: a root that certifies endorsement keys, right ones and others."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "TPM maker")])
        self.root = (
            self._builder(self.name, self.key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def certify(
        self,
        key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
        *,
        usage: x509.KeyUsage | None = None,
        purposes: tuple[x509.ObjectIdentifier, ...] = (EK_EKU,),
        maker: str = "id:494E5443",
        attributes: tuple[str, ...] = ("1", "2", "3"),
        ca: bool = False,
    ) -> x509.Certificate:
        """Return a certificate of an endorsement key."""
        if usage is None:
            usage = key_usage(key_agreement=True)
            if isinstance(key, rsa.RSAPublicKey):
                usage = key_usage(key_encipherment=True)
        values = {"1": maker, "2": "model", "3": "id:00010002"}
        names = [
            x509.RelativeDistinguishedName(
                [x509.NameAttribute(x509.ObjectIdentifier(f"2.23.133.2.{one}"), values[one])]
            )
            for one in attributes
        ]
        builder = self._builder(x509.Name([]), key)
        if names:
            san = x509.SubjectAlternativeName([x509.DirectoryName(x509.Name(names))])
            builder = builder.add_extension(san, critical=True)
        if purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        return (
            builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def crl(self, *serials: int) -> x509.CertificateRevocationList:
        """Return a CRL."""
        builder = x509.CertificateRevocationListBuilder(
            issuer_name=self.name, last_update=NOW, next_update=NOW + timedelta(days=7)
        )
        for serial in serials:
            builder = builder.add_revoked_certificate(x509.RevokedCertificateBuilder(serial, NOW).build())
        return builder.sign(self.key, hashes.SHA256())

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=3650))
            .public_key(key)
        )
