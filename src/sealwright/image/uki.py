"""A unified kernel image: sections added to systemd's stub. UAPI group, Unified Kernel Image; Microsoft, PE format."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from sealwright.errors import FormatError
from sealwright.image.predict.pe import PeImage

SECTIONS: Final = (".osrel", ".cmdline", ".uname", ".initrd", ".linux")
_HEADER = struct.Struct("<8sIIIIIIHHI")
_READ_ONLY_DATA = 0x40000040  # initialised data, readable


def unified_kernel_image(stub: bytes, sections: Mapping[str, bytes]) -> bytes:
    """Return `stub` with sections behind its own, in the order of `SECTIONS`.

    Args:
        sections: contents of all `SECTIONS`.

    Raises:
        FormatError: `malformed-pe`; `malformed-uki`: the stub has no room for more headers, or such sections already.
    """
    parsed = PeImage.parse(stub)
    present = {section.name for section in parsed.sections}
    if set(sections) != set(SECTIONS) or present & set(SECTIONS):
        raise FormatError(
            f"a unified kernel image has {', '.join(SECTIONS)}, each once", code="malformed-uki"
        )
    out = bytearray(stub)
    coff = struct.unpack_from("<I", out, 0x3C)[0] + 4
    count, optional_size = (
        struct.unpack_from("<H", out, coff + 2)[0],
        struct.unpack_from("<H", out, coff + 16)[0],
    )
    optional = coff + 20
    alignment, file_alignment = struct.unpack_from("<II", out, optional + 32)
    headers_end = struct.unpack_from("<I", out, optional + 60)[0]
    table = optional + optional_size
    ends = [_HEADER.unpack_from(out, table + _HEADER.size * at) for at in range(count)]
    address = _up(max(start + size for _, size, start, *_ in ends), alignment)
    out += bytes(-len(out) % file_alignment)
    for name in SECTIONS:
        content, at = sections[name], table + _HEADER.size * count
        if at + _HEADER.size > headers_end:
            raise FormatError("the stub has no room for another section", code="malformed-uki")
        raw_size = _up(len(content), file_alignment)
        fields = (name.encode(), len(content), address, raw_size, len(out), 0, 0, 0, 0, _READ_ONLY_DATA)
        _HEADER.pack_into(out, at, *fields)
        out += content + bytes(raw_size - len(content))
        count, address = count + 1, _up(address + len(content), alignment)
    struct.pack_into("<H", out, coff + 2, count)
    struct.pack_into("<I", out, optional + 56, address)
    return bytes(out)


def _up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment
