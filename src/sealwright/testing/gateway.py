"""The fake enclave as an ASGI application: real evidence, real sealed channel, a model that echoes.

Outside the seal: attestation, gateway, health. Inside: OpenAI's models and chat, receipts, log proofs.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from sealwright.crypto.canonical import canonical
from sealwright.crypto.encoding import b64url
from sealwright.errors import VerificationError
from sealwright.protocol.attestation import ATTESTATION_PATH, AttestationRequest
from sealwright.testing.enclave import FakeEnclave
from sealwright.transport.asgi import App, Message, OhttpApp, Receive, Send
from sealwright.transport.fields import Fields
from sealwright.transport.keys import GatewayKey, KeyConfig
from sealwright.transport.replay import EncCache
from sealwright.transport.server import Caller, Gateway, ServingKeyset

MODEL = "echo"


class FakeServer:
    """Serves one `FakeEnclave`; `app` is what to run. `seen` holds the prompts that got in."""

    def __init__(self, enclave: FakeEnclave) -> None:
        """Args: enclave: its clock is enclave time."""
        self.enclave = enclave
        self.seen: list[str] = []
        self.errors: list[Exception] = []
        self.gateway = Gateway([self._keyset()])
        self.app: App = OhttpApp(
            self._inside,
            self.gateway,
            authenticate=self._authenticate,
            now=enclave.now,
            on_error=self.errors.append,
            outer=self._outside(),
        )

    def reboot(self) -> None:
        """Give the enclave a new keyset; the old one's requests are not opened any more."""
        self.enclave.boot()
        self.gateway.replace([self._keyset()])
        self.gateway.accepting = True

    def _keyset(self) -> ServingKeyset:
        enclave = self.enclave
        config = KeyConfig(key_id=1, public=enclave.hpke.public)
        return ServingKeyset(
            keyset_digest=enclave.keyset.digest(),
            keys={1: GatewayKey(config=config, private=enclave.hpke)},
            receipt_key=enclave.receipt_key,
            cache=EncCache(enclave.keyset.digest()),
        )

    def _authenticate(self, headers: Fields) -> Caller:
        wanted = f"Bearer {self.enclave.credential}".encode()
        if dict(headers).get(b"authorization") != wanted:
            raise VerificationError("unknown credential", code="credential-unknown", stage="authenticate")
        return Caller(tenant=self.enclave.tenant, name="tester")

    def _outside(self) -> Starlette:
        async def attest(request: Request) -> Response:
            asked = AttestationRequest.parse(await request.body())
            return Response(self.enclave.bundle(asked).encode(), media_type="application/json")

        async def health(_: Request) -> Response:
            return PlainTextResponse("serving")

        return Starlette(
            routes=[Route(ATTESTATION_PATH, attest, methods=["POST"]), Route("/healthz", health)]
        )

    async def _inside(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await Starlette()(scope, receive, send)
        elif scope["path"] == "/v1/chat/completions":
            await self._chat(scope, receive, send)
        else:
            answer = self._small(scope["path"])
            answer.headers["sealwright-lease"] = b64url(self.enclave.lease_envelope)
            await answer(scope, receive, send)

    def _small(self, path: str) -> Response:
        if path == "/v1/models":
            model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "test"}
            return JSONResponse({"object": "list", "data": [model]})
        proof = self.enclave.proof(path.removeprefix("/v1/sealwright/proofs/"))
        if proof is None:
            error = {
                "message": "not here",
                "type": "invalid_request_error",
                "param": None,
                "code": "not-found",
            }
            return JSONResponse({"error": error}, 404)
        return PlainTextResponse(proof)

    async def _chat(self, scope: Message, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        asked = json.loads(body)
        prompt = str(asked["messages"][-1]["content"])
        self.seen.append(prompt)
        made = _streamed(prompt) if asked.get("stream") else _whole(prompt)
        kind = b"text/event-stream" if asked.get("stream") else b"application/json"
        await _send_with_receipt(made, kind, send, self.enclave, body)


async def _send_with_receipt(
    pieces: AsyncIterator[bytes], kind: bytes, send: Send, enclave: FakeEnclave, request: bytes
) -> None:
    record_id = secrets.token_bytes(16)
    headers = [
        (b"content-type", kind),
        (b"sealwright-lease", b64url(enclave.lease_envelope).encode()),
        (b"sealwright-receipt-id", record_id.hex().encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": True})
    digest = hashlib.sha256()
    async for piece in pieces:
        digest.update(piece)
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    receipt = enclave.receipt(
        {
            "kid": "echo",
            "model": MODEL,
            "request": hashlib.sha256(request).hexdigest(),
            "response": digest.hexdigest(),
            "status": 200,
            "tenant": enclave.tenant,
        },
        record_id=record_id,
    )
    trailer = b64url(canonical(receipt.to_json())).encode()
    await send({"type": "http.response.trailers", "headers": [(b"sealwright-receipt", trailer)]})


async def _whole(prompt: str) -> AsyncIterator[bytes]:
    message = {"role": "assistant", "content": prompt}
    yield json.dumps(_chunk("chat.completion", {"message": message, "finish_reason": "stop"})).encode()


async def _streamed(prompt: str) -> AsyncIterator[bytes]:
    for word in prompt.split(" "):
        delta = {"delta": {"content": word + " "}, "finish_reason": None}
        yield b"data: " + json.dumps(_chunk("chat.completion.chunk", delta)).encode() + b"\n\n"
    end = {"delta": {}, "finish_reason": "stop"}
    yield b"data: " + json.dumps(_chunk("chat.completion.chunk", end)).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


def _chunk(kind: str, choice: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": "chatcmpl-echo",
        "object": kind,
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, **choice}],
    }
