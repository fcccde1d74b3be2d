"""The broker: attest, lease and release, one enclave after another, without HTTP.

    python bench/broker.py [--handshakes N]

A handshake is parsing and answering auth, attest, lease and resource, each decision durable in the log before its
answer (fsync). Evidence is made before the clock runs. *Per core* counts the CPU time of this process; PostgreSQL's
own is not in it. *At half load* handshakes come at even intervals, half as many as one caller can have one after
another, and the time runs from when one was due. Evidence: the software platform's; and SEV-SNP and TDX as captured
($SEALWRIGHT_VECTORS), at the time and with the collateral they were captured with, all but nonce and config checked;
where those files are missing, made by our test platforms. Each handshake adds a lease, and rows are hashed at each step.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.broker.support import AUTH, NOW, Clock, Enclave, World

from sealwright.broker.database import read_url
from sealwright.broker.migrations import migrate
from sealwright.broker.service import Running, init_broker
from sealwright.broker.storage import Shared, claimed
from sealwright.crypto.encoding import rfc3339
from sealwright.errors import UnavailableError
from sealwright.ops.drill.postgres import Server
from sealwright.protocol.kbs import AttestRequest, AuthRequest, LeaseRequest, encode_nonce, parse_message

platforms = import_module("tests.broker.test_platforms")
Evidence = Callable[[Enclave, bytes], dict[str, Any] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One platform: its evidence, and how the broker is set up for it."""

    name: str
    tee: str
    evidence: Evidence
    policy: dict[str, Any]
    options: dict[str, Any]
    at: Any = NOW


def software() -> Case:
    """Return the platform without hardware."""
    return Case(name="software", tee="software", evidence=lambda *_: None, policy={}, options={})


def captured(name: str) -> Case:
    """Return real evidence, at its own time."""
    found = platforms.CAPTURED[name]
    envelope = platforms.read(found)
    register = platforms._registers(envelope, found.at)[found.register]
    policy = {
        "profile": "production",
        "require_hardware": True,
        "created": rfc3339(found.at - timedelta(days=1)),
        "expires": rfc3339(found.at + timedelta(days=30)),
        "platforms": {found.type: {"registers": {found.register: [register]}, **found.rules}},
    }
    return Case(
        name=f"{name}, captured",
        tee=found.type,
        evidence=lambda *_: envelope.to_json(),
        policy=policy,
        options={"appraise": platforms.as_captured},
        at=found.at,
    )


def made(name: str) -> Case:
    """Return evidence of a test platform."""
    found = {"snp-milan": platforms._snp, "tdx": platforms._tdx}[name]()
    return Case(
        name=f"{found.type}, made",
        tee=found.type,
        evidence=lambda enclave, nonce: platforms.evidence(found, enclave, nonce),
        policy={"platforms": {found.type: dict(found.rules)}},
        options={},
    )


def hardware(name: str) -> Case:
    """Return captured evidence where it can be had, else a test platform's."""
    try:
        return captured(name)
    except BaseException as exc:  # pytest's way to say that a file is not here
        if type(exc).__name__ != "Skipped":
            raise
        return made(name)


@contextmanager
def sqlite(folder: Path, case: Case) -> Iterator[tuple[World, Running]]:
    """Open a broker on SQLite with a holder file, as `broker serve --holder` does."""
    world = World(folder / "broker", clock=Clock(case.at), holder=folder / "holder")
    with world.open(**case.options) as running:
        yield world, running


@contextmanager
def postgres(folder: Path, case: Case) -> Iterator[tuple[World, Running]]:
    """Open a broker on a PostgreSQL server of its own, with a holder file."""
    world = World(folder / "broker", clock=Clock(case.at), holder=folder / "holder")
    shutil.rmtree(world.root)
    (folder / "holder").unlink()
    with ExitStack() as stack:
        server = stack.enter_context(Server.start())
        url = folder / "database"
        url.write_text(server.url())
        url.chmod(0o600)
        migrate(read_url(url))
        shared: Shared | None = stack.enter_context(claimed(url))
        secrets = init_broker(world.root, holder=world.holder, clock=world.clock, shared=shared)
        world.broker_root, world.log_key = secrets.root_public, secrets.log_key
        running = stack.enter_context(world.open(shared=shared, **case.options))
        yield world, running


def prepared(case: Case, running: Running, enclave: Enclave) -> tuple[str, bytes]:
    """Return a session's id and the body of its `attest`."""
    session = running.broker.auth(AuthRequest.model_validate({**AUTH, "tee": case.tee}))
    nonce = session.challenge
    evidence = case.evidence(enclave, nonce)
    body = enclave.attest_body(encode_nonce(nonce), **({} if evidence is None else {"evidence": evidence}))
    return session.session_id, json.dumps(body).encode()


def finish(running: Running, session: str, body: bytes) -> None:
    """Do what comes after `auth`."""
    running.broker.attest(session, parse_message(AttestRequest, body, limit=1 << 24))
    running.broker.lease(session, LeaseRequest(tenant="acme", answers=0))
    running.broker.resource(session, "acme", "k1")


def measure(case: Case, world: World, running: Running, count: int) -> dict[str, float]:
    """Return handshakes a second, by CPU time and by the clock, and latencies at half load, ms."""
    world.add_key(running, **case.policy)
    enclave = Enclave.make(world, running)
    for _ in range(3):
        finish(running, *prepared(case, running, enclave))
    started = time.perf_counter(), time.process_time()
    for _ in range(count):
        running.broker.auth(AuthRequest.model_validate({**AUTH, "tee": case.tee}))
    auth = time.perf_counter() - started[0], time.process_time() - started[1]
    waiting = [prepared(case, running, enclave) for _ in range(2 * count)]
    started = time.perf_counter(), time.process_time()
    for one in waiting[:count]:
        finish(running, *one)
    wall = auth[0] + time.perf_counter() - started[0]
    cpu = auth[1] + time.process_time() - started[1]
    late, begin, every = [], time.perf_counter(), 2 * wall / count
    for at, one in enumerate(waiting[count:]):
        due = begin + at * every
        time.sleep(max(0.0, due - time.perf_counter()))
        finish(running, *one)
        late.append((time.perf_counter() - due) * 1000)
    cuts = statistics.quantiles(late, n=100, method="inclusive")
    return {"core": count / cpu, "wall": count / wall, "p50": cuts[49], "p99": cuts[98]}


def main() -> None:
    """Print one JSON object a row."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--handshakes", type=int, default=200)
    count = min(parser.parse_args().handshakes, 250)  # a broker keeps 1,024 sessions
    for case in (software(), hardware("snp-milan"), hardware("tdx")):
        for store, opened in (("SQLite", sqlite), ("PostgreSQL", postgres)):
            try:
                with tempfile.TemporaryDirectory() as folder, opened(Path(folder), case) as (world, running):
                    found = measure(case, world, running, count)
            except UnavailableError as exc:
                if exc.code != "postgres-missing":
                    raise
                print(f"no PostgreSQL: {exc}", file=sys.stderr)
                continue
            work = f"handshake, {case.name}, {store}, {count}"
            for name, unit in (("core", "handshakes/s per core (CPU)"), ("wall", "handshakes/s, one after another"),
                               ("p50", "ms, p50 at half load"), ("p99", "ms, p99 at half load")):  # fmt: skip
                row = {"work": work, "ours": found[name], "peer": None, "ratio": None, "unit": unit, "limit": "shown, no target"}  # fmt: skip
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
