"""Batches of numpy arrays from sealed shards, in an order that the seed alone decides. Spec: docs/spec/training-data.md, Order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealwright.errors import VerificationError
from sealwright.training.data.order import permutation, rows_of
from sealwright.training.data.shard import OpenShard
from sealwright.training.data.tables import Columns

Batch = dict[str, NDArray[Any]]
OpenNamed = Callable[[str], AbstractContextManager[OpenShard]]
"""Opens the shard of a name for this epoch; at its end it is closed: see `sealwright.training.data.opened`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """One epoch over shards. One shard is open at a time; beside its plaintext a block and a batch are in memory.

    Iterate it once: each epoch has grants, so shards, of its own.
    """

    shards: Sequence[str]
    open: OpenNamed
    batch_rows: int
    seed: int
    epoch: int

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches; all have `batch_rows` rows but the last. They own their memory.

        Raises:
            VerificationError: `columns-differ`; and whatever opening raises.
        """
        if self.batch_rows < 1 or len(set(self.shards)) != len(self.shards):
            raise ValueError("a batch has a row at least, and a shard is read once an epoch")
        waiting: list[Batch] = []
        for piece in self._pieces():
            waiting.append(piece)
            while sum(map(_length, waiting)) >= self.batch_rows:
                batch, rest = _cut(_joined(waiting), self.batch_rows)
                waiting = [rest] if _length(rest) else []
                yield batch
        if waiting:
            yield _joined(waiting)

    def _pieces(self) -> Iterator[Batch]:
        names = sorted(self.shards)
        columns: set[str] | None = None
        for index in permutation(len(names), seed=self.seed, epoch=self.epoch, what=""):
            with self.open(names[index]) as shard:
                for piece in self._of_shard(shard):
                    columns = columns or set(piece)
                    if set(piece) != columns:
                        raise VerificationError(
                            f"{names[index]} has other columns than the shards before",
                            code="columns-differ",
                            stage="rows",
                        )
                    yield piece

    def _of_shard(self, shard: OpenShard) -> Iterator[Batch]:
        left, table, name = shard.rows, shard.table, shard.shard.name
        for index in permutation(len(table.blocks), seed=self.seed, epoch=self.epoch, what=f"{name}/"):
            block = int(index)
            order = permutation(table.blocks[block], seed=self.seed, epoch=self.epoch, what=name, block=block)
            order = order[:left]  # what was granted, and no row more
            left -= len(order)
            columns = table.block(block)
            for at in range(0, len(order), self.batch_rows):
                yield _taken(columns, order[at : at + self.batch_rows])
            if not left:
                return


def _taken(columns: Columns, rows: NDArray[np.int64]) -> Batch:
    return {name: rows_of(columns[name], rows) for name in sorted(columns)}


def _length(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _joined(pieces: Sequence[Batch]) -> Batch:
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _cut(batch: Batch, rows: int) -> tuple[Batch, Batch]:
    if _length(batch) == rows:
        return batch, {name: value[:0] for name, value in batch.items()}
    head = {name: value[:rows].copy() for name, value in batch.items()}
    return head, {name: value[rows:].copy() for name, value in batch.items()}
