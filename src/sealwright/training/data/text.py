"""Text: a row is a line of UTF-8. In memory beside the text: 8 bytes for each line."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealwright.training.data.tables import Columns, malformed, release

COLUMN = "text"
BLOCK_ROWS = 1 << 14
_CHUNK = 1 << 20


class TextTable:
    """Lines of a text; the last need not end with a newline."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self._buffer = buffer
        self._ends = _ends(buffer)
        self.rows = len(self._ends)
        full, rest = divmod(self.rows, BLOCK_ROWS)
        self.blocks: Sequence[int] = (*([BLOCK_ROWS] * full), *([rest] if rest else []))

    def block(self, index: int) -> Columns:
        """Return the lines of a block as an array of `str`."""
        first = index * BLOCK_ROWS
        lines: NDArray[Any] = np.empty(self.blocks[index], dtype=object)
        for at in range(len(lines)):
            lines[at] = self._line(first + at)
        return {COLUMN: lines}

    def close(self) -> None:
        """Let go of the text."""
        release(self._buffer)

    def _line(self, row: int) -> str:
        start = int(self._ends[row - 1]) + 1 if row else 0
        try:
            return self._buffer[start : int(self._ends[row])].decode()
        except UnicodeDecodeError:
            raise malformed(f"line {row + 1} is not UTF-8") from None


def _ends(buffer: mmap.mmap) -> NDArray[np.int64]:
    """Return where each line ends."""
    found = []
    for start in range(0, len(buffer), _CHUNK):
        part = np.frombuffer(buffer[start : start + _CHUNK], dtype=np.uint8)
        found.append(np.flatnonzero(part == ord("\n")) + start)
    ends = np.concatenate(found).astype(np.int64)
    if not len(ends) or ends[-1] != len(buffer) - 1:
        ends = np.append(ends, np.int64(len(buffer)))
    return ends
