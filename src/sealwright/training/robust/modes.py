"""Which defences a mode admits. Spec: docs/spec/privacy.md, Robustness."""

from __future__ import annotations

from typing import Literal

from sealwright.errors import SettingsError
from sealwright.training.secagg.spec import Mode

Defence = Literal["clip", "range", "floor", "median", "trimmed-mean", "multi-krum", "outliers", "gate"]
# What needs no look at one update: the worker's attested code does it, or the sum is enough.
ALWAYS: frozenset[Defence] = frozenset({"clip", "range", "floor", "gate"})
ALL: frozenset[Defence] = ALWAYS | {"median", "trimmed-mean", "multi-krum", "outliers"}


def possible(mode: Mode) -> frozenset[Defence]:
    """Return the defences that a mode admits: with masks nobody sees one update."""
    return ALL if mode == "tee" else ALWAYS


def require(mode: Mode, defence: Defence) -> None:
    """Return if the mode admits the defence.

    Raises:
        SettingsError: `robust-needs-tee`.
    """
    if defence not in possible(mode):
        raise SettingsError(
            f"{defence} looks at single updates, and in mode {mode} nobody sees one: take mode tee",
            code="robust-needs-tee",
            stage="robust",
        )
