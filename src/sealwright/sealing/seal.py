"""Sealing a file (`NAME.sealed` and its signed manifest `NAME.sealed.json`) or a folder (`NAME.sealed/`)."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
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
    wipe,
)
from sealwright.errors import UnavailableError
from sealwright.sealing.digests import Digests
from sealwright.sealing.draft import Draft, Plan, Seen
from sealwright.sealing.files import BytesSource, FileReader, GrowingFile, Source
from sealwright.sealing.manifest import ID_BYTES, NONCE_BYTES, PAYLOAD_TYPE, Entry, Manifest, manifest_path
from sealwright.sealing.model_signing import SIGNATURE, sign_model
from sealwright.sealing.open import Progress, read_header
from sealwright.sealing.tree import files_of
from sealwright.sealing.workers import Turns, each_segment

Random = Callable[[int], bytes]
Opened = Callable[[], Source]  # opens a plaintext


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealing:
    """How something is sealed.

    Args:
        dek: 32 bytes.
        kid: the name the broker holds the DEK under.
        version: counts up with the content; from 1.
        artefact_id: 16 bytes; of the version before, or none for a new artefact.
        sha256: add a SHA-256 digest to BLAKE3. Slower.
        resume: go on with what an earlier call left when it was interrupted, and leave what this one does.
        threads: each uses two segments of memory.
        segment_bytes: fixed by the format; another size is for tests.
    """

    dek: bytes = field(repr=False)
    kid: str
    signer: Ed25519PrivateKey = field(repr=False)
    version: int
    artefact_id: bytes | None = None
    sha256: bool = False
    resume: bool = False
    threads: int = 2
    random: Random = secrets.token_bytes
    segment_bytes: int = SEGMENT_BYTES

    def __post_init__(self) -> None:
        if len(self.dek) != KEY_BYTES or (self.artefact_id is not None and len(self.artefact_id) != ID_BYTES):
            raise ValueError(f"a DEK has {KEY_BYTES} bytes, an artefact id {ID_BYTES}")

    def manifest(self, artefact_id: bytes, entries: Sequence[Entry]) -> Manifest:
        """Return the manifest of `entries`."""
        return Manifest.build(
            entries,
            dek=self.dek,
            kid=self.kid,
            artefact_id=artefact_id,
            version=self.version,
            nonce=self.random(NONCE_BYTES),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One file to seal."""

    path: str  # in the artefact
    open: Opened
    blake3: bytes | None = None  # what its digests have to come out as, where that is known
    sha256: bytes | None = None

    def check(self, entry: Entry) -> None:
        """Refuse what was read where it is not what was expected. Raises UnavailableError: `input-changed`."""
        for wanted, got in ((self.blake3, entry.blake3), (self.sha256, entry.sha256)):
            if wanted is not None and not hmac.compare_digest(wanted, got or b""):
                raise _changed(self.path)


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
    resume: bool = False,
    threads: int = 2,
    random: Random = secrets.token_bytes,
    segment_bytes: int = SEGMENT_BYTES,
) -> Manifest:
    """Seal `source` as `out`, with its manifest at `out` + `.json`; return the manifest.

    Neither file appears before both are whole. What stood there before is replaced.

    Args:
        progress: called with (bytes done, bytes in all), one call at a time, from any thread.
        The others: see `Sealing`.

    Raises:
        ArtefactFormatError: a name, kid or version outside the format.
        UnavailableError: a file cannot be read or written, or changed while it was read; `draft-differs`.
    """
    sealing = Sealing(
        dek=dek,
        kid=kid,
        signer=signer,
        version=version,
        artefact_id=artefact_id,
        sha256=sha256,
        resume=resume,
        threads=threads,
        random=random,
        segment_bytes=segment_bytes,
    )
    return seal_one(source, out, sealing, progress=progress)


def seal_one(source: Path, out: Path, sealing: Sealing, *, progress: Progress | None = None) -> Manifest:
    """Seal one file. Returns and raises as `seal_file`, which takes what `sealing` holds apart."""
    return seal_inputs([_file(source.name, source)], out, sealing, as_folder=False, progress=progress)


def seal_folder(
    source: Path,
    out: Path,
    sealing: Sealing,
    *,
    model_key: EllipticCurvePrivateKey | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Seal all files below `source` as the folder `out`; return the manifest. Empty folders are left out.

    `out` appears when it is whole; an artefact that stood there before is replaced.

    Args:
        model_key: signs the files as OpenSSF model signing has it; `model.sig` is sealed with them.

    Raises:
        ArtefactFormatError: a name, kid or version outside the format.
        UnavailableError: as `seal_file`; `not-a-plain-file`, `no-files`, `too-many-inputs`, `model-signature-exists`.
        SettingsError: `wrong-model-key`.
    """
    inputs = [Input(path=found.path, open=found.open) for found in files_of(source)]
    if model_key is not None:
        inputs = _signed(source.name, inputs, model_key)
        sealing = replace(sealing, sha256=True)
    return seal_inputs(inputs, out, sealing, as_folder=True, progress=progress)


def _file(path: str, file: Path) -> Input:
    return Input(path=path, open=lambda: FileReader(file))


def _signed(name: str, inputs: Sequence[Input], key: EllipticCurvePrivateKey) -> list[Input]:
    """Return the inputs, which have to be what is signed now, and the signature."""
    if any(one.path == SIGNATURE for one in inputs):
        raise UnavailableError(
            f"there is a {SIGNATURE} already: it is sealed as it is without a model key, or take it away",
            code="model-signature-exists",
            stage="input",
        )
    digests = {one.path: _sha256(one) for one in inputs}
    bundle = sign_model(name, digests, key)
    known = [replace(one, sha256=digests[one.path]) for one in inputs]
    return [*known, Input(path=SIGNATURE, open=lambda: BytesSource(bundle))]


def _sha256(one: Input) -> bytes:
    whole, buffer = hashlib.sha256(), memoryview(bytearray(SEGMENT_BYTES))
    with closing(one.open()) as source:
        for offset in range(0, source.size, SEGMENT_BYTES):
            part = buffer[: min(SEGMENT_BYTES, source.size - offset)]
            source.read_into(offset, part)
            whole.update(part)
    wipe(buffer)
    return whole.digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedBytes:
    """An artefact of one file that was never on a disk: `NAME.sealed`, and `NAME.sealed.json`."""

    ciphertext: bytes
    envelope: bytes
    manifest: Manifest


def seal_bytes(path: str, raw: bytes, sealing: Sealing) -> SealedBytes:
    """Seal bytes in memory, as an artefact of one file of this name. Raises ArtefactFormatError: as `seal_file`."""
    artefact_id = sealing.artefact_id or sealing.random(ID_BYTES)
    draft = Entry(path=path, length=len(raw), blake3=bytes(32))
    layout = Layout(length=len(raw), segment_bytes=sealing.segment_bytes)
    aead = StreamingAead(
        sealing.dek,
        sealing.manifest(artefact_id, [draft]).associated_data(draft, 0),
        salt=sealing.random(SALT_BYTES),
        prefix=sealing.random(PREFIX_BYTES),
    )
    out = bytearray(layout.sealed_length)
    out[: len(aead.header)] = aead.header
    plain, view = memoryview(raw), memoryview(out)
    for index in range(layout.segments):
        part = layout.segment(index)
        target = view[part.sealed_offset : part.sealed_offset + part.sealed_length]
        aead.encrypt_into(part, plain[part.offset : part.offset + part.length], target)
    digests = Digests(sha256=sealing.sha256)
    digests.update(plain)
    manifest = sealing.manifest(artefact_id, [digests.entry(path, len(raw))])
    envelope = Envelope.sign(PAYLOAD_TYPE, manifest.payload, sealing.signer).encode()
    return SealedBytes(ciphertext=bytes(out), envelope=envelope, manifest=manifest)


def seal_inputs(
    inputs: Sequence[Input],
    out: Path,
    sealing: Sealing,
    *,
    as_folder: bool,
    progress: Progress | None = None,
) -> Manifest:
    """Seal plaintexts from anywhere, as `seal_folder` and `seal_file` do with files."""
    looked = [_look(one) for one in inputs]
    lengths = [length for length, _ in looked]
    artefact_id = sealing.artefact_id or sealing.random(ID_BYTES)
    drafts = [
        Entry(path=one.path, length=length, blake3=bytes(32))
        for one, length in zip(inputs, lengths, strict=True)
    ]
    plain = sealing.manifest(artefact_id, drafts)  # refuses bad names and kids before any work
    draft = _draft(out, artefact_id, drafts, [stamp for _, stamp in looked], sealing)
    try:
        work = _Work(sealing, draft, sum(lengths), progress)
        if draft.artefact_id != artefact_id:
            plain = sealing.manifest(draft.artefact_id, drafts)
        entries = [
            work.seal(index, one, entry, plain.associated_data(entry, index))
            for index, (one, entry) in enumerate(zip(inputs, drafts, strict=True))
        ]
        manifest = sealing.manifest(draft.artefact_id, entries)
        envelope = Envelope.sign(PAYLOAD_TYPE, manifest.payload, sealing.signer).encode()
        draft.commit(out, manifest_path(out), envelope, as_folder=as_folder)
    except BaseException:
        draft.abort()
        raise
    return manifest


def _look(one: Input) -> tuple[int, str]:
    """Return an input's length, and what tells it from another: a draft of other plaintext is not gone on with."""
    with closing(one.open()) as source:
        return source.size, source.stamp() or (one.blake3 or b"").hex()


def _draft(
    out: Path, artefact_id: bytes, drafts: Sequence[Entry], stamps: Sequence[str], sealing: Sealing
) -> Draft:
    if not sealing.resume:
        return Draft.new(out, artefact_id)
    plan = Plan(
        kid=sealing.kid,
        version=sealing.version,
        segment_bytes=sealing.segment_bytes,
        files=[(entry.path, entry.length, stamp) for entry, stamp in zip(drafts, stamps, strict=True)],
    )
    given = sealing.artefact_id is not None
    return Draft.resumed(out, plan, dek=sealing.dek, artefact_id=artefact_id, given=given)


class _Work:
    """Seals the files of one artefact into its draft, one after the other."""

    def __init__(self, sealing: Sealing, draft: Draft, total: int, progress: Progress | None) -> None:
        self._sealing, self._draft, self._total, self._progress = sealing, draft, total, progress
        self._before = 0  # bytes of the files that are done

    def seal(self, index: int, one: Input, entry: Entry, associated_data: bytes) -> Entry:
        """Return the entry of a file whose ciphertext is whole in the draft."""
        with ExitStack() as stack:
            source = one.open()
            stack.callback(source.close)
            if source.size != entry.length:
                raise _changed(entry.path)
            layout = Layout(length=entry.length, segment_bytes=self._sealing.segment_bytes)
            target = stack.enter_context(self._target(index, layout, associated_data))
            digests = Digests(sha256=self._sealing.sha256)
            self._segments(source, target, layout, digests, entry.path)
            if source.changed():
                raise _changed(entry.path)
            target.finish()
        self._before += entry.length
        sealed = digests.entry(entry.path, entry.length)
        one.check(sealed)
        return sealed

    def _target(self, index: int, layout: Layout, associated_data: bytes) -> _Target:
        sealing, draft = self._sealing, self._draft
        path = draft.begun(index, layout)
        finished = path == draft.finished(index)
        file = GrowingFile(path or draft.part(index), mode=0o644)
        try:
            if path is None:
                aead = StreamingAead(
                    sealing.dek,
                    associated_data,
                    salt=sealing.random(SALT_BYTES),
                    prefix=sealing.random(PREFIX_BYTES),
                )
                file.start(layout.sealed_length)
                file.write(0, memoryview(aead.header))
            else:
                with FileReader(path) as reader:
                    aead = StreamingAead.from_header(sealing.dek, associated_data, read_header(reader))
            seen = None
            if draft.kept:
                salt = aead.header[1 : 1 + SALT_BYTES]
                seen = Seen(draft.seen(index), dek=sealing.dek, salt=salt, segments=layout.segments)
        except BaseException:
            file.close()
            raise
        return _Target(file=file, aead=aead, seen=seen, name=None if finished else draft.finished(index))

    def _segments(self, source: Source, target: _Target, layout: Layout, digests: Digests, path: str) -> None:
        def work(segment: Segment, plain: memoryview, sealed: memoryview, turns: Turns) -> None:
            source.read_into(segment.offset, plain)
            if not target.take(segment, plain, sealed):
                raise _changed(path)

            def in_order() -> None:
                digests.update(plain)
                if self._progress is not None:
                    self._progress(self._before + segment.offset + segment.length, self._total)

            turns.run(segment.index, in_order)

        each_segment(layout, work, threads=self._sealing.threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """The ciphertext of one file, with what is known of an earlier attempt at it."""

    file: GrowingFile
    aead: StreamingAead
    seen: Seen | None
    name: Path | None  # to take when it is whole; None: it has it

    def __enter__(self) -> _Target:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if self.seen is not None:
            self.seen.close()

    def take(self, segment: Segment, plain: memoryview, sealed: memoryview) -> bool:
        """Write a segment that is not there yet. False: something else was encrypted at its place before."""
        if self.seen is not None:
            digest, known = self.seen.digest(segment.index, plain), self.seen.known(segment.index)
            if known is not None and known != digest:
                return False
            if known is not None and self.seen.written(segment.index):
                return True
            self.seen.note(segment.index, digest)
        self.aead.encrypt_into(segment, plain, sealed)
        self.file.write(segment.sealed_offset, sealed)
        if self.seen is not None:
            self.seen.note_written(segment.index)
        return True

    def finish(self) -> None:
        """Give it the name of what is whole."""
        if self.name is not None:
            self.file.name(self.name)


def _changed(path: str) -> UnavailableError:
    return UnavailableError(
        f"{path} was written to while it was sealed, or since a sealing that was interrupted: seal anew with --restart",
        code="input-changed",
    )
