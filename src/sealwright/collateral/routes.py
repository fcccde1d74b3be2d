"""The route by which enclaves get collateral from their broker: decode, ask, encode. Spec: docs/spec/collateral-pack.md."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from sealwright.collateral.budget import Budget, Payer
from sealwright.collateral.need import Need
from sealwright.collateral.record import Piece
from sealwright.collateral.service import CollateralService
from sealwright.collateral.sources.service import PATH
from sealwright.errors import FormatError, SealwrightError

MAX_KEY = 300  # characters
WAIT_S = 10.0  # seconds that a request waits for an upstream call
_NOT_THERE = frozenset({"collateral-missing", "collateral-not-found"})
PROBLEMS = "urn:sealwright:error:"


def collateral_routes(
    service: CollateralService, budget: Budget, *, wait_s: float = WAIT_S
) -> list[BaseRoute]:
    """Return `GET /sealwright/v1/collateral/{kind}/{key}`.

    Whoever asks gets what is in the cache or being fetched. An upstream call is begun only for the few names that
    exist for certain, and the peer's budget pays for it. What evidence needs is asked for by the broker, when it has
    seen the evidence.
    """
    return [Route(f"{PATH}/{{kind}}/{{key}}", _piece(service, budget, wait_s), methods=["GET"])]


def _piece(
    service: CollateralService, budget: Budget, wait_s: float
) -> Callable[[Request], Awaitable[Response]]:
    async def get(request: Request) -> Response:
        kind, key = request.path_params["kind"], request.path_params["key"]
        try:
            need = Need.named(kind, key if len(key) <= MAX_KEY else "")
        except FormatError as exc:
            return _problem(400, exc.code)
        try:
            peer = "" if request.client is None else request.client.host
            piece = await _answer(service, need, wait_s, budget.payer(peer))
        except SealwrightError as exc:
            if exc.code in _NOT_THERE:
                return _problem(404, exc.code)
            wait = max(1, math.ceil(service.pending_s(need) or 0.0))
            status = 429 if exc.code == "collateral-over-budget" else 503
            return _problem(status, exc.code, retry_after_s=min(wait, 3600))
        if piece is None:
            return _problem(404, "collateral-missing")
        return Response(piece.served().encode(), media_type="application/json")

    return get


async def _answer(service: CollateralService, need: Need, wait_s: float, payer: Payer) -> Piece | None:
    if not need.facts.kept:
        return None
    known = need.listed or service.pending_s(need) is not None
    if known or await service.cached(need) is not None:
        return await service.get(need, wait_s=wait_s, payer=payer)
    return None


def _problem(status: int, code: str, *, retry_after_s: int | None = None) -> Response:
    """Return an error body (RFC 9457): a code for the peer, the reason for nobody outside."""
    headers = None if retry_after_s is None else {"retry-after": str(retry_after_s)}
    body = {"type": PROBLEMS + code, "status": status, "code": code}
    return JSONResponse(body, status_code=status, headers=headers, media_type="application/problem+json")
