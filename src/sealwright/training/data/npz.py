"""NPZ: arrays of an uncompressed archive as views. No pickles, nothing unpacked."""

from __future__ import annotations

import io
import mmap
import struct
import warnings
import zipfile
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from sealwright.training.data.tables import MAX_COLUMNS, malformed

_LOCAL = struct.Struct("<4s22xHH")  # local file header: signature, then lengths of name and extra field
_MAX_NPY_HEADER = 10_000  # characters


def npz_columns(buffer: mmap.mmap) -> dict[str, NDArray[Any]]:
    """Return the arrays in an archive as read-only views.

    Raises:
        ArtefactFormatError: `malformed-shard`.
    """
    view = memoryview(buffer)
    try:
        with zipfile.ZipFile(_Reader(buffer)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OSError) as exc:
        raise malformed(f"no archive ({type(exc).__name__})") from None
    if len(infos) > MAX_COLUMNS or len({info.filename for info in infos}) != len(infos):
        raise malformed("too many arrays, or two of one name")
    return {info.filename.removesuffix(".npy"): _array(view, info) for info in infos}


def _array(view: memoryview, info: zipfile.ZipInfo) -> NDArray[Any]:
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or not info.filename.endswith(".npy"):
        raise malformed("write it with numpy.savez: arrays that are stored, not compressed")
    raw = _member(view, info)
    reader = io.BytesIO(raw[: _MAX_NPY_HEADER + 64])
    try:
        version = npy.read_magic(reader)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        if version not in ((1, 0), (2, 0)):
            raise ValueError("version")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            shape, fortran, dtype = read(reader, max_header_size=_MAX_NPY_HEADER)
    except Exception as exc:  # noqa: BLE001 - numpy reads Python text: tokenizer, parser and their errors
        raise malformed(f"no array ({type(exc).__name__})") from None
    count = 1
    for length in shape:
        count *= length
    data = raw[reader.tell() :]
    if (
        dtype.hasobject
        or not dtype.itemsize
        or min(shape, default=0) < 1
        or len(data) != count * dtype.itemsize
    ):
        raise malformed("an array of objects, without rows, or of another length than it says")
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def _member(view: memoryview, info: zipfile.ZipInfo) -> memoryview:
    head = view[info.header_offset : info.header_offset + _LOCAL.size]
    if len(head) != _LOCAL.size:
        raise malformed("an entry outside the file")
    signature, name, extra = _LOCAL.unpack(head)
    start = info.header_offset + _LOCAL.size + name + extra
    if signature != b"PK\x03\x04" or info.compress_size != info.file_size:
        raise malformed("an entry that does not fit its header")
    raw = view[start : start + info.file_size]
    if len(raw) != info.file_size:
        raise malformed("an entry outside the file")
    return raw.toreadonly()


class _Reader(io.RawIOBase):
    """A file over a buffer, without a copy of it."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self._buffer, self._at = buffer, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._buffer)}[whence]
        if base + offset < 0:
            raise OSError("before the start")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, out: Any) -> int:
        part = self._buffer[self._at : self._at + len(out)]
        out[: len(part)] = part
        self._at += len(part)
        return len(part)
