"""`sealwright trust`: make and show trust files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from sealwright.appraisal.policy import TrustFile
from sealwright.appraisal.signed import TRUST
from sealwright.appraisal.software import SOFTWARE_VECTOR
from sealwright.cli._files import load_trust, read_input
from sealwright.cli._group import FILE, Json, group
from sealwright.cli._output import emit, note
from sealwright.cli._signing import KeyFiles, Out, signed, write_new
from sealwright.client.receipt_store import create_private, replace_file
from sealwright.crypto.canonical import canonical, parse_json
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.endorsement.software import SoftwareEndorsement
from sealwright.errors import FormatError, SettingsError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.evidence.software import SoftwareQuote
from sealwright.protocol.attestation import AttestationBundle
from sealwright.protocol.enclave_config import EnclaveConfig

app = group("Make and check trust files: whom a client or auditor trusts.")


@app.command()
def new(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the trust file goes; it must not exist.")],
    tenant: Annotated[str, typer.Option(help="Whose lease to ask for.")],
    root: Annotated[
        list[str] | None, typer.Option(metavar="HEX", help="Fingerprint of a quoting root.")
    ] = None,
    code: Annotated[list[str] | None, typer.Option(metavar="HEX", help="Code: register 0.")] = None,
    from_measurement: Annotated[
        Path | None, typer.Option(help="Code from `enclave measure --json`.", **FILE)
    ] = None,
    from_bundle: Annotated[
        Path | None,
        typer.Option(help="Fill what is missing from a bundle of `attest --out`, on faith.", **FILE),
    ] = None,
    broker: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Root of a broker (base64url).")
    ] = None,
    log_key: Annotated[list[str] | None, typer.Option(metavar="VKEY", help="Key of a log.")] = None,
    config_digest: Annotated[
        list[str] | None, typer.Option(metavar="HEX", help="Admit this config only; default: rules.")
    ] = None,
    signer: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="A policy signer a config may name.")
    ] = None,
    manifest: Annotated[
        list[str] | None, typer.Option(metavar="HEX", help="Admit this manifest; default: any leased one.")
    ] = None,
    claim: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Admit a weaker claim, such as user=shared."),
    ] = None,
    hours: Annotated[int, typer.Option(min=1, max=24, help="How long it lives.")] = 24,
    longest_lease: Annotated[int, typer.Option(metavar="SECONDS", min=1, max=86400)] = 3600,
    as_json: Json = False,
) -> None:
    """Write a trust file for platform `software`: a demo profile of at most 24 hours."""
    seen = {} if from_bundle is None else _looked_at(from_bundle)
    codes = [*(code or []), *([] if from_measurement is None else [_measured(from_measurement)])]
    brokers, log_keys = broker or seen.get("brokers", []), log_key or seen.get("log_keys", [])
    rules = {"brokers": brokers, "policy_signers": signer or [], "log_keys": log_keys}
    now = datetime.now(UTC)
    trust = TrustFile.from_json(
        {
            "version": 1,
            "profile": "demo",
            "require_hardware": False,
            "created": rfc3339(now),
            "expires": rfc3339(now + timedelta(hours=hours)),
            "platforms": {"software": _software(root or seen.get("roots"), codes or seen.get("code"), claim)},
            "config": {"digests": config_digest} if config_digest else rules,
            "tenant": tenant,
            "brokers": brokers,
            "manifests": manifest or [],
            "log_policy": "".join(f"log {key}\n" for key in log_keys) + "quorum none\n" if log_keys else "",
            "longest_lease_s": longest_lease,
        },
        error=SettingsError,
    )
    _write(out, trust)
    if seen:
        note("what came from the bundle is taken on faith: compare it with its owner's values")
    _emit_shown(trust, as_json, out)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A trust file.", **FILE)],
    as_json: Json = False,
) -> None:
    """Check that a trust file is well formed and in force, and show what it trusts."""
    trust = load_trust(file)
    trust.check_time(datetime.now(UTC))
    _emit_shown(trust, as_json, file)


@app.command()
def sign(
    file: Annotated[Path, typer.Argument(help="A trust file, YAML, that names its signers.", **FILE)],
    key: KeyFiles,
    out: Out,
    as_json: Json = False,
) -> None:
    """Sign a trust file, so that `trust update` can put it in place of the one before."""
    trust = load_trust(file)
    write_new(out, signed(trust.encode(), TRUST, key))
    _emit_shown(load_trust(out), as_json, out)


@app.command()
def update(
    current: Annotated[Path, typer.Argument(help="The trust file in use.", **FILE)],
    new: Annotated[Path, typer.Argument(help="The signed version that is to take its place.", **FILE)],
    as_json: Json = False,
) -> None:
    """Put a newer signed version in place of a trust file, if those that the old one names have signed it."""
    raw = read_input(new)
    trust = load_trust(current).succeeded_by(raw, at=datetime.now(UTC))
    replace_file(current, raw)
    _emit_shown(trust, as_json, current)


def _software(roots: list[str] | None, code: list[str] | None, claims: list[str] | None) -> dict[str, Any]:
    if not roots or not code:
        raise typer.BadParameter("give --root and --code (or --from-measurement, --from-bundle)")
    named: dict[str, list[str]] = {}
    for text in claims or []:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise typer.BadParameter("wanted: NAME=VALUE", param_hint="--claim")
        named.setdefault(name, []).append(value)
    return {"vector": dict(SOFTWARE_VECTOR), "roots": roots, "code": code, "claims": named}


def _measured(path: Path) -> str:
    match parse_json(read_input(path), limit=4 << 20, error=SettingsError):
        case {"register0": str(value)} | {"registers": [str(value), *_]} | {"code": str(value)}:
            return value
    raise SettingsError(f"{path} holds no register 0", code="malformed-measurement")


def _looked_at(path: Path) -> dict[str, list[str]]:
    """Return what a bundle says of itself: nothing of it is verified."""
    bundle = AttestationBundle.parse(read_input(path))
    envelope = EvidenceEnvelope.parse(canonical(bundle.evidence))
    endorsement = SoftwareEndorsement.parse(envelope.endorsements)
    config = EnclaveConfig.parse(bundle.config)
    return {
        "roots": [endorsement.root_fingerprint().hex()],
        "code": [SoftwareQuote.parse(envelope.evidence).unverified_body.registers[0].hex()],
        "brokers": [b64url(broker.root) for broker in config.brokers],
        "log_keys": config.log.keys,
    }


def _write(path: Path, trust: TrustFile) -> None:
    try:
        create_private(path, yaml.safe_dump(trust.to_json(), sort_keys=False).encode())
    except OSError as exc:
        raise SettingsError(f"cannot write {path}: {exc.strerror}", code="unwritable-file") from exc
    try:
        load_trust(path)
    except FormatError as exc:
        raise RuntimeError("wrote a trust file that does not load") from exc


def _emit_shown(trust: TrustFile, as_json: bool, path: Path) -> None:
    software = trust.platforms.software
    word = "hardware only" if trust.require_hardware else "NOT required: this file admits software"
    lines = [
        f"file      {path}",
        f"digest    {trust.digest().hex()}",
        f"profile   {trust.profile}, until {rfc3339(trust.expires)}",
        f"hardware  {word}",
        f"tenant    {trust.tenant}",
        *[f"root      {item.hex()}" for item in (software.roots if software else [])],
        *[f"code      {item.hex()}" for item in (software.code if software else [])],
        *[f"broker    {b64url(item)}" for item in trust.brokers],
        *[f"log       {line}" for line in trust.log_policy.splitlines()],
        *[f"manifest  {item.hex()}" for item in trust.manifests],
        f"lease     at most {trust.longest_lease_s} s",
    ]
    result: dict[str, object] = {"file": str(path), "digest": trust.digest().hex(), "trust": trust.to_json()}
    emit(result, as_json=as_json, lines=lines)
