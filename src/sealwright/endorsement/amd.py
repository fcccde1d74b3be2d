"""AMD's endorsements: VCEK and VLEK certificates, the certificates and CRLs above them. Parsing and choosing; no I/O.

Extensions: AMD 57230 (VCEK certificate and KDS interface), 1.3.6.1.4.1.3704.1. Nothing here is verified.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, Self

from cryptography import x509
from cryptography.x509.oid import NameOID

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.roots import anchors, intermediates
from sealwright.errors import EvidenceFormatError
from sealwright.evidence.snp_fields import PRODUCTS, Product, TcbVersion

VekKind = Literal["vcek", "vlek"]
ARC = "1.3.6.1.4.1.3704.1."
MAX_SIGNERS = 8  # ASKs or ASVKs that are tried

_STRUCT_VERSION, _PRODUCT_NAME, _HWID, _CSP_ID = "1", "2", "4", "5"
_NUMBERS = {"3.1": "boot_loader", "3.2": "tee", "3.3": "snp", "3.8": "microcode"}
_RESERVED_BEFORE_TURIN = ("3.4", "3.5", "3.6", "3.7")
_FMC, _RESERVED_TURIN = "3.9", ("3.5", "3.6", "3.7")
_PRODUCT_LINES: dict[str, Product] = {
    "Milan": "Milan",
    "Genoa": "Genoa",
    "Bergamo": "Genoa",
    "Siena": "Genoa",
    "Turin": "Turin",
}


def amd_name(common_name: str) -> x509.Name:
    """Return the name that AMD's certificates have, but for the common name."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "Engineering"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.LOCALITY_NAME, "Santa Clara"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "CA"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Advanced Micro Devices"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def signer_name(product: Product, kind: VekKind) -> str:
    """Return the common name of the ASK (of a VCEK) or ASVK (of a VLEK)."""
    return f"SEV-{product}" if kind == "vcek" else f"SEV-VLEK-{product}"


_VEK_NAMES: dict[VekKind, x509.Name] = {"vcek": amd_name("SEV-VCEK"), "vlek": amd_name("SEV-VLEK")}
_ROOT_NAMES = {product: amd_name(f"ARK-{product}") for product in PRODUCTS}
_SIGNER_NAMES = {
    (product, kind): amd_name(signer_name(product, kind)) for product in PRODUCTS for kind in _VEK_NAMES
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VekCertificate:
    """What a VCEK's or VLEK's certificate says in AMD's extensions."""

    certificate: x509.Certificate
    kind: VekKind
    product: Product
    product_name: str  # may name a stepping, which is not always the chip's
    tcb: TcbVersion
    hwid: bytes | None  # of the chip: 64 bytes, on Turin 8; None for a VLEK
    csp_id: str | None  # of the cloud that the VLEK was made for; None for a VCEK

    @classmethod
    def parse(cls, certificate: x509.Certificate, kind: VekKind) -> Self:
        """Return what the extensions say. All that are wanted are there, and no other of AMD's.

        Raises:
            EvidenceFormatError: `malformed-vek`.
        """
        values = _Values(certificate)
        name = values.text(_PRODUCT_NAME)
        product = _PRODUCT_LINES.get(name.partition("-")[0])
        if product is None:
            raise _malformed(f"product {name!r}, which is not known")
        if values.number(_STRUCT_VERSION) != (product == "Turin"):
            raise _malformed("another structure version than its product has")
        vek = cls(
            certificate=certificate,
            kind=kind,
            product=product,
            product_name=name,
            tcb=_tcb(values, product),
            hwid=values.octets(_HWID, 8 if product == "Turin" else 64) if kind == "vcek" else None,
            csp_id=values.text(_CSP_ID) if kind == "vlek" else None,
        )
        values.check_all_read()
        return vek

    def is_of_chip(self, chip_id: bytes) -> bool:
        """Say whether CHIP_ID of a report (64 bytes) names the chip of this certificate."""
        return self.hwid is not None and self.hwid.ljust(64, b"\0") == chip_id


def vek_name(kind: VekKind) -> x509.Name:
    """Return the subject of certificates of that kind of key."""
    return _VEK_NAMES[kind]


def veks(endorsements: Endorsements, kind: VekKind) -> list[x509.Certificate]:
    """Return the certificates of that kind of key, by the last part of their subject: the common name."""
    wanted = _VEK_NAMES[kind].rdns[-1:]
    return [one for one in endorsements.certificates if one.subject.rdns[-1:] == wanted]


def signers(endorsements: Endorsements, product: Product, kind: VekKind) -> Iterator[x509.Certificate]:
    """Yield the ASK (of a VCEK) or ASVK (of a VLEK): the one kept in this package first, then others that came along."""
    kept = _kept(product, kind)
    yield kept
    wanted = _SIGNER_NAMES[product, kind]
    came = [one for one in endorsements.certificates if one.subject == wanted and one != kept]
    yield from came[:MAX_SIGNERS]


def arks(endorsements: Endorsements, product: Product) -> list[x509.Certificate]:
    """Return the certificates that came along under the root's name, which a policy may admit by their digest."""
    return [one for one in endorsements.certificates if one.subject == _ROOT_NAMES[product]][:MAX_SIGNERS]


@cache
def ark(product: Product) -> x509.Certificate:
    """Return the pinned root of a product."""
    (found,) = [one for one in anchors("amd") if one.subject == _ROOT_NAMES[product]]
    return found


@cache
def _kept(product: Product, kind: VekKind) -> x509.Certificate:
    (found,) = [one for one in intermediates("amd") if one.subject == _SIGNER_NAMES[product, kind]]
    return found


class _Values:
    """AMD's extensions of one certificate by the rest of their OID; each is read once."""

    def __init__(self, certificate: x509.Certificate) -> None:
        self._values: dict[str, bytes] = {}
        for extension in certificate.extensions:
            oid = extension.oid.dotted_string
            if oid.startswith(ARC) and isinstance(extension.value, x509.UnrecognizedExtension):
                self._values[oid.removeprefix(ARC)] = extension.value.value

    def number(self, name: str) -> int:
        """Return a DER INTEGER of 0 to 255, in its one encoding."""
        match tuple(self._take(name)):
            case (2, 1, value) if value < 0x80:
                return value
            case (2, 2, 0, value) if value >= 0x80:
                return value
        raise _malformed(f"{ARC}{name} is not a number of one byte in DER")

    def text(self, name: str) -> str:
        """Return a DER IA5String of 1 to 127 characters."""
        raw = self._take(name)
        if len(raw) < 3 or raw[0] != 0x16 or raw[1] != len(raw) - 2 or raw[1] > 0x7F or not raw[2:].isascii():
            raise _malformed(f"{ARC}{name} is not a short IA5String in DER")
        return raw[2:].decode("ascii")

    def octets(self, name: str, length: int) -> bytes:
        """Return bytes as AMD writes them: bare, or (for some time in 2023) as an OCTET STRING."""
        raw = self._take(name)
        if len(raw) == length + 2 and raw[:2] == bytes((4, length)):
            return raw[2:]
        if len(raw) != length:
            raise _malformed(f"{ARC}{name} has {len(raw)} bytes, not {length}")
        return raw

    def check_all_read(self) -> None:
        """Refuse what is left: it may limit what the key stands for."""
        if self._values:
            raise _malformed(f"{ARC}{min(self._values)} is not known, or not expected in this kind")

    def _take(self, name: str) -> bytes:
        try:
            return self._values.pop(name)
        except KeyError:
            raise _malformed(f"{ARC}{name} is missing") from None


def _tcb(values: _Values, product: Product) -> TcbVersion:
    is_turin = product == "Turin"
    if any(values.number(name) for name in (_RESERVED_TURIN if is_turin else _RESERVED_BEFORE_TURIN)):
        raise _malformed("a reserved security version is set")
    numbers = {field: values.number(name) for name, field in _NUMBERS.items()}
    return TcbVersion(fmc=values.number(_FMC) if is_turin else None, **numbers)


def _malformed(what: str) -> EvidenceFormatError:
    return EvidenceFormatError(f"certificate of a VCEK or VLEK: {what}", code="malformed-vek")
