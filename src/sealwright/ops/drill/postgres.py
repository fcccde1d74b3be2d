"""A private PostgreSQL server for drills: in a folder, over a unix socket, never as root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sealwright.errors import UnavailableError

_PLACES = Path("/usr/lib/postgresql")  # Debian's
_USER = "postgres"
_WAIT_S = "60"


def find_binaries() -> Path | None:
    """Return the folder with `initdb` and `pg_ctl`, or None."""
    on_path = shutil.which("pg_ctl")
    found = sorted(
        _PLACES.glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]) if path.parts[-3].isdigit() else 0
    )
    if found:
        return found[-1].parent
    return None if on_path is None else Path(on_path).resolve().parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that runs, or was stopped and can be started again."""

    folder: Path
    binaries: Path
    user: str | None  # as whom; None: as this process

    @classmethod
    @contextmanager
    def start(cls) -> Iterator[Self]:
        """Make and start a server in a temporary folder; stop and remove it at the end.

        Raises:
            UnavailableError: `postgres-missing`.
        """
        binaries = find_binaries()
        if binaries is None:
            raise UnavailableError(
                "PostgreSQL is not installed: apt-get install postgresql",
                code="postgres-missing",
                stage="drill",
            )
        folder = Path(
            tempfile.mkdtemp(prefix="sealwright-pg-")
        )  # short: a socket's path has 107 bytes at most
        user = _USER if os.geteuid() == 0 else None
        if user is not None:
            account = pwd.getpwnam(user)
            os.chown(folder, account.pw_uid, account.pw_gid)
            folder.chmod(0o755)
        server = cls(folder=folder, binaries=binaries, user=user)
        try:
            server._do(
                "initdb", "-D", str(server.data), "-U", "sealwright", "--auth", "trust", "--encoding", "UTF8"
            )
            server.up()
            server.sql("CREATE DATABASE broker", database="postgres")
            yield server
        finally:
            server.down("immediate", check=False)
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.folder / "data"

    def url(self, folder: Path | None = None) -> str:
        """Return the address, through a socket in `folder` (default: the server's own)."""
        return f"postgresql://sealwright@/broker?host={folder or self.folder}"

    def up(self) -> None:
        """Start it."""
        options = f"-k {self.folder} -h '' -c max_connections=60 -c shared_buffers=32MB"
        self._do(
            "pg_ctl",
            "-D",
            str(self.data),
            "-w",
            "-t",
            _WAIT_S,
            "-l",
            str(self.folder / "log"),
            "-o",
            options,
            "start",
        )

    def down(self, mode: str = "fast", *, check: bool = True) -> None:
        """Stop it. Args: mode: `immediate` is a crash: what was not flushed is lost."""
        self._do("pg_ctl", "-D", str(self.data), "-w", "-t", _WAIT_S, "-m", mode, "stop", check=check)

    def sql(self, statement: str, *, database: str = "broker") -> str:
        """Run one statement as the operator of the database would, and return what it prints."""
        return self._do(
            "psql", "-h", str(self.folder), "-U", "sealwright", "-d", database, "-XqAtc", statement
        )

    def _do(self, program: str, *args: str, check: bool = True) -> str:
        command = [str(self.binaries / program), *args]
        if self.user is not None:
            command = ["setpriv", "--reuid", self.user, "--regid", self.user, "--init-groups", *command]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
        if check and done.returncode:
            raise UnavailableError(
                f"{program} failed: {done.stderr.strip()[-300:]}", code="postgres-missing", stage="drill"
            )
        return done.stdout.strip()
