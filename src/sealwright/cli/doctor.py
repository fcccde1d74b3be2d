"""`sealwright doctor`: what this machine is, what is missing, and the command that mends it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sealwright.attester.detect import Detected, detect
from sealwright.cli._output import emit
from sealwright.cli._probes import Finding, examine

_MARK = {True: "ok  ", False: "MISS", None: "    "}


def command(
    broker: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A broker's folder: also try its key backends, on a key of trial."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine is, what is missing and what mends it.

    It looks and changes nothing. The exit code is 0 whatever it finds: `enclave` in the JSON says
    whether an enclave can run here, `tee` which hardware was found.
    """
    found = detect()
    findings = examine(found) + ([] if broker is None else _backends(broker))
    missing = [finding for finding in findings if finding.ok is False]
    tee = [finding.name for finding in findings if finding.tee and finding.ok]
    result: dict[str, object] = {
        "enclave": not any(finding.needed_by_enclave for finding in missing),
        "tee": tee,
        "hardware": _hardware(found),
        "findings": [asdict(finding) for finding in findings],
    }
    emit(result, as_json=as_json, lines=_lines(findings, missing, tee))


def _backends(directory: Path) -> list[Finding]:
    from sealwright.cli._broker_backends import checked

    return [
        Finding(
            name=f"key backend {one['name']}",
            value=f"{one['kind']}, version {one['version']}" if one["state"] == "ready" else one["state"],
            ok=one["state"] == "ready",
            mend=one["reason"],
        )
        for one in checked(directory, None)
    ]


def _hardware(found: Detected) -> dict[str, object]:
    """Return what evidence can be collected here, strongest first; `cloud` is the firmware's unverified word."""
    platforms = [{**asdict(candidate), "ready": candidate.ready} for candidate in found.candidates]
    return {
        "cloud": found.cloud or None,
        "virtual": found.virtual,
        "platforms": platforms,
        "gpus": list(found.gpus),
    }


def _lines(findings: list[Finding], missing: list[Finding], tee: list[str]) -> list[str]:
    lines = [f"{_MARK[finding.ok]}  {finding.name:<22} {finding.value}" for finding in findings]
    needed = [finding for finding in missing if finding.needed_by_enclave]
    verdict = "cannot run an enclave" if needed else "can run an enclave"
    hardware = (
        f"with hardware protection ({', '.join(tee)})" if tee else "as platform `software` only: no TEE"
    )
    lines += ["", f"This machine {verdict}{'' if needed else ', ' + hardware}. Any machine can verify."]
    lines += [f"{finding.name}: {finding.mend}" for finding in findings if finding.mend and not finding.ok]
    return lines
