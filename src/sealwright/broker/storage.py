"""What a broker keeps and where: in its folder, or in a database that several replicas share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sealwright.broker.database import (
    Database,
    check_schema,
    fence_at,
    open_sqlite,
    postgres_engine,
    read_url,
)
from sealwright.broker.openings import OpeningFiles, OpeningStore, SealedOpenings
from sealwright.broker.sealed import Sealer
from sealwright.broker.session_store import SessionStore
from sealwright.broker.sessions import Keeper
from sealwright.broker.settings import BrokerSecrets, Layout
from sealwright.broker.sqllog import SqlLog
from sealwright.broker.store import Store
from sealwright.broker.writer import Writer
from sealwright.errors import UnavailableError
from sealwright.tlog.posix import PosixLog, directory_fetch
from sealwright.tlog.tiles import Fetch
from sealwright.tlog.writer import LogWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Rows, log, openings and sessions."""

    store: Store
    log: LogWriter
    fetch: Fetch  # the log's files
    openings: OpeningStore
    sessions: Keeper | None  # None: they end with the process


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A PostgreSQL database, and the epoch at which this replica writes to it."""

    url_file: Path
    epoch: int


@contextmanager
def open_storage(
    layout: Layout,
    secrets: BrokerSecrets,
    shared: Shared | None,
    *,
    random: Callable[[int], bytes],
    create: bool,
) -> Iterator[Storage]:
    """Open what a broker keeps. Args: shared: None: in its folder; create: an empty log is started.

    Raises:
        UnavailableError, VerificationError: docs/spec/broker-state.md.
    """
    if shared is None:
        with _in_folder(layout, secrets, create=create) as storage:
            yield storage
        return
    database = open_postgres(shared)
    try:
        log = SqlLog.open(database, secrets.log, create=create)
        sealer = Sealer(secrets.log.key, random)
        with LogWriter(log) as writer:
            yield Storage(
                store=Store(database),
                log=writer,
                fetch=log.fetch,
                openings=SealedOpenings(database, sealer),
                sessions=SessionStore(database, sealer),
            )
    finally:
        database.close()


def open_postgres(shared: Shared) -> Database:
    """Open a database as the replica of an epoch. Raises SealwrightError."""
    return _checked(Database(postgres_engine(read_url(shared.url_file)), fence=fence_at(shared.epoch)))


def open_reader(url_file: Path) -> Database:
    """Open a database that is only read. Raises SealwrightError."""
    return _checked(Database(postgres_engine(read_url(url_file), size=1)))


def _checked(database: Database) -> Database:
    try:
        with database.begin() as db:
            check_schema(db)
    except BaseException:
        database.close()
        raise
    return database


@contextmanager
def claimed(url_file: Path | None) -> Iterator[Shared | None]:
    """Become the writer of a shared database for one command; None stays None.

    Raises:
        UnavailableError: `not-the-writer`: a replica writes; stop all of them first.
    """
    if url_file is None:
        yield None
        return
    database = Database(postgres_engine(read_url(url_file), size=2))
    try:
        with database.begin() as db:
            check_schema(db)
        writer = Writer(database)
        if not writer.campaign():
            raise UnavailableError(
                "a replica writes to this database: stop them all first",
                code="not-the-writer",
                stage="writer",
            )
        try:
            yield Shared(url_file=url_file, epoch=writer.epoch)
        finally:
            writer.resign()
    finally:
        database.close()


@contextmanager
def _in_folder(layout: Layout, secrets: BrokerSecrets, *, create: bool) -> Iterator[Storage]:
    with LogWriter(PosixLog.open(layout.log, secrets.log, create=create)) as log:
        database = open_sqlite(layout.database)
        try:
            yield Storage(
                store=Store(database),
                log=log,
                fetch=directory_fetch(layout.log),
                openings=OpeningFiles(layout.openings),
                sessions=None,
            )
        finally:
            database.close()
