"""A broker's directory: what lies where, and its keys. Spec: docs/how-to/run-a-broker.md."""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Self

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from joserfc.jwk import ECKey
from pydantic import Field

from sealwright.broker.files import check_private, read_secret, write_file
from sealwright.crypto.document import Digest, Document, Time
from sealwright.crypto.encoding import b64url, b64url_decode, digest
from sealwright.crypto.hpke import HpkePrivateKey, Kem
from sealwright.errors import SettingsError
from sealwright.protocol.lease import EarKey
from sealwright.tlog.keys import Signer

SEED_BYTES = 32
TOKEN_BYTES = 32


class SettingsFile(Document):
    """`settings.json`: nothing secret, nothing that decides but the admin token's digest."""

    format: Literal["sealwright-broker/v1"] = "sealwright-broker/v1"
    origin: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._/-]+$")]
    created: Time
    admin_token: Digest  # H("sealwright/admin-token/v1", token)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The files of a broker's directory."""

    root: Path

    @property
    def settings(self) -> Path:
        """Settings, canonical JSON."""
        return self.root / "settings.json"

    @property
    def database(self) -> Path:
        """SQLite."""
        return self.root / "broker.sqlite"

    @property
    def log(self) -> Path:
        """The log's directory."""
        return self.root / "log"

    @property
    def openings(self) -> Path:
        """Openings of what the log holds."""
        return self.root / "openings"

    @property
    def admin_token(self) -> Path:
        """The admin token; move it to where the administrator is."""
        return self.root / "admin-token"

    @property
    def backends(self) -> Path:
        """Key backends other than the embedded one, if any."""
        return self.root / "backends.json"

    def key(self, name: str) -> Path:
        """The private key `name`."""
        return self.root / "keys" / name


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSecrets:
    """The broker's private keys."""

    root: Ed25519PrivateKey = field(repr=False)
    release: Ed25519PrivateKey = field(repr=False)
    ear: ECKey = field(repr=False)
    journal: HpkePrivateKey = field(repr=False)
    log: Signer = field(repr=False)
    admin_token: bytes = field(repr=False)  # digest, 32 bytes

    @property
    def root_public(self) -> bytes:
        """The root's public key, 32 bytes: what configs, policies and trust files name."""
        return self.root.public_key().public_bytes_raw()

    @property
    def log_key(self) -> str:
        """The log's verifier key."""
        return self.log.vkey.encode()

    def ear_public(self) -> EarKey:
        """The key that results are signed with, as a JWK."""
        jwk = self.ear.as_dict(private=False)
        return EarKey(x=b64url_decode(str(jwk["x"]), length=32), y=b64url_decode(str(jwk["y"]), length=32))

    @classmethod
    def load(cls, layout: Layout) -> Self:
        """Read a broker's keys.

        Raises:
            SettingsError: something is missing, malformed, or other users can reach it.
        """
        for directory in (layout.root, layout.root / "keys"):
            if not directory.is_dir():
                raise SettingsError(
                    f"{directory} is not there; make it with `broker init`", code="broker-file-missing"
                )
            check_private(directory)
        settings = SettingsFile.parse(read_secret(layout.settings), error=SettingsError)
        return cls(
            root=Ed25519PrivateKey.from_private_bytes(_seed(layout, "root")),
            release=Ed25519PrivateKey.from_private_bytes(_seed(layout, "release")),
            ear=_ear_key(read_secret(layout.key("ear"))),
            journal=HpkePrivateKey.from_seed(Kem.XWING, _seed(layout, "journal")),
            log=Signer(name=settings.origin, key=Ed25519PrivateKey.from_private_bytes(_seed(layout, "log"))),
            admin_token=settings.admin_token,
        )

    def check_token(self, token: str) -> bool:
        """Say whether `token` is the administrator's, in constant time."""
        return hmac.compare_digest(token_digest(token), self.admin_token)


def token_digest(token: str) -> bytes:
    """Return what is kept of the admin token (32 bytes)."""
    return digest("sealwright/admin-token/v1", token)


def make_directory(layout: Layout, *, origin: str | None, at: object) -> None:
    """Make a broker's directory with fresh keys; nothing that exists is touched.

    Args:
        origin: the log's name; default: from the root's public key.

    Raises:
        SettingsError: `broker-exists`, or a bad origin.
    """
    if layout.root.exists() and any(layout.root.iterdir()):
        raise SettingsError(f"{layout.root} is not empty", code="broker-exists")
    layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    layout.root.chmod(0o700)
    for directory in (layout.root / "keys", layout.openings, layout.log):
        directory.mkdir(mode=0o700)
    for name in ("root", "release", "journal", "log", "kek"):
        write_file(layout.key(name), os.urandom(SEED_BYTES))
    pem = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_file(layout.key("ear"), pem)
    token = f"swa_{b64url(os.urandom(TOKEN_BYTES))}"
    write_file(layout.admin_token, f"{token}\n".encode())
    root = Ed25519PrivateKey.from_private_bytes(_seed(layout, "root")).public_key().public_bytes_raw()
    name = origin or f"sealwright/{hashlib.sha256(root).hexdigest()[:16]}"
    settings = SettingsFile.from_json(
        {"format": "sealwright-broker/v1", "origin": name, "created": at, "admin_token": token_digest(token)},
        error=SettingsError,
    )
    write_file(layout.settings, settings.encode())


def _seed(layout: Layout, name: str) -> bytes:
    seed = read_secret(layout.key(name))
    if len(seed) != SEED_BYTES:
        raise SettingsError(f"key {name} does not have {SEED_BYTES} bytes", code="broker-key-malformed")
    return seed


def _ear_key(pem: bytes) -> ECKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise SettingsError("key ear is not a P-256 key in PEM", code="broker-key-malformed")
    return ECKey.import_key(pem)
