"""`sealwright seal`, `open` and `owner-key`: the owner's side of sealed artefacts."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from sealwright.cli._keys import load_owner_key, read_secret
from sealwright.cli._output import emit
from sealwright.crypto.dsse import key_id
from sealwright.crypto.encoding import b64url, b64url_decode, hex_decode
from sealwright.crypto.streaming import KEY_BYTES
from sealwright.errors import SettingsError, UnavailableError
from sealwright.sealing import (
    Manifest,
    Progress,
    manifest_path,
    open_to_file,
    read_manifest,
    seal_file,
)
from sealwright.sealing.files import io_errors
from sealwright.sealing.manifest import ID_BYTES

Broker = Annotated[str | None, typer.Option(help="URL of the broker that holds the key.")]
BrokerRoot = Annotated[
    str | None, typer.Option(metavar="KEY", help="The broker's root, base64url: a key by another is refused.")
]
TokenFile = Annotated[Path | None, typer.Option(help="File with the broker's admin token.")]
DekFile = Annotated[Path | None, typer.Option(help="32 raw bytes, mode 0600, in place of a broker.")]
OwnerKey = Annotated[Path, typer.Option(help="The owner's private key, from `owner-key new`.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def seal(
    path: Annotated[Path, typer.Argument(help="The file to seal.")],
    owner_key: OwnerKey,
    out: Annotated[Path | None, typer.Option(help="Folder for the result; default: beside PATH.")] = None,
    kid: Annotated[str | None, typer.Option(help="Name of the key; default: the file's name.")] = None,
    broker: Broker = None,
    broker_root: BrokerRoot = None,
    token_file: TokenFile = None,
    dek_file: DekFile = None,
    artefact_version: Annotated[int, typer.Option(min=1, help="Counts up with the content.")] = 1,
    artefact_id: Annotated[str | None, typer.Option(help="Id of the version before, hex.")] = None,
    coming: Annotated[
        bool, typer.Option("--next", help="Under the key's next generation: `broker key rotate`.")
    ] = False,
    sha256: Annotated[bool, typer.Option("--sha256", help="Add a SHA-256 digest (slower).")] = False,
    as_json: Json = False,
) -> None:
    """Seal a file so that only attested code can open it.

    Writes NAME.sealed and its signed manifest NAME.sealed.json. With --broker the key comes from the
    broker, which then admits the manifest.
    """
    name = kid or path.name
    artefact = (out or path.parent) / f"{path.name}.sealed"
    identity = None if artefact_id is None else hex_decode(artefact_id, length=ID_BYTES, error=SettingsError)
    signer = load_owner_key(owner_key)
    key_source = _KeySource(broker, broker_root, token_file, dek_file)
    dek = key_source.fetch(name, coming=coming)
    with _progress("Sealing", quiet=as_json) as progress:
        manifest = seal_file(
            path,
            artefact,
            dek=dek,
            kid=name,
            signer=signer,
            version=artefact_version,
            progress=progress,
            artefact_id=identity,
            sha256=sha256,
        )
    public = signer.public_key().public_bytes_raw()
    admitted = key_source.admit(name, read_manifest(artefact), public)
    result = {**_describe(artefact, manifest), "admitted": admitted}
    lines = [
        f"sealed    {artefact} ({manifest.lengths[0]} bytes) under {name}",
        f"manifest  {manifest_path(artefact)}, version {manifest.version}",
        f"digest    {manifest.manifest_digest.hex()}",
        f"admitted  by {broker}" if admitted else "admitted  not yet: no broker was named",
    ]
    emit(result, as_json=as_json, lines=lines)


def open_(
    artefact: Annotated[Path, typer.Argument(help="NAME.sealed, with NAME.sealed.json beside it.")],
    owner_key: OwnerKey,
    to: Annotated[Path, typer.Option(help="File to write, mode 0600.")],
    broker: Broker = None,
    broker_root: BrokerRoot = None,
    token_file: TokenFile = None,
    dek_file: DekFile = None,
    manifest_digest: Annotated[
        str | None, typer.Option(help="Open this version only: its manifest digest, hex.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Open a sealed file with the owner's key. The broker logs that its key was asked for.

    Without --manifest-digest any version that the owner signed is opened.
    """
    keys = [load_owner_key(owner_key).public_key()]
    envelope = read_manifest(artefact)
    if manifest_digest is None:
        manifest = Manifest.verify_signed(envelope, keys)
    else:
        expected = hex_decode(manifest_digest, length=32, error=SettingsError)
        manifest = Manifest.verify(envelope, keys, expected)
    dek = _KeySource(broker, broker_root, token_file, dek_file).fetch(manifest.kid)
    with _progress("Opening", quiet=as_json) as progress:
        open_to_file(artefact, manifest, dek, to, progress=progress)
    result = {**_describe(artefact, manifest), "to": str(to)}
    lines = [f"opened  {to} ({manifest.lengths[0]} bytes), version {manifest.version} of {manifest.kid}"]
    emit(result, as_json=as_json, lines=lines)


owner_key = typer.Typer(
    help="Make and show the owner's keys.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)


@owner_key.command("new")
def owner_key_new(
    file: Annotated[Path, typer.Argument(help="File to make; never overwritten.")], as_json: Json = False
) -> None:
    """Make an owner's key (Ed25519, PKCS #8 PEM, mode 0600) and print its public half."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with io_errors("output-failed", f"cannot make {file.name}"):
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as stream:
            stream.write(pem)
    _emit_key(key.public_key(), as_json=as_json)


@owner_key.command("show")
def owner_key_show(
    file: Annotated[Path, typer.Argument(help="The owner's private key.")], as_json: Json = False
) -> None:
    """Print the public half of an owner's key."""
    _emit_key(load_owner_key(file).public_key(), as_json=as_json)


class _KeySource:
    """Where the DEK comes from: a broker, or a file."""

    def __init__(
        self, broker: str | None, root: str | None, token_file: Path | None, dek_file: Path | None
    ) -> None:
        if (broker is None) == (dek_file is None):
            raise typer.BadParameter(
                "give either --broker with --broker-root and --token-file, or --dek-file"
            )
        if not (broker is None) == (root is None) == (token_file is None):
            raise typer.BadParameter("--broker, --broker-root and --token-file belong together")
        self._root = None if root is None else b64url_decode(root, length=32, error=SettingsError)
        self._dek_file = dek_file
        self._broker = broker
        self._token = "" if token_file is None else _read_token(token_file)

    def fetch(self, kid: str, *, coming: bool = False) -> bytes:
        """Return the DEK, 32 bytes; of the key's next generation where it is `coming`."""
        if self._dek_file is None:
            ask = _admin().fetch_sealing_key
            key: bytes = ask(self._broker, self._token, kid, root=self._root, coming=coming)
            return key
        dek = read_secret(self._dek_file)
        if len(dek) != KEY_BYTES:
            raise SettingsError(f"{self._dek_file.name} does not have 32 bytes", code="wrong-length")
        return dek

    def admit(self, kid: str, envelope: bytes, owner_key: bytes) -> bool:
        """Ask the broker to admit the manifest; return whether there was a broker to ask.

        Args:
            owner_key: Ed25519, 32 bytes; the broker pins it with the tenant's first manifest.
        """
        if self._broker is None:
            return False
        _admin().admit_manifest(self._broker, self._token, kid, envelope, owner_key=owner_key)
        return True


def _admin() -> Any:
    name = "sealwright.client.admin"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name != name:
            raise
        raise UnavailableError("this build cannot talk to a broker", code="no-admin-client") from exc


def _read_token(path: Path) -> str:
    try:
        token = read_secret(path).decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not token or not token.isprintable():
        raise SettingsError(f"{path.name} does not hold a token", code="malformed-admin-token")
    return token


def _emit_key(key: Ed25519PublicKey, *, as_json: bool) -> None:
    public = b64url(key.public_bytes(Encoding.Raw, PublicFormat.Raw))
    name = key_id(key)
    emit(
        {"key_id": name, "public_key": public},
        as_json=as_json,
        lines=[f"key id      {name}", f"public key  {public}"],
    )


def _describe(artefact: Path, manifest: Manifest) -> dict[str, object]:
    return {
        "artefact": str(artefact),
        "artefact_id": manifest.artefact_id.hex(),
        "version": manifest.version,
        "kid": manifest.kid,
        "length": manifest.lengths[0],
        "manifest": str(manifest_path(artefact)),
        "manifest_digest": manifest.manifest_digest.hex(),
    }


@contextmanager
def _progress(title: str, *, quiet: bool) -> Iterator[Progress | None]:
    """Give a progress bar on stderr, or nothing where nobody would see it."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)
