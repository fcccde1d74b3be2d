"""Signing documents with owners' keys, for `policy`, `trust` and `refvalues`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sealwright.appraisal.yaml import load_yaml
from sealwright.cli._keys import load_owner_key
from sealwright.client.receipt_store import create_private
from sealwright.client.trust_source import read_file
from sealwright.crypto.dsse import Envelope
from sealwright.errors import SettingsError

KeyFiles = Annotated[
    list[Path],
    typer.Option(
        "--key", help="A signer's private key, from `owner-key new`; repeat it.", exists=True, dir_okay=False
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where the signed file goes; it must not exist.")]


def signed(payload: bytes, payload_type: str, keys: Sequence[Path]) -> bytes:
    """Return a DSSE envelope over `payload`. Raises SettingsError: a key cannot be read."""
    return Envelope.sign(payload_type, payload, *(load_owner_key(path) for path in keys)).encode()


def read_yaml(path: Path) -> dict[str, object]:
    """Return the mapping in a YAML file that is to be signed. Raises SettingsError."""
    return load_yaml(read_file(path))


def write_new(path: Path, raw: bytes) -> None:
    """Write a file that must not exist. Raises SettingsError `unwritable-file`."""
    try:
        create_private(path, raw)
    except OSError as exc:
        raise SettingsError(f"cannot write {path}: {exc.strerror}", code="unwritable-file") from exc
