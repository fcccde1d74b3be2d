"""Opening a sealed file where it is read: only the segments that are asked for, each proved before a byte of it is given.

Spec: docs/spec/sealed-artefact.md, Opening lazily. The whole plaintext's digest is not checked here: a segment's tag proves
its bytes, its place, and the file, length, artefact and version that it belongs to.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Self

from sealwright.crypto.streaming import SEGMENT_BYTES, TAG_BYTES, Layout, Segment, StreamingAead, wipe
from sealwright.sealing.files import Source
from sealwright.sealing.location import Location
from sealwright.sealing.manifest import Entry, Manifest
from sealwright.sealing.open import Opening

CACHED = 8  # segments a file keeps, by default


class SealedFile(io.RawIOBase):
    """The plaintext of one file, readable and seekable; may be read from several threads.

    Reads raise VerificationError at stage `segments` where the ciphertext is not what was sealed.
    """

    def __init__(self, source: Source, aead: StreamingAead, layout: Layout, *, cached: int = CACHED) -> None:
        """Args: source: closed with this. cached: decrypted segments that are kept, at least 1."""
        if cached < 1:
            raise ValueError("at least one segment is kept")
        self._source, self._aead, self._layout, self._cached = source, aead, layout, cached
        self._kept: OrderedDict[int, bytearray] = OrderedDict()
        self._lock = threading.Lock()
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position, bytes of plaintext."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position; return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._layout.length}.get(whence)
        if base is None or base + offset < 0:
            raise ValueError("no such position")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the position on; return how many bytes there were."""
        out = memoryview(buffer).cast("B")
        count = self.read_at(self._at, out)
        self._at += count
        return count

    def read_at(self, offset: int, out: memoryview) -> int:
        """Fill `out` from `offset`, whatever the position is; return how many bytes there were."""
        self._check_open()
        done = 0
        while done < len(out) and offset + done < self._layout.length:
            with self._lock:
                segment, plain = self._segment(self._index(offset + done))
                start = offset + done - segment.offset
                part = memoryview(plain)[start : start + len(out) - done]
                out[done : done + len(part)] = part
                done += len(part)
        return done

    def close(self) -> None:
        """Wipe what is kept, and let go of the source."""
        if not self.closed:
            with self._lock:
                for plain in self._kept.values():
                    wipe(plain)
                self._kept.clear()
            self._source.close()
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the file is closed")

    def _index(self, offset: int) -> int:
        room = self._layout.segment_bytes - TAG_BYTES
        first = self._layout.segment(0).length
        return 0 if offset < first else 1 + (offset - first) // room

    def _segment(self, index: int) -> tuple[Segment, bytearray]:
        segment = self._layout.segment(index)
        plain = self._kept.get(index)
        if plain is None:
            sealed = bytearray(segment.sealed_length)
            self._source.read_into(segment.sealed_offset, memoryview(sealed))
            plain = bytearray(segment.length)
            self._aead.decrypt_into(segment, sealed, plain)
            while len(self._kept) >= self._cached:
                wipe(self._kept.popitem(last=False)[1])
            self._kept[index] = plain
        self._kept.move_to_end(index)
        return segment, plain


class SealedFolder(Mapping[str, Entry]):
    """The files of an artefact by path, each opened when it is asked for."""

    def __init__(
        self, artefact: Location, manifest: Manifest, dek: bytes, *, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        """Read the file list.

        Args:
            manifest: from `Manifest.verify`; its signature and admission are not checked again.
            dek: 32 bytes.

        Raises:
            VerificationError: stages `key-commitment` and `contents`. ArtefactFormatError: stage `contents`.
        """
        self._artefact = artefact
        self._opening = Opening(manifest=manifest, dek=dek, segment_bytes=segment_bytes)
        entries = manifest.contents(dek)
        self._numbers = {entry.path: (index, entry) for index, entry in enumerate(entries)}

    def __getitem__(self, path: str) -> Entry:
        return self._numbers[path][1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def open(self, path: str, *, cached: int = CACHED) -> SealedFile:
        """Return the plaintext of `path`, of which nothing was read yet.

        Raises:
            KeyError: there is no such file.
            VerificationError, ArtefactFormatError: stage `lengths`. UnavailableError: it cannot be read.
        """
        index, entry = self._numbers[path]
        source = self._artefact.ciphertext(index)
        try:
            layout = Layout(length=entry.length, segment_bytes=self._opening.segment_bytes)
            aead = self._opening.key(source, entry, index, layout)
            return SealedFile(source, aead, layout, cached=cached)
        except BaseException:
            source.close()
            raise


class PlainSource:
    """A lazily opened file as something to seal: what is sealed anew need not lie anywhere in clear."""

    def __init__(self, file: SealedFile, length: int) -> None:
        self._file, self.size = file, length

    def holds(self, length: int) -> bool:
        """Return whether it has this length."""
        return length == self.size

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` from `offset`."""
        if self._file.read_at(offset, out) != len(out):
            raise ValueError("read beyond the end")

    def changed(self) -> bool:
        """Return False: what changes is refused by its tag."""
        return False

    def stamp(self) -> str:
        """Return nothing."""
        return ""

    def close(self) -> None:
        """Wipe and close it."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
