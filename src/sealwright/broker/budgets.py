"""May this key be used so, now? And what is then spent, in the same change of rows. Spec: docs/spec/life-cycle.md.

No I/O: what it returns becomes durable with the release's decision, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sealwright.appraisal.limits import Limits
from sealwright.broker.locations import check_region
from sealwright.broker.rows import BudgetRow, Changes, KeyRow, RowKey, Scope, Span, SpentRow
from sealwright.broker.state import View
from sealwright.errors import AppraisalError, AppraisalFailure
from sealwright.protocol.use import Use

STAGE = "budget"
MAX_SPANS = 1024  # of epochs, in one row
NO_USE = Use()


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What a release changes, and what its decision says of it."""

    changes: Changes
    spent: dict[str, object]  # releases, rows and epochs after it, by budget; empty: none counts


def limits_of(view: View, key: KeyRow) -> list[Limits]:
    """Return every set of limits that a release of `key` has to keep."""
    return [limits for _, _, limits in _budgets(view, key)]


def check_hours(limits: Sequence[Limits], at: datetime) -> datetime | None:
    """Return when the first of the hours that `at` is in end (UTC); None: no hours are set.

    Raises:
        AppraisalError: `outside-hours`. CollateralError: `zone-unknown`.
    """
    ends = []
    for hours in [one.hours for one in limits if one.hours is not None]:
        end = hours.window_end(at)
        if end is None:
            days = "" if hours.days is None else f" on {', '.join(hours.days)}"
            text = f"keys are released from {hours.start} to {hours.end}{days}, in {hours.zone}"
            raise _refused(text, "outside-hours")
        ends.append(end)
    return min(ends, default=None)


def charge(view: View, key: KeyRow, use: Use | None, identities: Sequence[str], at: datetime) -> Charge:
    """Return what one more release of `key` spends, allowed by every limit.

    Args:
        use: as the asker named it; None: it did not.
        identities: of the machine, as its evidence names it.

    Raises:
        AppraisalError: `budget-exhausted`, `use-missing`, `purpose-not-allowed`, `run-not-allowed`, `outside-hours`,
            `region-not-allowed`.
    """
    budgets = list(_budgets(view, key))
    check_hours([limits for _, _, limits in budgets], at)
    named = use or NO_USE
    after: dict[RowKey, SpentRow] = {}
    for scope, name, limits in budgets:
        _check_named(limits, named)
        if limits.regions is not None:
            check_region(view, limits.regions, identities, at)
        if limits.counts:
            row_key = ("spent", f"{scope}/{name}")
            spent = after.get(row_key) or _spent(view, scope, name, named)
            _check_within(spent, limits, f"{scope} {name}")
            after[row_key] = spent
    return Charge(
        changes={row_key: row.encode() for row_key, row in after.items()},
        spent={f"{row.scope}/{row.name}": counts(row) for row in after.values()},
    )


def counts(row: SpentRow) -> dict[str, int]:
    """Return what was spent, as numbers."""
    epochs = sum(span.last - span.first + 1 for span in row.epochs)
    return {"releases": row.releases, "rows": row.rows, "epochs": epochs}


def add_epoch(spans: Sequence[Span], run: str, epoch: int) -> list[Span]:
    """Return the spans with one more epoch of a run: disjoint, in order, none touching the next of its run."""
    first = last = epoch
    kept = []
    for span in spans:
        if span.run == run and span.first <= last + 1 and first <= span.last + 1:
            first, last = min(first, span.first), max(last, span.last)
        else:
            kept.append(span)
    return sorted([*kept, Span(run=run, first=first, last=last)], key=lambda span: (span.run, span.first))


def _budgets(view: View, key: KeyRow) -> Iterator[tuple[Scope, str, Limits]]:
    if key.policy.limits is not None:
        yield "key", key.kid, key.policy.limits
    scopes: tuple[tuple[Scope, str], ...] = (("key", key.kid), ("tenant", key.tenant))
    for scope, name in scopes:
        row = view.get(BudgetRow, "budget", f"{scope}/{name}")
        if row is not None:
            yield scope, name, row.limits


def _spent(view: View, scope: Scope, name: str, use: Use) -> SpentRow:
    """Return the row after one more release."""
    before = view.get(SpentRow, "spent", f"{scope}/{name}") or SpentRow(scope=scope, name=name, epochs=[])
    epochs = before.epochs
    if use.epoch is not None:
        epochs = add_epoch(before.epochs, use.run or "", use.epoch)
    added = {"releases": before.releases + 1, "rows": before.rows + (use.rows or 0), "epochs": epochs}
    return before.model_copy(update=added)


def _check_named(limits: Limits, use: Use) -> None:
    needed = {
        "epoch": limits.epochs is not None,
        "run": limits.epochs is not None or limits.runs is not None,
        "rows": limits.rows is not None,
        "purpose": limits.purposes is not None,
    }
    missing = [name for name, wanted in needed.items() if wanted and getattr(use, name) is None]
    if missing:
        raise _refused(f"a release of this key names its {', '.join(missing)}", "use-missing")
    if limits.purposes is not None and use.purpose not in limits.purposes:
        raise _refused("the key is not for that purpose", "purpose-not-allowed")
    if limits.runs is not None and use.run not in limits.runs:
        raise _refused("the key is not for that run", "run-not-allowed")


def _check_within(spent: SpentRow, limits: Limits, whose: str) -> None:
    if len(spent.epochs) > MAX_SPANS:
        raise _refused(f"{whose}: epochs in more than {MAX_SPANS} pieces", "budget-exhausted")
    for name, number in counts(spent).items():
        allowed = getattr(limits, name)
        if allowed is not None and number > allowed:
            text = f"{whose} may have {allowed} {name}, and this would be {number}"
            raise _refused(text, "budget-exhausted")


def _refused(text: str, code: str) -> AppraisalError:
    return AppraisalError([AppraisalFailure(text, code=code)], stage=STAGE)
