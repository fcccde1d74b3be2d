"""The signed manifest of a sealed artefact: what is in the clear, what is sealed, and who signed it.

Format and stages: docs/spec/sealed-artefact.md.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sealwright.crypto.canonical import MAX_INT, canonical, parse_canonical
from sealwright.crypto.dsse import Envelope
from sealwright.crypto.encoding import b64url, b64url_decode, digest, hex_decode, joined
from sealwright.crypto.streaming import HEADER_BYTES, KEY_BYTES, MAX_SEGMENTS, SEGMENT_BYTES, TAG_BYTES
from sealwright.errors import ArtefactFormatError, VerificationError

PAYLOAD_TYPE = "application/vnd.sealwright.manifest.v1+json"
FORMAT = "sealwright-manifest/v1"
SUITE = "default"
ID_BYTES = 16
NONCE_BYTES = 12
MAX_MANIFEST = 1 << 20  # bytes of payload
MAX_ENVELOPE = 2 * MAX_MANIFEST
MAX_FILES = 4096
MAX_PATH = 1024  # bytes of UTF-8
MAX_LENGTH = MAX_SEGMENTS * (SEGMENT_BYTES - TAG_BYTES) - HEADER_BYTES
KID_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"

_STRICT = ConfigDict(strict=True, frozen=True, extra="forbid")
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _FileDoc(BaseModel):
    model_config = _STRICT
    length: int = Field(ge=0, le=MAX_LENGTH)


class _ManifestDoc(BaseModel):
    model_config = _STRICT
    format: Literal["sealwright-manifest/v1"]
    suite: Literal["default"]
    artefact_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    version: int = Field(ge=1, le=MAX_INT)
    kid: str = Field(pattern=KID_PATTERN)
    files: tuple[_FileDoc, ...] = Field(min_length=1, max_length=MAX_FILES)
    key_commitment: str
    sealed: str


class _EntryDoc(BaseModel):
    model_config = _STRICT
    path: str
    blake3: _Digest
    sha256: _Digest | None = None


class _ContentsDoc(BaseModel):
    model_config = _STRICT
    files: tuple[_EntryDoc, ...] = Field(min_length=1, max_length=MAX_FILES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of an artefact, as its owner sealed it."""

    path: str
    length: int  # bytes of plaintext
    blake3: bytes  # 32 bytes, of the plaintext
    sha256: bytes | None = None  # 32 bytes, of the plaintext


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest. Whether it is genuine is said by how it was made: see the class methods."""

    artefact_id: bytes  # 16 bytes
    version: int
    kid: str
    lengths: tuple[int, ...]  # bytes of plaintext, one a file
    key_commitment: bytes  # 32 bytes
    sealed: bytes  # nonce and ciphertext of the contents
    payload: bytes = field(repr=False)  # canonical JSON, as signed

    @property
    def manifest_digest(self) -> bytes:
        """SHA-256 (32 bytes) of the payload: what a broker admits and a release names."""
        return hashlib.sha256(self.payload).digest()

    @classmethod
    def verify(cls, envelope: bytes, owner_keys: Iterable[Ed25519PublicKey], expected_digest: bytes) -> Self:
        """Return the manifest, proved to be signed by an owner and to be the one that was admitted.

        Args:
            envelope: the bytes of `NAME.sealed.json`.
            expected_digest: 32 bytes, from the broker's release or the tenant list.

        Raises:
            ArtefactFormatError: stage `parse`.
            VerificationError: stages `signature` and `admitted`.
        """
        manifest = cls.verify_signed(envelope, owner_keys)
        if not hmac.compare_digest(manifest.manifest_digest, expected_digest):
            raise VerificationError(
                "the manifest is genuine but not the one admitted: an older or another version",
                code="manifest-not-admitted",
                stage="admitted",
            )
        return manifest

    @classmethod
    def verify_signed(cls, envelope: bytes, owner_keys: Iterable[Ed25519PublicKey]) -> Self:
        """Return the manifest, proved to be signed by an owner; it may be an old version.

        For the owner and for a broker that is asked to admit it; an enclave calls `verify`.

        Raises:
            ArtefactFormatError: stage `parse`.
            VerificationError: stage `signature`.
        """
        parsed = Envelope.parse(envelope, limit=MAX_ENVELOPE, error=ArtefactFormatError)
        return cls._parse(parsed.verify(PAYLOAD_TYPE, owner_keys))

    @classmethod
    def unverified_parse(cls, envelope: bytes) -> Self:
        """Return the manifest in `envelope`, of which nothing was verified: to show, not to use.

        Raises:
            ArtefactFormatError: stage `parse`.
        """
        parsed = Envelope.parse(envelope, limit=MAX_ENVELOPE, error=ArtefactFormatError)
        return cls._parse(parsed.unverified_payload)

    @classmethod
    def build(
        cls, entries: Sequence[Entry], *, dek: bytes, kid: str, artefact_id: bytes, version: int, nonce: bytes
    ) -> Self:
        """Return the manifest of `entries`, to be signed.

        Args:
            dek: 32 bytes.
            artefact_id: 16 random bytes.
            nonce: 12 random bytes, never used twice for the same DEK, artefact and version.

        Raises:
            ArtefactFormatError: a kid, path or number outside the format.
        """
        for entry in entries:
            check_path(entry.path)
        clear = {
            "format": FORMAT,
            "suite": SUITE,
            "artefact_id": artefact_id.hex(),
            "version": version,
            "kid": kid,
            "files": [{"length": entry.length} for entry in entries],
            "key_commitment": b64url(derive(dek, "commit", artefact_id)),
        }
        contents = canonical({"files": [_entry_json(entry) for entry in entries]})
        key = derive(dek, "contents", artefact_id, version)
        sealed = nonce + AESGCM(key).encrypt(nonce, contents, canonical(clear))
        manifest = cls._parse(canonical({**clear, "sealed": b64url(sealed)}))
        manifest.contents(dek)  # what we would refuse to open, we do not write
        return manifest

    def contents(self, dek: bytes) -> tuple[Entry, ...]:
        """Return the files, proved to be sealed under `dek` with this manifest.

        Raises:
            VerificationError: stages `key-commitment` and `contents`.
            ArtefactFormatError: stage `contents`.
        """
        if len(dek) != KEY_BYTES or not hmac.compare_digest(
            derive(dek, "commit", self.artefact_id), self.key_commitment
        ):
            raise VerificationError(
                "this is not the key the artefact was sealed under", code="wrong-dek", stage="key-commitment"
            )
        docs = _parse_contents(self._open_contents(dek))
        if len(docs) != len(self.lengths):
            raise _malformed("the sealed file list has another length than the clear one", stage="contents")
        return tuple(_entry(doc, length) for doc, length in zip(docs, self.lengths, strict=True))

    def associated_data(self, entry: Entry, index: int) -> bytes:
        """Return the associated data (32 bytes) of file `index`: what `tink` needs beside the DEK."""
        return digest(self.artefact_id, self.version, entry.path, index, entry.length)

    def _open_contents(self, dek: bytes) -> bytes:
        clear = parse_canonical(self.payload, limit=MAX_MANIFEST, error=ArtefactFormatError)
        del clear["sealed"]
        key = derive(dek, "contents", self.artefact_id, self.version)
        nonce, ciphertext = self.sealed[:NONCE_BYTES], self.sealed[NONCE_BYTES:]
        try:
            return AESGCM(key).decrypt(nonce, ciphertext, canonical(clear))
        except InvalidTag:
            raise VerificationError(
                "the sealed part does not belong to this manifest", code="bad-contents", stage="contents"
            ) from None

    @classmethod
    def _parse(cls, payload: bytes) -> Self:
        raw = parse_canonical(payload, limit=MAX_MANIFEST, error=ArtefactFormatError)
        for name, known in (("format", FORMAT), ("suite", SUITE)):
            if raw.get(name) != known:
                raise ArtefactFormatError(
                    f"the manifest's {name} is not {known!r}", code=f"unknown-manifest-{name}"
                )
        try:
            doc = _ManifestDoc.model_validate_json(payload)
        except ValidationError as exc:
            raise _malformed(f"manifest: {_where(exc)}") from None
        sealed = b64url_decode(doc.sealed, error=ArtefactFormatError)
        if len(sealed) < NONCE_BYTES + TAG_BYTES:
            raise _malformed("the sealed part is too short")
        return cls(
            artefact_id=hex_decode(doc.artefact_id, error=ArtefactFormatError),
            version=doc.version,
            kid=doc.kid,
            lengths=tuple(item.length for item in doc.files),
            key_commitment=b64url_decode(doc.key_commitment, length=KEY_BYTES, error=ArtefactFormatError),
            sealed=sealed,
            payload=payload,
        )


def manifest_path(artefact: Path) -> Path:
    """Return where the manifest of `artefact` stands: `NAME.sealed.json` beside `NAME.sealed`."""
    return artefact.with_name(artefact.name + ".json")


def check_path(path: str) -> None:
    """Refuse a path that could leave the folder it is opened in, or that some system reads otherwise.

    Raises:
        ArtefactFormatError: stage `contents`.
    """
    odd = any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or char in "\\:" for char in path)
    # Names that are not UTF-8 reach Python as lone surrogates, which have no UTF-8 form.
    odd = odd or any(0xD800 <= ord(char) < 0xE000 for char in path)
    if odd or len(path.encode()) > MAX_PATH or any(part in ("", ".", "..") for part in path.split("/")):
        raise ArtefactFormatError("a path outside the format", code="bad-artefact-path", stage="contents")


def derive(dek: bytes, label: str, *items: bytes | int) -> bytes:
    """Return a key (32 bytes) of the artefact for one purpose: HKDF-SHA256(DEK, no salt, info = label ‖ items)."""
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=joined(label, *items)).derive(dek)


def _parse_contents(plain: bytes) -> tuple[_EntryDoc, ...]:
    try:
        parse_canonical(plain, limit=MAX_MANIFEST, error=ArtefactFormatError)
        docs = _ContentsDoc.model_validate_json(plain).files
    except ArtefactFormatError as exc:
        raise ArtefactFormatError(str(exc), code=exc.code, stage="contents") from None
    except ValidationError as exc:
        raise _malformed(f"sealed file list: {_where(exc)}", stage="contents") from None
    for doc in docs:
        check_path(doc.path)
        if "sha256" in doc.model_fields_set and doc.sha256 is None:
            raise _malformed("sealed file list: null digest", stage="contents")
    if len({doc.path for doc in docs}) != len(docs):
        raise ArtefactFormatError("two files have one path", code="bad-artefact-path", stage="contents")
    return docs


def _entry(doc: _EntryDoc, length: int) -> Entry:
    sha256 = None if doc.sha256 is None else bytes.fromhex(doc.sha256)
    return Entry(path=doc.path, length=length, blake3=bytes.fromhex(doc.blake3), sha256=sha256)


def _entry_json(entry: Entry) -> dict[str, str]:
    out = {"path": entry.path, "blake3": entry.blake3.hex()}
    return out if entry.sha256 is None else {**out, "sha256": entry.sha256.hex()}


def _where(exc: ValidationError) -> str:
    # Names the member and the rule only: the value may be secret.
    first = exc.errors(include_input=False, include_url=False, include_context=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['type']}"


def _malformed(message: str, *, stage: str = "parse") -> ArtefactFormatError:
    return ArtefactFormatError(message, code="malformed-manifest", stage=stage)
