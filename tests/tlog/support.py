"""What the log tests share: where other people's vectors lie, and fixed keys."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.tlog.keys import Cosigner, Signer
from sealwright.tlog.policy import LogPolicy
from sealwright.tlog.posix import PosixLog

ROOT = Path(__file__).resolve().parents[2]


def vectors_root() -> Path:
    return Path(os.environ.get("SEALWRIGHT_VECTORS", ROOT.parent / "shared" / "vectors")) / "tlog"


SIGNER = Signer(name="log.example/main", key=Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
POLICY = LogPolicy.of_key(SIGNER.vkey.encode())


def witness(number: int) -> Cosigner:
    key = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
    return Cosigner(name=f"witness{number}.example", key=key)


def entry(index: int) -> bytes:
    return b"entry %d" % index


def filled(root: Path, size: int, *, batch: int = 1024) -> PosixLog:
    """Return an open log of `size` numbered entries."""
    log = PosixLog.open(root, SIGNER, create=True)
    for start in range(0, size, batch):
        log.append([entry(i) for i in range(start, min(size, start + batch))])
    return log
