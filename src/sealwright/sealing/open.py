"""Opening a sealed artefact: the steps of docs/spec/sealed-artefact.md, from `key-commitment` on.

The plaintext goes into a `Sink`, which hands nothing out before `commit`; any failure ends in `abort`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from sealwright.crypto.streaming import HEADER_BYTES, SEGMENT_BYTES, Layout, Segment, StreamingAead
from sealwright.errors import ArtefactFormatError, VerificationError
from sealwright.sealing.digests import Digests
from sealwright.sealing.files import FileReader, NewFile
from sealwright.sealing.manifest import MAX_ENVELOPE, Entry, Manifest, manifest_path
from sealwright.sealing.workers import Turns, each_segment

Progress = Callable[[int, int], None]


class Sink(Protocol):
    """Where plaintext waits until all of it is proved. `write` is called from several threads."""

    def start(self, length: int) -> None:
        """Make room for `length` bytes."""

    def write(self, offset: int, data: memoryview) -> None:
        """Take `data` at `offset`; the view is wiped after the call."""

    def commit(self) -> None:
        """Hand it out: every step has passed."""

    def abort(self) -> None:
        """Wipe, close or remove it. May follow a failed `start` or `commit`, or nothing at all."""


def read_manifest(artefact: Path) -> bytes:
    """Return the envelope beside `artefact`, for `Manifest.verify`; nothing in it was checked.

    Raises:
        ArtefactFormatError: it is larger than any manifest.
        UnavailableError: it cannot be read.
    """
    with FileReader(manifest_path(artefact)) as reader:
        if reader.size > MAX_ENVELOPE:
            raise ArtefactFormatError("the manifest is too large", code="too-large")
        raw = bytearray(reader.size)
        reader.read_into(0, memoryview(raw))
    return bytes(raw)


def open_into(
    artefact: Path | int,
    manifest: Manifest,
    dek: bytes,
    into: Sink,
    *,
    threads: int = 2,
    progress: Progress | None = None,
    segment_bytes: int = SEGMENT_BYTES,
) -> None:
    """Decrypt `artefact` into `into` and commit it, proved whole and genuine.

    Args:
        artefact: a path, or an open descriptor, which stays open.
        manifest: from `Manifest.verify`; its signature and admission are not checked again.
        dek: 32 bytes.
        threads: each uses two segments of memory.
        progress: called with (bytes done, bytes in all), one call at a time, from any thread.
        segment_bytes: fixed by the format; another size is for tests.

    Raises:
        VerificationError: stages `key-commitment` to `plaintext-digest`.
        ArtefactFormatError: stages `contents` and `lengths`.
        UnavailableError: a file or the sink cannot be read or written.
    """
    try:
        entry = _only_file(manifest.contents(dek))
        data = manifest.associated_data(entry, 0)
        with FileReader(artefact) as reader:
            layout = Layout(length=entry.length, segment_bytes=segment_bytes)
            aead = StreamingAead.from_header(dek, data, _header(reader, layout))
            digests = Digests(sha256=entry.sha256 is not None)
            into.start(layout.length)
            _open_segments(reader, into, aead, layout, digests, threads, progress)
        digests.check(entry)
        into.commit()
    except BaseException:
        into.abort()
        raise


def open_to_file(
    artefact: Path,
    manifest: Manifest,
    dek: bytes,
    to: Path,
    *,
    threads: int = 2,
    progress: Progress | None = None,
) -> None:
    """Write the plaintext to `to` (mode 0600), which appears only once it is proved. For the owner.

    Raises: as `open_into`.
    """
    open_into(artefact, manifest, dek, NewFile(to, mode=0o600), threads=threads, progress=progress)


def _only_file(entries: tuple[Entry, ...]) -> Entry:
    if len(entries) != 1:
        raise ArtefactFormatError(
            f"the artefact has {len(entries)} files; this program opens artefacts of one",
            code="too-many-files",
            stage="contents",
        )
    return entries[0]


def _header(reader: FileReader, layout: Layout) -> bytes:
    if not reader.holds(layout.sealed_length):
        raise VerificationError(
            f"the ciphertext has {reader.size} bytes, the manifest says {layout.sealed_length}",
            code="wrong-artefact-length",
            stage="lengths",
        )
    header = bytearray(HEADER_BYTES)
    reader.read_into(0, memoryview(header))
    return bytes(header)


def _open_segments(
    reader: FileReader,
    into: Sink,
    aead: StreamingAead,
    layout: Layout,
    digests: Digests,
    threads: int,
    progress: Progress | None,
) -> None:
    def work(segment: Segment, plain: memoryview, sealed: memoryview, turns: Turns) -> None:
        # Into our own buffer first: ciphertext that changes between two looks could pass its tag.
        reader.read_into(segment.sealed_offset, sealed)
        aead.decrypt_into(segment, sealed, plain)
        into.write(segment.offset, plain)

        def in_order() -> None:
            digests.update(plain)
            if progress is not None:
                progress(segment.offset + segment.length, layout.length)

        turns.run(segment.index, in_order)

    each_segment(layout, work, threads=threads)
