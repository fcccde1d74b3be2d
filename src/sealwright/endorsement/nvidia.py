"""NVIDIA's device certificates and collateral: which chip a certificate is of, its firmware digest, RIM and OCSP.

Parsing and choosing only; nothing here is verified. No I/O and no clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.nvidia_rim import Rim
from sealwright.errors import EvidenceFormatError
from sealwright.evidence.nvgpu import MAX_CERTIFICATES, Architecture, GpuEvidence

# Both are used for the same extension of the device's own certificate.
DICE_OIDS = (x509.ObjectIdentifier("2.23.133.5.4.1"), x509.ObjectIdentifier("2.23.133.5.4.1.1"))
MAX_RIMS = 128  # files that hold one version: more than an envelope carries
FLAG_DEBUG, FLAG_NOT_SECURE, FLAG_RECOVERY, FLAG_NOT_CONFIGURED = (
    "debug",
    "notSecure",
    "recovery",
    "notConfigured",
)
_FLAGS = (
    FLAG_NOT_CONFIGURED,
    FLAG_NOT_SECURE,
    FLAG_RECOVERY,
    FLAG_DEBUG,
)  # OperationalFlags, first bit first
_CHIP = re.compile(r"([A-Z]{2})_?([0-9]{2,3}) [A-Z][0-9]{2} (?:GSP|FSP) FMC LF", re.ASCII)
_ARCHITECTURES: dict[str, Architecture] = {"GH": "HOPPER", "GB": "BLACKWELL", "LS": "LS10"}
_SHA384 = bytes.fromhex("0609608648016503040202")  # the OID as DER
_SEQUENCE, _INTEGER, _OCTETS, _FWIDS, _FWID_FLAGS = 0x30, 0x02, 0x04, 0xA6, 0x87


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """Which chip a device certificate is of, by its subject."""

    name: str  # "GH100", "LS10"
    architecture: Architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class DiceInfo:
    """The firmware that a device certificate was made for."""

    fwid: bytes  # SHA-384 of the first firmware (FMC), 48 bytes
    device_id: bytes  # SubjectPublicKeyInfo of the key that made the certificate; empty: not stated
    flags: tuple[str, ...]  # of OperationalFlags, those that are set


def device_certificates(
    evidence: GpuEvidence, endorsements: Endorsements
) -> tuple[x509.Certificate, list[x509.Certificate]]:
    """Return the device's own certificate and those that came beside it.

    Raises:
        EvidenceFormatError: `malformed-chain`, or a certificate is malformed.
    """
    found = Endorsements.detect(evidence.certificates)
    if found.crls or found.ocsp or found.rims or found.intel_json:
        _refuse("something that is not a certificate among the device's certificates")
    certificates = list(found.certificates)
    if not certificates:  # a bare report: its certificates came as endorsements
        certificates = list(dict.fromkeys(endorsements.certificates))
        certificates.sort(key=lambda one: not is_device(one))
        if sum(map(is_device, certificates)) != 1:
            _refuse("not exactly one device certificate for this report")
    elif len(certificates) > MAX_CERTIFICATES:
        _refuse(f"{len(certificates)} certificates of one device")
    return certificates[0], certificates[1:]


def is_device(certificate: x509.Certificate) -> bool:
    """Say whether it has the extension of a device's own certificate."""
    return any(one.oid in DICE_OIDS for one in certificate.extensions)


def chip(certificate: x509.Certificate) -> Chip | None:
    """Return the chip that a device certificate's subject names, such as `GH100 A01 GSP FMC LF`."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    match = _CHIP.fullmatch(str(names[0].value)) if len(names) == 1 else None
    if match is None or match[1] not in _ARCHITECTURES:
        return None
    return Chip(name=match[1] + match[2], architecture=_ARCHITECTURES[match[1]])


def dice_info(certificate: x509.Certificate) -> DiceInfo:
    """Return what the DICE extension says: CompositeDeviceID (Hopper, LS10) or DiceTcbInfo (Blackwell).

    Raises:
        EvidenceFormatError: `malformed-chain`: none, two, or one that is not in either form.
    """
    found = [one.value for one in certificate.extensions if one.oid in DICE_OIDS]
    if len(found) != 1 or not isinstance(found[0], x509.UnrecognizedExtension):
        _refuse("a device certificate without exactly one DICE extension")
    elements = _elements(_only(found[0].value, _SEQUENCE))
    if elements and elements[0][0] == _INTEGER:
        return _composite(elements)
    return _tcb_info(elements)


def matching_rims(
    rims: Iterable[bytes],
    *,
    names: Iterable[str],
    version: str,
    parse: Callable[[bytes], Rim] = Rim.parse,
) -> tuple[list[Rim], EvidenceFormatError | None]:
    """Return the manifests for a chip and version, and the first error among files that name it but are none.

    A file that cannot be read is passed over, so that nobody can block a good one by adding it; none is left out for
    their number.

    Args:
        parse: `Rim.parse`, or what remembers its results.

    Raises:
        EvidenceFormatError: `too-large`.
    """
    found: list[Rim] = []
    broken = None
    wanted = {_plain(name) for name in names}
    text = version.upper().encode()
    # A folder can hold those of every version.
    named = dict.fromkeys(raw for raw in rims if text in raw.upper())
    if len(named) > MAX_RIMS:
        raise EvidenceFormatError(f"{len(named)} RIM files with version {version}", code="too-large")
    for raw in named:
        try:
            rim = parse(raw)
        except EvidenceFormatError as exc:
            broken = broken or exc
            continue
        if _plain(rim.name) in wanted and rim.colloquial_version.upper() == version.upper():
            found.append(rim)
    return found, broken


def public_key_der(certificate: x509.Certificate) -> bytes:
    """Return its SubjectPublicKeyInfo."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _plain(name: str) -> str:
    return name.replace("_", "").upper()


def _composite(elements: list[tuple[int, bytes, bytes]]) -> DiceInfo:
    """CompositeDeviceID: version 1, the device's key, FWID."""
    if [tag for tag, _, _ in elements] != [_INTEGER, _SEQUENCE, _SEQUENCE] or elements[0][1] != b"\x01":
        _refuse("a CompositeDeviceID in another form")
    return DiceInfo(fwid=_fwid(elements[2][1]), device_id=elements[1][2], flags=())


def _tcb_info(elements: list[tuple[int, bytes, bytes]]) -> DiceInfo:
    """DiceTcbInfo: members by their context tags, in order."""
    by_tag = {tag: content for tag, content, _ in elements}
    tags = [tag for tag, _, _ in elements]
    if tags != sorted(set(tags), key=lambda tag: tag & 0x1F) or any(tag & 0xC0 != 0x80 for tag in tags):
        _refuse("a DiceTcbInfo in another form")
    fwids = _elements(by_tag.get(_FWIDS, b""))
    if not fwids or any(tag != _SEQUENCE for tag, _, _ in fwids):
        _refuse("a DiceTcbInfo without firmware digests")
    return DiceInfo(fwid=_fwid(fwids[0][1]), device_id=b"", flags=_flags(by_tag.get(_FWID_FLAGS, b"\0")))


def _flags(bits: bytes) -> tuple[str, ...]:
    """Return the names of the first four bits that are set in a BIT STRING; the first byte counts unused bits."""
    if not bits or bits[0] > 7 or len(bits) > 5:
        _refuse("OperationalFlags in another form")
    first = bits[1] if len(bits) > 1 else 0
    return tuple(name for number, name in enumerate(_FLAGS) if first & (0x80 >> number))


def _fwid(sequence: bytes) -> bytes:
    """Return the digest of FWID ::= SEQUENCE { SHA-384, OCTET STRING }."""
    digest = sequence.removeprefix(_SHA384)
    if digest == sequence or len(digest) != 50 or digest[:2] != bytes((_OCTETS, 48)):
        _refuse("a FWID that is not SHA-384")
    return digest[2:]


def _only(raw: bytes, tag: int) -> bytes:
    elements = _elements(raw)
    if [one[0] for one in elements] != [tag]:
        _refuse("a DICE extension that is not one SEQUENCE")
    return elements[0][1]


def _elements(raw: bytes) -> list[tuple[int, bytes, bytes]]:
    """Return (tag, content, whole) of each DER element in `raw`; lengths up to 65535, in their shortest form."""
    found = []
    while raw:
        header, size = _header(raw)
        if size > len(raw) - header:
            _refuse("a DICE extension that is cut off")
        found.append((raw[0], raw[header : header + size], raw[: header + size]))
        raw = raw[header + size :]
    return found


def _header(raw: bytes) -> tuple[int, int]:
    if len(raw) >= 2 and raw[1] < 0x80:
        return 2, raw[1]
    if len(raw) >= 3 and raw[1] == 0x81 and raw[2] >= 0x80:
        return 3, raw[2]
    if len(raw) < 4 or raw[1] != 0x82 or not raw[2]:
        _refuse("a DICE extension that is not DER")
    return 4, raw[2] << 8 | raw[3]


def _refuse(message: str) -> NoReturn:
    raise EvidenceFormatError(message, code="malformed-chain")
