"""Who made an image of what: an in-toto statement with SLSA's provenance v1 (slsa.dev/spec/v1.1/provenance)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from sealwright import __version__
from sealwright.crypto.encoding import rfc3339
from sealwright.image.ocilock import Package

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:sealwright:build:guest-image:v1"
BUILDER = "urn:sealwright:builder:image"


def guest_provenance(
    subjects: Mapping[str, bytes],
    packages: Iterable[Package],
    *,
    lock_digest: bytes,
    at: datetime,
    name: str,
    version: str,
) -> dict[str, object]:
    """Return the statement about an image's files. It says what went in, never that somebody vouches for it.

    Args:
        subjects: name and SHA-256 of each file.
        packages: everything that went in, or ran.
        at: the lock's time, which is that of every file.
    """
    listed = {one.file: one for one in packages}
    return {
        "_type": STATEMENT,
        "subject": [
            {"name": one, "digest": {"sha256": sha256.hex()}} for one, sha256 in sorted(subjects.items())
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"image": name, "lock": {"sha256": lock_digest.hex()}},
                "internalParameters": {"sourceDateEpoch": int(at.timestamp())},
                "resolvedDependencies": [
                    {"name": one.file, "digest": {"sha256": one.sha256.hex()}}
                    for _, one in sorted(listed.items())
                ],
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"sealwright": __version__}},
                "metadata": {"startedOn": rfc3339(at), "invocationId": f"{name} {version}"},
            },
        },
    }
