"""The key owner's side of a broker: keys to seal with, manifests to admit, and whatever the administrator asks.

Spec: docs/spec/broker-state.md, Sealing key and Admitting a manifest.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import httpx2

from sealwright.crypto.canonical import parse_json
from sealwright.crypto.encoding import b64url
from sealwright.crypto.hpke import HpkePrivateKey, Kem, open_from
from sealwright.crypto.statement import ed25519
from sealwright.errors import (
    AppraisalError,
    AppraisalFailure,
    CollateralError,
    FormatError,
    MessageFormatError,
    RevokedError,
    SealwrightError,
    UnavailableError,
    VerificationError,
)
from sealwright.protocol.body import PLAIN, parts
from sealwright.protocol.lease import verify_broker_keys
from sealwright.protocol.sealing_key import SealingKey

PREFIX = "/sealwright/v1/admin"
TIMEOUT_S = 30.0
MAX_ANSWER = 8 << 20  # bytes
_BY_EXIT: Mapping[int, type[SealwrightError]] = {
    10: VerificationError,
    12: CollateralError,
    13: RevokedError,
    65: FormatError,
    69: UnavailableError,
}


class AdminClient:
    """Speaks to one broker with the administrator's token."""

    def __init__(self, broker_url: str, token: str, *, transport: httpx2.BaseTransport | None = None) -> None:
        """Args: transport: in place of the network, for tests."""
        # The token goes to this address and nowhere else: no proxies from the environment, no redirects.
        self._http = httpx2.Client(
            base_url=broker_url,
            headers={"authorization": f"Bearer {token}", **PLAIN},
            timeout=TIMEOUT_S,
            trust_env=False,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Return the JSON answer to one administrator's request (`path` below the admin prefix).

        Raises:
            SealwrightError: as the broker says; UnavailableError: `broker-unreachable`.
        """
        answer = parse_json(self.fetch(method, f"{PREFIX}{path}", body), limit=MAX_ANSWER)
        if not isinstance(answer, dict):
            raise UnavailableError(
                "the broker answered something else than an object", code="malformed-answer", stage="answer"
            )
        return answer

    def fetch(self, method: str, path: str, body: Mapping[str, object] | None = None) -> bytes:
        """Return the body of a successful answer. Raises as `ask`."""
        try:
            with self._http.stream(method, path, json=body) as answer:
                raw = bytearray()
                for chunk in parts(answer):
                    raw += chunk
                    if len(raw) > MAX_ANSWER:
                        raise MessageFormatError("the broker's answer is too large", code="too-large")
        except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
            raise UnavailableError(
                f"the broker at {self._http.base_url} cannot be reached ({type(exc).__name__})",
                code="broker-unreachable",
                stage="connect",
            ) from exc
        if answer.is_success:
            return bytes(raw)
        raise _error(answer.status_code, bytes(raw))


def fetch_sealing_key(
    broker_url: str,
    token: str,
    kid: str,
    *,
    root: bytes,
    coming: bool = False,
    at: datetime | None = None,
    transport: httpx2.BaseTransport | None = None,
) -> bytes:
    """Return the key `kid` (32 bytes), sealed on its way to a key made for this call. The broker logs it first.

    Args:
        root: the broker's Ed25519 root. Without it whoever answers at the address could hand out a key
            of their own, and read what is sealed with it.
        coming: of the key's next generation.
        at: time to check the broker's keys at; default: now.

    Raises:
        VerificationError: not signed by that broker, or for another key. SealwrightError: as the broker says.
    """
    private = HpkePrivateKey.generate(Kem.XWING)
    with AdminClient(broker_url, token, transport=transport) as client:
        envelope = client.fetch("GET", "/sealwright/v1/broker-keys")
        asked: dict[str, object] = {"public_key": b64url(private.public.raw)}
        if coming:
            asked["next"] = True
        sealed = client.fetch("POST", f"{PREFIX}/keys/{kid}/sealing-key", asked)
    keys = verify_broker_keys(envelope, [root], at=at or datetime.now(UTC))
    said = SealingKey.verify(sealed, [ed25519(keys.release_key)], stage="signature")
    if said.kid != kid or not hmac.compare_digest(
        said.recipient, hashlib.sha256(private.public.raw).digest()
    ):
        raise VerificationError(
            "the broker answered another request", code="sealing-key-mismatch", stage="binding"
        )
    return open_from(private, said.enc, said.hpke_info(), b"", said.ciphertext)


def admit_manifest(
    broker_url: str,
    token: str,
    kid: str,
    envelope: bytes,
    *,
    owner_key: bytes | None = None,
    force: bool = False,
    transport: httpx2.BaseTransport | None = None,
) -> dict[str, Any]:
    """Make the manifest in `envelope` the one that `kid` may open; return how the key then stands.

    Args:
        envelope: bytes of `NAME.sealed.json`.
        owner_key: the owner's Ed25519 public key (32 bytes); needed for a tenant's first manifest, which pins it.
        force: also an older version, or another artefact.

    Raises:
        SealwrightError: as the broker says.
    """
    body: dict[str, object] = {"envelope": b64url(envelope), "force": force}
    if owner_key is not None:
        body["owner_key"] = b64url(owner_key)
    with AdminClient(broker_url, token, transport=transport) as client:
        return client.ask("POST", f"/keys/{kid}/manifest", body)


def _error(status: int, raw: bytes) -> SealwrightError:
    try:
        body = parse_json(raw, limit=MAX_ANSWER)
    except FormatError:
        body = {}
    said = body if isinstance(body, dict) else {}
    code, detail = said.get("code"), said.get("detail")
    if not isinstance(code, str) or len(code) > 64:
        text = f"the broker answered {status}, not in its own form"
        return UnavailableError(text, code="malformed-answer", stage="answer")
    text = detail[:512] if isinstance(detail, str) else f"the broker answered {status}"
    stage = str(said.get("stage", "admin"))[:64]
    kind = _BY_EXIT.get(said["exit_code"]) if isinstance(said.get("exit_code"), int) else None
    if kind is None and status >= 500:
        kind = UnavailableError
    if kind is None:
        return AppraisalError([AppraisalFailure(text, code=code)], stage=stage)
    return kind(text, code=code, stage=stage)
