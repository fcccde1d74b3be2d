"""PE/COFF images as UEFI firmware reads and measures them: sections, and the Authenticode digest.

Layout: Microsoft PE format; digest: Windows Authenticode Portable Executable Signature Format, "Calculating the PE image
hash", as TianoCore's DxeTpm2MeasureBootLib computes it. Spec: docs/spec/predicted-measurements.md, "Images".
Only PE32+ is read. A layout in which bytes escape the digest (gaps between sections) is refused.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Self

from sealwright.image.predict.events import Algorithm
from sealwright.image.predict.reader import MAX_FILE, Reader

MAX_SECTIONS = 96  # of an image, as Windows and firmware limit them
_PE32_PLUS = 0x20B
_CHECKSUM, _DIRECTORIES = 64, 112  # offsets in the optional header of PE32+
_SECURITY = _DIRECTORIES + 4 * 8  # IMAGE_DIRECTORY_ENTRY_SECURITY
_SECTION_BYTES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section header. Sizes and offsets in bytes."""

    name: str
    virtual_size: int
    virtual_address: int
    size_of_raw_data: int
    pointer_to_raw_data: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeImage:
    """A whole image. Nothing in it is believed."""

    raw: bytes
    optional_header: int  # offset
    size_of_headers: int
    sections: tuple[Section, ...]
    certificates: bytes  # the attribute certificate table; empty: not signed

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Return the image in `raw`. Raises FormatError `malformed-pe`."""
        reader = Reader(raw, "malformed-pe")
        if len(raw) > MAX_FILE or raw[:2] != b"MZ":
            reader.refuse("no PE image: it begins with another magic, or is over 1 GiB")
        (start,) = reader.fields("<I", 0x3C, "e_lfanew")
        if reader.take(start, 4, "signature") != b"PE\0\0":
            reader.refuse("no PE image: there is no PE signature")
        _, count, _, _, _, optional_size, _ = reader.fields("<HHIIIHH", start + 4, "COFF header")
        optional = start + 24
        headers = _check_optional(reader, optional, optional_size)
        table = optional + optional_size
        if not 1 <= count <= MAX_SECTIONS or table + count * _SECTION_BYTES > headers:
            reader.refuse(f"{count} sections do not fit into headers of {headers} bytes")
        sections = tuple(_section(reader, table + number * _SECTION_BYTES) for number in range(count))
        certificates = _certificates(reader, optional, _end(reader, sections, headers))
        return cls(
            raw=raw,
            optional_header=optional,
            size_of_headers=headers,
            sections=sections,
            certificates=certificates,
        )

    def authenticode(self, algorithm: Algorithm) -> bytes:
        """Return the digest that firmware measures and signatures cover: all but checksum, certificates and their entry."""
        checksum, entry = self.optional_header + _CHECKSUM, self.optional_header + _SECURITY
        view = memoryview(self.raw)
        digest = hashlib.new(algorithm, view[:checksum])
        digest.update(view[checksum + 4 : entry])
        digest.update(view[entry + 8 : len(self.raw) - len(self.certificates)])
        return digest.digest()

    def section(self, name: str) -> bytes | None:
        """Return a section as it lies in memory; None: there is none, or it is empty.

        Raises:
            FormatError: `malformed-pe`: it stands twice, or is longer in memory than in the file.
        """
        found = [one for one in self.sections if one.name == name and one.virtual_size]
        if not found:
            return None
        (section, *more), reader = found, Reader(self.raw, "malformed-pe")
        if more or section.virtual_size > section.size_of_raw_data:
            reader.refuse(f"section {name} stands twice, or its memory is larger than what the file has")
        return reader.take(section.pointer_to_raw_data, section.virtual_size, name)


def _check_optional(reader: Reader, at: int, size: int) -> int:
    """Return SizeOfHeaders. The optional header has to hold the data directories up to the security entry."""
    (magic,) = reader.fields("<H", at, "optional header")
    headers: int = reader.fields("<I", at + 60, "SizeOfHeaders")[0]
    (directories,) = reader.fields("<I", at + 108, "NumberOfRvaAndSizes")
    if magic != _PE32_PLUS:
        reader.refuse("no PE32+ image")
    if not 5 <= directories <= 16 or size < _DIRECTORIES + 8 * directories or headers > len(reader.raw):
        reader.refuse("an optional header with wrong sizes")
    return headers


def _section(reader: Reader, at: int) -> Section:
    name = reader.take(at, 8, "section name").rstrip(b"\0")
    if not name.isascii() or b"\0" in name:
        reader.refuse("a section name that is no ASCII text")
    size, address, raw_size, pointer = reader.fields("<IIII", at + 8, "section header")
    return Section(
        name=name.decode("ascii"),
        virtual_size=size,
        virtual_address=address,
        size_of_raw_data=raw_size,
        pointer_to_raw_data=pointer,
    )


def _end(reader: Reader, sections: tuple[Section, ...], headers: int) -> int:
    """Return where the last section ends. Each begins where the one before ended: nothing between escapes the digest."""
    end = headers
    for one in sorted(sections, key=lambda one: one.pointer_to_raw_data):
        if not one.size_of_raw_data:
            continue
        if one.pointer_to_raw_data != end:
            reader.refuse(f"section {one.name} does not begin where the one before it ends")
        end += one.size_of_raw_data
    if end > len(reader.raw):
        reader.refuse("sections that reach beyond the file")
    return end


def _certificates(reader: Reader, optional: int, end: int) -> bytes:
    offset, size = reader.fields("<II", optional + _SECURITY, "security directory")
    if not size and not offset:
        return b""
    if offset < end or offset % 8 or offset + size != len(reader.raw) or size < 8:
        reader.refuse("the certificate table is not the end of the file")
    return reader.take(offset, size, "certificate table")
