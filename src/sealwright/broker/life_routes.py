"""Routes of the administrator for rotation, revocation, budgets, machines and usage. Spec: docs/spec/life-cycle.md."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from sealwright.appraisal.limits import Limits
from sealwright.broker.admin_routes import MAX_ADMIN, PREFIX, Handler, authenticated
from sealwright.broker.core import Core
from sealwright.broker.http import read_body
from sealwright.broker.life import Life
from sealwright.broker.routes import NAME, name_of
from sealwright.broker.rows import Place, Scope
from sealwright.broker.usage import Usage
from sealwright.crypto.canonical import parse_json
from sealwright.crypto.document import Bytes, Name, Record, validated
from sealwright.errors import MessageFormatError

R = TypeVar("R", bound=Record)
Reason = Annotated[str, Field(min_length=1, max_length=512)]


class Revoke(Record):
    """Body of `POST /revocations` and `POST /revocations/undo`."""

    kind: Annotated[str, Field(max_length=32)]
    value: Annotated[str, Field(min_length=1, max_length=128)]
    reason: Reason


class SetBudget(Record):
    """Body of `POST /budgets`."""

    scope: Scope
    name: Name
    limits: Limits


class NamedBudget(Record):
    """Body of `POST /budgets/remove`."""

    scope: Scope
    name: Name


class Retire(Record):
    """Body of `POST /keys/<kid>/retire`."""

    place: Place = "previous"


class NewMachines(Record):
    """Body of `POST /machines`."""

    envelope: Bytes


def life_routes(life: Life, core: Core) -> list[BaseRoute]:
    """Return the routes."""
    usage = Usage(core)

    def route(method: Literal["GET", "POST"], path: str, handler: Handler) -> Route:
        return Route(f"{PREFIX}{path}", authenticated(handler, core.secrets), methods=[method])

    def kid(ask: Callable[[str], object]) -> Handler:
        return _asked(lambda request: ask(name_of(request, "kid")))

    return [
        route("POST", "/keys/{kid}/rotate", kid(life.rotate)),
        route("POST", "/keys/{kid}/switch", kid(life.switch)),
        route("POST", "/keys/{kid}/retire", _retire(life)),
        route("GET", "/revocations", _asked(lambda _: {"revocations": life.revocations()})),
        route(
            "POST",
            "/revocations",
            _told(Revoke, lambda said: life.revoke(said.kind, said.value, said.reason)),
        ),
        route(
            "POST",
            "/revocations/undo",
            _told(Revoke, lambda said: life.unrevoke(said.kind, said.value, said.reason)),
        ),
        route(
            "POST",
            "/budgets",
            _told(SetBudget, lambda said: life.set_budget(said.scope, said.name, said.limits)),
        ),
        route(
            "POST",
            "/budgets/remove",
            _told(NamedBudget, lambda said: life.remove_budget(said.scope, said.name)),
        ),
        route(
            "GET",
            "/budgets/{scope}/{name}",
            _asked(lambda request: life.budget(_scope(request), name_of(request, "name"))),
        ),
        route("GET", "/machines", _asked(lambda _: {"lists": life.machines()})),
        route("POST", "/machines", _told(NewMachines, lambda said: life.add_machines(said.envelope))),
        route("GET", "/usage/{tenant}/{month}", _asked(lambda request: _usage(core, usage, request))),
        route("GET", "/usage/{tenant}/{month}/items", _asked(lambda request: _usage_items(usage, request))),
    ]


def _asked(ask: Callable[[Request], object]) -> Handler:
    async def handler(request: Request) -> object:
        return await run_in_threadpool(ask, request)

    return handler


def _told(cls: type[R], ask: Callable[[R], object]) -> Handler:
    async def handler(request: Request) -> object:
        return await run_in_threadpool(ask, await _body(request, cls))

    return handler


async def _body(request: Request, cls: type[R]) -> R:
    return validated(cls, parse_json(await read_body(request, MAX_ADMIN), limit=MAX_ADMIN))


def _retire(life: Life) -> Handler:
    async def handler(request: Request) -> object:
        body = await _body(request, Retire)
        return await run_in_threadpool(life.retire, name_of(request, "kid"), body.place)

    return handler


def _scope(request: Request) -> Scope:
    scope = request.path_params["scope"]
    if scope == "key":
        return "key"
    if scope == "tenant":
        return "tenant"
    raise MessageFormatError("a budget is of a key or a tenant", code="malformed-name")


def _usage(core: Core, usage: Usage, request: Request) -> object:
    statement = usage.statement(*_whose(request))
    return {"statement": json.loads(statement), "broker_keys": json.loads(core.broker_keys())}


def _usage_items(usage: Usage, request: Request) -> object:
    before = request.query_params.get("before", "")
    if not (before.isascii() and before.isdecimal() and len(before) <= 15):
        raise MessageFormatError("before is the index of an entry", code="malformed-limit")
    found = usage.items(*_whose(request), int(before))
    return {"items": [{"index": index, "item": item.to_json()} for index, item in found]}


def _whose(request: Request) -> tuple[str, str, str | None]:
    kid = request.query_params.get("kid")
    if kid is not None and not NAME.fullmatch(kid):
        raise MessageFormatError("kid is not a name", code="malformed-name")
    return name_of(request, "tenant"), str(request.path_params["month"]), kid
