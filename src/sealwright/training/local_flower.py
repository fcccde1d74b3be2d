"""Flower's deployment engine on one machine: a SuperLink and a SuperNode for each organisation, real processes.

For demos, tests and benchmarks; organisations run their own SuperNodes: docs/how-to/train-together.md.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sealwright.errors import SettingsError, UnavailableError

APP = '''"""Carries calls between agents; written by sealwright."""

from sealwright.training.flower import client_app, server_app

client = client_app()
server = server_app()
'''
_PROJECT = """[project]
name = "{name}"
version = "1.0.0"
description = "Carries calls between attested agents"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "sealwright"

[tool.flwr.app.components]
serverapp = "{module}:server"
clientapp = "{module}:client"

[tool.flwr.app.config]
job = ""
"""
START_S = 60.0
# Flower's own: tasks are looked for often, nothing is installed, nobody is told.
_ENVIRONMENT = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05"}


def write_app(folder: Path, *, module: str = "carrier", app: str = APP) -> Path:
    """Write the Flower app that carries calls; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(app)
    name = f"sealwright-{module}".replace("_", "-")
    (folder / "pyproject.toml").write_text(_PROJECT.format(name=name, module=module))
    return folder


class LocalFlower:
    """One SuperLink and its SuperNodes. A context manager: all end with it."""

    def __init__(self, folder: Path, agents: Sequence[Path], *, python: Path = Path(sys.executable)) -> None:
        """Args: folder: for logs and Flower's own files; agents: sockets, one for each SuperNode; python: has flwr."""
        self._folder, self._agents, self._python = folder, agents, python
        self._bin = python.parent
        self._processes: list[subprocess.Popen[bytes]] = []
        self.address = ""

    def __enter__(self) -> LocalFlower:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            port = _free_port()
            self.address = f"127.0.0.1:{port}"
            self._start(
                "superlink",
                "flower-superlink",
                *("--insecure", "--host", "127.0.0.1", "--port", str(port)),
                "--disable-runtime-dependency-installation",
            )
            _until_open(port, self._processes[0], self._folder / "superlink.log")
            for at, agent in enumerate(self._agents):
                self.add_node(f"supernode-{at}", agent)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_node(self, name: str, agent: Path) -> subprocess.Popen[bytes]:
        """Start a SuperNode that calls the agent at a socket; return its process."""
        return self._start(
            name,
            "flower-supernode",
            *("--insecure", "--superlink", self.address, "--port", str(_free_port())),
            *("--node-config", f'agent="{agent}"'),
        )

    def submit(self, app: Path, config: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Submit an app with a run config, and stream its log to `run.log`; return the process that streams."""
        home = self._folder / "home"
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{self.address}"\ninsecure = true\n'
        )
        run_config = " ".join(f'{name}="{value}"' for name, value in config.items())
        return self._start("run", "flwr", "run", str(app), "here", "--stream", "--run-config", run_config)

    def close(self) -> None:
        """End all."""
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._processes.clear()

    def _start(self, name: str, program: str, *args: str) -> subprocess.Popen[bytes]:
        path = self._bin / program
        if not path.exists():
            raise SettingsError(
                "Flower is not installed: pip install 'sealwright[flower]'", code="extra-missing"
            )
        environment = {
            **os.environ,
            **_ENVIRONMENT,
            "FLWR_HOME": str(self._folder / "home"),
            "PATH": f"{self._bin}:{os.environ.get('PATH', '')}",
        }
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(path), *args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # its children end with it
            )
        self._processes.append(process)
        return process


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until_open(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    last = log.read_text(errors="replace").splitlines()[-1:] or [""]
    raise UnavailableError(
        f"the SuperLink did not start: {last[0][:200]}", code="engine-unavailable", stage="start"
    )
