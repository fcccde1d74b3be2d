"""Enclave Image Format of AWS Nitro Enclaves: write one, read one, the same bytes from the same input.

Format facts: aws-nitro-enclaves-image-format, version 4. Spec: docs/spec/predicted-measurements.md, "Nitro Enclaves".
All integers are big-endian. The checksum (CRC-32) is over the whole file but itself.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from sealwright.crypto.canonical import canonical
from sealwright.image.predict.reader import MAX_FILE, Reader

MAX_SECTIONS = 32
MAX_METADATA = 64 * 1024  # bytes
MAX_COMMAND_LINE = 4096  # bytes
KERNEL, CMDLINE, RAMDISK, SIGNATURE, METADATA = 1, 2, 3, 4, 5
_MAGIC, _VERSION, _ARM64 = b".eif", 4, 1
_HEADER = struct.Struct(">4sHHQQHH32Q32QI")  # without the checksum behind it
_HEADER_BYTES = _HEADER.size + 4
_SECTION = struct.Struct(">HHQ")  # kind, flags, size
_MEMORY, _PROCESSORS = 1 << 30, 2  # defaults that `nitro-cli run-enclave` overrides


@dataclass(frozen=True, slots=True, kw_only=True)
class Eif:
    """What is in an image. Metadata and signature are not measured."""

    kernel: bytes
    cmdline: str
    ramdisks: tuple[bytes, ...]
    metadata: bytes  # JSON
    signature: bytes = b""  # CBOR; empty: not signed
    arm64: bool = False

    @classmethod
    def make(
        cls,
        kernel: bytes,
        cmdline: str,
        ramdisks: Sequence[bytes],
        *,
        name: str,
        version: str,
        arm64: bool = False,
    ) -> Self:
        """Return an image whose metadata has a fixed build time and no name of a builder's machine."""
        build = {
            "BuildTime": "1970-01-01T00:00:00Z",
            "BuildTool": "sealwright",
            "BuildToolVersion": "1",
            "OperatingSystem": "Linux",
            "KernelVersion": "unknown",
        }
        metadata: Mapping[str, object] = {
            "ImageName": name,
            "ImageVersion": version,
            "BuildMetadata": build,
            "DockerInfo": {},
            "CustomMetadata": {},
        }
        return cls(
            kernel=kernel,
            cmdline=cmdline,
            ramdisks=tuple(ramdisks),
            metadata=canonical(metadata),
            arm64=arm64,
        )

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Return the image in `raw`; `encode` gives the same bytes. Raises FormatError `malformed-eif`."""
        reader = Reader(raw, "malformed-eif")
        magic, version, flags, *_ = reader.fields(_HEADER.format, 0, "header")
        if len(raw) > MAX_FILE or magic != _MAGIC or version != _VERSION or flags & ~_ARM64:
            reader.refuse("no enclave image of version 4, or over 1 GiB")
        image = cls._of(_sections(reader), reader, arm64=bool(flags & _ARM64))
        if image.encode() != raw:
            reader.refuse(
                "checksum, order of sections, defaults or reserved fields are not as they are written"
            )
        return image

    @classmethod
    def _of(cls, sections: Sequence[tuple[int, bytes]], reader: Reader, *, arm64: bool) -> Self:
        kinds = [kind for kind, _ in sections]
        ramdisks = tuple(data for kind, data in sections if kind == RAMDISK)
        tail = [SIGNATURE] if SIGNATURE in kinds else []
        if kinds != [KERNEL, CMDLINE, METADATA, *[RAMDISK] * len(ramdisks), *tail]:
            reader.refuse("sections are missing, in another order or of another kind")
        cmdline = sections[1][1]
        if not cmdline.isascii():
            reader.refuse("a command line that is no ASCII text")
        return cls(
            kernel=sections[0][1],
            cmdline=cmdline.decode("ascii"),
            ramdisks=ramdisks,
            metadata=sections[2][1],
            signature=sections[-1][1] if tail else b"",
            arm64=arm64,
        )

    def encode(self) -> bytes:
        """Return the file. Raises FormatError `malformed-eif`: a part is empty, too large, or there are too many."""
        sections = [(KERNEL, self.kernel), (CMDLINE, self._cmdline()), (METADATA, self.metadata)]
        sections += [(RAMDISK, ramdisk) for ramdisk in self.ramdisks]
        sections += [(SIGNATURE, self.signature)] if self.signature else []
        self._check(sections)
        sizes, offsets, at = [len(data) for _, data in sections], [], _HEADER_BYTES
        for size in sizes:
            offsets.append(at)
            at += _SECTION.size + size
        none = [0] * (MAX_SECTIONS - len(sections))
        counts = (_MEMORY, _PROCESSORS, 0, len(sections))
        head = _HEADER.pack(_MAGIC, _VERSION, int(self.arm64), *counts, *offsets, *none, *sizes, *none, 0)
        body = b"".join(_SECTION.pack(kind, 0, len(data)) + data for kind, data in sections)
        return head + struct.pack(">I", zlib.crc32(body, zlib.crc32(head))) + body

    def _cmdline(self) -> bytes:
        reader = Reader(b"", "malformed-eif")
        if not self.cmdline.isascii() or "\0" in self.cmdline or len(self.cmdline) > MAX_COMMAND_LINE:
            reader.refuse("a command line that is no ASCII text, or over 4096 bytes")
        return self.cmdline.encode("ascii")

    def _check(self, sections: Sequence[tuple[int, bytes]]) -> None:
        reader = Reader(b"", "malformed-eif")
        if not self.kernel or not self.ramdisks or not all(self.ramdisks):
            reader.refuse("an enclave image without a kernel or a ramdisk")
        if len(sections) > MAX_SECTIONS or len(self.metadata) > MAX_METADATA:
            reader.refuse(f"over {MAX_SECTIONS} sections, or metadata over {MAX_METADATA} bytes")
        if sum(len(data) for _, data in sections) > MAX_FILE - _HEADER_BYTES - MAX_SECTIONS * _SECTION.size:
            reader.refuse("an enclave image over 1 GiB")


def _sections(reader: Reader) -> list[tuple[int, bytes]]:
    """Return the sections as they follow each other; the header's offsets are checked by writing it again."""
    found: list[tuple[int, bytes]] = []
    at = _HEADER_BYTES
    while at < len(reader.raw):
        if len(found) == MAX_SECTIONS:
            reader.refuse(f"over {MAX_SECTIONS} sections")
        kind, flags, size = reader.fields(_SECTION.format, at, "section header")
        if flags:
            reader.refuse("a section with flags")
        found.append((kind, reader.take(at + _SECTION.size, size, "section")))
        at += _SECTION.size + size
    return found
