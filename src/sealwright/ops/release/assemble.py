"""A release folder from a commit and the parts that others built. Spec: docs/spec/release.md."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from sealwright.crypto.document import validated
from sealwright.errors import SettingsError, VerificationError
from sealwright.ops.release import files
from sealwright.ops.release.manifest import (
    IMAGE,
    MANIFEST,
    OCI,
    PROVENANCE,
    SBOM,
    Artefact,
    Kind,
    ReleaseManifest,
)
from sealwright.ops.release.provenance import Build, definition, make_provenance
from sealwright.ops.release.sbom import LICENCES, make_sbom
from sealwright.ops.release.wheel import Source, build_wheel

MATERIALS = "requirements"
_REQUIRED, _OPTIONAL = "requirements/base.txt", "requirements/demo.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What was built apart from the wheel: a guest image's folder, OCI layouts, signed reference values."""

    image: Path | None = None
    oci: Sequence[Path] = field(default_factory=tuple)
    reference_values: Sequence[Path] = field(default_factory=tuple)


def _utcnow() -> datetime:
    return datetime.now(UTC)


def assemble(
    source: Source,
    out: Path,
    parts: Parts,
    *,
    builder: str,
    invocation: str = "",
    clock: Callable[[], datetime] = _utcnow,
) -> ReleaseManifest:
    """Build the wheel of `source`, and write the whole release to the new folder `out`; nothing is signed.

    Args:
        builder: URI of whoever builds.
        invocation: URI of this run, where there is one.

    Raises:
        SettingsError: `release-exists`, `malformed-lock`, `licence-unknown`. UnavailableError: a tool is missing.
    """
    if out.exists() and any(out.iterdir()):
        raise SettingsError(f"{out} is not empty", code="release-exists", stage="arguments")
    started = clock()
    artefacts = _built(source, out, parts)
    defined = definition(artefacts, commit=source.commit, dated=source.dated, materials=materials(source))
    build = Build(builder=builder, invocation=invocation, started=started, finished=clock())
    files.write(out / PROVENANCE, make_provenance(defined, build))
    artefacts.append(files.measured(out, PROVENANCE, "provenance"))
    name, version = _named(artefacts)
    ordered = sorted(artefacts, key=lambda one: one.path)
    manifest = validated(
        ReleaseManifest,
        {
            "name": name,
            "version": version,
            "commit": source.commit,
            "source_date": source.dated,
            "artefacts": ordered,
        },
        SettingsError,
    )
    files.write(out / MANIFEST, manifest.encode())
    return manifest


def materials(source: Source) -> dict[str, str]:
    """Return the lock files of a commit, and their SHA-256, hex."""
    names = source.files(MATERIALS)
    return {name: hashlib.sha256(source.file(name)).hexdigest() for name in names}


def _built(source: Source, out: Path, parts: Parts) -> list[Artefact]:
    wheel, raw = build_wheel(source)
    files.write(out / "wheel" / wheel, raw)
    found = [files.measured(out, f"wheel/{wheel}", "wheel")]
    name, version = _named(found)
    sbom = make_sbom(
        name=name,
        version=version,
        sha256=found[0].sha256.hex(),
        dated=source.dated,
        required=source.file(_REQUIRED).decode(),
        optional=source.file(_OPTIONAL).decode(),
        licences=source.file(LICENCES),
    )
    files.write(out / SBOM, sbom)
    found.append(files.measured(out, SBOM, "sbom"))
    if parts.image is not None:
        found += _tree(out, IMAGE, parts.image, "image")
    for layout in parts.oci:
        found += _tree(out, f"{OCI}/{layout.name}", layout, "oci")
    return found + _reference_values(out, parts.reference_values)


def _tree(out: Path, under: str, folder: Path, kind: Kind) -> list[Artefact]:
    if not folder.is_dir():
        raise SettingsError(f"{folder} is not a folder", code="unreadable-file", stage="arguments")
    if (out / under).exists():
        raise SettingsError(f"two parts are named {folder.name}", code="release-exists", stage="arguments")
    files.copy_tree(folder, out / under)
    return [files.measured(out, f"{under}/{path}", kind) for path in files.walk(out / under)]


def _reference_values(out: Path, paths: Iterable[Path]) -> list[Artefact]:
    found = []
    for path in paths:
        name = f"reference-values/{path.name}"
        if (out / name).exists():
            raise SettingsError(f"two parts are named {path.name}", code="release-exists", stage="arguments")
        files.write(out / name, files.read(path))
        found.append(files.measured(out, name, "reference-values"))
    return found


def _named(artefacts: Sequence[Artefact]) -> tuple[str, str]:
    """Return name and version as the wheel's file name says them (PEP 427)."""
    name, version, *_ = artefacts[0].path.removeprefix("wheel/").split("-")
    return name.replace("_", "-"), version


def read_release(folder: Path) -> ReleaseManifest:
    """Return the manifest of a release folder; nothing is verified.

    Raises:
        MessageFormatError: not in its format. UnavailableError: it cannot be read.
    """
    return ReleaseManifest.read(files.read(folder / MANIFEST))


def check_same_source(manifest: ReleaseManifest, source: Source) -> None:
    """Check that `source` is the commit of the release. Raises VerificationError `source-differs`."""
    if (source.commit, source.dated) != (manifest.commit, dated(manifest)):
        raise VerificationError(
            f"the release is of commit {manifest.commit[:12]}, and {source.commit[:12]} is checked out",
            code="source-differs",
            stage="source",
        )


def dated(manifest: ReleaseManifest) -> str:
    """Return the source date of a manifest, RFC 3339."""
    return str(manifest.to_json()["source_date"])
