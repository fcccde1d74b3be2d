"""Usage statements, counted from the log's decisions and the receipts logged under leases. Spec: docs/spec/life-cycle.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sealwright.broker.core import Core, present
from sealwright.broker.erasure import erased_commitments
from sealwright.broker.ledger import Record
from sealwright.crypto.canonical import parse_json
from sealwright.crypto.document import validated
from sealwright.crypto.encoding import hex_decode, rfc3339_decode
from sealwright.protocol.commitment import Leaf, field_leaf
from sealwright.protocol.usage import LONGEST_LEASE, SHOWN, Tally, UsageItem, UsageStatement, month_of

PAGE = 200  # items of one answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """One decision that counts."""

    record: Record
    said: Mapping[str, Any]
    answers: int


class Usage:
    """Counts. May be called from several threads: it reads the log, outside the state's lock."""

    def __init__(self, core: Core) -> None:
        self._core, self._state = core, core.state

    def statement(self, tenant: str, month: str, kid: str | None) -> bytes:
        """Return the signed statement (DSSE) of a tenant's month so far; that it was made is a logged decision."""
        month_of(month)
        size = self._state.ledger.size
        tally = Tally(tenant, kid, month)
        for found in self._counted(tally, size):
            tally.add(found.record.index, found.record.commitment, found.said, found.answers)
        fields = {"tenant": tenant, "month": month, "made": self._state.now()}
        fields |= {
            name: getattr(tally, name) for name in ("releases", "rows", "leases", "lease_seconds", "answers")
        }
        fields |= {"log_key": self._core.secrets.log_key, "log_size": size, "counted": tally.counted}
        statement = validated(UsageStatement, fields | ({} if kid is None else {"kid": kid}))
        said = {"action": "admin-usage", "verdict": "grant", "tenant": tenant, "month": month, "kid": kid}
        with self._state.lock:
            ticket = self._state.decide(present(said | {"statement": statement.digest()}))
        self._state.ledger.settle(ticket)
        return statement.sign(self._core.secrets.release)

    def items(self, tenant: str, month: str, kid: str | None, before: int) -> list[tuple[int, UsageItem]]:
        """Return what a statement counted, newest first, (index, item); at most `PAGE`, of lower indices than `before`."""
        found = []
        for one in self._counted(Tally(tenant, kid, month), before):
            found.append((one.record.index, self._item(one)))
            if len(found) == PAGE:
                break
        return found

    def _counted(self, tally: Tally, before: int) -> Iterator[Counted]:
        start, _ = month_of(tally.month)
        with self._state.lock:
            erased = erased_commitments(self._state.view())
        for record in self._state.ledger.decisions_backwards(before=before, erased=erased):
            said = {name: parse_json(record.fields[name]) for name in SHOWN if name in record.fields}
            if _at(record) < start - LONGEST_LEASE:
                return
            if tally.concerns(said):
                yield Counted(record=record, said=said, answers=self._answers(said))

    def _answers(self, said: Mapping[str, Any]) -> int:
        if said["action"] != "lease":
            return 0
        return self._state.store.count_receipts(hex_decode(str(said["lease_id"]), length=16))

    def _item(self, found: Counted) -> UsageItem:
        openings = found.record.openings
        leaves = [
            Leaf(name=name, leaf=field_leaf(openings.record_id, name, openings.fields[name]))
            for name in sorted(openings.fields)
        ]
        return UsageItem(
            record_id=openings.record_id,
            leaves=leaves,
            fields={name: opening for name, opening in openings.fields.items() if name in SHOWN},
            answers=found.answers,
            proof=self._state.ledger.prove(found.record.index).encode().decode(),
        )


def _at(record: Record) -> datetime:
    return rfc3339_decode(str(parse_json(record.fields["at"])))
