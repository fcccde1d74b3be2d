"""The faults: what is done to a fleet under load. Each returns when the fault is over; `run` then compares.

A case ends with what was found; nothing found means that it held.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from sealwright.broker.holders import WITNESS_TIMEOUT_S
from sealwright.errors import SealwrightError
from sealwright.ops.drill.check import Found, check
from sealwright.ops.drill.fleet import Fleet, Replica, until, write_secret
from sealwright.ops.drill.load import Load, Outcome

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
FORKED = {"log-forked", "log-rolled-back"}
BEFORE_S, AFTER_S = 1.5, 1.5  # of load around a fault, in the short form


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one case ended."""

    name: str
    findings: tuple[str, ...]
    recovery_s: float | None = (
        None  # from the fault to the next granted write; None: no load, or none is wanted
    )
    lost: int = 0  # granted writes that are not there
    granted: int = 0
    refused: int = 0
    budget: str = ""  # releases under it that were answered, logged, counted, and are allowed
    skipped: str = ""
    code: str = ""  # of the refusal, where that is what counts

    @property
    def held(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


@dataclass
class Drill:
    """One fleet, and the load on it."""

    fleet: Fleet
    load_s: float  # of load before and after each fault
    fault_at: float = 0.0

    def begin(self) -> Load:
        """Start the load, and let it run for a while."""
        self.fleet.writer()
        fleet = self.fleet
        load = Load(lambda: [replica.url for replica in fleet.replicas], fleet.token, budgeted=fleet.budgeted)
        load.start()
        time.sleep(self.load_s)
        self.fault_at = time.monotonic()
        return load

    def recovered(self, load: Load) -> float:
        """Wait for the first write that is granted after the fault; return how long that took (s)."""
        until(lambda: load.granted_since(self.fault_at) is not None, "a write after the fault")
        found = load.granted_since(self.fault_at)
        time.sleep(self.load_s)
        return 0.0 if found is None else found.at - self.fault_at


Fault = Callable[[Drill, Load], None]


def killed(drill: Drill, _load: Load) -> None:
    """The writer's process is killed (SIGKILL)."""
    victim = drill.fleet.writer()
    drill.fault_at = time.monotonic()
    victim.process.kill()


def restarted(drill: Drill, _load: Load) -> None:
    """The database is stopped in good order, and started."""
    drill.fault_at = time.monotonic()
    drill.fleet.server.down("fast")
    drill.fleet.server.up()
    drill.fault_at = time.monotonic()


def crashed(drill: Drill, _load: Load) -> None:
    """The database crashes: what it did not flush is gone."""
    drill.fleet.server.down("immediate")
    drill.fleet.server.up()
    drill.fault_at = time.monotonic()


def cut_off(drill: Drill, _load: Load) -> None:
    """The writer is cut off from the database, without being told, until another one writes."""
    victim = drill.fleet.writer()
    drill.fault_at = time.monotonic()
    victim.road.cut()
    until(lambda: any(one.writes() for one in drill.fleet.replicas if one is not victim), "a takeover")
    victim.road.mend()


def frozen(drill: Drill, _load: Load) -> None:
    """The writer's process stands still (SIGSTOP) until another one writes, and goes on."""
    victim = drill.fleet.writer()
    others = [one for one in drill.fleet.replicas if one is not victim]
    drill.fault_at = time.monotonic()
    victim.process.kill(signal.SIGSTOP)
    try:
        until(lambda: any(one.writes() for one in others), "a takeover")
    finally:
        victim.process.kill(signal.SIGCONT)


def unwitnessed(drill: Drill, load: Load) -> None:
    """The witness stands still for longer than a broker waits for it, and goes on."""
    drill.fleet.witness.kill(signal.SIGSTOP)
    stood = time.monotonic()
    time.sleep(WITNESS_TIMEOUT_S + 2)
    drill.fault_at = time.monotonic()
    drill.fleet.witness.kill(signal.SIGCONT)
    granted = [one for one in load.outcomes if one.granted and stood + 1 < one.at < drill.fault_at]
    if granted:
        raise Broken(f"{len(granted)} requests were granted while no witness held their checkpoint")


def skewed(drill: Drill, _load: Load) -> None:
    """All die, and the first to come back has a clock that is an hour behind (libfaketime)."""
    fleet = drill.fleet
    odd, *others = fleet.replicas
    for replica in fleet.replicas:
        replica.process.kill()
    env = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": "-1h", "DONT_FAKE_MONOTONIC": "1"}
    fleet.restarted(odd, env)
    if not refused_with(odd, {"clock-disagrees", "clock-back"}):
        raise Broken("a replica whose clock is an hour behind does not say so")
    drill.fault_at = time.monotonic()
    for replica in others:
        fleet.restarted(replica)
    fleet.writer()
    if odd.writes():
        raise Broken("a replica whose clock is an hour behind writes")


class Broken(Exception):
    """What a fault found by itself."""


CASES: tuple[tuple[str, Fault], ...] = (
    ("the writer is killed (SIGKILL)", killed),
    ("the database restarts", restarted),
    ("the database crashes", crashed),
    ("the writer is cut off from the database", cut_off),
    ("the writer stands still and wakes (SIGSTOP)", frozen),
    ("the witness stands still", unwitnessed),
    ("all die, and the first to return is an hour behind", skewed),
)


def run(name: str, fault: Fault, *, load_s: float = BEFORE_S) -> Result:
    """Run one case on a fleet of its own, and compare what was answered with rows and log."""
    if fault is skewed and not FAKETIME.exists():
        return Result(name=name, findings=(), skipped="apt-get install faketime")
    broken: list[str] = []
    with Fleet.start() as fleet:
        drill = Drill(fleet, load_s)
        load = drill.begin()
        recovery = None
        try:
            fault(drill, load)
            recovery = drill.recovered(load)
        except (Broken, SealwrightError) as error:
            broken.append(str(error))
        outcomes = load.stop()
        fleet.end_replicas()
        with fleet.alone() as running:
            found = check(running, outcomes)
    return _result(name, found, recovery, broken)


def _result(name: str, found: Found, recovery: float | None, broken: list[str]) -> Result:
    return Result(
        name=name,
        findings=(*broken, *found.findings),
        recovery_s=recovery,
        lost=found.lost,
        granted=found.granted,
        refused=found.refused,
        budget=found.budget,
    )


@contextmanager
def stopped(fleet: Fleet) -> Iterator[None]:
    """Stop the replicas for what is done inside, and start them again."""
    fleet.end_replicas()
    yield
    for replica in fleet.replicas:
        fleet.restarted(replica)


def refused_with(replica: Replica, codes: set[str], *, limit_s: float = 30.0) -> str:
    """Return the code that a replica refuses with, once it is one of `codes`; empty: it never was."""
    found: list[str] = []

    def look() -> bool:
        with contextlib.suppress(httpx2.HTTPError, ValueError):
            answer = httpx2.get(f"{replica.url}/readyz", timeout=30, trust_env=False)
            found[:] = [] if answer.status_code == 200 else [answer.json()["code"]]
        return bool(set(found) & codes)

    with contextlib.suppress(SealwrightError):
        until(look, "a refusal", limit_s=limit_s)
    return found[0] if set(found) & codes else ""


def rolled_back() -> Result:
    """An older copy of the whole database is put in place: rows and log together, each right by itself."""
    name = "an older database is put back, log and all"
    with Fleet.start() as fleet:
        drill = Drill(fleet, 1.0)
        load = drill.begin()
        with stopped_load(load, fleet):
            fleet.server.sql("CREATE DATABASE saved TEMPLATE broker", database="postgres")
        for replica in fleet.replicas:
            fleet.restarted(replica)
        drill.begin().stop()
        with stopped(fleet):
            fleet.server.sql("DROP DATABASE broker WITH (FORCE)", database="postgres")
            fleet.server.sql("ALTER DATABASE saved RENAME TO broker", database="postgres")
        codes = {refused_with(replica, {"log-rolled-back"}) for replica in fleet.replicas}
    code = "log-rolled-back" if "log-rolled-back" in codes else ""
    return Result(name=name, findings=() if code else ("the older database was served",), code=code)


@contextmanager
def stopped_load(load: Load, fleet: Fleet) -> Iterator[None]:
    """End load and replicas for what is done inside."""
    load.stop()
    fleet.end_replicas()
    yield


def split() -> Result:
    """One replica is shown a copy of the database, so that two write: the witness lets one history live."""
    name = "two replicas are shown two databases"
    with Fleet.start() as fleet:
        drill = Drill(fleet, 1.0)
        with stopped_load(drill.begin(), fleet):
            fleet.server.sql("CREATE DATABASE twin TEMPLATE broker", database="postgres")
        odd = fleet.replicas[-1]
        write_secret(odd.database, odd.database.read_text().replace("/broker?", "/twin?"))
        for replica in fleet.replicas:
            fleet.restarted(replica)
        load = drill.begin()
        time.sleep(1.0)
        outcomes = load.stop()
        fleet.end_replicas()
        refused = {one.code for one in outcomes if not one.granted}
        histories = [
            found
            for database in (fleet.home / "database", odd.database)
            if (found := _history(fleet, database, outcomes)) is not None
        ]
    if len(histories) != 1:
        return Result(name=name, findings=(f"{len(histories)} of two histories can be opened again",))
    seen = FORKED & refused
    (found,) = histories
    return Result(
        name=name,
        findings=found.findings if seen else ("no fork was seen",),
        granted=found.granted,
        refused=found.refused,
    )


def _history(fleet: Fleet, database: Path, outcomes: Sequence[Outcome]) -> Found | None:
    """Set what was answered against a database; None: the witness does not let it be opened."""
    try:
        with fleet.alone(database) as running:
            return check(running, outcomes)
    except SealwrightError as error:
        if error.code not in FORKED:
            raise
        return None


SINGLE: tuple[tuple[str, Callable[[], Result]], ...] = (
    ("an older database is put back, log and all", rolled_back),
    ("two replicas are shown two databases", split),
)
