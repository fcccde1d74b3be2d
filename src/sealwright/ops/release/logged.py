"""Releases in a log: one manifest for each name and version, for whoever watches the log to see."""

from __future__ import annotations

from pathlib import Path

from sealwright.crypto.canonical import parse_canonical
from sealwright.errors import FormatError, VerificationError
from sealwright.ops.publish import publish
from sealwright.ops.release.manifest import ReleaseManifest
from sealwright.tlog.keys import Signer


def log_release(manifest: ReleaseManifest, directory: Path, signer: Signer) -> bytes:
    """Return the `.tlog-proof` of a release in the log at `directory`, where it is entered once.

    Raises:
        VerificationError: `release-equivocation`. As `publish`.
    """

    def check(entry: bytes) -> None:
        try:
            said = parse_canonical(entry)
        except FormatError:
            return  # others may write to this log too
        if [said.get(name) for name in ("type", "name", "version")] == [
            "release",
            manifest.name,
            manifest.version,
        ]:
            raise VerificationError(
                f"the log holds another release {manifest.name} {manifest.version}: give this one a new version",
                code="release-equivocation",
                stage="log",
            )

    return publish(directory, signer, manifest.log_entry(), check=check)
