"""Answers said against receipts logged. Spec: docs/spec/broker-state.md, Counting answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sealwright.broker.rows import LeaseRow, MismatchRow, RowKey
from sealwright.broker.state import View
from sealwright.protocol.lease import Lease

ANSWERS_GRACE = timedelta(seconds=60)  # receipts are journalled within seconds
LEASE_LINGER = timedelta(minutes=10)  # how long an ended lease is remembered, for late receipts


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """Changes that are due, and the decisions to log with them."""

    changes: Mapping[RowKey, bytes | None]
    mismatches: tuple[Mapping[str, object], ...]


def sweep(view: View, count: Callable[[bytes], int], now: datetime) -> Swept:
    """Check the claims that are due, and forget leases that ended long ago.

    Args:
        count: returns how many receipts naming a lease were logged.
    """
    changes: dict[RowKey, bytes | None] = {}
    mismatches = []
    for row in view.all(LeaseRow, "lease"):
        key = ("lease", row.lease_id.hex())
        gone = now >= row.not_after + LEASE_LINGER
        due = row.claimed is not None and (gone or now >= row.claimed + ANSWERS_GRACE)
        if due and row.answers is not None:
            logged = count(row.lease_id)
            if logged < row.answers:
                mismatch = _mismatch(row, row.answers, logged, now)
                changes["mismatch", row.lease_id.hex()] = mismatch.encode()
                mismatches.append(_decision(mismatch))
            changes[key] = row.model_copy(update={"claimed": None}).encode()
        if gone:
            changes[key] = None
    return Swept(changes=changes, mismatches=tuple(mismatches))


def claim(
    view: View, swept: Mapping[RowKey, bytes | None], lease: Lease, answers: int, now: datetime
) -> dict[RowKey, bytes | None]:
    """Return the change that records what an enclave says of its last lease, if that is still remembered."""
    before = [
        row
        for row in view.all(LeaseRow, "lease")
        if (row.keyset_digest, row.tenant) == (lease.keyset_digest, lease.tenant)
        and row.answers is None
        and swept.get(("lease", row.lease_id.hex()), b"") is not None
    ]
    if not before:
        return {}
    last = max(before, key=lambda row: row.not_before)
    said = last.model_copy(update={"answers": answers, "claimed": now})
    return {("lease", last.lease_id.hex()): said.encode()}


def _mismatch(row: LeaseRow, answers: int, logged: int, now: datetime) -> MismatchRow:
    return MismatchRow(
        lease_id=row.lease_id,
        tenant=row.tenant,
        keyset_digest=row.keyset_digest,
        answers=answers,
        logged=logged,
        found=now,
    )


def _decision(found: MismatchRow) -> dict[str, object]:
    return {
        "action": "count",
        "verdict": "refuse",
        "code": "count-mismatch",
        "stage": "count",
        "reason": [f"{found.answers} answers were given under the lease, {found.logged} receipts are logged"],
        "tenant": found.tenant,
        "lease_id": found.lease_id,
        "keyset_digest": found.keyset_digest,
        "answers": found.answers,
        "logged": found.logged,
    }
