"""The verdict on a file of evidence: for programs, and as a tree that a person reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sealwright.appraisal.ear import PROFILE, submodule
from sealwright.appraisal.platform import Appraisal
from sealwright.appraisal.vector import worst_status
from sealwright.audit.evidence import EvidenceReport
from sealwright.cli.explain import explanations
from sealwright.crypto.encoding import rfc3339
from sealwright.errors import (
    AppraisalError,
    AppraisalFailure,
    CollateralError,
    FormatError,
    SealwrightError,
)
from sealwright.verify.verified import CollateralUse, Proof, Verified


def result(report: EvidenceReport, failures: Sequence[AppraisalFailure]) -> dict[str, object]:
    """Return the verdict as JSON values; what matters most stands first."""
    main = next(iter(report.genuine.values()), None)
    tcb = {} if main is None else _tcb(main.facts)
    listed = [{"code": failure.code, "message": str(failure)} for failure in failures]
    refusal = AppraisalError(failures) if failures else None
    error = (
        {"code": refusal.code, "stage": refusal.stage, "message": str(refusal), "failures": listed}
        if refusal
        else None
    )
    return {
        "confidential": report.confidential and not failures,
        "kind": "evidence",
        "type": report.type,
        "file": report.name,
        "verdict": word(report, failures),
        "genuine": bool(report.genuine),
        "allowed": None if report.allowed is None else not failures,
        "fresh": report.fresh,
        "not_checked": not_checked(report),
        "failures": [{"stage": "appraisal", **one} for one in listed],
        "tcb_status": tcb.get("status"),
        "advisories": tcb.get("advisory_ids", []),
        "at": rfc3339(report.at),
        "until": _time(_until(report)),
        "parts": {name: _part(one) for name, one in report.genuine.items()},
        "event_log": {name: value.hex() for name, value in report.log_only.items()},
        "boot": list(report.boot),
        "ear": _ear(report, failures),
        **({} if error is None else {"error": error}),
    }


def refusal(error: SealwrightError) -> dict[str, object]:
    """Return the verdict, as JSON values, on a file that is malformed, not genuine, or not decidable."""
    words = {FormatError: "malformed", CollateralError: "undecided"}
    said = next((text for kind, text in words.items() if isinstance(error, kind)), "not genuine")
    one = {"stage": error.stage, "code": error.code, "message": str(error)}
    return {
        "confidential": False,
        "kind": "evidence",
        "verdict": said,
        "genuine": False,
        "allowed": None,
        "failures": [one],
        "error": {**one, "failures": []},
    }


def not_checked(report: EvidenceReport) -> list[str]:
    """Return what nothing was given to check by."""
    missing = [] if report.fresh else ["freshness (no expected report data or nonce)"]
    if report.allowed is None:
        missing.append("whether root, code, config and claims are allowed (no trust file or policy)")
    return [*missing, *report.not_checked]


def word(report: EvidenceReport, failures: Sequence[AppraisalFailure]) -> str:
    """Return the verdict in one word."""
    if failures:
        return "refused"
    if not report.genuine:
        return "read"
    return "allowed" if report.allowed else "genuine"


def lines(report: EvidenceReport, failures: Sequence[AppraisalFailure], *, explain: bool) -> list[str]:
    """Return the verdict for people."""
    return list(_lines(report, failures, explain))


def _lines(report: EvidenceReport, failures: Sequence[AppraisalFailure], explain: bool) -> Iterator[str]:
    yield f"confidential  {_confidential(report, failures)}"
    yield f"verdict       {_sentence(report, failures)}"
    yield f"evidence      {report.name}"
    if report.genuine:
        yield f"as of         {rfc3339(report.at)}" + (
            f", until {_time(until)}" if (until := _until(report)) else ""
        )
        yield f"fresh         {'yes' if report.fresh else 'NOT CHECKED (give --report-data, or --nonce)'}"
    yield from (f"NOT CHECKED   {item}" for item in report.not_checked)
    for failure in failures:
        yield f"REFUSED       {failure}  [{failure.code}]"
        yield from _explained(failure.code) if explain else ()
    for name, one in report.genuine.items():
        yield ""
        yield from _tree(name, one)
    for name, value in report.log_only.items():
        yield f"  {name:<19} {value.hex()}"
    if report.boot:
        yield ""
        yield "what booted"
        yield from (f"  {line}" for line in report.boot)


def _sentence(report: EvidenceReport, failures: Sequence[AppraisalFailure]) -> str:
    match word(report, failures):
        case "refused":
            return f"genuine, and REFUSED for {len(failures)} reason{'s' if len(failures) > 1 else ''}"
        case "read":
            return "read, nothing is proved"
        case "allowed":
            return "genuine, and allowed by the policy"
        case _:
            return "genuine; whether it is allowed was NOT CHECKED (no trust file or policy)"


def _confidential(report: EvidenceReport, failures: Sequence[AppraisalFailure]) -> str:
    if not report.genuine:
        return "NO: nothing is proved"
    if report.confidential:
        return "yes" if not failures else "NO: it is refused"
    main = next(iter(report.genuine.values()))
    if main.platform in ("software", "tpm"):
        return f"NO: platform {main.platform} hides nothing from the host"
    if not main.vendor_root:
        return "NO: the root is not the vendor's"
    return "NO: open to debugging or profiling, or a part alone: a TPM or device hides nothing from the host"


def _explained(code: str) -> Iterator[str]:
    for row in explanations():
        if row.code == code:
            yield f"    cause     {row.cause}"
            yield f"    fix       {row.fix}  ({row.who})"


def _tree(name: str, one: Verified) -> Iterator[str]:
    yield f"{name}  {one.platform}"
    for depth, proof in enumerate(one.proofs):
        yield f"{'   ' * depth}{'└─ ' if depth else '   '}{_proof(proof)}"
    if not one.vendor_root:
        yield f"{'   ' * len(one.proofs)}└─ root NOT the vendor's: {one.root.hex()}"
    for condition in one.conditions:
        yield f"  condition           {condition.text}  [{condition.code}]"
    for register, value in one.registers.items():
        yield f"  {register:<19} {value.hex()}"
    for fact, said in one.facts.items():
        if fact != "boot" and said not in (None, [], {}, ""):
            yield f"  {fact:<19} {_text(said)}"
    for use in one.collateral:
        yield f"  collateral          {_use(use)}"
    for sentence in one.not_proved:
        yield f"  DOES NOT PROVE      {sentence}"


def _proof(proof: Proof) -> str:
    until = f", until {proof.until:%Y-%m-%d}" if proof.until else ""
    return f"{proof.what}, by {proof.by}{until}"


def _use(use: CollateralUse) -> str:
    if not use.digest:
        return f"{use.kind}: NOT THERE, decided without it as asked"
    stale = f", {use.stale_s} s PAST its next update, as asked" if use.stale_s else ""
    until = f", until {use.next_update:%Y-%m-%d %H:%M}" if use.next_update else ""
    return f"{use.kind}: {use.age_s // 86400} days old{until}{stale}"


def _text(said: Any) -> str:
    if isinstance(said, dict):
        return ", ".join(
            f"{name} {_text(item)}" for name, item in said.items() if item not in (None, [], {}, "")
        )
    if isinstance(said, list | tuple):
        return ", ".join(map(_text, said))
    return {True: "yes", False: "no"}.get(said, str(said)) if isinstance(said, bool) else str(said)


def _tcb(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what Intel says of the platform's TCB, of a quote alone or of the hardware under a vTPM."""
    found = facts.get("tcb") or facts.get("hardware", {}).get("tcb")
    return found if isinstance(found, Mapping) else {}


def _part(one: Verified) -> dict[str, object]:
    return {
        "platform": one.platform,
        "report_data": one.report_data.hex(),
        "registers": {name: value.hex() for name, value in one.registers.items()},
        "claims": one.facts,
        "conditions": [{"code": condition.code, "text": condition.text} for condition in one.conditions],
        "proofs": [{"what": proof.what, "by": proof.by, "until": _time(proof.until)} for proof in one.proofs],
        "not_proved": list(one.not_proved),
        "collateral": [_collateral(use) for use in one.collateral],
        "root": one.root.hex(),
        "vendor_root": one.vendor_root,
        "until": _time(one.until),
    }


def _collateral(use: CollateralUse) -> dict[str, object]:
    return {
        "kind": use.kind,
        "present": bool(use.digest),
        "sha256": use.digest.hex(),
        "issued": _time(use.issued),
        "next_update": _time(use.next_update),
        "age_s": use.age_s,
        "stale_s": use.stale_s,
    }


def _ear(report: EvidenceReport, failures: Sequence[AppraisalFailure]) -> dict[str, object] | None:
    """Return the claims of a result (EAR); it is not signed: whoever runs the command is the verifier."""
    if not report.appraisals:
        return None
    main, *parts = report.appraisals
    # What is not judged is not allowed; and nothing is that has a part, or a config, that is refused.
    judged = report.allowed is not None
    own: dict[str, object] = {
        "allowed": not failures if judged else None,
        "confidential": report.confidential and not failures,
        "failures": [failure.code for failure in failures],
    }
    submods = {main: submodule(report.appraisals[main], own=own)}
    submods |= {
        name: submodule(report.appraisals[name], own={} if judged else {"allowed": None}) for name in parts
    }
    return {
        "eat_profile": PROFILE,
        "iat": int(report.at.timestamp()),
        "ear_status": worst_status([one.vector for one in _all(report)]),
        "submods": submods,
    }


def _all(report: EvidenceReport) -> Sequence[Appraisal]:
    return list(report.appraisals.values())


def _until(report: EvidenceReport) -> datetime | None:
    ends = [one.until for one in report.genuine.values() if one.until is not None]
    return min(ends, default=None)


def _time(when: datetime | None) -> str | None:
    return None if when is None else rfc3339(when)
