"""Which of several replicas writes: an advisory lock to know that one has died, an epoch that fences it off.

The lock only decides how soon another takes over. Safety rests on the epoch alone: each transaction of a writer
reads it. Spec: docs/spec/broker-state.md, Several replicas.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from sqlalchemy import func, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from sealwright.broker.database import Database, upsert
from sealwright.broker.tables import WRITER

BEAT_S = 1.0  # how often a writer shows that it lives
TAKEOVER_S = 8.0  # without a beat, on the watcher's own CLOCK_MONOTONIC, before it is taken for lost
_LOCK_CLASS = 0x5EA1  # of PostgreSQL's advisory locks; the second number is the epoch


class Writer:
    """One replica's part in the election. Used by one thread at a time."""

    def __init__(
        self,
        database: Database,
        *,
        takeover_s: float = TAKEOVER_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: database: unfenced; of this object only."""
        self._database = database
        self._takeover_s, self._monotonic = takeover_s, monotonic
        self._held: Connection | None = None  # its session holds the lock of `epoch`
        self.epoch = 0  # at which this replica writes; 0: it does not
        self._seen: tuple[tuple[int, int], float] | None = None  # (epoch, beat) and since when

    def campaign(self) -> bool:
        """Try once to become the writer: the last one has let go of its lock, or gave no sign for long.

        Raises:
            UnavailableError: `store-unavailable`.
        """
        self.resign()
        with self._database.begin() as db:
            db.execute(upsert(db, WRITER).on_conflict_do_nothing(), [{"one": 1, "epoch": 0, "beat": 0}])
            epoch, beat = db.execute(select(WRITER.c.epoch, WRITER.c.beat)).one()
            free = db.execute(select(func.pg_try_advisory_xact_lock(_LOCK_CLASS, _number(epoch)))).scalar()
        if not free and self._silent_for((epoch, beat)) < self._takeover_s:
            return False
        held = None
        try:
            held = self._session(epoch + 1)
            if held is None or not self._count_up(epoch):
                return False
            self._held, self.epoch, held = held, epoch + 1, None
        finally:
            _drop(held)
        self._seen = None
        return True

    def beat(self) -> bool:
        """Show that this writer lives; say whether it still is the writer.

        Raises:
            UnavailableError: `store-unavailable`: nobody can tell.
        """
        query = update(WRITER).where(WRITER.c.one == 1, WRITER.c.epoch == self.epoch)
        with self._database.begin() as db:
            written = db.execute(query.values(beat=WRITER.c.beat + 1)).rowcount == 1
        if written:
            self._hold_again()
        return written

    def resign(self) -> None:
        """Let another replica take over at once."""
        self.epoch = 0
        if self._held is not None:
            _drop(self._held)
            self._held = None

    def _silent_for(self, sign: tuple[int, int]) -> float:
        now = self._monotonic()
        if self._seen is None or self._seen[0] != sign:
            self._seen = (sign, now)
        return now - self._seen[1]

    def _count_up(self, epoch: int) -> bool:
        query = update(WRITER).where(WRITER.c.one == 1, WRITER.c.epoch == epoch)
        with self._database.begin() as db:
            return db.execute(query.values(epoch=epoch + 1, beat=0)).rowcount == 1

    def _hold_again(self) -> None:
        """Take the lock again where the server restarted: without it, others would take this one for dead."""
        if self._held is not None:
            try:
                with self._database.watched(self._held):
                    self._held.execute(select(1))
                return
            except SQLAlchemyError:
                _drop(self._held)
                self._held = None
        self._held = self._session(self.epoch)

    def _session(self, epoch: int) -> Connection | None:
        """Return a session that holds the lock of `epoch`, or None: another has it, or the database fails."""
        db = None
        try:
            db = self._database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            with self._database.watched(db):
                if db.execute(select(func.pg_try_advisory_lock(_LOCK_CLASS, _number(epoch)))).scalar():
                    return db
        except SQLAlchemyError:
            pass
        _drop(db)
        return None


def _number(epoch: int) -> int:
    return epoch % (1 << 31)


def _drop(held: Connection | None) -> None:
    """End a session, and its locks with it: it must not go back to the pool."""
    if held is not None:
        with contextlib.suppress(SQLAlchemyError):
            held.invalidate()
            held.close()
