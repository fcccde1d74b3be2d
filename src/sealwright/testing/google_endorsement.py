"""Launch endorsements without Google: a root of its own, a signer below it, and whatever measurements a test names."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from sealwright.testing.software import FakePlatformWarning

_PSS = padding.PSS(mgf=padding.MGF1(SHA256()), salt_length=32)


class FakeGoogle:
    """A root and a signing key, made at `now`. It endorses anything: never trust its root."""

    def __init__(self, now: datetime, *, bits: int = 2048) -> None:
        warnings.warn("FakeGoogle endorses anything", FakePlatformWarning, stacklevel=2)
        self.now = now
        self.root_key = rsa.generate_private_key(65537, 4096 if bits > 2048 else 2048)
        self.key = rsa.generate_private_key(65537, bits)
        self.root = self.certificate("GCE-cc-tcb-root", self.root_key, ca=True)
        self.signer = self.certificate("GCE-uefi-signer", self.key)

    def certificate(
        self,
        name: str,
        key: rsa.RSAPrivateKey,
        *,
        ca: bool = False,
        days: int = 3650,
        issuer_key: rsa.RSAPrivateKey | None = None,
    ) -> x509.Certificate:
        """Return a certificate of `key`: the root's own, or issued by the root, as Google's are."""
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        issuer = subject if ca else self.root.subject
        usage = x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)
        builder = (
            x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(self.now - timedelta(days=1))
            .not_valid_after(self.now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
            .add_extension(usage, critical=True)
        )
        return builder.sign(issuer_key or self.root_key, SHA256(), rsa_padding=_PSS)

    def endorse(
        self,
        *,
        sev_snp: Mapping[int, bytes] | None = None,
        tdx: Sequence[tuple[int, bool, bytes]] = (),
        signer: x509.Certificate | None = None,
        timestamp: datetime | None = None,
        more: bytes = b"",
    ) -> bytes:
        """Return a serialised VMLaunchEndorsement.

        Args:
            sev_snp: MEASUREMENT by number of VMSAs; 0: with an SVSM.
            tdx: (GiB of memory, early accept, MRTD).
            more: fields to append to what is signed.
        """
        golden = (
            field(1, field(1, int((timestamp or self.now).timestamp())))
            + field(2, 712)
            + field(4, (signer or self.signer).public_bytes(Encoding.DER))
            + field(5, bytes(48))
            + (field(7, _snp(sev_snp)) if sev_snp else b"")
            + (field(8, _tdx(tdx)) if tdx else b"")
            + more
        )
        return self.sign(golden)

    def sign(self, golden: bytes) -> bytes:
        """Return the endorsement of these very bytes."""
        return field(1, golden) + field(2, self.key.sign(golden, _PSS, SHA256()))


def varint(value: int) -> bytes:
    """Return a protocol-buffer varint."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    """Return a field: a varint, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def _snp(measurements: Mapping[int, bytes]) -> bytes:
    pairs = b"".join(
        field(2, field(1, vmsas) + field(2, one)) for vmsas, one in measurements.items() if vmsas
    )
    return field(1, 3) + pairs + field(5, 0x70000) + (field(7, measurements[0]) if 0 in measurements else b"")


def _tdx(measurements: Sequence[tuple[int, bool, bytes]]) -> bytes:
    listed = b"".join(
        field(2, field(1, ram) + (field(2, 1) if early else b"") + field(3, mrtd))
        for ram, early, mrtd in measurements
    )
    return field(1, 2) + listed
