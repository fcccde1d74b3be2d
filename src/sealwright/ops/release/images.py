"""What a release's guest image and OCI layouts say of their own files, held against the manifest. No network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sealwright.crypto.canonical import parse_json
from sealwright.errors import ArtefactFormatError, SealwrightError, VerificationError
from sealwright.ops.release.manifest import IMAGE, ReleaseManifest

IMAGE_FILE = f"{IMAGE}/image.json"
_BLOB = re.compile(r"oci/[^/]+/blobs/sha256/([^/]+)")
_HEX = re.compile(r"[0-9a-f]{64}")


def image_failures(manifest: ReleaseManifest, image: bytes | None) -> Iterator[SealwrightError]:
    """Yield what does not fit: a file of `image.json` that is not in the manifest, a blob of another digest.

    Args:
        image: `image.json`; None: the release has no guest image, or the file is not there.
    """
    by_path = {one.path: one.sha256.hex() for one in manifest.of_kind("image", "oci")}
    if manifest.of_kind("image") and IMAGE_FILE not in by_path:
        yield ArtefactFormatError("the guest image has no image.json", code="malformed-image", stage="image")
    for path, sha256 in by_path.items():
        blob = _BLOB.fullmatch(path)
        if blob is not None and blob[1] != sha256:
            yield _mismatch(f"{path} has the digest {sha256[:16]}…")
    if image is not None:
        yield from _outputs(image, by_path)


def _outputs(raw: bytes, by_path: dict[str, str]) -> Iterator[SealwrightError]:
    try:
        named = dict(_named(parse_json(raw, error=ArtefactFormatError)))
    except SealwrightError as error:
        yield error
        return
    if not named:
        yield ArtefactFormatError("image.json names no file", code="malformed-image", stage="image")
    for name, sha256 in named.items():
        if by_path.get(f"{IMAGE}/{name}") != sha256:
            yield _mismatch(f"image.json names {name} with another digest than the release")


def _named(document: Any) -> Iterator[tuple[str, str]]:
    """Yield (name, SHA-256 hex) of every file that a guest image's manifest names: docs/spec/guest-image.md."""
    files = document.get("files") if isinstance(document, dict) else None
    for said in files if isinstance(files, list) else []:
        match said:
            case {"name": str(name), "sha256": str(sha256)} if _HEX.fullmatch(sha256):
                yield name, sha256
            case _:
                raise ArtefactFormatError(
                    "a file of image.json has no sha256", code="malformed-image", stage="image"
                )


def _mismatch(text: str) -> VerificationError:
    return VerificationError(text, code="release-file-mismatch", stage="image")
