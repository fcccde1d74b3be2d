"""The quoting root on disk: made once in a private directory, used at each start.

`root.key` PKCS #8, `root.crt` DER, `revoked` one hex serial a line. Readable by its owner only; whoever
runs as the same user can read it too, which the claim `user: shared` says.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from sealwright.attester.quoter.authority import Authority, new_authority
from sealwright.errors import UnavailableError

_ROOT_STATE = Path("/var/lib/sealwright")
_SERIAL = re.compile(r"[0-9a-f]{1,40}")


def default_state() -> Path:
    """Return where the root lies: `$SEALWRIGHT_STATE`, root's /var/lib/sealwright, or the user's state."""
    chosen = os.environ.get("SEALWRIGHT_STATE")
    if chosen:
        return Path(chosen)
    return _ROOT_STATE if os.geteuid() == 0 else Path.home() / ".local/state/sealwright"


def quoting_root(state: Path, now: datetime) -> Authority:
    """Return the machine's quoting root, made now if there is none.

    Raises:
        UnavailableError: the directory belongs to others, is open to others, or cannot be used.
    """
    try:
        folder = _private(state) / "quoter"
        folder.mkdir(mode=0o700, exist_ok=True)
        with _locked(folder):
            if not (folder / "root.crt").exists():
                _create(folder, new_authority(now))
            return _load(folder)
    except (OSError, ValueError, TypeError) as exc:
        raise UnavailableError(
            f"the quoting root in {state} cannot be used ({type(exc).__name__}: {exc})",
            code="quoter-state",
            stage="state",
        ) from exc


def root_fingerprint(state: Path, now: datetime) -> bytes:
    """Return SHA-256 of this machine's quoting root certificate (32 bytes), what policies name."""
    return hashlib.sha256(quoting_root(state, now).root.public_bytes(Encoding.DER)).digest()


def revoke(state: Path, serial: int) -> None:
    """Put a quoting certificate on the CRL of the next start."""
    folder = _private(state) / "quoter"
    with _locked(folder), (folder / "revoked").open("a", encoding="ascii") as file:
        file.write(f"{serial:x}\n")


def _private(state: Path) -> Path:
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = state.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise UnavailableError(
            f"{state} must belong to this user and have mode 0700", code="quoter-state", stage="state"
        )
    return state


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _create(folder: Path, authority: Authority) -> None:
    key = authority.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    for name, content in (("root.key", key), ("root.crt", authority.root.public_bytes(Encoding.DER))):
        new = folder / f"{name}.new"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        new.rename(folder / name)


def _load(folder: Path) -> Authority:
    key = load_der_private_key((folder / "root.key").read_bytes(), password=None)
    root = x509.load_der_x509_certificate((folder / "root.crt").read_bytes())
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != root.public_key():
        raise ValueError("root.key and root.crt do not belong together")
    return Authority(key=key, root=root, revoked=_revoked(folder / "revoked"))


def _revoked(path: Path) -> tuple[int, ...]:
    lines = path.read_text(encoding="ascii").split() if path.exists() else []
    if not all(_SERIAL.fullmatch(line) for line in lines):
        raise ValueError("revoked has a line that is no serial number")
    return tuple(int(line, 16) for line in lines)
