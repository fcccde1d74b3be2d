"""Which packages images are made of: each by name, version and SHA-256. Nothing else gets in.

Spec: docs/spec/container-image.md, Lock.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sealwright.crypto.canonical import parse_json
from sealwright.crypto.document import Digest, Record, Time, validated
from sealwright.errors import SettingsError, UnavailableError, VerificationError

# A container image; a guest's root, initrd, kernel and boot stub; what runs while a guest image is built.
Part = Literal["broker", "enclave", "client", "guest", "initrd", "kernel", "stub", "tools"]
MAX_LOCK = 1 << 20  # bytes
MAX_PACKAGE = 1 << 30  # bytes
File = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+~%-]{0,200}$")]
Text = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+~:-]{0,120}$")]


class Package(Record):
    """A Debian package or a wheel, and what it goes into."""

    file: File
    name: Text
    version: Text
    sha256: Digest
    images: Annotated[list[Part], Field(min_length=1)]


class Lock(Record):
    """The lock file."""

    format: Literal["sealwright-oci-lock/v1"]
    at: Time  # of every file and image that is built from it
    architecture: Literal["amd64", "arm64"]
    debian: Annotated[list[Package], Field(min_length=1, max_length=1000)]
    wheels: Annotated[list[Package], Field(min_length=1, max_length=1000)]

    @property
    def seconds(self) -> int:
        """`at` as seconds since 1970."""
        at: datetime = self.at
        return int(at.timestamp())


def read_lock(path: Path) -> Lock:
    """Return a lock. Raises SettingsError; UnavailableError: `input-unreadable`."""
    raw = read_package(path, limit=MAX_LOCK)
    return validated(Lock, parse_json(raw, limit=MAX_LOCK, error=SettingsError), SettingsError)


def pinned(folder: Path, package: Package) -> bytes:
    """Return the bytes of a package in `folder`.

    Raises:
        UnavailableError: `input-unreadable`. VerificationError: `package-digest`: it is another one.
    """
    raw = read_package(folder / package.file, limit=MAX_PACKAGE)
    if not hmac.compare_digest(hashlib.sha256(raw).digest(), package.sha256):
        raise VerificationError(
            f"{package.file} is not the file that the lock names", code="package-digest", stage="packages"
        )
    return raw


def read_package(path: Path, *, limit: int) -> bytes:
    """Return a file of at most `limit` bytes. Raises UnavailableError, SettingsError: `too-large`."""
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as exc:
        raise UnavailableError(
            f"cannot read {path}: {exc.strerror}", code="input-unreadable", stage="packages"
        ) from exc
    if len(raw) > limit:
        raise SettingsError(f"{path} is over the limit of {limit} bytes", code="too-large", stage="packages")
    return raw
