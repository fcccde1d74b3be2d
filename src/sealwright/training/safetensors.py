"""safetensors files: written in one order, so that the same tensors are the same bytes; read as views, strictly.

Format: safetensors (Hugging Face), 8-byte little-endian length, JSON header, data. Spec: docs/spec/training-data.md, Kinds.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealwright.crypto.canonical import parse_json
from sealwright.errors import ArtefactFormatError, FormatError

MAX_HEADER = 8 << 20  # bytes
MAX_TENSORS = 1 << 16
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
_NAMES = {np.dtype(text): name for name, text in _DTYPES.items()}
_LENGTH = struct.Struct("<Q")
Tensors = Mapping[str, NDArray[Any]]


def encode_safetensors(tensors: Tensors) -> bytes:
    """Return the file of these tensors: names in order, header padded to 8 bytes with spaces.

    Raises:
        ArtefactFormatError: `malformed-safetensors`: a name or dtype that the format does not have.
    """
    header: dict[str, object] = {}
    parts: list[bytes] = []
    at = 0
    for name in sorted(tensors):
        value = tensors[name]
        dtype = value.dtype.newbyteorder("<")
        if dtype not in _NAMES or name == "__metadata__":
            raise _malformed(f"no tensor of dtype {value.dtype} or of this name can be written")
        raw = np.ascontiguousarray(value, dtype=dtype).tobytes()
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(value.shape),
            "data_offsets": [at, at + len(raw)],
        }
        parts.append(raw)
        at += len(raw)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([_LENGTH.pack(len(text)), text, *parts])


def decode_safetensors(raw: Any) -> dict[str, NDArray[Any]]:
    """Return the tensors in a buffer as read-only views of it; metadata is left out.

    Raises:
        ArtefactFormatError: `malformed-safetensors`: gaps, overlaps, a dtype numpy lacks, or lengths that do not fit.
    """
    view = memoryview(raw).cast("B").toreadonly()
    header, start = _header(view)
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise _malformed("too many tensors")
    found: dict[str, NDArray[Any]] = {}
    at = 0
    for name, (begin, end, dtype, shape) in sorted(
        ((name, _entry(said)) for name, said in header.items()), key=lambda item: item[1][:2]
    ):
        count = 1
        for length in shape:
            count *= length
        if begin != at or end - begin != count * dtype.itemsize or start + end > len(view):
            raise _malformed("tensors do not follow one another, or their lengths do not fit")
        found[name] = np.frombuffer(view[start + begin : start + end], dtype=dtype).reshape(shape)
        at = end
    if start + at != len(view):
        raise _malformed("there are bytes after the last tensor")
    return found


def _header(view: memoryview) -> tuple[dict[str, Any], int]:
    if len(view) < _LENGTH.size:
        raise _malformed("it is too short")
    (length,) = _LENGTH.unpack(view[: _LENGTH.size])
    if length > min(MAX_HEADER, len(view) - _LENGTH.size):
        raise _malformed("its header is too long")
    start = _LENGTH.size + length
    try:
        header = parse_json(bytes(view[_LENGTH.size : start]), limit=MAX_HEADER)
    except FormatError:
        header = None
    if not isinstance(header, dict):
        raise _malformed("its header is not a JSON object")
    return header, start


def _entry(said: object) -> tuple[int, int, np.dtype[Any], tuple[int, ...]]:
    match said:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end], **rest} if (
            not rest and dtype in _DTYPES and all(_natural(one) for one in (begin, end, *shape))
        ):
            return begin, end, np.dtype(_DTYPES[dtype]), tuple(shape)
    raise _malformed("an entry is not one, or of a dtype that is not read here")


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _malformed(text: str) -> ArtefactFormatError:
    return ArtefactFormatError(f"safetensors: {text}", code="malformed-safetensors", stage="weights")
