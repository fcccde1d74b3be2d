"""UEFI structures that firmware measures: variables, signature lists, device paths. Bytes in, frozen records out.

Layouts: TCG PC Client Platform Firmware Profile 1.06, section 10.2.6 (UEFI_VARIABLE_DATA); UEFI 2.10, sections
10.3 (device paths) and 32.4.1 (EFI_SIGNATURE_LIST).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import NoReturn, Self
from uuid import UUID

from sealwright.errors import EvidenceFormatError

EFI_GLOBAL_VARIABLE = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
EFI_IMAGE_SECURITY_DATABASE = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
SHIM_LOCK = UUID("605dab50-e046-4300-abb6-3dd810dd8b23")
EFI_CERT_X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
EFI_CERT_SHA256 = UUID("c1c41626-504c-4092-aca9-41f936934328")

MAX_NAME = 256  # UTF-16 code units
MAX_SIGNATURES = 8192
_SIGNATURE_TYPES = {
    EFI_CERT_X509: "x509",
    EFI_CERT_SHA256: "sha256",
    UUID("3bd2a492-96c0-4079-b420-fcf98ef103ed"): "x509-sha256",
    UUID("7076876e-80c2-4ee6-aad2-28b349a6865b"): "x509-sha384",
    UUID("446dbf63-2502-4cda-bcfa-2465d2b0fe9d"): "x509-sha512",
    UUID("3c5766e8-269c-4e34-aa14-ed776e85b3b6"): "rsa2048",
    UUID("826ca512-cf10-4ac9-b187-be01496631bd"): "sha1",
    UUID("ff3e5307-9fd0-48c9-85f1-8ad56c701e01"): "sha384",
    UUID("093e0fae-a6c4-4f50-9f1b-d41e2b89c19a"): "sha512",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VariableData:
    """UEFI_VARIABLE_DATA: a variable as it is measured."""

    variable_name: UUID  # the vendor's GUID, called so by the specification
    unicode_name: str
    variable_data: bytes
    trailing: bytes  # measured too; shim before version 15 left some, everything else leaves none

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Return the variable in `raw`. Raises EvidenceFormatError `malformed-event`."""
        if len(raw) < 32:
            _malformed("a variable of less than 32 bytes")
        units, size = struct.unpack_from("<QQ", raw, 16)
        start = 32 + 2 * units
        if units > MAX_NAME or start + size > len(raw):
            _malformed("a variable that is longer than its event")
        return cls(
            variable_name=UUID(bytes_le=raw[:16]),
            unicode_name=utf16(raw[32:start]),
            variable_data=raw[start : start + size],
            trailing=raw[start + size :],
        )

    @property
    def key(self) -> tuple[UUID, str]:
        """What names the variable: GUID and name, exactly."""
        return self.variable_name, self.unicode_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One EFI_SIGNATURE_DATA: a certificate or digest in PK, KEK, db or dbx."""

    kind: str  # "x509", "sha256", …, or the type's GUID
    owner: UUID
    data: bytes  # DER, or the digest

    @property
    def digest(self) -> bytes:
        """The digest itself, or SHA-256 of a certificate."""
        return self.data if self.kind.startswith("sha") else sha256(self.data).digest()


def parse_signature_lists(raw: bytes) -> tuple[Signature, ...]:
    """Return the signatures of a variable such as db. Raises EvidenceFormatError `malformed-event`."""
    found: list[Signature] = []
    start = 0
    while start < len(raw):
        end, signatures = _signature_list(raw, start)
        found.extend(signatures)
        if len(found) > MAX_SIGNATURES:
            _malformed(f"over {MAX_SIGNATURES} signatures")
        start = end
    return tuple(found)


def _signature_list(raw: bytes, start: int) -> tuple[int, Iterator[Signature]]:
    """Return where the list at `start` ends, and its signatures."""
    if len(raw) - start < 28:
        _malformed("a signature list of less than 28 bytes")
    size, header, each = struct.unpack_from("<III", raw, start + 16)
    end, first = start + size, start + 28 + header
    if not first <= end <= len(raw) or each <= 16 or (end - first) % each:
        _malformed("a signature list with wrong sizes")
    guid = UUID(bytes_le=raw[start : start + 16])
    kind = _SIGNATURE_TYPES.get(guid, str(guid))
    return end, (_signature(kind, raw[at : at + each]) for at in range(first, end, each))


def parse_signature_data(raw: bytes) -> Signature:
    """Return what a firmware measures of an authority: owner and certificate. Raises `malformed-event`."""
    if len(raw) <= 16:
        _malformed("signature data without data")
    return _signature("sha256" if len(raw) == 48 else "x509", raw)


def device_path(raw: bytes) -> str:
    """Return the file names in a device path, for people; nodes that hold none are left out."""
    return "".join(_path_names(raw))


def _path_names(raw: bytes) -> Iterator[str]:
    start = 0
    while start + 4 <= len(raw):
        kind, subtype, length = struct.unpack_from("<BBH", raw, start)
        if not 4 <= length <= len(raw) - start or kind == 0x7F:
            return
        if (kind, subtype) == (4, 4):  # MEDIA_DEVICE_PATH, file path
            yield raw[start + 4 : start + length].decode("utf-16-le", "replace").split("\0")[0]
        start += length


def image_path(event_data: bytes) -> str:
    """Return the path in an EFI_IMAGE_LOAD_EVENT, for people; empty where there is none."""
    if len(event_data) < 32:
        return ""
    size = int.from_bytes(event_data[24:32], "little")
    return device_path(event_data[32 : 32 + size])


def utf16(raw: bytes) -> str:
    """Return UTF-16LE text. Raises EvidenceFormatError `malformed-event`."""
    try:
        return raw.decode("utf-16-le")
    except UnicodeDecodeError:
        _malformed("text that is not UTF-16")


def _signature(kind: str, raw: bytes) -> Signature:
    return Signature(kind=kind, owner=UUID(bytes_le=raw[:16]), data=raw[16:])


def _malformed(message: str) -> NoReturn:
    raise EvidenceFormatError(message, code="malformed-event")
