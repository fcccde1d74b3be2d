"""`sealwright attest`: ask a running enclave for evidence and verify it, or collect that of this machine."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import httpx2
import typer

from sealwright.audit.report import check_bundle
from sealwright.cli import _local
from sealwright.cli._files import load_trust
from sealwright.cli._group import Json
from sealwright.cli._output import emit
from sealwright.cli.verify import lines_of, result_of
from sealwright.errors import UnavailableError
from sealwright.protocol.attestation import ATTESTATION_PATH, MAX_BUNDLE, AttestationRequest
from sealwright.protocol.body import PLAIN, parts


def command(
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="Of the enclave, or of the relay before it.")
    ] = None,
    trust: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A trust file to judge by.")
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(help="Whose lease to ask for; default: the trust file's.")
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Collect evidence of this machine instead; it is not verified.")
    ] = False,
    platform: Annotated[
        str | None,
        typer.Option(
            metavar="PLATFORM[:ADDRESS]",
            help="With --local: auto (the default), snp, tdx, nitro, sgx, tpm, az-snp-vtpm, az-tdx-vtpm. "
            "A TPM has an address: /dev/tpmrm0 (the default), unix:PATH or tcp:HOST:PORT.",
        ),
    ] = None,
    vtpm: Annotated[
        bool,
        typer.Option("--vtpm", help="With --local, on snp and tdx: a quote of the provider's TPM too."),
    ] = False,
    endorsement: Annotated[
        list[Path] | None,
        typer.Option(
            help="With --local: a certificate or CRL of a TPM's attestation key, to go along; repeat it.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    report_data: Annotated[
        str | None, typer.Option(metavar="HEX", help="With --local: the 64 bytes to quote; default: random.")
    ] = None,
    nonce: Annotated[
        str | None, typer.Option(metavar="HEX", help="With --local: 16 to 64 bytes, padded with zeros.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Keep the bundle, or the evidence, here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask a running enclave for evidence over a fresh nonce and verify it, or collect that of this machine."""
    if local:
        if url is not None or trust is not None or tenant is not None:
            raise typer.BadParameter("--local takes neither --url, --trust nor --tenant")
        if out is None:
            raise typer.BadParameter("--local needs a file to write to", param_hint="--out")
        data = _local.chosen_data(report_data, nonce)
        attester = _local.opened(platform or _local.AUTO, endorsement or [], vtpm=vtpm)
        _local.collect(attester, data, out, as_json=as_json)
        return
    if url is None:
        raise typer.BadParameter("give --url, or --local")
    if vtpm or any(one is not None for one in (platform, endorsement, report_data, nonce)):
        raise typer.BadParameter(
            "--platform, --vtpm, --endorsement, --report-data and --nonce go with --local"
        )
    _remote(url, trust, tenant, out, as_json=as_json)


def _remote(url: str, trust: Path | None, tenant: str | None, out: Path | None, *, as_json: bool) -> None:
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
    """Return the answer, read no further than a bundle goes; compressed ones are not unpacked."""
    target = url.rstrip("/") + ATTESTATION_PATH
    with _http() as http:
        try:
            with http.stream("POST", target, content=request.encode()) as answer:
                plain = answer.headers.get("content-encoding", "identity").lower() == "identity"
                body = _bounded(answer) if plain and answer.status_code == 200 else None
        except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
            raise UnavailableError(
                f"{url} does not answer ({type(exc).__name__})",
                code="enclave-unreachable",
                stage="attestation",
            ) from exc
    if body is None:
        raise UnavailableError(
            f"no evidence: {url} answers {answer.status_code}, or more than a bundle",
            code="attestation-unavailable",
            stage="attestation",
        )
    return body


def _http() -> httpx2.Client:
    return httpx2.Client(timeout=30, follow_redirects=False, headers=PLAIN)


def _bounded(answer: httpx2.Response) -> bytes | None:
    """Return the body; None: it is larger than a bundle."""
    body = bytearray()
    for part in parts(answer):
        body += part
        if len(body) > MAX_BUNDLE:
            return None
    return bytes(body)
