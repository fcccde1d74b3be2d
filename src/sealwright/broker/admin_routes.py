"""Routes of the administrator, behind a bearer token. The client side: `sealwright.client.admin`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from sealwright.broker.admin import MAX_DECISIONS, Admin
from sealwright.broker.backend_admin import BackendAdmin
from sealwright.broker.http import read_body
from sealwright.broker.problems import problem
from sealwright.broker.routes import name_of
from sealwright.broker.settings import BrokerSecrets
from sealwright.crypto.canonical import parse_json
from sealwright.crypto.document import Bytes, Bytes32, Name, Record, validated
from sealwright.errors import MessageFormatError

MAX_ADMIN = 4 << 20  # bytes; a manifest's envelope in base64
PREFIX = "/sealwright/v1/admin"

R = TypeVar("R", bound=Record)
Handler = Callable[[Request], Awaitable[object]]


class NewKey(Record):
    """Body of `POST /keys`."""

    tenant: Name
    kid: Name
    model: Name
    policy: Annotated[str, Field(max_length=256 * 1024)]  # YAML


class NewPolicy(Record):
    """Body of `POST /keys/<kid>/policy`."""

    policy: Annotated[str, Field(max_length=256 * 1024)]  # YAML
    force: bool = False


class NewManifest(Record):
    """Body of `POST /keys/<kid>/manifest`."""

    envelope: Bytes
    owner_key: Bytes32 | None = None
    force: bool = False


class KeyRequest(Record):
    """Body of `POST /keys/<kid>/sealing-key`."""

    public_key: Bytes
    next: bool = False  # generation


class NewCaller(Record):
    """Body of `POST /tenants/<tenant>/callers`."""

    caller: Name


class NewOwner(Record):
    """Body of `POST /tenants/<tenant>/owners`."""

    key: Bytes32


def admin_routes(admin: Admin, backends: BackendAdmin, secrets: BrokerSecrets) -> list[BaseRoute]:
    """Return the administrator's routes."""

    def route(method: str, path: str, handler: Handler) -> Route:
        return Route(f"{PREFIX}{path}", authenticated(handler, secrets), methods=[method])

    return [
        route("GET", "/status", _plain(lambda _: admin.status() | {"backend": backends.status()})),
        route("GET", "/backends", _plain(lambda _: {"backends": backends.list()})),
        route("POST", "/backends/move", _plain(lambda _: backends.move())),
        route(
            "POST",
            "/backends/{backend}/use",
            _plain(lambda request: backends.use(name_of(request, "backend"))),
        ),
        route(
            "POST",
            "/backends/{backend}/rotate",
            _plain(lambda request: backends.rotate(name_of(request, "backend"))),
        ),
        route("GET", "/decisions", _plain(lambda request: {"decisions": _decisions(admin, request)})),
        route("GET", "/keys", _plain(lambda _: {"keys": admin.list_keys()})),
        route("POST", "/keys", _create_key(admin)),
        route("GET", "/keys/{kid}", _plain(lambda request: admin.key(name_of(request, "kid")))),
        route("POST", "/keys/{kid}/policy", _set_policy(admin)),
        route(
            "POST", "/keys/{kid}/revoke", _plain(lambda request: admin.revoke_key(name_of(request, "kid")))
        ),
        route("POST", "/keys/{kid}/manifest", _admit(admin)),
        route("POST", "/keys/{kid}/sealing-key", _sealing_key(admin)),
        route("GET", "/tenants/{tenant}/callers", _plain(lambda request: _callers(admin, request))),
        route("POST", "/tenants/{tenant}/callers", _add_caller(admin)),
        route(
            "DELETE",
            "/tenants/{tenant}/callers/{caller}",
            _plain(lambda request: _remove_caller(admin, request)),
        ),
        route("POST", "/tenants/{tenant}/owners", _add_owner(admin)),
    ]


def authenticated(handler: Handler, secrets: BrokerSecrets) -> Callable[[Request], Awaitable[Response]]:
    """Return `handler` as an endpoint that answers the administrator alone."""

    async def serve(request: Request) -> Response:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secrets.check_token(token):
            return problem(401, "admin-token", kbs=False)
        result = await handler(request)
        return result if isinstance(result, Response) else JSONResponse(result)

    return serve


def _plain(ask: Callable[[Request], object]) -> Handler:
    async def handler(request: Request) -> object:
        return await run_in_threadpool(ask, request)

    return handler


async def _body(request: Request, cls: type[R]) -> R:
    return validated(cls, parse_json(await read_body(request, MAX_ADMIN), limit=MAX_ADMIN))


def _create_key(admin: Admin) -> Handler:
    async def handler(request: Request) -> object:
        body = await _body(request, NewKey)
        policy = body.policy.encode()
        return await run_in_threadpool(admin.create_key, body.tenant, body.kid, body.model, policy)

    return handler


def _set_policy(admin: Admin) -> Handler:
    async def handler(request: Request) -> object:
        body = await _body(request, NewPolicy)
        kid, policy = name_of(request, "kid"), body.policy.encode()
        return await run_in_threadpool(lambda: admin.set_policy(kid, policy, force=body.force))

    return handler


def _admit(admin: Admin) -> Handler:
    async def handler(request: Request) -> object:
        body = await _body(request, NewManifest)
        kid = name_of(request, "kid")
        return await run_in_threadpool(
            lambda: admin.admit(kid, body.envelope, owner_key=body.owner_key, force=body.force)
        )

    return handler


def _sealing_key(admin: Admin) -> Handler:
    async def handler(request: Request) -> object:
        body = await _body(request, KeyRequest)
        kid = name_of(request, "kid")
        sealed = await run_in_threadpool(lambda: admin.sealing_key(kid, body.public_key, coming=body.next))
        return Response(sealed, media_type="application/json")

    return handler


def _add_caller(admin: Admin) -> Handler:
    async def handler(request: Request) -> object:
        caller = (await _body(request, NewCaller)).caller
        tenant = name_of(request, "tenant")
        credential = await run_in_threadpool(admin.add_caller, tenant, caller)
        return {"tenant": tenant, "caller": caller, "credential": credential}

    return handler


def _add_owner(admin: Admin) -> Handler:
    async def handler(request: Request) -> object:
        key = (await _body(request, NewOwner)).key
        tenant = name_of(request, "tenant")
        return {"tenant": tenant, "key_id": await run_in_threadpool(admin.add_owner, tenant, key)}

    return handler


def _callers(admin: Admin, request: Request) -> object:
    tenant = name_of(request, "tenant")
    return {"tenant": tenant, "callers": admin.callers(tenant)}


def _remove_caller(admin: Admin, request: Request) -> object:
    tenant, caller = name_of(request, "tenant"), name_of(request, "caller")
    admin.remove_caller(tenant, caller)
    return {"tenant": tenant, "caller": caller, "removed": True}


def _decisions(admin: Admin, request: Request) -> object:
    before = request.query_params.get("before")
    if before is not None and not (before.isascii() and before.isdecimal() and len(before) <= 15):
        raise MessageFormatError("before is the index of an entry", code="malformed-limit")
    openings = request.query_params.get("openings") == "1"
    return admin.decisions(_limit(request), before=None if before is None else int(before), openings=openings)


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", "20")
    if not (text.isascii() and text.isdecimal() and len(text) <= 3 and 1 <= int(text) <= MAX_DECISIONS):
        raise MessageFormatError(f"limit is 1 to {MAX_DECISIONS}", code="malformed-limit")
    return int(text)
