"""Reading what the user names: bounded, and with an error that names the file."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import typer

from sealwright.appraisal.policy import TrustFile
from sealwright.client.trust_source import read_file
from sealwright.crypto.encoding import hex_decode, rfc3339_decode
from sealwright.errors import FormatError

MAX_INPUT = 4 << 20  # bytes


def load_trust(path: Path) -> TrustFile:
    """Return the trust file at `path`. Raises SettingsError."""
    return TrustFile.load(read_file(path))


def read_input(path: Path) -> bytes:
    """Return the bytes of a file to verify. Raises SettingsError."""
    return read_file(path, limit=MAX_INPUT)


def time_option(text: str | None, default: datetime) -> datetime:
    """Return the time of `--at`, or `default`."""
    if text is None:
        return default
    try:
        return rfc3339_decode(text)
    except FormatError as exc:
        raise typer.BadParameter(str(exc), param_hint="--at") from None


def hex_option(text: str | None, length: int, name: str) -> bytes | None:
    """Return the `length` bytes of a hex option, or None."""
    if text is None:
        return None
    try:
        return hex_decode(text, length=length)
    except FormatError as exc:
        raise typer.BadParameter(str(exc), param_hint=name) from None
