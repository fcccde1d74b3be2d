"""An enclave without a machine, an engine or a secret: for tests of clients, yours and ours.

`FakeEnclave` has real evidence (of a fake quoting root), a real keyset, lease and receipts, and trust files
that admit exactly it. `sealwright.testing.gateway` puts a real sealed channel and an echo model in front.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.appraisal.ear import ear_digest
from sealwright.appraisal.policy import TrustFile
from sealwright.crypto.canonical import canonical
from sealwright.crypto.hpke import HpkePrivateKey, Kem
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.protocol.attestation import AttestationBundle, AttestationRequest
from sealwright.protocol.commitment import Commitment
from sealwright.protocol.enclave_config import (
    ArtefactEntry,
    BrokerAddress,
    EnclaveConfig,
    EngineConfig,
    Limits,
    LogConfig,
    TenantEntry,
    TenantList,
    Workload,
)
from sealwright.protocol.keyset import Keyset, TeePubkey
from sealwright.protocol.lease import Lease
from sealwright.protocol.receipt import Predicate, Receipt, ReceiptStatement
from sealwright.protocol.report_data import Purpose, report_data
from sealwright.testing.broker import FakeBroker, hpke_key
from sealwright.testing.software import FakePlatformWarning, SoftwareTestPlatform

CODE = b"\xc0" * 32  # register 0
MANIFEST = b"\x11" * 32  # manifest digest


def _utcnow() -> datetime:
    return datetime.now(UTC)


class FakeEnclave:
    """One boot of a fake enclave of one tenant. What differs from an honest one is changed by assignment."""

    def __init__(
        self,
        *,
        now: Callable[[], datetime] = _utcnow,
        tenant: str = "test",
        lease_life: timedelta = timedelta(minutes=10),
    ) -> None:
        """Args: now: enclave time; lease_life: of each lease it is given."""
        warnings.warn("FakeEnclave protects nothing", FakePlatformWarning, stacklevel=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FakePlatformWarning)
            self.platform = SoftwareTestPlatform(now())
            self.broker = FakeBroker(now())
        self.now, self.tenant, self.lease_life = now, tenant, lease_life
        self.credential = "swk_" + secrets.token_urlsafe(32)
        self.code = CODE
        self.platform_name = "software"  # as its receipts say
        self._entries: dict[str, int] = {}  # of the log, by SHA-256 of the entry
        self.config = _config(self.broker, tenant)
        self.boot()

    def boot(self) -> None:
        """Make a fresh keyset, and have it leased."""
        self.hpke = HpkePrivateKey.generate(Kem.XWING)
        self.receipt_key = Ed25519PrivateKey.generate()
        self.sequence = 0
        now = self.now().replace(microsecond=0)
        self.keyset = Keyset(
            suite=self.config.suite,
            boot_id=secrets.token_bytes(16),
            created=now,
            not_after=now + timedelta(hours=24),
            receipt_key=self.receipt_key.public_key().public_bytes_raw(),
            hpke=[hpke_key(self.hpke.public.kem, self.hpke.public.raw)],
            tee_pubkey=TeePubkey(pub=HpkePrivateKey.generate(Kem.XWING).public.raw),
            tls_spki=[],
        )
        self.renew()

    def renew(self) -> None:
        """Take a new result and lease of the broker, from now."""
        at = self.now().replace(microsecond=0)
        config_digest, keyset_digest = self.config.digest(), self.keyset.digest()
        self.ear = self.broker.result(
            config_digest=config_digest, keyset_digest=keyset_digest, evidence_digest=bytes(32), at=at
        )
        self.lease: Lease = self.broker.lease(
            tenant=self.tenant,
            keyset_digest=keyset_digest,
            config_digest=config_digest,
            ear_digest=ear_digest(self.ear),
            manifest_digest=MANIFEST,
            at=at,
            life=self.lease_life,
        )
        self.lease_envelope = self.lease.sign(self.broker.release)

    def quote(self, nonce: bytes, *, purpose: Purpose = Purpose.SERVE) -> EvidenceEnvelope:
        """Return evidence over `nonce`, this config and this keyset."""
        config_digest = self.config.digest()
        bound = report_data(
            purpose, nonce=nonce, config_digest=config_digest, keyset_digest=self.keyset.digest()
        )
        return self.platform.quote(bound, (self.code, config_digest))

    def bundle(self, request: AttestationRequest) -> AttestationBundle:
        """Answer a request for evidence."""
        return AttestationBundle(
            evidence=self.quote(request.nonce).to_json(),
            config=self.config.encode(),
            keyset=self.keyset.encode(),
            broker_keys=json.loads(self.broker.keys_envelope()),
            lease=json.loads(self.lease_envelope),
            ear=self.ear,
        )

    def trust(self, **changes: Any) -> dict[str, Any]:
        """Return the members of a trust file that admits exactly this enclave, with `changes`."""
        root = [self.broker.root_key]
        at = self.now().replace(microsecond=0)
        log_keys = self.config.log.keys
        document = {
            "version": 1,
            "profile": "demo",
            "require_hardware": False,
            "created": at,
            "expires": at + timedelta(hours=23),
            "platforms": {
                "software": {
                    "vector": {"hardware": 97, "runtime-opaque": 96},
                    "roots": [self.platform.root_fingerprint],
                    "code": [self.code],
                }
            },
            "config": {"brokers": root, "log_keys": log_keys},
            "tenant": self.tenant,
            "brokers": root,
            "log_policy": f"log {log_keys[0]}\nquorum none\n",
        }
        return TrustFile.from_json({**document, **changes}).to_json()

    def trust_file(self, **changes: Any) -> TrustFile:
        """Return that trust file."""
        return TrustFile.from_json(self.trust(**changes))

    def trust_yaml(self, **changes: Any) -> bytes:
        """Return that trust file as a user has it on disk."""
        return yaml.safe_dump(self.trust(**changes), sort_keys=False).encode()

    def receipt(self, fields: Mapping[str, object], *, record_id: bytes) -> Receipt:
        """Return a signed receipt over `fields` (JSON values), and log it."""
        self.sequence += 1
        made = Commitment.make(
            {name: canonical(value) for name, value in fields.items()}, record_id=record_id
        )
        statement = ReceiptStatement.of(
            Predicate(
                receipt_id=record_id,
                sequence=self.sequence,
                issued=self.now(),
                keyset_digest=self.keyset.digest(),
                config_digest=self.config.digest(),
                lease_id=self.lease.lease_id,
                platform=self.platform_name,
                confidential=False,
                commitment=made.root,
                fields=list(made.leaves),
            )
        )
        self.logged(statement.log_entry())
        return Receipt(receipt=json.loads(statement.sign(self.receipt_key)), fields=dict(made.openings))

    def logged(self, entry: bytes) -> None:
        """Log an entry, so that its proof can be asked for."""
        self._entries[hashlib.sha256(entry).hexdigest()] = self.broker.log.append(entry)

    def proof(self, entry_digest: str) -> bytes | None:
        """Return the proof of the entry with this SHA-256 (hex), if it was logged."""
        index = self._entries.get(entry_digest)
        return None if index is None else self.broker.log.prove(index)


def _config(broker: FakeBroker, tenant: str) -> EnclaveConfig:
    artefact = ArtefactEntry(kid="echo", manifest_digest=MANIFEST, model="echo")
    listed = TenantList(tenant=tenant, salt=secrets.token_bytes(32), artefacts=[artefact])
    return EnclaveConfig(
        suite="default",
        workload=Workload(name="echo", entry="sealwright.testing.gateway:app"),
        engine=EngineConfig(name="llama.cpp", context_tokens=2048, slots=1, threads=1),
        brokers=[BrokerAddress(url="https://broker.test", root=broker.root_key)],
        policy_signers=[],
        log=LogConfig(
            origin=broker.log.signer.name, keys=[broker.log.signer.vkey.encode()], witnesses=[], quorum=0
        ),
        tenants=[TenantEntry(tenant=tenant, artefacts=listed.commitment())],
        egress=[],
        limits=Limits(request_bytes=1 << 20, response_tokens=256, concurrency=8, receipt_backlog=64),
    )
