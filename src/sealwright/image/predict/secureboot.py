"""PCR 7: Secure Boot's variables, and the key or digest that admitted the image.

Order: TCG PC Client Platform Firmware Profile 1.06, section 3.3.4.8, as TianoCore's Tcg2Dxe and
DxeImageVerificationLib do it. Spec: docs/spec/predicted-measurements.md, "Secure Boot".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Self
from uuid import UUID

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import pkcs7

from sealwright.errors import FormatError
from sealwright.evidence.uefi import (
    EFI_GLOBAL_VARIABLE,
    EFI_IMAGE_SECURITY_DATABASE,
    Signature,
    parse_signature_lists,
)
from sealwright.image.predict.events import Algorithm, PredictedEvent, measured
from sealwright.image.predict.pe import PeImage
from sealwright.image.predict.reader import Reader
from sealwright.image.predict.varstore import Key, parse_variables

SECURE_BOOT_ENABLE = UUID("f0a30bc7-af08-4556-99c4-001009c93a44")
MAX_DATABASE = 1 << 20  # bytes of PK, KEK, db or dbx
_PKCS_SIGNED_DATA = 0x0002  # WIN_CERT_TYPE
_REVISION = 0x0200
_SEPARATOR = bytes(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureBoot:
    """The variables as firmware measures them: each a whole EFI_SIGNATURE_LIST database, or empty."""

    enabled: bool
    built_in: bool = (
        True  # firmware without Secure Boot has no variable SecureBoot, and measures an empty one
    )
    pk: bytes = b""
    kek: bytes = b""
    db: bytes = b""
    dbx: bytes = b""

    @classmethod
    def from_variables(cls, raw: bytes) -> Self:
        """Return the state that a variable store boots into. Firmware has to be built with Secure Boot.

        Raises:
            FormatError: `malformed-variables`.
        """
        found = parse_variables(raw)
        if _value(found, EFI_IMAGE_SECURITY_DATABASE, "dbt"):
            raise FormatError("a store with dbt, which is not modelled", code="malformed-variables")
        pk = _value(found, EFI_GLOBAL_VARIABLE, "PK")
        switch = found.get((SECURE_BOOT_ENABLE, "SecureBootEnable"), b"\x01")
        return cls(
            enabled=bool(pk) and switch == b"\x01",
            pk=pk,
            kek=_value(found, EFI_GLOBAL_VARIABLE, "KEK"),
            db=_value(found, EFI_IMAGE_SECURITY_DATABASE, "db"),
            dbx=_value(found, EFI_IMAGE_SECURITY_DATABASE, "dbx"),
        )

    def variables(self) -> tuple[tuple[UUID, str, bytes], ...]:
        """Return GUID, name and value in the order in which they are measured."""
        enabled = bytes([self.enabled]) if self.built_in else b""
        return (
            (EFI_GLOBAL_VARIABLE, "SecureBoot", enabled),
            (EFI_GLOBAL_VARIABLE, "PK", self.pk),
            (EFI_GLOBAL_VARIABLE, "KEK", self.kek),
            (EFI_IMAGE_SECURITY_DATABASE, "db", self.db),
            (EFI_IMAGE_SECURITY_DATABASE, "dbx", self.dbx),
        )


def variable_data(guid: UUID, name: str, value: bytes) -> bytes:
    """Return a UEFI_VARIABLE_DATA: what is hashed of a variable."""
    return guid.bytes_le + struct.pack("<QQ", len(name), len(value)) + name.encode("utf-16-le") + value


def variable_events(register: str, state: SecureBoot, algorithm: Algorithm) -> list[PredictedEvent]:
    """Return the events before and with the separator."""
    events = [
        measured(register, f"variable {name}", variable_data(guid, name, value), algorithm)
        for guid, name, value in state.variables()
    ]
    return [*events, measured(register, "separator", _SEPARATOR, algorithm)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSignature:
    """What the firmware looks up in db and dbx. Whether the signature holds is for the firmware to say."""

    sha256: bytes  # Authenticode
    chain: tuple[x509.Certificate, ...] = ()  # in the image's first signature; empty: not signed

    @classmethod
    def of(cls, image: PeImage) -> Self:
        """Return it from an image. Raises FormatError `malformed-pe`: the certificate table is not in its form."""
        chain = signing_chain(image.certificates) if image.certificates else ()
        return cls(sha256=image.authenticode("sha256"), chain=chain)


def authority_event(
    register: str, state: SecureBoot, signature: ImageSignature, algorithm: Algorithm
) -> PredictedEvent:
    """Return the event of the entry of db that admits an image. Secure Boot has to be on.

    Raises:
        FormatError: `image-not-admitted`: no entry of db admits it, or dbx refuses it; the firmware would not start it.
    """
    allowed, refused = (_database(raw) for raw in (state.db, state.dbx))
    if _admitting(refused, signature.chain) or _listing(refused, signature.sha256):
        raise FormatError(
            "dbx refuses this image: the firmware would not start it", code="image-not-admitted"
        )
    entry = _admitting(allowed, signature.chain) or _listing(allowed, signature.sha256)
    if entry is None:
        raise FormatError(
            "no entry of db admits this image: sign it with a key of db, or enrol its key",
            code="image-not-admitted",
        )
    value = variable_data(EFI_IMAGE_SECURITY_DATABASE, "db", entry.owner.bytes_le + entry.data)
    what = f"authority {sha256(entry.data).hexdigest()[:16]} in db"
    return measured(register, what, value, algorithm)


def signing_chain(certificates: bytes) -> tuple[x509.Certificate, ...]:
    """Return the certificates in the first signature of a certificate table. Raises FormatError `malformed-pe`."""
    reader = Reader(certificates, "malformed-pe")
    length, revision, kind = reader.fields("<IHH", 0, "WIN_CERTIFICATE")
    if revision != _REVISION or kind != _PKCS_SIGNED_DATA or length < 8:
        reader.refuse("a certificate table without a PKCS #7 signature")
    der = reader.take(8, length - 8, "signature")
    try:
        return tuple(pkcs7.load_der_pkcs7_certificates(der))
    except (ValueError, UnsupportedAlgorithm):
        reader.refuse("a signature that is no PKCS #7")


def _value(found: Mapping[Key, bytes], guid: UUID, name: str) -> bytes:
    return found.get((guid, name), b"")


def _database(raw: bytes) -> tuple[Signature, ...]:
    if len(raw) > MAX_DATABASE:
        raise FormatError("a signature database over 1 MiB", code="malformed-variables")
    return parse_signature_lists(raw)


def _listing(database: Sequence[Signature], digest: bytes) -> Signature | None:
    return next((one for one in database if one.kind == "sha256" and one.data == digest), None)


def _admitting(database: Sequence[Signature], chain: Sequence[x509.Certificate]) -> Signature | None:
    """Return the first entry that is a certificate of the chain, or issued one of it."""
    for one in database:
        if one.kind == "x509" and any(_vouches(issuer, chain) for issuer in _loaded(one.data)):
            return one
    return None


def _loaded(der: bytes) -> Iterator[x509.Certificate]:
    try:
        yield x509.load_der_x509_certificate(der)
    except ValueError:
        return


def _vouches(issuer: x509.Certificate, chain: Sequence[x509.Certificate]) -> bool:
    return any(issuer == one or _issued(one, issuer) for one in chain)


def _issued(one: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        one.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
