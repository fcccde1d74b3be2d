"""Opening where it is read: right bytes, few reads, nothing that was altered."""

from __future__ import annotations

import io
import json
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sealing.support import DEK, SMALL
from tests.sealing.trees import TREE, sealed_tree, verified

from sealwright.errors import VerificationError
from sealwright.sealing import SealedFolder, locate
from sealwright.sealing.files import Source
from sealwright.sealing.lazy import PlainSource
from sealwright.sealing.location import Location


class Counted:
    """A location that counts what is read of its ciphertexts."""

    def __init__(self, inner: Location) -> None:
        self.inner = inner
        self.reads: list[tuple[int, int, int]] = []  # file, offset, length
        self.closed = 0

    def envelope(self) -> bytes:
        return self.inner.envelope()

    def ciphertext(self, index: int) -> Source:
        outer, source = self, self.inner.ciphertext(index)

        class One:
            size = source.size
            holds, changed, stamp = source.holds, source.changed, source.stamp

            def read_into(self, offset: int, out: memoryview) -> None:
                outer.reads.append((index, offset, len(out)))
                source.read_into(offset, out)

            def close(self) -> None:
                outer.closed += 1
                source.close()

        return One()


def folder(artefact: Path) -> tuple[SealedFolder, Counted]:
    counted = Counted(locate(artefact))
    return SealedFolder(counted, verified(counted), DEK, segment_bytes=SMALL), counted


@settings(max_examples=60)
@given(
    plain=st.binary(max_size=6 * SMALL),
    reads=st.lists(st.tuples(st.integers(0, 7 * SMALL), st.integers(0, 3 * SMALL)), max_size=8),
    cached=st.integers(1, 3),
)
def test_any_part_is_the_plaintexts(
    plain: bytes, reads: list[tuple[int, int]], cached: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sealed, _ = folder(sealed_tree(tmp_path_factory.mktemp("lazy"), {"f": plain}))
    with sealed.open("f", cached=cached) as stream:
        for offset, length in reads:
            assert stream.seek(offset) == offset
            assert stream.read(length) == plain[offset : offset + length]
        stream.seek(0)
        assert stream.readall() == plain
        assert stream.seek(0, io.SEEK_END) == len(plain) == stream.tell()
        assert stream.read(1) == b""


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    sealed, counted = folder(sealed_tree(tmp_path, {"a": b"x" * 10_000, "b": bytes(range(256)) * 40}))
    assert counted.reads == []
    with sealed.open("b") as stream:
        stream.seek(5000)
        assert stream.read(3) == (bytes(range(256)) * 40)[5000:5003]
        stream.seek(5001)
        stream.read(1)
    assert [(index, length) for index, _, length in counted.reads] == [(1, 40), (1, SMALL)]
    assert counted.closed == 1


def test_it_is_a_folder_of_entries(tmp_path: Path) -> None:
    sealed, _ = folder(sealed_tree(tmp_path, TREE))
    assert list(sealed) == sorted(TREE)
    assert len(sealed) == len(TREE)
    assert sealed["config.json"].length == len(TREE["config.json"])
    with pytest.raises(KeyError):
        sealed.open("nothing")


def test_a_safetensors_header_is_read_in_place(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]}}).encode()
    weights = struct.pack("<100f", *range(100))
    sealed, _ = folder(
        sealed_tree(tmp_path, {"m.safetensors": struct.pack("<Q", len(header)) + header + weights})
    )
    with io.BufferedReader(sealed.open("m.safetensors")) as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        begin, _ = json.loads(stream.read(length))["w"]["data_offsets"]
        stream.seek(8 + length + begin + 4 * 42)
        assert struct.unpack("<f", stream.read(4)) == (42.0,)


def test_an_altered_segment_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    artefact = sealed_tree(tmp_path, {"f": b"p" * 1000})
    path = artefact / "0000.sealed"
    raw = bytearray(path.read_bytes())
    raw[3 * SMALL] ^= 1
    path.write_bytes(raw)
    sealed, _ = folder(artefact)
    with sealed.open("f") as stream:
        assert stream.read(50) == b"p" * 50
        stream.seek(3 * (SMALL - 16) - 40 + 1)
        with pytest.raises(VerificationError) as caught:
            stream.read(1)
    assert caught.value.stage == "segments"


def test_lengths_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    artefact = sealed_tree(tmp_path, {"f": b"p" * 1000})
    path = artefact / "0000.sealed"
    path.write_bytes(path.read_bytes()[:-1])
    sealed, counted = folder(artefact)
    with pytest.raises(VerificationError) as caught:
        sealed.open("f")
    assert (caught.value.code, counted.reads, counted.closed) == ("wrong-artefact-length", [], 1)


def test_many_threads_read_one_file(tmp_path: Path) -> None:
    plain = bytes(range(256)) * 50
    sealed, _ = folder(sealed_tree(tmp_path, {"f": plain}))
    wrong: list[int] = []
    with sealed.open("f", cached=2) as stream:

        def read(start: int) -> None:
            for offset in range(start, len(plain), 997):
                out = bytearray(100)
                count = stream.read_at(offset, memoryview(out))
                if out[:count] != plain[offset : offset + 100]:
                    wrong.append(offset)

        threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_what_was_kept_is_wiped(tmp_path: Path) -> None:
    sealed, _ = folder(sealed_tree(tmp_path, {"f": b"secret!!" * 100}))
    stream = sealed.open("f", cached=2)
    stream.readall()
    kept = list(stream._kept.values())
    assert len(kept) == 2
    stream.close()
    stream.close()
    assert all(not any(plain) for plain in kept)
    with pytest.raises(ValueError, match="closed"):
        stream.read(1)
    with pytest.raises(ValueError, match="closed"):
        stream.read_at(0, memoryview(bytearray(1)))


def test_misuse_is_said(tmp_path: Path) -> None:
    sealed, _ = folder(sealed_tree(tmp_path, {"f": b"abc"}))
    with pytest.raises(ValueError, match="at least one"):
        sealed.open("f", cached=0)
    with sealed.open("f") as stream:
        assert stream.readable()
        assert stream.seekable()
        with pytest.raises(ValueError, match="no such position"):
            stream.seek(-1)
    source = PlainSource(sealed.open("f"), 3)
    with source:
        assert (source.holds(3), source.holds(2), source.changed()) == (True, False, False)
        with pytest.raises(ValueError, match="beyond"):
            source.read_into(1, memoryview(bytearray(3)))
