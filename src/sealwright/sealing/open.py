"""Opening a sealed artefact: the steps of docs/spec/sealed-artefact.md, from `key-commitment` on.

The plaintext goes into a `Sink`, which hands nothing out before `commit`; any failure ends in `abort`.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from sealwright.crypto.streaming import HEADER_BYTES, SEGMENT_BYTES, Layout, Segment, StreamingAead
from sealwright.errors import ArtefactFormatError, UnavailableError, VerificationError
from sealwright.sealing.digests import Digests
from sealwright.sealing.files import FileReader, NewFile, Source, io_errors
from sealwright.sealing.location import Location, locate
from sealwright.sealing.manifest import Entry, Manifest
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
    """Return the envelope of the artefact at a path, for `Manifest.verify`; nothing in it was checked.

    Raises:
        ArtefactFormatError: it is larger than any manifest.
        UnavailableError: it cannot be read.
    """
    return locate(artefact).envelope()


def open_into(
    artefact: Path | int | Source,
    manifest: Manifest,
    dek: bytes,
    into: Sink,
    *,
    threads: int = 2,
    progress: Progress | None = None,
    segment_bytes: int = SEGMENT_BYTES,
) -> None:
    """Decrypt an artefact of one file into `into` and commit it, proved whole and genuine.

    Args:
        artefact: the ciphertext: a path, or an open descriptor or source, which stays open.
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
        opening = Opening(manifest=manifest, dek=dek, threads=threads, segment_bytes=segment_bytes)
        with _source(artefact) as source:
            opening.file(source, entry, 0, into, progress)
        into.commit()
    except BaseException:
        into.abort()
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How the files of one artefact are opened."""

    manifest: Manifest
    dek: bytes = field(repr=False)
    threads: int = 2
    segment_bytes: int = SEGMENT_BYTES

    def file(
        self, source: Source, entry: Entry, index: int, into: Sink, progress: Progress | None = None
    ) -> None:
        """Decrypt file `index` into `into`, proved whole and genuine; it is not committed. Raises as `open_into`."""
        layout = Layout(length=entry.length, segment_bytes=self.segment_bytes)
        aead = self.key(source, entry, index, layout)
        digests = Digests(sha256=entry.sha256 is not None)
        into.start(layout.length)
        _open_segments(source, into, aead, layout, digests, self.threads, progress)
        digests.check(entry)

    def key(self, source: Source, entry: Entry, index: int, layout: Layout) -> StreamingAead:
        """Return what opens the segments of a ciphertext of the right length. Raises at stage `lengths`."""
        if not source.holds(layout.sealed_length):
            raise VerificationError(
                f"the ciphertext has {source.size} bytes, the manifest says {layout.sealed_length}",
                code="wrong-artefact-length",
                stage="lengths",
            )
        data = self.manifest.associated_data(entry, index)
        return StreamingAead.from_header(self.dek, data, read_header(source))


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


def open_to_folder(
    artefact: Location,
    manifest: Manifest,
    dek: bytes,
    to: Path,
    *,
    threads: int = 2,
    progress: Progress | None = None,
    segment_bytes: int = SEGMENT_BYTES,
) -> None:
    """Write all files below `to` (modes 0700 and 0600), which appears only once all are proved. For the owner.

    Raises:
        UnavailableError: `folder-exists`: there is something at `to`. Else as `open_into`.
    """
    entries = manifest.contents(dek)
    if to.exists() or to.is_symlink():
        raise UnavailableError(f"{to.name} is there already", code="folder-exists", stage="output")
    opening = Opening(manifest=manifest, dek=dek, threads=threads, segment_bytes=segment_bytes)
    staged = to.with_name(f".{to.name}.{secrets.token_hex(8)}.tmp")
    try:
        with io_errors("output-failed", f"cannot write beside {to.name}"):
            staged.mkdir(mode=0o700)
        _open_all(artefact, opening, entries, staged, progress)
        with io_errors("output-failed", f"cannot name {to.name}"):
            os.rename(staged, to)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def read_header(source: Source) -> bytes:
    """Return the header (40 bytes) of a ciphertext."""
    header = bytearray(HEADER_BYTES)
    source.read_into(0, memoryview(header))
    return bytes(header)


def _open_all(
    artefact: Location,
    opening: Opening,
    entries: Sequence[Entry],
    staged: Path,
    progress: Progress | None,
) -> None:
    total, before = sum(entry.length for entry in entries), 0
    for index, entry in enumerate(entries):
        target = staged / entry.path
        with io_errors("output-failed", "cannot make a folder"):
            for parent in reversed(target.relative_to(staged).parents[:-1]):
                (staged / parent).mkdir(mode=0o700, exist_ok=True)
        sink = NewFile(target, mode=0o600)
        shown = None if progress is None else partial(_shifted, progress, before, total)
        try:
            with closing(artefact.ciphertext(index)) as source:
                opening.file(source, entry, index, sink, shown)
            sink.commit()
        except BaseException:
            sink.abort()
            raise
        before += entry.length


def _shifted(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    progress(before + done, total)


@contextmanager
def _source(artefact: Path | int | Source) -> Iterator[Source]:
    if isinstance(artefact, Path | int):
        with FileReader(artefact) as reader:
            yield reader
    else:
        yield artefact


def _only_file(entries: tuple[Entry, ...]) -> Entry:
    if len(entries) != 1:
        raise ArtefactFormatError(
            f"the artefact has {len(entries)} files; open it as a folder, or one of them lazily",
            code="too-many-files",
            stage="contents",
        )
    return entries[0]


def _open_segments(
    reader: Source,
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
