"""A real broker in its own process, enclaves of two builds (evidence of a fake quoting root), and signed policies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.broker.support import AUTH, Clock, Enclave, GotLease, World, check_lease

from sealwright.appraisal.policy import KeyPolicy
from sealwright.appraisal.signed import POLICY
from sealwright.broker.settings import Layout
from sealwright.crypto.canonical import canonical
from sealwright.crypto.document import validated
from sealwright.crypto.dsse import Envelope
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.errors import SettingsError
from sealwright.ops.rollout.statement import STAGES, Stage
from sealwright.protocol.kbs import decode_nonce
from sealwright.protocol.report_data import Purpose, report_data
from sealwright.testing.software import FakePlatformWarning, SoftwareTestPlatform
from sealwright.tlog.keys import Signer
from sealwright.tlog.posix import PosixLog

OLD, NEW = b"\x01" * 32, b"\x02" * 32
LEASE_S = 600


def write_key(path: Path, key: Ed25519PrivateKey) -> Path:
    """Write a private key as `owner-key new` does."""
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    return path


@dataclass(slots=True, kw_only=True)
class Site:
    """A broker's folder, its key `k1`, who signs policies, and the log of rollouts."""

    root: Path
    now: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    anna: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    boris: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    log: Signer = field(
        default_factory=lambda: Signer(name="log.test/rollouts", key=Ed25519PrivateKey.generate())
    )
    world: World = field(init=False)
    policies: dict[Stage, bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.world = World(self.root / "broker", clock=Clock(self.now))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FakePlatformWarning)
            self.world.platform = SoftwareTestPlatform(self.now)
        (self.root / "log").mkdir()
        PosixLog.open(self.root / "log", self.log, create=True).close()
        (self.root / "log.key").write_text(self.log.encode() + "\n")
        (self.root / "log.key").chmod(0o600)
        write_key(self.root / "anna.pem", self.anna)
        write_key(self.root / "boris.pem", self.boris)
        canary = {"code": [NEW.hex()], "leases": 1}
        self.policies = {
            "current": self.policy(1, [OLD]),
            "canary": self.policy(2, [OLD, NEW], canary=canary),
            "promote": self.policy(3, [OLD, NEW]),
            "retire": self.policy(4, [NEW]),
        }
        for stage, raw in self.policies.items():
            (self.root / f"{stage}.policy").write_bytes(raw)

    def policy(
        self, version: int, code: list[bytes], *, keys: list[Ed25519PrivateKey] | None = None, **changes: Any
    ) -> bytes:
        """Return a signed policy that admits the builds `code`."""
        software = {
            "vector": {"hardware": 97, "runtime-opaque": 96},
            "roots": [self.world.platform.root_fingerprint.hex()],
            "code": [one.hex() for one in code],
        }
        members: dict[str, Any] = {
            "format": "sealwright-policy/v1",
            "version": version,
            "profile": "demo",
            "require_hardware": False,
            "created": rfc3339(self.now - timedelta(minutes=1)),
            "expires": rfc3339(self.now + timedelta(hours=20)),
            "platforms": {"software": software},
            "config": {"brokers": [b64url(self.world.broker_root)], "log_keys": [self.world.log_key]},
            "lease_s": LEASE_S,
            "signers": {
                "keys": [b64url(key.public_key().public_bytes_raw()) for key in (self.anna, self.boris)],
                "threshold": 2,
            },
        }
        policy = validated(KeyPolicy, members | changes, SettingsError)
        return Envelope.sign(POLICY, policy.encode(), *(keys or [self.anna, self.boris])).encode()

    def make_key(self) -> None:
        """Make the key `k1` of tenant acme under the current policy, with an admitted manifest."""
        with self.world.open() as running:
            running.admin.create_key("acme", "k1", "model", self.policies["current"])
            dek = self.world.sealing_key(running, "k1")
            public = self.world.owner.public_key().public_bytes_raw()
            running.admin.admit("k1", self.world.manifest(dek, "k1"), owner_key=public, force=False)

    def enclave(self) -> Enclave:
        """Return a fresh enclave that lists `k1`."""
        with self.world.open() as running:
            return Enclave.make(self.world, running)

    def record(self, folder: Path, builds: Mapping[str, bytes]) -> Path:
        """Write recorded evidence of enclaves, and the file of cases that names it."""
        folder.mkdir()
        cases = []
        for name, code in builds.items():
            envelope = self.world.platform.quote(bytes(64), (code, bytes(32)), {})
            (folder / f"{name}.json").write_bytes(canonical(envelope.to_json()))
            cases.append({"name": name, "evidence": f"{name}.json", "at": rfc3339(self.now)})
        path = folder / "cases.yaml"
        path.write_text(json.dumps({"cases": cases}))
        return path

    @property
    def token(self) -> Path:
        """File with the admin token."""
        return Layout(root=self.world.root).admin_token

    def signing(self) -> list[str]:
        """Return the options that every step takes."""
        keys = [f"--key={self.root / 'anna.pem'}", f"--key={self.root / 'boris.pem'}"]
        return [
            *keys,
            f"--log={self.root / 'log'}",
            f"--log-key={self.root / 'log.key'}",
            "--operator=tester",
        ]

    def planning(self) -> list[str]:
        """Return the options of `plan`, without broker."""
        return ["--kid=k1", *[f"--{stage}={self.root / f'{stage}.policy'}" for stage in STAGES]]


@dataclass(slots=True)
class Guest:
    """One boot of an enclave of a build, as it speaks to the broker."""

    site: Site
    enclave: Enclave
    code: bytes
    http: httpx2.Client

    def attest(self) -> httpx2.Response:
        """Ask for a session and answer its nonce with evidence."""
        answer = self.http.post("/kbs/v0/auth", json=AUTH)
        assert answer.status_code == 200, answer.text
        nonce = answer.json()["nonce"]
        bound = report_data(
            Purpose.LEASE,
            nonce=decode_nonce(nonce),
            config_digest=self.enclave.config.digest(),
            keyset_digest=self.enclave.keyset.digest(),
        )
        quote = self.site.world.platform.quote(bound, (self.code, self.enclave.config.digest()), {})
        return self.http.post(
            "/kbs/v0/attest", json=self.enclave.attest_body(nonce, evidence=quote.to_json())
        )

    def lease(self) -> httpx2.Response:
        """Ask for the lease of acme."""
        return self.http.post("/kbs/v0/sealwright/lease", json={"tenant": "acme", "answers": 0})

    def leased(self) -> GotLease:
        """Attest, and take a lease, checked as an enclave does."""
        answer = self.attest()
        assert answer.status_code == 200, answer.text
        answer = self.lease()
        assert answer.status_code == 200, answer.text
        return check_lease(self.enclave, answer.json(), "acme")

    def key(self) -> httpx2.Response:
        """Ask for the key."""
        return self.http.get("/kbs/v0/resource/acme/key/k1")


@contextmanager
def served(site: Site) -> Iterator[str]:
    """Run the broker as a process; yield its URL."""
    code = "import sys; from sealwright.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "broker", "serve", str(site.world.root), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, "--log-format", "json"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ,
    )
    assert process.stderr is not None
    try:
        yield json.loads(process.stderr.readline())["url"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
