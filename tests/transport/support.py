"""Keys, streams and a gateway for the transport tests."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.crypto.hpke import HpkePrivateKey, Kem
from sealwright.errors import VerificationError
from sealwright.protocol.attestation import GATEWAY_PATH
from sealwright.transport.asgi import App, Message
from sealwright.transport.bhttp import BinaryRequest
from sealwright.transport.client import ResponseReader, SealedRequest, SealTarget
from sealwright.transport.fields import Fields, one_value
from sealwright.transport.keys import GatewayKey, KeyConfig
from sealwright.transport.replay import EncCache
from sealwright.transport.server import Caller, Gateway, ServingKeyset

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "transport.json").read_text())


def published() -> dict[str, Any]:
    """Return the published OHTTP vectors, which stay outside the repository."""
    root = os.environ.get("SEALWRIGHT_VECTORS", Path(__file__).parents[2].parent / "shared" / "vectors")
    path = Path(root) / "protocol" / "ehbp-chunked-ohttp-aci.json"
    if not path.exists():
        pytest.skip(f"published vectors are not here: {path.name}")
    vectors: dict[str, Any] = json.loads(path.read_text())
    return vectors


def gateway_key(kem: Kem = Kem.XWING, *, key_id: int = 1, seed: int = 7) -> GatewayKey:
    private = HpkePrivateKey.from_seed(kem, bytes([seed]) * 32)
    return GatewayKey(config=KeyConfig(key_id=key_id, public=private.public), private=private)


NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
DIGEST = bytes(range(32))
RECEIPT = Ed25519PrivateKey.from_private_bytes(b"r" * 32)
CREDENTIAL = b"Bearer swk_planted-credential"


def authenticate(headers: Fields) -> Caller:
    """Know one credential, of tenant `hospital`."""
    if one_value(headers, b"authorization") != CREDENTIAL:
        raise VerificationError("no such credential", code="unauthenticated", stage="authenticate")
    return Caller(tenant="hospital", name="ward-7")


def gateway(key: GatewayKey, **limits: int) -> Gateway:
    cache = EncCache(DIGEST, **limits)
    keyset = ServingKeyset(
        keyset_digest=DIGEST, keys={key.config.key_id: key}, receipt_key=RECEIPT, cache=cache
    )
    return Gateway([keyset])


def target(key: GatewayKey) -> SealTarget:
    return SealTarget(config=key.config, keyset_digest=DIGEST, receipt_key=RECEIPT.public_key())


def request(path: str = "/v1/chat/completions", body: bytes = b'{"planted":"prompt"}') -> BinaryRequest:
    return BinaryRequest.build(
        "POST",
        f"https://ai.example{path}",
        [(b"Authorization", CREDENTIAL), (b"X-A", b"planted-field")],
        body,
    )


class Outer:
    """Runs an ASGI application in-process and keeps what it sends, piece by piece."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.pieces: list[bytes] = []
        self.complete = False

    async def post(
        self, sealed: SealedRequest, *, body: bytes | None = None, path: str = GATEWAY_PATH
    ) -> None:
        await self.call("POST", list(sealed.headers), sealed.body if body is None else body, path)

    async def call(self, method: str, headers: list[tuple[bytes, bytes]], body: bytes, path: str) -> None:
        messages = [
            {"type": "http.request", "body": bytes(body[at : at + 700]), "more_body": True}
            for at in range(0, len(body), 700)
        ]
        messages.append({"type": "http.request", "body": b"", "more_body": False})

        async def receive() -> Message:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status, self.headers = message["status"], list(message["headers"])
            else:
                self.pieces.append(message["body"])
                self.complete = not message["more_body"]

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "method": method,
            "path": path,
            "headers": headers,
            "scheme": "http",
        }
        await self.app(scope, receive, send)

    def read(self, reader: ResponseReader) -> tuple[int, bytes, Fields]:
        """Return (inner status, body, trailers), or raise what the client would."""
        reader.begin(self.status, self.headers)
        pieces = [piece for data in self.pieces for piece in reader.feed(data)]
        pieces += reader.finish() if self.complete else []
        if not self.complete:
            raise reader.lost()
        assert reader.head is not None
        return reader.head.status, b"".join(pieces), reader.trailers
