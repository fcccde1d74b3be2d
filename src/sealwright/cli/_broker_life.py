"""`sealwright broker`: revocations, budgets, lists of machines, usage. Rotation's commands are those of `broker key`."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from sealwright.cli._admin import Broker, Json, TokenFile, ask, path_of, read_bytes, token_of
from sealwright.cli._output import emit
from sealwright.cli._signing import KeyFiles, Out, read_yaml, signed, write_new
from sealwright.crypto.encoding import b64url, b64url_decode, rfc3339
from sealwright.errors import SettingsError

Kind = Annotated[str, typer.Argument(help="key, measurement, tcb, cpu, enclave, config, manifest or tenant.")]
Value = Annotated[str, typer.Argument(help="As docs/spec/life-cycle.md writes it.")]
Reason = Annotated[str, typer.Option(help="Why, for the log and whoever is refused reads it.")]
ScopeName = Annotated[str, typer.Argument(help="key or tenant.")]
Kid = Annotated[str, typer.Argument(help="Name of the key.")]


def _group(text: str) -> typer.Typer:
    return typer.Typer(help=text, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


budget = _group("Budgets: how often, for how many epochs and rows keys are released.")
machines = _group("Lists of machines: where they stand, by their operators' signatures.")


def revoke(
    kind: Kind, value: Value, reason: Reason, broker: Broker, token_file: TokenFile, as_json: Json = False
) -> None:
    """Refuse what is named from the next request on; enclaves are told, and stop at their lease's end at the latest."""
    body = {"kind": kind, "value": value, "reason": reason}
    _emit(ask(broker, token_file, "POST", "/revocations", body), as_json)


def unrevoke(
    kind: Kind, value: Value, reason: Reason, broker: Broker, token_file: TokenFile, as_json: Json = False
) -> None:
    """Take a revocation back, as a logged decision. Keys and enclaves stay revoked."""
    body = {"kind": kind, "value": value, "reason": reason}
    _emit(ask(broker, token_file, "POST", "/revocations/undo", body), as_json)


def revocations(broker: Broker, token_file: TokenFile, as_json: Json = False) -> None:
    """List what is revoked."""
    found = ask(broker, token_file, "GET", "/revocations")
    lines = [
        f"{one.get('at', '')}  {one['kind']:12} {one['value']}  {one['reason']}"
        for one in found["revocations"]
    ]
    emit(found, as_json=as_json, lines=lines or ["nothing is revoked"])


def key_rotate(kid: Kid, broker: Broker, token_file: TokenFile, as_json: Json = False) -> None:
    """Make the next generation of a key. Seal under it with `seal --next`; then `key switch`."""
    _emit(ask(broker, token_file, "POST", f"/keys/{path_of(kid)}/rotate"), as_json)


def key_switch(kid: Kid, broker: Broker, token_file: TokenFile, as_json: Json = False) -> None:
    """Make the next generation the current one. The one before goes on until `key retire`."""
    _emit(ask(broker, token_file, "POST", f"/keys/{path_of(kid)}/switch"), as_json)


def key_retire(
    kid: Kid,
    broker: Broker,
    token_file: TokenFile,
    coming: Annotated[bool, typer.Option("--next", help="Drop the next generation instead.")] = False,
    as_json: Json = False,
) -> None:
    """Release the previous generation no more; who holds it is told to ask again, and refused."""
    body = {"place": "next" if coming else "previous"}
    _emit(ask(broker, token_file, "POST", f"/keys/{path_of(kid)}/retire", body), as_json)


@budget.command("set")
def budget_set(
    scope: ScopeName,
    name: Annotated[str, typer.Argument(help="Name of the key or tenant.")],
    broker: Broker,
    token_file: TokenFile,
    releases: Annotated[int | None, typer.Option(min=0, help="Releases in all.")] = None,
    epochs: Annotated[int | None, typer.Option(min=0, help="Distinct epochs of runs.")] = None,
    rows: Annotated[int | None, typer.Option(min=0, help="Rows that releases name, in all.")] = None,
    limits: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML with further limits.", exists=True)
    ] = None,
    as_json: Json = False,
) -> None:
    """Set the limits of a key, or of a tenant's keys together. What was spent stays spent."""
    said: dict[str, Any] = {} if limits is None else read_yaml(limits)
    counts = {"releases": releases, "epochs": epochs, "rows": rows}
    said |= {count: value for count, value in counts.items() if value is not None}
    found = ask(broker, token_file, "POST", "/budgets", {"scope": scope, "name": name, "limits": said})
    _emit_budget(found, as_json)


@budget.command("show")
def budget_show(
    scope: ScopeName, name: Kid, broker: Broker, token_file: TokenFile, as_json: Json = False
) -> None:
    """Show limits, and what was spent since there are any."""
    found = ask(broker, token_file, "GET", f"/budgets/{path_of(scope)}/{path_of(name)}")
    _emit_budget(found, as_json)


@budget.command("remove")
def budget_remove(
    scope: ScopeName, name: Kid, broker: Broker, token_file: TokenFile, as_json: Json = False
) -> None:
    """Take these limits away; a policy's own stay."""
    _emit(ask(broker, token_file, "POST", "/budgets/remove", {"scope": scope, "name": name}), as_json)


@machines.command("sign")
def machines_sign(
    operator: Annotated[str, typer.Argument(help="Who says so.")],
    region: Annotated[str, typer.Argument(help="Where these machines stand.")],
    machine: Annotated[list[str], typer.Option(help="snp-chip:HEX or intel-ppid:HEX; repeat it.")],
    key: KeyFiles,
    out: Out,
    until: Annotated[datetime, typer.Option(formats=["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d"], help="End, UTC.")],
    as_json: Json = False,
) -> None:
    """Write a list of machines and sign it, as their operator."""
    from datetime import UTC

    from sealwright.protocol.machines import Machines

    said = Machines.from_json(
        {
            "operator": operator,
            "region": region,
            "machines": machine,
            "not_before": rfc3339(datetime.now(UTC)),
            "not_after": rfc3339(until.replace(tzinfo=UTC)),
        },
        error=SettingsError,
    )
    write_new(out, signed(said.encode(), Machines.PAYLOAD_TYPE, key))
    emit({"out": str(out)}, as_json=as_json, lines=[f"signed  {out}"])


@machines.command("add")
def machines_add(
    file: Annotated[Path, typer.Argument(help="The signed list.", exists=True)],
    broker: Broker,
    token_file: TokenFile,
    as_json: Json = False,
) -> None:
    """Hand a signed list to the broker. It counts for keys whose limits name the operator's key."""
    _emit(ask(broker, token_file, "POST", "/machines", {"envelope": b64url(read_bytes(file))}), as_json)


@machines.command("list")
def machines_list(broker: Broker, token_file: TokenFile, as_json: Json = False) -> None:
    """List the lists, as they say themselves."""
    found = ask(broker, token_file, "GET", "/machines")
    lines = [
        f"{one['operator']:16} {one['region']:16} {one['machines']:5} until {one['not_after']}"
        for one in found["lists"]
    ]
    emit(found, as_json=as_json, lines=lines or ["no lists yet"])


def usage(
    tenant: Annotated[str, typer.Argument(help="Whose.")],
    month: Annotated[str, typer.Argument(help="YYYY-MM.")],
    broker: Broker,
    token_file: TokenFile,
    out: Out,
    kid: Annotated[str | None, typer.Option(help="Of one key only.")] = None,
    as_json: Json = False,
) -> None:
    """Write what a tenant used in a month: a signed statement, and the proof of each decision that it counts."""
    from sealwright.client.admin import AdminClient
    from sealwright.client.usage import fetch_usage

    with AdminClient(broker, token_of(token_file)) as client:
        raw = b"".join(fetch_usage(client, path_of(tenant), path_of(month), kid and path_of(kid)))
    write_new(out, raw)
    decisions = raw.count(b"\n") - 1
    emit(
        {"out": str(out), "decisions": decisions},
        as_json=as_json,
        lines=[f"usage  {out}, {decisions} decisions", "next:  sealwright broker usage-check FILE"],
    )


def usage_check(
    file: Annotated[Path, typer.Argument(help="From `broker usage`.", exists=True)],
    broker_root: Annotated[str, typer.Option(help="The broker's root, base64url.")],
    log_key: Annotated[str, typer.Option(help="The broker's log key.")],
    as_json: Json = False,
) -> None:
    """Check a usage file offline: signature, every counted decision in the log, and the sums."""
    from sealwright.client.usage import check_usage
    from sealwright.tlog.policy import LogPolicy

    root = b64url_decode(broker_root, length=32, error=SettingsError)
    with file.open("rb") as stream:
        said = check_usage(stream, root=root, log=LogPolicy.of_key(log_key))
    shown = said.to_json()
    names = ("tenant", "kid", "month", "releases", "rows", "leases", "lease_seconds", "answers", "log_size")
    lines = [f"{name:14} {shown[name]}" for name in names if name in shown]
    emit(
        shown, as_json=as_json, lines=[*lines, "answers, and that nothing is left out, are the broker's word"]
    )


def _emit(found: dict[str, Any], as_json: bool) -> None:
    emit(found, as_json=as_json, lines=[f"{name:15} {value}" for name, value in found.items()])


def _emit_budget(found: dict[str, Any], as_json: bool) -> None:
    limits = (found["policy_limits"] or {}) | (found["limits"] or {})
    lines = [
        f"{name:10} {found['spent'][name]} of {limits.get(name, 'any')}"
        for name in ("releases", "epochs", "rows")
    ]
    lines += [
        f"{name:10} {json.dumps(value)}" for name, value in limits.items() if name not in found["spent"]
    ]
    emit(found, as_json=as_json, lines=lines)
