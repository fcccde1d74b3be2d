"""A deleted, edited, truncated or forked log is refused, each with its own code."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tlog.support import POLICY, SIGNER, entry

from sealwright.errors import LogFormatError, SealwrightError, VerificationError
from sealwright.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealwright.tlog.edge import RightEdge
from sealwright.tlog.merkle import EMPTY_ROOT
from sealwright.tlog.monitor import verify_log
from sealwright.tlog.tiles import CHECKPOINT, Fetch, encode_bundle, parse_bundle

SIZE = 70000  # a partial tile on each of three levels


def make_log(entries: list[bytes], origin: str = SIGNER.name) -> dict[str, bytes]:
    """Return the files of a log, in memory."""
    edge, bundles, tiles = RightEdge().extended(entries)
    checkpoint = Checkpoint(origin=origin, size=edge.size, root=edge.root())
    return {**bundles, **tiles, CHECKPOINT: sign_checkpoint(checkpoint, SIGNER)}


def fetch_from(files: dict[str, bytes]) -> Fetch:
    def fetch(path: str) -> bytes:
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    return fetch


def _code(files: dict[str, bytes], previous: Checkpoint | None = None) -> tuple[str, str]:
    with pytest.raises((VerificationError, LogFormatError)) as caught:
        verify_log(fetch_from(files), POLICY, previous=previous)
    return caught.value.code, str(caught.value)


@pytest.fixture(scope="module")
def large() -> dict[str, bytes]:
    return make_log([entry(i) for i in range(SIZE)])


@pytest.fixture
def files(large: dict[str, bytes]) -> dict[str, bytes]:
    return dict(large)


def _head(files: dict[str, bytes]) -> Checkpoint:
    return POLICY.verify(files[CHECKPOINT]).checkpoint


def test_the_files_are_those_of_the_specification(files: dict[str, bytes]) -> None:
    tiles = [path for path in files if path.startswith("tile/0/") and ".p/" not in path]
    assert len(tiles) == 273
    partial = {path for path in files if ".p/" in path}
    assert partial == {"tile/0/273.p/112", "tile/1/001.p/17", "tile/2/000.p/1", "tile/entries/273.p/112"}


def test_an_untouched_log(files: dict[str, bytes]) -> None:
    report = verify_log(fetch_from(files), POLICY, previous=None)
    assert report.verified.checkpoint.size == SIZE
    assert report.verified.quorum == "none"
    assert report.entry_bytes == sum(len(entry(i)) for i in range(SIZE))
    assert report.previous_size is None
    previous = Checkpoint(
        origin=SIGNER.name, size=300, root=RightEdge().extended([entry(i) for i in range(300)])[0].root()
    )
    assert verify_log(fetch_from(files), POLICY, previous=previous).previous_size == 300


def test_an_empty_log() -> None:
    files = make_log([])
    report = verify_log(
        fetch_from(files), POLICY, previous=Checkpoint(origin=SIGNER.name, size=0, root=EMPTY_ROOT)
    )
    assert (report.verified.checkpoint.size, report.previous_size) == (0, 0)


def test_deleted(files: dict[str, bytes]) -> None:
    for path, code in (
        (CHECKPOINT, "log-checkpoint-missing"),
        ("tile/entries/100", "log-entries-missing"),
        ("tile/entries/273.p/112", "log-entries-missing"),
        ("tile/0/005", "log-tile-missing"),
        ("tile/1/001.p/17", "log-tile-missing"),
    ):
        got, text = _code({name: raw for name, raw in files.items() if name != path})
        assert got == code
        assert path in text


def test_edited_entry(files: dict[str, bytes]) -> None:
    entries = parse_bundle(files["tile/entries/100"])
    entries[7] = b"another"
    files["tile/entries/100"] = encode_bundle(entries)
    assert _code(files) == ("log-entry-edited", f"entry {25607} is not the one that was logged there")


def test_edited_tile(files: dict[str, bytes]) -> None:
    for path in ("tile/0/100", "tile/1/000", "tile/2/000.p/1"):
        changed = dict(files)
        changed[path] = bytes([changed[path][0] ^ 1]) + changed[path][1:]
        code, text = _code(changed)
        assert code == "log-tile-edited"
        assert path in text


def test_rewritten_under_the_old_checkpoint(files: dict[str, bytes]) -> None:
    rewritten = make_log([entry(i) if i != 12345 else b"another" for i in range(SIZE)])
    rewritten[CHECKPOINT] = files[CHECKPOINT]
    assert _code(rewritten)[0] == "log-root-mismatch"


def test_deleted_entry(files: dict[str, bytes]) -> None:
    rewritten = make_log([entry(i) for i in range(SIZE) if i != 12345])
    assert _code({**rewritten, CHECKPOINT: files[CHECKPOINT]})[0] == "log-entries-missing"
    files["tile/entries/100"] = encode_bundle(parse_bundle(files["tile/entries/100"])[:-1])
    assert _code(files)[0] == "malformed-bundle"


def test_truncated(files: dict[str, bytes]) -> None:
    short = make_log([entry(i) for i in range(SIZE - 1)])
    assert _code(short, previous=_head(files))[0] == "log-rolled-back"


def test_forked(files: dict[str, bytes]) -> None:
    fork = make_log([b"fork", *(entry(i) for i in range(SIZE))])
    assert _code(fork, previous=_head(files))[0] == "log-forked"
    same_size = make_log([b"fork", *(entry(i) for i in range(1, SIZE))])
    assert _code(same_size, previous=_head(files))[0] == "log-forked"


def test_another_log(files: dict[str, bytes]) -> None:
    foreign = Checkpoint(origin="log.example/other", size=1, root=bytes(32))
    assert _code(files, previous=foreign)[0] == "log-origin-mismatch"
    assert _code(make_log([b"x"], origin="log.example/other"))[0] == "unknown-log"


SMALL = make_log([entry(i) for i in range(300)])


@settings(max_examples=300)
@given(st.sampled_from(sorted(SMALL)), st.data())
def test_no_byte_of_any_file_may_change(path: str, data: st.DataObject) -> None:
    raw = bytearray(SMALL[path])
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises((VerificationError, LogFormatError)):
        verify_log(fetch_from({**SMALL, path: bytes(raw)}), POLICY, previous=None)


@given(st.sampled_from(sorted(SMALL)), st.binary(max_size=600))
def test_any_file_may_be_anything_and_only_our_errors_come(path: str, raw: bytes) -> None:
    with pytest.raises(SealwrightError) as caught:
        verify_log(fetch_from({**SMALL, path: raw}), POLICY, previous=None)
    assert isinstance(caught.value, VerificationError | LogFormatError)


def test_a_full_tile_stands_in_for_a_partial_one() -> None:
    longer = make_log([entry(i) for i in range(512)])
    moved = {**longer, **{p: SMALL[p] for p in (CHECKPOINT, "tile/1/000.p/1")}}
    assert "tile/0/001.p/44" not in moved
    assert verify_log(fetch_from(moved), POLICY, previous=None).verified.checkpoint.size == 300
