"""Who neighbours whom in a round: of the roster and its nonces, never of the coordinator's choice.

Spec: docs/spec/secure-aggregation.md, Round, step 2.
"""

from __future__ import annotations

from sealwright.crypto.encoding import digest
from sealwright.training.secagg.messages import Roster
from sealwright.training.secagg.spec import RunSpec

_LABEL = "sealwright/secagg/graph/v1"


class Graph:
    """The neighbours of each place (from 1) of a roster, in order of places."""

    def __init__(self, roster: Roster, spec: RunSpec) -> None:
        count, roster_digest = len(roster.members), roster.digest()
        if count <= spec.degree + 1:
            self._neighbours = {
                place: tuple(other for other in range(1, count + 1) if other != place)
                for place in range(1, count + 1)
            }
            return
        circle = sorted(
            range(1, count + 1),
            key=lambda place: digest(_LABEL, roster_digest, roster.members[place - 1].worker),
        )
        steps = range(1, spec.degree // 2 + 1)
        self._neighbours = {
            place: tuple(
                sorted(
                    {circle[(at + step) % count] for step in steps}
                    | {circle[(at - step) % count] for step in steps}
                )
            )
            for at, place in enumerate(circle)
        }

    def of(self, place: int) -> tuple[int, ...]:
        """Return the neighbours of a place."""
        return self._neighbours[place]
