"""The enclave's doors: attestation for anyone, the sealed gateway, and whether it serves. An ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sealwright.crypto.canonical import canonical
from sealwright.enclave.clock import boottime
from sealwright.enclave.notes import Note
from sealwright.enclave.runtime import Enclave
from sealwright.errors import FormatError, SealwrightError
from sealwright.protocol.attestation import ATTESTATION_PATH, GATEWAY_PATH, AttestationRequest
from sealwright.transport.asgi import BODY_S, App, Message, OhttpApp, Receive, Send

MAX_ATTESTATION_REQUEST = 1024  # bytes
QUOTES_PER_S = 50.0
QUOTES_AT_ONCE = 100.0
_TITLES = {
    400: "Malformed",
    404: "Not found",
    405: "Wrong method",
    408: "Too slow",
    413: "Too large",
    429: "Too many",
    503: "Stopped",
}


class Bucket:
    """Bounds how often something may happen."""

    def __init__(self, rate: float, burst: float, *, clock: Callable[[], float]) -> None:
        """Args: rate: a second; burst: at once; clock: seconds."""
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._at = burst, clock()

    def take(self) -> bool:
        """Return whether it may happen now."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class EnclaveApp:
    """Serves `/healthz`, `/readyz`, attestation, and the gateway around `inner`."""

    def __init__(
        self,
        enclave: Enclave,
        inner: App,
        *,
        note: Note,
        ready: Callable[[], str],
        elapsed: Callable[[], float] = boottime,
    ) -> None:
        """Serve.

        Args:
            inner: sees only opened requests of authenticated callers.
            ready: why no request could be answered now, as a code; empty: one could.
        """
        self._enclave = enclave
        self._ready = ready
        self._note = note
        self._quotes = Bucket(QUOTES_PER_S, QUOTES_AT_ONCE, clock=elapsed)
        self._gateway = OhttpApp(
            inner,
            enclave.gateway,
            authenticate=enclave.authenticate,
            now=enclave.clock.now,
            on_error=self._failed,
            path=GATEWAY_PATH,
        )

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            raise RuntimeError("only HTTP is served here")
        path = scope["path"]
        if path == "/healthz":
            await self._health(send)
        elif path == "/readyz":
            await self._readiness(send)
        elif path not in (ATTESTATION_PATH, GATEWAY_PATH):
            await _problem(send, 404, "not-found")
        elif self._enclave.stopped:
            await _problem(send, 503, self._enclave.stopped)
        elif path == GATEWAY_PATH:
            await self._gateway(scope, receive, send)
        else:
            await self._attestation(scope, receive, send)

    async def _health(self, send: Send) -> None:
        stopped = self._enclave.stopped
        text = f"stopped: {stopped}\n" if stopped else "serving\n"
        await _answer(send, 503 if stopped else 200, b"text/plain; charset=utf-8", text.encode())

    async def _readiness(self, send: Send) -> None:
        why = self._ready()
        text = f"not ready: {why}\n" if why else "ready\n"
        await _answer(send, 503 if why else 200, b"text/plain; charset=utf-8", text.encode())

    async def _attestation(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await _problem(send, 405, "wrong-method")
            return
        if not self._quotes.take():
            await _problem(send, 429, "too-many-quotes")
            return
        try:
            async with asyncio.timeout(BODY_S):
                raw = await _body(receive, limit=MAX_ATTESTATION_REQUEST)
        except TimeoutError:
            await _problem(send, 408, "body-timeout")
            return
        if raw is None:
            await _problem(send, 413, "too-large")
            return
        try:
            asked = AttestationRequest.parse(raw, limit=MAX_ATTESTATION_REQUEST)
            bundle = await self._enclave.bundle(asked.nonce, asked.tenant)
        except FormatError as exc:
            await _problem(send, 400, exc.code)
        except SealwrightError as exc:
            self._failed(exc)
            await _problem(send, 404 if exc.code == "no-lease" else 503, exc.code)
        else:
            await _answer(send, 200, b"application/json", bundle)

    def _failed(self, error: Exception) -> None:
        code = error.code if isinstance(error, SealwrightError) else type(error).__name__
        self._note("request-refused", code=code)


async def _body(receive: Receive, *, limit: int) -> bytes | None:
    """Return the whole body, None if it is over `limit` bytes."""
    out = b""
    more = True
    while more:
        message = await receive()
        out += message.get("body", b"")
        more = message.get("more_body", False)
        if len(out) > limit:
            return None
    return out


async def _problem(send: Send, status: int, code: str) -> None:
    body = {"type": "about:blank", "title": _TITLES[status], "status": status, "code": code}
    await _answer(send, status, b"application/problem+json", canonical(body), last=status in (408, 413))


async def _answer(send: Send, status: int, kind: bytes, body: bytes, *, last: bool = False) -> None:
    headers = [
        (b"content-type", kind),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *([(b"connection", b"close")] if last else []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
