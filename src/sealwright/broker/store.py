"""What a broker's database holds: security rows, at most one pending change, and which receipt named which lease.

Nothing here is trusted. Used under the broker's lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from sqlalchemy import bindparam, delete, func, insert, select
from sqlalchemy.engine import Connection

from sealwright.broker.database import Database, upsert
from sealwright.broker.rows import Changes, RowKey
from sealwright.broker.tables import CONTENTS, HEAD, INDEX, PENDING, PENDING_ROWS, RECEIPTS, ROWS
from sealwright.errors import VerificationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Where the database says it stands."""

    epoch: int
    checkpoint: bytes  # signed note; empty before the first


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A change that was prepared and is not yet known to be logged."""

    epoch: int
    log_size: int  # entries in the log when it was prepared
    entry: bytes
    changes: Changes


class Store:
    """What the broker keeps in one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def rows(self) -> dict[RowKey, bytes]:
        """Return all security rows, unverified."""
        with self._begin() as db:
            rows = {(kind, row_id): body for kind, row_id, body in db.execute(select(ROWS))}
        _check_types(rows)
        return rows

    def head(self) -> Head:
        """Return where the database says it stands; epoch 0 when it is new."""
        with self._begin() as db:
            found = db.execute(select(HEAD.c.epoch, HEAD.c.checkpoint)).first()
        if found is None:
            return Head(epoch=0, checkpoint=b"")
        epoch, checkpoint = found
        if not (isinstance(epoch, int) and isinstance(checkpoint, bytes)):
            raise _wrong_type()
        return Head(epoch=epoch, checkpoint=checkpoint)

    def pending(self) -> Pending | None:
        """Return the change that a crash left behind, if any."""
        with self._begin() as db:
            found = db.execute(select(PENDING)).first()
            changes = {(kind, row_id): body for kind, row_id, body in db.execute(select(PENDING_ROWS))}
        if found is None:
            return None
        if not (isinstance(found.log_size, int) and isinstance(found.entry, bytes)):
            raise _wrong_type()
        _check_types({key: body for key, body in changes.items() if body is not None})
        return Pending(epoch=found.epoch, log_size=found.log_size, entry=found.entry, changes=changes)

    def prepare(self, pending: Pending) -> None:
        """Make a change durable without applying it."""
        rows = [{"kind": kind, "id": rid, "body": body} for (kind, rid), body in pending.changes.items()]
        with self._begin() as db:
            _drop_pending(db)
            db.execute(
                insert(PENDING).values(
                    one=1, epoch=pending.epoch, log_size=pending.log_size, entry=pending.entry
                )
            )
            if rows:
                db.execute(insert(PENDING_ROWS), rows)

    def commit(self, pending: Pending, checkpoint: bytes) -> None:
        """Apply a prepared change, which is logged under `checkpoint`."""
        kept = [
            {"kind": k, "id": i, "body": body} for (k, i), body in pending.changes.items() if body is not None
        ]
        gone = [{"k": k, "i": i} for (k, i), body in pending.changes.items() if body is None]
        with self._begin() as db:
            if kept:
                statement = upsert(db, ROWS)
                db.execute(
                    statement.on_conflict_do_update(
                        index_elements=["kind", "id"], set_={"body": statement.excluded.body}
                    ),
                    kept,
                )
            if gone:
                db.execute(
                    delete(ROWS).where(ROWS.c.kind == bindparam("k"), ROWS.c.id == bindparam("i")), gone
                )
            db.execute(delete(HEAD))
            db.execute(insert(HEAD).values(one=1, epoch=pending.epoch, checkpoint=checkpoint))
            _drop_pending(db)

    def drop_pending(self) -> None:
        """Forget a prepared change that was never logged."""
        with self._begin() as db:
            _drop_pending(db)

    def known_receipts(self, entries: list[bytes]) -> set[bytes]:
        """Return those of `entries` that are remembered already."""
        with self._begin() as db:
            return set(db.execute(select(RECEIPTS.c.entry).where(RECEIPTS.c.entry.in_(entries))).scalars())

    def add_receipts(self, receipts: list[tuple[bytes, bytes]]) -> None:
        """Remember (log entry, lease id) of receipts that were logged."""
        rows = [{"entry": entry, "lease_id": lease_id} for entry, lease_id in receipts]
        if not rows:
            return
        with self._begin() as db:
            db.execute(upsert(db, RECEIPTS).on_conflict_do_nothing(), rows)

    def count_receipts(self, lease_id: bytes) -> int:
        """Return how many receipts named this lease."""
        query = select(func.count()).select_from(RECEIPTS).where(RECEIPTS.c.lease_id == lease_id)
        with self._begin() as db:
            return int(db.execute(query).scalar_one())

    def add_content(self, sha256: bytes, body: bytes) -> None:
        """Keep the ciphertext of a resource."""
        with self._begin() as db:
            db.execute(upsert(db, CONTENTS).on_conflict_do_nothing(), [{"sha256": sha256, "body": body}])

    def content(self, sha256: bytes) -> bytes | None:
        """Return a ciphertext, or None; the caller checks its digest."""
        with self._begin() as db:
            found = db.execute(select(CONTENTS.c.body).where(CONTENTS.c.sha256 == sha256)).scalar()
        return found if isinstance(found, bytes) else None

    def keep_contents(self, kept: set[bytes]) -> None:
        """Forget every ciphertext but those."""
        with self._begin() as db:
            there = set(db.execute(select(CONTENTS.c.sha256)).scalars())
            gone = [{"s": one} for one in there - kept]
            if gone:
                db.execute(delete(CONTENTS).where(CONTENTS.c.sha256 == bindparam("s")), gone)

    def indexed(self) -> int:
        """Return how many of the log's first entries are in the index."""
        with self._begin() as db:
            last = db.execute(select(func.max(INDEX.c.position))).scalar_one()
        return last + 1 if isinstance(last, int) else 0

    def add_index(self, entries: list[tuple[bytes, int]]) -> None:
        """Remember (SHA-256, index) of log entries."""
        rows = [{"entry_sha256": name, "position": position} for name, position in entries]
        if rows:
            with self._begin() as db:
                db.execute(upsert(db, INDEX).on_conflict_do_nothing(), rows)

    def find(self, entry_sha256: bytes) -> int | None:
        """Return where the index says this entry stands; nothing vouches for it."""
        with self._begin() as db:
            found = db.execute(select(INDEX.c.position).where(INDEX.c.entry_sha256 == entry_sha256)).scalar()
        return found if isinstance(found, int) and found >= 0 else None

    def _begin(self) -> AbstractContextManager[Connection]:
        return self._database.begin()


def _check_types(rows: Mapping[RowKey, bytes]) -> None:
    # SQLite columns hold whatever type was written to them.
    for (kind, row_id), body in rows.items():
        if not (isinstance(kind, str) and isinstance(row_id, str) and isinstance(body, bytes)):
            raise _wrong_type()


def _wrong_type() -> VerificationError:
    return VerificationError(
        "the database holds a value of a foreign type", code="row-tampered", stage="state"
    )


def _drop_pending(db: Connection) -> None:
    db.execute(delete(PENDING_ROWS))
    db.execute(delete(PENDING))
