"""Documents of a small fixed world (keys from fixed seeds, times from `T0`), for vectors and properties."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc.jwk import ECKey

from sealwright.crypto.encoding import b64url_decode
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
from sealwright.protocol.keyset import HpkeKey, Keyset, TeePubkey
from sealwright.protocol.lease import (
    BrokerKeys,
    Caller,
    Callers,
    EarKey,
    Lease,
    LeasedKey,
    credential_digest,
)
from sealwright.protocol.receipt import Predicate, Receipt, ReceiptStatement
from sealwright.protocol.release import Release

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "protocol.json"
T0 = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)
NONCE = bytes(range(32))
LOG_KEY = "log.example/one+00000000+AAAA"
TENANT = "hospital"


def key(seed: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def public(seed: int) -> bytes:
    return key(seed).public_key().public_bytes_raw()


ROOT, RELEASE, RECEIPT, SIGNER, STRANGER = 1, 2, 3, 4, 5


def ec_key(scalar: int = 7) -> ECKey:
    pem = derive_private_key(scalar, SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    return ECKey.import_key(pem)


def ear_jwk() -> EarKey:
    jwk = ec_key().as_dict(private=False)
    return EarKey(x=b64url_decode(str(jwk["x"])), y=b64url_decode(str(jwk["y"])))


def tenant_list(**changes: Any) -> TenantList:
    entry = ArtefactEntry(kid="smol", manifest_digest=b"\x11" * 32, model="smol-135m")
    return TenantList(**({"tenant": TENANT, "salt": b"\x22" * 32, "artefacts": [entry]} | changes))


def config(**changes: Any) -> EnclaveConfig:
    return EnclaveConfig(
        **(
            {
                "suite": "default",
                "workload": Workload(name="chat", entry="sealwright.enclave.main:run"),
                "engine": EngineConfig(name="llama.cpp", context_tokens=2048, slots=2, threads=2),
                "brokers": [BrokerAddress(url="https://broker.example", root=public(ROOT))],
                "policy_signers": [public(SIGNER)],
                "log": LogConfig(origin="log.example/one", keys=[LOG_KEY], witnesses=[], quorum=0),
                "tenants": [TenantEntry(tenant=TENANT, artefacts=tenant_list().commitment())],
                "egress": [],
                "limits": Limits(request_bytes=65536, response_tokens=256, concurrency=4, receipt_backlog=64),
            }
            | changes
        )
    )


def keyset(**changes: Any) -> Keyset:
    hpke = HpkeKey(key_id=1, kem=0x647A, kdf=1, aead=2, public_key=b"\x33" * 1216)
    return Keyset(
        **(
            {
                "suite": "default",
                "boot_id": b"\x44" * 16,
                "created": T0,
                "not_after": T0 + timedelta(hours=24),
                "receipt_key": public(RECEIPT),
                "hpke": [hpke],
                "tee_pubkey": TeePubkey(pub=b"\x55" * 1216),
                "tls_spki": [],
            }
            | changes
        )
    )


def broker_keys(**changes: Any) -> BrokerKeys:
    return BrokerKeys(
        **(
            {
                "release_key": public(RELEASE),
                "ear_key": ear_jwk(),
                "journal_key": HpkeKey(key_id=1, kem=0x647A, kdf=1, aead=2, public_key=b"\x66" * 1216),
                "log_key": LOG_KEY,
                "not_before": T0,
                "not_after": T0 + timedelta(days=30),
            }
            | changes
        )
    )


def lease(**changes: Any) -> Lease:
    return Lease(
        **(
            {
                "lease_id": b"\x77" * 16,
                "tenant": TENANT,
                "keyset_digest": keyset().digest(),
                "config_digest": config().digest(),
                "ear_digest": b"\x88" * 32,
                "kids": [LeasedKey(kid="smol", manifest_digest=b"\x11" * 32)],
                "not_before": T0,
                "not_after": T0 + timedelta(minutes=10),
                "state_epoch": 3,
            }
            | changes
        )
    )


def release(**changes: Any) -> Release:
    return Release(
        **(
            {
                "nonce": NONCE,
                "tee_pubkey": keyset().tee_pubkey.digest(),
                "tenant": TENANT,
                "kid": "smol",
                "epoch": 3,
                "manifest_digest": b"\x11" * 32,
                "lease_id": lease().lease_id,
                "lease_digest": lease().digest(),
                "policy_digest": b"\x99" * 32,
                "suite": "default",
                "enc": b"\xaa" * 1120,
                "ciphertext": b"\xbb" * 48,
            }
            | changes
        )
    )


def callers(**changes: Any) -> Callers:
    one = Caller(caller="ward-3", credential_digest=credential_digest("swk_test"))
    return Callers(**({"tenant": TENANT, "lease_id": lease().lease_id, "callers": [one]} | changes))


FIELDS = {"kid": b'"smol"', "model": b'"smol-135m"', "request": b'"00"', "tenant": b'"hospital"'}


def commitment(record_id: bytes = b"\xcc" * 16) -> Commitment:
    salts = iter(bytes([n]) * 32 for n in range(100, 200))
    return Commitment.make(FIELDS, record_id=record_id, random=lambda _: next(salts))


def predicate(**changes: Any) -> Predicate:
    made = commitment()
    return Predicate(
        **(
            {
                "receipt_id": made.record_id,
                "sequence": 1,
                "issued": T0 + timedelta(minutes=1),
                "keyset_digest": keyset().digest(),
                "config_digest": config().digest(),
                "lease_id": lease().lease_id,
                "platform": "software",
                "confidential": False,
                "commitment": made.root,
                "fields": list(made.leaves),
            }
            | changes
        )
    )


def receipt(statement: ReceiptStatement | None = None, *, seed: int = RECEIPT, **changes: Any) -> Receipt:
    statement = statement or ReceiptStatement.of(predicate(**changes))
    return Receipt(receipt=json.loads(statement.sign(key(seed))), fields=dict(commitment().openings))
