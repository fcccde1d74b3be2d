"""`sealwright seal`, `open` and `rewrap`: the owner's side of sealed artefacts."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from sealwright.cli._group import Json
from sealwright.cli._keys import load_model_key, load_owner_key
from sealwright.cli._output import emit
from sealwright.cli._sealing import (
    ArtefactId,
    Broker,
    BrokerRoot,
    Coming,
    DekFile,
    KeySource,
    ManifestDigest,
    OwnerKey,
    Restart,
    Stored,
    TokenFile,
    Version,
    checked,
    described,
    find,
    parse_id,
    progress_bar,
)
from sealwright.errors import SettingsError
from sealwright.sealing import (
    Manifest,
    Progress,
    Sealing,
    locate,
    manifest_path,
    open_to_folder,
    rewrap,
    seal_folder,
)
from sealwright.sealing.draft import discard_draft
from sealwright.sealing.files import NewFile
from sealwright.sealing.location import MANIFEST, LocalFolder
from sealwright.sealing.open import open_into
from sealwright.sealing.remote import RemoteFolder
from sealwright.sealing.rewrap import has_sha256
from sealwright.sealing.seal import seal_one

Artefact = Annotated[
    str, typer.Argument(help="NAME.sealed, a file beside its manifest or a folder; or a URL, such as s3://…")
]


def seal(
    path: Annotated[Path, typer.Argument(help="The file or folder to seal.", exists=True)],
    owner_key: OwnerKey,
    out: Annotated[Path | None, typer.Option(help="Folder for the result; default: beside PATH.")] = None,
    kid: Annotated[str | None, typer.Option(help="Name of the key; default: the file's name.")] = None,
    broker: Broker = None,
    broker_root: BrokerRoot = None,
    token_file: TokenFile = None,
    dek_file: DekFile = None,
    artefact_version: Version = 1,
    artefact_id: ArtefactId = None,
    coming: Coming = False,
    sha256: Annotated[bool, typer.Option("--sha256", help="Add a SHA-256 digest (slower).")] = False,
    model_key: Annotated[
        Path | None,
        typer.Option(help="EC key that signs a folder's files: `model_signing verify key` accepts it."),
    ] = None,
    restart: Restart = False,
    as_json: Json = False,
) -> None:
    """Seal a file or a folder so that only attested code can open it.

    A file becomes NAME.sealed and its signed manifest NAME.sealed.json, a folder the folder NAME.sealed. When it is
    interrupted, the same command goes on where it was. With --broker the key comes from the broker, which then admits
    the manifest.
    """
    path = path.absolute()
    name = kid or path.name
    artefact = (out or path.parent) / f"{path.name}.sealed"
    signer = load_owner_key(owner_key)
    model = None if model_key is None else load_model_key(model_key)
    if model is not None and not path.is_dir():
        raise typer.BadParameter("--model-key signs the files of a folder")
    key_source = KeySource(broker, broker_root, token_file, dek_file)
    sealing = Sealing(
        dek=key_source.fetch(name, coming=coming),
        kid=name,
        signer=signer,
        version=artefact_version,
        artefact_id=parse_id(artefact_id),
        sha256=sha256,
        resume=True,
    )
    if restart:
        discard_draft(artefact)
    with progress_bar("Sealing", quiet=as_json) as progress:
        manifest = _seal(path, artefact, sealing, model, progress)
    admitted = key_source.admit(name, locate(artefact).envelope(), signer.public_key().public_bytes_raw())
    _report(artefact, manifest, broker if admitted else None, as_json=as_json)


def open_(
    artefact: Artefact,
    owner_key: OwnerKey,
    to: Annotated[Path, typer.Option(help="File to write, mode 0600, or the folder to make.")],
    broker: Broker = None,
    broker_root: BrokerRoot = None,
    token_file: TokenFile = None,
    dek_file: DekFile = None,
    manifest_digest: ManifestDigest = None,
    store: Stored = [],  # noqa: B006 - typer reads it
    as_json: Json = False,
) -> None:
    """Open a sealed file or folder with the owner's key. The broker logs that its key was asked for."""
    location = find(artefact, store)
    manifest = checked(location, owner_key, manifest_digest)
    dek = KeySource(broker, broker_root, token_file, dek_file).fetch(manifest.kid)
    with progress_bar("Opening", quiet=as_json) as progress:
        if isinstance(location, LocalFolder | RemoteFolder):
            open_to_folder(location, manifest, dek, to, progress=progress)
        else:
            open_into(location.ciphertext(0), manifest, dek, NewFile(to, mode=0o600), progress=progress)
    result = {"artefact": artefact, **described(manifest), "to": str(to)}
    lines = [
        f"opened  {to} ({_size(manifest)}), version {manifest.version} of {manifest.kid}",
    ]
    emit(result, as_json=as_json, lines=lines)


def rewrap_(
    artefact: Artefact,
    owner_key: OwnerKey,
    to: Annotated[Path, typer.Option(help="NAME.sealed to make: a file or a folder, as the artefact is.")],
    kid: Annotated[str, typer.Option(help="Name of the new key.")],
    broker: Broker = None,
    broker_root: BrokerRoot = None,
    token_file: TokenFile = None,
    dek_file: DekFile = None,
    new_dek_file: Annotated[
        Path | None, typer.Option(help="The new key, with --dek-file for the old one.")
    ] = None,
    artefact_version: Version = 1,
    artefact_id: ArtefactId = None,
    coming: Coming = False,
    manifest_digest: ManifestDigest = None,
    store: Stored = [],  # noqa: B006 - typer reads it
    restart: Restart = False,
    as_json: Json = False,
) -> None:
    """Seal an artefact anew under another key, without its plaintext touching a disk.

    This is what shuts out who had the old key: it opens the old ciphertext for ever, and nothing new.
    """
    if (dek_file is None) != (new_dek_file is None):
        raise typer.BadParameter("--dek-file and --new-dek-file belong together")
    location = find(artefact, store)
    manifest = checked(location, owner_key, manifest_digest)
    old = KeySource(broker, broker_root, token_file, dek_file).fetch(manifest.kid)
    key_source = KeySource(broker, broker_root, token_file, new_dek_file)
    new = key_source.fetch(kid, coming=coming)
    if hmac.compare_digest(old, new):
        raise SettingsError("the new key is the old one: nobody is shut out by it", code="same-key")
    signer = load_owner_key(owner_key)
    sealing = Sealing(
        dek=new,
        kid=kid,
        signer=signer,
        version=artefact_version,
        artefact_id=parse_id(artefact_id),
        sha256=has_sha256(manifest, old),
        resume=True,
    )
    if restart:
        discard_draft(to)
    folder = isinstance(location, LocalFolder | RemoteFolder)
    with progress_bar("Sealing anew", quiet=as_json) as progress:
        made = rewrap(location, manifest, old, to, sealing, as_folder=folder, progress=progress)
    admitted = key_source.admit(kid, locate(to).envelope(), signer.public_key().public_bytes_raw())
    _report(to, made, broker if admitted else None, as_json=as_json)


def _seal(
    path: Path,
    artefact: Path,
    sealing: Sealing,
    model: EllipticCurvePrivateKey | None,
    progress: Progress | None,
) -> Manifest:
    if path.is_dir():
        return seal_folder(path, artefact, sealing, model_key=model, progress=progress)
    return seal_one(path, artefact, sealing, progress=progress)


def _report(artefact: Path, manifest: Manifest, broker: str | None, *, as_json: bool) -> None:
    where = artefact / MANIFEST if artefact.is_dir() else manifest_path(artefact)
    result = {
        "artefact": str(artefact),
        "manifest": str(where),
        **described(manifest),
        "admitted": broker is not None,
    }
    lines = [
        f"sealed    {artefact} ({_size(manifest)}) under {manifest.kid}",
        f"manifest  {where}, version {manifest.version}",
        f"digest    {manifest.manifest_digest.hex()}",
        f"admitted  by {broker}" if broker is not None else "admitted  not yet: no broker was named",
    ]
    emit(result, as_json=as_json, lines=lines)


def _size(manifest: Manifest) -> str:
    files = len(manifest.lengths)
    return f"{sum(manifest.lengths)} bytes" + (f" in {files} files" if files > 1 else "")
