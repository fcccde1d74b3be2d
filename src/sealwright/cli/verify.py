"""`sealwright verify`: evidence of any platform, attestation bundles and receipts, offline."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from sealwright.appraisal.policy import KeyPolicy, TrustFile
from sealwright.audit.detect import TYPES
from sealwright.audit.evidence import check_evidence
from sealwright.audit.given import Given, folder
from sealwright.audit.html import page
from sealwright.audit.report import BUNDLE, RECEIPT, Report, check_bundle, check_receipt, kind_of
from sealwright.cli import _verdict
from sealwright.cli._files import hex_option, load_trust, read_input, time_option
from sealwright.cli._group import FILE, Json
from sealwright.cli._output import emit, note
from sealwright.cli._signing import write_new
from sealwright.cli.explain import explanations
from sealwright.client.trust_source import read_file
from sealwright.endorsement.bag import Endorsements
from sealwright.errors import (
    AppraisalError,
    AppraisalFailure,
    CollateralError,
    FormatError,
    RevokedError,
    VerificationError,
)
from sealwright.verify.context import CollateralKind, Tolerance

_KINDS: tuple[str, ...] = get_args(CollateralKind)


def command(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Evidence of any platform, an attestation bundle or a receipt.", **FILE
        ),
    ],
    kind: Annotated[
        str | None,
        typer.Option("--type", help=f"What FILE is, where its content does not say: {', '.join(TYPES)}."),
    ] = None,
    endorsements: Annotated[
        list[Path] | None,
        typer.Option(
            help="A vendor's file, or a folder of them, as they are served; repeat it.", exists=True
        ),
    ] = None,
    event_log: Annotated[Path | None, typer.Option(help="The machine's event log.", **FILE)] = None,
    trust: Annotated[Path | None, typer.Option(help="A trust file to judge by.", **FILE)] = None,
    policy: Annotated[Path | None, typer.Option(help="A key policy to judge by.", **FILE)] = None,
    nonce: Annotated[
        str | None, typer.Option(metavar="HEX", help="The nonce of a bundle, or that a device answers.")
    ] = None,
    report_data: Annotated[
        str | None, typer.Option(metavar="HEX", help="The 64 bytes that evidence must carry.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="RFC3339", help="Verify as of this time; default: now.")
    ] = None,
    outage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=missing|SECONDS",
            help="Decide without a kind of collateral, or with one so many seconds past its end. The result says so.",
        ),
    ] = None,
    require_hardware: Annotated[
        bool, typer.Option("--require-hardware", help="Refuse what is not a hardware TEE.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Add cause and fix to every refusal.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the result as one page that needs nothing else.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify evidence offline: is it genuine, and is it allowed?

    Without a trust file or policy only genuineness is judged, and that nothing is wrong that no policy may be
    silent about; what was not checked is listed.
    """
    if kind is not None and kind not in TYPES:
        raise typer.BadParameter(f"known are {', '.join(TYPES)}", param_hint="--type")
    rules = _rules(trust, policy)
    if outage and rules is not None:
        raise typer.BadParameter("a policy has an outage policy of its own", param_hint="--outage")
    when = time_option(at, datetime.now(UTC))
    raw = read_input(file)
    if (held := kind_of(raw)) is not None:
        options = {
            "--report-data": report_data,
            "--endorsements": endorsements,
            "--event-log": event_log,
            "--outage": outage,
            "--type": kind,
            "--html": html,
        }
        _check_options(held, options | ({"--nonce": nonce} if held == RECEIPT else {}))
        report = _of_ours(raw, held, rules, nonce, when)
        if require_hardware:
            report.require_hardware()
        emit(result_of(report), as_json=as_json, lines=lines_of(report))
        return
    given = Given(collateral=_collateral(endorsements or []), outage=_outage(outage or []))
    try:
        found = check_evidence(
            raw,
            rules=rules,
            at=when,
            given=given,
            expected=hex_option(report_data, 64, "--report-data") or hex_option(nonce, 32, "--nonce"),
            kind=kind,
            event_log=None if event_log is None else read_input(event_log),
        )
    except (FormatError, VerificationError, RevokedError, CollateralError) as exc:
        if not as_json:
            raise
        emit(_verdict.refusal(exc), as_json=True, lines=[])
        raise typer.Exit(exc.exit_code) from None
    failures = list(found.failures)
    if require_hardware and not found.confidential:
        text = f"platform `{found.type}` is not a hardware TEE under its vendor's root"
        failures.append(AppraisalFailure(text, code="hardware-required"))
    result = _verdict.result(found, failures)
    if html is not None:
        known = {row.code: (row.cause, row.fix) for row in explanations()}
        write_new(html, page(result, explanations=known).encode())
        note(f"page      {html}")
    emit(result, as_json=as_json, lines=_verdict.lines(found, failures, explain=explain))
    if failures:
        raise typer.Exit(AppraisalError.exit_code)


def _rules(trust: Path | None, policy: Path | None) -> TrustFile | KeyPolicy | None:
    if trust is not None and policy is not None:
        raise typer.BadParameter("give either --trust or --policy")
    return load_trust(trust) if trust else KeyPolicy.load(read_file(policy)) if policy else None


def _check_options(held: str, given: Mapping[str, object]) -> None:
    """Refuse what would be passed over: whoever made the file chose its kind, and with it what is looked at."""
    for option, value in given.items():
        if value:
            raise typer.BadParameter(f"a file of {held} is not judged by it", param_hint=option)


def _of_ours(
    raw: bytes, held: str, rules: TrustFile | KeyPolicy | None, nonce: str | None, at: datetime
) -> Report:
    if held == RECEIPT:
        if isinstance(rules, KeyPolicy):
            raise typer.BadParameter("a receipt is judged by a trust file", param_hint="--policy")
        return check_receipt(raw, trust=rules)
    chosen = hex_option(nonce, 32, "--nonce")
    if held == BUNDLE and isinstance(rules, TrustFile) and chosen is None:
        raise typer.BadParameter("a bundle is verified with the nonce it was asked for", param_hint="--nonce")
    return check_bundle(raw, rules=rules, nonce=chosen, at=at)


def _collateral(paths: list[Path]) -> Endorsements:
    found = Endorsements()
    for path in paths:
        found += folder(path)
    return found


def _outage(options: list[str]) -> dict[CollateralKind, Tolerance]:
    found: dict[Any, Tolerance] = {}
    for option in options:
        kind, _, value = option.partition("=")
        if kind not in _KINDS or not (value == "missing" or value.isdecimal()):
            raise typer.BadParameter(
                f"write KIND=missing or KIND=SECONDS; kinds are {', '.join(_KINDS)}", param_hint="--outage"
            )
        found[kind] = (
            Tolerance(missing=True)
            if value == "missing"
            else Tolerance(stale=timedelta(seconds=min(int(value), 1 << 31)))
        )
    return found


def result_of(report: Report) -> dict[str, object]:
    """Return the report of a bundle or receipt for programs; what matters most stands first."""
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
    """Return the report of a bundle or receipt for people."""
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
