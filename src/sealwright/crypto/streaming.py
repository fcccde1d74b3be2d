"""Streaming AEAD, segment by segment into the caller's buffers: Tink's AES256_GCM_HKDF_1MB.

Layout: docs/spec/sealed-artefact.md, "Ciphertext". No files and no threads here: segments are
independent, so the caller chooses their order and who works on which.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sealwright.errors import ArtefactFormatError, VerificationError

Buffer = bytes | bytearray | memoryview
Writable = bytearray | memoryview

KEY_BYTES = 32
SALT_BYTES = 32
PREFIX_BYTES = 7
HEADER_BYTES = 1 + SALT_BYTES + PREFIX_BYTES
TAG_BYTES = 16
SEGMENT_BYTES = 1 << 20  # ciphertext, tag included
MAX_SEGMENTS = 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Where one segment stands: offsets and lengths in bytes, the tag counted in `sealed_length`."""

    index: int
    last: bool
    offset: int  # in the plaintext
    length: int
    sealed_offset: int  # in the ciphertext, header included
    sealed_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The segments of a plaintext of `length` bytes. The format fixes `segment_bytes`; tests use less."""

    length: int
    segment_bytes: int = SEGMENT_BYTES

    def __post_init__(self) -> None:
        if self.segment_bytes <= HEADER_BYTES + TAG_BYTES:
            raise ValueError("a segment holds more than the header and a tag")
        if self.length < 0 or self.segments > MAX_SEGMENTS:
            raise ValueError("a length outside 0 to 2^32 segments")

    @property
    def segments(self) -> int:
        """Number of segments, at least 1."""
        return max(1, -(-(self.length + HEADER_BYTES) // (self.segment_bytes - TAG_BYTES)))

    @property
    def sealed_length(self) -> int:
        """Length of the whole ciphertext, bytes."""
        return HEADER_BYTES + self.length + TAG_BYTES * self.segments

    def segment(self, index: int) -> Segment:
        """Return segment `index`, counted from 0."""
        if not 0 <= index < self.segments:
            raise ValueError("no such segment")
        room = self.segment_bytes - TAG_BYTES
        offset = max(0, index * room - HEADER_BYTES)
        end = min(self.length, (index + 1) * room - HEADER_BYTES)
        return Segment(
            index=index,
            last=index == self.segments - 1,
            offset=offset,
            length=end - offset,
            sealed_offset=index * self.segment_bytes or HEADER_BYTES,
            sealed_length=end - offset + TAG_BYTES,
        )


class StreamingAead:
    """The key of one ciphertext. Its methods may be called from several threads at once."""

    def __init__(self, dek: Buffer, associated_data: bytes, *, salt: bytes, prefix: bytes) -> None:
        """Derive the file's key.

        Args:
            dek: 32 bytes.
            salt: 32 bytes, fresh for each ciphertext.
            prefix: 7 bytes, fresh for each ciphertext.
        """
        if (len(dek), len(salt), len(prefix)) != (KEY_BYTES, SALT_BYTES, PREFIX_BYTES):
            raise ValueError("the key has 32 bytes, the salt 32, the nonce prefix 7")
        key = HKDF(SHA256(), KEY_BYTES, salt=salt, info=associated_data).derive(bytes(dek))
        self._aead = AESGCM(key)
        self._prefix = prefix
        self.header = bytes([HEADER_BYTES]) + salt + prefix

    @classmethod
    def from_header(cls, dek: Buffer, associated_data: bytes, header: bytes) -> Self:
        """Return the key of the ciphertext that starts with `header` (40 bytes).

        Raises:
            ArtefactFormatError: not this format's header.
        """
        if len(header) != HEADER_BYTES or header[0] != HEADER_BYTES:
            raise ArtefactFormatError(
                "the ciphertext does not start with its header", code="bad-artefact-header", stage="lengths"
            )
        salt, prefix = header[1 : 1 + SALT_BYTES], header[1 + SALT_BYTES :]
        return cls(dek, associated_data, salt=salt, prefix=prefix)

    def encrypt_into(self, segment: Segment, plain: Buffer, out: Writable) -> None:
        """Write the sealed segment to `out` (`segment.sealed_length` bytes)."""
        self._aead.encrypt_into(self._nonce(segment), plain, None, out)

    def decrypt_into(self, segment: Segment, sealed: Buffer, out: Writable) -> None:
        """Write the plaintext of `sealed` to `out` (`segment.length` bytes), proved genuine at its place.

        Raises:
            VerificationError: the tag does not hold; `out` was wiped.
        """
        try:
            self._aead.decrypt_into(self._nonce(segment), sealed, None, out)
        except InvalidTag:
            wipe(out)  # pyca leaves the unauthenticated plaintext in the buffer
            raise VerificationError(
                f"segment {segment.index} was altered, moved or sealed under another name",
                code="bad-segment",
                stage="segments",
            ) from None

    def _nonce(self, segment: Segment) -> bytes:
        return self._prefix + struct.pack(">I?", segment.index, segment.last)


def wipe(buffer: Writable) -> None:
    """Overwrite `buffer` with zeros."""
    view = memoryview(buffer).cast("B")
    view[:] = bytes(len(view))
