"""Reading binary layouts: never past the end, every refusal with the format's own code."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, NoReturn

from sealwright.errors import FormatError

MAX_FILE = 1 << 30  # bytes of a kernel, an initrd or a unified kernel image


@dataclass(frozen=True, slots=True)
class Reader:
    """Bytes of one format. Args: code: of every refusal."""

    raw: bytes
    code: str

    def refuse(self, text: str) -> NoReturn:
        """Raise FormatError with this format's code."""
        raise FormatError(text, code=self.code)

    def take(self, at: int, size: int, what: str) -> bytes:
        """Return `size` bytes at `at`. Raises FormatError: they are not all there."""
        if at < 0 or size < 0 or at + size > len(self.raw):
            self.refuse(f"{what}: {size} bytes at {at:#x} are not all in {len(self.raw)} bytes")
        return self.raw[at : at + size]

    def fields(self, layout: str, at: int, what: str) -> tuple[Any, ...]:
        """Return the fields of a struct layout at `at`. Raises FormatError: they are not all there."""
        return struct.unpack(layout, self.take(at, struct.calcsize(layout), what))
