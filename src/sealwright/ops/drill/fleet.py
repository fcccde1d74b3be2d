"""Real processes for drills: brokers on one database, each on a road of its own, and a witness."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import httpx2

from sealwright.appraisal.software import SOFTWARE_VECTOR
from sealwright.broker.database import read_url
from sealwright.broker.migrations import migrate
from sealwright.broker.service import Running, init_broker, open_broker
from sealwright.broker.storage import claimed
from sealwright.crypto.canonical import canonical
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.errors import UnavailableError
from sealwright.ops.drill.asker import Budgeted
from sealwright.ops.drill.load import KID, TENANT
from sealwright.ops.drill.postgres import Server
from sealwright.ops.drill.road import Road

START_S = 60.0


@dataclass
class Process:
    """A `sealwright` server, with its lines (JSON or not) in a file."""

    lines: Path
    args: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait for its address."""
        said = self.lines.stat().st_size if self.lines.exists() else 0
        command = [sys.executable, "-m", "sealwright.cli", *self.args]
        with self.lines.open("ab") as out:
            self.running = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, **self.env}
            )
        until(lambda: self._found(said), "a server to serve")

    def kill(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal; wait for the end where it ends by it."""
        if self.running is not None and self.running.poll() is None:
            self.running.send_signal(sig)
            if sig in (signal.SIGKILL, signal.SIGTERM):
                self.running.wait(30)

    def said(self) -> str:
        """Return what it wrote."""
        return self.lines.read_text(errors="replace")

    def _found(self, start: int) -> bool:
        if self.running is None or self.running.poll() is not None:
            raise UnavailableError(
                f"a server ended: {self.said()[-400:]}", code="drill-failed", stage="drill"
            )
        for line in self.said()[start:].splitlines():
            if '"event": "serving"' in line:
                self.url = json.loads(line)["url"]
            elif line.startswith("serving url="):
                self.url = json.loads(line.split()[1].removeprefix("url="))
        return bool(self.url) and "serving" in self.said()[start:]


@dataclass
class Replica:
    """One broker process, its folder and its road to the database."""

    number: int
    folder: Path
    database: Path
    road: Road
    process: Process

    @property
    def url(self) -> str:
        """Its address."""
        return self.process.url

    def writes(self) -> bool:
        """Say whether it is the one that writes."""
        with contextlib.suppress(httpx2.HTTPError):
            return httpx2.get(f"{self.url}/readyz", timeout=30, trust_env=False).status_code == 200
        return False


@dataclass
class Fleet:
    """Brokers, a witness, a database server."""

    home: Path
    server: Server
    witness: Process
    witness_text: str
    replicas: list[Replica]
    token: str
    budgeted: Budgeted | None = None

    @classmethod
    @contextmanager
    def start(cls, number: int = 3, *, keys: Sequence[str] = ()) -> Iterator[Self]:
        """Make everything in a temporary folder, and end and remove it.

        Args:
            keys: replicas' extra command line.

        Raises:
            UnavailableError: `postgres-missing`, `drill-failed`.
        """
        with ExitStack() as stack:
            server = stack.enter_context(Server.start())
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sealwright-drill-")))
            os.chmod(home, 0o700)
            fleet = cls(
                home=home,
                server=server,
                witness=Process(home / "witness.log", ()),
                witness_text="",
                replicas=[],
                token="",
            )
            stack.callback(fleet.stop)
            fleet._make(number, keys)
            yield fleet

    def restarted(self, replica: Replica, env: Mapping[str, str] | None = None) -> None:
        """Start a replica that was killed again. Args: env: on top of ours."""
        replica.process.env = env or {}
        replica.process.start()

    def end_replicas(self) -> None:
        """End every replica as an operator does."""
        for replica in self.replicas:
            replica.road.mend()
            replica.process.kill(signal.SIGCONT)
            replica.process.kill(signal.SIGTERM)

    def stop(self) -> None:
        """End every process."""
        for process in [*(replica.process for replica in self.replicas), self.witness]:
            process.kill(signal.SIGCONT)
            process.kill()
        for replica in self.replicas:
            replica.road.close()

    def writer(self) -> Replica:
        """Return the replica that writes, once there is one."""
        found: list[Replica] = []

        def look() -> bool:
            found[:] = [replica for replica in self.replicas if replica.writes()]
            return bool(found)

        until(look, "a replica to write")
        return found[0]

    @contextmanager
    def alone(self, database: Path | None = None) -> Iterator[Running]:
        """Open the broker's state in this process, while no replica runs. Args: database: file with its address."""
        with (
            claimed(database or self.home / "database") as shared,
            open_broker(self.home / "broker", shared=shared, witnesses=[self.witness_text]) as running,
        ):
            yield running

    def _make(self, number: int, extra: Sequence[str]) -> None:
        database = self.home / "database"
        write_secret(database, self.server.url())
        migrate(read_url(database))
        folder = self.home / "broker"
        # The witness has to know the log's key, and the broker the witness's: made in this order.
        with claimed(database) as shared:
            secrets = init_broker(folder, holder=self.home / "first.checkpoint", shared=shared)
        self.token = (folder / "admin-token").read_text().strip()
        directory = str(self.home / "witness")
        self.witness.args = [
            "log",
            "witness",
            directory,
            "--log-key",
            secrets.log_key,
            "--name",
            "drill/witness",
            "--listen",
            "127.0.0.1:0",
        ]
        self.witness.start()
        line = next(line for line in self.witness.said().splitlines() if line.startswith("serving url="))
        self.witness_text = f"{json.loads(line.split()[2].removeprefix('key='))}@{self.witness.url}"
        with (
            claimed(database) as shared,
            open_broker(folder, shared=shared, witnesses=[self.witness_text], new_holder=True) as running,
        ):
            running.admin.create_key(TENANT, KID, "model", policy(secrets.root_public, secrets.log_key))
            self.budgeted = Budgeted.make(running)
        for index in range(number):
            self.replicas.append(self._replica(index, folder, extra))
        for replica in self.replicas:
            replica.process.start()

    def _replica(self, index: int, folder: Path, extra: Sequence[str]) -> Replica:
        own = self.home / f"replica-{index}"
        shutil.copytree(folder, own)
        road = Road(self.home / f"r{index}", self.server.folder)
        database = self.home / f"database-{index}"
        write_secret(database, self.server.url(road.folder))
        args = ["broker", "serve", str(own), "--listen", "127.0.0.1:0", "--database", str(database)]
        args += ["--witness", self.witness_text, "--log-format", "json", *extra]
        process = Process(self.home / f"replica-{index}.log", args)
        return Replica(index, own, database, road, process)


def policy(root: bytes, log_key: str) -> bytes:
    """Return a policy that admits nothing that exists: the drill has its key as the owner does."""
    now = datetime.now(UTC)
    return canonical(
        {
            "format": "sealwright-policy/v1",
            "version": 1,
            "profile": "demo",
            "require_hardware": False,
            "created": rfc3339(now),
            "expires": rfc3339(now + timedelta(hours=20)),
            "platforms": {
                "software": {
                    "vector": dict(SOFTWARE_VECTOR),
                    "roots": [bytes(32).hex()],
                    "code": [bytes(32).hex()],
                }
            },
            "config": {"brokers": [b64url(root)], "log_keys": [log_key]},
            "lease_s": 600,
        }
    )


def write_secret(path: Path, text: str) -> None:
    """Write a file for this user only."""
    path.touch(mode=0o600)
    path.write_text(text)


def until(look: Callable[[], bool], what: str, *, limit_s: float = START_S) -> float:
    """Wait until `look` says so; return how long it took (s). Raises UnavailableError: `drill-failed`."""
    start = time.monotonic()
    while not look():
        if time.monotonic() - start > limit_s:
            raise UnavailableError(f"waited {limit_s:.0f} s for {what}", code="drill-failed", stage="drill")
        time.sleep(0.05)
    return time.monotonic() - start
