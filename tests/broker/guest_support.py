"""A guest of Confidential Containers as its components speak the KBS protocol 0.4.0: what they send, and how they open."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import httpx2
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwe
from joserfc.jwk import ECKey
from tests.broker.support import NOW, Lines

from sealwright.broker.service import Running
from sealwright.crypto.canonical import canonical
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.evidence.snp import LAYOUT
from sealwright.testing.snp import SnpTestPlatform

MEASURED = b"\x11" * 48
# What the guest components send: every algorithm that kbs-types lists, in its order.
AUTH = {
    "version": "0.4.0",
    "tee": "snp",
    "extra-params": {"supported-hash-algorithms": ["sha256", "sha384", "sha512", "sm3"]},
}
INIT_DATA = 'version = "0.1.0"\nalgorithm = "sha256"\n\n[data]\n"aa.toml" = ""\n'


def sev_json(raw: bytes) -> dict[str, Any]:
    """Return a report as the crate `sev` writes it in JSON."""
    # fmt: off
    (version, svn, policy, family, image, vmpl, algorithm, current_tcb, platform, keys, _, data, measurement, host, id_key,
     author, report_id, report_ma, reported_tcb, fms, _, chip, committed_tcb, current, _, committed, _, launch_tcb,
     launch_mit, current_mit, _, r, s, _) = LAYOUT.unpack(raw)
    # fmt: on
    turin = fms[0] == 0x1A or (version == 2 and chip[8:] == bytes(56) and any(chip[:8]))
    return {
        "version": version, "guest_svn": svn, "policy": policy, "family_id": list(family), "image_id": list(image),
        "vmpl": vmpl, "sig_algo": algorithm, "current_tcb": _tcb(current_tcb, turin), "plat_info": platform,
        "key_info": keys, "report_data": list(data), "measurement": list(measurement), "host_data": list(host),
        "id_key_digest": list(id_key), "author_key_digest": list(author), "report_id": list(report_id),
        "report_id_ma": list(report_ma), "reported_tcb": _tcb(reported_tcb, turin),
        "cpuid_fam_id": fms[0] if version > 2 else None, "cpuid_mod_id": fms[1] if version > 2 else None,
        "cpuid_step": fms[2] if version > 2 else None, "chip_id": list(chip),
        "committed_tcb": _tcb(committed_tcb, turin), "current": _version(current), "committed": _version(committed),
        "launch_tcb": _tcb(launch_tcb, turin), "launch_mit_vector": launch_mit if version > 4 else None,
        "current_mit_vector": current_mit if version > 4 else None, "signature": {"r": list(r), "s": list(s)},
    }  # fmt: skip


def _tcb(raw: bytes, turin: bool) -> dict[str, int | None]:
    if turin:
        return {"fmc": raw[0], "bootloader": raw[1], "tee": raw[2], "snp": raw[3], "microcode": raw[7]}
    return {"fmc": None, "bootloader": raw[0], "tee": raw[1], "snp": raw[6], "microcode": raw[7]}


def _version(raw: bytes) -> dict[str, int]:
    return {"major": raw[2], "minor": raw[1], "build": raw[0]}


def cert_chain(platform: SnpTestPlatform) -> list[dict[str, Any]]:
    """Return a certificate table as the crate writes it, an entry of a cloud's among it."""
    names = ("VCEK", "ASK", "ARK", "CRL")
    table = [
        {"cert_type": name, "data": list(raw)}
        for name, raw in zip(names, platform.endorsements(), strict=False)
    ]
    return [*table, {"cert_type": {"OTHER": "01234567-0123-0123-0123-0123456789ab"}, "data": [1, 2]}]


@dataclass(slots=True)
class Guest:
    """One guest, and the broker it speaks to."""

    running: Running | None
    platform: SnpTestPlatform
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    init_data: str | None = INIT_DATA
    url: str = "http://broker.test"
    http: httpx2.AsyncClient = field(init=False)

    def __post_init__(self) -> None:
        transport = None if self.running is None else httpx2.ASGITransport(self.running.app(log=Lines()))
        self.http = httpx2.AsyncClient(transport=transport, base_url=self.url, trust_env=False)

    def jwk(self) -> dict[str, str]:
        numbers = self.key.public_key().public_numbers()
        x, y = (b64url(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
        return {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": x, "y": y}

    async def auth(self, body: Mapping[str, Any] = AUTH) -> dict[str, Any]:
        answer = await self.http.post("/kbs/v0/auth", json=dict(body))
        assert answer.status_code == 200, answer.text
        said: dict[str, Any] = answer.json()
        return said

    def evidence(self, nonce: str, *, hash_name: str = "sha384", **changes: Any) -> dict[str, Any]:
        bound = canonical({"additional-evidence": "", "nonce": nonce, "tee-pubkey": self.jwk()})
        report_data = hashlib.new(hash_name, bound).digest().ljust(64, b"\0")
        init = b"" if self.init_data is None else hashlib.sha256(self.init_data.encode()).digest()
        fields = {"measurement": MEASURED, "host_data": init.ljust(32, b"\0"), **changes}
        report = self.platform.report(report_data, **fields)
        return {"attestation_report": sev_json(report), "cert_chain": cert_chain(self.platform)}

    def body(self, nonce: str, **changes: Any) -> dict[str, Any]:
        evidence = changes.pop("evidence", None) or self.evidence(nonce)
        init = None if self.init_data is None else {"format": "toml", "body": self.init_data}
        return {
            "init-data": init,
            "runtime-data": {"nonce": nonce, "tee-pubkey": self.jwk(), **changes},
            "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
        }

    async def attest(self, **changes: Any) -> httpx2.Response:
        nonce = (await self.auth())["nonce"]
        return await self.http.post("/kbs/v0/attest", json=self.body(nonce, **changes))

    async def attested(self) -> str:
        answer = await self.attest()
        assert answer.status_code == 200, answer.text
        return str(answer.json()["token"])

    async def resource(self, path: str = "acme/key/disk", **headers: str) -> httpx2.Response:
        return await self.http.get(f"/kbs/v0/resource/{path}", headers=headers)

    def open(self, answer: httpx2.Response) -> bytes:
        """Open a resource by joserfc, and check that the guest components' way to authenticate the header holds."""
        assert answer.status_code == 200, answer.text
        said = answer.json()
        assert set(said) == {"protected", "encrypted_key", "iv", "ciphertext", "tag"}
        assert said["protected"] == rewritten(said["protected"])
        key = ECKey.import_key(_pem(self.key))
        compact = ".".join(said[name] for name in ("protected", "encrypted_key", "iv", "ciphertext", "tag"))
        opened = jwe.decrypt_compact(compact, key, algorithms=["ECDH-ES+A256KW", "A256GCM"]).plaintext
        assert opened is not None
        return opened


def rewritten(protected: str) -> str:
    """Return a header as the guest components write it again: alg, enc, then the others sorted, compact."""
    said = json.loads(base64.urlsafe_b64decode(protected + "=" * (-len(protected) % 4)))
    others = {name: said[name] for name in sorted(said) if name not in ("alg", "enc")}
    others = json.loads(json.dumps(others, sort_keys=True))
    text = json.dumps({"alg": said["alg"], "enc": said["enc"], **others}, separators=(",", ":"))
    return b64url(text.encode())


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def guest_policy(platform: SnpTestPlatform, now: datetime = NOW, **changes: Any) -> bytes:
    """Return a policy that admits guests of `platform` with our measurement and init-data."""
    snp = {
        "registers": {"measurement": [MEASURED.hex()]},
        "config_register": "host_data",
        "roots": [platform.root_fingerprint.hex()],
        "products": {"Genoa": {"minimum_tcb": {"boot_loader": 0, "tee": 0, "snp": 0, "microcode": 0}}},
    }
    policy: dict[str, Any] = {
        "format": "sealwright-guest-policy/v1",
        "version": 1,
        "profile": "demo",
        "require_hardware": False,
        "created": rfc3339(now),
        "expires": rfc3339(now + timedelta(hours=20)),
        "platforms": {"snp": snp},
        "init_data": [hashlib.sha256(INIT_DATA.encode()).hexdigest()],
    }
    return json.dumps(policy | changes).encode()
