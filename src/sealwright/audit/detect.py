"""What is this file? Evidence as vendors' interfaces and other tools write it, turned into an envelope. No I/O.

The content decides, and only that: a file's name says nothing. Hex and base64 texts of evidence are read as well.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from sealwright.crypto.canonical import parse_json
from sealwright.endorsement.x509 import pem_blocks
from sealwright.errors import EvidenceFormatError
from sealwright.evidence.azure import AzureEvidence, HclReport
from sealwright.evidence.azuretrustee import parse_trustee
from sealwright.evidence.envelope import DeviceEvidence, DeviceType, EvidenceEnvelope, PlatformType
from sealwright.evidence.nvgpu import GpuDocument, GpuEvidence, parse_devices
from sealwright.evidence.snp import REPORT_SIZE

MAX_FILE = 4 << 20  # bytes
TYPES: Sequence[str] = (
    "snp",
    "tdx",
    "sgx",
    "nitro",
    "tpm",
    "az-snp-vtpm",
    "az-tdx-vtpm",
    "nvgpu",
    "event-log",
)
_HEX = re.compile(rb"(?:[0-9a-fA-F]{2}){64,}")  # of texts without their white space
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{127,}={0,2}")
_OE_REPORT = b"\1\0\0\0\2\0\0\0"  # header of an Open Enclave report: version 1, type 2; the size follows
_ENVELOPE = b'"format":"sealwright-evidence/v1"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a file holds: evidence of a platform, of devices alone, or only an event log."""

    name: str  # for people
    envelope: EvidenceEnvelope | None = None
    devices: tuple[DeviceEvidence, ...] = ()
    event_log: bytes | None = None


def detect(raw: bytes, kind: str | None = None) -> Found:
    """Return what `raw` holds.

    Args:
        kind: one of `TYPES`, where the caller knows; else the content says it.

    Raises:
        EvidenceFormatError: `unknown-format`, or it is malformed as what it seems to be.
    """
    if len(raw) > MAX_FILE:
        raise EvidenceFormatError(f"{len(raw)} bytes are over {MAX_FILE}", code="too-large")
    for one in _spellings(raw):
        name = kind or _recognised(one)
        if name is not None:
            return _made(name, one)
    raise EvidenceFormatError(
        "not evidence that can be verified here; if you know what it is, say --type", code="unknown-format"
    )


def _made(name: str, raw: bytes) -> Found:
    try:
        return _MAKERS[name](raw)
    except ValidationError as exc:
        text = f"evidence with a part that is empty or too long, or with too many: {exc.errors()[0]['msg']}"
        raise EvidenceFormatError(text, code="malformed-document") from None


def _spellings(raw: bytes) -> list[bytes]:
    """Return the bytes as they are, and what a text spells: hex, base64, or a PEM-like block."""
    found = [raw]
    if b"-----BEGIN REPORT-----" in raw or b"-----BEGIN QUOTE-----" in raw:
        found += [der for label, der in pem_blocks(raw) if label in ("QUOTE", "REPORT")][::-1]
    if (text := spelled(raw)) is not None:
        found.append(text)
    return found


def spelled(raw: bytes) -> bytes | None:
    """Return the bytes that a text of hex or base64 spells; None if `raw` is no such text."""
    if not raw.isascii() or raw.lstrip()[:1] == b"-":  # PEM is no base64 text, whatever its letters
        return None
    # White space goes first: a pattern that allows it in two places takes quadratic time.
    text = b"".join(raw.split())
    if _HEX.fullmatch(digits := text.removeprefix(b"0x")):
        return bytes.fromhex(digits.decode())
    if not _BASE64.fullmatch(text):
        return None
    text = text.translate(bytes.maketrans(b"-_", b"+/"))
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _recognised(raw: bytes) -> str | None:
    """Return the type that the first bytes announce; the parser then insists on all of them."""
    for name, recognises in _SIGNS:
        if recognises(raw):
            return name
    return None


def _json(raw: bytes) -> dict[str, Any]:
    if raw.lstrip()[:1] != b"{":
        return {}
    try:
        value = parse_json(raw, limit=MAX_FILE, error=EvidenceFormatError)
    except EvidenceFormatError:
        return {}
    return value if isinstance(value, dict) else {}


def _members(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_quote(raw: bytes, versions: tuple[int, ...], tee: bytes) -> bool:
    """Intel's header: version, attestation key type 2, TEE type."""
    return raw[:4] in [version.to_bytes(2, "little") + b"\x02\0" for version in versions] and raw[4:8] == tee


def _is_snp(raw: bytes) -> bool:
    return len(raw) >= REPORT_SIZE and raw[:4] in [bytes([version, 0, 0, 0]) for version in (2, 3, 4, 5)]


def _is_trustee(raw: bytes) -> bool:
    names = _json(raw).keys()
    return "arch" not in names and not names.isdisjoint(("report", "hcl_report"))  # devices have a report too


def _is_gpu(raw: bytes) -> bool:
    sdk = raw.lstrip()[:1] == b"[" and b'"evidence"' in raw[:65536]
    return sdk or raw[:2] == b"\x11\xe0" or "arch" in _json(raw)


_SIGNS: Sequence[tuple[str, Callable[[bytes], bool]]] = (
    ("envelope", lambda raw: _ENVELOPE in raw),
    ("sgx", lambda raw: _is_quote(raw, (3,), bytes(4))),
    ("tdx", lambda raw: _is_quote(raw, (4, 5), b"\x81\0\0\0")),
    ("snp", _is_snp),
    ("nitro", lambda raw: raw.removeprefix(b"\xd2")[:4] == b"\x84\x44\xa1\x01"),
    ("oe-report", lambda raw: raw[:8] == _OE_REPORT),
    ("tpm", lambda raw: _json(raw).get("format") == "sealwright-tpm-quote/v1"),
    ("azure", lambda raw: _json(raw).get("format") == "sealwright-azure-vtpm/v1"),
    ("hcl", lambda raw: raw[:4] == b"HCLA"),
    ("azure-trustee", _is_trustee),
    ("snp-json", lambda raw: "attestation_report" in _members(_json(raw).get("evidence"))),
    ("nvgpu", _is_gpu),
    ("event-log", lambda raw: b"Spec ID Event0" in raw[:128]),
)


def _of(platform: PlatformType, name: str) -> Callable[[bytes], Found]:
    def make(raw: bytes) -> Found:
        return Found(name=name, envelope=EvidenceEnvelope(type=platform, evidence=raw, endorsements=()))

    return make


def _azure(raw: bytes) -> Found:
    return _of_azure(AzureEvidence.parse(raw), ())


def _azure_trustee(raw: bytes) -> Found:
    return _of_azure(*parse_trustee(raw))


def _of_azure(evidence: AzureEvidence, endorsements: Sequence[bytes]) -> Found:
    platform: PlatformType = "az-snp-vtpm" if evidence.hcl.kind == "snp" else "az-tdx-vtpm"
    envelope = EvidenceEnvelope(type=platform, evidence=evidence.encode(), endorsements=tuple(endorsements))
    return Found(name=f"Azure vTPM evidence ({platform})", envelope=envelope)


def _hcl(raw: bytes) -> Found:
    """An HCL report alone: its hardware report can be verified, its vTPM cannot."""
    report = HclReport.parse(raw)
    if report.kind != "snp":
        raise EvidenceFormatError(
            "an HCL report with a TDREPORT, which proves nothing away from its machine: bring the quote too",
            code="unknown-format",
        )
    return _of("snp", "SEV-SNP report of an Azure HCL report, without its vTPM")(report.hardware_report)


def _oe_report(raw: bytes) -> Found:
    """A quote behind the 16-byte header of Open Enclave, which is not signed and says only its size."""
    quote = raw[16:]
    if int.from_bytes(raw[8:16], "little") != len(quote):
        raise EvidenceFormatError("an Open Enclave report of another size than it says", code="wrong-length")
    if (name := _recognised(quote)) not in ("sgx", "tdx"):
        raise EvidenceFormatError("an Open Enclave report without a quote of Intel's", code="unknown-format")
    return _made(name, quote)


def _snp_json(raw: bytes) -> Found:
    """`{evidence: {attestation_report, cert_chain: {vcek, …}}}`, base64."""
    match _json(raw)["evidence"]:
        case {"attestation_report": str(report), **rest}:
            chain = rest.get("cert_chain")
            texts = chain.values() if isinstance(chain, dict) else ()
            endorsements = tuple(_base64(text) for text in texts if isinstance(text, str))
            envelope = EvidenceEnvelope(type="snp", evidence=_base64(report), endorsements=endorsements)
            return Found(name="AMD SEV-SNP report, in JSON", envelope=envelope)
    raise EvidenceFormatError("JSON without an SEV-SNP report", code="unknown-format")


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise EvidenceFormatError("not base64", code="malformed-base64") from None


def _devices(raw: bytes) -> Found:
    parts = tuple(map(_device, parse_devices(raw)))
    return Found(name=f"evidence of {len(parts)} NVIDIA device(s)", devices=parts)


def _device(one: GpuEvidence) -> DeviceEvidence:
    arch, report = one.unverified_arch, one.report.encode()
    if arch is None:
        return DeviceEvidence(type="nvgpu", evidence=report, endorsements=one.certificates)
    certificates = tuple(der for some in one.certificates for der in _ders(some))
    document = GpuDocument(arch=arch, report=report, certificates=certificates, stated=one.stated)
    kind: DeviceType = "nvswitch" if arch == "LS10" else "nvgpu"
    return DeviceEvidence(type=kind, evidence=document.encode(), endorsements=())


def _ders(certificates: bytes) -> list[bytes]:
    is_pem = b"-----BEGIN " in certificates
    return [der for _, der in pem_blocks(certificates)] if is_pem else [certificates]


_MAKERS: dict[str, Callable[[bytes], Found]] = {
    "envelope": lambda raw: Found(name="evidence envelope", envelope=EvidenceEnvelope.parse(raw)),
    "snp": _of("snp", "AMD SEV-SNP report"),
    "tdx": _of("tdx", "Intel TDX quote"),
    "sgx": _of("sgx", "Intel SGX quote"),
    "nitro": _of("nitro", "AWS Nitro attestation document"),
    "tpm": _of("tpm", "TPM 2.0 quote"),
    "az-snp-vtpm": _azure,
    "az-tdx-vtpm": _azure,
    "azure": _azure,
    "azure-trustee": _azure_trustee,
    "hcl": _hcl,
    "oe-report": _oe_report,
    "snp-json": _snp_json,
    "nvgpu": _devices,
    "event-log": lambda raw: Found(name="event log", event_log=raw),
}
