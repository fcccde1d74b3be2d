"""`sealwright release`: build, sign, log, build again and verify releases."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from sealwright.appraisal.signed import Signers
from sealwright.cli._files import time_option
from sealwright.cli._group import FILE, FOLDER, Json, group
from sealwright.cli._keys import load_owner_key, read_secret
from sealwright.cli._output import emit, note
from sealwright.cli._signing import KeyFiles
from sealwright.crypto.document import validated
from sealwright.crypto.dsse import Envelope
from sealwright.crypto.encoding import rfc3339
from sealwright.errors import LogFormatError, SettingsError
from sealwright.ops.release import files
from sealwright.ops.release.assemble import Parts, assemble, dated, read_release
from sealwright.ops.release.contents import check_files
from sealwright.ops.release.logged import log_release
from sealwright.ops.release.manifest import PROOF, SIGNATURES, ReleaseManifest, with_signature
from sealwright.ops.release.reproduce import reproduce as build_again
from sealwright.ops.release.verify import ReleaseReport, ReleaseTrust, verify_release
from sealwright.ops.release.wheel import Source
from sealwright.tlog.keys import Signer
from sealwright.tlog.policy import MAX_POLICY, LogPolicy

app = group("Build, sign, log, build again and verify releases.")
LOCAL_BUILDER = "urn:sealwright:builder:local"

Folder = Annotated[Path, typer.Argument(metavar="RELEASE", help="Folder of the release.", **FOLDER)]
SourceDir = Annotated[Path, typer.Option("--source", help="A git checkout of the commit to build.", **FOLDER)]
Image = Annotated[Path | None, typer.Option(help="Folder of a guest image, with image.json.", **FOLDER)]
Oci = Annotated[list[Path] | None, typer.Option(help="An OCI image layout; repeat it.", **FOLDER)]
Values = Annotated[
    list[Path] | None, typer.Option("--reference-values", help="Reference values; repeat it.", **FILE)
]
Builder = Annotated[str, typer.Option(metavar="URI", help="Who builds, as provenance names it.")]


@app.command()
def build(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make; empty or absent.")],
    source: SourceDir = Path("."),
    image: Image = None,
    oci: Oci = None,
    reference_values: Values = None,
    builder: Builder = LOCAL_BUILDER,
    invocation: Annotated[str, typer.Option(metavar="URI", help="This run, where it has a URI.")] = "",
    as_json: Json = False,
) -> None:
    """Build the wheel of the checked-out commit, and put the release together. Nothing is signed yet."""
    parts = Parts(image=image, oci=oci or (), reference_values=reference_values or ())
    manifest = assemble(Source.of(source), out, parts, builder=builder, invocation=invocation)
    _emit(manifest, out, as_json)


@app.command()
def show(folder: Folder, as_json: Json = False) -> None:
    """Show what a release claims to be. Nothing is verified."""
    _emit(read_release(folder), folder, as_json)
    note("not verified: see `sealwright release verify`")


@app.command()
def sign(folder: Folder, key: KeyFiles, as_json: Json = False) -> None:
    """Sign a release that you built yourself. To sign somebody else's, build it again with `reproduce`."""
    manifest = read_release(folder)
    _, failures = check_files(folder, manifest)
    if failures:
        raise ExceptionGroup("the folder is not what the manifest says", failures)
    signed = _sign(folder, manifest, key)
    emit(
        {"file": str(folder / SIGNATURES), "signatures": signed},
        as_json=as_json,
        lines=[f"{folder / SIGNATURES}  {signed} signatures"],
    )


@app.command("log")
def log_(
    folder: Folder,
    log: Annotated[Path, typer.Option(help="Directory of the log, from `sealwright log new`.", **FOLDER)],
    log_key: Annotated[Path, typer.Option(help="The log's private key.", **FILE)],
    as_json: Json = False,
) -> None:
    """Enter a release in a log, and put the proof beside it."""
    manifest = read_release(folder)
    files.write(folder / PROOF, log_release(manifest, log, load_log_key(log_key)))
    emit({"proof": str(folder / PROOF)}, as_json=as_json, lines=[str(folder / PROOF)])


@app.command()
def reproduce(
    folder: Folder,
    source: SourceDir,
    image: Image = None,
    oci: Oci = None,
    reference_values: Values = None,
    key: Annotated[
        list[Path] | None,
        typer.Option("--key", help="Countersign with this private key; repeat it.", **FILE),
    ] = None,
    builder: Builder = LOCAL_BUILDER,
    as_json: Json = False,
) -> None:
    """Build a release again from its commit, compare every file, and countersign it if all are the same."""
    parts = Parts(image=image, oci=oci or (), reference_values=reference_values or ())
    with tempfile.TemporaryDirectory() as scratch:
        manifest, differences = build_again(
            folder, Source.of(source), parts, Path(scratch, "own"), builder=builder
        )
    if differences:
        raise ExceptionGroup("the release did not come out the same", [one.error() for one in differences])
    signed = _sign(folder, manifest, key) if key else 0
    emit(
        {"reproduced": True, "artefacts": len(manifest.artefacts), "signatures": signed},
        as_json=as_json,
        lines=[
            f"reproduced  all {len(manifest.artefacts)} artefacts of {manifest.name} {manifest.version}",
            f"signatures  {signed}" if key else "not countersigned: give --key",
        ],
    )


@app.command()
def verify(
    folder: Folder,
    signer: Annotated[list[str], typer.Option(metavar="KEY", help="A trusted key, base64url; repeat it.")],
    threshold: Annotated[int, typer.Option(min=1, max=16, help="How many of them have to have signed.")] = 2,
    log_key: Annotated[str | None, typer.Option(metavar="VKEY", help="The log's verifier key.")] = None,
    log_policy: Annotated[
        Path | None, typer.Option(help="A log policy (c2sp.org/tlog-policy).", **FILE)
    ] = None,
    reference_signer: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Who signs reference values; default: who signs releases."),
    ] = None,
    reference_threshold: Annotated[int, typer.Option(min=1, max=16, help="How many of them.")] = 1,
    at: Annotated[str | None, typer.Option(metavar="RFC3339", help="As of this time; default: now.")] = None,
    as_json: Json = False,
) -> None:
    """Check a release offline: signatures, log, every file, SBOM, provenance, reference values."""
    signers = validated(Signers, {"keys": signer, "threshold": threshold}, SettingsError)
    trust = ReleaseTrust(
        signers=signers,
        log=trusted_log(log_key, log_policy),
        reference_signers=validated(
            Signers, {"keys": reference_signer or signer, "threshold": reference_threshold}, SettingsError
        ),
    )
    report = verify_release(folder, trust, at=time_option(at, datetime.now(UTC)))
    report.require()
    _emit_report(report, signers, as_json)


def load_log_key(path: Path) -> Signer:
    """Return the log's private key in a file. Raises SettingsError, LogFormatError."""
    try:
        text = read_secret(path).decode("ascii").strip()
    except UnicodeDecodeError:
        raise LogFormatError(f"{path.name} is not a note signer key", code="malformed-key") from None
    return Signer.parse(text)


def trusted_log(key: str | None, policy: Path | None) -> LogPolicy:
    """Return the log policy of `--log-key` or `--log-policy`: one of them has to be given."""
    if key is not None and policy is None:
        return LogPolicy.of_key(key)
    if policy is not None and key is None:
        return LogPolicy.parse(files.read(policy, limit=MAX_POLICY))
    raise typer.BadParameter("give either --log-key or --log-policy")


def _sign(folder: Path, manifest: ReleaseManifest, keys: Sequence[Path]) -> int:
    """Add the signatures of `keys`; return how many there are."""
    added = Envelope.sign(manifest.PAYLOAD_TYPE, manifest.encode(), *(load_owner_key(key) for key in keys))
    path = folder / SIGNATURES
    raw = with_signature(files.read(path) if path.exists() else None, added)
    files.write(path, raw)
    return len(Envelope.parse(raw, limit=2 * files.MAX_TEXT).signatures)


def _emit(manifest: ReleaseManifest, folder: Path, as_json: bool) -> None:
    lines = [
        f"folder    {folder}",
        f"release   {manifest.name} {manifest.version}, commit {manifest.commit}",
        *[f"{one.kind:<16} {one.sha256.hex()}  {one.path}" for one in manifest.artefacts],
        f"manifest  {manifest.digest().hex()}",
    ]
    result: dict[str, object] = {
        "folder": str(folder),
        "digest": manifest.digest().hex(),
        "manifest": manifest.to_json(),
    }
    emit(result, as_json=as_json, lines=lines)


def _emit_report(report: ReleaseReport, signers: Signers, as_json: bool) -> None:
    manifest, logged = report.manifest, report.logged
    if logged is None:
        raise RuntimeError("a release without a failure is logged")
    values = [f"{one.name} {one.version}, {one.platform}" for one in report.reference_values]
    result: dict[str, object] = {
        "verified": True,
        "name": manifest.name,
        "version": manifest.version,
        "commit": manifest.commit,
        "digest": manifest.digest().hex(),
        "signed_by": report.signed_by,
        "threshold": signers.threshold,
        "log": {"origin": logged.origin, "index": logged.index, "quorum": logged.checkpoint.quorum},
        "artefacts": len(manifest.artefacts),
        "reference_values": values,
    }
    lines = [
        f"verified  {manifest.name} {manifest.version}, commit {manifest.commit} of {dated(manifest)}",
        f"signed    by {len(report.signed_by)} trusted keys, {signers.threshold} wanted",
        f"logged    entry {logged.index} of {logged.origin}, witness quorum {logged.checkpoint.quorum}",
        f"files     {len(manifest.artefacts)}, all as named",
        *[
            f"build     {one.name} {one.version}, {one.platform}, until {rfc3339(one.expires)}"
            for one in report.reference_values
        ],
    ]
    emit(result, as_json=as_json, lines=lines)
