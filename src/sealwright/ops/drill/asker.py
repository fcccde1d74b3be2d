"""An enclave as brokers see it, without a machine: asks for a key under a budget, with evidence of a root of the drill's own."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from sealwright.appraisal.software import SOFTWARE_VECTOR
from sealwright.attester.quoter.authority import Authority, envelope, new_authority, sign_quote
from sealwright.broker.service import Running
from sealwright.crypto.canonical import canonical
from sealwright.crypto.dsse import Envelope
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.crypto.hpke import HpkePrivateKey, Kem, open_from
from sealwright.crypto.statement import ed25519
from sealwright.enclave.broker_client import BrokerClient
from sealwright.enclave.clock import EnclaveClock
from sealwright.enclave.identity import Identity
from sealwright.enclave.keyset import EnclaveKeys
from sealwright.evidence.software import Claims, QuoteBody
from sealwright.protocol.enclave_config import BrokerAddress, EnclaveConfig, TenantList
from sealwright.protocol.sealing_key import SealingKey
from sealwright.sealing.manifest import PAYLOAD_TYPE, Entry, Manifest

TENANT, KID = "drill-budget", "drill-budget"
RELEASES = 6  # of the key, in all
_CLAIMS = {
    "user": "own",
    "sealed_root": "tmpfs",
    "dumpable": "never",
    "core": "off",
    "filesystem": "landlock",
    "seccomp": "enforced",
    "network": "namespace",
    "swap": "none",
}


@dataclass(frozen=True, kw_only=True)
class Budgeted:
    """A key that may be released so often, and what asks for it."""

    authority: Authority
    root: bytes  # the broker's
    config: EnclaveConfig
    listed: TenantList

    @classmethod
    def make(cls, running: Running) -> Budgeted:
        """Make the key, with a manifest, in an open broker."""
        authority = new_authority(datetime.now(UTC))
        secrets_ = running.core.secrets
        root, log_key = secrets_.root_public, secrets_.log_key
        running.admin.create_key(TENANT, KID, "model", _policy(authority, root, log_key))
        digest = _admit(running)
        entry = {"kid": KID, "manifest_digest": digest.hex(), "model": "model"}
        listed = TenantList.from_json(
            {"tenant": TENANT, "salt": b64url(secrets.token_bytes(32)), "artefacts": [entry]}
        )
        return cls(authority=authority, root=root, config=_config(root, log_key, listed), listed=listed)

    def ask(self, url: str) -> None:
        """Attest anew to the broker at `url`, take a lease and the key. Raises SealwrightError."""
        clock = EnclaveClock()
        client = BrokerClient(BrokerAddress(url=_URL, root=self.root), _connect(url), clock)
        session = client.attest(self._identity())
        try:
            grant = session.lease(TENANT, answers=0)
            key = session.release(grant, KID, self.listed.artefacts[0].manifest_digest)
            key[:] = bytes(len(key))
        finally:
            session.close()

    def _identity(self) -> Identity:
        now = datetime.now(UTC)
        key = ec.generate_private_key(ec.SECP384R1())
        certificate, crl = self.authority.certify(key.public_key(), now), self.authority.crl(now)

        def quote(report_data: bytes) -> bytes:
            body = QuoteBody(
                quoter="0.0.0-drill",
                boot_id="00000000-0000-4000-8000-000000000000",
                start_time=1,
                registers=(_CODE, self.config.digest()),
                report_data=report_data,
                claims=Claims.model_validate(_CLAIMS),
                stated=(),
            )
            return envelope(sign_quote(key, body), certificate, self.authority.root, crl).encode()

        return Identity(
            config=self.config,
            config_bytes=self.config.encode(),
            config_digest=self.config.digest(),
            keys=EnclaveKeys.generate("default", created=now),
            openings=[self.listed],
            quote=quote,
            platform="software",
        )


_URL = "http://broker.drill"
_CODE = bytes(range(32))


def _connect(url: str) -> Callable[[str, int], socket.socket]:
    place = urlsplit(url)
    return lambda _host, _port: socket.create_connection((place.hostname, place.port or 80), 30)


def _policy(authority: Authority, root: bytes, log_key: str) -> bytes:
    now = datetime.now(UTC)
    fingerprint = hashlib.sha256(authority.root.public_bytes(Encoding.DER)).hexdigest()
    software = {"vector": dict(SOFTWARE_VECTOR), "roots": [fingerprint], "code": [_CODE.hex()]}
    said: dict[str, Any] = {
        "format": "sealwright-policy/v1",
        "version": 1,
        "profile": "demo",
        "require_hardware": False,
        "created": rfc3339(now - timedelta(hours=2)),
        "expires": rfc3339(now + timedelta(hours=20)),
        "platforms": {"software": software},
        "config": {"brokers": [b64url(root)], "log_keys": [log_key]},
        "limits": {"releases": RELEASES},
    }
    return canonical(said)


def _admit(running: Running) -> bytes:
    """Admit a manifest of nothing; return its digest."""
    private, owner = HpkePrivateKey.generate(Kem.XWING), Ed25519PrivateKey.generate()
    sealed = running.admin.sealing_key(KID, private.public.raw)
    release = running.core.secrets.release.public_key().public_bytes_raw()
    said = SealingKey.verify(sealed, [ed25519(release)], stage="signature")
    dek = open_from(private, said.enc, said.hpke_info(), b"", said.ciphertext)
    entry = Entry(path="model.gguf", length=5, blake3=bytes(32))
    made = Manifest.build(
        [entry], dek=dek, kid=KID, artefact_id=os.urandom(16), version=1, nonce=os.urandom(12)
    )
    envelope_ = Envelope.sign(PAYLOAD_TYPE, made.payload, owner).encode()
    running.admin.admit(KID, envelope_, owner_key=owner.public_key().public_bytes_raw(), force=False)
    return made.manifest_digest


def _config(root: bytes, log_key: str, listed: TenantList) -> EnclaveConfig:
    limits = {"request_bytes": 65536, "response_tokens": 64, "concurrency": 1, "receipt_backlog": 64}
    return EnclaveConfig.from_json(
        {
            "format": "sealwright-enclave-config/v1",
            "suite": "default",
            "workload": {"name": "drill", "entry": "sealwright.inference.main:main"},
            "engine": {"name": "llama.cpp", "context_tokens": 1024, "slots": 1, "threads": 1},
            "brokers": [{"url": _URL, "root": b64url(root)}],
            "policy_signers": [],
            "log": {"origin": log_key.split("+")[0], "keys": [log_key], "witnesses": [], "quorum": 0},
            "tenants": [{"tenant": TENANT, "artefacts": listed.commitment().hex()}],
            "egress": [],
            "limits": limits,
        }
    )
