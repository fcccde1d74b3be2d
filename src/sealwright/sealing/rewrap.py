"""Sealing anew, under another key, what is sealed already: decrypted segment by segment, and never written in clear.

Spec: docs/spec/sealed-artefact.md, Sealing anew.
"""

from __future__ import annotations

from pathlib import Path

from sealwright.crypto.streaming import SEGMENT_BYTES
from sealwright.sealing.lazy import PlainSource, SealedFolder
from sealwright.sealing.location import Location
from sealwright.sealing.manifest import Manifest
from sealwright.sealing.open import Progress
from sealwright.sealing.seal import Input, Sealing, seal_inputs


def rewrap(
    artefact: Location,
    manifest: Manifest,
    dek: bytes,
    out: Path,
    sealing: Sealing,
    *,
    as_folder: bool,
    progress: Progress | None = None,
    segment_bytes: int = SEGMENT_BYTES,
) -> Manifest:
    """Seal the files of an artefact anew at `out`; return the new manifest. Their digests are proved on the way.

    Args:
        manifest: from `Manifest.verify`. dek: its key, 32 bytes.
        sealing: the new key, kid, version and signer; digests are those there were.
        segment_bytes: of the old artefact.

    Raises:
        As `open_to_folder` and `seal_folder`; UnavailableError `input-changed`: what was read is not what the old
        manifest says.
    """
    folder = SealedFolder(artefact, manifest, dek, segment_bytes=segment_bytes)

    def plain(path: str) -> Input:
        entry = folder[path]
        return Input(
            path=path,
            open=lambda: PlainSource(folder.open(path), entry.length),
            blake3=entry.blake3,
            sha256=entry.sha256 if sealing.sha256 else None,
        )

    return seal_inputs([plain(path) for path in folder], out, sealing, as_folder=as_folder, progress=progress)


def has_sha256(manifest: Manifest, dek: bytes) -> bool:
    """Return whether an artefact's files have a SHA-256 digest beside BLAKE3. Raises as `Manifest.contents`."""
    return all(entry.sha256 is not None for entry in manifest.contents(dek))
