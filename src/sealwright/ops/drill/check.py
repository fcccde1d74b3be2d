"""What has to hold after a fault, read from the log itself: nothing lost, nothing unlogged, nothing twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sealwright.broker.service import Running
from sealwright.crypto.canonical import parse_json
from sealwright.ops.drill import asker
from sealwright.ops.drill.load import TENANT, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The findings of one case: empty when all held; and what was counted."""

    findings: tuple[str, ...]
    granted: int
    refused: int
    failed: int  # connections
    lost: int  # granted writes that are not there
    budget: str  # what was answered of it, what the log and the rows say, and what is allowed


def check(running: Running, outcomes: Sequence[Outcome]) -> Found:
    """Compare what was answered with rows and log."""
    decisions = [
        {name: parse_json(value) for name, value in record.fields.items()}
        for record in running.core.state.ledger.decisions_backwards()
    ]
    present = set(running.admin.callers(TENANT))
    added = _counted(decisions, "admin-caller-add", "caller")
    released = _counted(decisions, "admin-sealing-key", "recipient")
    granted = [one for one in outcomes if one.granted]
    writes = Counter(one.name for one in granted if one.kind in ("write", "race"))
    releases = {one.name for one in granted if one.kind == "release"}
    spent = _spent(running, decisions, sum(1 for one in granted if one.kind == "budget"))
    lost = [name for name in writes if name not in present]
    findings = [
        *[f"lost: {name} was granted and is not there" for name in lost],
        *[f"unlogged: {name} was granted and is not in the log" for name in writes if name not in added],
        *[f"unlogged release to {name}" for name in releases if name not in released],
        *[f"twice: {name} was granted {number} times" for name, number in writes.items() if number > 1],
        *[f"twice in the log: {name}" for name, number in (added + released).items() if number > 1],
        *[f"not in the log: {name} is there" for name in present if name not in added],
        *_beyond(spent),
        *[f"unclear: {one.kind} got {one.status} {one.code}" for one in outcomes if not one.clear],
    ]
    return Found(
        findings=tuple(findings),
        granted=len(granted),
        refused=sum(1 for one in outcomes if not one.granted and one.status),
        failed=sum(1 for one in outcomes if not one.status),
        lost=len(lost),
        budget=f"{spent.answered}/{spent.logged}/{spent.rows}/{asker.RELEASES}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spent:
    """Releases under a budget: answered ≤ logged = in the rows ≤ allowed."""

    answered: int
    logged: int
    rows: int


def _spent(running: Running, decisions: Sequence[Mapping[str, object]], answered: int) -> _Spent:
    granted = ("release", "grant", asker.KID)
    logged = [one for one in decisions if (one.get("action"), one.get("verdict"), one.get("kid")) == granted]
    counts = running.life.budget("key", asker.KID)["spent"]
    number = counts["releases"] if isinstance(counts, dict) else 0
    return _Spent(answered=answered, logged=len(logged), rows=number)


def _beyond(spent: _Spent) -> list[str]:
    """Return what is wrong with a budget."""
    wrong = []
    if max(spent.answered, spent.logged, spent.rows) > asker.RELEASES:
        wrong.append(f"beyond a budget of {asker.RELEASES}: {spent}")
    if spent.answered > spent.logged:
        wrong.append(f"unlogged release under a budget: {spent}")
    if spent.rows != spent.logged:
        wrong.append(f"a budget that is not what the log says: {spent}")
    return wrong


def _counted(decisions: Sequence[Mapping[str, object]], action: str, name: str) -> Counter[str]:
    return Counter(
        str(one[name])
        for one in decisions
        if one.get("action") == action and one.get("verdict") == "grant" and name in one
    )
