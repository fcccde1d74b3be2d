"""`sealwright connect`: an attested model as a local OpenAI endpoint, for unchanged clients."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
import uvicorn

from sealwright.cli import _notify
from sealwright.cli._group import FILE, Json
from sealwright.cli._output import emit, note
from sealwright.client.connect import LocalEndpoint, Upstream
from sealwright.client.httpx_transport import async_http_client, http_client
from sealwright.client.receipt_store import ReceiptStore, replace_file
from sealwright.client.trust_source import read_file
from sealwright.errors import SealwrightError, SettingsError, UnavailableError, VerificationError


def command(
    trust: Annotated[Path, typer.Option(help="The trust file: whom to talk to.", **FILE)],
    url: Annotated[str, typer.Option(metavar="URL", help="Of the enclave, or of the relay before it.")],
    credential_file: Annotated[
        Path, typer.Option(help="File with the enclave's credential (swk_…).", **FILE)
    ],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Loopback address; port 0: any free one.")
    ] = "127.0.0.1:8787",
    receipts: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep receipts here.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Write the local token here (mode 0600), instead of printing it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Offer an attested model as a local OpenAI endpoint.

    The enclave is verified before anything is sent, and again when anything ends or changes.
    """
    origin, credential = _origin(url), _credential(credential_file)
    confidential = _first_contact(trust, origin, credential)
    bound = _bind(listen)
    host, port = bound.getsockname()[:2]
    token = secrets.token_urlsafe(32)
    if token_file is not None:
        replace_file(token_file, token.encode() + b"\n")
    _announce(confidential, _base_url(host, port), token, token_file, as_json)
    upstream = Upstream(client=async_http_client(trust=trust), url=origin, credential=credential)
    endpoint = LocalEndpoint(upstream, ReceiptStore(receipts), token=token, hosts=_names(host, port))
    config = uvicorn.Config(endpoint.app, log_level="warning", access_log=False, server_header=False)
    with _notify.service(_notify.asked((host, port), {"authorization": f"Bearer {token}"}), ready="/healthz"):
        uvicorn.Server(config).run(sockets=[bound])


def _origin(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise typer.BadParameter("wanted: https://host[:port]", param_hint="--url")
    if parts.path.rstrip("/") not in ("", "/v1"):
        raise typer.BadParameter("wanted: https://host[:port], without a path", param_hint="--url")
    return f"{parts.scheme}://{parts.netloc}"


def _credential(path: Path) -> str:
    text = read_file(path, limit=4096).decode("ascii", "replace").strip()
    if not text.isascii() or not text.isprintable() or " " in text or not text:
        raise SettingsError(f"{path} holds no credential", code="malformed-credential")
    return text


def _first_contact(trust: Path, origin: str, credential: str) -> bool:
    """Verify the enclave and the credential; return whether the platform is confidential."""
    with http_client(trust=trust) as client:
        try:
            answer = client.get(f"{origin}/v1/models", headers={"authorization": f"Bearer {credential}"})
        except Exception as exc:
            if isinstance(exc, SealwrightError):
                raise
            raise UnavailableError(
                f"{origin} does not answer ({type(exc).__name__})",
                code="enclave-unreachable",
                stage="connect",
            ) from exc
    refused = answer.extensions.get("sealwright_refusal")
    if isinstance(refused, SealwrightError):
        raise refused
    if answer.status_code == 401:
        raise VerificationError(
            "the enclave does not know this credential", code="credential-unknown", stage="connect"
        )
    if answer.status_code != 200:
        raise UnavailableError(
            f"the enclave answers {answer.status_code}", code="enclave-unreachable", stage="connect"
        )
    return bool(answer.extensions["sealwright_enclave"].confidential)


def _bind(listen: str) -> socket.socket:
    host, colon, port = listen.rpartition(":")
    bare = host.strip("[]")
    try:
        address = ipaddress.ip_address("127.0.0.1" if bare == "localhost" else bare)
        number = int(port)
    except ValueError:
        raise typer.BadParameter("wanted: HOST:PORT, such as 127.0.0.1:8787", param_hint="--listen") from None
    if not colon or not address.is_loopback or not 0 <= number < 65536:
        raise typer.BadParameter(
            "only a loopback address: what arrives here is not sealed", param_hint="--listen"
        )
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        return socket.create_server((str(address), number), family=family)
    except OSError as exc:
        raise UnavailableError(f"cannot listen on {listen}: {exc.strerror}", code="address-in-use") from exc


def _names(host: str, port: int) -> frozenset[str]:
    return frozenset(
        {f"{_bracketed(host)}:{port}", f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"}
    )


def _base_url(host: str, port: int) -> str:
    return f"http://{_bracketed(host)}:{port}/v1"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _announce(confidential: bool, base_url: str, token: str, token_file: Path | None, as_json: bool) -> None:
    where = str(token_file) if token_file is not None else None
    result: dict[str, object] = {
        "confidential": confidential,
        "base_url": base_url,
        "token_file": where,
        "token": None if token_file is not None else token,
    }
    word = "yes" if confidential else "NO: this platform protects nothing from the host"
    emit(
        result,
        as_json=as_json,
        lines=[f"confidential  {word}", f"base_url      {base_url}", f"api_key       {where or token}"],
    )
    note("the enclave is verified; stop with Ctrl-C")
