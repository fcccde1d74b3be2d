"""`sealwright owner-key`: the keys that owners sign manifests with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from sealwright.cli._group import Json
from sealwright.cli._keys import load_owner_key
from sealwright.cli._output import emit
from sealwright.crypto.dsse import key_id
from sealwright.crypto.encoding import b64url
from sealwright.sealing.files import io_errors

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


def _emit_key(key: Ed25519PublicKey, *, as_json: bool) -> None:
    public = b64url(key.public_bytes(Encoding.Raw, PublicFormat.Raw))
    name = key_id(key)
    emit(
        {"key_id": name, "public_key": public},
        as_json=as_json,
        lines=[f"key id      {name}", f"public key  {public}"],
    )
