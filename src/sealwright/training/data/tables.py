"""Rows and columns of a plaintext shard in a memfd: views of it, read in blocks, never copied whole.

Spec: docs/spec/training-data.md, Kinds. What owners seal is not believed to be well formed.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from sealwright.errors import ArtefactFormatError
from sealwright.protocol.training_data import Kind
from sealwright.training.safetensors import decode_safetensors

MAX_COLUMNS = 1024
Columns = Mapping[str, NDArray[Any]]  # all with one first dimension


class Table(Protocol):
    """A shard's rows, in blocks."""

    @property
    def rows(self) -> int:
        """Rows in all."""

    @property
    def blocks(self) -> Sequence[int]:
        """Rows of each block: what is in memory at a time, beside the plaintext itself."""

    def block(self, index: int) -> Columns:
        """Return the columns of one block. They may be views: copy what is to be kept."""

    def close(self) -> None:
        """Let go of the plaintext."""


class WholeTable:
    """A table of one block: views of a buffer."""

    def __init__(self, columns: Columns, buffer: mmap.mmap) -> None:
        """Raises ArtefactFormatError: `malformed-shard`: no columns, or of different lengths."""
        lengths = {value.shape[0] if value.ndim else 0 for value in columns.values()}
        if not 1 <= len(columns) <= MAX_COLUMNS or len(lengths) != 1 or 0 in lengths:
            raise malformed("columns that have no rows, or not the same number")
        self._columns: Columns = columns
        self._buffer = buffer
        self.rows = lengths.pop()
        self.blocks: Sequence[int] = (self.rows,)

    def block(self, index: int) -> Columns:
        """Return all columns."""
        if index:
            raise IndexError("the table has one block")
        return self._columns

    def close(self) -> None:
        """Let go of the views."""
        self._columns = {}
        release(self._buffer)


def open_table(fd: int, kind: Kind) -> Table:
    """Return the rows in a descriptor, which stays its owner's.

    Raises:
        ArtefactFormatError: `malformed-shard`, `malformed-safetensors`. UnavailableError: `parquet-missing`.
    """
    if not os.fstat(fd).st_size:
        raise malformed("it is empty")
    buffer = mmap.mmap(fd, 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
    try:
        return _table(buffer, kind)
    except BaseException:
        release(buffer)
        raise


def _table(buffer: mmap.mmap, kind: Kind) -> Table:
    if kind == "npz":
        from sealwright.training.data.npz import npz_columns

        return WholeTable(npz_columns(buffer), buffer)
    if kind == "safetensors":
        return WholeTable(decode_safetensors(buffer), buffer)
    if kind == "text":
        from sealwright.training.data.text import TextTable

        return TextTable(buffer)
    from sealwright.training.data.parquet import ParquetTable

    return ParquetTable(buffer)


def release(buffer: mmap.mmap) -> None:
    """Unmap, or leave it to the last view that somebody still holds."""
    with contextlib.suppress(BufferError):
        buffer.close()


def malformed(text: str) -> ArtefactFormatError:
    """Return the error of a shard that is not of its kind."""
    return ArtefactFormatError(f"the shard is not of its kind: {text}", code="malformed-shard", stage="rows")
