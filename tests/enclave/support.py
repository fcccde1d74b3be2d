"""A real broker on a loopback port, a sealed model, and the workload run in this process on a fake machine."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.appraisal.policy import TrustFile
from sealwright.broker.service import Running, init_broker, open_broker
from sealwright.client.httpx_transport import async_transport
from sealwright.crypto.canonical import canonical, parse_json
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.crypto.hpke import HpkePrivateKey, Kem, open_from
from sealwright.crypto.statement import ed25519
from sealwright.enclave.artefacts import EnclavePayload
from sealwright.inference.main import serve
from sealwright.inference.zygote import Zygote
from sealwright.protocol.enclave_config import EnclaveConfig, TenantList
from sealwright.protocol.sealing_key import SealingKey
from sealwright.sealing import manifest_path, seal_file
from sealwright.testing.software import FakePlatformWarning, SoftwareTestPlatform
from sealwright.testing.workload import FakeWorkload

CODE = bytes(range(32))
TENANT, KID, MODEL = "acme", "k1", "smol"
BROKER = ("broker.test", 80)


class Clock:
    """The broker's clock."""

    def __init__(self, ahead: timedelta = timedelta(0)) -> None:
        self.ahead = ahead

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


class Notes(list[tuple[str, dict[str, Any]]]):
    """Collects what the enclave says."""

    def __call__(self, event: str, /, **ids: str | int) -> None:
        self.append((event, ids))

    def events(self) -> list[str]:
        return [event for event, _ in self]

    async def wait(self, event: str, *, count: int = 1, seconds: float = 20) -> None:
        for _ in range(int(seconds / 0.02)):
            if self.events().count(event) >= count:
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"{event} was not said: {self}")


@dataclass
class World:
    """Everything outside the enclave."""

    directory: Path
    model: bytes = b"GGUF, as far as the fake engine reads"
    lease_s: int = 600
    limits: dict[str, int] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    code: bytes = CODE
    root: bytes = b""  # fingerprint of a real quoting root, in place of the fake one
    claims: dict[str, list[str]] = field(default_factory=dict)  # weaker ones that are admitted
    owner: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def __post_init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FakePlatformWarning)
            self.platform = SoftwareTestPlatform(self.clock())
        made = init_broker(self.directory / "broker", clock=self.clock)
        self.broker_root, self.log_key = made.root_public, made.log_key
        self.artefact = self.directory / "model.gguf.sealed"
        self.credential = ""
        self.openings: list[TenantList] = []
        self.peer = ("", 0)
        self.running: Running

    @contextmanager
    def broker(self) -> Iterator[None]:
        """Run the broker, with the model's key and a caller in it."""
        with (
            open_broker(self.directory / "broker", clock=self.clock) as self.running,
            _served(self.running) as at,
        ):
            self.peer = at
            if not self.openings:
                self._seal()
            yield

    def _seal(self) -> None:
        admin = self.running.admin
        admin.create_key(TENANT, KID, MODEL, canonical(self.policy()))
        private = HpkePrivateKey.generate(Kem.XWING)
        release = self.running.core.secrets.release.public_key().public_bytes_raw()
        said = SealingKey.verify(
            admin.sealing_key(KID, private.public.raw), [ed25519(release)], stage="signature"
        )
        dek = open_from(private, said.enc, said.hpke_info(), b"", said.ciphertext)
        plain = self.directory / "model.gguf"
        plain.write_bytes(self.model)
        manifest = seal_file(plain, self.artefact, dek=dek, kid=KID, signer=self.owner, version=1)
        plain.unlink()
        owner = self.owner.public_key().public_bytes_raw()
        admin.admit(KID, manifest_path(self.artefact).read_bytes(), owner_key=owner, force=False)
        self.credential = admin.add_caller(TENANT, "alice")
        entry = {"kid": KID, "manifest_digest": manifest.manifest_digest.hex(), "model": MODEL}
        self.openings = [
            TenantList.from_json({"tenant": TENANT, "salt": b64url(os.urandom(32)), "artefacts": [entry]})
        ]

    def policy(self, **changes: Any) -> dict[str, Any]:
        now = self.clock()
        return {
            "format": "sealwright-policy/v1",
            "version": 1,
            "profile": "demo",
            "require_hardware": False,
            "created": rfc3339(now - timedelta(hours=1)),
            "expires": rfc3339(now + timedelta(hours=20)),
            "platforms": {"software": self._platform()},
            "config": {"brokers": [b64url(self.broker_root)], "log_keys": [self.log_key]},
            "lease_s": self.lease_s,
            **changes,
        }

    def trust(self) -> TrustFile:
        rules = self.policy()
        del rules["lease_s"]
        more = {
            "format": "sealwright-trust/v1",
            "tenant": TENANT,
            "brokers": [b64url(self.broker_root)],
            "log_policy": f"log {self.log_key}\nquorum none\n",
        }
        return TrustFile.from_json({**rules, **more})

    def config(self, **changes: Any) -> EnclaveConfig:
        limits = {"request_bytes": 65536, "response_tokens": 64, "concurrency": 4, "receipt_backlog": 64}
        return EnclaveConfig.from_json(
            {
                "format": "sealwright-enclave-config/v1",
                "suite": "default",
                "workload": {"name": "chat", "entry": "sealwright.inference.main:main"},
                "engine": {"name": "llama.cpp", "context_tokens": 1024, "slots": 2, "threads": 2},
                "brokers": [{"url": f"http://{BROKER[0]}", "root": b64url(self.broker_root)}],
                "policy_signers": [],
                "log": {
                    "origin": self.log_key.split("+")[0],
                    "keys": [self.log_key],
                    "witnesses": [],
                    "quorum": 0,
                },
                "tenants": [
                    {"tenant": opened.tenant, "artefacts": opened.commitment().hex()}
                    for opened in self.openings
                ],
                "egress": [],
                "limits": limits | self.limits,
                **changes,
            }
        )

    def payload(self) -> EnclavePayload:
        envelope = parse_json(manifest_path(self.artefact).read_bytes())
        return EnclavePayload(openings=self.openings, manifests={KID: envelope})

    def workload(self, config: EnclaveConfig | None = None, **changes: Any) -> FakeWorkload:
        settings: dict[str, Any] = {
            "code": self.code,
            "config": (config or self.config()).encode(),
            "payload": self.payload().encode(),
            "peers": {BROKER: self.peer},
            "extra_fds": {KID: os.open(self.artefact, os.O_RDONLY | os.O_CLOEXEC)},
            **changes,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FakePlatformWarning)
            return FakeWorkload(self.platform, **settings)

    def _platform(self) -> dict[str, Any]:
        return {
            "vector": {"hardware": 97, "runtime-opaque": 96},
            "roots": [(self.root or self.platform.root_fingerprint).hex()],
            "code": [self.code.hex()],
            "claims": self.claims,
        }


@dataclass
class Serving:
    """An enclave that serves, and a client that trusts it."""

    url: str
    client: httpx2.AsyncClient  # attested
    plain: httpx2.AsyncClient
    notes: Notes
    task: asyncio.Task[None]
    workload: FakeWorkload


@asynccontextmanager
async def enclave(world: World, zygote: Zygote, **changes: Any) -> AsyncIterator[Serving]:
    """Run the workload until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    workload = world.workload(listener=listener, **changes)
    notes, stop = Notes(), asyncio.Event()
    task = asyncio.create_task(serve(workload, zygote, stop=stop, note=notes))
    said = asyncio.create_task(notes.wait("serving", seconds=60))
    await asyncio.wait((task, said), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        said.cancel()
        listener.close()
        task.result()
    headers = {"authorization": f"Bearer {world.credential}"}
    outer = httpx2.AsyncHTTPTransport()
    async with (
        httpx2.AsyncClient(
            transport=async_transport(trust=world.trust(), outer=outer),
            base_url=url,
            headers=headers,
            timeout=30,
        ) as client,
        httpx2.AsyncClient(base_url=url, timeout=30) as plain,
    ):
        try:
            yield Serving(url=url, client=client, plain=plain, notes=notes, task=task, workload=workload)
        finally:
            stop.set()
            await asyncio.wait_for(task, 30)
            listener.close()


def chat(text: str, **more: Any) -> dict[str, Any]:
    """Return a chat request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


@contextmanager
def _served(running: Running) -> Iterator[tuple[str, int]]:
    app = running.app(log=lambda *_, **__: None)
    config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()
