"""UEFI variables as TianoCore keeps them in flash: OVMF_VARS files, and the configuration volume of a TDVF.

Layout: MdeModulePkg, Include/Guid/VariableFormat.h (authenticated variables), in a firmware volume (PI 1.7, volume 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

from sealwright.image.predict.reader import Reader

MAX_STORE = 16 << 20  # bytes of a file
MAX_VARIABLES = 4096
_SYSTEM_NV_DATA = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
_AUTHENTICATED = UUID("aaf32c78-947b-439a-a180-2e144ec37792")
_STORE_HEADER, _VARIABLE_HEADER = 28, 60  # bytes
_FORMATTED, _HEALTHY = 0x5A, 0xFE
_START = 0x55AA
_LIVE, _DELETED = 0x3F, frozenset({0x3D, 0x3C, 0x7F, 0x7D, 0xFD, 0xFC})

Key = tuple[UUID, str]


def parse_variables(raw: bytes) -> dict[Key, bytes]:
    """Return the live variables of a store, by GUID and name. Raises FormatError `malformed-variables`."""
    reader = Reader(raw, "malformed-variables")
    if len(raw) > MAX_STORE or reader.take(16, 16, "volume GUID") != _SYSTEM_NV_DATA.bytes_le:
        reader.refuse("no volume of UEFI variables")
    (signature, _, start) = reader.fields("<4sIH", 40, "volume header")
    if signature != b"_FVH" or reader.take(start, 16, "store GUID") != _AUTHENTICATED.bytes_le:
        reader.refuse("no store of authenticated UEFI variables")
    size, form, state = reader.fields("<IBB", start + 16, "store header")
    if (form, state) != (_FORMATTED, _HEALTHY) or size < _STORE_HEADER:
        reader.refuse("a store that is not formatted, or not healthy")
    reader.take(start, size, "store")
    found: dict[Key, bytes] = {}
    for key, value in _variables(reader, start + _STORE_HEADER, start + size):
        if key in found:
            reader.refuse(f"variable {key[1]} stands twice")
        found[key] = value
    return found


def _variables(reader: Reader, at: int, end: int) -> Iterator[tuple[Key, bytes]]:
    for _ in range(MAX_VARIABLES):
        if end - at < _VARIABLE_HEADER:
            return
        start, state, _, _ = reader.fields("<HBBI", at, "variable")
        if start != _START:
            _check_empty(reader, at, end)
            return
        name_size, data_size = reader.fields("<II", at + 36, "variable sizes")
        data = at + _VARIABLE_HEADER + name_size
        if data + data_size > end:
            reader.refuse("a variable that is longer than its store")
        if state == _LIVE:
            guid = UUID(bytes_le=reader.take(at + 44, 16, "variable GUID"))
            yield (
                (guid, _name(reader, at + _VARIABLE_HEADER, name_size)),
                reader.take(data, data_size, "value"),
            )
        elif state not in _DELETED:
            reader.refuse(f"a variable in state {state:#x}: the store was being written")
        at = (data + data_size + 3) & ~3
    reader.refuse(f"over {MAX_VARIABLES} variables")


def _check_empty(reader: Reader, at: int, end: int) -> None:
    """What comes after the last variable is erased flash: anything else could be a variable that firmware still reads."""
    if reader.take(at, end - at, "free space").strip(b"\xff"):
        reader.refuse("bytes after the last variable")


def _name(reader: Reader, at: int, size: int) -> str:
    raw = reader.take(at, size, "variable name")
    try:
        name = raw.decode("utf-16-le")
    except UnicodeDecodeError:
        reader.refuse("a variable name that is no UTF-16 text")
    if not name.endswith("\0") or "\0" in name[:-1]:
        reader.refuse("a variable name without its one end")
    return name[:-1]
