"""AR4SI trustworthiness vectors (draft-ietf-rats-ar4si). A result is never better than its worst claim."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

CLAIMS = (
    "instance-identity",
    "configuration",
    "executables",
    "file-system",
    "hardware",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
)
NONE, AFFIRMING, WARNING, CONTRAINDICATED = "none", "affirming", "warning", "contraindicated"


def tier(value: int) -> str:
    """Return the tier of one claim's value (-128..127)."""
    if not -128 <= value <= 127:
        raise ValueError("a claim is an int8")
    if -1 <= value <= 1:
        return NONE
    if 2 <= value <= 31 or -32 <= value <= -2:
        return AFFIRMING
    if 32 <= value <= 95 or -96 <= value <= -33:
        return WARNING
    return CONTRAINDICATED


def status(vector: Mapping[str, int]) -> str:
    """Return the tier of the worst claim in `vector`; `none` when it is empty."""
    tiers = [tier(value) for value in vector.values()]
    for worst in (CONTRAINDICATED, WARNING, AFFIRMING):
        if worst in tiers:
            return worst
    return NONE


def worse(one: int, other: int) -> int:
    """Return the claim's value of the worse tier; of two in one tier, the other."""
    order = (NONE, AFFIRMING, WARNING, CONTRAINDICATED)
    return one if order.index(tier(one)) > order.index(tier(other)) else other


def worst(vectors: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return one vector with the worst value of each claim."""
    found: dict[str, int] = {}
    for vector in vectors:
        for claim, value in vector.items():
            found[claim] = worse(found.get(claim, value), value)
    return found


def worst_status(vectors: Iterable[Mapping[str, int]]) -> str:
    """Return the status of several vectors together."""
    return status(worst(vectors))
