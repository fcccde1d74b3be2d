"""`sealwright broker resource`: what guests of Confidential Containers fetch. Spec: docs/spec/kbs-guest.md."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sealwright.cli._admin import Broker, Json, TokenFile, ask, path_of, read_bytes, read_text
from sealwright.cli._output import emit
from sealwright.crypto.encoding import b64url

app = typer.Typer(
    help="Resources, which guests of Confidential Containers fetch.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
Path_ = Annotated[str, typer.Argument(metavar="kbs:///REPOSITORY/TYPE/TAG", help="The resource.")]
Tenant = Annotated[str, typer.Option(help="Whose resource it is.")]
GuestPolicy = Annotated[
    Path | None,
    typer.Option("--policy", help="Guest policy, YAML; default: the resource's, else the tenant's."),
]


@app.command("put")
def put(
    uri: Path_,
    file: Annotated[Path, typer.Argument(help="What it holds, at most 1 MiB.")],
    broker: Broker,
    token_file: TokenFile,
    tenant: Tenant = "default",
    policy: GuestPolicy = None,
    as_json: Json = False,
) -> None:
    """Store a resource, under a guest policy."""
    _emit(_put(broker, token_file, uri, read_bytes(file), tenant, policy), as_json=as_json)


@app.command("list")
def list_(broker: Broker, token_file: TokenFile, as_json: Json = False) -> None:
    """List all resources, without what they hold."""
    found = ask(broker, token_file, "GET", "/resources")
    lines = [
        f"{item['resource']:48} {item['tenant']:16} policy until {item['policy_expires']}"
        for item in found["resources"]
    ]
    emit(found, as_json=as_json, lines=lines or ["no resources yet"])


@app.command("remove")
def remove(uri: Path_, broker: Broker, token_file: TokenFile, as_json: Json = False) -> None:
    """Remove a resource. A guest that has fetched it has it."""
    found = ask(broker, token_file, "DELETE", f"/resources/{_route(uri)}")
    emit(found, as_json=as_json, lines=[f"removed  {found['resource']}"])


@app.command("policy")
def set_policy(
    tenant: Annotated[str, typer.Argument()],
    file: Annotated[Path, typer.Argument(metavar="POLICY", help="Guest policy, YAML or signed.")],
    broker: Broker,
    token_file: TokenFile,
    as_json: Json = False,
) -> None:
    """Set the policy of a tenant's resources that come without one; those that are there keep theirs."""
    body = {"policy": read_text(file)}
    _emit(ask(broker, token_file, "POST", f"/guest-policies/{path_of(tenant)}", body), as_json=as_json)


@app.command("seal-secret")
def seal_secret(
    uri: Path_,
    signing_key: Annotated[Path, typer.Option(help="P-256 private key, PEM.")],
    kid: Annotated[str, typer.Option(metavar="kbs:///…", help="Resource with the key's public half.")],
    as_json: Json = False,
) -> None:
    """Write what a pod's Secret holds in place of a resource. The guest fetches the key at `kid` to check it."""
    from sealwright.protocol.sealed_secret import load_signing_key, public_jwk, seal_vault_secret

    key = load_signing_key(read_bytes(signing_key))
    sealed = seal_vault_secret(uri, key, kid=kid)
    jwk = public_jwk(key).decode()
    emit({"sealed": sealed, "kid": kid, "public_jwk": json.loads(jwk)}, as_json=as_json, lines=[sealed])


@app.command("keyprovider")
def keyprovider(
    broker: Broker, token_file: TokenFile, tenant: Tenant = "default", policy: GuestPolicy = None
) -> None:
    """Wrap keys of image layers: a `cmd` key provider of ocicrypt, for skopeo and others. Reads JSON on stdin.

    The parameter is keyid=kbs:///REPOSITORY/TYPE/NAME; each layer's key becomes a resource NAME-<digest>.
    """
    from sealwright.protocol.sealed_secret import MAX_PROVIDER_INPUT, SCHEME, WrapRequest, wrap_options

    request = WrapRequest.read(sys.stdin.buffer.read(MAX_PROVIDER_INPUT + 1))
    options = request.options()
    path = f"{request.prefix()}-{hashlib.sha256(options).hexdigest()[:16]}"
    key, answer = wrap_options(options, path, os.urandom)
    _put(broker, token_file, SCHEME + path, key, tenant, policy)
    sys.stdout.write(json.dumps(answer))


def _put(
    broker: str, token_file: Path, uri: str, content: bytes, tenant: str, policy: Path | None
) -> dict[str, Any]:
    body: dict[str, object] = {"tenant": tenant, "content": b64url(content)}
    if policy is not None:
        body["policy"] = read_text(policy)
    return ask(broker, token_file, "POST", f"/resources/{_route(uri)}", body)


def _route(uri: str) -> str:
    from sealwright.protocol.sealed_secret import resource_path

    return resource_path(uri)


def _emit(found: dict[str, Any], *, as_json: bool) -> None:
    emit(found, as_json=as_json, lines=[f"{name:15} {value}" for name, value in found.items()])
