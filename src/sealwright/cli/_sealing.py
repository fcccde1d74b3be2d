"""What the commands of sealed artefacts share: where keys come from, where artefacts are, how far work has come."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from sealwright.cli._keys import load_owner_key, read_secret
from sealwright.crypto.encoding import b64url_decode, hex_decode
from sealwright.crypto.streaming import KEY_BYTES
from sealwright.errors import SettingsError, UnavailableError
from sealwright.sealing import Location, Manifest, Progress, locate
from sealwright.sealing.manifest import ID_BYTES
from sealwright.sealing.remote import is_url, locate_url

Broker = Annotated[str | None, typer.Option(help="URL of the broker that holds the key.")]
BrokerRoot = Annotated[
    str | None, typer.Option(metavar="KEY", help="The broker's root, base64url: a key by another is refused.")
]
TokenFile = Annotated[Path | None, typer.Option(help="File with the broker's admin token.")]
DekFile = Annotated[Path | None, typer.Option(help="32 raw bytes, mode 0600, in place of a broker.")]
OwnerKey = Annotated[Path, typer.Option(help="The owner's private key, from `owner-key new`.")]
Version = Annotated[int, typer.Option(min=1, help="Counts up with the content.")]
ArtefactId = Annotated[str | None, typer.Option(help="Id of the version before, hex.")]
Restart = Annotated[
    bool, typer.Option("--restart", help="Forget what a sealing left that was interrupted; else go on.")
]
Coming = Annotated[bool, typer.Option("--next", help="Under the key's next generation: `broker key rotate`.")]
Stored = Annotated[
    list[str],
    typer.Option("--store", metavar="NAME=VALUE", help="For a URL: endpoint, region, …; again for more."),
]
ManifestDigest = Annotated[
    str | None,
    typer.Option(help="This version only: its manifest digest, hex; default: any the owner signed."),
]


class KeySource:
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


def find(artefact: str, store: list[str]) -> Location:
    """Return an artefact at a path or a URL. Raises SettingsError, UnavailableError."""
    if not is_url(artefact):
        if store:
            raise typer.BadParameter("--store is for URLs")
        return locate(Path(artefact))
    options = dict(one.partition("=")[::2] for one in store)
    if not all(options.values()):
        raise typer.BadParameter("--store takes NAME=VALUE")
    return locate_url(artefact, **options)


def checked(location: Location, owner_key: Path, manifest_digest: str | None) -> Manifest:
    """Return the manifest of an artefact, signed by the owner, and of one version where it is named."""
    keys = [load_owner_key(owner_key).public_key()]
    envelope = location.envelope()
    if manifest_digest is None:
        return Manifest.verify_signed(envelope, keys)
    return Manifest.verify(envelope, keys, hex_decode(manifest_digest, length=32, error=SettingsError))


def parse_id(text: str | None) -> bytes | None:
    """Return an artefact's id. Raises SettingsError."""
    return None if text is None else hex_decode(text, length=ID_BYTES, error=SettingsError)


def described(manifest: Manifest) -> dict[str, object]:
    """Return what a manifest says in the clear."""
    return {
        "artefact_id": manifest.artefact_id.hex(),
        "version": manifest.version,
        "kid": manifest.kid,
        "files": len(manifest.lengths),
        "length": sum(manifest.lengths),
        "manifest_digest": manifest.manifest_digest.hex(),
    }


@contextmanager
def progress_bar(title: str, *, quiet: bool) -> Iterator[Progress | None]:
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
