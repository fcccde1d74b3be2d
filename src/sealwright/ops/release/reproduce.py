"""A release built again, and countersigned if every artefact came out the same. Spec: docs/spec/release.md, Building again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sealwright.appraisal.reference import MAX_REFERENCE_VALUES, ReferenceValues
from sealwright.appraisal.signed import REFERENCE_VALUES, is_signed
from sealwright.crypto.canonical import canonical
from sealwright.crypto.dsse import Envelope
from sealwright.errors import SettingsError, VerificationError
from sealwright.ops.release import files
from sealwright.ops.release.assemble import Parts, assemble, check_same_source, read_release
from sealwright.ops.release.differ import first_difference
from sealwright.ops.release.manifest import MANIFEST, PROVENANCE, Artefact, ReleaseManifest
from sealwright.ops.release.provenance import defined_by
from sealwright.ops.release.wheel import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """An artefact that did not come out the same."""

    path: str
    text: str

    def error(self) -> VerificationError:
        """Return it as a failure."""
        return VerificationError(f"{self.path}: {self.text}", code="not-reproduced", stage="reproduce")


def reproduce(
    folder: Path, source: Source, parts: Parts, scratch: Path, *, builder: str
) -> tuple[ReleaseManifest, list[Difference]]:
    """Return the manifest of the release in `folder`, and every difference from one's own build.

    Args:
        parts: one's own builds of what the release has beside the wheel.
        scratch: a folder that is not there yet, for one's own build.

    Raises:
        VerificationError: `source-differs`. MessageFormatError, UnavailableError: as `assemble`.
    """
    manifest = read_release(folder)
    check_same_source(manifest, source)
    own = assemble(source, scratch, Parts(image=parts.image, oci=parts.oci), builder=builder)
    differences = [*_compared(folder, manifest, scratch, own)]
    differences += _reference_values(folder, manifest, parts.reference_values)
    if (manifest.name, manifest.version) != (own.name, own.version):
        differences.append(Difference(path=MANIFEST, text=f"one's own build is {own.name} {own.version}"))
    return manifest, differences


def _compared(
    folder: Path, manifest: ReleaseManifest, scratch: Path, own: ReleaseManifest
) -> Iterator[Difference]:
    mine = {one.path: one for one in own.artefacts}
    theirs = {one.path: one for one in manifest.artefacts if one.kind != "reference-values"}
    for path in sorted(set(theirs) | set(mine)):
        if path not in mine:
            yield Difference(path=path, text="the release has it, and it was not built again")
        elif path not in theirs:
            yield Difference(path=path, text="was built, and the release does not have it")
        elif text := _difference(folder, theirs[path], scratch, mine[path]):
            yield Difference(path=path, text=text)


def _difference(folder: Path, theirs: Artefact, scratch: Path, ours: Artefact) -> str:
    if theirs.kind != ours.kind:
        return f"is of kind {theirs.kind}, and was built as {ours.kind}"
    # What is countersigned is the digest in the manifest, not whatever lies in the folder.
    found = files.measured(folder, theirs.path, theirs.kind)
    if found != theirs:
        return "the file is not the one that the release names"
    if theirs.path == PROVENANCE:
        return _provenance(files.read(folder / PROVENANCE), files.read(scratch / PROVENANCE))
    if theirs == ours:
        return ""
    return first_difference(folder / theirs.path, scratch / ours.path) or "has another digest"


def _provenance(theirs: bytes, ours: bytes) -> str:
    said, own = defined_by(theirs), defined_by(ours)
    wrong = [name for name in own if canonical(said[name]) != canonical(own[name])]
    return f"{' and '.join(wrong)} are not what one's own build gives" if wrong else ""


def _reference_values(folder: Path, manifest: ReleaseManifest, own: Sequence[Path]) -> Iterator[Difference]:
    mine = {_build(values): values for values in map(_document, own)}
    named: set[tuple[str, str]] = set()
    for artefact in manifest.of_kind("reference-values"):
        theirs = _document(folder / artefact.path)
        named.add(_build(theirs))
        ours = mine.get(_build(theirs))
        if files.measured(folder, artefact.path, artefact.kind) != artefact:
            yield Difference(path=artefact.path, text="the file is not the one that the release names")
        elif ours is None:
            yield Difference(path=artefact.path, text="was not predicted again: give your own document")
        elif wrong := _unlike(theirs, ours):
            yield Difference(path=artefact.path, text=f"one's own prediction has another {', '.join(wrong)}")
    for values in [values for build, values in mine.items() if build not in named]:
        path = f"reference values {values.name}, {values.platform}"
        yield Difference(path=path, text="were predicted, and the release does not have them")


def _unlike(theirs: ReferenceValues, ours: ReferenceValues) -> list[str]:
    wrong = [] if theirs.version == ours.version else ["version"]
    if theirs.config_register != ours.config_register:
        wrong.append("config_register")
    names = sorted({*theirs.registers, *ours.registers})
    return wrong + [name for name in names if theirs.registers.get(name) != ours.registers.get(name)]


def _build(values: ReferenceValues) -> tuple[str, str]:
    return values.name, values.platform


def _document(path: Path) -> ReferenceValues:
    """Return reference values without proof of who signed them: their content is what is compared."""
    raw = files.read(path, limit=2 * MAX_REFERENCE_VALUES)
    if is_signed(raw):
        envelope = Envelope.parse(raw, limit=2 * MAX_REFERENCE_VALUES, error=SettingsError)
        if envelope.payload_type != REFERENCE_VALUES:
            raise VerificationError(
                f"{path.name} is signed as something else",
                code="wrong-payload-type",
                stage="reference-values",
            )
        raw = envelope.unverified_payload
    return ReferenceValues.parse(raw, limit=MAX_REFERENCE_VALUES, error=SettingsError)
