"""Evidence of Azure's confidential VMs: the report of their paravisor (HCL) and a quote of its vTPM. Nothing is verified.

The guest cannot choose REPORT_DATA: the paravisor puts the hash of its runtime data there, which names the vTPM's
attestation key. Layout: Microsoft's "Guest attestation for confidential VMs", HCL report. Spec: docs/spec/azure.md.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Literal, NoReturn, Self

from cryptography.hazmat.primitives.asymmetric import rsa

from sealwright.crypto.canonical import parse_json
from sealwright.crypto.document import Bytes, Document
from sealwright.crypto.encoding import b64url_decode
from sealwright.errors import EvidenceFormatError
from sealwright.evidence.tpm import TpmQuote

MAX_HCL_REPORT = 16 * 1024  # bytes
MAX_EVIDENCE = 128 * 1024  # bytes of our document
HARDWARE_REPORT_SIZE = 1184  # bytes: an SNP report, or a TDREPORT and zeros
TD_REPORT_SIZE = 1024
REPORT_DATA_SIZE = 64
AK_KID = "HCLAkPub"
_HEAD = struct.Struct("<4s4I12s")  # signature, version, report size, request type, status, reserved
_DATA = struct.Struct("<5I")  # size, version, report type, hash type, size of the JSON
_REQUEST_TYPE = 2
_KINDS: dict[int, Literal["snp", "tdx"]] = {2: "snp", 4: "tdx"}
_KIND_IDS = {name: number for number, name in _KINDS.items()}
_HASHES = {1: "sha256", 2: "sha384", 3: "sha512"}
_HASH_IDS = {name: number for number, name in _HASHES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class HclReport:
    """What the paravisor keeps for its guest in NV index 0x01400001 of the vTPM."""

    version: int  # 1 or 2
    kind: Literal["snp", "tdx"]
    hash_name: str  # of the runtime data in REPORT_DATA
    hardware_report: bytes  # 1184 bytes
    runtime_data: bytes  # JSON, as hashed
    padding: int  # zero bytes after it; the NV index has a fixed size

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Return the report in `raw`. Raises EvidenceFormatError `malformed-hcl-report`, `too-large`."""
        if len(raw) > MAX_HCL_REPORT:
            raise EvidenceFormatError(f"an HCL report of {len(raw)} bytes", code="too-large")
        start = _HEAD.size + HARDWARE_REPORT_SIZE
        if len(raw) < start + _DATA.size:
            _malformed(f"an HCL report of {len(raw)} bytes")
        signature, version, size, request, status, reserved = _HEAD.unpack_from(raw)
        if (
            signature != b"HCLA"
            or version not in (1, 2)
            or request != _REQUEST_TYPE
            or status
            or any(reserved)
        ):
            _malformed("signature, version, request type, status or reserved bytes")
        data_size, data_version, kind, hash_type, json_size = _DATA.unpack_from(raw, start)
        if data_version != 1 or kind not in _KINDS or hash_type not in _HASHES:
            _malformed("version, report type or hash of the runtime data")
        end = start + _DATA.size + json_size
        if data_size != _DATA.size + json_size or size != start + data_size or end > len(raw):
            _malformed("sizes that contradict each other")
        if any(raw[end:]) or (kind == _KIND_IDS["tdx"] and any(raw[_HEAD.size + TD_REPORT_SIZE : start])):
            _malformed("padding that is not zero")
        return cls(
            version=version,
            kind=_KINDS[kind],
            hash_name=_HASHES[hash_type],
            hardware_report=raw[_HEAD.size : start],
            runtime_data=raw[start + _DATA.size : end],
            padding=len(raw) - end,
        )

    def encode(self) -> bytes:
        """Return the bytes that `parse` accepts."""
        size = _DATA.size + len(self.runtime_data)
        total = _HEAD.size + HARDWARE_REPORT_SIZE + size
        head = _HEAD.pack(b"HCLA", self.version, total, _REQUEST_TYPE, 0, bytes(12))
        data = _DATA.pack(size, 1, _KIND_IDS[self.kind], _HASH_IDS[self.hash_name], len(self.runtime_data))
        return head + self.hardware_report + data + self.runtime_data + bytes(self.padding)

    @property
    def platform(self) -> Literal["az-snp-vtpm", "az-tdx-vtpm"]:
        """The type of an envelope with this report."""
        return "az-snp-vtpm" if self.kind == "snp" else "az-tdx-vtpm"

    def expected_report_data(self) -> bytes:
        """Return what REPORT_DATA has to be: the hash of the runtime data, and zeros (64 bytes)."""
        return hashlib.new(self.hash_name, self.runtime_data).digest().ljust(REPORT_DATA_SIZE, b"\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeClaims:
    """What the paravisor says in its runtime data. Worth something only once REPORT_DATA is its hash."""

    ak_modulus: int
    ak_exponent: int
    ak_operations: tuple[str, ...]
    vm_configuration: dict[str, str | int | bool]
    user_data: bytes  # chosen by the guest, mostly 64 bytes; empty where there is none

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Return the claims in `raw`. Raises EvidenceFormatError `malformed-runtime-data`, or malformed JSON."""
        said = parse_json(raw, limit=MAX_HCL_REPORT, error=EvidenceFormatError)
        match said:
            case {"keys": list(keys), "vm-configuration": dict(configuration)}:
                aks = [key for key in keys if isinstance(key, dict) and key.get("kid") == AK_KID]
            case _:
                _malformed_claims("keys and vm-configuration")
        if len(aks) != 1:
            _malformed_claims(f"one key {AK_KID}")
        match aks[0]:
            case {"kty": "RSA", "n": str(n), "e": str(e), "key_ops": list(operations)}:
                modulus, exponent = (_integer(text) for text in (n, e))
            case _:
                _malformed_claims(f"an RSA key {AK_KID} with n, e and key_ops")
        return cls(
            ak_modulus=modulus,
            ak_exponent=exponent,
            ak_operations=tuple(str(one) for one in operations),
            vm_configuration={
                name: value for name, value in configuration.items() if isinstance(value, str | int | bool)
            },
            user_data=_user_data(said.get("user-data", "")),
        )

    def ak(self) -> rsa.RSAPublicKey:
        """Return the attestation key, both modulus and exponent as stated. Raises `malformed-runtime-data`."""
        try:
            return rsa.RSAPublicNumbers(self.ak_exponent, self.ak_modulus).public_key()
        except ValueError:
            _malformed_claims("an RSA key")


class _Document(Document):
    format: Literal["sealwright-azure-vtpm/v1"] = "sealwright-azure-vtpm/v1"
    hcl_report: Bytes
    quote: Bytes  # our document of a TPM quote, without its key
    td_quote: Bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureEvidence:
    """HCL report and vTPM quote; on TDX a quote of the TD too, for a TDREPORT proves nothing elsewhere."""

    hcl: HclReport
    quote: TpmQuote
    td_quote: bytes | None  # as the quoting service gave it; there exactly on TDX

    def __post_init__(self) -> None:
        if (self.td_quote is None) != (self.hcl.kind == "snp"):
            _malformed("a TD quote belongs to TDX, and only there")
        if self.quote.ak_public is not None:
            _malformed("an attestation key beside the one in the HCL report")

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Return the evidence in our document `raw`.

        Raises:
            EvidenceFormatError: it, or a part of it, is not exactly in its format.
        """
        said = _Document.parse(raw, limit=MAX_EVIDENCE, error=EvidenceFormatError)
        return cls(
            hcl=HclReport.parse(said.hcl_report),
            quote=TpmQuote.parse(said.quote),
            td_quote=said.td_quote,
        )

    def encode(self) -> bytes:
        """Return the bytes that `parse` accepts."""
        return _Document(
            hcl_report=self.hcl.encode(), quote=self.quote.encode(), td_quote=self.td_quote
        ).encode()


def _integer(text: str) -> int:
    return int.from_bytes(b64url_decode(text, error=EvidenceFormatError), "big")


def _user_data(value: object) -> bytes:
    if not isinstance(value, str) or len(value) > 2 * REPORT_DATA_SIZE:
        _malformed_claims("user-data of 64 bytes")
    try:
        raw = bytes.fromhex(value)
    except ValueError:
        _malformed_claims("user-data in hex")
    if raw.hex() != value.lower():
        _malformed_claims("user-data in hex")
    return raw


def _malformed(message: str) -> NoReturn:
    raise EvidenceFormatError(f"HCL report: {message}", code="malformed-hcl-report")


def _malformed_claims(wanted: str) -> NoReturn:
    raise EvidenceFormatError(f"the runtime data lacks {wanted}", code="malformed-runtime-data")
