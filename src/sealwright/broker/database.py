"""Connections to a broker's database: a SQLite file, or PostgreSQL for several replicas.

SQLite: one connection in WAL with synchronous=FULL. PostgreSQL: every transaction first proves that this replica is
still the one that writes. Spec: docs/spec/broker-state.md, Several replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import Table, create_engine, event, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from sealwright.broker.files import read_secret
from sealwright.broker.tables import META, WRITER
from sealwright.broker.watchdog import Watchdog
from sealwright.errors import SettingsError, UnavailableError, VerificationError

SCHEMA = 2  # version of the tables; 1 had no `PRAGMA user_version`
REVISION = "0002"  # the same, as Alembic names it
STATEMENT_S = 8  # a statement, and a wait for a lock, on the server
STALL_S = 12.0  # a whole transaction, before its connection is cut from our side
_DRIVER = "postgresql+psycopg"
_SETTINGS: dict[str, object] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "options": f"-c statement_timeout={STATEMENT_S}s -c lock_timeout={STATEMENT_S}s "
    "-c idle_in_transaction_session_timeout=5s -c synchronous_commit=on",
}


class Database:
    """Transactions on one database."""

    def __init__(self, engine: Engine, *, fence: Callable[[Connection], None] = lambda _: None) -> None:
        """Args: fence: raises where another replica writes; called first in each transaction."""
        self.engine = engine
        self._fence = fence
        self._watchdog = Watchdog(STALL_S) if engine.dialect.name == "postgresql" else None

    def close(self) -> None:
        """Close its connections."""
        if self._watchdog is not None:
            self._watchdog.close()
        self.engine.dispose()

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Open a transaction, which is committed at the end.

        Raises:
            UnavailableError: `store-unavailable`, `writer-fenced`.
        """
        # SQLAlchemy's own text quotes the statement's values: only the kind of error is passed on.
        try:
            with self.engine.begin() as db, self.watched(db):
                self._fence(db)
                yield db
        except SQLAlchemyError as exc:
            raise unavailable(exc) from None

    def watched(self, db: Connection) -> AbstractContextManager[None]:
        """Cut the connection where what is done inside takes longer than `STALL_S`."""
        return nullcontext() if self._watchdog is None else self._watchdog.over(_descriptor(db))


def upsert(db: Connection, table: Table) -> Any:
    """Return an INSERT of the database's dialect, which knows ON CONFLICT."""
    return sqlite.insert(table) if db.dialect.name == "sqlite" else postgresql.insert(table)


def open_sqlite(path: Path) -> Database:
    """Open, or make, the database file at `path`.

    Raises:
        UnavailableError: `store-unavailable`. VerificationError: `schema-newer`.
    """
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=StaticPool,
        connect_args={"check_same_thread": False},
    )
    event.listen(engine, "connect", _pragmas)
    database = Database(engine)
    with database.begin() as db:
        found = int(db.execute(text("PRAGMA user_version")).scalar_one())
        if found > SCHEMA:
            raise schema_newer(str(found))
        META.create_all(db)  # up to now every version only added tables
        if found != SCHEMA:
            db.execute(text(f"PRAGMA user_version = {SCHEMA}"))
    return database


def postgres_engine(url: URL, *, size: int = 4) -> Engine:
    """Return an engine for PostgreSQL. Raises SettingsError: `extra-missing`."""
    try:
        return create_engine(
            url, pool_size=size, max_overflow=size, pool_timeout=STATEMENT_S, connect_args=_SETTINGS
        )
    except ModuleNotFoundError as exc:
        raise SettingsError(
            "PostgreSQL needs an extra: pip install 'sealwright[postgres]'", code="extra-missing"
        ) from exc


def read_url(file: Path) -> URL:
    """Return the address of a database from a file: it may hold a password.

    Raises:
        SettingsError: `malformed-database`, `broker-file-missing`, `broker-files-exposed`.
    """
    try:
        url = make_url(read_secret(file).decode().strip())
    except (ArgumentError, UnicodeDecodeError):
        url = None
    if url is None or url.drivername not in ("postgresql", _DRIVER) or not url.database:
        raise SettingsError(
            f"{file} holds no postgresql://USER@HOST/DATABASE address", code="malformed-database"
        )
    return url.set(drivername=_DRIVER)


def fence_at(epoch: int) -> Callable[[Connection], None]:
    """Return a check that replica number `epoch` still writes; it stays true until the transaction ends."""

    def check(db: Connection) -> None:
        found = db.execute(
            select(WRITER.c.epoch).where(WRITER.c.one == 1).with_for_update(read=True)
        ).scalar()
        if found != epoch:
            raise UnavailableError(
                f"this replica wrote at epoch {epoch}, and now one writes at epoch {found}",
                code="writer-fenced",
                stage="writer",
            )

    return check


def check_schema(db: Connection) -> None:
    """Prove that a PostgreSQL database has the tables of this version, and keeps what it commits.

    Raises:
        UnavailableError: `schema-older`, `store-not-durable`. VerificationError: `schema-newer`.
    """
    there = db.execute(text("SELECT to_regclass('alembic_version')")).scalar()
    found = there and db.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if not found or str(found) < REVISION:
        raise UnavailableError(
            f"the database's tables are of version {found or 'none'}, not {REVISION}: sealwright broker migrate",
            code="schema-older",
            stage="store",
        )
    if str(found) > REVISION:
        raise schema_newer(str(found))
    for setting in ("fsync", "full_page_writes"):
        if db.execute(text(f"SHOW {setting}")).scalar() != "on":
            raise UnavailableError(
                f"the database server runs with {setting} off: what it commits may be lost",
                code="store-not-durable",
                stage="store",
            )


def schema_newer(found: str) -> VerificationError:
    """Return the refusal of tables that a newer version made."""
    return VerificationError(
        f"the database's tables are of version {found}, and this is older: use the version that made them",
        code="schema-newer",
        stage="store",
    )


def unavailable(exc: SQLAlchemyError) -> UnavailableError:
    """Return what to raise for an error of the database, without its values."""
    cause = type(getattr(exc, "orig", None) or exc).__name__
    return UnavailableError(
        f"the broker's database cannot be used ({cause})", code="store-unavailable", stage="store"
    )


def _descriptor(db: Connection) -> int:
    return int(db.connection.driver_connection.fileno())  # type: ignore[union-attr]


def _pragmas(connection: object, _record: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "trusted_schema=OFF", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
