"""What commands that administer a broker share: its address, the token, files to send, questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from sealwright.errors import SettingsError, UnavailableError

MAX_INPUT = 4 << 20  # bytes of a policy or manifest

Broker = Annotated[str, typer.Option(help="URL of the broker.")]
TokenFile = Annotated[Path, typer.Option(help="File with the admin token.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def ask(broker: str, token_file: Path, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """Return the broker's answer to the administrator. Raises what the broker answers."""
    from sealwright.client.admin import AdminClient

    with AdminClient(broker, token_of(token_file)) as client:
        return client.ask(method, path, body)


def token_of(path: Path) -> str:
    """Return the token in a file. Raises SettingsError: `malformed-admin-token`."""
    token = read_text(path).strip()
    if not token or not token.isascii() or not token.isprintable():
        raise SettingsError(f"{path} does not hold a token", code="malformed-admin-token")
    return token


def path_of(name: str) -> str:
    """Return a name as a segment of an address."""
    return quote(name, safe="")


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes. Raises UnavailableError: `input-unreadable`. SettingsError: `too-large`."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_INPUT + 1)
    except OSError as exc:
        raise UnavailableError(
            f"cannot read {path}: {exc.strerror}", code="input-unreadable", stage="arguments"
        ) from exc
    if len(raw) > MAX_INPUT:
        raise SettingsError(f"{path} is over the limit of {MAX_INPUT} bytes", code="too-large")
    return raw


def read_text(path: Path) -> str:
    """Return a file's text. Raises as `read_bytes`; SettingsError: `malformed`."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not UTF-8", code="malformed") from None
