"""Shards of every kind, read as views; whatever an owner sealed, the reader refuses or returns."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.training.world import arrays

from sealwright.errors import ArtefactFormatError, UnavailableError
from sealwright.protocol.training_data import Kind
from sealwright.training.data.owner import count_rows, kind_of
from sealwright.training.data.tables import Table, open_table
from sealwright.training.safetensors import decode_safetensors, encode_safetensors


def memory(raw: bytes) -> int:
    fd = os.memfd_create("shard")
    os.write(fd, raw)
    return fd


def opened(raw: bytes, kind: Kind) -> Table:
    fd = memory(raw)
    try:
        return open_table(fd, kind)
    finally:
        os.close(fd)


def npz(save: Callable[..., None] = np.savez, **columns: Any) -> bytes:
    out = io.BytesIO()
    save(out, **(columns or arrays()))
    return out.getvalue()


def archive(name: str, raw: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr(name, raw)
    return out.getvalue()


def npy(value: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, value, **options)
    return out.getvalue()


def refused(raw: bytes, kind: Kind) -> str:
    with pytest.raises(ArtefactFormatError) as caught:
        read_all(raw, kind)
    return caught.value.code


def read_all(raw: bytes, kind: Kind) -> None:
    table = opened(raw, kind)
    for index in range(len(table.blocks)):
        table.block(index)


def test_npz_columns_are_the_arrays() -> None:
    table = opened(npz(), "npz")
    assert (table.rows, list(table.blocks)) == (10, [10])
    for name, value in table.block(0).items():
        np.testing.assert_array_equal(value, arrays()[name])
        assert not value.flags.writeable
    with pytest.raises(IndexError):
        table.block(1)
    table.close()


def test_npz_in_fortran_order() -> None:
    value = np.asfortranarray(np.arange(12).reshape(4, 3))
    np.testing.assert_array_equal(opened(npz(x=value), "npz").block(0)["x"], value)


@pytest.mark.parametrize(
    "raw",
    [
        b"not a zip",
        npz(np.savez_compressed),
        npz(x=np.arange(3), y=np.arange(4)),
        npz(x=np.array(3.0)),
        npz(x=np.empty((0, 3))),
        archive("x.npy", npy(np.array([{}, {}], dtype=object), allow_pickle=True)),
        archive("x.npy", npy(np.arange(4))[:-1]),
        archive("x.npy", npy(np.arange(4)) + b"\0"),
        archive("x.npy", b"\x93NUMPY\x03\x00" + b"\0" * 200),
        archive("x.npy", b"nothing"),
        archive("x.txt", npy(np.arange(4))),
        archive("x.npy", npy(np.arange(4)))[:-30],
    ],
)
def test_an_archive_that_is_not_plain_arrays_is_refused(raw: bytes) -> None:
    assert refused(raw, "npz") == "malformed-shard"


def test_safetensors_are_read_as_the_library_reads_them() -> None:
    raw = encode_safetensors(arrays())
    found = opened(raw, "safetensors").block(0)
    for name, value in arrays().items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype


def test_the_librarys_files_are_ours() -> None:
    library = pytest.importorskip("safetensors.numpy")
    tensors = arrays() | {"s": np.array(3.5), "e": np.empty((0, 2), dtype=np.int8)}
    read = library.load(encode_safetensors(tensors))
    for name, value in tensors.items():
        np.testing.assert_array_equal(read[name], value)
    for name, value in decode_safetensors(library.save(tensors, metadata={"a": "b"})).items():
        np.testing.assert_array_equal(value, tensors[name])


def test_the_same_tensors_are_the_same_bytes() -> None:
    one = arrays()
    other = {
        name: np.asfortranarray(one[name]).astype(one[name].dtype.newbyteorder(">")) for name in reversed(one)
    }
    assert encode_safetensors(one) == encode_safetensors(other)
    with pytest.raises(ArtefactFormatError):
        encode_safetensors({"x": np.array(["text"])})
    with pytest.raises(ArtefactFormatError):
        encode_safetensors({"__metadata__": np.arange(3)})


def safetensors(header: str, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header.encode() + data


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff" * 8,
        safetensors("[]", b""),
        safetensors('{"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}', b"\0\0"),
        safetensors('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,2]}}', b"\0\0"),
        safetensors('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"\0\0"),
        safetensors('{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', b"\0\0"),
        safetensors('{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}', b"\0"),
        safetensors('{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}', b"\0"),
        safetensors('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}}', b"\0"),
        safetensors('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":1}', b"\0"),
        safetensors(
            '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
            '"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"\0",
        ),
    ],
)
def test_a_safetensors_file_with_gaps_or_lies_is_refused(raw: bytes) -> None:
    with pytest.raises(ArtefactFormatError) as caught:
        decode_safetensors(raw)
    assert caught.value.code == "malformed-safetensors"


@pytest.mark.parametrize("text", ["eins\nzwei\n", "eins\nzwei", "\n\nx", "ä\n"])
def test_text_rows_are_lines(text: str) -> None:
    table = opened(text.encode(), "text")
    assert list(table.block(0)["text"]) == text.removesuffix("\n").split("\n")
    assert table.rows == len(text.removesuffix("\n").split("\n"))


def test_text_is_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealwright.training.data.text.BLOCK_ROWS", 3)
    monkeypatch.setattr("sealwright.training.data.text._CHUNK", 5)
    table = opened(b"".join(b"row %d\n" % row for row in range(8)), "text")
    assert list(table.blocks) == [3, 3, 2]
    found = [line for index in range(3) for line in table.block(index)["text"]]
    assert found == [f"row {row}" for row in range(8)]


def test_text_that_is_not_utf8_is_refused() -> None:
    assert refused(b"fine\n\xff\n", "text") == "malformed-shard"
    assert refused(b"", "text") == "malformed-shard"


def test_parquet_without_pyarrow_is_told() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        with pytest.raises(UnavailableError) as caught:
            opened(b"PAR1", "parquet")
        assert caught.value.code == "parquet-missing"
    else:
        assert refused(b"PAR1", "parquet") == "malformed-shard"


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, **options)
    return out.getvalue()


def test_parquet_blocks_are_row_groups() -> None:
    raw = parquet({"x": np.arange(10), "t": [f"row {at}" for at in range(10)]}, row_group_size=4)
    table = opened(raw, "parquet")
    assert (table.rows, list(table.blocks)) == (10, [4, 4, 2])
    assert list(table.block(1)["x"]) == [4, 5, 6, 7]
    assert list(table.block(2)["t"]) == ["row 8", "row 9"]
    table.close()


def test_parquet_with_nulls_or_nested_columns_is_refused() -> None:
    assert refused(parquet({"x": [1, None]}), "parquet") == "malformed-shard"
    assert refused(parquet({"x": [[1], [2]]}), "parquet") == "malformed-shard"
    assert refused(parquet({"x": [{"a": 1}, {"a": 2}]}), "parquet") == "malformed-shard"
    assert refused(parquet({"x": [b"a", b"b"]}), "parquet") == "malformed-shard"
    assert refused(parquet({"x": np.arange(3)})[:-1], "parquet") == "malformed-shard"
    assert refused(parquet({"x": np.empty(0)}), "parquet") == "malformed-shard"


@settings(deadline=None)
@given(data=st.data())
def test_readers_raise_only_their_own_error(data: st.DataObject) -> None:
    kind: Kind = data.draw(st.sampled_from(["npz", "safetensors", "text"]))
    raw = bytearray({"npz": npz(), "safetensors": encode_safetensors(arrays()), "text": b"a\nb\nc\n"}[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        table = opened(bytes(raw), kind)
        for index in range(len(table.blocks)):
            assert all(len(value) == table.blocks[index] for value in table.block(index).values())
    except ArtefactFormatError:
        return


@given(raw=st.binary(max_size=200))
def test_noise_is_no_tensor_file(raw: bytes) -> None:
    with pytest.raises(ArtefactFormatError):
        decode_safetensors(raw)


def test_kinds_go_by_the_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n')
    assert (kind_of(path), count_rows(path, "text")) == ("text", 1)
    with pytest.raises(ArtefactFormatError):
        kind_of(tmp_path / "rows.pkl")
    with pytest.raises(UnavailableError) as caught:
        count_rows(tmp_path / "absent.npz", "npz")
    assert caught.value.code == "input-unreadable"
