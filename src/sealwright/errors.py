"""Every error Sealwright raises on purpose.

    SealwrightError            code, stage, exit_code
    ├── FormatError            65  malformed: not even parsed
    │   ├── EvidenceFormatError    evidence or endorsements
    │   ├── ArtefactFormatError    sealed artefacts
    │   ├── MessageFormatError     protocol messages, transport frames, receipts
    │   ├── LogFormatError         notes, checkpoints, tiles, proofs
    │   └── SettingsError          policy, trust file, enclave config, settings
    ├── VerificationError      10  parsed, but not genuine
    ├── RevokedError           13  genuine once, revoked since
    ├── CollateralError        12  what is needed to decide is stale or missing
    ├── AppraisalError         11  genuine, but not allowed (lists every failure)
    └── UnavailableError       69  a service or a part of this machine is not there

`code` is stable kebab-case, documented in docs/reference/errors.md; `stage` names the step of
the specification that refused. The message says what was found and what to do. Secrets and
plaintext never stand in a message. Our own bugs are RuntimeError or ValueError (exit 70).
"""

from __future__ import annotations

from collections.abc import Sequence


class SealwrightError(Exception):
    """Base. `str(error)` is for people, `code` for programs, `stage` names the refusing step."""

    exit_code = 70

    def __init__(self, message: str, *, code: str, stage: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.stage = stage

    def lines(self) -> list[str]:
        """Return what a person reads on stderr, in every command and inside an enclave alike."""
        stage = [f"stage: {self.stage}"] if self.stage else []
        return [*self._reasons(), *stage, f"more:  sealwright explain {self.code}"]

    def _reasons(self) -> list[str]:
        return [f"error: {self}  [{self.code}]"]


class FormatError(SealwrightError):
    """Malformed input: refused before anything in it was believed."""

    exit_code = 65

    def __init__(self, message: str, *, code: str = "malformed", stage: str = "parse") -> None:
        super().__init__(message, code=code, stage=stage)


class EvidenceFormatError(FormatError):
    """Evidence or endorsements are not in their format."""


class ArtefactFormatError(FormatError):
    """A sealed artefact or its manifest is not in its format."""


class MessageFormatError(FormatError):
    """A protocol message, transport frame or receipt is not in its format."""


class LogFormatError(FormatError):
    """A note, checkpoint, tile or proof is not in its format."""


class SettingsError(FormatError):
    """A policy, trust file, enclave config or settings file is not in its format."""


class VerificationError(SealwrightError):
    """Parsed, but a signature, digest, chain or binding does not hold."""

    exit_code = 10


class RevokedError(SealwrightError):
    """A key, certificate, lease or measurement was revoked or has ended."""

    exit_code = 13


class CollateralError(SealwrightError):
    """An endorsement, CRL, policy or log proof is missing or too old."""

    exit_code = 12


class AppraisalFailure(str):
    """One reason for a refusal: the text, with the `code` it is documented under."""

    __slots__ = ("code",)
    code: str

    def __new__(cls, text: str, *, code: str) -> AppraisalFailure:
        """Make a reason. Args: text: what was found and what was wanted; code: kebab-case."""
        self = super().__new__(cls, text)
        self.code = code
        return self


class AppraisalError(SealwrightError):
    """Genuine, but the policy does not allow it. `failures` lists every reason, not only the first."""

    exit_code = 11

    def __init__(self, failures: Sequence[AppraisalFailure], *, stage: str = "appraisal") -> None:
        if not failures:
            raise ValueError("an AppraisalError needs at least one failure")
        super().__init__("; ".join(failures), code=failures[0].code, stage=stage)
        self.failures = tuple(failures)

    def _reasons(self) -> list[str]:
        if len(self.failures) == 1:
            return super()._reasons()
        head = f"error: not allowed, for {len(self.failures)} reasons:  [{self.code}]"
        return [head, *[f"  - {failure}  [{failure.code}]" for failure in self.failures]]


class UnavailableError(SealwrightError):
    """A service could not be reached, or this machine lacks a part that is needed."""

    exit_code = 69
