"""Refusals of independent steps, gathered so that the gravest is raised (DESIGN section 10)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sealwright.errors import AppraisalError, AppraisalFailure, FormatError, SealwrightError

_GRAVEST_FIRST = (65, 10, 13, 12, 11)  # exit codes


class Findings:
    """Collects what steps refuse. `FormatError` is never collected: nothing after it can be judged."""

    def __init__(self) -> None:
        self._errors: list[SealwrightError] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        """Run one step; what it refuses is kept for `settle`."""
        try:
            yield
        except FormatError:
            raise
        except SealwrightError as exc:
            self._errors.append(exc)

    def refuse(self, code: str, text: str, *, stage: str) -> None:
        """Keep one reason why something genuine is not allowed."""
        self._errors.append(AppraisalError([AppraisalFailure(text, code=code)], stage=stage))

    def settle(self) -> None:
        """Raise the gravest refusal, if there is any; appraisal failures are listed together."""
        if not self._errors:
            return
        worst = min(self._errors, key=_rank)
        if not isinstance(worst, AppraisalError):
            raise worst
        failures = [
            failure
            for error in self._errors
            if isinstance(error, AppraisalError)
            for failure in error.failures
        ]
        raise AppraisalError(failures, stage=worst.stage) from worst


def _rank(error: SealwrightError) -> int:
    code = error.exit_code
    return _GRAVEST_FIRST.index(code) if code in _GRAVEST_FIRST else len(_GRAVEST_FIRST)
