"""`sealwright broker backend`: where keys are wrapped, and moving them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from sealwright.cli._output import emit
from sealwright.errors import SealwrightError, UnavailableError

app = typer.Typer(
    help="Key backends: an HSM, Vault or a cloud's KMS keeps the root key.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
Broker = Annotated[str, typer.Option(help="URL of the broker.")]
TokenFile = Annotated[Path, typer.Option(help="File with the admin token.")]
Directory = Annotated[Path, typer.Argument(help="The broker's folder, from `broker init`.")]
File = Annotated[
    Path | None, typer.Option("--backends", help="Settings; default: backends.json of the folder.")
]
Name = Annotated[str, typer.Argument(help="Name of the backend in the settings.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("check")
def check(directory: Directory, file: File = None, as_json: Json = False) -> None:
    """Try every backend of the settings, beside a broker or before there is one; exit 69 if one fails."""
    found = checked(directory, file)
    lines = [f"{one['name']:16} {one['state']:26} {one['version'] or one['reason']}" for one in found]
    emit({"backends": found}, as_json=as_json, lines=lines)
    if any(one["state"] != "ready" for one in found):
        raise typer.Exit(UnavailableError.exit_code)


@app.command("create-key")
def create_key(directory: Directory, name: Name, file: File = None, as_json: Json = False) -> None:
    """Make the root key in a backend, or its next version. Keys are moved to it by `move`."""
    import os

    from sealwright.broker.backend_admin import open_backends
    from sealwright.broker.settings import Layout

    ring = open_backends(Layout(root=directory), file, os.urandom)
    try:
        version = ring.ask(name, lambda backend: backend.rotate())
    finally:
        ring.close()
    emit({"backend": name, "version": version}, as_json=as_json, lines=[f"{name}: version {version}"])


@app.command("list")
def list_(broker: Broker, token_file: TokenFile, as_json: Json = False) -> None:
    """List the broker's backends: which is active, who sees a key at its release, what hangs on each."""
    found = _ask(broker, token_file, "GET", "/backends")
    lines = [
        f"{one['name']:16} {one['status']:7} {one['kind']:11} {one['release']:10} "
        f"{'exportable' if one['exportable'] else 'not exportable':14} {one['keys']:>5} keys  "
        f"{one['state'] if one['state'] != 'ready' else 'version ' + one['version']}"
        for one in found["backends"]
    ]
    emit(found, as_json=as_json, lines=lines)


@app.command("use")
def use(name: Name, broker: Broker, token_file: TokenFile, as_json: Json = False) -> None:
    """Wrap with this backend from now on, after a trial. What others wrapped stays until `move`."""
    found = _ask(broker, token_file, "POST", f"/backends/{quote(name, safe='')}/use")
    emit(found, as_json=as_json, lines=[f"{name} is active, version {found['version']}"])


@app.command("rotate")
def rotate(name: Name, broker: Broker, token_file: TokenFile, as_json: Json = False) -> None:
    """Make a new version of a backend's root key, through the running broker."""
    found = _ask(broker, token_file, "POST", f"/backends/{quote(name, safe='')}/rotate")
    emit(found, as_json=as_json, lines=[f"{name}: version {found['version']}"])


@app.command("move")
def move(broker: Broker, token_file: TokenFile, as_json: Json = False) -> None:
    """Re-wrap all keys under the active backend's current version, a few at a time, while the broker serves."""
    moved: list[str] = []
    while True:
        found = _ask(broker, token_file, "POST", "/backends/move")
        moved += found["kids"]
        if not found["left"] or not found["kids"]:
            break
    result = {**found, "kids": sorted(moved)}
    lines = [f"{len(moved)} keys moved to {found['backend']}, version {found['version']}"]
    lines += [f"  {one['kid']}: {one['code']}" for one in found["failed"]]
    emit(result, as_json=as_json, lines=lines)
    if found["failed"]:
        raise typer.Exit(13)


def checked(directory: Path, file: Path | None) -> list[dict[str, Any]]:
    """Return for each backend of a broker's settings whether it answers and its key is fit."""
    import os

    from sealwright.broker.backend_admin import open_backends
    from sealwright.broker.settings import Layout

    ring = open_backends(Layout(root=directory), file, os.urandom)
    try:
        return [_one(ring, name) for name in ring.names()]
    finally:
        ring.close()


def _one(ring: Any, name: str) -> dict[str, Any]:
    from sealwright.broker.backend_admin import try_out

    said: dict[str, Any] = {"name": name, "kind": ring.get(name).facts.kind}
    try:
        return said | {"state": "ready", "version": ring.ask(name, try_out), "reason": ""}
    except SealwrightError as error:
        return said | {"state": error.code, "version": None, "reason": str(error)}


def _ask(broker: str, token_file: Path, method: str, path: str) -> dict[str, Any]:
    from sealwright.cli._admin import ask

    return ask(broker, token_file, method, path)
