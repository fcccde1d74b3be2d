"""Record a broker and a sealed artefact as this version writes them: tests open them with every later version.

python scripts/record_formats.py NAME    write tests/broker/formats/NAME.tar.gz, which must not exist

Run it once for a release whose formats differ from those that are recorded. The keys in it are test keys.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.broker.service import Running, init_broker, open_broker
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.crypto.hpke import HpkePrivateKey, Kem, open_from
from sealwright.protocol.sealing_key import SealingKey
from sealwright.sealing.open import read_manifest
from sealwright.sealing.seal import seal_file

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "broker" / "formats"
AT = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
PLAIN = b"what the artefact holds\n"


def main() -> int:
    """Run as the module's docstring says."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    out = OUT / f"{sys.argv[1]}.tar.gz"
    if out.exists():
        print(f"{out} exists: what was recorded is not recorded again", file=sys.stderr)
        return 1
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record(folder)
        with tarfile.open(out, "w:gz") as tar:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.name.endswith(("-wal", "-shm", "lock")):
                    _add(tar, str(path.relative_to(folder)), path.read_bytes())
    return 0


def record(folder: Path) -> None:
    """Make a broker with three keys, of which one is revoked, and an artefact under the first."""
    secrets = init_broker(folder / "broker", holder=folder / "held", clock=lambda: AT)
    owner = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    policy = json.dumps(_policy(secrets.root_public, secrets.log_key)).encode()
    with open_broker(folder / "broker", holder=folder / "held", clock=lambda: AT) as running:
        for kid in ("k1", "k2", "k3"):
            running.admin.create_key("acme", kid, "model", policy)
        running.admin.revoke_key("k2")
        running.admin.add_caller("acme", "anna")
        _seal(folder, running, owner)
    _checkpointed(folder / "broker" / "broker.sqlite")
    said = {
        "root": b64url(secrets.root_public),
        "log_key": secrets.log_key,
        "owner": b64url(owner.public_key().public_bytes_raw()),
    }
    (folder / "recorded.json").write_text(json.dumps(said))


def _seal(folder: Path, running: Running, owner: Ed25519PrivateKey) -> None:
    private = HpkePrivateKey.generate(Kem.XWING)
    envelope = running.admin.sealing_key("k1", private.public.raw)
    said = SealingKey.unverified(envelope)
    dek = open_from(private, said.enc, said.hpke_info(), b"", said.ciphertext)
    (folder / "plain.txt").write_bytes(PLAIN)
    sealed = folder / "plain.txt.sealed"
    seal_file(folder / "plain.txt", sealed, dek=dek, kid="k1", signer=owner, version=1)
    public = owner.public_key().public_bytes_raw()
    running.admin.admit("k1", read_manifest(sealed), owner_key=public, force=False)


def _policy(root: bytes, log_key: str) -> dict[str, object]:
    software = {
        "vector": {"hardware": 97, "runtime-opaque": 96},
        "roots": [bytes(32).hex()],
        "code": [bytes(32).hex()],
    }
    return {
        "format": "sealwright-policy/v1",
        "version": 1,
        "profile": "demo",
        "require_hardware": False,
        "created": rfc3339(AT),
        "expires": rfc3339(AT + timedelta(hours=20)),
        "platforms": {"software": software},
        "config": {"brokers": [b64url(root)], "log_keys": [log_key]},
        "lease_s": 600,
    }


def _checkpointed(database: Path) -> None:
    """Bring what is in the write-ahead log into the file."""
    import sqlite3

    with closing(sqlite3.connect(database)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _add(tar: tarfile.TarFile, name: str, raw: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(raw), 0o600
    tar.addfile(member, io.BytesIO(raw))


if __name__ == "__main__":
    sys.exit(main())
