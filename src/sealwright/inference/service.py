"""The OpenAI API behind the sealed gateway: an ASGI application for one enclave's models.

Every request here was opened, authenticated and found fresh. Every answer gets a receipt, whether it
was completed, cancelled or failed, and carries the tenant's lease in its head.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sealwright.crypto.encoding import b64url, hex_decode
from sealwright.enclave.broker_client import Grant
from sealwright.enclave.notes import Note
from sealwright.enclave.receipts import Answer
from sealwright.enclave.runtime import Enclave
from sealwright.errors import FormatError, RevokedError, SealwrightError, UnavailableError
from sealwright.inference.engine import Engine, EngineError
from sealwright.inference.openai import ApiError, ChatRequest, Completion, error_body, models_body, parse_chat
from sealwright.protocol.enclave_config import ArtefactEntry
from sealwright.transport.asgi import Message, Receive, SealedScope, Send

_JSON = b"application/json"
_EVENTS = b"text/event-stream; charset=utf-8"
_PROOF = "/v1/sealwright/proofs/"

Guard = Callable[[ChatRequest], tuple[ChatRequest, str]]
"""Sees a request before the engine does; returns it, changed or not, and the decision for the receipt."""

_ENGINE_ERRORS = {
    "context-length-exceeded": (400, "the prompt is longer than the context this enclave is configured for"),
    "engine-refused": (400, "the model cannot take this request"),
    "engine-unavailable": (503, "the engine is being started again"),
}


def allow(request: ChatRequest) -> tuple[ChatRequest, str]:
    """Let every request through."""
    return request, "allow"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model of one tenant, and its engine."""

    entry: ArtefactEntry
    engine: Engine


class _Start(NamedTuple):
    """When an answer begins, and the lease found in force at that moment: its receipt names both."""

    grant: Grant
    at: datetime


class ChatService:
    """Answers `/v1/models`, `/v1/chat/completions` and proofs."""

    def __init__(
        self,
        enclave: Enclave,
        models: Mapping[tuple[str, str], ServedModel],
        *,
        note: Note,
        guard: Guard = allow,
    ) -> None:
        """Args: models: by tenant and model name."""
        self._enclave = enclave
        self._models = models
        self._note = note
        self._guard = guard

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one opened request."""
        sealed: SealedScope = scope["sealwright"]
        try:
            started = self._enclave.clock.now()
            grant = self._enclave.grant(sealed.caller.tenant, started)
        except SealwrightError as exc:
            await _whole(send, *_as_api(exc), [])
            return
        lease = [(b"sealwright-lease", b64url(grant.lease_envelope).encode())]
        try:
            await self._route(scope, receive, _WithHeaders(send, lease), sealed, _Start(grant, started))
        except SealwrightError as exc:
            self._note("answer-refused", code=exc.code)
            await _whole(send, *_as_api(exc), lease)

    async def _route(
        self, scope: Message, receive: Receive, send: Send, sealed: SealedScope, start: _Start
    ) -> None:
        path, method = scope["path"], scope["method"]
        if path == "/v1/chat/completions" and method == "POST":
            await self._chat(receive, send, sealed, start)
        elif path == "/v1/models" and method == "GET":
            names = sorted(name for tenant, name in self._models if tenant == sealed.caller.tenant)
            created = int(self._enclave.clock.now().timestamp())
            await _whole(send, 200, models_body(names, created=created), [])
        elif path.startswith(_PROOF) and method == "GET":
            await self._proof(send, path.removeprefix(_PROOF))
        else:
            raise ApiError(404, "there is no such endpoint here", code="not-found")

    async def _proof(self, send: Send, entry_hash: str) -> None:
        try:
            hex_decode(entry_hash, length=32)
        except FormatError:
            raise ApiError(400, "an entry is named by 64 hex digits", code="malformed-hex") from None
        proof = await self._enclave.proof(entry_hash)
        if proof is None:
            raise ApiError(404, "the log has no such entry yet", code="proof-not-found")
        await _whole(send, 200, proof, [], kind=b"text/plain; charset=utf-8")

    async def _chat(self, receive: Receive, send: Send, sealed: SealedScope, start: _Start) -> None:
        body = (await receive()).get("body", b"")
        asked, decision = self._guard(parse_chat(body, limit=self._enclave.config.limits.request_bytes))
        model = self._models.get((sealed.caller.tenant, asked.model))
        if model is None:
            raise ApiError(
                404, "there is no such model for this caller", code="model-not-found", param="model"
            )
        with self._enclave.answering():
            exchange = _Exchange(self._enclave, model, asked, decision, sealed, start, body)
            await _until_gone(exchange.answer(send), receive)


class _Exchange:
    """One answer, from the engine's first event to its receipt."""

    def __init__(
        self,
        enclave: Enclave,
        model: ServedModel,
        asked: ChatRequest,
        decision: str,
        sealed: SealedScope,
        start: _Start,
        body: bytes,
    ) -> None:
        self._enclave = enclave
        self._model = model
        self._asked = asked
        self._decision = decision
        self._sealed = sealed
        self._begun = start
        self._request = hashlib.sha256(body).digest()
        self._response = hashlib.sha256()
        self._issuer = enclave.issuer
        self._receipt_id = self._issuer.new_id()
        self._completion = Completion(
            asked,
            completion_id=f"chatcmpl-{self._receipt_id.hex()}",
            created=int(enclave.clock.now().timestamp()),
        )
        self._status = "cancelled"

    async def answer(self, send: Send) -> None:
        """Send the answer with its receipt.

        Raises:
            ApiError, EngineError: before anything was sent.
        """
        tokens = self._enclave.config.limits.response_tokens
        events = self._model.engine.chat(self._asked.for_engine(most_tokens=tokens))
        async with contextlib.aclosing(events):
            first = await anext(events, None)
            receipt: bytes | None = None
            try:
                if self._asked.stream:
                    await self._stream(send, first, events)
                else:
                    await self._collect(send, first, events)
            finally:
                # Also for an answer that was cancelled: what the caller saw of it stands in the log.
                receipt = self._receipt()
            await _trailer(send, receipt)

    async def _stream(self, send: Send, first: bytes | None, events: AsyncGenerator[bytes, None]) -> None:
        await self._start(send, _EVENTS)
        try:
            await self._piece(send, self._completion.opening())
            if first is not None:
                await self._piece(send, self._completion.event(first))
            async for event in events:
                await self._piece(send, self._completion.event(event))
            await self._piece(send, self._completion.closing())
            self._status = "complete" if self._completion.complete else "failed"
        except (ApiError, EngineError) as exc:
            # The head is out: the SDKs read an error from the stream itself.
            self._status = "failed"
            await self._piece(send, b"data: " + _as_api(exc)[1] + b"\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _collect(self, send: Send, first: bytes | None, events: AsyncGenerator[bytes, None]) -> None:
        status = 200
        try:
            if first is not None:
                self._completion.event(first)
            async for event in events:
                self._completion.event(event)
            if not self._completion.complete:
                raise EngineError("engine-failed")
            body = self._completion.whole()
            self._status = "complete"
        except (ApiError, EngineError) as exc:
            self._status = "failed"
            status, body = _as_api(exc)
        self._response.update(body)
        await self._start(send, _JSON, status)
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _start(self, send: Send, kind: bytes, status: int = 200) -> None:
        headers = [
            (b"content-type", kind),
            (b"sealwright-receipt-id", self._receipt_id.hex().encode()),
            (b"x-should-retry", b"false"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers, "trailers": True})

    async def _piece(self, send: Send, data: bytes) -> None:
        if data:
            self._response.update(data)
            await send({"type": "http.response.body", "body": data, "more_body": True})

    def _receipt(self) -> bytes:
        entry, caller = self._model.entry, self._sealed.caller
        answer = Answer(
            tenant=caller.tenant,
            caller=caller.name,
            kid=entry.kid,
            manifest_digest=entry.manifest_digest,
            model=entry.model,
            decision=self._decision,
            status=self._status,
            request=self._request,
            response=self._response.digest(),
            tokens_in=self._completion.tokens_in,
            tokens_out=self._completion.tokens_out,
            transport=self._sealed.transport,
            checkpoint=entry.checkpoint,
        )
        begun = self._begun
        return self._issuer.issue(self._receipt_id, begun.grant.lease, answer, started=begun.at)


class _WithHeaders:
    """An ASGI `send` that adds header fields to the head."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = headers

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *self._headers]}
        await self._send(message)


async def _until_gone(work: Awaitable[None], receive: Receive) -> None:
    """Run `work`, and cancel it when the client goes away."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not working.done():
            working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _as_api(exc: SealwrightError) -> tuple[int, bytes]:
    """Return (status, body) in OpenAI's form; texts are ours."""
    if isinstance(exc, ApiError):
        return exc.status, exc.body()
    if isinstance(exc, EngineError):
        status, text = _ENGINE_ERRORS.get(exc.code, (502, "the engine failed on this request"))
        return status, error_body(status, text, code=exc.code)
    if isinstance(exc, RevokedError):
        return 503, error_body(503, "this enclave may not serve the tenant any more", code=exc.code)
    if isinstance(exc, UnavailableError):
        return 503, error_body(503, "this enclave cannot take the request now", code=exc.code)
    return 500, error_body(500, "the enclave failed", code="internal-error")


async def _whole(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]], *, kind: bytes = _JSON
) -> None:
    fields = [(b"content-type", kind), (b"x-should-retry", b"false"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _trailer(send: Send, receipt: bytes) -> None:
    headers = [(b"sealwright-receipt", b64url(receipt).encode())]
    await send({"type": "http.response.trailers", "headers": headers, "more_trailers": False})
