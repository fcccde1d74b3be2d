"""PostgreSQL in the place of a folder: the same rows, log, openings and sessions; in a hostile operator's hands."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.broker.support import Enclave, Kbs, World

from sealwright.broker.backup import back_up
from sealwright.broker.database import Database, open_sqlite, postgres_engine, read_url
from sealwright.broker.restore import open_source, restore_exactly
from sealwright.broker.service import Running, init_broker
from sealwright.broker.settings import Layout
from sealwright.broker.storage import claimed
from sealwright.broker.tables import META
from sealwright.broker.watchdog import Watchdog
from sealwright.broker.writer import Writer
from sealwright.errors import SealwrightError, SettingsError, UnavailableError, VerificationError
from sealwright.ops.drill.postgres import Server
from sealwright.ops.drill.road import Road

# About 20 s, most of it for starting the server and making databases.
pytestmark = pytest.mark.slow


class Shared(World):
    """A broker whose state is in PostgreSQL."""

    database: Path

    @classmethod
    def make(cls, folder: Path, database: Path) -> Shared:
        world = cls.__new__(cls)
        model = World(folder / "model")
        world.root, world.clock, world.owner = folder / "broker", model.clock, model.owner
        world.platform, world.holder, world.database = model.platform, folder / "held", database
        with claimed(database) as shared:
            made = init_broker(world.root, holder=world.holder, clock=world.clock, shared=shared)
        world.broker_root, world.log_key = made.root_public, made.log_key
        return world

    @contextmanager
    def open(self, **options: Any) -> Iterator[Running]:
        with claimed(self.database) as shared, super().open(shared=shared, **options) as running:
            yield running


@pytest.fixture
def world(tmp_path: Path, database: Path) -> Shared:
    return Shared.make(tmp_path, database)


def refused(world: World, **options: Any) -> str:
    with pytest.raises(SealwrightError) as caught, world.open(**options):
        pass
    return caught.value.code


def test_the_tables_that_migrations_make_are_those_of_the_code(server: Server, database: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = postgres_engine(read_url(database))
    with engine.connect() as db:
        assert compare_metadata(MigrationContext.configure(db), META) == []
    engine.dispose()


def test_tables_of_another_version_are_refused(server: Server, world: Shared) -> None:
    server.sql("UPDATE alembic_version SET version_num='0001'")
    assert refused(world) == "schema-older"
    server.sql("UPDATE alembic_version SET version_num='0003'")
    assert refused(world) == "schema-newer"
    server.sql("DROP TABLE alembic_version")
    assert refused(world) == "schema-older"


def test_migrating_twice_changes_nothing_and_a_newer_database_is_left_alone(
    server: Server, database: Path
) -> None:
    from sealwright.broker.migrations import migrate

    assert migrate(read_url(database)) == ("0002", "0002")
    server.sql("UPDATE alembic_version SET version_num='0003'")
    with pytest.raises(VerificationError) as caught:
        migrate(read_url(database))
    assert caught.value.code == "schema-newer"


def test_a_database_of_the_first_version_is_brought_up(server: Server, tmp_path: Path) -> None:
    from alembic import command
    from alembic.config import Config

    from sealwright.broker import migrations

    server.sql("DROP DATABASE IF EXISTS old WITH (FORCE)", database="postgres")
    server.sql("CREATE DATABASE old", database="postgres")
    file = tmp_path / "old"
    file.write_text(server.url().replace("/broker?", "/old?"))
    file.chmod(0o600)
    engine = postgres_engine(read_url(file))
    with engine.begin() as db:
        config = Config(attributes={"connection": db})
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        config.set_main_option("path_separator", "os")
        command.upgrade(config, "0001")
    engine.dispose()
    assert migrations.migrate(read_url(file)) == ("0001", "0002")


def test_a_server_that_may_lose_what_it_commits_is_refused(server: Server, world: Shared) -> None:
    server.sql("ALTER SYSTEM SET fsync TO off")
    server.sql("SELECT pg_reload_conf()")
    try:
        assert refused(world) == "store-not-durable"
    finally:
        server.sql("ALTER SYSTEM RESET fsync")
        server.sql("SELECT pg_reload_conf()")


def test_a_shared_database_wants_a_holder(world: Shared) -> None:
    assert refused(world, holder=None) == "holder-required"


@pytest.mark.parametrize(
    "text", ["", "sqlite:///x", "postgresql://", "postgresql://h/", "mysql://h/d", "\xff"]
)
def test_what_is_no_address_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "database"
    file.write_bytes(text.encode("latin-1"))
    file.chmod(0o600)
    with pytest.raises(SettingsError) as caught:
        read_url(file)
    assert caught.value.code == "malformed-database"
    file.chmod(0o644)
    with pytest.raises(SettingsError) as caught:
        read_url(file)
    assert caught.value.code == "broker-files-exposed"


async def test_an_enclave_gets_its_key_from_a_broker_on_postgresql(world: Shared) -> None:
    with world.open() as running:
        dek = world.add_key(running)
        kbs = Kbs(running)
        enclave = Enclave.make(world, running)
        assert await kbs.released(enclave, await kbs.leased(enclave)) == dek


async def test_another_replica_goes_on_with_an_attested_session(world: Shared) -> None:
    with world.open() as running:
        world.add_key(running)
        kbs = Kbs(running)
        enclave = Enclave.make(world, running)
        got = await kbs.leased(enclave)
        key = await kbs.released(enclave, got)
        before = len(running.admin.decisions(200))
        cookies, nonce = kbs.http.cookies, kbs.nonce
    with world.open() as running:
        other = Kbs(running)
        other.http.cookies, other.nonce = cookies, nonce
        lease = await other.lease()
        assert lease.status_code == 200  # the same one
        assert (await other.resource()).status_code == 200
        assert await other.released(enclave, got) == key
        # Asked again on the same grounds: the same answer, and nothing to log.
        assert len(running.admin.decisions(200)) == before


async def test_a_session_that_was_not_attested_begins_again(world: Shared) -> None:
    with world.open() as running:
        world.add_key(running)
        enclave = Enclave.make(world, running)
        kbs = Kbs(running)
        nonce = await kbs.auth()
        cookies = kbs.http.cookies
    with world.open() as running:
        other = Kbs(running)
        other.http.cookies = cookies
        answer = await other.http.post("/kbs/v0/attest", json=enclave.attest_body(nonce))
        assert (answer.status_code, answer.json()["code"]) == (401, "session-unknown")


@pytest.mark.parametrize(
    "tamper",
    [
        "UPDATE sessions SET body = body || '\\x00'",
        "UPDATE sessions SET name = decode(repeat('00', 32), 'hex')",
        "UPDATE sessions SET body = ''",
        "DELETE FROM sessions",
    ],
)
async def test_a_session_that_was_tampered_with_is_none(tamper: str, server: Server, world: Shared) -> None:
    with world.open() as running:
        world.add_key(running)
        kbs = Kbs(running)
        await kbs.leased(Enclave.make(world, running))
        cookies = kbs.http.cookies
    server.sql(tamper)
    with world.open() as running:
        other = Kbs(running)
        other.http.cookies = cookies
        answer = await other.resource()
        assert (answer.status_code, answer.json()["code"]) == (401, "session-unknown")


async def test_whoever_reads_the_database_learns_no_opening_no_session_no_key(
    server: Server, world: Shared
) -> None:
    with world.open() as running:
        dek = world.add_key(running)
        kbs = Kbs(running)
        enclave = Enclave.make(world, running)
        await kbs.released(enclave, await kbs.leased(enclave))
        (session,) = [cookie.value for cookie in kbs.http.cookies.jar]
        salt = next(iter(running.admin.decisions(1, openings=True)))["openings"]
    assert int(server.sql("SELECT count(*) FROM sessions")) == 1
    everything = "".join(
        server.sql(f"SELECT encode(body::bytea, 'escape'), encode(body::bytea, 'hex') FROM {table}")
        for table in ("openings", "sessions")
    )
    assert salt
    for secret in (str(session), dek.hex(), "admin-key-create", "evidence", "verdict", "record_id"):
        assert secret not in everything


def older_row(server: Server, world: Shared) -> None:
    old = server.sql("SELECT encode(body, 'hex') FROM security_rows WHERE id='k1'")
    with world.open() as running:
        running.admin.revoke_key("k1")
    server.sql(f"UPDATE security_rows SET body=decode('{old}', 'hex') WHERE id='k1'")


def removed_row(server: Server, _: Shared) -> None:
    server.sql("DELETE FROM security_rows WHERE id='k1'")


def older_database(server: Server, world: Shared) -> None:
    server.sql("DROP DATABASE IF EXISTS saved WITH (FORCE)", database="postgres")
    server.sql("CREATE DATABASE saved TEMPLATE broker", database="postgres")
    with world.open() as running:
        running.admin.revoke_key("k1")
    server.sql("DROP DATABASE broker WITH (FORCE)", database="postgres")
    server.sql("ALTER DATABASE saved RENAME TO broker", database="postgres")


def older_rows(server: Server, world: Shared) -> None:
    server.sql("CREATE TABLE old_rows AS TABLE security_rows; CREATE TABLE old_head AS TABLE head")
    with world.open() as running:
        running.admin.revoke_key("k1")
    server.sql(
        "TRUNCATE security_rows, head; INSERT INTO security_rows TABLE old_rows; INSERT INTO head TABLE old_head"
    )


def older_log(server: Server, world: Shared) -> None:
    server.sql("CREATE TABLE old_log AS TABLE log_files")
    with world.open() as running:
        running.admin.revoke_key("k1")
    server.sql("TRUNCATE log_files; INSERT INTO log_files TABLE old_log")


def edited_entry(server: Server, _: Shared) -> None:
    server.sql(
        "UPDATE log_files SET body = set_byte(body, 20, get_byte(body, 20) # 1) WHERE path LIKE 'tile/entries/%'"
    )


def edited_state(server: Server, _: Shared) -> None:
    server.sql(
        "UPDATE log_files SET body = set_byte(body, 30, get_byte(body, 30) # 1) WHERE path = '.state/state'"
    )


def lost_openings(server: Server, _: Shared) -> None:
    server.sql("DELETE FROM openings")


def moved_openings(server: Server, _: Shared) -> None:
    other = "SELECT body FROM openings two WHERE two.commitment <> one.commitment LIMIT 1"
    server.sql(f"UPDATE openings one SET body = ({other})")


def planted_pending(server: Server, _: Shared) -> None:
    """A change that was never decided, laid down as if a crash had left it, with an entry that is in the log."""
    server.sql("INSERT INTO pending VALUES (1, 99, 0, '\\x00')")
    server.sql("INSERT INTO pending_rows VALUES ('caller', 'acme/eve', '{}')")


TAMPERS: list[tuple[Callable[[Server, Shared], None], set[str]]] = [
    (older_row, {"row-tampered"}),
    (removed_row, {"row-tampered"}),
    (older_database, {"log-rolled-back"}),
    (older_rows, {"state-rolled-back"}),
    (older_log, {"log-rolled-back"}),
    (edited_entry, {"log-entry-edited"}),
    (edited_state, {"bad-signature", "untrusted-signer", "malformed-note", "malformed-log-state"}),
    (lost_openings, {"opening-missing"}),
    (moved_openings, {"sealed-value-foreign"}),
]


@pytest.mark.parametrize(("tamper", "codes"), TAMPERS, ids=[case[0].__name__ for case in TAMPERS])
def test_the_database_in_other_hands_is_refused(
    tamper: Callable[[Server, Shared], None], codes: set[str], server: Server, world: Shared
) -> None:
    with world.open() as running:
        world.add_key(running)
    tamper(server, world)
    assert refused(world) in codes


def test_a_pending_change_that_nobody_decided_is_dropped(server: Server, world: Shared) -> None:
    planted_pending(server, world)
    with world.open() as running:
        assert running.admin.callers("acme") == []
    assert server.sql("SELECT count(*) FROM pending_rows") == "0"


def test_a_planted_pending_change_under_a_real_entry_is_refused(server: Server, world: Shared) -> None:
    """The entry is in the log; the rows it would make are not those that it committed to."""
    with world.open() as running:
        running.admin.add_caller("acme", "anna")
        entries = dict(running.core.state.ledger.entries(0))
    last = entries[max(entries)].hex()
    server.sql(f"INSERT INTO pending VALUES (1, 3, 0, decode('{last}', 'hex'))")
    server.sql("INSERT INTO pending_rows VALUES ('caller', 'acme/eve', '{}')")
    assert refused(world) in ("row-tampered", "state-rolled-back")


def test_whoever_was_taken_over_writes_and_reads_nothing_more(world: Shared) -> None:
    with world.open() as running:
        election = Database(postgres_engine(read_url(world.database)))
        newer = Writer(election, takeover_s=0)
        newer.campaign()  # first look
        assert newer.campaign()
        for work in (
            lambda: running.admin.add_caller("acme", "eve"),
            lambda: running.admin.list_keys(),
            lambda: running.core.state.store.head(),
        ):
            with pytest.raises(UnavailableError) as caught:
                work()
            assert (caught.value.code, caught.value.stage) == ("writer-fenced", "writer")
        newer.resign()
        election.close()
    with world.open() as running:
        assert running.admin.callers("acme") == []


async def test_whoever_was_taken_over_spends_nothing_and_another_replica_counts_on(world: Shared) -> None:
    with world.open() as running:
        world.add_key(running, limits={"releases": 2})
        enclave = Enclave.make(world, running)
        kbs = Kbs(running)
        await kbs.leased(enclave)
        assert (await kbs.resource()).status_code == 200
        late = Kbs(running)
        await late.leased(enclave)
        session = late.http.cookies["kbs-session-id"]
        election = Database(postgres_engine(read_url(world.database)))
        newer = Writer(election, takeover_s=0)
        newer.campaign()  # first look
        assert newer.campaign()
        with pytest.raises(UnavailableError) as caught:
            running.broker.resource(session, "acme", "k1")
        assert caught.value.code == "writer-fenced"
        newer.resign()
        election.close()
    with world.open() as running:
        assert running.life.budget("key", "k1")["spent"] == {"releases": 1, "rows": 0, "epochs": 0}
        running.broker.resource(session, "acme", "k1")  # attested with the one that was taken over
        third = Kbs(running)
        await third.leased(enclave)
        answer = await third.resource()
        assert (answer.status_code, answer.json()["code"]) == (401, "budget-exhausted")
        running.life.revoke("tenant", "acme", "unpaid")
    with world.open() as running:
        assert (await Kbs(running).attest(enclave)).json()["code"] == "tenant-revoked"


def test_only_one_of_many_wins_an_election(database: Path) -> None:
    databases = [Database(postgres_engine(read_url(database), size=2)) for _ in range(4)]
    writers = [Writer(one) for one in databases]
    won = [writer.campaign() for writer in writers]
    assert won == [True, False, False, False]
    assert writers[0].beat()
    assert not writers[1].campaign()
    writers[0].resign()
    assert writers[2].campaign()
    assert writers[2].epoch == 2
    writers[0].epoch = 1  # as if it had never heard of it
    assert not writers[0].beat()
    for writer, one in zip(writers, databases, strict=True):
        writer.resign()
        one.close()


def test_a_silent_writer_is_taken_over_by_the_watchers_own_clock_only(database: Path) -> None:
    now = [0.0]
    databases = [Database(postgres_engine(read_url(database), size=2)) for _ in range(2)]
    first = Writer(databases[0])
    second = Writer(databases[1], takeover_s=8, monotonic=lambda: now[0])
    assert first.campaign()
    assert not second.campaign()
    now[0] = 7.9
    assert not second.campaign()
    assert first.beat()
    now[0] = 15.0
    assert not second.campaign()  # it has beaten since
    now[0] = 23.1
    assert second.campaign()
    assert not first.beat()
    for writer, one in zip((first, second), databases, strict=True):
        writer.resign()
        one.close()


def test_a_stalled_connection_is_cut(server: Server, tmp_path: Path) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="road-") as folder:
        road = Road(Path(folder), server.folder)
        file = tmp_path / "database"
        file.write_text(server.url(road.folder))
        file.chmod(0o600)
        database = Database(postgres_engine(read_url(file)))
        database._watchdog = Watchdog(1.0)
        with database.begin():
            pass
        road.cut()
        with pytest.raises(UnavailableError) as caught, database.begin() as db:
            db.exec_driver_sql("SELECT 1")
        assert caught.value.code == "store-unavailable"
        road.close()
        database.close()


def test_a_broker_moves_from_a_file_to_postgresql_by_its_backup(
    server: Server, database: Path, tmp_path: Path
) -> None:
    single = World(tmp_path / "single", holder=tmp_path / "held")
    with single.open() as running:
        single.add_key(running)
    out = io.BytesIO()
    with open_source(Layout(root=single.root), None) as source:
        back_up(source, out, at=single.clock.now)
    moved = tmp_path / "moved"
    moved.mkdir(mode=0o700)
    shutil.copytree(single.root / "keys", moved / "keys")
    shutil.copy(single.root / "settings.json", moved)
    out.seek(0)
    with claimed(database) as shared:
        restore_exactly(out, Layout(root=moved), shared, holder=single.holder, clock=single.clock)
    again = io.BytesIO()
    with open_source(Layout(root=moved), database) as source:
        manifest = back_up(source, again, at=single.clock.now)
    assert manifest.epoch == 3
    assert server.sql("SELECT count(*) FROM openings") == "5"


def test_a_sqlite_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    open_sqlite(tmp_path / "x.sqlite").close()
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(tmp_path / "x.sqlite")) as db:
        db.execute("PRAGMA user_version = 3")
        db.commit()
    with pytest.raises(VerificationError) as caught:
        open_sqlite(tmp_path / "x.sqlite")
    assert caught.value.code == "schema-newer"
    assert os.path.exists(tmp_path / "x.sqlite")
