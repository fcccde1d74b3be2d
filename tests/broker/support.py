"""A broker in a temporary directory, a fake machine, and an enclave that speaks KBS to it."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.broker.service import Running, init_broker, open_broker
from sealwright.crypto.canonical import canonical
from sealwright.crypto.dsse import Envelope
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.crypto.hpke import HpkePrivateKey, Kem, open_from
from sealwright.protocol.enclave_config import EnclaveConfig, TenantList
from sealwright.protocol.kbs import decode_nonce
from sealwright.protocol.keyset import HpkeKey, Keyset, TeePubkey
from sealwright.protocol.lease import BrokerKeys, Callers, Lease, verify_broker_keys, verify_lease
from sealwright.protocol.release import verify_release
from sealwright.protocol.report_data import Purpose, report_data
from sealwright.sealing.manifest import PAYLOAD_TYPE, Entry, Manifest
from sealwright.testing.software import FakePlatformWarning, SoftwareTestPlatform

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
CODE = bytes(range(32))
AUTH = {"version": "0.4.0", "tee": "software", "extra-params": {"sealwright": "keyset/v1"}}


@dataclass(slots=True)
class Clock:
    """A clock that a test sets."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **amount: float) -> None:
        self.now += timedelta(**amount)


@dataclass(slots=True)
class World:
    """A broker's directory and what surrounds it."""

    root: Path
    clock: Clock = field(default_factory=Clock)
    owner: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    holder: Path | None = None
    platform: SoftwareTestPlatform = field(init=False)
    broker_root: bytes = field(init=False)
    log_key: str = field(init=False)

    def __post_init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FakePlatformWarning)
            self.platform = SoftwareTestPlatform(NOW)
        made = init_broker(self.root, holder=self.holder, clock=self.clock)
        self.broker_root, self.log_key = made.root_public, made.log_key

    @contextmanager
    def open(self, **options: Any) -> Iterator[Running]:
        options = {"clock": self.clock, "holder": self.holder} | options
        with open_broker(self.root, **options) as running:
            yield running

    def policy(self, **changes: Any) -> bytes:
        software = {
            "vector": {"hardware": 97, "runtime-opaque": 96},
            "roots": [self.platform.root_fingerprint.hex()],
            "code": [CODE.hex()],
        }
        policy: dict[str, Any] = {
            "format": "sealwright-policy/v1",
            "version": 1,
            "profile": "demo",
            "require_hardware": False,
            "created": rfc3339(NOW),
            "expires": rfc3339(NOW + timedelta(hours=20)),
            "platforms": {"software": software},
            "config": {"brokers": [b64url(self.broker_root)], "log_keys": [self.log_key]},
            "lease_s": 600,
        }
        return json.dumps(policy | changes).encode()

    def sealing_key(self, running: Running, kid: str) -> bytes:
        """Return a key as its owner gets it."""
        from sealwright.crypto.statement import ed25519
        from sealwright.protocol.sealing_key import SealingKey

        private = HpkePrivateKey.generate(Kem.XWING)
        envelope = running.admin.sealing_key(kid, private.public.raw)
        release = running.core.secrets.release.public_key().public_bytes_raw()
        said = SealingKey.verify(envelope, [ed25519(release)], stage="signature")
        return open_from(private, said.enc, said.hpke_info(), b"", said.ciphertext)

    def manifest(self, dek: bytes, kid: str, version: int = 1, artefact: bytes = b"a" * 16) -> bytes:
        entry = Entry(path="model.gguf", length=5, blake3=bytes(32))
        made = Manifest.build(
            [entry], dek=dek, kid=kid, artefact_id=artefact, version=version, nonce=os.urandom(12)
        )
        return Envelope.sign(PAYLOAD_TYPE, made.payload, self.owner).encode()

    def add_key(self, running: Running, tenant: str = "acme", kid: str = "k1", **policy: Any) -> bytes:
        """Make a key with an admitted manifest; return the key."""
        running.admin.create_key(tenant, kid, "model", self.policy(**policy))
        dek = self.sealing_key(running, kid)
        public = self.owner.public_key().public_bytes_raw()
        running.admin.admit(kid, self.manifest(dek, kid), owner_key=public, force=False)
        return dek


def admitted(running: Running, kid: str) -> bytes:
    """Return the manifest digest admitted for a key."""
    return bytes.fromhex(str(running.admin.key(kid)["manifest_digest"]))


@dataclass(slots=True)
class Enclave:
    """Keys, config and lists of an enclave; a test bends what it likes before it speaks."""

    world: World
    tee: HpkePrivateKey
    receipt_key: Ed25519PrivateKey
    keyset: Keyset
    config: EnclaveConfig
    openings: list[TenantList]

    @classmethod
    def make(cls, world: World, running: Running, tenants: dict[str, list[str]] | None = None) -> Enclave:
        openings = [
            TenantList.model_validate(
                {
                    "tenant": tenant,
                    "salt": os.urandom(32),
                    "artefacts": [
                        {"kid": kid, "manifest_digest": admitted(running, kid), "model": "model"}
                        for kid in kids
                    ],
                }
            )
            for tenant, kids in (tenants or {"acme": ["k1"]}).items()
        ]
        tee = HpkePrivateKey.generate(Kem.XWING)
        receipt_key = Ed25519PrivateKey.generate()
        return cls(
            world=world,
            tee=tee,
            receipt_key=receipt_key,
            keyset=_keyset(tee, receipt_key, world.clock.now),
            config=_config(world, openings),
            openings=openings,
        )

    def evidence(self, nonce: bytes, purpose: Purpose = Purpose.LEASE, **claims: str) -> dict[str, Any]:
        bound = report_data(
            purpose, nonce=nonce, config_digest=self.config.digest(), keyset_digest=self.keyset.digest()
        )
        return self.world.platform.quote(bound, (CODE, self.config.digest()), claims).to_json()

    def attest_body(self, nonce_text: str, **changes: Any) -> dict[str, Any]:
        form = {
            "keyset": b64url(self.keyset.encode()),
            "config": b64url(self.config.encode()),
            "openings": [opened.to_json() for opened in self.openings],
        }
        evidence = changes.pop("evidence", None) or self.evidence(decode_nonce(nonce_text))
        runtime = {"nonce": nonce_text, "tee-pubkey": self.keyset.tee_pubkey.to_json(), "sealwright": form}
        return {
            "init-data": None,
            "runtime-data": runtime | changes,
            "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
        }

    def with_config(self, **changes: Any) -> Enclave:
        return replace(self, config=EnclaveConfig.from_json(self.config.to_json() | changes))


def _keyset(tee: HpkePrivateKey, receipt_key: Ed25519PrivateKey, now: datetime) -> Keyset:
    return Keyset(
        suite="default",
        boot_id=os.urandom(16),
        created=now,
        not_after=now + timedelta(hours=12),
        receipt_key=receipt_key.public_key().public_bytes_raw(),
        hpke=[HpkeKey(key_id=1, kem=0x647A, kdf=1, aead=2, public_key=tee.public.raw)],
        tee_pubkey=TeePubkey(pub=tee.public.raw),
        tls_spki=[],
    )


def _config(world: World, openings: list[TenantList]) -> EnclaveConfig:
    return EnclaveConfig.from_json(
        {
            "format": "sealwright-enclave-config/v1",
            "suite": "default",
            "workload": {"name": "chat", "entry": "sealwright.enclave.main:main"},
            "engine": {"name": "llama.cpp", "context_tokens": 2048, "slots": 1, "threads": 1},
            "brokers": [{"url": "http://broker.test", "root": b64url(world.broker_root)}],
            "policy_signers": [],
            "log": {
                "origin": world.log_key.split("+")[0],
                "keys": [world.log_key],
                "witnesses": [],
                "quorum": 0,
            },
            "tenants": [
                {"tenant": opened.tenant, "artefacts": opened.commitment().hex()} for opened in openings
            ],
            "egress": [],
            "limits": {
                "request_bytes": 65536,
                "response_tokens": 512,
                "concurrency": 4,
                "receipt_backlog": 64,
            },
        }
    )


class Lines(list[dict[str, Any]]):
    """Collects log lines."""

    def __call__(self, event: str, **fields: Any) -> None:
        self.append({"event": event, **fields})


class Kbs:
    """A client of one broker's HTTP surface, in process."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.lines = Lines()
        self.http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(running.app(log=self.lines)), base_url="http://broker.test"
        )
        self.nonce = b""

    async def auth(self, body: Any = None) -> str:
        answer = await self.http.post("/kbs/v0/auth", json=body or AUTH)
        assert answer.status_code == 200, answer.text
        nonce: str = answer.json()["nonce"]
        self.nonce = decode_nonce(nonce)
        return nonce

    async def attest(self, enclave: Enclave, **changes: Any) -> httpx2.Response:
        nonce = await self.auth()
        return await self.http.post("/kbs/v0/attest", json=enclave.attest_body(nonce, **changes))

    async def lease(self, tenant: str = "acme", answers: int = 0) -> httpx2.Response:
        return await self.http.post("/kbs/v0/sealwright/lease", json={"tenant": tenant, "answers": answers})

    async def resource(self, kid: str = "k1", tenant: str = "acme") -> httpx2.Response:
        return await self.http.get(f"/kbs/v0/resource/{tenant}/key/{kid}")

    async def leased(self, enclave: Enclave, tenant: str = "acme", answers: int = 0) -> GotLease:
        """Attest and take a lease, checked as an enclave checks it."""
        answer = await self.attest(enclave)
        assert answer.status_code == 200, answer.text
        answer = await self.lease(tenant, answers)
        assert answer.status_code == 200, answer.text
        return check_lease(enclave, answer.json(), tenant)

    async def released(self, enclave: Enclave, got: GotLease, kid: str = "k1") -> bytes:
        """Take a key and open it, as an enclave does."""
        answer = await self.resource(kid, got.lease.tenant)
        assert answer.status_code == 200, answer.text
        listed = {item.kid: item.manifest_digest for opened in enclave.openings for item in opened.artefacts}
        release = verify_release(
            answer.content,
            got.broker_keys,
            nonce=self.nonce,
            tee_pubkey=enclave.keyset.tee_pubkey.digest(),
            kid=kid,
            manifest_digest=listed[kid],
            lease=got.lease,
        )
        return open_from(enclave.tee, release.enc, release.hpke_info(), b"", release.ciphertext)


@dataclass(frozen=True, slots=True)
class GotLease:
    """What an enclave holds after the lease request."""

    lease: Lease
    callers: Callers
    broker_keys: BrokerKeys


def check_lease(enclave: Enclave, body: dict[str, Any], tenant: str) -> GotLease:
    from sealwright.crypto.statement import ed25519

    at = enclave.world.clock.now
    keys = verify_broker_keys(canonical(body["broker_keys"]), [enclave.world.broker_root], at=at)
    lease = verify_lease(
        canonical(body["lease"]),
        keys,
        tenant=tenant,
        keyset_digest=enclave.keyset.digest(),
        config_digest=enclave.config.digest(),
        at=at,
    )
    callers = Callers.verify(canonical(body["callers"]), [ed25519(keys.release_key)], stage="callers")
    return GotLease(lease, callers, keys)
