"""Opening: every altered, dropped, swapped, repeated or appended byte, segment or file is refused."""

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.sealing.support import DEK, OWNER, SMALL, Kept, Sealed

from sealwright.crypto.streaming import HEADER_BYTES, SEGMENT_BYTES
from sealwright.errors import ArtefactFormatError, SealwrightError, UnavailableError, VerificationError
from sealwright.sealing import (
    Entry,
    Manifest,
    manifest_path,
    open_into,
    open_memfd,
    open_to_file,
    read_manifest,
    seal_file,
)
from sealwright.sealing.workers import MAX_THREADS

Make = Callable[..., Sealed]
PLAIN = bytes(range(256)) * 4  # 10 small segments
SEALED_BYTES = HEADER_BYTES + 1024 + 16 * 10
shared = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None
)


@pytest.fixture
def sealed(make: Make) -> Sealed:
    return make(PLAIN)


def refused(sealed: Sealed, raw: bytes, *, stage: str | None = None) -> SealwrightError:
    """Write `raw` as the ciphertext and return the refusal; with one thread and with two."""
    original = sealed.path.read_bytes()
    sealed.path.write_bytes(raw)
    try:
        for threads in (1, 2):
            with pytest.raises((VerificationError, ArtefactFormatError)) as caught:
                sealed.open(threads=threads)
            assert stage in (None, caught.value.stage)
    finally:
        sealed.path.write_bytes(original)
    return caught.value


@pytest.mark.parametrize("size", [0, 1, 71, 72, 73, 72 + 112, 72 + 113, 1024])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_opens_what_it_seals(make: Make, size: int, threads: int) -> None:
    sealed = make(PLAIN[:size], sha256=True, threads=threads)
    assert sealed.open(threads=threads) == PLAIN[:size]
    assert sealed.manifest.contents(DEK)[0].sha256 is not None


@shared
@given(bit=st.integers(0, SEALED_BYTES * 8 - 1))
def test_any_flipped_bit_is_refused(sealed: Sealed, bit: int) -> None:
    raw = bytearray(sealed.path.read_bytes())
    assert len(raw) == SEALED_BYTES
    raw[bit // 8] ^= 1 << bit % 8
    refused(sealed, bytes(raw), stage="lengths" if bit < 8 else "segments")


@shared
@given(cut=st.integers(0, SEALED_BYTES - 1), extra=st.binary(min_size=1, max_size=2 * SMALL))
def test_any_cut_or_appended_byte_is_refused(sealed: Sealed, cut: int, extra: bytes) -> None:
    raw = sealed.path.read_bytes()
    assert refused(sealed, raw[:cut]).code == "wrong-artefact-length"
    assert refused(sealed, raw + extra).code == "wrong-artefact-length"
    assert refused(sealed, raw[:cut] + extra + raw[cut:]).code == "wrong-artefact-length"


def segments(raw: bytes) -> list[bytes]:
    return [raw[start : start + SMALL] for start in range(0, len(raw), SMALL)]


@shared
@given(pair=st.lists(st.integers(1, 8), min_size=2, max_size=2, unique=True))
def test_swapped_repeated_and_dropped_segments_are_refused(sealed: Sealed, pair: list[int]) -> None:
    a, b = pair
    parts = segments(sealed.path.read_bytes())
    swapped, repeated = list(parts), list(parts)
    swapped[a], swapped[b] = parts[b], parts[a]
    repeated[a] = parts[b]
    refused(sealed, b"".join(swapped), stage="segments")
    refused(sealed, b"".join(repeated), stage="segments")
    refused(sealed, b"".join(parts[:a] + parts[a + 1 :]), stage="lengths")
    refused(sealed, b"".join(parts[: a + 1]), stage="lengths")
    refused(sealed, b"".join([*parts[:a], parts[a], *parts[a:]]), stage="lengths")


def test_segments_of_another_artefact_of_the_same_key_are_refused(make: Make, sealed: Sealed) -> None:
    twin = make(PLAIN, artefact_id=sealed.manifest.artefact_id)  # same name, id, version, length, key
    ours, theirs = segments(sealed.path.read_bytes()), segments(twin.path.read_bytes())
    refused(sealed, b"".join([*ours[:3], theirs[3], *ours[4:]]), stage="segments")
    # A whole twin has genuine tags throughout: only the plaintext digest is left to differ.
    other = make(PLAIN[::-1], artefact_id=sealed.manifest.artefact_id)
    error = refused(sealed, other.path.read_bytes(), stage="plaintext-digest")
    assert error.code == "wrong-plaintext"


def test_sha256_is_checked_too(sealed: Sealed, tmp_path: Path) -> None:
    entry = sealed.manifest.contents(DEK)[0]
    wrong = Entry(path=entry.path, length=entry.length, blake3=entry.blake3, sha256=bytes(32))
    lying = Manifest.build(
        [wrong],
        dek=DEK,
        kid="weights",
        artefact_id=sealed.manifest.artefact_id,
        version=1,
        nonce=bytes(12),
    )
    with pytest.raises(VerificationError) as caught:
        open_into(sealed.path, lying, DEK, Kept(), segment_bytes=SMALL)
    assert caught.value.stage == "plaintext-digest"


def test_another_file_version_and_key_are_refused(make: Make, sealed: Sealed) -> None:
    other = make(b"x" * len(PLAIN))
    refused(sealed, other.path.read_bytes(), stage="segments")
    newer = make(PLAIN, version=2, artefact_id=sealed.manifest.artefact_id)
    refused(sealed, newer.path.read_bytes(), stage="segments")
    with pytest.raises(VerificationError) as caught:
        sealed.open(manifest=newer.manifest)  # the older pair, where the newer one is admitted
    assert caught.value.code == "manifest-not-admitted"
    with pytest.raises(VerificationError) as caught:
        sealed.open(dek=bytes(32))
    assert caught.value.code == "wrong-dek"


def test_artefacts_of_several_files_are_refused_for_now(sealed: Sealed) -> None:
    entries = [Entry(path=name, length=1, blake3=bytes(32)) for name in "ab"]
    both = Manifest.build(entries, dek=DEK, kid="k", artefact_id=bytes(16), version=1, nonce=bytes(12))
    kept = Kept()
    with pytest.raises(ArtefactFormatError) as caught:
        open_into(sealed.path, both, DEK, kept)
    assert caught.value.code == "too-many-files"
    assert kept.ended == ["abort"]


def test_a_file_renamed_over_while_it_is_read_does_not_matter(sealed: Sealed, tmp_path: Path) -> None:
    class Swapping(Kept):
        def start(self, length: int) -> None:
            super().start(length)
            (tmp_path / "evil").write_bytes(b"evil" * 500)
            os.replace(tmp_path / "evil", sealed.path)

    kept = Swapping()
    open_into(sealed.path, sealed.manifest, DEK, kept, segment_bytes=SMALL)
    assert kept.plain == PLAIN


@pytest.mark.parametrize("threads", [1, 2])
def test_a_file_cut_or_rewritten_while_it_is_read_is_refused(make: Make, threads: int) -> None:
    for change, code in ((_cut, "file-truncated"), (_scribble, "bad-segment")):
        sealed = make(PLAIN)
        kept = Changing(change, sealed.path)
        with pytest.raises(VerificationError) as caught:
            open_into(sealed.path, sealed.manifest, DEK, kept, threads=threads, segment_bytes=SMALL)
        assert (caught.value.code, caught.value.stage) == (code, "segments")
        assert kept.ended == ["abort"]


class Changing(Kept):
    """Changes the ciphertext once its length was checked."""

    def __init__(self, change: Callable[[Path], None], path: Path) -> None:
        super().__init__()
        self.change, self.path = change, path

    def start(self, length: int) -> None:
        super().start(length)
        self.change(self.path)


def _cut(path: Path) -> None:
    os.truncate(path, 300)


def _scribble(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(500)
        file.write(b"scribble")


# Memory ---------------------------------------------------------------------------------------


@pytest.fixture
def no_new_descriptors() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.usefixtures("no_new_descriptors")
def test_a_memfd_holds_the_plaintext_and_cannot_be_changed(sealed: Sealed) -> None:
    fd = open_memfd(sealed.path, sealed.manifest, DEK, segment_bytes=SMALL)
    try:
        assert os.pread(fd, 2000, 0) == PLAIN
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & 0xF == 0xF
        assert not os.get_inheritable(fd)
        for attempt in (
            lambda: os.pwrite(fd, b"x", 0),
            lambda: os.ftruncate(fd, 1),
            lambda: os.ftruncate(fd, 4096),
            lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
        ):
            with pytest.raises(PermissionError):
                attempt()
    finally:
        os.close(fd)


@pytest.mark.usefixtures("no_new_descriptors")
def test_a_refusal_leaves_no_descriptor_and_no_thread(sealed: Sealed) -> None:
    threads = threading.active_count()
    raw = bytearray(sealed.path.read_bytes())
    raw[-1] ^= 1  # only the last segment is bad: the others were already written
    sealed.path.write_bytes(raw)
    for dek in (DEK, bytes(32)):
        with pytest.raises(VerificationError):
            open_memfd(sealed.path, sealed.manifest, dek, segment_bytes=SMALL)
    assert threading.active_count() == threads


@pytest.mark.usefixtures("no_new_descriptors")
def test_older_kernels_and_other_systems(sealed: Sealed, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.memfd_create

    def old(name: str, flags: int) -> int:
        if flags & 8:
            raise OSError(22, "Invalid argument")
        return real(name, flags)

    monkeypatch.setattr(os, "memfd_create", old)
    os.close(open_memfd(sealed.path, sealed.manifest, DEK, segment_bytes=SMALL))

    def none(name: str, flags: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", none)
    with pytest.raises(UnavailableError, match="Too many open files"):
        open_memfd(sealed.path, sealed.manifest, DEK)
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(UnavailableError, match="Linux"):
        open_memfd(sealed.path, sealed.manifest, DEK)


@pytest.mark.usefixtures("no_new_descriptors")
def test_a_memfd_that_cannot_be_sealed_is_not_handed_out(
    sealed: Sealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "fcntl", lambda *_: 0)
    with pytest.raises(UnavailableError, match="seals"):
        open_memfd(sealed.path, sealed.manifest, DEK, segment_bytes=SMALL)


@pytest.mark.usefixtures("no_new_descriptors")
def test_memory_that_runs_out_is_a_refusal(sealed: Sealed, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UnavailableError) as caught:
        open_memfd(sealed.path, sealed.manifest, DEK, segment_bytes=SMALL)
    assert caught.value.code == "out-of-memory"


# Files ----------------------------------------------------------------------------------------


def test_a_file_appears_only_when_it_is_proved(tmp_path: Path) -> None:
    source, out, to = tmp_path / "a.bin", tmp_path / "a.sealed", tmp_path / "opened"
    source.write_bytes(os.urandom(SEGMENT_BYTES + 5))
    manifest = seal_file(source, out, dek=DEK, kid="a", signer=OWNER, version=1)
    to.write_bytes(b"what was there before")
    good = out.read_bytes()
    out.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(VerificationError):
        open_to_file(out, manifest, DEK, to)
    assert to.read_bytes() == b"what was there before"
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.sealed", "a.sealed.json", "opened"]
    out.write_bytes(good)
    seen: list[tuple[int, int]] = []
    open_to_file(out, manifest, DEK, to, progress=lambda done, total: seen.append((done, total)))
    assert to.read_bytes() == source.read_bytes()
    assert to.stat().st_mode & 0o777 == 0o600
    assert seen == [(SEGMENT_BYTES - 56, SEGMENT_BYTES + 5), (SEGMENT_BYTES + 5, SEGMENT_BYTES + 5)]


def test_a_failed_seal_leaves_nothing_behind(tmp_path: Path) -> None:
    source, out = tmp_path / "a.bin", tmp_path / "a.sealed"
    source.write_bytes(PLAIN)

    def grow(done: int, total: int) -> None:
        with source.open("ab") as file:
            file.write(b"more")

    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for progress, error in ((grow, UnavailableError), (fail, KeyboardInterrupt)):
        with pytest.raises(error):
            seal_file(source, out, dek=DEK, kid="a", signer=OWNER, version=1, progress=progress)
    with pytest.raises(ArtefactFormatError):
        seal_file(source, out, dek=DEK, kid="no such kid", signer=OWNER, version=1)
    with pytest.raises(ValueError, match="32 bytes"):
        seal_file(source, out, dek=b"short", kid="a", signer=OWNER, version=1)
    manifest_path(out).mkdir()  # the manifest cannot take its name
    with pytest.raises(UnavailableError):
        seal_file(source, out, dek=DEK, kid="a", signer=OWNER, version=1)
    manifest_path(out).rmdir()
    assert {name for name in os.listdir(tmp_path) if name.endswith(".tmp")} == set()


def test_what_is_not_a_file_is_refused(tmp_path: Path, sealed: Sealed) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, tmp_path / "absent", Path("/dev/zero")):
        with pytest.raises(UnavailableError) as caught:
            open_into(path, sealed.manifest, DEK, Kept())
        assert caught.value.code == "input-unreadable"
    manifest_path(sealed.path).write_bytes(bytes(2**21 + 1))
    with pytest.raises(ArtefactFormatError):
        read_manifest(sealed.path)


def test_systems_without_positioned_io(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "preadv")
    monkeypatch.delattr(os, "pwrite")
    assert make(PLAIN).open() == PLAIN


def test_short_writes_and_reads_are_carried_on(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, data[:50], offset))
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: read(fd, [views[0][:33]], offset))
    assert make(PLAIN).open() == PLAIN


def test_each_thread_has_two_segments_of_memory_wiped_at_the_end(make: Make) -> None:
    sealed = make(PLAIN)
    views: dict[int, memoryview] = {}

    class Watching(Kept):
        def write(self, offset: int, data: memoryview) -> None:
            super().write(offset, data)
            views[threading.get_ident()] = data
            assert len(data.obj) == SMALL

    open_into(sealed.path, sealed.manifest, DEK, Watching(), segment_bytes=SMALL)
    assert 1 <= len(views) <= 2
    assert all(view == bytes(len(view)) for view in views.values())


def test_a_number_of_threads_out_of_range_is_our_bug(make: Make) -> None:
    for threads in (0, MAX_THREADS + 1):
        with pytest.raises(ValueError, match="threads"):
            make(PLAIN, threads=threads)


def test_sealing_twice_never_repeats_a_nonce_prefix_or_salt(make: Make) -> None:
    headers = {make(PLAIN).path.read_bytes()[:HEADER_BYTES] for _ in range(8)}
    assert len({header[1:33] for header in headers}) == len({header[33:] for header in headers}) == 8
