"""Evidence of NVIDIA GPUs and NVSwitches: containers in, frozen records out (docs/spec/nvidia.md).

Read: our own document, the JSON list that NVIDIA's SDK writes, and a bare report (binary, hex or base64). No signature
check, clock or network here; see `sealwright.verify.nvgpu`.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from sealwright.crypto.canonical import parse_json
from sealwright.crypto.document import Bytes, Document, Record
from sealwright.errors import EvidenceFormatError
from sealwright.evidence.spdm import MAX_REPORT, SpdmReport

Architecture = Literal["HOPPER", "BLACKWELL", "LS10"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
MAX_CERTIFICATES = 8
MAX_CHAIN = 16 * 1024  # bytes of PEM
MAX_DOCUMENT = 64 * 1024  # bytes of one device
MAX_DEVICES = 32
MAX_LIST = MAX_DEVICES * MAX_DOCUMENT
_WHITE = re.compile(rb"\s+")
_HEX = re.compile(rb"(?:[0-9A-Fa-f]{2})+")
_SDK_MEMBERS = {"arch", "nonce", "evidence", "certificate"}


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class Stated(Record):
    """What the driver's NVML says. No device signs it: it is as good as the code that collected it."""

    environment: Literal["unavailable", "simulation", "production"]
    cc_feature: Literal["off", "on"]
    devtools: Literal["off", "on"]
    multi_gpu: Literal["none", "protected-pcie", "nvlink-encrypted", "unknown"]


class GpuDocument(Document):
    """Our own form of one device's evidence: what stands in an envelope's `devices[].evidence`."""

    format: Literal["sealwright-nvgpu/v1"] = "sealwright-nvgpu/v1"
    arch: Architecture
    report: Bytes  # SPDM request and answer
    certificates: Annotated[
        tuple[Bytes, ...], BeforeValidator(_tuple), Field(min_length=1, max_length=MAX_CERTIFICATES)
    ]  # DER, the device's own first
    stated: Stated | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.report or len(self.report) > MAX_REPORT:
            raise ValueError(f"report has 1 to {MAX_REPORT} bytes")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuEvidence:
    """One device's evidence, parsed; nothing in it is believed before `verify_nvgpu` has returned."""

    unverified_arch: Architecture | None  # as the container says; None: a bare report, which does not say
    report: SpdmReport
    certificates: tuple[bytes, ...]  # DER or PEM, the device's own first; empty: they come as endorsements
    stated: Stated | None = None

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Return the one device in `raw`, whatever its container.

        Raises:
            EvidenceFormatError: `count-of-devices`: not exactly one; or as `parse_devices` does.
        """
        devices = [cls(**fields) for fields in _containers(raw)]
        if len(devices) != 1:
            raise EvidenceFormatError(
                f"evidence of {len(devices)} devices where one is wanted", code="count-of-devices"
            )
        return devices[0]


def parse_devices(raw: bytes) -> tuple[GpuEvidence, ...]:
    """Return every device in `raw`: a document of ours, an SDK list, or a bare report.

    Raises:
        EvidenceFormatError: `malformed-evidence`, `count-of-devices`, or what is in it is malformed.
    """
    return tuple(GpuEvidence(**fields) for fields in _containers(raw))


def _containers(raw: bytes) -> list[dict[str, Any]]:
    start = raw[:1]
    if start == b"{":
        document = GpuDocument.parse(raw, limit=MAX_DOCUMENT, error=EvidenceFormatError)
        return [
            {
                "unverified_arch": document.arch,
                "report": SpdmReport.parse(document.report),
                "certificates": document.certificates,
                "stated": document.stated,
            }
        ]
    if start == b"[":
        return _sdk_list(raw)
    return [{"unverified_arch": None, "report": SpdmReport.parse(_bare(raw)), "certificates": ()}]


def _sdk_list(raw: bytes) -> list[dict[str, Any]]:
    said = parse_json(raw, limit=MAX_LIST, error=EvidenceFormatError)
    if not 0 < len(said) <= MAX_DEVICES:
        raise EvidenceFormatError(f"a list of {len(said)} devices", code="count-of-devices")
    return [_sdk_device(device) for device in said]


def _sdk_device(said: object) -> dict[str, Any]:
    if not (isinstance(said, dict) and said.keys() >= _SDK_MEMBERS):
        _refuse("a device without arch, nonce, evidence or certificate")
    arch, nonce, evidence, certificate = (said[name] for name in ("arch", "nonce", "evidence", "certificate"))
    if arch not in ARCHITECTURES:
        _refuse("an architecture that is none of " + ", ".join(ARCHITECTURES))
    if not all(isinstance(text, str) for text in (nonce, evidence, certificate)):
        _refuse("a member that is not text")
    report = SpdmReport.parse(_base64(evidence.encode(), MAX_REPORT))
    if nonce.lower() != report.request_nonce.hex():
        _refuse("the nonce beside the report is not the one in it")
    return {
        "unverified_arch": arch,
        "report": report,
        "certificates": (_base64(certificate.encode(), MAX_CHAIN),),
    }


def _bare(raw: bytes) -> bytes:
    """Return a report that came as it is, as hex or as base64."""
    if raw[:1] == b"\x11" or len(raw) > 4 * MAX_REPORT:
        return raw
    text = _WHITE.sub(b"", raw)
    return bytes.fromhex(text.decode()) if _HEX.fullmatch(text) else _base64(text, MAX_REPORT)


def _base64(text: bytes, limit: int) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise EvidenceFormatError("not base64", code="malformed-base64") from None
    if not 0 < len(raw) <= limit:
        raise EvidenceFormatError(f"{len(raw)} bytes where 1 to {limit} are wanted", code="wrong-length")
    return raw


def _refuse(message: str) -> NoReturn:
    raise EvidenceFormatError(message, code="malformed-evidence")
