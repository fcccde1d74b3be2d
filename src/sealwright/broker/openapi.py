"""The broker's HTTP surface as an OpenAPI 3.1 document: every route, what it takes, what it answers.

Served at `/openapi.json`; the same is kept in docs/reference/openapi.json.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sealwright import __version__
from sealwright.broker.admin_routes import (
    PREFIX,
    KeyRequest,
    NewCaller,
    NewKey,
    NewManifest,
    NewOwner,
    NewPolicy,
)
from sealwright.broker.data_routes import EnrolRequest, NewDataPolicy
from sealwright.broker.erasure_routes import EraseRequest
from sealwright.broker.guest_routes import NewDefault, NewResource, TrusteePolicy
from sealwright.broker.life_routes import NamedBudget, NewMachines, Retire, Revoke, SetBudget
from sealwright.broker.notices import PATH as NOTICES
from sealwright.broker.notices import NoticeRequest
from sealwright.protocol.kbs import (
    SESSION_COOKIE,
    AttestRequest,
    AuthRequest,
    Challenge,
    LeaseRequest,
)
from sealwright.protocol.kbs_guest import GuestAttestRequest
from sealwright.protocol.training_data import TRAINING_PATH

PATH = "/openapi.json"
JSON, TEXT, OCTETS, PROBLEM = (
    "application/json",
    "text/plain",
    "application/octet-stream",
    "application/problem+json",
)
_NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_RESOURCE = "{repository}/{kind}/{tag}"

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One route, as the document has it."""

    method: str
    path: str
    text: str
    who: str = "everyone"  # everyone, session, holder (a session or its token), administrator
    bodies: tuple[type[BaseModel], ...] = ()
    raw: bool = False  # the body is bytes
    answer: str = JSON
    schema: type[BaseModel] | None = None  # of the answer
    query: tuple[str, ...] = ()
    only: str = ""  # a condition for the route to be there


def _admin(method: str, path: str, text: str, *bodies: type[BaseModel], **more: Any) -> Operation:
    return Operation(method=method, path=PREFIX + path, text=text, who="administrator", bodies=bodies, **more)


def _kbs(method: str, path: str, text: str, who: str, *bodies: type[BaseModel], **more: Any) -> Operation:
    return Operation(method=method, path=f"/kbs/v0{path}", text=text, who=who, bodies=bodies, **more)


def _open(method: str, path: str, text: str, **more: Any) -> Operation:
    return Operation(method=method, path=path, text=text, **more)


OPERATIONS = (
    _kbs("POST", "/auth", "Open a session; answers a nonce and sets the cookie.", "everyone", AuthRequest, schema=Challenge),
    _kbs("POST", "/attest", "Send evidence for the nonce; answers a token (EAR).", "session", AttestRequest, GuestAttestRequest),
    _kbs("POST", "/sealwright/lease", "Take a tenant's lease, callers and broker keys.", "session", LeaseRequest),
    _kbs("GET", f"/resource/{_RESOURCE}", "A key, sealed to the attested keyset, or a guest's resource (JWE).", "holder"),
    _kbs("POST", f"/resource/{_RESOURCE}", "Store a resource, as Trustee's clients do.", "administrator", raw=True),
    _kbs("GET", "/resource-policy", "Default policies of guests.", "administrator"),
    _kbs("POST", "/resource-policy", "Set the default policy of tenant `default`.", "administrator", TrusteePolicy),
    _kbs("POST", "/attestation-policy", "Always refused: `policy-not-typed`.", "administrator", raw=True),
    _kbs("POST", "/reference-value", "Always refused: `policy-not-typed`.", "administrator", raw=True),
    _open("GET", "/healthz", "Does it serve, on rows that hold?", answer=TEXT),
    _open("GET", "/readyz", "Could a decision be recorded now?", answer=TEXT),
    _open("GET", PATH, "This document."),
    _open("GET", "/sealwright/v1/broker-keys", "The working keys, signed by the root (DSSE)."),
    _open("POST", "/sealwright/v1/journal", "Receipts, sealed to the journal key.", raw=True),
    _open("GET", "/sealwright/v1/proofs/{entry}", "Proof of one entry in the log.", answer=TEXT),
    _open("GET", "/log/{path}", "The log: checkpoint and tiles (C2SP tlog-tiles).", answer=OCTETS),
    _open("GET", "/sealwright/v1/collateral/{kind}/{key}", "A piece of collateral.", answer=OCTETS, only="--collateral"),
    _admin("GET", "/status", "How the broker stands."),
    _admin("GET", "/backends", "Key backends."),
    _admin("POST", "/backends/move", "Re-wrap keys under the active backend, a few at a time."),
    _admin("POST", "/backends/{backend}/use", "Wrap with this backend from now on."),
    _admin("POST", "/backends/{backend}/rotate", "Make a new version of its root key."),
    _admin("GET", "/decisions", "Newest decisions, opened.", query=("limit", "before", "openings")),
    _admin("GET", "/keys", "Keys."),
    _admin("POST", "/keys", "Make a key.", NewKey),
    _admin("GET", "/keys/{kid}", "One key."),
    _admin("POST", "/keys/{kid}/policy", "Set its policy.", NewPolicy),
    _admin("POST", "/keys/{kid}/revoke", "Release it no more."),
    _admin("POST", "/keys/{kid}/manifest", "Admit a manifest.", NewManifest),
    _admin("POST", "/keys/{kid}/sealing-key", "The key for its owner, sealed to an X-Wing key.", KeyRequest),
    _admin("GET", "/tenants/{tenant}/callers", "Callers of a tenant."),
    _admin("POST", "/tenants/{tenant}/callers", "Add a caller; answers its credential once.", NewCaller),
    _admin("DELETE", "/tenants/{tenant}/callers/{caller}", "Remove a caller."),
    _admin("POST", "/tenants/{tenant}/owners", "Add an owner's key.", NewOwner),
    _admin("GET", "/resources", "Resources of guests."),
    _admin("POST", f"/resources/{_RESOURCE}", "Store a resource.", NewResource),
    _admin("DELETE", f"/resources/{_RESOURCE}", "Remove a resource."),
    _admin("GET", "/guest-policies", "Default policies of guests."),
    _admin("POST", "/guest-policies/{tenant}", "Set a tenant's default policy.", NewDefault),
    _admin("POST", "/erase", "Forget the openings of entries.", EraseRequest),
    _open("POST", NOTICES, "Wait for what may end a lease; a hint only.", bodies=(NoticeRequest,)),
    _admin("POST", "/keys/{kid}/rotate", "Make its next generation."),
    _admin("POST", "/keys/{kid}/switch", "Make the next generation the current one."),
    _admin("POST", "/keys/{kid}/retire", "Forget a generation.", Retire),
    _admin("GET", "/revocations", "Revocations."),
    _admin("POST", "/revocations", "Revoke a tenant, enclave, config, manifest, measurement, CPU or TCB.", Revoke),
    _admin("POST", "/revocations/undo", "Take a revocation back.", Revoke),
    _admin("POST", "/budgets", "Set the budget of a key or tenant.", SetBudget),
    _admin("POST", "/budgets/remove", "Remove one.", NamedBudget),
    _admin("GET", "/budgets/{scope}/{name}", "A budget, and what is spent of it."),
    _admin("GET", "/machines", "Lists of machines by region."),
    _admin("POST", "/machines", "Add an operator's list.", NewMachines),
    _admin("GET", "/usage/{tenant}/{month}", "What a tenant used, signed."),
    _admin("GET", "/usage/{tenant}/{month}/items", "The decisions that were counted."),
    _open("POST", f"{TRAINING_PATH}/nonce", "A nonce for a worker's evidence."),
    _open("POST", f"{TRAINING_PATH}/enrol", "Appraise a worker; answers an EAR.", bodies=(EnrolRequest,)),
    _open("POST", f"{TRAINING_PATH}/data", "A shard's key for one epoch, for a signed request.", raw=True),
    _open("POST", f"{TRAINING_PATH}/checkpoints", "Log a signed checkpoint as its lineage's newest.", raw=True, answer=TEXT),
    _open("GET", f"{TRAINING_PATH}/lineages/{{lineage}}", "A lineage's newest checkpoint."),
    _admin("POST", "/data-policies", "Put an owner's data policy in force.", NewDataPolicy),
)  # fmt: skip


class _Generator(GenerateJsonSchema):
    """Values that a validator of ours reads are strings in JSON."""

    def function_plain_schema(self, schema: Any) -> Schema:
        """Return the schema of a value that only a function validates."""
        return {"type": "string"}


@cache
def document() -> bytes:
    """Return the OpenAPI document, JSON."""
    models = sorted(
        {model for one in OPERATIONS for model in (*one.bodies, one.schema) if model is not None},
        key=lambda model: model.__name__,
    )
    refs, schemas = models_json_schema(
        [(model, "validation") for model in models],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Generator,
    )
    named = {model: refs[model, "validation"] for model in models}
    paths: dict[str, Schema] = {}
    for one in OPERATIONS:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, named)
    made = {
        "openapi": "3.1.0",
        "info": {
            "title": "Sealwright broker",
            "version": __version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "KBS protocol 0.4.0 of Confidential Containers, leases, the log, and administration.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"] | {"Problem": _PROBLEM},
            "securitySchemes": {
                "session": {"type": "apiKey", "in": "cookie", "name": SESSION_COOKIE},
                "token": {"type": "http", "scheme": "bearer"},
                "administrator": {"type": "http", "scheme": "bearer"},
            },
        },
    }
    return json.dumps(made, indent=1, sort_keys=True).encode() + b"\n"


_PROBLEM: Schema = {
    "type": "object",
    "required": ["type", "title", "status", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "detail": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "code": {"type": "string", "pattern": "^[a-z0-9-]+$"},
        "exit_code": {"type": "integer"},
        "stage": {"type": "string"},
    },
}
_SECURITY: dict[str, list[dict[str, list[str]]]] = {
    "everyone": [],
    "session": [{"session": []}],
    "holder": [{"session": []}, {"token": []}],
    "administrator": [{"administrator": []}],
}


def _operation(one: Operation, named: dict[type[BaseModel], Schema]) -> Schema:
    answer: Schema = {"type": "string"} if one.answer != JSON else {"type": "object"}
    if one.schema is not None:
        answer = named[one.schema]
    # The log's checkpoint is text, its tiles are not.
    kinds = (TEXT, OCTETS) if one.path == "/log/{path}" else (one.answer,)
    made: Schema = {
        "operationId": _operation_id(one),
        "summary": one.text,
        "security": _SECURITY[one.who],
        "parameters": [*_path_parameters(one.path), *(_QUERY[name] for name in one.query)],
        "responses": {
            "200": {"description": "done", "content": {kind: {"schema": answer} for kind in kinds}},
            "default": {
                "description": "refused or failed; `code` says why",
                "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            },
        },
    }
    if one.only:
        made["description"] = f"Only where the broker runs with `{one.only}`."
    if one.raw:
        made["requestBody"] = {"content": {OCTETS: {"schema": {}}}}
    elif one.bodies:
        schemas = [named[body] for body in one.bodies]
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        made["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    return made


def _operation_id(one: Operation) -> str:
    words = re.findall(r"[a-zA-Z0-9]+", one.path.removeprefix("/sealwright/v1").removeprefix("/kbs/v0"))
    prefix = "kbs" if one.path.startswith("/kbs/") else ""
    return "-".join(word for word in (one.method.lower(), prefix, *words) if word)


def _path_parameters(path: str) -> list[Schema]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _PATHS.get(name, _NAME)}
        for name in re.findall(r"{(\w+)}", path)
    ]


_NAME: Schema = {"type": "string", "pattern": _NAME_PATTERN}
_PATHS: dict[str, Schema] = {
    "entry": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "path": {"type": "string", "pattern": "^(checkpoint|tile/[0-9a-z/.]{1,64})$"},
    "key": {"type": "string", "minLength": 1},
}
_QUERY: dict[str, Schema] = {
    "limit": {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 200}},
    "before": {"name": "before", "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": 10**15 - 1}},
    "openings": {"name": "openings", "in": "query", "schema": {"enum": ["1"]}},
}  # fmt: skip


def openapi_route() -> Route:
    """Return the route that serves the document."""

    async def get(_request: Request) -> Response:
        return Response(document(), media_type=JSON)

    return Route(PATH, get, methods=["GET"])
