"""SLSA provenance v1 of a release, as an in-toto statement. Spec: docs/spec/release.md, Provenance. No I/O."""

from __future__ import annotations

import platform
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sealwright.crypto.canonical import canonical, parse_json
from sealwright.crypto.encoding import rfc3339
from sealwright.errors import ArtefactFormatError, VerificationError
from sealwright.ops.release.manifest import BUILT, Artefact

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:sealwright:release-build:v1"
SOURCE_URI = "urn:sealwright:source"  # wherever it was cloned from: the commit says which bytes
MAX_PROVENANCE = 4 << 20  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """Who built, and when."""

    builder: str  # URI
    started: datetime
    finished: datetime
    invocation: str = ""


def definition(
    artefacts: Sequence[Artefact], *, commit: str, dated: str, materials: Mapping[str, str]
) -> dict[str, Any]:
    """Return `subject` and `buildDefinition`: what every builder of this commit writes alike.

    Args:
        artefacts: all but the provenance itself.
        dated: time of the source, RFC 3339.
        materials: files of the source to their SHA-256, hex.
    """
    built = sorted((one for one in artefacts if one.kind in BUILT), key=lambda one: one.path)
    source: dict[str, Any] = {"uri": SOURCE_URI, "commit": commit}
    dependencies = [{"uri": SOURCE_URI, "digest": {"gitCommit": commit}}]
    dependencies += [
        {"uri": f"{SOURCE_URI}#{name}", "digest": {"sha256": sha256}}
        for name, sha256 in sorted(materials.items())
    ]
    return {
        "subject": [{"name": one.path, "digest": {"sha256": one.sha256.hex()}} for one in built],
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {"source": source, "parts": sorted({one.kind for one in built})},
            "internalParameters": {"source_date": dated},
            "resolvedDependencies": dependencies,
        },
    }


def make_provenance(defined: Mapping[str, Any], build: Build) -> bytes:
    """Return the statement as canonical JSON. Args: defined: of `definition`."""
    metadata = {"startedOn": rfc3339(build.started), "finishedOn": rfc3339(build.finished)}
    if build.invocation:
        metadata["invocationId"] = build.invocation
    tools = {"python": platform.python_version(), "zlib": zlib.ZLIB_RUNTIME_VERSION}
    return canonical(
        {
            "_type": STATEMENT,
            "subject": defined["subject"],
            "predicateType": PREDICATE,
            "predicate": {
                "buildDefinition": defined["buildDefinition"],
                "runDetails": {
                    "builder": {"id": build.builder},
                    "metadata": metadata,
                    "byproducts": [{"name": "environment", "annotations": tools}],
                },
            },
        }
    )


def defined_by(raw: bytes) -> dict[str, Any]:
    """Return `subject` and `buildDefinition` of a provenance. Raises ArtefactFormatError `malformed-provenance`."""
    match parse_json(raw, limit=MAX_PROVENANCE, error=ArtefactFormatError):
        case {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": list(subject),
            "predicateType": "https://slsa.dev/provenance/v1",
            "predicate": {
                "buildDefinition": {
                    "buildType": str(),
                    "externalParameters": dict(),
                    "resolvedDependencies": list(),
                } as definition_,
                "runDetails": {"builder": {"id": str()}},
            },
        }:
            return {"subject": subject, "buildDefinition": definition_}
        case _:
            raise ArtefactFormatError(
                "not an in-toto statement with SLSA provenance v1",
                code="malformed-provenance",
                stage="provenance",
            )


def check_provenance(raw: bytes, artefacts: Sequence[Artefact], *, commit: str, dated: str) -> None:
    """Check that a provenance is of exactly the built artefacts, this commit and this source date.

    Raises:
        ArtefactFormatError: `malformed-provenance`. VerificationError: `provenance-mismatch`.
    """
    found = defined_by(raw)
    materials = {}
    for one in found["buildDefinition"]["resolvedDependencies"]:
        match one:
            case {"uri": str(uri), "digest": {"sha256": str(sha256)}}:
                materials[uri.removeprefix(f"{SOURCE_URI}#")] = sha256
    # What it should say follows from the release; only the files of the source are its own to tell.
    wanted = definition(artefacts, commit=commit, dated=dated, materials=materials)
    for member in ("subject", "buildDefinition"):
        if canonical(found[member]) != canonical(wanted[member]):
            raise VerificationError(
                f"the provenance is of another build: its {member} does not fit the release",
                code="provenance-mismatch",
                stage="provenance",
            )
