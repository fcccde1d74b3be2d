"""The security rows, believed only as far as the log vouches for them; decisions, logged before they are answered.

Spec: docs/spec/broker-state.md, Changing rows and Checking rows.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar

from sealwright.broker.ledger import Ledger, Record, Ticket
from sealwright.broker.rows import Changes, RowKey, Rows, changed, state_root
from sealwright.broker.store import Pending, Store
from sealwright.crypto.canonical import canonical, parse_json
from sealwright.crypto.document import Document
from sealwright.crypto.encoding import hex_decode, rfc3339, rfc3339_decode
from sealwright.errors import FormatError, SealwrightError, UnavailableError, VerificationError

D = TypeVar("D", bound=Document)
Fields = Mapping[str, object]  # JSON values
Parse = Callable[[type[Document], bytes], Document]
CACHED_ROWS = 4096  # parsed rows kept; what is read is still checked against the root each time


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """A change that may be logged and is not yet known to be: `State` finishes it before anything else."""

    pending: Pending
    ticket: Ticket
    anchor: Anchor  # once it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """What the last decision in the log says of the rows."""

    epoch: int
    state_root: bytes
    at: datetime | None  # None: nothing was ever decided


class View:
    """The rows at one moment, proved to be those of the last decision."""

    def __init__(self, rows: Rows, epoch: int, parse: Parse) -> None:
        """Use `State.view`."""
        self.rows = rows
        self.epoch = epoch
        self._parse = parse

    def get(self, cls: type[D], kind: str, row_id: str) -> D | None:
        """Return one row, or None."""
        body = self.rows.get((kind, row_id))
        return None if body is None else self._row(cls, body)

    def all(self, cls: type[D], kind: str, *, prefix: str = "") -> list[D]:
        """Return the rows of a kind whose id begins with `prefix`, in order of their ids."""
        keys = sorted(key for key in self.rows if key[0] == kind and key[1].startswith(prefix))
        return [self._row(cls, self.rows[key]) for key in keys]

    def _row(self, cls: type[D], body: bytes) -> D:
        row = self._parse(cls, body)
        if not isinstance(row, cls):
            raise TypeError("a row of another kind")
        return row


class State:
    """Reads and changes rows. Use it under `lock`, which orders decisions in the log."""

    def __init__(
        self, store: Store, ledger: Ledger, *, clock: Callable[[], datetime], begin: int = 0
    ) -> None:
        """Finish what a crash left, and check the rows against the log.

        Args:
            clock: this machine's time, UTC.
            begin: the epoch of an empty log, where it goes on with the rows of another one.

        Raises:
            VerificationError, CollateralError: docs/spec/broker-state.md, Checking rows.
        """
        self.lock = threading.RLock()
        self.store, self.ledger = store, ledger
        self.observers: list[
            Callable[[Fields], None]
        ] = []  # told of each decision; they must not wait or raise
        self._clock, self._begin = clock, begin
        self._unfinished: Unfinished | None = None
        self._parse: Parse = lru_cache(CACHED_ROWS)(_parse)
        self._anchor = self._recover()

    @property
    def anchor(self) -> Anchor:
        """What the last decision says."""
        return self._anchor

    def now(self) -> datetime:
        """Return the time, to the second and never before the last decision.

        Raises:
            UnavailableError: `clock-back`.
        """
        now, last = self._now(), self._anchor.at
        if last is not None and now < last:
            raise UnavailableError(
                f"the clock says {rfc3339(now)}, and the last decision was at {rfc3339(last)}: mend the clock",
                code="clock-back",
                stage="clock",
            )
        return now

    def view(self) -> View:
        """Return the rows, checked against the last decision.

        Raises:
            VerificationError: `state-rolled-back`, `row-tampered`.
        """
        self._require_certain()
        rows = self.store.rows()
        self._check(rows)
        return View(rows, self._anchor.epoch, self._parse)

    def decide(self, fields: Fields) -> Ticket:
        """Record a decision that changes no row. Answer only after `ledger.settle` of the ticket."""
        self._require_certain()
        at = self._not_before_last()
        entry = self._entry(fields, self._anchor.epoch, self._anchor.state_root, at)
        self._anchor = Anchor(epoch=self._anchor.epoch, state_root=self._anchor.state_root, at=at)
        ticket = self.ledger.submit(entry)
        self._tell(fields, at)
        return ticket

    def change(self, view: View, changes: Changes, fields: Fields) -> None:
        """Record a decision and change rows with it: prepared, logged, committed.

        Args:
            view: the rows that the decision was made on, of this hold of the lock.

        Raises:
            SealwrightError: whether it was logged may be unknown; then the broker has to be started again.
        """
        now = self.now()
        epoch = view.epoch + 1
        root = state_root(changed(view.rows, changes))
        entry = self._entry(fields, epoch, root, now)
        pending = Pending(epoch=epoch, log_size=self.ledger.size, entry=entry, changes=changes)
        self.store.prepare(pending)
        ticket = self.ledger.submit(entry)
        self._unfinished = Unfinished(
            pending=pending, ticket=ticket, anchor=Anchor(epoch=epoch, state_root=root, at=now)
        )
        self._finish(self._unfinished)
        self._tell(fields, now)

    def _tell(self, fields: Fields, at: datetime) -> None:
        for observer in self.observers:
            observer({**fields, "at": rfc3339(at)})

    def _finish(self, unfinished: Unfinished) -> None:
        """Settle and apply a change; what of that was done before does no harm."""
        self.ledger.settle(unfinished.ticket)
        self.store.commit(unfinished.pending, self.ledger.checkpoint)
        self._unfinished, self._anchor = None, unfinished.anchor

    def _require_certain(self) -> None:
        """Finish the change that was interrupted: the log, a holder or the database failed under it."""
        if self._unfinished is None:
            return
        try:
            self._finish(self._unfinished)
        except SealwrightError as exc:
            raise UnavailableError(
                f"a change may or may not have been logged ({exc.code}): when that is mended it is finished by "
                "itself, and at the latest when the broker is restarted, which asks the log",
                code="state-uncertain",
                stage="state",
            ) from exc

    def _entry(self, fields: Fields, epoch: int, root: bytes, at: datetime) -> bytes:
        said = {**fields, "at": rfc3339(at), "epoch": epoch, "state_root": root.hex()}
        return self.ledger.commit_to("decision", {name: canonical(value) for name, value in said.items()})

    def _now(self) -> datetime:
        return self._clock().replace(microsecond=0)

    def _not_before_last(self) -> datetime:
        """Return the time, or that of the last decision where the clock is behind it or contradicted.

        Only refusals are dated so: whoever grants has asked `now` before.
        """
        last = self._anchor.at
        try:
            now = self._now()
        except UnavailableError:
            if last is None:
                raise
            return last
        return now if last is None else max(now, last)

    def _recover(self) -> Anchor:
        pending = self.store.pending()
        if pending is not None:
            entries = self.ledger.entries_backwards(stop=max(pending.log_size, 0))
            if any(entry == pending.entry for _, entry in entries):
                self.store.commit(pending, self.ledger.checkpoint)
            else:
                self.store.drop_pending()
        anchor = self._anchored()
        self._anchor = anchor
        self._check(self.store.rows())
        return anchor

    def _anchored(self) -> Anchor:
        for record in self.ledger.decisions_backwards():
            return anchor_of(record)
        return Anchor(epoch=self._begin, state_root=state_root({}), at=None)

    def _check(self, rows: Mapping[RowKey, bytes]) -> None:
        if hmac.compare_digest(state_root(rows), self._anchor.state_root):
            return
        epoch = self.store.head().epoch
        if epoch != self._anchor.epoch:
            raise VerificationError(
                f"the database stands at epoch {epoch}, the log at {self._anchor.epoch}: "
                "one of them was restored from an earlier time",
                code="state-rolled-back",
                stage="state",
            )
        raise VerificationError(
            f"the rows are not those that were logged at epoch {epoch}: a row was altered, added or removed",
            code="row-tampered",
            stage="state",
        )


def _parse(cls: type[Document], body: bytes) -> Document:
    try:
        return cls.parse(body)
    except FormatError as exc:
        raise VerificationError(str(exc), code="row-malformed", stage="state") from exc


def anchor_of(record: Record) -> Anchor:
    """Return what a decision says of the rows. Raises VerificationError: `opening-mismatch`."""
    try:
        values: dict[str, Any] = {
            name: parse_json(record.fields[name]) for name in ("at", "epoch", "state_root")
        }
        at, root = rfc3339_decode(values["at"]), hex_decode(values["state_root"], length=32)
        return Anchor(epoch=int(values["epoch"]), state_root=root, at=at)
    except (KeyError, TypeError, SealwrightError) as exc:
        raise VerificationError(
            f"the decision at log entry {record.index} does not say how the rows stood",
            code="opening-mismatch",
            stage="openings",
        ) from exc
