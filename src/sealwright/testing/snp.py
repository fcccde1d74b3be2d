"""An AMD without silicon: roots, ASKs, ASVKs, CRLs, keys of chips and clouds, and reports of whatever a test asks for.

Made as AMD's are, but for the RSA keys (2048 bits: made once a process) and the serial numbers of VEKs (AMD's are 0).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding

from sealwright.endorsement.amd import ARC, VekKind, amd_name, signer_name
from sealwright.endorsement.x509 import fingerprint
from sealwright.evidence.snp import LAYOUT, NUMBER_SIZE, SIGNED_SIZE
from sealwright.evidence.snp_certs import GUIDS, CertificateTable
from sealwright.evidence.snp_fields import Product, TcbVersion
from sealwright.testing.software import FakePlatformWarning

PSS_SHA384 = PSS(mgf=MGF1(SHA384()), salt_length=48)
POLICY = 0x30000  # SMT may be used; bit 17 is always set
LIFE = timedelta(days=7 * 365)
CRL_LIFE = timedelta(days=365)
_FMS: dict[Product, bytes] = {
    "Milan": b"\x19\x01\x01",
    "Genoa": b"\x19\x11\x01",
    "Turin": b"\x1a\x02\x01",
}


def der_integer(value: int) -> bytes:
    """Return a number of 0 to 255 as a DER INTEGER."""
    return bytes((2, 1, value)) if value < 0x80 else bytes((2, 2, 0, value))


def ia5(text: str) -> bytes:
    """Return a short text as a DER IA5String."""
    return bytes((0x16, len(text))) + text.encode("ascii")


class FakeAmd:
    """The root of one product with its ASK, ASVK and CRL, made at `now`. Never trust it.

    Args:
        generation: another number makes other keys under the same names.
    """

    def __init__(self, now: datetime, product: Product, generation: int = 0) -> None:
        self.product = product
        self.now = now
        self._keys = {role: _rsa_key(f"{product} {role} {generation}") for role in ("ark", "vcek", "vlek")}
        self.ark = self._ca(amd_name(f"ARK-{product}"), self._keys["ark"], "ark", path_length=None)
        self.signers: dict[VekKind, x509.Certificate] = {
            kind: self._ca(amd_name(signer_name(product, kind)), self._keys[kind], "ark", path_length=0)
            for kind in ("vcek", "vlek")
        }

    @property
    def root_fingerprint(self) -> bytes:
        """SHA-256 of the root certificate (32 bytes)."""
        return fingerprint(self.ark)

    def crl(
        self, revoked: Sequence[x509.Certificate] = (), *, issued: datetime | None = None, signer: str = "ark"
    ) -> bytes:
        """Return a CRL by the ARK, DER.

        Args:
            issued: aware; else when this AMD was made.
            signer: whose key signs it: `ark`, or wrongly `vcek` (the ASK's).
        """
        issued = issued or self.now
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.ark.subject)
            .last_update(issued)
            .next_update(issued + CRL_LIFE)
            .add_extension(x509.CRLNumber(1), critical=False)
        )
        for certificate in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
            builder = builder.add_revoked_certificate(entry.revocation_date(issued).build())
        signed = builder.sign(self._keys[signer], SHA384(), rsa_padding=PSS_SHA384)
        return signed.public_bytes(Encoding.DER)

    def certify(
        self,
        key: ec.EllipticCurvePublicKey,
        kind: VekKind,
        extensions: Mapping[str, bytes],
        *,
        signer: str = "",
        padding: PSS = PSS_SHA384,
    ) -> x509.Certificate:
        """Return a certificate of a VCEK or VLEK.

        Args:
            extensions: AMD's, by the rest of the OID.
            signer: whose key signs it, under whose name; else the ASK's or ASVK's as is right.
        """
        role = signer or kind
        issuer = self.ark if role == "ark" else self.signers["vlek" if role == "vlek" else "vcek"]
        builder = _builder(amd_name(f"SEV-{kind.upper()}"), issuer.subject, key, self.now)
        for name, value in extensions.items():
            oid = x509.ObjectIdentifier(ARC + name)
            builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
        return builder.sign(self._keys[role], SHA384(), rsa_padding=padding)

    def _ca(
        self, subject: x509.Name, key: rsa.RSAPrivateKey, signer: str, *, path_length: int | None
    ) -> x509.Certificate:
        usage = x509.KeyUsage(False, False, False, False, False, True, path_length is None, False, False)
        root = self._keys["ark"].public_key()
        return (
            _builder(subject, amd_name(f"ARK-{self.product}"), key.public_key(), self.now)
            .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root), critical=False)
            .sign(self._keys[signer], SHA384(), rsa_padding=PSS_SHA384)
        )


class SnpTestPlatform:
    """A machine of a fake AMD, made at `now`: it signs any report.

    Args:
        kind: the key that signs.
        hwid: of the chip; 8 bytes on Turin, else 64.
        amd: else one of its own.
    """

    def __init__(
        self,
        now: datetime,
        product: Product = "Genoa",
        *,
        kind: VekKind = "vcek",
        tcb: TcbVersion | None = None,
        hwid: bytes = b"",
        csp_id: str = "CN=cc.example.com",
        amd: FakeAmd | None = None,
    ) -> None:
        warnings.warn("SnpTestPlatform signs anything", FakePlatformWarning, stacklevel=2)
        self.amd = amd or FakeAmd(now, product)
        self.product: Product = product
        self.kind: VekKind = kind
        fmc = 1 if product == "Turin" else None
        self.tcb = tcb or TcbVersion(fmc=fmc, boot_loader=10, tee=1, snp=27, microcode=219)
        self.hwid = hwid or bytes(range(1, 9 if product == "Turin" else 65))
        self.csp_id = csp_id
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.vek = self.certify()
        self.crl = self.amd.crl()

    @property
    def root_fingerprint(self) -> bytes:
        """SHA-256 of the root certificate (32 bytes)."""
        return self.amd.root_fingerprint

    def extensions(self) -> dict[str, bytes]:
        """Return AMD's extensions of this machine's key, by the rest of the OID."""
        tcb, is_turin = self.tcb, self.product == "Turin"
        found = {"1": der_integer(is_turin), "2": ia5(self.product)}
        numbers = {"3.1": tcb.boot_loader, "3.2": tcb.tee, "3.3": tcb.snp, "3.8": tcb.microcode}
        reserved = ("3.5", "3.6", "3.7") if is_turin else ("3.4", "3.5", "3.6", "3.7")
        numbers |= dict.fromkeys(reserved, 0) | ({"3.9": tcb.fmc or 0} if is_turin else {})
        found |= {name: der_integer(number) for name, number in numbers.items()}
        return found | ({"4": self.hwid} if self.kind == "vcek" else {"5": ia5(self.csp_id)})

    def certify(self, changes: Mapping[str, bytes | None] | None = None, **options: Any) -> x509.Certificate:
        """Return a certificate of this machine's key.

        Args:
            changes: extensions that differ, by the rest of the OID; None leaves one out.
            options: as `FakeAmd.certify` has them.
        """
        extensions = self.extensions() | dict(changes or {})
        wanted = {name: value for name, value in extensions.items() if value is not None}
        return self.amd.certify(self.key.public_key(), self.kind, wanted, **options)

    def report(self, report_data: bytes, **changes: Any) -> bytes:
        """Return a signed report of version 5.

        Args:
            report_data: 64 bytes.
            changes: fields that differ, by the names of AMD's specification in lower case; TCB versions as
                `TcbVersion`, firmware versions as (major, minor, build).
        """
        vlek = self.kind == "vlek"
        zero = {16: bytes(16), 32: bytes(32), 48: bytes(48)}
        fields: dict[str, Any] = {
            "version": 5, "guest_svn": 0, "policy": POLICY, "family_id": zero[16], "image_id": zero[16], "vmpl": 0,
            "algorithm": 1, "current_tcb": self.tcb, "platform_info": 0x25, "key_info": 4 if vlek else 0,
            "reserved_1": 0, "report_data": report_data, "measurement": zero[48], "host_data": zero[32],
            "id_key_digest": zero[48], "author_key_digest": zero[48], "report_id": bytes(range(32)),
            "report_id_ma": b"\xff" * 32, "reported_tcb": self.tcb, "cpuid": _FMS[self.product],
            "reserved_2": bytes(21), "chip_id": bytes(64) if vlek else self.hwid.ljust(64, b"\0"),
            "committed_tcb": self.tcb, "current": (1, 55, 40), "reserved_3": 0, "committed": (1, 55, 40),
            "reserved_4": 0, "launch_tcb": self.tcb, "launch_mit_vector": 0, "current_mit_vector": 0,
            "reserved_5": bytes(152), "r": bytes(72), "s": bytes(72), "reserved_6": bytes(368),
        }  # fmt: skip
        if unknown := changes.keys() - fields.keys():
            raise ValueError(f"no such fields of a report: {sorted(unknown)}")
        return self.sign(_packed(fields | changes))

    def sign(self, raw: bytes) -> bytes:
        """Return a report with a signature over its first part."""
        der = self.key.sign(raw[:SIGNED_SIZE], ec.ECDSA(SHA384()))
        numbers = (number.to_bytes(NUMBER_SIZE, "little") for number in decode_dss_signature(der))
        return raw[:SIGNED_SIZE] + b"".join(numbers) + raw[SIGNED_SIZE + 2 * NUMBER_SIZE :]

    def endorsements(self) -> list[bytes]:
        """Return what comes with a report, DER: the key's certificate, ASK or ASVK, ARK, CRL."""
        certificates = (self.vek, self.amd.signers[self.kind], self.amd.ark)
        return [*(one.public_bytes(Encoding.DER) for one in certificates), self.crl]

    def table(self) -> CertificateTable:
        """Return the same as a table, as hosts give it."""
        guids = (GUIDS[self.kind.upper()], GUIDS["ASK"], GUIDS["ARK"], GUIDS["CRL"])
        return CertificateTable(entries=tuple(zip(guids, self.endorsements(), strict=True)))

    def evidence(self, report_data: bytes, **changes: Any) -> tuple[bytes, list[bytes]]:
        """Return a report over `report_data` (64 bytes) and the endorsements for it. Changes: as `report`."""
        return self.report(report_data, **changes), self.endorsements()

    def revoke(self, now: datetime) -> None:
        """Put the ASK or ASVK on the CRL that later evidence carries."""
        self.crl = self.amd.crl([self.amd.signers[self.kind]], issued=now)


def _packed(fields: Mapping[str, Any]) -> bytes:
    def plain(name: str) -> Any:
        value = fields[name]
        if isinstance(value, TcbVersion):
            return value.encode()
        return bytes(reversed(value)) if isinstance(value, tuple) else value

    return LAYOUT.pack(*(plain(name) for name in fields))  # in the order of the layout


def _builder(subject: x509.Name, issuer: x509.Name, key: Any, now: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + LIFE)
    )


@cache
def _rsa_key(_role: str) -> rsa.RSAPrivateKey:
    """Return the key of a role, one for the whole process."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)
