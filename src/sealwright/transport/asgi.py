"""The gateway as an ASGI application around an inner one that sees only opened requests.

The inner application gets a usual `http` scope with the sealed method, path and headers, and
`scope["sealwright"]`: a `SealedScope`. It may send trailers as ASGI's extension
`http.response.trailers` says (`"trailers": True` in the start message); they are sealed too.
Whatever it sends is sealed and passed on at once, and a client that goes away is told by `http.disconnect`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from sealwright.errors import MessageFormatError, SealwrightError, UnavailableError
from sealwright.protocol.attestation import GATEWAY_PATH
from sealwright.transport.bhttp import BinaryRequest
from sealwright.transport.client import NOT_STARTED_TYPE
from sealwright.transport.keys import KEYS_TYPE, encode_key_list
from sealwright.transport.ohttp import REQUEST_TYPE, RESPONSE_TYPE
from sealwright.transport.padding import BUCKET
from sealwright.transport.response import ResponseWriter
from sealwright.transport.server import (
    Authenticate,
    Caller,
    Exchange,
    Gateway,
    NotServing,
    Problem,
    problem,
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
OnError = Callable[[Exception], None]

BODY_S = 30.0  # seconds for a whole request body
TRANSPORT = "chunked-ohttp"  # as a receipt names it


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedScope:
    """What the inner application may know of the transport."""

    caller: Caller
    keyset_digest: bytes  # 32 bytes
    enc_digest: bytes  # 32 bytes, SHA-256(enc)
    transport: str = TRANSPORT


class OhttpApp:
    """Opens requests at `path` for `inner`, which gets the lifespan too; all else goes to `outer`, or is 404."""

    def __init__(
        self,
        inner: App,
        gateway: Gateway,
        *,
        authenticate: Authenticate,
        now: Callable[[], datetime],
        on_error: OnError,
        outer: App | None = None,
        path: str = GATEWAY_PATH,
        bucket: int = BUCKET,
        body_s: float = BODY_S,
    ) -> None:
        """Set up.

        Args:
            authenticate: called with the sealed header fields before a request leaves any state.
            now: enclave time.
            on_error: told what was refused or failed, for the audit log; must not log plaintext.
            bucket: padding of responses, bytes.
            body_s: how long a request may take to arrive, seconds.
        """
        self._inner, self._gateway, self._outer, self._path = inner, gateway, outer, path
        self._authenticate, self._now, self._on_error = authenticate, now, on_error
        self._bucket, self._body_s = bucket, body_s

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
        elif scope["type"] != "http" or scope["path"] != self._path:
            await self._elsewhere(scope, receive, send)
        elif scope["method"] == "GET":
            configs = [key.config for key in self._gateway.keys.values()]
            await _answer(send, 200, KEYS_TYPE, encode_key_list(configs))
        elif dict(scope["headers"]).get(b"content-type") != REQUEST_TYPE:
            await _answer(send, 415, b"application/problem+json", b'{"code":"ohttp-type","status":415}')
        else:
            await self._exchange(scope, receive, send)

    async def _elsewhere(self, scope: Message, receive: Receive, send: Send) -> None:
        if self._outer is not None:
            await self._outer(scope, receive, send)
        elif scope["type"] == "http":
            await _answer(send, 404, b"application/problem+json", b'{"code":"not-found","status":404}')
        else:
            raise RuntimeError("only HTTP is served here")

    async def _exchange(self, scope: Message, receive: Receive, send: Send) -> None:
        exchange = await self._arrived(receive, send)
        if exchange is None:
            return
        sealed = _SealedSend(ResponseWriter(exchange.sealer(), bucket=self._bucket), send)
        admitted = await self._admitted(exchange, sealed, send)
        if admitted is None:
            return
        request, caller = admitted
        about = SealedScope(
            caller=caller, keyset_digest=exchange.keyset_digest, enc_digest=exchange.enc_digest
        )
        del exchange  # a slow reader of the answer must not keep the keyset's private keys
        await self._run(_inner_scope(scope, request, about), _InnerReceive(request.body, receive), sealed)

    async def _arrived(self, receive: Receive, send: Send) -> Exchange | None:
        """Return the exchange of a whole request, None once it was refused or is gone."""
        session = self._gateway.session()
        try:
            async with asyncio.timeout(self._body_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    session.feed(message.get("body", b""))
                    more = message.get("more_body", False)
            return session.finish()
        except TimeoutError:
            error: SealwrightError = MessageFormatError("a body that does not end", code="body-timeout")
        except SealwrightError as exc:
            error = exc
        finally:
            session.close()
        self._on_error(error)
        await _problem(send, problem(error))
        return None

    async def _admitted(
        self, exchange: Exchange, sealed: _SealedSend, send: Send
    ) -> tuple[BinaryRequest, Caller] | None:
        """Return the request, which may start, and its caller; None once it was refused."""
        now = self._now()
        try:
            return exchange.admit(self._authenticate, now=now)
        except NotServing as exc:
            self._on_error(exc)
            await _answer(send, 503, NOT_STARTED_TYPE, exc.statement)
        except SealwrightError as exc:
            self._on_error(exc)
            await _problem(sealed, problem(exc, now=now))
        return None

    async def _run(self, scope: Message, receive: _InnerReceive, sealed: _SealedSend) -> None:
        failed = UnavailableError("the inner application failed", code="inner-failed", stage="inner")
        try:
            await self._inner(scope, receive, sealed)
        except Exception as exc:  # noqa: BLE001 - its text may quote a prompt: it goes to the hook only
            self._on_error(exc)
        if sealed.finished or receive.disconnected:
            return
        if not sealed.started:
            await _problem(sealed, problem(failed))
            return
        # Without a final chunk the client knows that the answer is not whole.
        raise failed


class _SealedSend:
    """An ASGI `send` that seals what it is given."""

    __slots__ = ("_body", "_send", "_writer", "started")

    def __init__(self, writer: ResponseWriter, send: Send) -> None:
        self.started = False
        self._writer, self._body, self._send = writer, writer.body, send

    @property
    def finished(self) -> bool:
        return self._writer.finished

    def __call__(self, message: Message) -> Awaitable[None]:
        # Not a coroutine itself: one frame fewer for each token.
        if message["type"] == "http.response.body":
            return self._pass_on(self._body(message.get("body", b""), message.get("more_body", False)))
        return self._rare(message)

    def _pass_on(self, frames: bytes) -> Awaitable[None]:
        if not frames:
            return _nothing()
        return self._send(
            {"type": "http.response.body", "body": frames, "more_body": not self._writer.finished}
        )

    async def _rare(self, message: Message) -> None:
        writer, kind = self._writer, message["type"]
        if kind == "http.response.start":
            frames = writer.start(
                message["status"], message.get("headers", ()), trailers=message.get("trailers", False)
            )
            self.started = True
            await self._send(_start(200, RESPONSE_TYPE))
        elif kind == "http.response.trailers":
            frames = writer.trailers(message.get("headers", ()), message.get("more_trailers", False))
        else:
            raise RuntimeError(f"an ASGI message that cannot be sealed: {kind}")
        await self._pass_on(frames)


async def _nothing() -> None:
    """Send nothing."""


def _inner_scope(outer: Message, request: BinaryRequest, about: SealedScope) -> Message:
    path, _, query = request.path.partition("?")
    headers = [(name, value) for name, value in request.headers if name not in (b"host", b"content-length")]
    host = request.authority.encode() or next((v for n, v in request.headers if n == b"host"), b"")
    return {
        "type": "http",
        "asgi": outer["asgi"],
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.scheme,
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [
            (b"host", host),
            *headers,
            (b"content-length", str(len(request.body)).encode()),
        ],
        "client": None,  # the address of a relay says nothing about the caller
        "server": None,
        "state": dict(outer.get("state", {})),
        "extensions": {"http.response.trailers": {}},
        "sealwright": about,
    }


class _InnerReceive:
    """An ASGI `receive` that gives the opened body, then waits for the client to go away."""

    __slots__ = ("_body", "_receive", "disconnected")

    def __init__(self, body: bytes, receive: Receive) -> None:
        self.disconnected = False
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        while (message := await self._receive())["type"] != "http.disconnect":
            pass
        self.disconnected = True
        return message


def _start(status: int, content_type: bytes) -> Message:
    headers = [(b"content-type", content_type), (b"cache-control", b"no-store")]
    return {"type": "http.response.start", "status": status, "headers": headers}


async def _answer(send: Send, status: int, content_type: bytes, body: bytes) -> None:
    await send(_start(status, content_type))
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _problem(send: Send, answer: Problem) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": list(answer.headers)})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})
