"""Parquet through pyarrow: a block is a row group; flat columns without nulls."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

from sealwright.errors import UnavailableError
from sealwright.training.data.tables import MAX_COLUMNS, Columns, malformed, release


class ParquetTable:
    """Row groups of a file in memory."""

    def __init__(self, buffer: mmap.mmap) -> None:
        """Raises UnavailableError: `parquet-missing`. ArtefactFormatError: `malformed-shard`."""
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise UnavailableError(
                "Parquet needs pyarrow, which is not in this environment: pip install pyarrow",
                code="parquet-missing",
                stage="rows",
            ) from None
        self._buffer, self._errors = buffer, (pa.ArrowException, OSError)
        try:
            self._file: Any = pq.ParquetFile(pa.BufferReader(pa.py_buffer(buffer)))
            meta = self._file.metadata
            flat = all(_flat(pa.types, column.type) for column in self._file.schema_arrow)
            self.blocks: Sequence[int] = tuple(
                meta.row_group(group).num_rows for group in range(meta.num_row_groups)
            )
        except self._errors as exc:
            raise malformed(f"no Parquet ({type(exc).__name__})") from None
        self.rows = sum(self.blocks)
        if not flat or not self.rows or min(self.blocks) < 1 or not 1 <= meta.num_columns <= MAX_COLUMNS:
            raise malformed("no rows, too many columns, or one that is no number, truth value or text")

    def block(self, index: int) -> Columns:
        """Return the columns of a row group."""
        try:
            group = self._file.read_row_group(index, use_threads=False)
        except self._errors as exc:
            raise malformed(f"a row group cannot be read ({type(exc).__name__})") from None
        if group.num_rows != self.blocks[index] or any(column.null_count for column in group.columns):
            raise malformed("nulls, or another number of rows than it says")
        try:
            return {name: group.column(name).to_numpy() for name in group.column_names}
        except (*self._errors, KeyError):
            raise malformed("a column that is not flat, or two of one name") from None

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
        self._file = None
        release(self._buffer)


def _flat(types: Any, kind: Any) -> bool:
    numbers = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    return bool(numbers or types.is_string(kind) or types.is_large_string(kind))
