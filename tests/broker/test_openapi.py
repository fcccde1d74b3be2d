"""The OpenAPI document: valid, whole, and what the real application does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from tests.broker.support import Enclave, Kbs, World

from sealwright.broker.openapi import OPERATIONS, document
from sealwright.broker.service import Running

FILE = Path(__file__).parents[2] / "docs" / "reference" / "openapi.json"


def test_the_file_in_the_docs_is_what_is_served() -> None:
    made = document()
    assert FILE.read_bytes() == made, "write it again: document() of sealwright.broker.openapi"


async def test_it_is_served(kbs: Kbs) -> None:
    answer = await kbs.http.get("/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.content == document()


def test_every_route_is_in_it_and_nothing_else(world: World, tmp_path: Path) -> None:
    with world.open(collateral=tmp_path / "cache") as running:
        guard: Any = running.app()
        served = {
            (method, re.sub(r":\w+}", "}", route.path))
            for route in guard._app.routes
            for method in route.methods - {"HEAD"}
        }
    assert served == {(one.method, one.path) for one in OPERATIONS}


async def test_what_it_calls_the_administrators_wants_the_token_and_nothing_else_does(kbs: Kbs) -> None:
    for one in OPERATIONS:
        if one.only:
            continue
        path = re.sub(r"{\w+}", "x", one.path)
        answer = await kbs.http.request(one.method, path)
        wanted = answer.status_code == 401 and answer.json()["code"] == "admin-token"
        assert wanted == (one.who == "administrator"), one


def test_it_is_valid() -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    validator.OpenAPIV31SpecValidator(json.loads(document())).validate()
    broken = json.loads(document())
    del broken["info"]["title"]
    with pytest.raises(Exception, match="title"):
        validator.OpenAPIV31SpecValidator(broken).validate()


async def test_the_bodies_of_an_enclave_are_as_it_says(kbs: Kbs, enclave: Enclave) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    whole = json.loads(document())

    def check(path: str, body: object) -> None:
        wanted = whole["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        jsonschema.Draft202012Validator({**wanted, "components": whole["components"]}).validate(body)

    nonce = await kbs.auth()
    body = enclave.attest_body(nonce)
    check("/kbs/v0/attest", body)
    check("/kbs/v0/sealwright/lease", {"tenant": "acme", "answers": 0})
    with pytest.raises(jsonschema.ValidationError):
        check("/kbs/v0/attest", {**body, "more": 1})


@pytest.fixture
def served(world: World, running: Running, dek: bytes) -> tuple[Any, str]:
    """The application, and the administrator's token."""
    times = iter(range(10**9))  # nobody is slowed down
    return (
        running.app(log=lambda *_, **__: None, monotonic=lambda: float(next(times))),
        (world.root / "admin-token").read_text().strip(),
    )


@pytest.mark.slow  # 30 s
@pytest.mark.filterwarnings("default")  # those of schemathesis
@pytest.mark.parametrize("authenticated", [False, True])
def test_the_application_keeps_to_it(served: tuple[Any, str], authenticated: bool) -> None:
    """Schemathesis makes requests, good and bad ones: never a 5xx, a status, type or body that is not described."""
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis import checks

    app, token = served
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    wanted = [
        checks.not_a_server_error,
        *checks.CHECKS.get_by_names(
            ["status_code_conformance", "content_type_conformance", "response_schema_conformance"]
        ),
    ]
    headers = {"authorization": f"Bearer {token}"} if authenticated else {}
    tried = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        if "collateral" in operation.path or operation.path == "/readyz":
            continue

        @settings(max_examples=12, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(case=operation.as_strategy())
        def one(case: Any) -> None:
            case.call_and_validate(headers=headers, checks=wanted)

        one()
        tried.add((operation.method.upper(), operation.path))
    assert tried == {
        (one.method, one.path)
        for one in OPERATIONS
        if not one.only and one.path not in ("/readyz", "/openapi.json")
    }
