"""A release folder held against its manifest: every artefact is there as named, and nothing else is."""

from __future__ import annotations

import hmac
from pathlib import Path

from sealwright.errors import SealwrightError, VerificationError
from sealwright.ops.release import files
from sealwright.ops.release.manifest import ABOUT, Artefact, ReleaseManifest


def check_files(folder: Path, manifest: ReleaseManifest) -> tuple[set[str], list[SealwrightError]]:
    """Return the paths whose files are what `manifest` says, and every failure."""
    try:
        present = set(files.walk(folder)) - ABOUT
    except SealwrightError as error:
        return set(), [error]
    named = {one.path: one for one in manifest.artefacts}
    unnamed, missing = present - set(named), set(named) - present
    found = [
        _failure(f"{path} is not named by the release: take it out", "unnamed") for path in sorted(unnamed)
    ]
    found += [_failure(f"{path} is not there", "missing") for path in sorted(missing)]
    good = set()
    for path in sorted(present & set(named)):
        wrong = _wrong(folder, named[path])
        if wrong is None:
            good.add(path)
        else:
            found.append(wrong)
    return good, found


def _wrong(folder: Path, named: Artefact) -> SealwrightError | None:
    try:
        found = files.measured(folder, named.path, named.kind)
    except SealwrightError as error:
        return error
    if found.size == named.size and hmac.compare_digest(found.sha256, named.sha256):
        return None
    return _failure(f"{named.path} is not the file that the release names", "mismatch")


def _failure(text: str, kind: str) -> SealwrightError:
    if kind == "unnamed":
        return VerificationError(text, code="release-file-unnamed", stage="artefacts")
    if kind == "missing":
        return VerificationError(text, code="release-file-missing", stage="artefacts")
    return VerificationError(text, code="release-file-mismatch", stage="artefacts")
