"""`sealwright attest`: ask a running enclave for evidence, and verify it."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import httpx2
import typer

from sealwright.audit.report import check_bundle
from sealwright.cli._files import load_trust
from sealwright.cli._output import emit
from sealwright.cli.verify import lines_of, result_of
from sealwright.errors import UnavailableError
from sealwright.protocol.attestation import ATTESTATION_PATH, MAX_BUNDLE, AttestationRequest


def command(
    url: Annotated[str, typer.Option(metavar="URL", help="Of the enclave, or of the relay before it.")],
    trust: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A trust file to judge by.")
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(help="Whose lease to ask for; default: the trust file's.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Keep the bundle here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask a running enclave for evidence over a fresh nonce, and verify it."""
    rules = None if trust is None else load_trust(trust)
    asked = tenant or (rules.tenant if rules else None)
    if asked is None:
        raise typer.BadParameter("give --trust or --tenant")
    request = AttestationRequest(nonce=secrets.token_bytes(32), tenant=asked)
    bundle = _ask(url, request)
    if out is not None:
        out.write_bytes(bundle)
    report = check_bundle(bundle, rules=rules, nonce=request.nonce, at=datetime.now(UTC))
    nonce = request.nonce.hex()
    result = {**result_of(report), "nonce": nonce, "file": None if out is None else str(out)}
    emit(result, as_json=as_json, lines=[*lines_of(report), f"nonce         {nonce}"])


def _ask(url: str, request: AttestationRequest) -> bytes:
    try:
        answer = httpx2.post(
            url.rstrip("/") + ATTESTATION_PATH, content=request.encode(), timeout=30, follow_redirects=False
        )
    except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
        raise UnavailableError(
            f"{url} does not answer ({type(exc).__name__})", code="enclave-unreachable", stage="attestation"
        ) from exc
    if answer.status_code != 200 or len(answer.content) > MAX_BUNDLE:
        raise UnavailableError(
            f"no evidence: {url} answers {answer.status_code}",
            code="attestation-unavailable",
            stage="attestation",
        )
    return answer.content
