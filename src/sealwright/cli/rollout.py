"""`sealwright rollout`: a new build to the enclaves of one key, step by step, and the old one away."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from sealwright.appraisal.policy import KeyPolicy
from sealwright.appraisal.signed import Signers
from sealwright.appraisal.yaml import MAX_YAML
from sealwright.audit.cases import read_cases
from sealwright.cli._group import FILE, FOLDER, Json, group
from sealwright.cli._keys import load_owner_key, read_secret
from sealwright.cli._output import emit
from sealwright.cli._signing import KeyFiles
from sealwright.cli.release import load_log_key
from sealwright.client.admin import AdminClient
from sealwright.crypto.document import validated
from sealwright.crypto.encoding import b64url_decode, rfc3339
from sealwright.errors import SettingsError, VerificationError
from sealwright.ops.release import files
from sealwright.ops.rollout import steps
from sealwright.ops.rollout.broker import RolloutBroker
from sealwright.ops.rollout.chain import NEXT, Chain, signers_of, verify_chain
from sealwright.ops.rollout.dryrun import CaseOutcome, DryRun
from sealwright.ops.rollout.folder import Folder
from sealwright.ops.rollout.statement import STAGES, Stage

app = group("Bring a new build to an enclave's key, step by step, and retire the old.")

New = Annotated[Path, typer.Argument(metavar="ROLLOUT", help="Folder to make.")]
Existing = Annotated[Path, typer.Argument(metavar="ROLLOUT", help="Folder of the rollout.", **FOLDER)]
Broker = Annotated[str, typer.Option(help="URL of the broker.")]
TokenFile = Annotated[Path, typer.Option(help="File with the admin token; mode 0600.", **FILE)]
LogDir = Annotated[Path, typer.Option("--log", help="Directory of the log of rollouts.", **FOLDER)]
LogKey = Annotated[Path, typer.Option(help="The log's private key.", **FILE)]
Operator = Annotated[str, typer.Option(help="Who does it: stands in the statement.")]
Evidence = Annotated[Path, typer.Option(help="Recorded evidence: a file of cases, YAML.", **FILE)]


@app.command()
def plan(
    folder: New,
    kid: Annotated[str, typer.Option(help="Name of the key.")],
    current: Annotated[Path, typer.Option(help="The policy that the key has now, signed.", **FILE)],
    canary: Annotated[Path, typer.Option(help="Old build, and a few of the new.", **FILE)],
    promote: Annotated[Path, typer.Option(help="Both builds.", **FILE)],
    retire: Annotated[Path, typer.Option(help="The new build only.", **FILE)],
    attestations: Annotated[int, typer.Option(min=1, max=1000, help="Of the new build, before promotion.")],
    broker: Broker,
    token_file: TokenFile,
    key: KeyFiles,
    log: LogDir,
    log_key: LogKey,
    operator: Operator,
    within: Annotated[
        int, typer.Option(min=1, max=30 * 86400, help="Seconds that they may lie back.")
    ] = 86400,
    broker_root: Annotated[
        str | None, typer.Option(metavar="KEY", help="The broker's root, base64url: another one is refused.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fix what a rollout will do: its four policies, and what has to be seen before promotion."""
    given = {"current": current, "canary": canary, "promote": promote, "retire": retire}
    policies = {stage: files.read(given[stage], limit=MAX_YAML) for stage in STAGES}
    with _broker(broker, token_file, kid) as asked:
        if broker_root is not None and asked.identity()[0] != b64url_decode(
            broker_root, length=32, error=SettingsError
        ):
            raise VerificationError(
                "the broker has another root", code="rollout-broker-differs", stage="broker"
            )
        chain = steps.make_plan(
            Folder(folder),
            _hand(operator, key, log, log_key),
            asked,
            policies,
            kid=kid,
            attestations=attestations,
            within_s=within,
            random=os.urandom,
        )
    _emit(chain, folder, as_json)


@app.command("dry-run")
def dry_run(
    folder: Existing,
    evidence: Evidence,
    key: KeyFiles,
    log: LogDir,
    log_key: LogKey,
    operator: Operator,
    force: Annotated[bool, typer.Option("--force", help="Go on over what was found; it is stated.")] = False,
    as_json: Json = False,
) -> None:
    """Judge recorded evidence by every policy of the plan: who would be locked out, who newly let in."""
    hand = _hand(operator, key, log, log_key)
    outcome = steps.run_dry(Folder(folder), hand, read_cases(evidence), evidence.parent, force=force)
    _emit_outcome(outcome, as_json)


@app.command()
def canary(
    folder: Existing,
    broker: Broker,
    token_file: TokenFile,
    key: KeyFiles,
    log: LogDir,
    log_key: LogKey,
    operator: Operator,
    as_json: Json = False,
) -> None:
    """Let a few enclaves of the new build have the key, beside the old."""
    _advance("canary", folder, broker, token_file, _hand(operator, key, log, log_key), as_json)


@app.command()
def promote(
    folder: Existing,
    broker: Broker,
    token_file: TokenFile,
    key: KeyFiles,
    log: LogDir,
    log_key: LogKey,
    operator: Operator,
    as_json: Json = False,
) -> None:
    """Lift the limit, once the broker's log shows the new build at work."""
    _advance("promote", folder, broker, token_file, _hand(operator, key, log, log_key), as_json)


@app.command()
def retire(
    folder: Existing,
    broker: Broker,
    token_file: TokenFile,
    key: KeyFiles,
    log: LogDir,
    log_key: LogKey,
    operator: Operator,
    as_json: Json = False,
) -> None:
    """Admit the new build only: the old gets no lease and no key any more."""
    _advance("retire", folder, broker, token_file, _hand(operator, key, log, log_key), as_json)


@app.command()
def revoke(
    folder: Existing,
    policy: Annotated[Path, typer.Option(help="The policy to set, signed, of a higher version.", **FILE)],
    reason: Annotated[str, typer.Option(help="Why, in words; it is stated.")],
    broker: Broker,
    token_file: TokenFile,
    key: KeyFiles,
    log: LogDir,
    log_key: LogKey,
    operator: Operator,
    evidence: Annotated[
        Path | None, typer.Option(help="Recorded evidence of what is to be refused.", **FILE)
    ] = None,
    as_json: Json = False,
) -> None:
    """End a rollout at once: take a build away by a policy that no longer admits it."""
    cases = () if evidence is None else read_cases(evidence)
    with _opened(folder, broker, token_file) as asked:
        chain = steps.revoke(
            Folder(folder),
            _hand(operator, key, log, log_key),
            asked,
            files.read(policy, limit=MAX_YAML),
            reason=reason,
            cases=cases,
            beside=None if evidence is None else evidence.parent,
        )
    _emit(chain, folder, as_json)


@app.command()
def apply(
    folder: Existing,
    broker: Broker,
    token_file: TokenFile,
    log: LogDir,
    log_key: LogKey,
    as_json: Json = False,
) -> None:
    """After a step that broke off: give the broker the policy that was stated."""
    steps.resumed(Folder(folder), _hand("-", (), log, log_key))
    with _opened(folder, broker, token_file) as asked:
        digest = steps.apply(Folder(folder), asked)
    emit({"policy": digest.hex()}, as_json=as_json, lines=[f"policy  {digest.hex()}"])


@app.command()
def status(
    folder: Existing,
    signer: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="A trusted signer, base64url; repeat it.")
    ] = None,
    threshold: Annotated[int, typer.Option(min=1, max=16, help="How many of them.")] = 1,
    log_key: Annotated[str | None, typer.Option(metavar="VKEY", help="The trusted log of rollouts.")] = None,
    as_json: Json = False,
) -> None:
    """Check a rollout offline, and say where it stands. With --signer and --log-key trust rests on those."""
    chain, _ = Folder(folder).load()
    if signer:
        verify_chain(
            Folder(folder).links(),
            validated(Signers, {"keys": signer, "threshold": threshold}, SettingsError),
        )
    if log_key is not None and log_key != chain.first.log:
        raise VerificationError("the rollout is in another log", code="unknown-log", stage="log")
    trusted = [] if signer else [_own_signers(folder)]
    if log_key is None:
        trusted.append("NOT CHECKED  that its log is one you trust (give --log-key)")
    _emit(chain, folder, as_json, trusted)


def _own_signers(folder: Path) -> str:
    own = signers_of(KeyPolicy.load(Folder(folder).policy("current")))
    return (
        f"NOT CHECKED  that its signers ({own.threshold} of {len(own.keys)}) are yours: they are as "
        "its first policy names them (give --signer)"
    )


def _advance(
    step: Stage, folder: Path, broker: str, token_file: Path, hand: steps.Hand, as_json: bool
) -> None:
    with _opened(folder, broker, token_file) as asked:
        chain = steps.advance(Folder(folder), hand, asked, step)
    _emit(chain, folder, as_json)


@contextmanager
def _opened(folder: Path, url: str, token_file: Path) -> Iterator[RolloutBroker]:
    chain, _ = Folder(folder).load()
    with _broker(url, token_file, chain.first.kid) as asked:
        yield asked


@contextmanager
def _broker(url: str, token_file: Path, kid: str) -> Iterator[RolloutBroker]:
    try:
        token = read_secret(token_file).decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not token or not token.isprintable():
        raise SettingsError(f"{token_file} does not hold a token", code="malformed-admin-token")
    with AdminClient(url, token) as client:
        yield RolloutBroker(client, kid)


def _hand(operator: str, keys: Sequence[Path], log: Path, log_key: Path) -> steps.Hand:
    return steps.Hand(
        operator=operator,
        keys=[load_owner_key(key) for key in keys],
        log=log,
        log_signer=load_log_key(log_key),
        clock=lambda: datetime.now(UTC),
    )


def _emit(chain: Chain, folder: Path, as_json: bool, notes: Sequence[str] = ()) -> None:
    last, plan = chain.last, chain.plan
    following = sorted(NEXT[last.predicate.step])
    listed = [
        {
            "sequence": one.predicate.sequence,
            "step": one.predicate.step,
            "at": rfc3339(one.predicate.at),
            "operator": one.predicate.operator,
            "signed_by": list(signed_by),
            "before": one.before.hex(),
            "after": one.after.hex(),
        }
        for one, signed_by in zip(chain.statements, chain.signed_by, strict=True)
    ]
    result: dict[str, object] = {
        "folder": str(folder),
        "rollout": chain.first.rollout.hex(),
        "kid": chain.first.kid,
        "step": last.predicate.step,
        "policy": last.after.hex(),
        "next": following,
        "plan": plan.to_json(),
        "statements": listed,
        "not_checked": list(notes),
    }
    lines = [
        f"rollout  {chain.first.rollout.hex()} of key {chain.first.kid}",
        *[f"{one['sequence']:>7}  {one['at']}  {one['step']:<8} by {one['operator']}" for one in listed],
        f"policy   {last.after.hex()}",
        f"next     {' or '.join(following) or 'nothing: it has ended'}",
        *notes,
    ]
    emit(result, as_json=as_json, lines=lines)


def _emit_outcome(outcome: DryRun, as_json: bool) -> None:
    cases = [
        {
            "name": one.name,
            "build": one.build.hex(),
            **{stage: list(verdict.codes) for stage, verdict in one.verdicts.items()},
        }
        for one in outcome.cases
    ]
    emit(
        {"forced": outcome.forced(), "cases": cases},
        as_json=as_json,
        lines=[_line(one) for one in outcome.cases],
    )


def _line(one: CaseOutcome) -> str:
    if one.admitted and not one.stays:
        text = "LOCKED OUT"
    elif one.admitted:
        text = "stays until it is retired" if one.retires else "stays, also after the last step"
    else:
        text = "newly admitted" if one.stays else "refused"
    why = ", ".join(one.verdicts["canary"].codes)
    return f"{one.name:<24} {text}{f': {why}' if why else ''}  build {one.build.hex()[:16] or 'unknown'}"
