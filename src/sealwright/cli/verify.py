"""`sealwright verify`: evidence, attestation bundles and receipts, offline."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from sealwright.appraisal.policy import KeyPolicy, TrustFile
from sealwright.audit.report import (
    BUNDLE,
    RECEIPT,
    Report,
    check_bundle,
    check_envelope,
    check_receipt,
    kind_of,
)
from sealwright.cli._files import hex_option, load_trust, read_input, time_option
from sealwright.cli._output import emit
from sealwright.client.trust_source import read_file
from sealwright.evidence.envelope import EvidenceEnvelope

_EXISTING = {"exists": True, "dir_okay": False}


def command(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Evidence, attestation bundle or receipt.", **_EXISTING)
    ],
    trust: Annotated[Path | None, typer.Option(help="A trust file to judge by.", **_EXISTING)] = None,
    policy: Annotated[Path | None, typer.Option(help="A key policy to judge by.", **_EXISTING)] = None,
    nonce: Annotated[str | None, typer.Option(metavar="HEX", help="The nonce of a bundle.")] = None,
    report_data: Annotated[
        str | None, typer.Option(metavar="HEX", help="The 64 bytes that evidence must carry.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="RFC3339", help="Verify as of this time; default: now.")
    ] = None,
    require_hardware: Annotated[
        bool, typer.Option("--require-hardware", help="Refuse what is not a hardware TEE.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Verify evidence offline: is it genuine, and is it allowed?

    Without a trust file or policy only genuineness is judged; what was not checked is listed.
    """
    if trust is not None and policy is not None:
        raise typer.BadParameter("give either --trust or --policy")
    rules = load_trust(trust) if trust else KeyPolicy.load(read_file(policy)) if policy else None
    when = time_option(at, datetime.now(UTC))
    raw = read_input(file)
    report = _checked(raw, rules, nonce, report_data, when)
    if require_hardware:
        report.require_hardware()
    emit(result_of(report), as_json=as_json, lines=lines_of(report))


def _checked(
    raw: bytes, rules: TrustFile | KeyPolicy | None, nonce: str | None, expected: str | None, at: datetime
) -> Report:
    kind = kind_of(raw)
    if kind == RECEIPT:
        if isinstance(rules, KeyPolicy):
            raise typer.BadParameter("a receipt is judged by a trust file", param_hint="--policy")
        return check_receipt(raw, trust=rules)
    if kind == BUNDLE:
        chosen = hex_option(nonce, 32, "--nonce")
        if isinstance(rules, TrustFile) and chosen is None:
            raise typer.BadParameter(
                "a bundle is verified with the nonce it was asked for", param_hint="--nonce"
            )
        return check_bundle(raw, rules=rules, nonce=chosen, at=at)
    if nonce is not None:
        raise typer.BadParameter("evidence alone takes --report-data, not a nonce", param_hint="--nonce")
    return check_envelope(
        EvidenceEnvelope.parse(raw), rules=rules, expected=hex_option(expected, 64, "--report-data"), at=at
    )


def result_of(report: Report) -> dict[str, object]:
    """Return a report for programs; what matters most stands first."""
    return {
        "confidential": report.confidential,
        "kind": report.kind,
        "genuine": True,
        "allowed": report.allowed,
        "platform": report.platform,
        "checked": report.checked,
        "not_checked": report.not_checked,
        **report.details,
    }


def lines_of(report: Report) -> list[str]:
    """Return a report for people."""
    word = "yes" if report.confidential else f"NO: platform {report.platform} protects nothing from the host"
    allowed = "yes" if report.allowed else "NOT CHECKED"
    return [
        f"confidential  {word}",
        f"file          {report.kind}",
        "genuine       yes",
        f"allowed       {allowed}",
        *[f"checked       {item}" for item in report.checked],
        *[f"NOT CHECKED   {item}" for item in report.not_checked],
        *[f"{name:<13} {_text(value)}" for name, value in report.details.items()],
    ]


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return str(value)
