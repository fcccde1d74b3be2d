"""Sealing a file: `NAME.sealed` and its signed manifest `NAME.sealed.json`."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.crypto.dsse import Envelope
from sealwright.crypto.streaming import (
    KEY_BYTES,
    PREFIX_BYTES,
    SALT_BYTES,
    SEGMENT_BYTES,
    Layout,
    Segment,
    StreamingAead,
)
from sealwright.errors import UnavailableError
from sealwright.sealing.digests import Digests
from sealwright.sealing.files import FileReader, NewFile
from sealwright.sealing.manifest import ID_BYTES, NONCE_BYTES, PAYLOAD_TYPE, Entry, Manifest, manifest_path
from sealwright.sealing.open import Progress, Sink
from sealwright.sealing.workers import Turns, each_segment

Random = Callable[[int], bytes]


def seal_file(
    source: Path,
    out: Path,
    *,
    dek: bytes,
    kid: str,
    signer: Ed25519PrivateKey,
    version: int,
    progress: Progress | None = None,
    artefact_id: bytes | None = None,
    sha256: bool = False,
    threads: int = 2,
    random: Random = secrets.token_bytes,
    segment_bytes: int = SEGMENT_BYTES,
) -> Manifest:
    """Seal `source` as `out`, with its manifest at `out` + `.json`; return the manifest.

    Neither file appears before both are whole. What stood there before is replaced.

    Args:
        dek: 32 bytes.
        kid: the name the broker holds the DEK under.
        version: counts up with the content; from 1.
        progress: called with (bytes done, bytes in all), one call at a time, from any thread.
        artefact_id: 16 bytes; of the version before, or none for a new artefact.
        sha256: add a SHA-256 digest to BLAKE3, for OpenSSF model signing. Slower.
        segment_bytes: fixed by the format; another size is for tests.

    Raises:
        ArtefactFormatError: a name, kid or version outside the format.
        UnavailableError: a file cannot be read or written, or changed while it was read.
    """
    artefact_id = random(ID_BYTES) if artefact_id is None else artefact_id
    if len(dek) != KEY_BYTES or len(artefact_id) != ID_BYTES:
        raise ValueError(f"a DEK has {KEY_BYTES} bytes, an artefact id {ID_BYTES}")
    with FileReader(source) as reader:
        layout = Layout(length=reader.size, segment_bytes=segment_bytes)
        draft = Entry(path=source.name, length=reader.size, blake3=bytes(32))
        build = _builder(dek=dek, kid=kid, artefact_id=artefact_id, version=version, random=random)
        data = build(draft).associated_data(draft, 0)  # refuses a bad name or kid before any work
        aead = StreamingAead(dek, data, salt=random(SALT_BYTES), prefix=random(PREFIX_BYTES))
        ciphertext = NewFile(out, mode=0o644)
        try:
            digests = Digests(sha256=sha256)
            _seal_segments(reader, ciphertext, aead, layout, digests, threads, progress)
            if reader.changed():
                raise UnavailableError("the file was written to while it was sealed", code="input-changed")
            manifest = build(digests.entry(draft.path, draft.length))
            _write_manifest(manifest_path(out), manifest, signer, ciphertext)
        except BaseException:
            ciphertext.abort()
            raise
    return manifest


def _builder(
    *, dek: bytes, kid: str, artefact_id: bytes, version: int, random: Random
) -> Callable[[Entry], Manifest]:
    def build(entry: Entry) -> Manifest:
        return Manifest.build(
            [entry], dek=dek, kid=kid, artefact_id=artefact_id, version=version, nonce=random(NONCE_BYTES)
        )

    return build


def _seal_segments(
    reader: FileReader,
    out: Sink,
    aead: StreamingAead,
    layout: Layout,
    digests: Digests,
    threads: int,
    progress: Progress | None,
) -> None:
    def work(segment: Segment, plain: memoryview, sealed: memoryview, turns: Turns) -> None:
        reader.read_into(segment.offset, plain)
        aead.encrypt_into(segment, plain, sealed)
        out.write(segment.sealed_offset, sealed)

        def in_order() -> None:
            digests.update(plain)
            if progress is not None:
                progress(segment.offset + segment.length, layout.length)

        turns.run(segment.index, in_order)

    out.start(layout.sealed_length)
    out.write(0, memoryview(aead.header))
    each_segment(layout, work, threads=threads)


def _write_manifest(path: Path, manifest: Manifest, signer: Ed25519PrivateKey, ciphertext: NewFile) -> None:
    envelope = Envelope.sign(PAYLOAD_TYPE, manifest.payload, signer).encode()
    file = NewFile(path, mode=0o644)
    try:
        file.write(0, memoryview(envelope))
        # A crash between the two names leaves a pair that does not fit, which is refused when opened.
        ciphertext.commit()
        file.commit()
    except BaseException:
        file.abort()
        raise
