"""Collateral packs: one file that carries collateral into a site without a network. Spec: docs/spec/collateral-pack.md.

manifest.json                  what is in it (RFC 8785)
manifest.sig.json              DSSE over these very bytes; only in a signed pack
blobs/<SHA-256>                each blob once, by digest
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from itertools import pairwise
from typing import Annotated, Literal, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BeforeValidator, Field, model_validator

from sealwright.collateral.record import MAX_BLOB, Entry, Piece
from sealwright.collateral.sources import piece_of
from sealwright.collateral.tar import read_tar, write_tar
from sealwright.crypto.canonical import MAX_JSON
from sealwright.crypto.document import Document, Time
from sealwright.crypto.dsse import Envelope
from sealwright.errors import EvidenceFormatError, VerificationError

PAYLOAD_TYPE = "application/vnd.sealwright.collateral-pack.v1+json"
MAX_PACK = 64 * 1024 * 1024  # bytes
MAX_PIECES = 2048
_MANIFEST, _SIGNATURE, _BLOB = "manifest.json", "manifest.sig.json", "blobs/"
_MAX_FILES = 4 * MAX_PIECES + 2


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class PackManifest(Document):
    """What a pack holds, by kind and key. Dates are shown to people; an import reads them from the blobs."""

    format: Literal["sealwright-collateral-pack/v1"] = "sealwright-collateral-pack/v1"
    created: Time
    entries: Annotated[tuple[Entry, ...], BeforeValidator(_tuple), Field(min_length=1, max_length=MAX_PIECES)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any((one.kind, one.key) >= (other.kind, other.key) for one, other in pairwise(self.entries)):
            raise ValueError("entries are sorted by kind and key, each once")
        if any(one.fetched > self.created for one in self.entries):
            raise ValueError("an entry was fetched after the pack was made")
        if not all(one.need().facts.kept for one in self.entries):
            raise ValueError("an entry is of a kind that holds for one machine only")
        return self

    def digests(self) -> list[bytes]:
        """Return the digest of every blob, sorted, each once."""
        return sorted({digest for entry in self.entries for digest in entry.blobs})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """A whole pack: every blob has its digest. Nothing is verified, unless `verify` has returned."""

    manifest: PackManifest
    blobs: tuple[bytes, ...]  # in the order of their digests
    signature: Envelope | None = None

    @classmethod
    def of(
        cls, pieces: Iterable[Piece], *, created: datetime, keys: Sequence[Ed25519PrivateKey] = ()
    ) -> Self:
        """Return the pack of `pieces`, signed with `keys`. The same pieces, time and keys give the same bytes.

        Raises:
            EvidenceFormatError: `too-large`; `malformed-document`: no pieces, or a kind that is not packed.
        """
        ordered = sorted(pieces, key=lambda piece: piece.need)
        entries = [piece.entry().to_json() for piece in ordered]
        manifest = PackManifest.from_json(
            {"format": "sealwright-collateral-pack/v1", "created": created, "entries": entries},
            error=EvidenceFormatError,
        )
        by_digest = {sha256(blob).digest(): blob for piece in ordered for blob in piece.blobs}
        raw = manifest.encode()
        return cls(
            manifest=manifest,
            blobs=tuple(by_digest[digest] for digest in manifest.digests()),
            signature=Envelope.sign(PAYLOAD_TYPE, raw, *keys) if keys else None,
        )

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a pack.

        Raises:
            EvidenceFormatError: `malformed-pack`, `too-large`, or the manifest is malformed.
            VerificationError: `pack-mismatch`: a blob has not its digest, or the signature is over something else.
        """
        if len(raw) > MAX_PACK:
            raise EvidenceFormatError(f"a pack of {len(raw)} bytes is over {MAX_PACK}", code="too-large")
        files = read_tar(raw, max_files=_MAX_FILES, max_file=max(2 * MAX_JSON, MAX_BLOB))
        names = [name for name, _ in files]
        signed = names[1:2] == [_SIGNATURE]
        if names[:1] != [_MANIFEST]:
            raise EvidenceFormatError("a pack begins with its manifest", code="malformed-pack")
        manifest = PackManifest.parse(files[0][1], error=EvidenceFormatError)
        blobs = files[2:] if signed else files[1:]
        if [name for name, _ in blobs] != [_BLOB + digest.hex() for digest in manifest.digests()]:
            raise EvidenceFormatError("a pack holds the blobs of its manifest", code="malformed-pack")
        for name, blob in blobs:
            if name != _BLOB + sha256(blob).hexdigest():
                raise _mismatch(f"{name[:22]}… has another digest than its name")
        return cls(
            manifest=manifest,
            blobs=tuple(blob for _, blob in blobs),
            signature=_signature(files[1][1], files[0][1]) if signed else None,
        )

    def encode(self) -> bytes:
        """Return the bytes that `parse` accepts. Raises EvidenceFormatError `too-large`."""
        files = [(_MANIFEST, self.manifest.encode())]
        if self.signature is not None:
            files.append((_SIGNATURE, self.signature.encode()))
        names = [_BLOB + digest.hex() for digest in self.manifest.digests()]
        raw = write_tar([*files, *zip(names, self.blobs, strict=True)])
        if len(raw) > MAX_PACK or len(files[0][1]) > MAX_JSON:
            raise EvidenceFormatError(
                f"a pack of {len(raw)} bytes, or its manifest, is too large: make several", code="too-large"
            )
        return raw

    def verify(self, keys: Iterable[Ed25519PublicKey]) -> None:
        """Prove that one of `keys` signed the manifest, and with it every blob.

        Raises:
            VerificationError: `pack-unsigned`, `untrusted-signer`, `bad-signature`, `wrong-payload-type`.
        """
        if self.signature is None:
            raise VerificationError(
                "the pack carries no signature, and one is wanted", code="pack-unsigned", stage="signature"
            )
        self.signature.verify(PAYLOAD_TYPE, keys)

    def pieces(self) -> list[Piece]:
        """Return the pieces, each about what the manifest says, with the dates that stand in the blobs.

        Raises:
            EvidenceFormatError: a blob is malformed, or about something else.
            VerificationError: `pack-mismatch`: the manifest names other dates than the blobs.
        """
        by_digest = dict(zip(self.manifest.digests(), self.blobs, strict=True))
        return [
            _piece(entry, [by_digest[digest] for digest in entry.blobs]) for entry in self.manifest.entries
        ]


def _piece(entry: Entry, blobs: Sequence[bytes]) -> Piece:
    piece = piece_of(entry.need(), blobs, fetched=entry.fetched)
    if piece.entry() != entry:
        raise _mismatch(f"the manifest names other dates of {piece.need} than its blobs")
    return piece


def _signature(raw: bytes, manifest: bytes) -> Envelope:
    envelope = Envelope.parse(raw, error=EvidenceFormatError)
    if envelope.unverified_payload != manifest:
        raise _mismatch("the signature is over another manifest")
    return envelope


def _mismatch(text: str) -> VerificationError:
    return VerificationError(text, code="pack-mismatch", stage="pack")
