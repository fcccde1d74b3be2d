"""Evidence as the guest components of Confidential Containers write it, turned into our envelope. Nothing is verified.

Spec: docs/spec/kbs-guest.md, Evidence. What is put together wrongly here fails at the vendor's signature.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from sealwright.crypto.canonical import canonical, parse_json
from sealwright.endorsement.x509 import pem_blocks
from sealwright.errors import EvidenceFormatError
from sealwright.evidence.azuretrustee import parse_trustee
from sealwright.evidence.envelope import (
    MAX_DEVICES,
    DeviceEvidence,
    DeviceType,
    EvidenceEnvelope,
    PlatformType,
)
from sealwright.evidence.nvgpu import ARCHITECTURES, MAX_CHAIN, GpuDocument
from sealwright.evidence.snp import LAYOUT
from sealwright.evidence.spdm import MAX_REPORT

MAX_ADDITIONAL = 2 << 20  # characters
MAX_PART = 512 * 1024  # bytes
MAX_CERTIFICATES = 8
_TURIN = 0x1A  # CPU family whose TCB versions have a component FMC
_CERTIFICATES: Final = ("ARK", "ASK", "VCEK", "VLEK", "CRL")
_TEES: Final[Mapping[str, PlatformType]] = {
    "snp": "snp",
    "tdx": "tdx",
    "sgx": "sgx",
    "az-snp-vtpm": "az-snp-vtpm",
    "az-tdx-vtpm": "az-tdx-vtpm",
    "azsnpvtpm": "az-snp-vtpm",
    "aztdxvtpm": "az-tdx-vtpm",
}


def platform_of(tee: str) -> PlatformType | None:
    """Return the platform that the protocol's name of a TEE stands for; None: it is not verified here."""
    return _TEES.get(tee)


def guest_envelope(platform: PlatformType, primary: Mapping[str, Any], additional: str) -> EvidenceEnvelope:
    """Return an envelope of a guest's evidence, with its devices.

    Args:
        primary: `primary_evidence`.
        additional: `additional_evidence`, JSON text; empty: no devices.

    Raises:
        EvidenceFormatError: `malformed-trustee-evidence`, or a part of it is not in its format.
    """
    evidence, event_log, endorsements = _PRIMARY[platform](primary)
    return EvidenceEnvelope(
        type=platform,
        evidence=evidence,
        event_log=event_log,
        endorsements=endorsements,
        devices=_devices(additional),
    )


def snp_report(said: Mapping[str, Any]) -> bytes:
    """Return the bytes (1184) of a report from its fields as the crate `sev` names them."""
    turin = said.get("cpuid_fam_id") == _TURIN or _masked_like_turin(said)
    tcbs = {name: _tcb(said, name, turin) for name in ("current", "reported", "committed", "launch")}
    signature = _object(said, "signature")
    values = (
        *(_number(said, name, 32) for name in ("version", "guest_svn")),
        _number(said, "policy", 64),
        *(_octets(said, name, 16) for name in ("family_id", "image_id")),
        *(_number(said, name, 32) for name in ("vmpl", "sig_algo")),
        tcbs["current"],
        _number(said, "plat_info", 64),
        _number(said, "key_info", 32),
        0,
        _octets(said, "report_data", 64),
        _octets(said, "measurement", 48),
        _octets(said, "host_data", 32),
        *(_octets(said, name, 48) for name in ("id_key_digest", "author_key_digest")),
        *(_octets(said, name, 32) for name in ("report_id", "report_id_ma")),
        tcbs["reported"],
        bytes(_optional(said, name, 8) for name in ("cpuid_fam_id", "cpuid_mod_id", "cpuid_step")),
        bytes(21),
        _octets(said, "chip_id", 64),
        tcbs["committed"],
        _firmware(said, "current"),
        0,
        _firmware(said, "committed"),
        0,
        tcbs["launch"],
        *(_optional(said, name, 64) for name in ("launch_mit_vector", "current_mit_vector")),
        bytes(152),
        *(_octets(signature, name, 72) for name in ("r", "s")),
        bytes(368),
    )
    return LAYOUT.pack(*values)


def _masked_like_turin(said: Mapping[str, Any]) -> bool:
    # Version 2 does not tell the family; the crate then writes a TCB with FMC only where the chip has one.
    tcb = said.get("reported_tcb")
    return said.get("version") == 2 and isinstance(tcb, dict) and tcb.get("fmc") is not None


def _tcb(said: Mapping[str, Any], name: str, turin: bool) -> bytes:
    tcb = _object(said, f"{name}_tcb")
    bootloader, tee, snp, microcode = (
        _number(tcb, part, 8) for part in ("bootloader", "tee", "snp", "microcode")
    )
    if turin:
        return bytes((_optional(tcb, "fmc", 8), bootloader, tee, snp, 0, 0, 0, microcode))
    return bytes((bootloader, tee, 0, 0, 0, 0, snp, microcode))


def _firmware(said: Mapping[str, Any], name: str) -> bytes:
    version = _object(said, name)
    return bytes(_number(version, part, 8) for part in ("build", "minor", "major"))


_Parts = tuple[bytes, bytes | None, tuple[bytes, ...]]  # evidence, event log, endorsements


def _snp(said: Mapping[str, Any]) -> _Parts:
    chain = [] if said.get("cert_chain") is None else said["cert_chain"]
    if not isinstance(chain, list) or len(chain) > MAX_CERTIFICATES:
        _malformed(f"a certificate table of at most {MAX_CERTIFICATES}")
    certificates = []
    for entry in chain:
        match entry:
            case {"cert_type": str(kind), "data": list() | str()} if kind in _CERTIFICATES:
                certificates.append(_octets(entry, "data", None))
            case {"cert_type": _, "data": _}:
                continue  # empty entries, and those of a cloud
            case _:
                _malformed("entries of cert_type and data")
    return snp_report(_object(said, "attestation_report")), None, tuple(sorted(certificates))


def _quote(said: Mapping[str, Any]) -> _Parts:
    log = said.get("cc_eventlog")
    return _base64(said.get("quote"), MAX_PART), None if log is None else _base64(log, MAX_PART), ()


def _azure(said: Mapping[str, Any]) -> _Parts:
    evidence, endorsements = parse_trustee(canonical(dict(said)))
    return evidence.encode(), None, tuple(sorted(endorsements))


_PRIMARY: Final[Mapping[PlatformType, Callable[[Mapping[str, Any]], _Parts]]] = {
    "snp": _snp,
    "tdx": _quote,
    "sgx": _quote,
    "az-snp-vtpm": _azure,
    "az-tdx-vtpm": _azure,
}


def _devices(additional: str) -> tuple[DeviceEvidence, ...]:
    if not additional:
        return ()
    if len(additional) > MAX_ADDITIONAL:
        _malformed(f"additional evidence of at most {MAX_ADDITIONAL} characters")
    said = parse_json(additional.encode(), limit=MAX_ADDITIONAL, error=EvidenceFormatError)
    nvidia = _object(said, "nvidia") if isinstance(said, dict) and len(said) == 1 else {}
    devices = nvidia.get("device_evidence_list")
    if not isinstance(devices, list) or not 0 < len(devices) <= MAX_DEVICES:
        _malformed(f"additional evidence of 1 to {MAX_DEVICES} NVIDIA devices")
    return tuple(map(_device, devices))


def _device(said: Any) -> DeviceEvidence:
    match said:
        case {"arch": str(arch), "evidence": str(evidence), "certificate": str(certificate)}:
            name = next((one for one in ARCHITECTURES if one == arch.upper()), None)
        case _:
            _malformed("devices of arch, evidence and certificate")
    if name is None:
        _malformed("devices of " + ", ".join(ARCHITECTURES))
    chain = tuple(der for _, der in pem_blocks(_base64(certificate, MAX_CHAIN)))
    if not 0 < len(chain) <= MAX_CERTIFICATES:
        _malformed(f"a device's chain of 1 to {MAX_CERTIFICATES} certificates in PEM")
    document = GpuDocument(arch=name, report=_base64(evidence, MAX_REPORT), certificates=chain)
    kind: DeviceType = "nvswitch" if name == "LS10" else "nvgpu"
    return DeviceEvidence(type=kind, evidence=document.encode(), endorsements=())


def _object(said: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = said.get(name)
    if not isinstance(found, dict):
        _malformed(f"an object {name}")
    return found


def _number(said: Mapping[str, Any], name: str, bits: int) -> int:
    found = said.get(name)
    if type(found) is not int or not 0 <= found < 1 << bits:
        _malformed(f"{name}, a number of {bits} bits")
    return found


def _optional(said: Mapping[str, Any], name: str, bits: int) -> int:
    return 0 if said.get(name) is None else _number(said, name, bits)


def _octets(said: Mapping[str, Any], name: str, size: int | None) -> bytes:
    """Return bytes written as a list of numbers; of a certificate as base64 too."""
    found = said.get(name)
    if size is None and isinstance(found, str):
        return _base64(found, MAX_PART)
    if not isinstance(found, list) or len(found) > MAX_PART or not all(_is_octet(one) for one in found):
        _malformed(f"{name}, a list of bytes")
    if len(found) != size and size is not None:
        _malformed(f"{name} of {size} bytes")
    return bytes(found)


def _is_octet(value: object) -> bool:
    return type(value) is int and 0 <= value <= 255


def _base64(text: object, limit: int) -> bytes:
    if not isinstance(text, str) or len(text) > 2 * limit:
        _malformed("base64")
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise EvidenceFormatError("not base64", code="malformed-base64") from None
    if not 0 < len(raw) <= limit:
        raise EvidenceFormatError(f"{len(raw)} bytes where 1 to {limit} are wanted", code="wrong-length")
    return raw


def _malformed(wanted: str) -> NoReturn:
    raise EvidenceFormatError(f"a guest's evidence: {wanted} is wanted", code="malformed-trustee-evidence")
