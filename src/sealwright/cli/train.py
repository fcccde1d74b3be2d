"""`sealwright train`: agents of a run, its countersigner, and the checkpoints that come of it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealwright.cli._admin import Broker, TokenFile, ask, read_bytes
from sealwright.cli._group import Json
from sealwright.cli._output import emit, note
from sealwright.crypto.encoding import b64url, rfc3339, rfc3339_decode
from sealwright.errors import SettingsError, UnavailableError

if TYPE_CHECKING:
    from sealwright.training.checkpoint import VerifiedChain

app = typer.Typer(
    help="Agents, countersigner and checkpoints of training between organisations.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Config = Annotated[Path, typer.Argument(help="The agent's config (docs/spec/training.md).", exists=True)]


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A lineage's checkpoints.", exists=True)],
    trust: Annotated[Path, typer.Option(help="Whom to believe: training trust, YAML or JSON.", exists=True)],
    at: Annotated[str | None, typer.Option(help="The time to judge by, RFC 3339; default: now.")] = None,
    as_json: Json = False,
) -> None:
    """Walk checkpoints offline, from the newest to the base and to the data owners' policies."""
    from sealwright.training.checkpoint import TrainingTrust, verify_chain

    when = datetime.now(UTC) if at is None else rfc3339_decode(at, error=SettingsError)
    chain = verify_chain(folder, TrainingTrust.load(read_bytes(trust)), at=when)
    emit(_shown(chain), as_json=as_json, lines=_lines(chain))


@app.command()
def countersigner(broker: Broker, token_file: TokenFile, as_json: Json = False) -> None:
    """Print the key that run specifications name: the broker's countersigner."""
    said = ask(broker, token_file, "GET", "/training/countersigner")
    emit(said, as_json=as_json, lines=[str(said["key"])])


@app.command()
def register(
    run_spec: Annotated[Path, typer.Argument(help="A run specification, canonical JSON.", exists=True)],
    broker: Broker,
    token_file: TokenFile,
    as_json: Json = False,
) -> None:
    """Have the broker countersign a run from now on."""
    from sealwright.training.secagg.spec import RunSpec

    spec = RunSpec.parse(read_bytes(run_spec), error=SettingsError)
    said = ask(broker, token_file, "POST", "/training/runs", spec.to_json())
    emit(said, as_json=as_json, lines=[f"run  {said['run']}"])


@app.command()
def measure(config: Config, as_json: Json = False) -> None:
    """Predict the registers of an agent on this machine, without starting it."""
    from sealwright.attester.quoter.image import measure as measured
    from sealwright.training.agent.image import DISTRIBUTIONS

    raw = _config(config)
    found = measured(raw, entry=_entry(), distributions=DISTRIBUTIONS)
    said = {
        "confidential": False,
        "platform": "software",
        "code": found.register0.hex(),
        "config_digest": found.register1.hex(),
    }
    emit(
        said,
        as_json=as_json,
        lines=[f"code           {said['code']}", f"config_digest  {said['config_digest']}"],
    )


@app.command()
def agent(
    config: Config,
    listen: Annotated[Path, typer.Option(help="Unix socket that the engine calls; made, mode 0600.")],
    kid: Annotated[list[str], typer.Option(help="A key that it will ask for; again for more.")] = [],  # noqa: B006
    shard: Annotated[
        list[str], typer.Option(metavar="KID=PATH.sealed", help="A sealed shard; again for more.")
    ] = [],  # noqa: B006
    policy: Annotated[
        list[Path], typer.Option(help="An owner's signed data policy; again for more.", exists=True)
    ] = [],  # noqa: B006
    state: Annotated[Path | None, typer.Option(help="Folder of this machine's quoting root.")] = None,
    allow_swap: Annotated[
        bool, typer.Option("--allow-swap", help="Start where memory can reach swap.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure, harden and start one agent, and serve it until interrupted."""
    from sealwright.attester.quoter.launch import launch
    from sealwright.training.agent.image import DISTRIBUTIONS

    raw = _config(config)
    shards = dict(_shard(text) for text in shard)
    payload = _payload([*kid, *shards], shards, policy)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(listen))
        fds = {name: stack.enter_context(_opened(path)) for name, path in shards.items()}
        running = launch(
            raw,
            entry=_entry(),
            distributions=DISTRIBUTIONS,
            listen=listener,
            extra_fds=fds,
            state_dir=state,
            allow_swap=allow_swap,
            payload=payload,
        )
    said = {
        "serving": str(listen),
        "pid": running.pid,
        "confidential": False,
        "code": running.measurement.register0.hex(),
        "config_digest": running.measurement.register1.hex(),
    }
    emit(said, as_json=as_json, lines=[f"serving  {listen}", f"code     {said['code']}"])
    try:
        code = running.wait()
    except KeyboardInterrupt:
        code = running.terminate()
    note(f"ended with {code}")
    raise typer.Exit(0 if code in (0, 130, 143) else 69)


def _config(path: Path) -> bytes:
    from sealwright.training.agent.config import TrainingConfig

    raw = read_bytes(path)
    TrainingConfig.parse(raw, error=SettingsError)
    return raw


def _entry() -> str:
    from sealwright.training.agent.config import ENTRY

    return ENTRY


def _shard(text: str) -> tuple[str, Path]:
    kid, _, path = text.partition("=")
    if not kid or not path:
        raise typer.BadParameter("it takes KID=PATH.sealed", param_hint="--shard")
    return kid, Path(path)


def _payload(kids: list[str], shards: dict[str, Path], policies: list[Path]) -> bytes:
    from sealwright.sealing import read_manifest
    from sealwright.training.agent.config import AgentPayload

    said = {
        "format": "sealwright-agent-payload/v1",
        "kids": kids,
        "policies": [b64url(read_bytes(path)) for path in policies],
        "manifests": {kid: b64url(read_manifest(path)) for kid, path in shards.items()},
    }
    return AgentPayload.from_json(said, error=SettingsError).encode()


def _listen(path: Path) -> contextlib.closing[socket.socket]:
    from sealwright.training.agent.wire import listen

    return contextlib.closing(listen(path))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise UnavailableError(f"cannot read {path}: {exc.strerror}", code="input-unreadable") from exc
    try:
        yield fd
    finally:
        os.close(fd)


def _shown(chain: VerifiedChain) -> dict[str, Any]:
    return {
        "lineage": chain.lineage.hex(),
        "newest": chain.newest.version,
        "confidential": chain.newest.confidential,
        "versions": [
            {
                "version": one.version,
                "statement": one.statement.digest().hex(),
                "weights": one.statement.weights.hex(),
                "created": rfc3339(one.statement.predicate.created),
                "epoch": one.statement.predicate.epoch,
                "mode": one.statement.predicate.aggregation.mode,
                "workers": [entry.worker.hex() for entry in one.statement.predicate.workers],
                "metrics": dict(one.statement.predicate.metrics),
            }
            for one in chain.checkpoints
        ],
        "policies": [
            {"dataset": used.policy.dataset, "tenant": used.policy.tenant, "purpose": used.policy.purpose}
            for used in chain.policies.values()
        ],
    }


def _lines(chain: VerifiedChain) -> list[str]:
    newest = chain.newest
    lines = [
        f"lineage       {chain.lineage.hex()}, {len(chain.checkpoints)} versions, each proved",
        f"confidential  {'yes' if newest.confidential else 'no'}",
    ]
    for one in chain.checkpoints:
        said = one.statement.predicate
        metrics = ", ".join(f"{name} {float(value):.4g}" for name, value in sorted(said.metrics.items()))
        lines.append(
            f"  v{one.version}  {rfc3339(said.created)}  epoch {said.epoch}, {len(said.workers)} workers, "
            f"{said.aggregation.mode}  {metrics}"
        )
    lines += [
        f"data          {used.policy.dataset} of {used.policy.tenant}: {used.policy.purpose}"
        for used in chain.policies.values()
    ]
    return lines
