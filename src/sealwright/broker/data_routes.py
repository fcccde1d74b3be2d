"""Routes of training: for workers, and one for the administrator. Spec: docs/spec/training-data.md, Routes.

What workers send is signed, or evidence: there is no session, and no secret in the address.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from sealwright.broker.admin_routes import MAX_ADMIN, PREFIX, authenticated
from sealwright.broker.core import Core
from sealwright.broker.data import DataKeys
from sealwright.broker.http import read_body
from sealwright.broker.problems import problem
from sealwright.broker.routes import Endpoint
from sealwright.crypto.canonical import canonical, parse_json
from sealwright.crypto.document import Bytes, Name, Record, validated
from sealwright.crypto.encoding import b64url, hex_decode
from sealwright.errors import FormatError
from sealwright.protocol.checkpoint import MAX_STATEMENT
from sealwright.protocol.training_data import TRAINING_PATH
from sealwright.protocol.worker import MAX_WORKER_EVIDENCE

MAX_REQUEST = 64 * 1024  # bytes of a signed data request


class EnrolRequest(Record):
    """Body of `POST enrol`."""

    evidence: dict[str, Any]  # `WorkerEvidence`
    kids: Annotated[list[Name], Field(min_length=1, max_length=1024)]


class NewDataPolicy(Record):
    """Body of the administrator's `POST data-policies`."""

    envelope: Bytes  # DSSE


def data_routes(keys: DataKeys, core: Core) -> list[BaseRoute]:
    """Return the routes of training."""

    async def admit(request: Request) -> object:
        raw = await read_body(request, MAX_ADMIN)
        body = validated(NewDataPolicy, parse_json(raw, limit=MAX_ADMIN))
        return {"policy": (await run_in_threadpool(keys.admit_policy, body.envelope)).hex()}

    return [
        Route(f"{TRAINING_PATH}/nonce", _nonce(keys), methods=["POST"]),
        Route(f"{TRAINING_PATH}/enrol", _enrol(keys, core), methods=["POST"]),
        Route(f"{TRAINING_PATH}/data", _release(keys), methods=["POST"]),
        Route(f"{TRAINING_PATH}/checkpoints", _advance(keys), methods=["POST"]),
        Route(f"{TRAINING_PATH}/lineages/{{lineage}}", _newest(keys), methods=["GET"]),
        Route(f"{PREFIX}/data-policies", authenticated(admit, core.secrets), methods=["POST"]),
    ]


def _nonce(keys: DataKeys) -> Endpoint:
    async def post(request: Request) -> Response:
        await read_body(request, 0)
        return JSONResponse({"nonce": b64url(await run_in_threadpool(keys.nonce))})

    return post


def _enrol(keys: DataKeys, core: Core) -> Endpoint:
    async def post(request: Request) -> Response:
        raw = await read_body(request, MAX_WORKER_EVIDENCE)
        body = validated(EnrolRequest, parse_json(raw, limit=MAX_WORKER_EVIDENCE))
        token = await run_in_threadpool(keys.enrol, canonical(body.evidence), body.kids)
        return JSONResponse({"token": token, "broker_keys": json.loads(core.broker_keys())})

    return post


def _release(keys: DataKeys) -> Endpoint:
    async def post(request: Request) -> Response:
        raw = await read_body(request, MAX_REQUEST)
        return Response(await run_in_threadpool(keys.release, raw), media_type="application/json")

    return post


def _advance(keys: DataKeys) -> Endpoint:
    async def post(request: Request) -> Response:
        raw = await read_body(request, 2 * MAX_STATEMENT)
        index = await run_in_threadpool(keys.advance, raw)
        proof = await run_in_threadpool(keys.prove, index)
        return Response(proof, media_type="text/plain; charset=utf-8")

    return post


def _newest(keys: DataKeys) -> Endpoint:
    async def get(request: Request) -> Response:
        try:
            lineage = hex_decode(request.path_params["lineage"], length=16)
        except FormatError:
            return problem(404, "lineage-unknown", kbs=False)
        found = await run_in_threadpool(keys.newest, lineage)
        if found is None:
            return problem(404, "lineage-unknown", kbs=False)
        return JSONResponse({"version": found[0], "statement": found[1].hex()})

    return get
