"""`sealwright policy`: read, sign and test the policies under which keys are released."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from sealwright.appraisal.policy import KeyPolicy
from sealwright.appraisal.signed import POLICY
from sealwright.audit.cases import Recorded, read_cases
from sealwright.cli._group import FILE, Json, group
from sealwright.cli._output import emit
from sealwright.cli._signing import KeyFiles, Out, signed, write_new
from sealwright.cli.explain import explanations
from sealwright.client.trust_source import read_file
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.errors import AppraisalError, AppraisalFailure, SettingsError

app = group("Read, sign and test the policies under which keys are released.")
File = Annotated[Path, typer.Argument(metavar="POLICY", help="A policy: YAML, or signed.", **FILE)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a case: nothing, or the codes of the refusal."""

    name: str
    expected: Sequence[str]
    found: Sequence[str]

    @property
    def as_expected(self) -> bool:
        """Whether exactly the expected reasons were given."""
        return sorted(set(self.expected)) == sorted(set(self.found))


@app.command("test")
def try_(
    file: File,
    cases: Annotated[
        Path,
        typer.Argument(metavar="CASES", help="YAML: recorded evidence and what is expected.", **FILE),
    ],
    as_json: Json = False,
) -> None:
    """Try a policy on recorded evidence before anyone relies on it; freshness is not part of it."""
    policy = KeyPolicy.load(read_file(file))
    outcomes = [_outcome(policy, recorded) for recorded in read_cases(cases)]
    emit(
        {
            "as_expected": all(one.as_expected for one in outcomes),
            "cases": [
                {
                    "name": one.name,
                    "as_expected": one.as_expected,
                    "expected": one.expected,
                    "found": one.found,
                }
                for one in outcomes
            ],
        },
        as_json=as_json,
        lines=[_line(one) for one in outcomes],
    )
    wrong = [one.name for one in outcomes if not one.as_expected]
    if wrong:
        text = f"the policy decides {len(wrong)} of {len(outcomes)} cases otherwise: {', '.join(wrong[:8])}"
        raise AppraisalError([AppraisalFailure(text, code="policy-test-failed")], stage="policy")


@app.command()
def explain(file: File, as_json: Json = False) -> None:
    """Say in words what a policy admits, and what it refuses."""
    policy = KeyPolicy.load(read_file(file))
    emit(
        {"digest": policy.digest().hex(), "policy": policy.to_json()},
        as_json=as_json,
        lines=list(_explained(policy)),
    )


@app.command()
def sign(
    file: Annotated[Path, typer.Argument(help="A policy, YAML, that names its signers.", **FILE)],
    key: KeyFiles,
    out: Out,
    as_json: Json = False,
) -> None:
    """Sign a policy, so that a broker can hold its next version against its signers."""
    policy = KeyPolicy.load(read_file(file))
    raw = signed(policy.encode(), POLICY, key)
    KeyPolicy.load(raw)  # signed by the threshold that it names, or nothing is written
    write_new(out, raw)
    emit(
        {"file": str(out), "digest": policy.digest().hex()},
        as_json=as_json,
        lines=[f"{out}  {policy.digest().hex()}"],
    )


def _outcome(policy: KeyPolicy, recorded: Recorded) -> Outcome:
    expect = recorded.case.expect
    if expect is None:
        raise SettingsError(
            f"case {recorded.case.name} does not say what to expect", code="malformed-document", stage="cases"
        )
    expected = [] if expect == "allowed" else expect
    return Outcome(name=recorded.case.name, expected=expected, found=recorded.judge(policy).codes)


def _line(one: Outcome) -> str:
    found = ", ".join(one.found) or "allowed"
    if one.as_expected:
        return f"as expected  {one.name}: {found}"
    return f"OTHERWISE    {one.name}: {found}; expected {', '.join(one.expected) or 'allowed'}"


def _explained(policy: KeyPolicy) -> Iterator[str]:
    at = datetime.now(UTC)
    state = "in force" if policy.created <= at < policy.expires else "NOT IN FORCE"
    yield f"digest      {policy.digest().hex()}"
    yield f"version     {policy.version}, {state}: {rfc3339(policy.created)} to {rfc3339(policy.expires)}"
    hardware = "only TEEs under their vendor's root" if policy.require_hardware else "NOT required"
    yield f"hardware    {hardware} (profile {policy.profile})"
    yield f"lease       {policy.lease_s} s at most"
    if policy.signers is not None:
        yield f"signers     {policy.signers.threshold} of {len(policy.signers.keys)}: " + ", ".join(
            b64url(key)[:12] + "…" for key in policy.signers.keys
        )
    named = policy.platforms.to_json()
    for platform, rules in named.items():
        yield f"platform    {platform}"
        yield from _rules(rules)
    yield f"refused     every platform but {', '.join(named) or 'none at all: this policy admits nothing'}"
    config = {name: value for name, value in policy.config.to_json().items() if value}
    for name, values in config.items():
        yield f"config      {name}: {', '.join(map(str, values))}"


def _rules(rules: Mapping[str, Any]) -> Iterator[str]:
    known = {row.code: row.cause for row in explanations()}
    for name, value in rules.items():
        if name == "admit":
            for code in value:
                cause = known.get(code, "a condition that this version does not know")
                yield f"  {'ADMITS':<25} {code}: {cause}"
        elif name == "unchecked" and value:
            yield f"  {'ADMITS':<25} anything in {', '.join(value)}"
        elif name == "reference":
            yield f"  {'builds':<25} {len(value['values'])} signed documents of reference values"
        elif name == "outage":
            for kind, rule in value.items():
                missing = ", or none at all" if rule["missing"] else ""
                yield f"  {'ADMITS':<25} {kind} up to {rule['stale_s']} s past its next update{missing}"
        else:
            yield from _flat(name, value)


def _flat(name: str, value: Any) -> Iterator[str]:
    """Yield a line for each value that says something, nested members with dots between their names."""
    if isinstance(value, dict):
        for member, inner in value.items():
            yield from _flat(f"{name}.{member}", inner)
    elif value not in ([], "", None):
        shown = " or ".join(map(str, value)) if isinstance(value, list) else value
        yield f"  {name:<25} {shown}"
