"""`backends.json`: which key backends a broker has, where they are, and which files hold their credentials.

Spec: docs/spec/key-backends.md, Backends of a broker.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sealwright.broker.backend import embedded
from sealwright.broker.files import read_file, read_secret
from sealwright.crypto.canonical import canonical, parse_json
from sealwright.crypto.document import Name, Record, validated
from sealwright.errors import SettingsError

MAX_FILE = 1 << 20  # bytes
MAX_SECRET = 64 << 10  # bytes of a token or PIN

Path_ = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^/[^\x00]*$")]  # absolute
Url = Annotated[str, Field(min_length=8, max_length=1024, pattern=r"^https?://[!-~]+$")]
Word = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9._/-]+$")]
Timeout = Annotated[float, Field(gt=0, le=60)]  # seconds


class _Settings(Record):
    """What all have in common."""

    timeout_s: Timeout | Annotated[int, Field(gt=0, le=60)] = 5

    def digest(self) -> bytes:
        """Return SHA-256 of the canonical JSON (32 bytes): what an administrator approves."""
        return hashlib.sha256(canonical(self.to_json())).digest()


class Pkcs11Settings(_Settings):
    """A PKCS#11 token."""

    kind: Literal["pkcs11"]
    module: Path_  # the vendor's library
    token: Annotated[str, Field(min_length=1, max_length=32)]  # its label
    key: Name  # label of the root key, without -vN
    pin_file: Path_


class TransitSettings(_Settings):
    """The transit engine of Vault or OpenBao."""

    kind: Literal["transit"]
    url: Url
    key: Name
    mount: Word = "transit"
    namespace: Word | None = None
    ca_file: Path_ | None = None
    token_file: Path_ | None = None  # either this
    role_id: Word | None = None  # or AppRole
    secret_id_file: Path_ | None = None
    auth_mount: Word = "approle"


class AwsSettings(_Settings):
    """AWS KMS. Credentials come from the usual places of AWS's library."""

    kind: Literal["aws-kms"]
    region: Word
    keys: Annotated[
        list[Annotated[str, Field(max_length=255, pattern=r"^arn:[a-z-]+:kms:[!-~]+$")]],
        Field(min_length=1, max_length=64),
    ]
    url: Url | None = None  # a VPC endpoint


class AzureSettings(_Settings):
    """An Azure Managed HSM."""

    kind: Literal["azure-hsm"]
    url: Url  # https://NAME.managedhsm.azure.net
    key: Name
    client_id: Word | None = None  # of a user-assigned identity
    token_file: Path_ | None = None  # in place of the managed identity
    ca_file: Path_ | None = None


class GoogleSettings(_Settings):
    """Google Cloud KMS."""

    kind: Literal["google-kms"]
    key: Annotated[
        str,
        Field(
            max_length=512,
            pattern=r"^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[A-Za-z0-9_-]+$",
        ),
    ]
    url: Url = "https://cloudkms.googleapis.com"
    token_file: Path_ | None = None  # in place of the machine's service account
    ca_file: Path_ | None = None


Settings = Pkcs11Settings | TransitSettings | AwsSettings | AzureSettings | GoogleSettings


class BackendsFile(Record):
    """The whole file. `embedded` stands in none."""

    format: Literal["sealwright-backends/v1"]
    backends: dict[Name, Annotated[Settings, Field(discriminator="kind")]]


def load(path: Path) -> dict[str, Settings]:
    """Return the settings in a file; none, if it is not there.

    Raises:
        SettingsError: `malformed-document`, or a name that is taken: `backend-name-taken`.
    """
    raw = read_file(path, MAX_FILE)
    if raw is None:
        return {}
    parsed = parse_json(raw, limit=MAX_FILE, error=SettingsError)
    found = validated(BackendsFile, parsed, SettingsError).backends
    if embedded.NAME in found:
        raise SettingsError("a backend of the name embedded is always there", code="backend-name-taken")
    return found


def secret_of(path: str) -> str:
    """Return the PIN or token in a file that is closed to other users, without the newline at its end.

    Raises:
        SettingsError: `broker-file-missing`, `broker-files-exposed`, `backend-secret-malformed`.
    """
    raw = read_secret(Path(path), MAX_SECRET).rstrip(b"\r\n")
    if not raw or not raw.isascii() or not raw.decode("ascii").isprintable():
        raise SettingsError(f"{path} does not hold one line of text", code="backend-secret-malformed")
    return raw.decode("ascii")
