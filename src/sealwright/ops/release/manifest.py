"""The manifest of a release: every artefact by digest. Spec: docs/spec/release.md, Manifest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from sealwright.appraisal.signed import Signers
from sealwright.crypto.canonical import canonical
from sealwright.crypto.document import Count, Digest, Document, Name, Record, Time
from sealwright.crypto.dsse import Envelope, key_id
from sealwright.errors import MessageFormatError, VerificationError

MANIFEST = "release.json"
SIGNATURES = "release.dsse.json"
PROOF = "release.tlog-proof"
SBOM = "sbom.cdx.json"
PROVENANCE = "provenance.json"
IMAGE = "image"
OCI = "oci"
ABOUT = frozenset({MANIFEST, SIGNATURES, PROOF})  # what is about the release, and not in it

MAX_ARTEFACTS = 4096
MAX_MANIFEST = 2 << 20  # bytes
_PART = r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,127}"

Kind = Literal["wheel", "sbom", "provenance", "reference-values", "image", "oci"]
BUILT: frozenset[Kind] = frozenset({"wheel", "sbom", "image", "oci"})  # what provenance has as subjects
_ONCE: tuple[Kind, ...] = ("wheel", "sbom", "provenance")


_PLACES: Mapping[Kind, str] = {
    "wheel": r"wheel/[^/]+\.whl",
    "sbom": re.escape(SBOM),
    "provenance": re.escape(PROVENANCE),
    "reference-values": r"reference-values/[^/]+",
    "image": r"image/.+",
    "oci": r"oci/[^/]+/.+",
}


class Artefact(Record):
    """One file of a release."""

    path: Annotated[str, Field(max_length=512, pattern=rf"^{_PART}(/{_PART}){{0,7}}$")]
    kind: Kind
    size: Count
    sha256: Digest

    @field_validator("path")
    @classmethod
    def _not_ours(cls, path: str) -> str:
        if path in ABOUT:
            raise ValueError("a file about the release is none of its artefacts")
        return path


class ReleaseManifest(Document):
    """What a release consists of: of one commit, all but the provenance is the same whoever builds it."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.release-manifest.v1+json"

    format: Literal["sealwright-release-manifest/v1"] = "sealwright-release-manifest/v1"
    name: Name
    version: Annotated[str, Field(max_length=64, pattern=r"^[0-9][A-Za-z0-9.+-]*$")]
    commit: Annotated[str, Field(pattern=r"^(?:[0-9a-f]{40}|[0-9a-f]{64})$")]
    source_date: Time
    artefacts: Annotated[list[Artefact], Field(min_length=3, max_length=MAX_ARTEFACTS)]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        paths = [artefact.path for artefact in self.artefacts]
        if paths != sorted(set(paths)):
            raise ValueError("artefacts stand in order of their paths, each once")
        if any(len(self.of_kind(kind)) != 1 for kind in _ONCE):
            raise ValueError("a release has one wheel, one SBOM and one provenance")
        if not all(_in_place(artefact) for artefact in self.artefacts):
            raise ValueError("an artefact stands where another kind belongs")
        if not self.of_kind("wheel")[0].path.startswith(
            f"wheel/{self.name.replace('-', '_')}-{self.version}-"
        ):
            raise ValueError("the wheel is of another name or version")
        return self

    def of_kind(self, *kinds: Kind) -> list[Artefact]:
        """Return the artefacts of these kinds."""
        return [artefact for artefact in self.artefacts if artefact.kind in kinds]

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """Return the manifest in `raw`; nothing is verified. Raises MessageFormatError."""
        return cls.parse(raw, limit=MAX_MANIFEST)

    def log_entry(self) -> bytes:
        """Return the entry that the log holds for this release."""
        said = {"commitment": hashlib.sha256(self.encode()).hexdigest(), "type": "release"}
        return canonical({**said, "name": self.name, "version": self.version})


def _in_place(artefact: Artefact) -> bool:
    return re.fullmatch(_PLACES[artefact.kind], artefact.path) is not None


def verify_signatures(
    raw: bytes, manifest: ReleaseManifest, signers: Signers, *, stage: str = "signatures"
) -> list[str]:
    """Return the ids of the keys that signed `manifest`, proved to be as many different trusted ones as wanted.

    Unlike `Envelope.verify` it looks at every signature by a trusted key, also beyond the threshold.

    Args:
        raw: `release.dsse.json`.

    Raises:
        MessageFormatError: not an envelope. VerificationError: `wrong-payload-type`, `bad-signature`,
            `untrusted-signer`, `release-mismatch`: signatures over another manifest.
    """
    envelope = Envelope.parse(raw, limit=2 * MAX_MANIFEST)
    check_once(envelope, stage=stage)
    keys = signers.public_keys()
    present = {name for name, _ in envelope.signatures} & {key_id(key) for key in keys}
    wanted = max(signers.threshold, len(present))
    payload = envelope.verify(manifest.PAYLOAD_TYPE, keys, threshold=wanted, stage=stage)
    if payload != manifest.encode():
        raise VerificationError(
            "the signatures are over another manifest than release.json", code="release-mismatch", stage=stage
        )
    return sorted(present)


def check_once(envelope: Envelope, *, stage: str) -> None:
    """Check that no key stands twice among the signatures. Raises MessageFormatError `malformed-envelope`."""
    names = [name for name, _ in envelope.signatures]
    if len(set(names)) != len(names):
        raise MessageFormatError("a key signs once", code="malformed-envelope", stage=stage)


def with_signature(raw: bytes | None, added: Envelope) -> bytes:
    """Return `release.dsse.json` with the signatures of `added`; a key's new signature takes its old one's place.

    Args:
        raw: the file as it is; None: there is none yet.

    Raises:
        VerificationError: `release-mismatch`: the file holds signatures over something else.
    """
    if raw is None:
        return added.encode()
    old = Envelope.parse(raw, limit=2 * MAX_MANIFEST)
    if (old.payload_type, old.unverified_payload) != (added.payload_type, added.unverified_payload):
        raise VerificationError(
            "the signatures there are over another manifest", code="release-mismatch", stage="signatures"
        )
    new = dict(added.signatures)
    kept = tuple((name, signature) for name, signature in old.signatures if name not in new)
    return Envelope(
        payload_type=old.payload_type,
        unverified_payload=old.unverified_payload,
        signatures=(*kept, *added.signatures),
    ).encode()
