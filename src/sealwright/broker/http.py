"""What every route needs: bounded bodies, bounded rates, one line a request in the log, no trace to the peer."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sealwright.broker.problems import of_error, problem
from sealwright.errors import MessageFormatError, SealwrightError

RATE_PER_S = 400.0  # requests of one peer address, on average
BURST = 800.0
MAX_PEERS = 4096  # addresses remembered
BODY_S = 30.0  # seconds for a whole body
_METHODS = frozenset({"DELETE", "GET", "HEAD", "POST"})


async def read_body(request: Request, limit: int, *, seconds: float = BODY_S) -> bytes:
    """Return the body, read no further than `limit` bytes and no longer than `seconds`.

    Raises:
        MessageFormatError: `too-large`, `body-timeout`.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise MessageFormatError(f"a body of more than {limit} bytes", code="too-large")
    except TimeoutError:
        raise MessageFormatError("a body that does not end", code="body-timeout") from None
    return bytes(body)


@dataclass(slots=True)
class RateLimit:
    """A token bucket for each peer address."""

    monotonic: Callable[[], float]
    rate_per_s: float = RATE_PER_S
    burst: float = BURST
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)  # (tokens, at)

    def admit(self, peer: str) -> bool:
        """Say whether one more request of `peer` is within its rate."""
        now = self.monotonic()
        tokens, at = self._buckets.pop(peer, (self.burst, now))
        tokens = min(self.burst, tokens + (now - at) * self.rate_per_s)
        admitted = tokens >= 1
        if len(self._buckets) >= MAX_PEERS:
            del self._buckets[next(iter(self._buckets))]  # the one that was quiet for longest
        self._buckets[peer] = (tokens - 1 if admitted else tokens, now)
        return admitted


@dataclass(frozen=True, slots=True)
class Journalist:
    """Writes one structured line an event: ids and codes only, never bodies, headers or reasons."""

    as_json: bool = False
    stream: TextIO = field(default_factory=lambda: sys.stderr)

    def __call__(self, event: str, **fields: object) -> None:
        """Write one line."""
        if self.as_json:
            line = json.dumps({"event": event, **fields})
        else:
            line = " ".join([event, *(f"{name}={json.dumps(value)}" for name, value in fields.items())])
        print(line, file=self.stream, flush=True)


class Guard:
    """The outermost ASGI layer: rate limit, errors to answers, one line in the log."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        rate: RateLimit,
        log: Callable[..., None],
        count: Callable[[str, int, str | None, float], None] = lambda *_: None,
    ) -> None:
        """Args: count: takes route, status, code and seconds of each answer."""
        self._app, self._rate, self._log, self._count = app, rate, log, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = {"status": 0}
        started = time.monotonic()

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                told["status"] = message["status"]
            await send(message)

        code = await self._answer(scope, receive, tell, told)
        fields: dict[str, object] = {"method": scope["method"], "path": scope["path"][:256], **told}
        took = time.monotonic() - started
        fields["ms"] = round(took * 1000, 1)
        self._log("request", **fields, **({"code": code} if code else {}))
        self._count(_route_of(scope), told["status"], code, took)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, told: dict[str, int]) -> str | None:
        path = scope["path"]
        peer = (scope.get("client") or ("",))[0]
        if not self._rate.admit(peer):
            answer = problem(429, "rate-limited", kbs=path.startswith("/kbs/"))
            await answer(scope, receive, send)
            return "rate-limited"
        try:
            await self._app(scope, receive, send)
        except SealwrightError as error:
            await of_error(error, path=path)(scope, receive, send)
            return error.code
        except Exception as error:  # noqa: BLE001 - its text can quote secrets: only its kind is told
            if not told["status"]:
                await problem(500, "internal-error", kbs=path.startswith("/kbs/"))(scope, receive, send)
            return f"internal-error:{type(error).__name__}"
        return None


def _route_of(scope: Scope) -> str:
    """Return method and template of the path that was asked, or `other`: nobody can make up more of them."""
    path = getattr(scope.get("route"), "path", None)
    method = scope["method"]
    return f"{method} {path}" if isinstance(path, str) and method in _METHODS else "other"
