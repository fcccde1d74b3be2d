"""The table of GUIDs at the end of OVMF firmware, and the metadata of SEV and TDX that it leads to.

Layouts: TianoCore OvmfPkg/ResetVector (table, OvmfSevMetadata.asm); Intel TDX Virtual Firmware Design Guide, section 11
(TDVF descriptor). Spec: docs/spec/predicted-measurements.md, "Firmware".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn, Self
from uuid import UUID

from sealwright.errors import FormatError
from sealwright.image.predict.reader import Reader

PAGE = 4096
MAX_FIRMWARE = 64 << 20  # bytes
MAX_SECTIONS = 64
MAX_SECTION_BYTES = 1 << 30  # of memory, for one section
FOUR_GIB = 1 << 32
_FOOTER = UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
_SEV_HASH_TABLE = UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
_SEV_ES_RESET = UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
_SEV_METADATA = UUID("dc886566-984a-4798-a75e-5585a7bf67cc")
_TDX_METADATA = UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
_AFTER_TABLE = 32  # bytes of reset vector behind the table
_ENTRY = 18  # bytes: length and GUID, at an entry's end


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpSection:
    """One OvmfSevMetadata section: memory that the VMM prepares in a way of its own."""

    gpa: int
    size: int  # bytes, whole pages
    kind: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxSection:
    """One TDVF section."""

    data_offset: int
    raw_data_size: int
    memory_address: int
    memory_data_size: int
    kind: int
    attributes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """An OVMF image that ends at 4 GiB, with its table of GUIDs."""

    raw: bytes
    table: dict[UUID, bytes]

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Return the firmware in `raw`. Raises FormatError `malformed-firmware`."""
        reader = Reader(raw, "malformed-firmware")
        if not raw or len(raw) > MAX_FIRMWARE or len(raw) % PAGE:
            reader.refuse("firmware of no whole pages, or over 64 MiB")
        end = len(raw) - _AFTER_TABLE
        size, guid = reader.fields("<H16s", end - _ENTRY, "table of GUIDs")
        if guid != _FOOTER.bytes_le or size < _ENTRY:
            reader.refuse("no OVMF firmware: there is no table of GUIDs at its end")
        return cls(raw=raw, table=_entries(reader, end - size, end - _ENTRY))

    @property
    def gpa(self) -> int:
        """The guest physical address at which it begins."""
        return FOUR_GIB - len(self.raw)

    def sev_es_reset(self) -> int:
        """Return the address at which secondary processors begin. Raises FormatError `no-snp-metadata`."""
        return self._address(_SEV_ES_RESET, "no-snp-metadata", "the reset block of SEV-ES")

    def sev_hash_table(self) -> int:
        """Return the address of the table of kernel hashes; 0: this firmware checks none."""
        return self._address(_SEV_HASH_TABLE, "no-snp-metadata", "the place of kernel hashes")

    def snp_sections(self) -> tuple[SnpSection, ...]:
        """Return the SEV metadata. Raises FormatError `no-snp-metadata`, `malformed-firmware`."""
        offset = self._address(_SEV_METADATA, "no-snp-metadata", "SEV metadata")
        reader, at = self._metadata(offset, b"ASEV")
        (count,) = reader.fields("<I", at + 12, "section count")
        if not 1 <= count <= MAX_SECTIONS:
            reader.refuse(f"SEV metadata of {count} sections")
        return tuple(_snp_section(reader, at + 16 + 12 * number) for number in range(count))

    def tdx_sections(self) -> tuple[TdxSection, ...]:
        """Return the TDVF metadata. Raises FormatError `no-tdx-metadata`, `malformed-firmware`."""
        offset = self._address(_TDX_METADATA, "no-tdx-metadata", "TDX metadata")
        reader, at = self._metadata(offset, b"TDVF")
        (count,) = reader.fields("<I", at + 12, "section count")
        if not 1 <= count <= MAX_SECTIONS:
            reader.refuse(f"TDX metadata of {count} sections")
        return tuple(_tdx_section(reader, at + 16 + 32 * number) for number in range(count))

    def _metadata(self, offset: int, magic: bytes) -> tuple[Reader, int]:
        reader, at = Reader(self.raw, "malformed-firmware"), len(self.raw) - offset
        found, _, version = reader.fields("<4sII", at, "metadata")
        if found != magic or version != 1:
            reader.refuse(f"metadata {magic.decode()} of another magic or version")
        return reader, at

    def _address(self, guid: UUID, code: str, what: str) -> int:
        entry = self.table.get(guid)
        if entry is None:
            _lacking(what, code)
        value: int = Reader(entry, "malformed-firmware").fields("<I", 0, what)[0]
        return value


def _lacking(what: str, code: str) -> NoReturn:
    raise FormatError(f"this firmware has not {what}: build the one for that platform", code=code)


def _entries(reader: Reader, start: int, end: int) -> dict[UUID, bytes]:
    """Return the entries between `start` and `end`; each has its length and GUID at its end."""
    found: dict[UUID, bytes] = {}
    while end > start:
        size, raw = reader.fields("<H16s", end - _ENTRY, "table entry")
        guid = UUID(bytes_le=raw)
        if size < _ENTRY or end - size < start or guid in found:
            reader.refuse("a table of GUIDs with an entry of wrong length, or twice")
        found[guid] = reader.take(end - size, size - _ENTRY, "table entry")
        end -= size
    return found


def _snp_section(reader: Reader, at: int) -> SnpSection:
    gpa, size, kind = reader.fields("<III", at, "SEV section")
    _check_pages(reader, gpa, size)
    return SnpSection(gpa=gpa, size=size, kind=kind)


def _tdx_section(reader: Reader, at: int) -> TdxSection:
    offset, raw_size, address, size, kind, attributes = reader.fields("<IIQQII", at, "TDX section")
    _check_pages(reader, address, size)
    if raw_size > size or (raw_size and raw_size % PAGE):
        reader.refuse("a TDX section with more data than memory")
    reader.take(offset, raw_size, "TDX section")
    return TdxSection(
        data_offset=offset,
        raw_data_size=raw_size,
        memory_address=address,
        memory_data_size=size,
        kind=kind,
        attributes=attributes,
    )


def _check_pages(reader: Reader, address: int, size: int) -> None:
    if address % PAGE or size % PAGE or size > MAX_SECTION_BYTES:
        reader.refuse("a section that is not whole pages, or over 1 GiB")
