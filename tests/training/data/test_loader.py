"""Batches in an order that the seed alone decides, of no more rows than were granted, in memory alone."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.training.world import ROWS, Site, arrays, site

from sealwright.errors import SealwrightError, VerificationError
from sealwright.protocol.training_data import Shard
from sealwright.sealing import read_manifest
from sealwright.training.data import Loader, OpenShard, open_shard, opened, seal_shard
from sealwright.training.data.loader import Batch
from sealwright.training.data.order import permutation

D = bytes(32)


class Rows:
    """A table of so many numbered rows, in blocks."""

    def __init__(self, *blocks: int, first: int = 0, column: str = "x") -> None:
        self.blocks, self.rows = blocks, sum(blocks)
        self._first, self._column = first, column
        self.open = True

    def block(self, index: int) -> Mapping[str, NDArray[Any]]:
        start = self._first + sum(self.blocks[:index])
        return {self._column: np.arange(start, start + self.blocks[index])}

    def close(self) -> None:
        self.open = False


def loader(tables: Mapping[str, Rows], *, granted: int | None = None, **options: Any) -> Loader:
    @contextmanager
    def open_named(name: str) -> Iterator[OpenShard]:
        table = tables[name]
        shard = Shard(name=name, kid=name, manifest_digest=D, kind="npz", rows=table.rows)
        yield OpenShard(shard=shard, fd=-1, table=table, rows=granted or table.rows)
        table.close()

    said: dict[str, Any] = {"batch_rows": 4, "seed": 1, "epoch": 1} | options
    return Loader(shards=list(tables), open=open_named, **said)


def rows(batches: Loader) -> list[int]:
    return [int(row) for batch in batches for row in batch["x"]]


def test_the_order_is_pinned() -> None:
    """Written down once: another numpy, machine or release gives the same order."""
    assert permutation(8, seed=7, epoch=1, what="a").tolist() == PINNED


PINNED = [6, 1, 5, 4, 7, 2, 3, 0]


@given(st.integers(0, 300), st.integers(0, 1 << 40), st.integers(1, 50))
def test_an_order_is_a_permutation(length: int, seed: int, epoch: int) -> None:
    assert sorted(permutation(length, seed=seed, epoch=epoch, what="s").tolist()) == list(range(length))


def test_orders_depend_on_all_that_they_name() -> None:
    base = {"seed": 1, "epoch": 1, "what": "a", "block": 0}
    orders = [
        permutation(50, **base | change).tolist()
        for change in ({}, {"seed": 2}, {"epoch": 2}, {"what": "b"}, {"block": 1})
    ]  # type: ignore[arg-type]
    assert len({tuple(order) for order in orders}) == len(orders)


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4),
    st.integers(1, 20),
    st.integers(0, 9),
)
def test_each_row_comes_once_in_full_batches(shape: list[list[int]], batch_rows: int, seed: int) -> None:
    tables, first = {}, 0
    for at, blocks in enumerate(shape):
        tables[f"s{at}"] = Rows(*blocks, first=first)
        first += sum(blocks)
    batches = list(loader(tables, batch_rows=batch_rows, seed=seed))
    assert sorted(int(row) for batch in batches for row in batch["x"]) == list(range(first))
    assert all(len(batch["x"]) == batch_rows for batch in batches[:-1])
    assert 1 <= len(batches[-1]["x"]) <= batch_rows
    assert not any(table.open for table in tables.values())


def test_the_same_seed_gives_the_same_batches_and_each_epoch_others() -> None:
    def tables() -> dict[str, Rows]:
        return {"b": Rows(5, 6), "a": Rows(7, first=11)}

    assert rows(loader(tables())) == rows(loader(dict(reversed(tables().items()))))
    assert rows(loader(tables())) != rows(loader(tables(), epoch=2))
    assert rows(loader(tables())) != rows(loader(tables(), seed=2))


@given(st.integers(1, 11), st.integers(1, 5))
def test_no_row_more_than_was_granted(granted: int, batch_rows: int) -> None:
    found = rows(loader({"a": Rows(5, 6)}, granted=granted, batch_rows=batch_rows))
    assert len(found) == len(set(found)) == granted


def test_shards_have_the_same_columns() -> None:
    with pytest.raises(VerificationError) as caught:
        list(loader({"a": Rows(3), "b": Rows(3, column="z")}, batch_rows=1))
    assert (caught.value.stage, caught.value.code) == ("rows", "columns-differ")


def test_a_loader_is_asked_for_something() -> None:
    for options in ({"batch_rows": 0}, {"shards": ["a", "a"]}):
        made = loader({"a": Rows(3)})
        with pytest.raises(ValueError):
            list(Loader(**{name: getattr(made, name) for name in made.__slots__} | options))


def test_batches_are_copies() -> None:
    for batch in loader({"a": Rows(9)}):
        assert all(value.flags.owndata or value.base is None for value in batch.values())


def test_memory_is_bounded_by_block_and_batch() -> None:
    blocks = [1 << 12] * 64
    tracemalloc.start()
    try:
        for _ in loader({"a": Rows(*blocks)}, batch_rows=256):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * 8 * (1 << 12)  # a few arrays of a block, not 64 of them


def test_sealed_shards_to_batches(tmp_path: Path) -> None:
    with site(tmp_path / "site") as one:
        one.enrol()
        batches = list(of_site(one, 1))
        again = list(of_site(one, 2))
    found = np.concatenate([batch["x"] for batch in batches])
    assert sorted(found[:, 0]) == sorted(arrays()["x"][:, 0])
    assert [len(batch["y"]) for batch in batches] == [4, 4, 2]
    assert not np.array_equal(found, np.concatenate([batch["x"] for batch in again]))


def of_site(one: Site, epoch: int) -> Iterator[Batch]:
    def open_named(_: str) -> Any:
        return opened(one.artefact, one.manifest(), one.shard, one.released(epoch))

    yield from Loader(shards=["a"], open=open_named, batch_rows=4, seed=one.plan.seed, epoch=epoch)


def test_the_plaintext_is_in_sealed_memory_and_the_key_is_wiped(tmp_path: Path) -> None:
    import fcntl

    with site(tmp_path / "site") as one:
        one.enrol()
        released = one.released(1)
        with opened(one.artefact, one.manifest(), one.shard, released) as shard:
            assert os.readlink(f"/proc/self/fd/{shard.fd}").startswith("/memfd:")
            assert fcntl.fcntl(shard.fd, 1034) & 0xF == 0xF  # F_GET_SEALS: seal, shrink, grow, write
            assert released.dek == bytes(32)
            fd = shard.fd
        with pytest.raises(OSError):
            os.fstat(fd)
        secret = arrays()["x"].tobytes()
        (one.folder / "a.npz").unlink()  # the owner's own copy
        files = [path for path in one.folder.rglob("*") if path.is_file()]
        assert files
        assert not any(secret in path.read_bytes() for path in files)


def refused(work: Any) -> tuple[str, str]:
    with pytest.raises(SealwrightError) as caught:
        work()
    return caught.value.stage, caught.value.code


def test_a_swapped_or_renamed_shard_is_refused(tmp_path: Path) -> None:
    with site(tmp_path / "site") as one:
        one.enrol()
        np.savez(tmp_path / "b.npz", **arrays(ROWS))
        out = tmp_path / "b.npz.sealed"
        seal_shard(tmp_path / "b.npz", out, name="a", dek=one.dek, kid="shard-a", owner=one.world.owner)
        # Another shard of the same owner, key and name, with its own manifest: not the one in the policy.
        assert refused(lambda: open_shard(out, read_manifest(out), one.shard, one.released(1))) == (
            "admitted",
            "shard-swapped",
        )
        # Its ciphertext under the right manifest.
        assert refused(lambda: open_shard(out, one.manifest(), one.shard, one.released(2)))[0] in {
            "segments",
            "lengths",
        }
        # The right shard under another's name in the policy's list.
        other = one.shard.model_copy(update={"manifest_digest": bytes(32)})
        assert refused(lambda: open_shard(one.artefact, one.manifest(), other, one.released(3))) == (
            "admitted",
            "shard-swapped",
        )


def test_rows_that_the_policy_does_not_say_are_refused(tmp_path: Path) -> None:
    with site(tmp_path / "site") as one:
        one.enrol()
        before = len(os.listdir("/proc/self/fd"))
        wrong = one.shard.model_copy(update={"rows": ROWS + 1})
        assert refused(lambda: open_shard(one.artefact, one.manifest(), wrong, one.released(1))) == (
            "rows",
            "rows-differ",
        )
        kind = one.shard.model_copy(update={"kind": "text"})
        assert refused(lambda: open_shard(one.artefact, one.manifest(), kind, one.released(2)))[0] == "rows"
        assert len(os.listdir("/proc/self/fd")) == before
