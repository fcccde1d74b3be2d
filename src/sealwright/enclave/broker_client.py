"""The enclave's side of key release: attest, lease, release. Spec: docs/spec/key-release.md.

Every answer is checked under a root of the enclave config before anything in it is used.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sealwright.crypto.canonical import canonical, parse_json
from sealwright.crypto.encoding import b64url, b64url_decode, joined
from sealwright.crypto.hpke import HpkePublicKey, Kem, open_from, seal_to
from sealwright.crypto.statement import ed25519
from sealwright.enclave.clock import EnclaveClock
from sealwright.enclave.http import Answer, Connect, HttpConnection
from sealwright.enclave.identity import Identity
from sealwright.errors import (
    AppraisalError,
    AppraisalFailure,
    MessageFormatError,
    UnavailableError,
    VerificationError,
)
from sealwright.protocol.enclave_config import BrokerAddress
from sealwright.protocol.kbs import KBS_VERSION, KEYSET_FORM, Challenge, encode_nonce, parse_message
from sealwright.protocol.keyset import HpkeKey
from sealwright.protocol.lease import BrokerKeys, Callers, Lease, verify_broker_keys, verify_lease
from sealwright.protocol.release import verify_release
from sealwright.protocol.report_data import Purpose
from sealwright.protocol.use import PARAMETER, Use

_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+){0,7}", re.ASCII)
_MAX_MESSAGE = 1 << 20  # bytes; a lease comes with up to 4096 callers
_REFUSALS = (400, 401, 403, 404, 409, 410)
_EXIT_CODES = (10, 11, 12, 13, 65)
JOURNAL_INFO = joined("sealwright/journal/v1")


class BrokerRefusal(AppraisalError):
    """The broker itself said no: what an enclave obeys even while its lease lasts."""

    def __init__(self, text: str, *, code: str, exit_code: int) -> None:
        """Args: code, exit_code: as the broker said, to be shown."""
        super().__init__([AppraisalFailure(text, code=code)], stage="broker")
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A verified lease, with what came along and was verified too."""

    lease: Lease
    lease_envelope: bytes  # DSSE
    callers: Callers
    broker_keys: BrokerKeys
    broker_keys_envelope: bytes  # DSSE
    ear: str
    sent: float  # seconds of the enclave's clock, before the evidence of its session was made


class BrokerClient:
    """One broker of the config."""

    def __init__(self, address: BrokerAddress, connect: Connect, clock: EnclaveClock) -> None:
        self._address = address
        self._connect = connect
        self._clock = clock

    def attest(self, identity: Identity) -> Session:
        """Open a session and attest in it.

        Raises:
            UnavailableError: not reached. AppraisalError: refused. MessageFormatError: not the protocol.
        """
        session = Session(
            HttpConnection(self._address.url, self._connect), self._address, self._clock, identity
        )
        try:
            session.attest()
        except BaseException:
            session.close()
            raise
        return session

    def journal(self, receipts: Sequence[dict[str, Any]], keyset_digest: bytes, key: HpkeKey) -> None:
        """Hand receipts over, sealed to the broker's journal key; returns once they are logged.

        Raises:
            UnavailableError: not all of them were logged (`journal-refused`), or not reached.
        """
        entries = [{"receipt": receipt} for receipt in receipts]
        plain = canonical({"entries": entries, "keyset_digest": keyset_digest.hex()})
        public = HpkePublicKey(kem=Kem(key.kem), raw=key.public_key)
        enc, ciphertext = seal_to(public, JOURNAL_INFO, b"", plain)
        body = b"".join(struct.pack(">I", len(part)) + part for part in (enc, ciphertext))
        answer = self._once("POST", "/sealwright/v1/journal", body, "application/octet-stream")
        if answer.status != 200 or parse_json(answer.body, limit=_MAX_MESSAGE) != {"logged": len(receipts)}:
            raise UnavailableError(
                f"the broker did not log the receipts ({answer.status})",
                code="journal-refused",
                stage="journal",
            )

    def notices(self) -> NoticeLine:
        """Return a line to wait for notices on."""
        return NoticeLine(HttpConnection(self._address.url, self._connect))

    def proof(self, entry_hash: str) -> bytes | None:
        """Return the broker's `.tlog-proof` for a log entry (SHA-256, hex), None if there is none yet."""
        answer = self._once("GET", f"/sealwright/v1/proofs/{entry_hash}")
        return answer.body if answer.status == 200 else None

    def _once(self, method: str, path: str, body: bytes = b"", kind: str = "") -> Answer:
        connection = HttpConnection(self._address.url, self._connect)
        try:
            return connection.request(method, path, body, {"content-type": kind} if kind else {})
        finally:
            connection.close()


class NoticeLine:
    """Waits for notices, in a thread of its own. What comes over it is a hint, and proves nothing."""

    def __init__(self, http: HttpConnection) -> None:
        self._http = http

    def wait(self, leases: Sequence[bytes]) -> list[bytes]:
        """Return those of `leases` that the broker wants renewed now; none: nothing to say for a while.

        Raises:
            UnavailableError: not reached, or it does not do this. MessageFormatError: not an answer.
        """
        body = canonical({"leases": [lease.hex() for lease in leases]})
        kind = {"content-type": "application/json"}
        answer = self._http.request("POST", "/sealwright/v1/notices", body, kind)
        if answer.status != 200:
            raise UnavailableError(
                f"the broker sends no notices ({answer.status})", code="no-notices", stage="broker"
            )
        said = parse_json(answer.body, limit=_MAX_MESSAGE)
        changed = said.get("changed") if isinstance(said, dict) else None
        if not isinstance(changed, list):
            raise MessageFormatError("not a list of leases", code="malformed-notice")
        return [lease for lease in leases if lease.hex() in changed]

    def abort(self) -> None:
        """End the wait; from another thread."""
        self._http.abort()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


class Session:
    """One KBS session. `attest` comes first; made by `BrokerClient.attest`."""

    def __init__(
        self, http: HttpConnection, address: BrokerAddress, clock: EnclaveClock, identity: Identity
    ) -> None:
        self._http = http
        self._address = address
        self._clock = clock
        self._identity = identity
        self._cookie = ""
        self._nonce = b""
        self._ear = ""
        self._sent = 0.0

    def attest(self) -> None:
        """Send evidence for the broker's nonce."""
        extra = {"sealwright": KEYSET_FORM}
        auth = {"version": KBS_VERSION, "tee": self._identity.platform, "extra-params": extra}
        answer = self._post("/kbs/v0/auth", auth)
        self._cookie = answer.cookie
        challenge: Challenge = parse_message(Challenge, answer.body, limit=_MAX_MESSAGE)
        if challenge.extra_params != extra:
            raise MessageFormatError("the broker does not speak the keyset form", code="no-keyset-form")
        self._nonce = self._fresh(challenge.nonce_bytes())
        # A host may fetch the lease itself and hold everything back: no lease of this session is older than this.
        self._sent = self._clock.elapsed()
        token = parse_json(self._post("/kbs/v0/attest", self._attestation()).body, limit=_MAX_MESSAGE)
        if not isinstance(token, dict) or not isinstance(token.get("token"), str):
            raise MessageFormatError("the broker's result is not a token", code="malformed-ear")
        self._ear = token["token"]
        if _nonce_of(self._ear) != b64url(self._nonce):
            raise VerificationError("the result is of another session", code="ear-mismatch", stage="attest")

    def lease(self, tenant: str, *, answers: int) -> Grant:
        """Return a verified lease of one tenant.

        Args:
            answers: how many were given under the last lease.

        Raises:
            VerificationError: not by this broker's root, or not for us. AppraisalError: refused.
        """
        answer = self._post("/kbs/v0/sealwright/lease", {"tenant": tenant, "answers": answers})
        parts = parse_json(answer.body, limit=_MAX_MESSAGE)
        if not isinstance(parts, dict) or set(parts) != {"lease", "callers", "broker_keys"}:
            raise MessageFormatError("not a lease, callers and broker keys", code="malformed-lease")
        return self._verified(
            tenant, self._sent, *(canonical(parts[name]) for name in ("lease", "callers", "broker_keys"))
        )

    def release(self, grant: Grant, kid: str, manifest_digest: bytes, use: Use | None = None) -> bytearray:
        """Return the key (to be wiped by the caller) that opens the artefact of `manifest_digest`.

        Args:
            use: what it is for, where the key's limits ask for that.

        Raises:
            VerificationError: stages `signature`, `binding`, `open`. AppraisalError: refused.
        """
        keys = self._identity.keys
        path = f"/kbs/v0/resource/{grant.lease.tenant}/key/{kid}"
        path += "" if use is None else f"?{PARAMETER}={use.to_text()}"
        answer = self._checked(self._http.request("GET", path, headers={"cookie": self._cookie}))
        release = verify_release(
            answer.body,
            grant.broker_keys,
            nonce=self._nonce,
            tee_pubkey=keys.keyset.tee_pubkey.digest(),
            kid=kid,
            manifest_digest=manifest_digest,
            lease=grant.lease,
            use=use,
        )
        key = open_from(keys.releases, release.enc, release.hpke_info(), b"", release.ciphertext)
        return bytearray(key)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _verified(self, tenant: str, sent: float, lease: bytes, callers: bytes, broker: bytes) -> Grant:
        # Its own time of issue is the only time there is; the clock takes the later of this and what it knew.
        issued = Lease.unverified(lease).not_before
        verify_broker_keys(broker, [self._address.root], at=issued)
        keys = BrokerKeys.verify(broker, [ed25519(self._address.root)], stage="broker")
        identity = self._identity
        verified = verify_lease(
            lease,
            keys,
            tenant=tenant,
            keyset_digest=identity.keys.digest,
            config_digest=identity.config_digest,
            at=issued,
        )
        if not hmac.compare_digest(verified.ear_digest, hashlib.sha256(self._ear.encode()).digest()):
            raise VerificationError("the lease rests on another result", code="lease-mismatch", stage="lease")
        self._clock.anchor(issued, sent)
        now = self._clock.now()
        verified.check_time(now)
        verify_broker_keys(broker, [self._address.root], at=now)
        identity.keys.keyset.check_time(now)
        known = Callers.verify(callers, [ed25519(keys.release_key)], stage="lease")
        if known.tenant != tenant or known.lease_id != verified.lease_id:
            raise VerificationError("the callers are of another lease", code="lease-mismatch", stage="lease")
        return Grant(
            lease=verified,
            lease_envelope=lease,
            callers=known,
            broker_keys=keys,
            broker_keys_envelope=broker,
            ear=self._ear,
            sent=sent,
        )

    def _fresh(self, nonce: bytes) -> bytes:
        """Return a nonce not quoted for before: what was answered to an earlier one is old, and would be news."""
        if nonce in self._identity.nonces:
            raise VerificationError("the broker's nonce was used before", code="nonce-used", stage="nonce")
        self._identity.nonces.add(nonce)
        return nonce

    def _attestation(self) -> dict[str, Any]:
        identity = self._identity
        keyset = identity.keys.keyset
        form = {
            "keyset": b64url(keyset.encode()),
            "config": b64url(identity.config_bytes),
            "openings": [opening.to_json() for opening in identity.openings],
        }
        runtime = {
            "nonce": encode_nonce(self._nonce),
            "tee-pubkey": keyset.tee_pubkey.to_json(),
            "sealwright": form,
        }
        evidence = identity.evidence(Purpose.LEASE, self._nonce)
        return {
            "init-data": None,
            "runtime-data": runtime,
            "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
        }

    def _post(self, path: str, message: dict[str, Any]) -> Answer:
        headers = {"content-type": "application/json"}
        if self._cookie:
            headers["cookie"] = self._cookie
        return self._checked(self._http.request("POST", path, json.dumps(message).encode(), headers))

    def _checked(self, answer: Answer) -> Answer:
        if answer.status == 200:
            return answer
        code, exit_code = _said(answer.body)
        if answer.status in _REFUSALS:
            text = (
                f"the broker refused ({answer.status}); its owner sees why: sealwright broker decisions list"
            )
            raise BrokerRefusal(text, code=code or "broker-refused", exit_code=exit_code)
        raise UnavailableError(
            f"the broker cannot answer now ({answer.status})",
            code=code or "broker-unreachable",
            stage="broker",
        )


def _said(body: bytes) -> tuple[str, int]:
    """Return the broker's code and exit code for a refusal, if it has that form: shown, never acted on."""
    try:
        said = parse_json(body, limit=_MAX_MESSAGE)
    except MessageFormatError:
        said = None
    match said:
        case {"code": str(code), **rest} if len(code) <= 64 and _CODE.fullmatch(code):
            exit_code = rest.get("exit_code")
            if isinstance(exit_code, int) and exit_code in _EXIT_CODES:
                return code, exit_code
            return code, AppraisalError.exit_code
    return "", AppraisalError.exit_code


def _nonce_of(ear: str) -> object:
    """Return the nonce in a result, whose signature is not looked at: the signed lease names its digest."""
    parts = ear.split(".")
    claims = parse_json(b64url_decode(parts[1]), limit=_MAX_MESSAGE) if len(parts) == 3 else None
    return claims.get("eat_nonce") if isinstance(claims, dict) else None
