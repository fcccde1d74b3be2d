"""Where a machine stands: by its operator's signed list, matched with what evidence says which machine it is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sealwright.appraisal.limits import Regions
from sealwright.broker.rows import MachinesRow
from sealwright.broker.state import View
from sealwright.crypto.statement import ed25519
from sealwright.errors import AppraisalError, AppraisalFailure, SealwrightError
from sealwright.protocol.machines import MAX_STATEMENT, Machines


def check_region(view: View, regions: Regions, identities: Sequence[str], at: datetime) -> None:
    """Prove that an admitted operator says that the machine stands in an admitted region.

    Args:
        identities: of the machine, as its verified evidence names it; none: no list can name it.

    Raises:
        AppraisalError: `region-not-allowed`.
    """
    for row in view.all(MachinesRow, "machines"):
        said = _signed(row, regions)
        if said is None or said.region not in regions.names or not said.in_force(at):
            continue
        if set(identities) & set(said.machines):
            return
    text = (
        f"no operator that the key's owner admits says that this machine stands in {', '.join(regions.names)}: "
        + (f"its evidence names {', '.join(identities)}" if identities else "its evidence names no machine")
    )
    raise AppraisalError([AppraisalFailure(text, code="region-not-allowed")], stage="region")


def _signed(row: MachinesRow, regions: Regions) -> Machines | None:
    """Return what a list says if one of the admitted operators signed it."""
    try:
        keys = [ed25519(key) for key in regions.operators]
        return Machines.verify(row.envelope, keys, stage="region", limit=MAX_STATEMENT)
    except SealwrightError:
        return None
