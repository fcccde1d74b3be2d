"""`sealwright broker`: make and run a broker, and administer one over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealwright.cli import _broker_life, resource
from sealwright.cli._admin import Broker, Json, TokenFile, ask, path_of, read_bytes, read_text
from sealwright.cli._broker_backends import app as backend
from sealwright.cli._broker_backup import backup, restore
from sealwright.cli._broker_events import EventsSecret, EventsUrl, Metrics, events, watched
from sealwright.cli._broker_options import DatabaseFile, Holder, Witnesses
from sealwright.cli._broker_promotion import app as promotion_app
from sealwright.cli._output import emit
from sealwright.crypto.encoding import b64url, b64url_decode
from sealwright.errors import SettingsError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from sealwright.broker.service import Running
    from sealwright.broker.supply import SupplySettings


def _group(text: str) -> typer.Typer:
    return typer.Typer(help=text, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


app = _group("Appraise enclaves, hold keys and release them.")
key = _group("Keys: made inside, wrapped, released under a policy.")
policy = _group("Policies of keys.")
caller = _group("Callers: who may ask enclaves for answers.")
owner = _group("Owners' keys, whose manifests are admitted.")
manifest = _group("The manifest that a key may open.")
data_policy = _group("What owners allow to be done with training data.")
decisions = _group("Decisions in the log.")
for _name, _app in {
    "backend": backend,
    "key": key,
    "policy": policy,
    "caller": caller,
    "owner": owner,
    "manifest": manifest,
    "data-policy": data_policy,
    "decisions": decisions,
    "promotion": promotion_app,
    "budget": _broker_life.budget,
    "machines": _broker_life.machines,
    "resource": resource.app,
}.items():
    app.add_typer(_app, name=_name)

PolicyFile = Annotated[Path, typer.Option("--policy", help="Policy, YAML (docs/spec/appraisal.md).")]
app.command("backup")(backup)
app.command("restore")(restore)
app.command("revoke")(_broker_life.revoke)
app.command("unrevoke")(_broker_life.unrevoke)
app.command("revocations")(_broker_life.revocations)
app.command("usage")(_broker_life.usage)
app.command("usage-check")(_broker_life.usage_check)
key.command("rotate")(_broker_life.key_rotate)
key.command("switch")(_broker_life.key_switch)
key.command("retire")(_broker_life.key_retire)
app.command("events")(events)


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="Folder to make; must be empty or absent.")],
    origin: Annotated[str | None, typer.Option(help="Name of the log; default: from the root key.")] = None,
    holder: Holder = None,
    witness: Witnesses = None,
    database: DatabaseFile = None,
    as_json: Json = False,
) -> None:
    """Make a broker: its keys, its log, its admin token. The folder is for its user only."""
    from sealwright.broker.service import init_broker
    from sealwright.broker.settings import Layout
    from sealwright.broker.storage import claimed

    with claimed(database) as shared:
        secrets = init_broker(directory, origin=origin, holder=holder, witnesses=witness or (), shared=shared)
    layout = Layout(root=directory)
    result: dict[str, object] = {
        "directory": str(directory),
        "root": b64url(secrets.root_public),
        "log_key": secrets.log_key,
        "log": str(layout.log),
        "admin_token": str(layout.admin_token),
    }
    lines = [
        f"root         {result['root']}   (configs, policies and trust files name it)",
        f"log key      {secrets.log_key}",
        f"log          {layout.log}",
        f"admin token  {layout.admin_token}   (move it to the administrator)",
        f"next:  sealwright broker serve {directory} --listen 127.0.0.1:8420",
    ]
    emit(result, as_json=as_json, lines=lines)


@app.command()
def serve(
    directory: Annotated[Path, typer.Argument(help="The broker's folder, from `broker init`.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 takes a free one.")] = "127.0.0.1:8420",
    holder: Holder = None,
    witness: Witnesses = None,
    holders_needed: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of file and witnesses, how many must hold a checkpoint before an answer; default: all.",
        ),
    ] = None,
    new_holder: Annotated[
        bool, typer.Option("--new-holder", help="Let holders begin that hold nothing yet.")
    ] = False,
    collateral: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Cache of `sealwright collateral`; its pieces are served to the fleet."
        ),
    ] = None,
    fetch_collateral: Annotated[
        bool, typer.Option("--fetch-collateral", help="Ask vendors for what evidence did not bring.")
    ] = False,
    fetch_budget: Annotated[
        int,
        typer.Option(
            min=1, max=4096, help="Pieces that one address may have fetched at once, and each hour."
        ),
    ] = 64,
    hosts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML: hosts to ask in place of the vendors' own.", exists=True),
    ] = None,
    proxy: Annotated[
        str | None, typer.Option(metavar="URL", help="To vendors; default: HTTPS_PROXY and NO_PROXY.")
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="CAs of vendors or the proxy, in place of the system's.", exists=True)
    ] = None,
    database: DatabaseFile = None,
    site: Annotated[
        str | None, typer.Option(help="Name of this site, where several may write in turn.")
    ] = None,
    promotion: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Approvers' statement that this site writes now.", exists=True),
    ] = None,
    backends: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Key backends; default: backends.json of the folder."),
    ] = None,
    approve_backend: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Take this backend's changed settings as meant; once."),
    ] = None,
    metrics: Metrics = None,
    events_url: EventsUrl = None,
    events_secret: EventsSecret = None,
    log_format: Annotated[str, typer.Option(help="text or json; one line a request, on stderr.")] = "text",
) -> None:
    """Serve enclaves and the administrator. Ends on SIGTERM or SIGINT."""
    from sealwright.broker import serve as server
    from sealwright.broker.http import Journalist
    from sealwright.broker.service import open_broker
    from sealwright.cli import _notify

    if log_format not in ("text", "json"):
        raise typer.BadParameter("--log-format is text or json")
    if fetch_collateral and collateral is None:
        raise typer.BadParameter("--fetch-collateral fills the cache that --collateral names")
    host, port = server.parse_listen(listen)
    server.harden()
    log = Journalist(as_json=log_format == "json")
    options: dict[str, Any] = {
        "holder": holder,
        "witnesses": witness or (),
        "holders_needed": holders_needed,
        "new_holder": new_holder,
        "collateral": collateral,
        "supply": _supply(fetch_collateral, fetch_budget, hosts, proxy, ca_file),
        "backends": backends,
        "approve": approve_backend or (),
        "site": site,
        "promotion": None if promotion is None else read_bytes(promotion),
    }
    with ExitStack() as stack:
        options |= watched(stack, directory, metrics, events_url, events_secret, log)
        if database is None:
            running = stack.enter_context(_with_training(open_broker(directory, **options)))
            serving, root = running.app(log=log), running.core.secrets.root_public
        else:
            serving, root = _replica(stack, directory, database, options, log)
        sock = stack.enter_context(server.bind(host, port))
        shown = f"[{host}]" if ":" in host else host
        log("serving", url=f"http://{shown}:{sock.getsockname()[1]}", root=b64url(root))
        stack.enter_context(_notify.service(_notify.asked(sock.getsockname()[:2])))
        server.serve(serving, sock, log)


@contextmanager
def _with_training(opening: AbstractContextManager[Running]) -> Iterator[Running]:
    """Open a broker that also answers agents of training, where what that needs is installed (extra `training`)."""
    with opening as running:
        try:
            from sealwright.training.routes import training_routes
        except ModuleNotFoundError as exc:
            if exc.name != "numpy":
                raise
            yield running
        else:
            yield replace(running, more=training_routes(running.core))


def _replica(
    stack: ExitStack, directory: Path, database: Path, options: dict[str, Any], log: Callable[..., None]
) -> tuple[ASGIApp, bytes]:
    """Return the application of one replica, and the broker's root key."""
    from sealwright.broker.database import Database, postgres_engine, read_url
    from sealwright.broker.replica import Replica
    from sealwright.broker.service import open_broker
    from sealwright.broker.settings import BrokerSecrets, Layout
    from sealwright.broker.storage import Shared
    from sealwright.broker.writer import Writer

    secrets = BrokerSecrets.load(Layout(root=directory))
    election = Database(postgres_engine(read_url(database), size=2))
    stack.callback(election.close)

    def open_at(epoch: int) -> AbstractContextManager[Running]:
        return _with_training(
            open_broker(directory, shared=Shared(url_file=database, epoch=epoch), **options)
        )

    return Replica(Writer(election), open_at, log=log), secrets.root_public


@app.command()
def migrate(
    database: Annotated[Path, typer.Option(metavar="FILE", help="File with the postgresql:// address.")],
    as_json: Json = False,
) -> None:
    """Bring the tables of a PostgreSQL database to this version. Only this needs the right to change tables."""
    from sealwright.broker.database import read_url
    from sealwright.broker.migrations import migrate as run

    before, after = run(read_url(database))
    emit(
        {"before": before, "after": after}, as_json=as_json, lines=[f"tables  {before or 'none'} -> {after}"]
    )


@app.command()
def status(broker: Broker, token_file: TokenFile, as_json: Json = False) -> None:
    """Say how the broker stands: root, log, keys, leases, count mismatches, rollback protection."""
    found = ask(broker, token_file, "GET", "/status")
    lines = [
        f"{name:17} {value}" for name, value in found.items() if name not in ("count_mismatches", "backend")
    ]
    lines += [f"backend {name:9} {value}" for name, value in found.get("backend", {}).items()]
    mismatches = found.get("count_mismatches") or []
    lines.append(f"{'count mismatches':17} {len(mismatches)}")
    lines += [
        f"  lease {item['lease_id']}: {item['answers']} answers said, {item['logged']} receipts logged"
        for item in mismatches
    ]
    emit(found, as_json=as_json, lines=lines)


@key.command("create")
def key_create(
    tenant: Annotated[str, typer.Argument(help="Whose key.")],
    kid: Annotated[str, typer.Argument(help="Name of the key, over all tenants.")],
    model: Annotated[str, typer.Option(help="Name of the model that it will open.")],
    policy_file: PolicyFile,
    broker: Broker,
    token_file: TokenFile,
    as_json: Json = False,
) -> None:
    """Make a key inside the broker, under a policy."""
    body = {"tenant": tenant, "kid": kid, "model": model, "policy": read_text(policy_file)}
    _emit_key(ask(broker, token_file, "POST", "/keys", body), as_json=as_json)


@key.command("list")
def key_list(broker: Broker, token_file: TokenFile, as_json: Json = False) -> None:
    """List all keys."""
    found = ask(broker, token_file, "GET", "/keys")
    lines = [f"{item['kid']:24} {item['tenant']:16} {item['status']}" for item in found["keys"]]
    emit(found, as_json=as_json, lines=lines or ["no keys yet"])


@key.command("status")
def key_status(
    kid: Annotated[str, typer.Argument()], broker: Broker, token_file: TokenFile, as_json: Json = False
) -> None:
    """Show one key: policy, admitted manifest, whether it is revoked."""
    _emit_key(ask(broker, token_file, "GET", f"/keys/{path_of(kid)}"), as_json=as_json)


@key.command("revoke")
def key_revoke(
    kid: Annotated[str, typer.Argument()], broker: Broker, token_file: TokenFile, as_json: Json = False
) -> None:
    """Release a key no more. Enclaves that have it are told, and stop at their lease's end at the latest."""
    _emit_key(ask(broker, token_file, "POST", f"/keys/{path_of(kid)}/revoke"), as_json=as_json)


@policy.command("set")
def policy_set(
    kid: Annotated[str, typer.Argument()],
    policy_file: PolicyFile,
    broker: Broker,
    token_file: TokenFile,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also an older version, or one that locks out every running enclave."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Give a key another policy; it decides from the next request on."""
    body = {"policy": read_text(policy_file), "force": force}
    _emit_key(ask(broker, token_file, "POST", f"/keys/{path_of(kid)}/policy", body), as_json=as_json)


@manifest.command("admit")
def manifest_admit(
    kid: Annotated[str, typer.Argument()],
    envelope: Annotated[Path, typer.Argument(help="NAME.sealed.json.")],
    broker: Broker,
    token_file: TokenFile,
    owner_key: Annotated[
        str | None, typer.Option(help="Owner's public key, base64url; pinned with the first manifest.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also an older one, or another artefact.")] = False,
    as_json: Json = False,
) -> None:
    """Make a signed manifest the one that a key may open."""
    body: dict[str, object] = {"envelope": b64url(read_bytes(envelope)), "force": force}
    if owner_key is not None:
        body["owner_key"] = owner_key
    _emit_key(ask(broker, token_file, "POST", f"/keys/{path_of(kid)}/manifest", body), as_json=as_json)


@data_policy.command("admit")
def data_policy_admit(
    envelope: Annotated[Path, typer.Argument(help="The owner's signed policy.")],
    broker: Broker,
    token_file: TokenFile,
    as_json: Json = False,
) -> None:
    """Put an owner's policy in force for its data set and run, in place of an older version."""
    found = ask(broker, token_file, "POST", "/data-policies", {"envelope": b64url(read_bytes(envelope))})
    emit(found, as_json=as_json, lines=[f"data policy  {found['policy']}"])


@owner.command("add")
def owner_add(
    tenant: Annotated[str, typer.Argument()],
    owner_key: Annotated[str, typer.Option(help="Ed25519, base64url, from `owner-key show`.")],
    broker: Broker,
    token_file: TokenFile,
    as_json: Json = False,
) -> None:
    """Admit manifests signed by one more key of the owner."""
    b64url_decode(owner_key, length=32, error=SettingsError)
    body = {"key": owner_key}
    found = ask(broker, token_file, "POST", f"/tenants/{path_of(tenant)}/owners", body)
    emit(found, as_json=as_json, lines=[f"owner key  {found['key_id']} of {tenant}"])


@caller.command("add")
def caller_add(
    tenant: Annotated[str, typer.Argument()],
    name: Annotated[str, typer.Argument()],
    broker: Broker,
    token_file: TokenFile,
    as_json: Json = False,
) -> None:
    """Let someone ask enclaves for answers. The credential is shown once and kept as a digest."""
    found = ask(broker, token_file, "POST", f"/tenants/{path_of(tenant)}/callers", {"caller": name})
    emit(found, as_json=as_json, lines=[str(found["credential"])])


@caller.command("list")
def caller_list(
    tenant: Annotated[str, typer.Argument()], broker: Broker, token_file: TokenFile, as_json: Json = False
) -> None:
    """List the callers of a tenant."""
    found = ask(broker, token_file, "GET", f"/tenants/{path_of(tenant)}/callers")
    emit(found, as_json=as_json, lines=found["callers"] or ["no callers yet"])


@caller.command("remove")
def caller_remove(
    tenant: Annotated[str, typer.Argument()],
    name: Annotated[str, typer.Argument()],
    broker: Broker,
    token_file: TokenFile,
    as_json: Json = False,
) -> None:
    """Take a caller out; enclaves learn it with their next lease."""
    found = ask(broker, token_file, "DELETE", f"/tenants/{path_of(tenant)}/callers/{path_of(name)}")
    emit(found, as_json=as_json, lines=[f"removed  {name} of {tenant}"])


@decisions.command("erase")
def decisions_erase(
    commitment: Annotated[list[str], typer.Argument(help="Commitments, hex, from `decisions list --json`.")],
    broker: Broker,
    token_file: TokenFile,
    as_json: Json = False,
) -> None:
    """Erase the openings of entries: they stay in the log, and nobody can read them again."""
    found = ask(broker, token_file, "POST", "/erase", {"commitments": commitment})
    emit(found, as_json=as_json, lines=[f"erased  {found['erased']}"])


@decisions.command("list")
def decisions_list(
    broker: Broker,
    token_file: TokenFile,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """List the newest decisions, opened."""
    found = ask(broker, token_file, "GET", f"/decisions?limit={limit}")
    lines = [
        f"{item['index']:>6}  {item['at']}  {item['verdict']:6}  {item['action']:20} "
        f"{item.get('code', ''):24} {item.get('kid', item.get('tenant', ''))}"
        for item in found["decisions"]
    ]
    emit(found, as_json=as_json, lines=lines or ["no decisions yet"])


def _supply(
    fetch: bool, budget: int, hosts: Path | None, proxy: str | None, ca_file: Path | None
) -> SupplySettings:
    from sealwright.broker.supply import SupplySettings
    from sealwright.cli._collateral import load_hosts

    return SupplySettings(fetch=fetch, budget=budget, hosts=load_hosts(hosts), proxy=proxy, ca_file=ca_file)


def _emit_key(found: dict[str, Any], *, as_json: bool) -> None:
    emit(found, as_json=as_json, lines=[f"{name:15} {value}" for name, value in found.items()])
