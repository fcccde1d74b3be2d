"""Keys and secrets in files: bounded, and refused where others may read them."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sealwright.errors import SettingsError
from sealwright.sealing.files import io_errors

MAX_SECRET_FILE = 16 << 10  # bytes


def read_secret(path: Path) -> bytes:
    """Return the bytes of a file that only its owner may read. Raises SettingsError, UnavailableError."""
    with io_errors("input-unreadable", f"cannot read {path.name}"), path.open("rb") as stream:
        mode = os.fstat(stream.fileno()).st_mode
        raw = stream.read(MAX_SECRET_FILE + 1)
    if os.name == "posix" and mode & 0o077:
        raise SettingsError(
            f"others may read {path.name}: chmod 600 it, and think about a new secret", code="secret-exposed"
        )
    if len(raw) > MAX_SECRET_FILE:
        raise SettingsError(f"{path.name} is too large for a secret", code="too-large")
    return raw


def load_owner_key(path: Path) -> Ed25519PrivateKey:
    """Return the Ed25519 key of `owner-key new`. Raises SettingsError, UnavailableError."""
    key = _load(path, "malformed-owner-key")
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(f"{path.name} is not an Ed25519 key", code="malformed-owner-key")
    return key


def load_model_key(path: Path) -> EllipticCurvePrivateKey:
    """Return an EC key that signs models. Raises SettingsError, UnavailableError."""
    key = _load(path, "wrong-model-key")
    if not isinstance(key, EllipticCurvePrivateKey):
        raise SettingsError(f"{path.name} is not an EC key", code="wrong-model-key")
    return key


def _load(path: Path, code: str) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(read_secret(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise SettingsError(f"{path.name} is not a private key in PEM", code=code) from None
