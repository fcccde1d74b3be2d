"""The database, the openings and the log in the hands of someone who wants another past."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.broker.support import Kbs, World

from sealwright.broker.rows import KeyRow, changed, state_root
from sealwright.broker.service import Running
from sealwright.errors import CollateralError, SealwrightError, UnavailableError, VerificationError
from sealwright.tlog.policy import LogPolicy


def copy(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def restore(world: World, saved: Path, *names: str) -> None:
    """Put files of a saved directory back, as an attacker with the disk would."""
    for name in names:
        for path in world.root.glob(f"{name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in saved.glob(f"{name}*"):
            target = world.root / path.name
            shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)


def sql(world: World, statement: str, *values: Any) -> list[Any]:
    with closing(sqlite3.connect(world.root / "broker.sqlite")) as db:
        found = db.execute(statement, values).fetchall()
        db.commit()
    return found


def refused(world: World, **options: Any) -> str:
    """Return the code with which the broker refuses to start."""
    with pytest.raises(SealwrightError) as caught, world.open(**options):
        pass
    return caught.value.code


@pytest.fixture
def with_keys(world: World) -> World:
    with world.open() as running:
        world.add_key(running, "acme", "k1")
        world.add_key(running, "other", "k2")
    return world


def test_what_was_done_is_there_after_a_restart(with_keys: World) -> None:
    with with_keys.open() as running:
        assert [key["kid"] for key in running.admin.list_keys()] == ["k1", "k2"]
        # init, two keys made, two manifests admitted; handing out the two sealing keys changes no row
        assert running.admin.status()["epoch"] == 5


def test_a_restored_older_database_is_refused(with_keys: World, tmp_path: Path) -> None:
    saved = copy(with_keys.root, tmp_path / "saved")
    with with_keys.open() as running:
        running.admin.revoke_key("k1")
    restore(with_keys, saved, "broker.sqlite")
    assert refused(with_keys) == "state-rolled-back"


def test_a_deleted_database_is_refused(with_keys: World) -> None:
    for path in with_keys.root.glob("broker.sqlite*"):
        path.unlink()
    assert refused(with_keys) == "state-rolled-back"


def older_row(world: World) -> None:
    old = sql(world, "select body from security_rows where id='k1'")[0][0]
    with world.open() as running:
        running.admin.revoke_key("k1")
    sql(world, "update security_rows set body=? where id='k1'", old)


def altered_row(world: World) -> None:
    body = sql(world, "select body from security_rows where id='k1'")[0][0]
    row = KeyRow.parse(body).model_copy(update={"tenant": "other"})
    sql(world, "update security_rows set body=? where id='k1'", row.encode())


def swapped_wraps(world: World) -> None:
    rows = {
        name: KeyRow.parse(body)
        for name, body in sql(world, "select id, body from security_rows where kind='key'")
    }
    for name, other in (("k1", "k2"), ("k2", "k1")):
        row = rows[name].model_copy(update={"wrapped": rows[other].wrapped})
        sql(world, "update security_rows set body=? where id=?", row.encode(), name)


def removed_row(world: World) -> None:
    sql(world, "delete from security_rows where id='k2'")


def added_row(world: World) -> None:
    sql(world, "insert into security_rows values ('caller', 'acme/eve', ?)", b"{}")


def renamed_row(world: World) -> None:
    sql(world, "update security_rows set id='k3' where id='k2'")


def foreign_type(world: World) -> None:
    sql(world, "update security_rows set body='text' where id='k2'")


TAMPERS: list[Callable[[World], None]] = [
    older_row,
    altered_row,
    swapped_wraps,
    removed_row,
    added_row,
    renamed_row,
    foreign_type,
]


@pytest.mark.parametrize("tamper", TAMPERS)
def test_one_bad_row_is_refused_at_start(tamper: Callable[[World], None], with_keys: World) -> None:
    tamper(with_keys)
    assert refused(with_keys) == "row-tampered"


@pytest.mark.parametrize("tamper", TAMPERS[1:])
async def test_one_bad_row_is_refused_while_serving(
    tamper: Callable[[World], None], with_keys: World
) -> None:
    from tests.broker.support import Enclave

    with with_keys.open() as running:
        kbs = Kbs(running)
        await kbs.leased(Enclave.make(with_keys, running))
        tamper(with_keys)
        asked = [await kbs.http.get(path) for path in ("/healthz", "/readyz")]
        for answer in (await kbs.resource(), await kbs.lease(), *asked):
            assert (answer.status_code, answer.json()["code"]) == (503, "row-tampered")
        with pytest.raises(VerificationError) as caught:
            running.admin.revoke_key("k1")
        assert caught.value.code == "row-tampered"


def test_a_changed_epoch_alone_changes_nothing_that_decides(with_keys: World) -> None:
    sql(with_keys, "update head set epoch=99")
    with with_keys.open() as running:
        assert running.admin.status()["epoch"] == 5


def test_a_restored_older_log_is_refused(with_keys: World, tmp_path: Path) -> None:
    saved = copy(with_keys.root, tmp_path / "saved")
    with with_keys.open() as running:
        running.admin.revoke_key("k1")
    restore(with_keys, saved, "log")
    assert refused(with_keys) == "log-rolled-back"


@pytest.fixture
def held(tmp_path: Path) -> World:
    world = World(tmp_path / "broker", holder=tmp_path / "elsewhere.checkpoint")
    with world.open() as running:
        world.add_key(running)
    return world


def test_the_holder_file_has_the_checkpoint_of_each_decision(held: World) -> None:
    with held.open() as running:
        running.admin.add_caller("acme", "anna")
        assert held.holder is not None
        kept = LogPolicy.of_key(held.log_key).verify(held.holder.read_bytes()).checkpoint
        assert kept.size == running.core.state.ledger.size
        assert running.admin.status()["holder"] is True


def test_log_and_database_restored_together_are_refused_with_a_holder(held: World, tmp_path: Path) -> None:
    saved = copy(held.root, tmp_path / "saved")
    with held.open() as running:
        running.admin.revoke_key("k1")
    restore(held, saved, "log", "broker.sqlite", "openings")
    assert refused(held) == "log-rolled-back"
    # Without a holder nobody can tell: docs/limitations.md says so, and so does the status.
    held.holder = None
    with held.open() as running:
        assert running.admin.key("k1")["status"] == "active"
        assert "unseen" in str(running.admin.status()["rollback"])


def test_a_forked_log_is_refused_with_a_holder(held: World, tmp_path: Path) -> None:
    saved = copy(held.root, tmp_path / "saved")
    with held.open() as running:
        running.admin.revoke_key("k1")
    restore(held, saved, "log", "broker.sqlite", "openings")
    with held.open(holder=None) as running:
        running.admin.add_caller("acme", "eve")
        running.admin.add_caller("acme", "mallory")
    assert refused(held) == "log-forked"


def test_a_forked_log_is_refused_by_the_database_alone(with_keys: World, tmp_path: Path) -> None:
    saved = copy(with_keys.root, tmp_path / "saved")
    with with_keys.open() as running:
        running.admin.revoke_key("k1")
    forked = copy(with_keys.root, tmp_path / "forked")
    restore(with_keys, saved, "log", "broker.sqlite", "openings")
    with with_keys.open() as running:
        running.admin.add_caller("acme", "eve")
        running.admin.add_caller("acme", "mallory")
    restore(with_keys, forked, "broker.sqlite")
    assert refused(with_keys) == "log-forked"


def test_a_missing_holder_file_is_refused_unless_it_is_begun(held: World) -> None:
    assert held.holder is not None
    held.holder.unlink()
    assert refused(held) == "holder-missing"
    with held.open(new_holder=True):
        pass
    with held.open():
        pass


def test_a_holder_file_of_another_log_is_refused(held: World, tmp_path: Path) -> None:
    other = World(tmp_path / "other", holder=tmp_path / "other.checkpoint")
    assert other.holder is not None
    assert held.holder is not None
    shutil.copy(other.holder, held.holder)
    assert refused(held) == "unknown-log"


def last_opening(world: World) -> Path:
    with world.open() as running:
        commitment = running.admin.decisions(1)[0]["commitment"]
    return world.root / "openings" / f"{commitment}.json"


def test_the_last_decision_must_open(with_keys: World) -> None:
    path = last_opening(with_keys)
    raw = path.read_bytes()
    path.unlink()
    assert refused(with_keys) == "opening-missing"
    path.write_bytes(raw.replace(b'"epoch"', b'"epocH"'))
    assert refused(with_keys) == "opening-mismatch"
    path.write_bytes(b"{}")
    assert refused(with_keys) == "opening-mismatch"
    path.write_bytes(raw)
    with with_keys.open():
        pass


def edit_newest_entry(with_keys: World) -> None:
    """Make the newest decision look like a keyset, so that an older one would count as the last."""
    bundles = sorted((with_keys.root / "log/tile/entries").rglob("*"))
    newest = max((path for path in bundles if path.is_file()), key=lambda path: int(path.name))
    raw = bytearray(newest.read_bytes())
    at = raw.rindex(b'"decision"')
    raw[at : at + 10] = b'"keyset"  '
    newest.write_bytes(bytes(raw))


def test_an_entry_edited_in_the_log_is_refused(with_keys: World) -> None:
    edit_newest_entry(with_keys)
    assert refused(with_keys) == "log-entry-edited"


def test_an_entry_edited_while_serving_is_noticed_when_read(with_keys: World) -> None:
    with with_keys.open() as running:
        edit_newest_entry(with_keys)
        with pytest.raises(VerificationError) as caught:
            running.admin.decisions(1)
        assert caught.value.code == "bad-inclusion-proof"


def test_openings_are_for_the_broker_only(with_keys: World) -> None:
    paths = [with_keys.root, with_keys.root / "keys", with_keys.root / "openings", last_opening(with_keys)]
    paths += (with_keys.root / "keys").iterdir()
    assert {oct(path.stat().st_mode & 0o077) for path in paths} == {"0o0"}


def test_exposed_keys_are_refused(with_keys: World) -> None:
    (with_keys.root / "keys" / "kek").chmod(0o644)
    assert refused(with_keys) == "broker-files-exposed"


class Crash(BaseException):
    """The process dies here."""


def crash_before(target: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object, **__: object) -> None:
        raise Crash

    monkeypatch.setattr(target, name, die)


def crash_after(target: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = getattr(target, name)

    def die(*args: Any, **options: Any) -> None:
        real(*args, **options)
        raise Crash

    monkeypatch.setattr(target, name, die)


CRASHES = [
    ("openings", "ledger", "commit_to", crash_after, "active"),
    ("before prepare", "store", "prepare", crash_before, "active"),
    ("prepared", "store", "prepare", crash_after, "active"),
    ("before the log", "ledger", "submit", crash_before, "active"),
    ("queued", "ledger", "submit", crash_after, "revoked"),
    ("logged", "ledger", "settle", crash_after, "revoked"),
    ("before commit", "store", "commit", crash_before, "revoked"),
    ("committed", "store", "commit", crash_after, "revoked"),
]


def revoke_and_crash(world: World, prepare: Callable[[Running], None]) -> None:
    with world.open() as running:
        prepare(running)
        running.admin.revoke_key("k1")


@pytest.mark.parametrize(
    ("_name", "part", "method", "crash", "status"), CRASHES, ids=[case[0] for case in CRASHES]
)
def test_a_crash_at_any_step_leaves_all_or_nothing(
    _name: str,
    part: str,
    method: str,
    crash: Callable[..., None],
    status: str,
    held: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(Crash), monkeypatch.context() as patch:
        revoke_and_crash(held, lambda running: crash(getattr(running.core.state, part), method, patch))
    with held.open() as running:
        assert running.admin.key("k1")["status"] == status
        assert running.core.state.store.pending() is None
        running.admin.add_caller("acme", "after")  # and life goes on
    with held.open() as running:
        assert running.admin.callers("acme") == ["after"]


def test_an_earlier_pending_change_cannot_be_brought_back(
    held: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pending change that was rolled forward, put back with its database, is older than the log."""
    with pytest.raises(Crash), monkeypatch.context() as patch:
        revoke_and_crash(held, lambda running: crash_before(running.core.state.store, "commit", patch))
    saved = copy(held.root, held.root.parent / "saved")
    with held.open() as running:
        running.admin.add_caller("acme", "anna")
    restore(held, saved, "broker.sqlite")
    assert refused(held) == "state-rolled-back"


def test_after_a_log_failure_nothing_is_answered_until_it_is_mended_or_a_restart(
    with_keys: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with with_keys.open() as running:

        def fail(*_: object) -> int:
            raise UnavailableError("the log does not answer", code="log-timeout", stage="log")

        with monkeypatch.context() as patch:
            patch.setattr(running.core.state.ledger, "settle", fail)
            with pytest.raises(UnavailableError, match="does not answer"):
                running.admin.revoke_key("k1")
            with pytest.raises(UnavailableError, match="restart"):
                running.admin.list_keys()
    with with_keys.open() as running:  # it had been logged after all
        assert running.admin.key("k1")["status"] == "revoked"


async def test_nothing_is_answered_that_was_not_logged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.broker.support import Enclave

    with world.open() as running:
        world.add_key(running)
        kbs = Kbs(running)
        enclave = Enclave.make(world, running)

        def fail(*_: object) -> int:
            raise UnavailableError("the log does not answer", code="log-timeout", stage="log")

        monkeypatch.setattr(running.core.state.ledger, "settle", fail)
        refused_form = await kbs.http.post("/kbs/v0/auth", json={"version": "0.4.0", "tee": "sample"})
        assert (refused_form.status_code, refused_form.json()["code"]) == (503, "log-timeout")
        answer = await kbs.attest(enclave)
        assert (answer.status_code, answer.json()["code"]) == (503, "log-timeout")
        assert "token" not in answer.json()


async def test_a_clock_that_goes_back_is_refused(with_keys: World) -> None:
    with_keys.clock.forward(hours=1)
    with with_keys.open() as running:
        running.admin.add_caller("acme", "anna")
    with_keys.clock.now -= timedelta(minutes=30)
    with with_keys.open() as running:
        kbs = Kbs(running)
        answer = await kbs.http.post(
            "/kbs/v0/auth",
            json={"version": "0.4.0", "tee": "software", "extra-params": {"sealwright": "keyset/v1"}},
        )
        assert (answer.status_code, answer.json()["code"]) == (503, "clock-back")
        with pytest.raises(UnavailableError, match="clock"):
            running.admin.revoke_key("k1")
        newest = running.admin.decisions(1)[0]
        assert (newest["code"], newest["at"]) == ("clock-back", "2026-06-01T13:00:00Z")
        with_keys.clock.forward(minutes=30)
        running.admin.revoke_key("k1")


def test_a_second_broker_on_the_same_directory_is_refused(with_keys: World) -> None:
    with with_keys.open():
        assert refused(with_keys) == "log-locked"


def test_keys_of_another_broker_are_refused(with_keys: World, tmp_path: Path) -> None:
    other = World(tmp_path / "other")
    shutil.copy(other.root / "keys" / "root", with_keys.root / "keys" / "root")
    with pytest.raises(CollateralError) as caught, with_keys.open():
        pass
    assert caught.value.code == "broker-keys-foreign"


ROWS = st.dictionaries(
    st.tuples(st.sampled_from(["key", "lease"]), st.text(max_size=6)),
    st.binary(max_size=12),
    min_size=1,
    max_size=9,
)


@given(rows=ROWS, data=st.data())
def test_any_change_of_the_rows_changes_their_root(
    rows: dict[tuple[str, str], bytes], data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from(sorted(rows)))
    body = data.draw(st.none() | st.binary(max_size=12).filter(lambda other: other != rows[key]))
    assert state_root(changed(rows, {key: body})) != state_root(rows)
    moved = {("caller", os.urandom(4).hex()): rows[key], key: None}
    assert state_root(changed(rows, moved)) != state_root(rows)


def test_decisions_in_the_log_carry_epoch_and_root_in_order(with_keys: World) -> None:
    with with_keys.open() as running:
        shown: list[dict[str, Any]] = [dict(item) for item in reversed(running.admin.decisions(50))]
        _check_epochs(running, shown)


def _check_epochs(running: Running, shown: list[dict[str, Any]]) -> None:
    epochs = [item["epoch"] for item in shown]
    assert epochs == sorted(epochs)
    assert shown[0]["action"] == "init"
    assert shown[-1]["state_root"] == running.core.state.anchor.state_root.hex()


LOOP = """
import sys
from pathlib import Path
from sealwright.broker.service import open_broker
with open_broker(Path(sys.argv[1])) as running:
    for number in range(int(sys.argv[2]), 100000):
        running.admin.add_caller("acme", f"c{number}")
        print(number, flush=True)
"""


@pytest.mark.slow
def test_a_killed_broker_starts_again_with_all_that_it_answered(tmp_path: Path) -> None:
    import subprocess
    import sys

    from sealwright.broker.service import init_broker, open_broker

    root = tmp_path / "broker"
    init_broker(root)
    answered = -1
    for round_number in range(3):
        args = [sys.executable, "-c", LOOP, str(root), str(answered + 2)]
        with subprocess.Popen(args, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(4 + round_number):
                answered = int(process.stdout.readline())
            process.kill()
            left = process.stdout.read().split()  # whole lines that were printed before it died
        answered = max([answered, *map(int, left)])
        with open_broker(root) as running:
            callers = set(running.admin.callers("acme"))
            assert f"c{answered}" in callers
            assert not any(f"c{number}" in callers for number in range(answered + 2, answered + 9))
