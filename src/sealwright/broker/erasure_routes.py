"""The administrator's route to erase openings."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from sealwright.broker.admin_routes import PREFIX, authenticated
from sealwright.broker.core import Core
from sealwright.broker.erasure import Erasure
from sealwright.broker.http import read_body
from sealwright.crypto.canonical import parse_json
from sealwright.crypto.document import Digest, Record, validated

MAX_BODY = 32 << 10  # bytes


class EraseRequest(Record):
    """Body of `POST /erase`."""

    commitments: Annotated[list[Digest], Field(min_length=1, max_length=256)]


def erasure_routes(core: Core) -> list[BaseRoute]:
    """Return the administrator's route."""
    erasure = Erasure(core)

    async def post(request: Request) -> object:
        body = validated(EraseRequest, parse_json(await read_body(request, MAX_BODY), limit=MAX_BODY))
        return {"erased": await run_in_threadpool(erasure.erase, body.commitments)}

    return [Route(f"{PREFIX}/erase", authenticated(post, core.secrets), methods=["POST"])]
