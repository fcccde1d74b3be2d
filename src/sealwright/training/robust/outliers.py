"""How far updates lie from their mean, without saying whose. Spec: docs/spec/privacy.md, Outlier report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sealwright.crypto.document import Count, Document
from sealwright.errors import VerificationError
from sealwright.training.robust.means import Floats, stacked

LEAST = 5  # updates: quartiles of fewer would be single updates
_NORM_LIMIT, _COSINE_LIMIT = 3.0, 0.0


class OutlierReport(Document):
    """Counts in classes, which may leave the TEE. Which updates they are stays in `Outliers`."""

    format: Literal["sealwright-outlier-report/v1"] = "sealwright-outlier-report/v1"
    round: Count
    updates: Count
    long: Annotated[str, Field(pattern=r"^(none|some|many)$")]  # norm over 3 times the median's
    against: Annotated[str, Field(pattern=r"^(none|some|many)$")]  # cosine with the others' median not over 0


class Outliers:
    """Inside the TEE only: norms and cosines of each update, in the order given.

    Raises:
        MessageFormatError: `update-length`, `update-out-of-range`. VerificationError: `robust-too-few`, under 5.
    """

    def __init__(self, updates: Sequence[NDArray[Any]]) -> None:
        """See the class."""
        if len(updates) < LEAST:
            raise VerificationError(
                f"{len(updates)} updates where {LEAST} are needed: fewer would tell of single ones",
                code="robust-too-few",
                stage="outliers",
            )
        rows = stacked(updates)
        self.norms: Floats = np.linalg.norm(rows, axis=1)
        self.cosines: Floats = np.array([_cosine(rows, index) for index in range(len(rows))])

    def suspects(self) -> list[int]:
        """Return the places of updates that are long or point against the others."""
        return [int(place) for place in np.flatnonzero(self._long() | self._against())]

    def report(self, round_number: int) -> OutlierReport:
        """Return what may leave: none, some (up to a quarter) or many."""
        return OutlierReport(
            round=round_number,
            updates=len(self.norms),
            long=_class(self._long()),
            against=_class(self._against()),
        )

    def _long(self) -> NDArray[np.bool_]:
        return np.asarray(self.norms > _NORM_LIMIT * float(np.median(self.norms)))

    def _against(self) -> NDArray[np.bool_]:
        return np.asarray(self.cosines <= _COSINE_LIMIT)


def _cosine(rows: Floats, index: int) -> float:
    others = np.median(np.delete(rows, index, axis=0), axis=0)
    length = float(np.linalg.norm(rows[index]) * np.linalg.norm(others))
    return float(rows[index] @ others) / length if length else 0.0


def _class(found: NDArray[np.bool_]) -> str:
    count = int(found.sum())
    return "none" if not count else "some" if 4 * count <= found.size else "many"
