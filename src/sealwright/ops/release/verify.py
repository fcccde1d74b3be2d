"""A release checked offline, all of it. Spec: docs/spec/release.md, Checking one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from sealwright.appraisal.reference import MAX_REFERENCE_VALUES, ReferenceValues
from sealwright.appraisal.signed import REFERENCE_VALUES, Signers
from sealwright.crypto.dsse import Envelope
from sealwright.errors import CollateralError, SealwrightError, SettingsError, VerificationError
from sealwright.ops.release import files
from sealwright.ops.release.assemble import dated
from sealwright.ops.release.contents import check_files
from sealwright.ops.release.images import IMAGE_FILE, image_failures
from sealwright.ops.release.manifest import (
    MANIFEST,
    PROOF,
    PROVENANCE,
    SBOM,
    SIGNATURES,
    Artefact,
    ReleaseManifest,
    verify_signatures,
)
from sealwright.ops.release.provenance import check_provenance
from sealwright.ops.release.sbom import check_sbom
from sealwright.tlog.policy import LogPolicy
from sealwright.tlog.proof import LoggedEntry, LogProof

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseTrust:
    """Whom a consumer of releases trusts."""

    signers: Signers
    log: LogPolicy
    reference_signers: Signers


@dataclass(slots=True, kw_only=True)
class ReleaseReport:
    """What was found. No failure: all of it was proved."""

    manifest: ReleaseManifest
    signed_by: list[str] = field(default_factory=list)  # key ids
    logged: LoggedEntry | None = None
    reference_values: list[ReferenceValues] = field(default_factory=list)
    failures: list[SealwrightError] = field(default_factory=list)

    def require(self) -> None:
        """Raise every failure in one ExceptionGroup, if there is any."""
        if self.failures:
            raise ExceptionGroup("the release is refused", self.failures)


def verify_release(folder: Path, trust: ReleaseTrust, *, at: datetime) -> ReleaseReport:
    """Return what is proved of the release in `folder`, and every failure. Nothing is fetched.

    Args:
        at: the caller's time; reference values have to be in force then.

    Raises:
        MessageFormatError: the manifest is not in its format. UnavailableError: it cannot be read.
    """
    raw = files.read(folder / MANIFEST)
    checking = _Checking(
        folder=folder, trust=trust, at=at, report=ReleaseReport(manifest=ReleaseManifest.read(raw))
    )
    checking.run()
    return checking.report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checking:
    folder: Path
    trust: ReleaseTrust
    at: datetime
    report: ReleaseReport

    @property
    def manifest(self) -> ReleaseManifest:
        return self.report.manifest

    def run(self) -> None:
        report = self.report
        report.signed_by = self._try(self._signatures) or []
        report.logged = self._try(self._log)
        good, failures = check_files(self.folder, self.manifest)
        report.failures += failures
        wheel = self.manifest.of_kind("wheel")[0]
        if SBOM in good:
            self._try(lambda: self._sbom(wheel))
        if PROVENANCE in good:
            self._try(self._provenance)
        for artefact in self.manifest.of_kind("reference-values"):
            if artefact.path in good and (found := self._try(lambda path=artefact.path: self._values(path))):  # type: ignore[misc]
                report.reference_values.append(found)
        report.failures += self._twice()
        image = files.read(self.folder / IMAGE_FILE) if IMAGE_FILE in good else None
        report.failures += image_failures(self.manifest, image)

    def _try(self, check: Callable[[], T]) -> T | None:
        try:
            return check()
        except SealwrightError as error:
            self.report.failures.append(error)
            return None

    def _signatures(self) -> list[str]:
        if not (self.folder / SIGNATURES).is_file():
            raise CollateralError(f"{SIGNATURES} is not there", code="release-unsigned", stage="signatures")
        raw = files.read(self.folder / SIGNATURES)
        return verify_signatures(raw, self.manifest, self.trust.signers)

    def _log(self) -> LoggedEntry:
        if not (self.folder / PROOF).is_file():
            raise CollateralError(f"{PROOF} is not there", code="release-unlogged", stage="log")
        raw = files.read(self.folder / PROOF)
        return LogProof.parse(raw).verify(self.manifest.log_entry(), self.trust.log)

    def _sbom(self, wheel: Artefact) -> None:
        raw = files.read(self.folder / SBOM)
        name, version = self.manifest.name, self.manifest.version
        check_sbom(raw, name=name, version=version, sha256=wheel.sha256.hex())

    def _provenance(self) -> None:
        raw = files.read(self.folder / PROVENANCE)
        check_provenance(
            raw, self.manifest.artefacts, commit=self.manifest.commit, dated=dated(self.manifest)
        )

    def _values(self, path: str) -> ReferenceValues:
        raw = files.read(self.folder / path, limit=2 * MAX_REFERENCE_VALUES)
        envelope = Envelope.parse(raw, limit=2 * MAX_REFERENCE_VALUES, error=SettingsError)
        payload = self.trust.reference_signers.check(envelope, REFERENCE_VALUES, stage="reference-values")
        values = ReferenceValues.parse(payload, limit=MAX_REFERENCE_VALUES, error=SettingsError)
        values.check_time(self.at)
        return values

    def _twice(self) -> Iterator[SealwrightError]:
        seen = set()
        for values in self.report.reference_values:
            build = (values.name, values.version, values.platform)
            if build in seen:
                text = (
                    f"two documents of reference values of {values.name} {values.version}, {values.platform}"
                )
                yield VerificationError(text, code="reference-values-twice", stage="reference-values")
            seen.add(build)
