"""What a file is about, read from it without parsing it whole: enough to ask vendors for what it needs.

Whoever verifies reads evidence with `sealwright.evidence`, which is exact. Here a guess is good enough: a wrong one
costs a request that finds nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from cryptography import x509

from sealwright.collateral.need import Need
from sealwright.collateral.needs import Tee, Vek, dcap_needs, snp_needs
from sealwright.endorsement.x509 import load_certificate, pem_blocks
from sealwright.errors import EvidenceFormatError
from sealwright.evidence.envelope import EvidenceEnvelope

Reader = Callable[[bytes, Sequence[bytes]], Sequence[Need]]

_MAX = 64 * 1024  # bytes of a report or quote
_HCL = b"HCLA"  # Azure's wrapper: 32 bytes, then the report of the TEE
_SNP_SIZE = 1184  # bytes
_TDX = 0x81  # TEE type of a quote
_SGX_EXTENSION = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_FMSPC = bytes.fromhex("060a2a864886f84d010d0104") + b"\x04\x06"  # its OID, then an OCTET STRING of 6 bytes
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.{100,4000}?-----END CERTIFICATE-----", re.DOTALL)
_PRODUCTS = {  # (family, first model, last model) of CPUID
    (0x19, 0x00, 0x0F): "Milan",
    (0x19, 0x10, 0x1F): "Genoa",
    (0x19, 0xA0, 0xAF): "Genoa",
    (0x1A, 0x00, 0x11): "Turin",
}


@dataclass(frozen=True, slots=True)
class _Levels:
    boot_loader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None


def needs_of(
    evidence: bytes | EvidenceEnvelope,
    *,
    product: str | None = None,
    readers: Mapping[str, Reader] = MappingProxyType({}),
) -> tuple[Need, ...]:
    """Return what evidence needs: an envelope, an SEV-SNP report, an SGX or TDX quote, Azure's HCL report.

    Args:
        product: AMD's, where the report does not name it.
        readers: by the types of envelopes and devices: (evidence, endorsements) → needs, in place of a guess. Devices
            without a reader are passed over.

    Raises:
        EvidenceFormatError: `unknown-evidence`: nothing is known to ask for; or what a reader raises.
        CollateralError: `chip-not-named`.
    """
    if isinstance(evidence, bytes) and evidence.lstrip()[:1] == b"{":
        evidence = EvidenceEnvelope.parse(evidence)
    if isinstance(evidence, EvidenceEnvelope):
        return _envelope_needs(evidence, product, readers)
    found = _raw_needs(evidence, (), product)
    if not found:
        raise EvidenceFormatError(
            "neither an envelope nor an SEV-SNP report, SGX or TDX quote or HCL report; name what it needs "
            "(--platform …)",
            code="unknown-evidence",
        )
    return found


def _envelope_needs(
    envelope: EvidenceEnvelope, product: str | None, readers: Mapping[str, Reader]
) -> tuple[Need, ...]:
    own = readers.get(envelope.type)
    needs = [
        *(
            _raw_needs(envelope.evidence, envelope.endorsements, product)
            if own is None
            else own(envelope.evidence, envelope.endorsements)
        )
    ]
    for device in envelope.devices:
        if (reader := readers.get(device.type)) is not None:
            needs += reader(device.evidence, device.endorsements)
    return tuple(dict.fromkeys(needs))


def _raw_needs(raw: bytes, endorsements: Iterable[bytes], product: str | None) -> tuple[Need, ...]:
    if len(raw) > _MAX:
        return ()
    if raw[:4] == _HCL:
        raw = raw[32 : 32 + _SNP_SIZE]
    if len(raw) == _SNP_SIZE and 2 <= int.from_bytes(raw[:4], "little") <= 16:
        return _snp(raw, endorsements, product)
    if raw[:2] in (b"\x03\0", b"\x04\0", b"\x05\0") and raw[2:4] == b"\x02\0":
        return _dcap(raw)
    return ()


def _snp(raw: bytes, endorsements: Iterable[bytes], product: str | None) -> tuple[Need, ...]:
    vek: Vek = "vlek" if (raw[0x48] >> 2) & 7 else "vcek"
    leaves = [one for blob in endorsements for one in _certificates(blob)]
    issuers = [one.issuer.rfc4514_string() for one in leaves]
    product = _product(raw) or _issuer_product(issuers) or product
    if product is None:
        raise EvidenceFormatError(
            "the report does not name its product (version 2 reports do not): name it (--product)",
            code="unknown-evidence",
        )
    levels = raw[0x180:0x188]
    tcb = (
        _Levels(levels[1], levels[2], levels[3], levels[7], levels[0])
        if product not in ("Milan", "Genoa")
        else _Levels(levels[0], levels[1], levels[6], levels[7], None)
    )
    has_vek = any("CN=SEV-" in issuer for issuer in issuers)
    return snp_needs(product, raw[0x1A0:0x1E0], tcb, vek=vek, has_vek=has_vek)


def _product(raw: bytes) -> str | None:
    if int.from_bytes(raw[:4], "little") < 3:
        return None
    family, model = raw[0x188], raw[0x189]
    for (known, first, last), product in _PRODUCTS.items():
        if family == known and first <= model <= last:
            return product
    return None


def _issuer_product(issuers: Iterable[str]) -> str | None:
    for issuer in issuers:
        match = re.search(r"CN=SEV-(?:VLEK-)?([A-Z][A-Za-z0-9]{1,15})(?:,|$)", issuer)
        if match:
            return match[1]
    return None


def _dcap(raw: bytes) -> tuple[Need, ...]:
    tee: Tee = "tdx" if raw[4:5] == bytes((_TDX,)) else "sgx"
    for certificate in _certificates(b"\n".join(_PEM.findall(raw))):
        try:
            value = certificate.extensions.get_extension_for_oid(_SGX_EXTENSION).value
        except x509.ExtensionNotFound:
            continue
        der = value.value if isinstance(value, x509.UnrecognizedExtension) else b""
        at = der.find(_FMSPC)
        if at >= 0:
            fmspc = der[at + len(_FMSPC) :][:6]
            ca = "processor" if "Processor" in certificate.issuer.rfc4514_string() else "platform"
            return dcap_needs(fmspc, ca, tee)
    raise EvidenceFormatError(
        "the quote carries no PCK certificate: name what it needs (--fmspc, --ca)", code="unknown-evidence"
    )


def _certificates(blob: bytes) -> list[x509.Certificate]:
    """Return the certificates in a blob, if that is what it is."""
    try:
        if b"-----BEGIN " in blob[:64]:
            return [
                load_certificate(der, serial_zero=True)
                for label, der in pem_blocks(blob)
                if label == "CERTIFICATE"
            ]
        return [load_certificate(blob, serial_zero=True)]
    except EvidenceFormatError:
        return []
