"""What the bare wheel is tried on: made by the full source tree, verified by the wheel alone."""

from __future__ import annotations

import shutil
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.tlog.keys import Signer
from sealwright.tlog.posix import PosixLog

ENTRIES = 300  # one full tile, and a partial one


def make(folder: Path) -> dict[str, str]:
    """Write the fixtures into `folder`, an empty one; return the values that cases name in braces."""
    return {"fixtures": str(folder)} | _log(folder)


def _log(folder: Path) -> dict[str, str]:
    signer = Signer(name="log.example/bare", key=Ed25519PrivateKey.generate())
    with PosixLog.open(folder / "log", signer, create=True) as log:
        log.append([b"entry %d" % index for index in range(ENTRIES)])
    shutil.copytree(folder / "log", folder / "edited-log")
    (entries,) = (folder / "edited-log" / "tile" / "entries").glob("000")
    raw = bytearray(entries.read_bytes())
    raw[-1] ^= 1
    entries.write_bytes(raw)
    (folder / "weights").write_bytes(b"planted" * 1000)
    dek = folder / "dek"
    dek.touch(mode=0o600)
    dek.write_bytes(bytes(range(32)))
    return {"log_key": signer.vkey.encode()}
