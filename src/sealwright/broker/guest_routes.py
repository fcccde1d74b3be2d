"""Routes of the administrator of guests' resources: ours, and those that Trustee's clients call. Spec: docs/spec/kbs-guest.md."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from sealwright.appraisal.yaml import MAX_YAML
from sealwright.broker.admin_routes import PREFIX, authenticated
from sealwright.broker.http import read_body
from sealwright.broker.problems import problem
from sealwright.broker.resources import MAX_RESOURCE, Resources
from sealwright.broker.routes import Endpoint, name_of
from sealwright.broker.settings import BrokerSecrets
from sealwright.crypto.canonical import parse_json
from sealwright.crypto.document import Bytes, Name, Record, validated
from sealwright.crypto.encoding import b64url_decode

DEFAULT_TENANT = "default"  # of what Trustee's clients store, which know no tenants
_PATH = "/{repository}/{kind}/{tag}"
_MAX_BODY = 2 * (MAX_RESOURCE + MAX_YAML)


class NewResource(Record):
    """Body of `POST /resources/<path>`."""

    tenant: Name
    content: Bytes
    policy: Annotated[str, Field(max_length=MAX_YAML)] | None = None  # YAML


class NewDefault(Record):
    """Body of `POST /guest-policies/<tenant>`."""

    policy: Annotated[str, Field(max_length=MAX_YAML)]


class TrusteePolicy(Record):
    """Body of `POST /kbs/v0/resource-policy`."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    policy: Annotated[str, Field(max_length=2 * MAX_YAML)]  # base64url


def guest_routes(resources: Resources, secrets: BrokerSecrets) -> list[BaseRoute]:
    """Return the routes."""

    def admin(method: str, path: str, handler: Endpoint) -> Route:
        return Route(path, authenticated(handler, secrets), methods=[method])

    return [
        admin("POST", f"/kbs/v0/resource{_PATH}", _trustee_put(resources)),
        admin("POST", "/kbs/v0/resource-policy", _trustee_policy(resources)),
        admin("GET", "/kbs/v0/resource-policy", _defaults(resources)),
        admin("POST", "/kbs/v0/attestation-policy", _not_typed),
        admin("POST", "/kbs/v0/reference-value", _not_typed),
        admin("GET", f"{PREFIX}/resources", _list(resources)),
        admin("POST", f"{PREFIX}/resources{_PATH}", _put(resources)),
        admin("DELETE", f"{PREFIX}/resources{_PATH}", _remove(resources)),
        admin("GET", f"{PREFIX}/guest-policies", _defaults(resources)),
        admin("POST", PREFIX + "/guest-policies/{tenant}", _set_default(resources)),
    ]


def _trustee_put(resources: Resources) -> Endpoint:
    async def post(request: Request) -> Response:
        content = await read_body(request, MAX_RESOURCE)
        path = _path(request)
        stored = await run_in_threadpool(
            lambda: resources.put(path, content, tenant=DEFAULT_TENANT, policy=None)
        )
        return JSONResponse(stored)

    return post


def _trustee_policy(resources: Resources) -> Endpoint:
    async def post(request: Request) -> Response:
        asked = parse_json(await read_body(request, 2 * MAX_YAML), limit=2 * MAX_YAML)
        policy = b64url_decode(validated(TrusteePolicy, asked).policy)
        if _is_rego(policy):
            return await _not_typed(request)
        return JSONResponse(await run_in_threadpool(resources.set_default, DEFAULT_TENANT, policy))

    return post


async def _not_typed(_request: Request) -> Response:
    return problem(400, "policy-not-typed", kbs=True)


def _defaults(resources: Resources) -> Endpoint:
    async def get(_request: Request) -> Response:
        return JSONResponse({"guest_policies": await run_in_threadpool(resources.defaults)})

    return get


def _list(resources: Resources) -> Endpoint:
    async def get(_request: Request) -> Response:
        return JSONResponse({"resources": await run_in_threadpool(resources.list_all)})

    return get


def _put(resources: Resources) -> Endpoint:
    async def post(request: Request) -> Response:
        asked = parse_json(await read_body(request, _MAX_BODY), limit=_MAX_BODY)
        body = validated(NewResource, asked)
        policy = None if body.policy is None else body.policy.encode()
        path = _path(request)
        stored = await run_in_threadpool(
            lambda: resources.put(path, body.content, tenant=body.tenant, policy=policy)
        )
        return JSONResponse(stored)

    return post


def _remove(resources: Resources) -> Endpoint:
    async def delete(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(resources.remove, _path(request)))

    return delete


def _set_default(resources: Resources) -> Endpoint:
    async def post(request: Request) -> Response:
        body = validated(NewDefault, parse_json(await read_body(request, _MAX_BODY), limit=_MAX_BODY))
        tenant = name_of(request, "tenant")
        return JSONResponse(await run_in_threadpool(resources.set_default, tenant, body.policy.encode()))

    return post


def _path(request: Request) -> str:
    return "/".join(name_of(request, member) for member in ("repository", "kind", "tag"))


def _is_rego(policy: bytes) -> bool:
    lines = (line.strip() for line in policy.splitlines())
    return any(line == b"package policy" or line.startswith(b"package policy ") for line in lines)
