"""`sealwright enclave`: write a config, predict its measurement, serve."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from sealwright.cli import _notify
from sealwright.cli._output import emit, note
from sealwright.crypto.canonical import parse_json
from sealwright.crypto.document import Document, validated
from sealwright.crypto.encoding import b64url, b64url_decode, hex_decode
from sealwright.enclave.artefacts import EnclavePayload
from sealwright.enclave.image import DISTRIBUTIONS, ENTRY
from sealwright.enclave.receipts import NOT_CONFIDENTIAL
from sealwright.errors import SettingsError, UnavailableError
from sealwright.protocol.enclave_config import (
    MAX_CONFIG,
    ArtefactEntry,
    BrokerAddress,
    EnclaveConfig,
    TenantList,
)
from sealwright.sealing import Manifest, manifest_path, read_manifest

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)
config_app = typer.Typer(no_args_is_help=True, help="Write enclave configs.")
app.add_typer(config_app, name="config")

START_TIMEOUT_S = 600.0
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Config = Annotated[Path, typer.Argument(help="The enclave config, from `enclave config new`.")]
State = Annotated[Path | None, typer.Option(help="Folder of this machine's quoting root.")]
Models = Annotated[
    list[str], typer.Option("--model", metavar="KID=PATH.sealed", help="A sealed model; may be repeated.")
]


@app.callback()
def _enclave() -> None:
    """Serve a sealed model inside an attested enclave."""


@app.command()
def measure(
    config: Annotated[
        Path | None, typer.Argument(help="An enclave config; without one only the code is measured.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List every measured file.")] = False,
    as_json: Json = False,
) -> None:
    """Predict the registers of an enclave on this machine, without starting it."""
    raw = b"" if config is None else config_bytes(config)
    entry = ENTRY if config is None else entry_of(raw)
    predicted = _quoter("image").measure(raw, entry=entry, distributions=DISTRIBUTIONS)
    result: dict[str, object] = {
        "confidential": False,
        "platform": "software",
        "code": predicted.register0.hex(),
        "files": len(predicted.files),
    }
    lines = [f"code           {predicted.register0.hex()}  (register 0, {len(predicted.files)} files)"]
    if config is not None:
        result["config_digest"] = predicted.register1.hex()
        lines.append(f"config_digest  {predicted.register1.hex()}  (register 1)")
    if listing:
        result["listing"] = [list(file) for file in predicted.files]
        lines += [f"{digest}  {mode}  {path}" for path, mode, digest in predicted.files]
    emit(result, as_json=as_json, lines=lines)


@app.command()
def root(state: State = None, as_json: Json = False) -> None:
    """Print the fingerprint of this machine's quoting root, which is made if there is none yet."""
    quoter = _quoter("state")
    fingerprint = quoter.root_fingerprint(state or quoter.default_state(), datetime.now(UTC)).hex()
    emit({"root": fingerprint}, as_json=as_json, lines=[fingerprint])


@app.command()
def serve(
    config: Config,
    model: Models,
    tenant_list: Annotated[
        list[Path] | None, typer.Option(help="A tenant's list; default: CONFIG beside it, `.tenant.json`.")
    ] = None,
    listen: Annotated[str, typer.Option(help="Where clients reach it, host:port.")] = "127.0.0.1:8443",
    state: State = None,
    allow_swap: Annotated[
        bool,
        typer.Option("--allow-swap", help="Start where memory can reach swap; only demo policies admit it."),
    ] = False,
    attester: Annotated[
        str | None,
        typer.Option(
            metavar="PLATFORM[:ADDRESS]",
            help="Quote by this machine's snp, tdx, nitro, sgx, tpm, az-snp-vtpm or az-tdx-vtpm; "
            "default: platform software.",
        ),
    ] = None,
    vtpm: Annotated[
        bool, typer.Option("--vtpm", help="Beside snp or tdx: quote by the provider's virtual TPM too.")
    ] = False,
    endorsement: Annotated[
        list[Path] | None,
        typer.Option(help="A certificate that goes along with each quote, such as a TPM's; repeat it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure, harden, start and attest an enclave, and serve its models until interrupted."""
    raw = config_bytes(config)
    lists = [
        TenantList.parse(_read(path), error=SettingsError) for path in tenant_list or [list_path(config)]
    ]
    artefacts = dict(_model(text) for text in model)
    payload = build_payload(lists, artefacts)
    payload.check(EnclaveConfig.parse(raw, error=SettingsError))
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(listen))
        fds = {kid: stack.enter_context(_opened(path)) for kid, path in artefacts.items()}
        running = _quoter("launch").launch(
            raw,
            entry=entry_of(raw),
            distributions=DISTRIBUTIONS,
            listen=listener,
            extra_fds=fds,
            state_dir=state,
            allow_swap=allow_swap,
            payload=payload.encode(),
            attester=_attester(attester, endorsement or [], vtpm=vtpm),
        )
        address = listener.getsockname()
        stack.close()  # the workload has its own copies: ours would keep the port open after its end
        platform = (attester or "software").partition(":")[0]
        _serve_until_ended(running, address, platform, as_json=as_json)


@config_app.command("new")
def config_new(
    out: Annotated[Path, typer.Argument(help="Where to write the config; the tenant list goes beside it.")],
    broker: Annotated[list[str], typer.Option(metavar="URL=ROOT", help="A broker and its root, base64url.")],
    log_key: Annotated[list[str], typer.Option(help="A log's verifier key (vkey).")],
    tenant: Annotated[str, typer.Option(help="Whose models these are.")],
    artefact: Annotated[
        list[str],
        typer.Option(metavar="KID=MODEL=FILE", help="Key, model name, and PATH.sealed or manifest digest."),
    ],
    context_tokens: Annotated[int, typer.Option(help="Prompt and answer of one request, tokens.")] = 2048,
    slots: Annotated[int, typer.Option(help="Requests that run at the same time.")] = 4,
    threads: Annotated[int, typer.Option(help="Threads of the engine; 0: as many as this machine has.")] = 0,
    request_bytes: Annotated[int, typer.Option(help="Largest request body, bytes.")] = 1 << 20,
    response_tokens: Annotated[int, typer.Option(help="Longest answer, tokens.")] = 1024,
    concurrency: Annotated[int, typer.Option(help="Answers in the making at once.")] = 64,
    receipt_backlog: Annotated[int, typer.Option(help="Receipts that may wait to be logged.")] = 1024,
    suite: Annotated[str, typer.Option(help="default or classical.")] = "default",
    as_json: Json = False,
) -> None:
    """Write a canonical enclave config, and its tenant's list with a fresh salt."""
    entries = [_artefact(text).to_json() for text in artefact]
    salt = b64url(secrets.token_bytes(32))
    listed = TenantList.from_json({"tenant": tenant, "salt": salt, "artefacts": entries}, error=SettingsError)
    made = EnclaveConfig.from_json(
        {
            "format": "sealwright-enclave-config/v1",
            "suite": suite,
            "workload": {"name": "chat", "entry": ENTRY},
            "engine": {
                "name": "llama.cpp",
                "context_tokens": context_tokens,
                "slots": slots,
                "threads": threads or os.cpu_count() or 1,
            },
            "brokers": [_broker(text).to_json() for text in broker],
            "policy_signers": [],
            "log": {"origin": log_key[0].split("+")[0], "keys": log_key, "witnesses": [], "quorum": 0},
            "tenants": [{"tenant": tenant, "artefacts": listed.commitment().hex()}],
            "egress": [],
            "limits": {
                "request_bytes": request_bytes,
                "response_tokens": response_tokens,
                "concurrency": concurrency,
                "receipt_backlog": receipt_backlog,
            },
        },
        error=SettingsError,
    )
    _write(out, made, mode=0o644)
    # The salt keeps the config's digest of the list from being guessed.
    _write(list_path(out), listed, mode=0o600)
    emit(
        {"config": str(out), "tenant_list": str(list_path(out)), "config_digest": made.digest().hex()},
        as_json=as_json,
        lines=[
            f"config       {out}",
            f"tenant list  {list_path(out)}  (give it to the broker's and the tenant's people only)",
            f"digest       {made.digest().hex()}",
        ],
    )


def build_payload(lists: Sequence[TenantList], artefacts: Mapping[str, Path]) -> EnclavePayload:
    """Return what the host hands over: openings, and the manifest beside each artefact."""
    manifests = {kid: parse_json(read_manifest(path), error=SettingsError) for kid, path in artefacts.items()}
    return EnclavePayload(openings=list(lists), manifests=manifests)


def config_bytes(path: Path) -> bytes:
    """Return a config's canonical bytes. Raises SettingsError."""
    raw = _read(path)
    EnclaveConfig.parse(raw, limit=MAX_CONFIG, error=SettingsError)
    return raw


def entry_of(raw: bytes) -> str:
    """Return what a config says is called."""
    return EnclaveConfig.parse(raw, limit=MAX_CONFIG, error=SettingsError).workload.entry


def list_path(config: Path) -> Path:
    """Return where `config new` writes the tenant's list."""
    return config.with_suffix(".tenant.json")


def _attester(option: str | None, endorsements: Sequence[Path], *, vtpm: bool) -> Any:
    if option is None:
        if endorsements or vtpm:
            raise typer.BadParameter("endorsements and a vTPM go along with --attester")
        return None
    local = importlib.import_module("sealwright.attester.local")
    try:
        return local.AttesterSpec.named(option, tuple(_read(path) for path in endorsements), vtpm=vtpm)
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="--attester") from None


def _serve_until_ended(running: Any, address: tuple[str, int], platform: str, *, as_json: bool) -> None:
    measured = running.measurement
    try:
        _wait_until_serving(running, address)
        emit(
            {
                "serving": f"http://{address[0]}:{address[1]}",
                "pid": running.pid,
                "confidential": platform not in NOT_CONFIDENTIAL,
                "platform": platform,
                "code": measured.register0.hex(),
                "config_digest": measured.register1.hex(),
                "claims": running.claims.to_json(),
            },
            as_json=as_json,
            lines=[
                f"measured  code {measured.register0.hex()}, config {measured.register1.hex()}",
                _platform_line(platform),
                f"serving   http://{address[0]}:{address[1]}",
            ],
        )
        with _terminated_like_interrupted(), _notify.service(_notify.asked(address[:2])):
            code = running.wait()
    except KeyboardInterrupt:
        note("ending: waiting for requests under way, and for receipts to be logged")
        code = running.terminate()
    except BaseException:
        running.terminate()
        raise
    if code:
        raise typer.Exit(code)


def _platform_line(platform: str) -> str:
    if platform in NOT_CONFIDENTIAL:
        return f"platform  {platform}: not confidential from this machine's administrators"
    return f"platform  {platform}: whether it is confidential is for clients to verify"


def _wait_until_serving(running: Any, address: tuple[str, int]) -> None:
    """Ask for its health until it serves.

    Raises:
        typer.Exit: it has ended, and said why on stderr.
    """
    ends = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < ends:
        if not os.path.exists(f"/proc/{running.pid}"):
            raise typer.Exit(running.wait() or 70)
        if _healthy(address):
            return
        time.sleep(0.05)
    raise UnavailableError("the enclave does not serve", code="enclave-not-serving", stage="start")


def _healthy(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address[:2], timeout=1) as probe:
            probe.settimeout(1)
            probe.sendall(b"GET /healthz HTTP/1.1\r\nhost: enclave\r\nconnection: close\r\n\r\n")
            return probe.recv(64).startswith(b"HTTP/1.1 ")
    except OSError:
        return False


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _listen(text: str) -> Iterator[socket.socket]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        raise typer.BadParameter("it takes host:port", param_hint="--listen")
    try:
        listener = socket.create_server((host.strip("[]"), int(port)), backlog=1024)
    except OSError as exc:
        raise UnavailableError(
            f"cannot listen on {text}: {exc.strerror}", code="cannot-listen", stage="start"
        ) from exc
    with listener:
        yield listener


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


def _quoter(module: str) -> Any:
    return importlib.import_module(f"sealwright.attester.quoter.{module}")


def _model(text: str) -> tuple[str, Path]:
    kid, _, path = text.partition("=")
    if not kid or not path:
        raise typer.BadParameter("it takes KID=PATH.sealed", param_hint="--model")
    return kid, Path(path)


def _artefact(text: str) -> ArtefactEntry:
    parts = text.split("=", 2)
    if len(parts) != 3 or not all(parts):
        raise typer.BadParameter("it takes KID=MODEL=FILE", param_hint="--artefact")
    kid, model, source = parts
    path = Path(source)
    if manifest_path(path).exists():
        digest = Manifest.unverified_parse(read_manifest(path)).manifest_digest
    else:
        digest = hex_decode(source, length=32, error=SettingsError)
    entry = {"kid": kid, "manifest_digest": digest, "model": model}
    return validated(ArtefactEntry, entry, SettingsError)


def _broker(text: str) -> BrokerAddress:
    url, _, root = text.partition("=")
    raw = b64url_decode(root, length=32, error=SettingsError)
    return validated(BrokerAddress, {"url": url, "root": raw}, SettingsError)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise UnavailableError(f"cannot read {path}: {exc.strerror}", code="input-unreadable") from exc


def _write(path: Path, document: Document, *, mode: int) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as exc:
        raise UnavailableError(f"cannot write {path}: {exc.strerror}", code="output-failed") from exc
    with open(fd, "wb") as file:
        file.write(document.encode())
