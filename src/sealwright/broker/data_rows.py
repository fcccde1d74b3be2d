"""Security rows of training: owners' policies, what runs have spent, and how far lineages are."""

from __future__ import annotations

from sealwright.broker.rows import RowKey
from sealwright.broker.state import View
from sealwright.crypto.document import Count, Digest, Document, Id16, Name, Time
from sealwright.protocol.training_data import Budget, DataPolicy, DataRequest, not_allowed, spend


class DataPolicyRow(Document):
    """An owner's policy in force for one data set and run."""

    policy: DataPolicy

    @property
    def row_key(self) -> RowKey:
        """Where it stands."""
        said = self.policy
        return "data-policy", f"{said.tenant}/{said.dataset}/{said.run.hex()}"


class DataBudgetRow(Document):
    """What one run has read of one shard. It outlives the policy: a new version raises the budget, and resets nothing."""

    kid: Name
    run: Digest
    epoch: Count  # the highest that was granted
    spent: Budget
    last: Digest  # the request that was granted last: asked again, it spends nothing
    granted: Time

    @property
    def row_key(self) -> RowKey:
        """Where it stands."""
        return budget_key(self.kid, self.run)


class LineageRow(Document):
    """The newest checkpoint of a lineage."""

    lineage: Id16
    version: Count
    statement: Digest
    plan: Digest
    measurement: Digest  # of who signed it: whoever goes on is the same build

    @property
    def row_key(self) -> RowKey:
        """Where it stands."""
        return "lineage", self.lineage.hex()


def budget_key(kid: str, run: bytes) -> RowKey:
    """Return where the budget of a run and shard stands."""
    return "data-budget", f"{kid}/{run.hex()}"


def policies_of(view: View, kid: str) -> list[DataPolicy]:
    """Return the data policies that name a key, whatever their run."""
    rows = view.all(DataPolicyRow, "data-policy")
    return [row.policy for row in rows if any(shard.kid == kid for shard in row.policy.shards)]


def spent_with(view: View, policy: DataPolicy, request: DataRequest, now: Time) -> DataBudgetRow:
    """Return the budget row after a request. The one place that decides what a run may still read.

    The request granted last, asked again, gets the row as it stands.

    Raises:
        AppraisalError: `epoch-spent`, `epochs-over-budget`, `rows-over-budget`; stage `budget`.
    """
    before = view.get(DataBudgetRow, *budget_key(request.kid, request.run))
    if before is not None and before.last == request.digest():
        return before
    if before is not None and request.epoch <= before.epoch:
        text = f"epoch {request.epoch} of {request.kid} was granted before, or a later one was"
        raise not_allowed(text, "epoch-spent", "budget")
    spent = (0, 0) if before is None else (before.spent.epochs, before.spent.rows)
    return DataBudgetRow(
        kid=request.kid,
        run=request.run,
        epoch=request.epoch,
        spent=spend(policy.budget, spent, request.rows),
        last=request.digest(),
        granted=now,
    )
