"""Who neighbours whom in a round: of the roster and the beacon that the countersigner gave it; never chosen.

Spec: docs/spec/secure-aggregation.md, Round, step 2.
"""

from __future__ import annotations

from sealwright.crypto.encoding import digest
from sealwright.training.secagg.enrol import refused
from sealwright.training.secagg.messages import Opening, Survivors
from sealwright.training.secagg.spec import RunSpec

_LABEL = "sealwright/secagg/graph/v1"


class Graph:
    """The neighbours of each place (from 1) of a roster, in order of places."""

    def __init__(self, opening: Opening, spec: RunSpec) -> None:
        roster = opening.roster
        count, roster_digest = len(roster.members), roster.digest()
        if count <= spec.degree + 1:
            self._neighbours = {
                place: tuple(other for other in range(1, count + 1) if other != place)
                for place in range(1, count + 1)
            }
            return
        circle = sorted(
            range(1, count + 1),
            key=lambda place: digest(_LABEL, roster_digest, opening.beacon, roster.members[place - 1].worker),
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


def check_enough(survivors: Survivors, graph: Graph, spec: RunSpec) -> None:
    """Prove that a survivor set is large enough, and each survivor's seeds can be opened by its alive neighbours.

    Raises:
        VerificationError: `survivors-too-few`.
    """
    alive = set(survivors.alive)
    few = len(alive) < spec.min_survivors
    if not few and spec.masked:
        few = any(
            len(alive.intersection(graph.of(place))) < spec.threshold_of(len(graph.of(place)))
            for place in alive
        )
    if few:
        raise refused(
            "too few survivors, or too few beside one of them: repeat the round",
            "survivors-too-few",
            "survivors",
        )
