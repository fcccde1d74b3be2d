"""A local OpenAI endpoint in front of an attested enclave, for clients that cannot use our transport.

Whoever may use it knows its token. A browser page does not get through: the Host header must be this
endpoint's own (DNS rebinding), and requests that a browser marks as of a page are refused.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx2
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sealwright.client.proofs import ENCLAVE_PROOFS, proof_text
from sealwright.client.receipt_store import ReceiptStore
from sealwright.client.receipts import ReceiptFile, receipt_of
from sealwright.errors import SealwrightError

MAX_BODY = 64 << 20  # bytes of a local request
PROOF_DELAYS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # receipts are logged within seconds
_DROPPED = frozenset(
    (
        "connection",
        "content-length",
        "host",
        "authorization",
        "keep-alive",
        "te",
        "transfer-encoding",
        "upgrade",
    )
)
_HIDDEN = frozenset(
    (
        "connection",
        "content-encoding",
        "content-length",
        "keep-alive",
        "sealwright-lease",
        "transfer-encoding",
        "upgrade",
    )
)


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """The enclave behind this endpoint."""

    client: httpx2.AsyncClient  # an attested one, see `async_http_client`
    url: str  # origin
    credential: str = field(repr=False)

    def request(self, request: Request, body: bytes) -> httpx2.Request:
        """Return the request to seal: the caller's, with the enclave's credential for the local token."""
        headers = [(name, value) for name, value in request.headers.items() if name not in _DROPPED]
        query = f"?{request.url.query}" if request.url.query else ""
        return self.client.build_request(
            request.method,
            f"{self.url}{request.url.path}{query}",
            content=body,
            headers=[*headers, ("authorization", f"Bearer {self.credential}")],
        )

    async def proof(self, entry_digest: str) -> str:
        """Return the proof of an entry, through the enclave. Raises SealwrightError."""
        headers = {"authorization": f"Bearer {self.credential}"}
        answer = await self.client.get(f"{self.url}{ENCLAVE_PROOFS}{entry_digest}", headers=headers)
        return proof_text(answer.status_code, answer.content)


class LocalEndpoint:
    """The application. `app` is what to serve on a loopback address."""

    def __init__(
        self,
        upstream: Upstream,
        store: ReceiptStore,
        *,
        token: str,
        hosts: frozenset[str],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Set up.

        Args:
            token: what local callers must send as bearer token.
            hosts: values of the Host header that are this endpoint's own.
            sleep: waits between questions for a proof, seconds.
        """
        self._upstream, self._store, self._sleep = upstream, store, sleep
        self._tasks: set[asyncio.Task[None]] = set()
        self.app = Starlette(
            routes=[
                Route("/healthz", self._health),
                Route("/receipts/{receipt_id}", self._receipt),
                Route("/v1/{path:path}", self._forward, methods=["GET", "POST", "DELETE"]),
            ],
            middleware=[Middleware(LocalGuard, token=token, hosts=hosts)],
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._upstream.client.aclose()

    async def _health(self, _: Request) -> Response:
        return PlainTextResponse("serving")

    async def _receipt(self, request: Request) -> Response:
        found = self._store.get(request.path_params["receipt_id"])
        if found is None:
            return local_error(404, "receipt-unknown", "no answer of this endpoint has this receipt (yet)")
        return Response(found.encode(), media_type="application/json")

    async def _forward(self, request: Request) -> Response:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY:
                return local_error(413, "too-large", f"a request has at most {MAX_BODY} bytes")
        sealed = self._upstream.request(request, bytes(body))
        try:
            answer = await self._upstream.client.send(sealed, stream=True)
        except httpx2.TransportError as exc:
            return local_error(502, "enclave-unreachable", f"the enclave is not there ({type(exc).__name__})")
        headers = {name: value for name, value in answer.headers.items() if name not in _HIDDEN}
        return StreamingResponse(self._pieces(answer), answer.status_code, headers=headers)

    async def _pieces(self, answer: httpx2.Response) -> AsyncIterator[bytes]:
        """Pass the answer on as it comes; a cut one breaks the local connection too, so that it shows."""
        try:
            async for piece in answer.aiter_bytes():
                yield piece
        finally:
            await answer.aclose()
        self._keep(answer)

    def _keep(self, answer: httpx2.Response) -> None:
        if "sealwright-receipt-id" not in answer.headers:
            return
        made = receipt_of(answer)
        self._store.put(made.receipt_id, made.file)
        task = asyncio.get_running_loop().create_task(self._prove(made.receipt_id, made.file))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _prove(self, receipt_id: str, file: ReceiptFile) -> None:
        """Ask for the proof until it is there, or give up: `receipt proof` can fetch it later."""
        for delay in PROOF_DELAYS_S:
            await self._sleep(delay)
            try:
                proof = await self._upstream.proof(file.entry_digest())
            except (SealwrightError, httpx2.TransportError):
                continue
            self._store.put(receipt_id, file.with_proof(proof))
            return


class LocalGuard:
    """Lets in who knows the token and is no browser page."""

    def __init__(self, app: ASGIApp, *, token: str, hosts: frozenset[str]) -> None:
        """Args: token: of local callers; hosts: this endpoint's own names, with port."""
        self._app, self._hosts = app, hosts
        self._wanted = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] == "http" and (refused := self._refusal(Request(scope))):
            await refused(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        headers = request.headers
        if headers.get("host", "").lower() not in self._hosts:
            return local_error(421, "wrong-host", "this endpoint is reached by its own address only")
        if "origin" in headers or headers.get("sec-fetch-site", "none") != "none":
            return local_error(403, "cross-origin", "this endpoint does not serve pages of a browser")
        sent = headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(sent, self._wanted):
            return local_error(401, "wrong-local-token", "the local token is missing or wrong")
        return None


def local_error(status: int, code: str, message: str) -> Response:
    """Return an error of this endpoint itself, in OpenAI's form."""
    error = {"message": message, "type": "sealwright_local", "param": None, "code": code}
    return JSONResponse({"error": error}, status, headers={"x-should-retry": "false"})
