"""What secure aggregation's countersigner says of the round behind a checkpoint. Spec: docs/spec/checkpoint.md, stage `aggregation`."""

from __future__ import annotations

from sealwright.crypto.statement import ed25519
from sealwright.errors import VerificationError
from sealwright.protocol.checkpoint import CheckpointPredicate
from sealwright.protocol.plan import Plan
from sealwright.training.checkpoint.attested import check_digest
from sealwright.training.checkpoint.folder import CheckpointFolder
from sealwright.training.secagg.messages import MAX_OPENING, Opening, Survivors
from sealwright.training.secagg.spec import RunSpec

STAGE = "aggregation"


def verify_round(said: CheckpointPredicate, plan: Plan, folder: CheckpointFolder) -> RunSpec | None:
    """Return the run specification, with the round proved to be countersigned and of this checkpoint's workers.

    Raises:
        FormatError, CollateralError, VerificationError: `aggregation-mismatch`, `survivors-other-roster`, `survivors-too-few`.
    """
    claimed = said.aggregation
    if plan.aggregation is None:
        _require(claimed.mode == "none", "the plan has no aggregation")
        _require(claimed.contributors == len(said.workers), "contributors are not the workers")
        return None
    raw = folder.sidecar(plan.aggregation, "the run specification")
    spec = RunSpec.parse(raw)
    check_digest(spec.digest(), plan.aggregation, STAGE, "the run specification")
    _require(spec.mode == claimed.mode, f"the run specification says {spec.mode}")
    if claimed.opening is None or claimed.survivors is None:
        _require(claimed.contributors == len(said.workers), "contributors are not the workers")
        return spec
    keys = [ed25519(spec.countersigner)]
    envelope = folder.sidecar(claimed.opening, "the opening of the round")
    opening = Opening.verify(envelope, keys, stage=STAGE, limit=MAX_OPENING)
    check_digest(opening.digest(), claimed.opening, STAGE, "the opening of the round")
    opening.roster.check(spec)
    envelope = folder.sidecar(claimed.survivors, "the survivor set")
    survivors = Survivors.verify(envelope, keys, stage=STAGE)
    check_digest(survivors.digest(), claimed.survivors, STAGE, "the survivor set")
    if survivors.run_spec != spec.digest() or not survivors.is_of(opening.roster):
        raise VerificationError(
            "the survivor set is of another round", code="survivors-other-roster", stage=STAGE
        )
    if len(survivors.alive) < spec.min_survivors:
        raise VerificationError(
            f"{len(survivors.alive)} survivors, the run needs {spec.min_survivors}",
            code="survivors-too-few",
            stage=STAGE,
        )
    members = opening.roster.members
    _require(survivors.alive[-1] <= len(members), "survivors that the roster does not have")
    alive = {members[place - 1].worker for place in survivors.alive}
    _require(claimed.contributors == len(alive), "contributors are not the survivors")
    _require(alive <= {entry.worker for entry in said.workers}, "a survivor is not among the workers")
    return spec


def _require(fine: bool, text: str) -> None:
    if not fine:
        raise VerificationError(
            f"the statement's aggregation does not hold: {text}", code="aggregation-mismatch", stage=STAGE
        )
