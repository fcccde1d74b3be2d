"""What somebody with the disks of one broker can do to its past and its time, and what it is refused with."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sealwright.broker.clock import SteadyClock, utc_now
from sealwright.broker.rows import KeyRow
from sealwright.broker.service import init_broker, open_broker
from sealwright.errors import SealwrightError
from sealwright.ops.drill.cases import Result
from sealwright.ops.drill.fleet import policy
from sealwright.ops.drill.load import TENANT


@dataclass
class Machine:
    """The clocks of a machine, in the hands of whoever runs it."""

    start: datetime
    wall_s: float = 0.0
    boot_s: float = 0.0

    def clock(self) -> SteadyClock:
        """Return the broker's clock on this machine, started now."""
        return SteadyClock(
            wall=lambda: self.start + timedelta(seconds=self.wall_s), seconds=lambda: self.boot_s
        )


@dataclass
class Single:
    """One broker on files, with two keys, and an earlier copy of everything."""

    home: Path

    def __post_init__(self) -> None:
        self.folder, self.holder, self.saved = self.home / "broker", self.home / "held", self.home / "saved"
        secrets = init_broker(self.folder, holder=self.holder)
        text = policy(secrets.root_public, secrets.log_key)
        with open_broker(self.folder, holder=self.holder) as running:
            for kid in ("k1", "k2"):
                running.admin.create_key(TENANT, kid, "model", text)
        shutil.copytree(self.folder, self.saved)

    def later(self, *, held: bool = True, name: str = "anna") -> None:
        """Let the broker revoke a key and decide some more. Args: held: its holder sees it."""
        with open_broker(self.folder, holder=self.holder if held else None) as running:
            if running.admin.key("k1")["status"] == "active":
                running.admin.revoke_key("k1")
            running.admin.add_caller(TENANT, name)

    def put_back(self, *names: str) -> None:
        """Put files of the earlier copy in place."""
        for name in names:
            for path in self.folder.glob(f"{name}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for path in self.saved.glob(f"{name}*"):
                target = self.folder / path.name
                shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)

    def sql(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """Do something to the database."""
        with closing(sqlite3.connect(self.folder / "broker.sqlite")) as db:
            found = db.execute(statement, values).fetchall()
            db.commit()
        return found

    def keys(self) -> dict[str, bytes]:
        """Return the rows of keys."""
        found = self.sql("select id, body from security_rows where kind='key'")
        return {name: body for name, body in found if isinstance(name, str) and isinstance(body, bytes)}

    def set_key(self, kid: str, body: bytes) -> None:
        """Replace the row of a key."""
        self.sql("update security_rows set body=? where kind='key' and id=?", body, kid)


def older_database(one: Single) -> None:
    """Put the database back, and nothing else."""
    one.later()
    one.put_back("broker.sqlite")


def older_log(one: Single) -> None:
    """Put the log back, and nothing else."""
    one.later()
    one.put_back("log")


def all_older(one: Single) -> None:
    """Put everything back that lies in the folder."""
    one.later()
    one.put_back("broker.sqlite", "log", "openings")


def fork(one: Single) -> None:
    """Put everything back, and go on otherwise, past where it was."""
    one.later()
    one.put_back("broker.sqlite", "log", "openings")
    for name in ("eve", "mallory", "trudy"):
        one.later(held=False, name=name)


def old_row(one: Single) -> None:
    """Put one row back: a revoked key that was active once."""
    before = one.keys()["k1"]
    one.later()
    one.set_key("k1", before)


def swapped_key(one: Single) -> None:
    """Exchange the wrapped keys of two rows."""
    rows = {kid: KeyRow.parse(body) for kid, body in one.keys().items()}
    for kid, other in (("k1", "k2"), ("k2", "k1")):
        one.set_key(kid, rows[kid].model_copy(update={"wrapped": rows[other].wrapped}).encode())


def no_holder(one: Single) -> None:
    """Remove the holder's file."""
    one.holder.unlink()


def lost_openings(one: Single) -> None:
    """Remove the openings of the last decision."""
    shutil.rmtree(one.folder / "openings")
    (one.folder / "openings").mkdir(mode=0o700)


TAMPERS: tuple[tuple[str, Callable[[Single], None], str], ...] = (
    ("an older database", older_database, "state-rolled-back"),
    ("an older log", older_log, "log-rolled-back"),
    ("an older database with its log", all_older, "log-rolled-back"),
    ("a forked log with its database", fork, "log-forked"),
    ("one old row", old_row, "row-tampered"),
    ("swapped wrapped keys", swapped_key, "row-tampered"),
    ("the holder's file is gone", no_holder, "holder-missing"),
    ("the last openings are gone", lost_openings, "opening-missing"),
)
CLOCKS: tuple[tuple[str, float, float, str], ...] = (  # name, what both clocks do (s), code
    ("the clock is turned back", -3600, 1, "clock-disagrees"),
    ("the clock stands still", 0, 3600, "clock-disagrees"),
    ("the clock is set ahead", 3600, 1, "clock-disagrees"),
)


def run_tamper(home: Path, name: str, tamper: Callable[[Single], None], code: str) -> Result:
    """Tamper with a broker that is stopped, and start it."""
    one = Single(home)
    tamper(one)
    return _refused(name, code, lambda: _decide(one))


def run_clock(home: Path, name: str, wall_s: float, boot_s: float, code: str) -> Result:
    """Do something to the clock of a broker that runs, and let it decide."""
    one, machine = Single(home), Machine(utc_now())

    def work() -> None:
        with open_broker(one.folder, holder=one.holder, clock=machine.clock()) as running:
            machine.wall_s, machine.boot_s = wall_s, boot_s
            running.admin.add_caller(TENANT, "late")

    return _refused(name, code, work)


def run_clock_behind(home: Path) -> Result:
    """Start a broker again on a machine whose clock is behind the last decision, as both its clocks agree."""
    one, machine = Single(home), Machine(utc_now() - timedelta(hours=1))

    def work() -> None:
        with open_broker(one.folder, holder=one.holder, clock=machine.clock()) as running:
            running.admin.add_caller(TENANT, "late")

    return _refused("the clock is behind the last decision", "clock-back", work)


def _decide(one: Single) -> None:
    with open_broker(one.folder, holder=one.holder) as running:
        running.admin.add_caller(TENANT, "late")


def _refused(name: str, code: str, work: Callable[[], None]) -> Result:
    found = "nothing"
    try:
        work()
    except SealwrightError as error:
        found = error.code
    return Result(
        name=name, findings=() if found == code else (f"refused with {found}, not {code}",), code=found
    )
