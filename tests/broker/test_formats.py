"""Brokers and artefacts that earlier versions wrote (scripts/record_formats.py), opened and gone on with."""

from __future__ import annotations

import json
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sealwright.broker.service import open_broker
from sealwright.crypto.encoding import b64url, b64url_decode
from sealwright.crypto.hpke import HpkePrivateKey, Kem, open_from
from sealwright.crypto.statement import ed25519
from sealwright.protocol.sealing_key import SealingKey
from sealwright.sealing.manifest import Manifest
from sealwright.sealing.open import open_to_file, read_manifest

FORMATS = sorted((Path(__file__).parent / "formats").glob("*.tar.gz"))
AT = datetime(2026, 6, 1, 13, 0, 0, tzinfo=UTC)


def test_something_is_recorded() -> None:
    assert [path.name for path in FORMATS] == ["1.tar.gz", "2.tar.gz"]


@pytest.fixture(params=FORMATS, ids=lambda path: path.name)
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(request.param) as tar:
        tar.extractall(tmp_path, filter="data")
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
    return tmp_path


def test_a_recorded_broker_is_opened_and_goes_on(recorded: Path) -> None:
    said = json.loads((recorded / "recorded.json").read_text())
    root, held = recorded / "broker", recorded / "held"
    for later in (0, 1):
        with open_broker(root, holder=held, clock=lambda at=AT + timedelta(minutes=later): at) as running:
            status = {str(key["kid"]): key["status"] for key in running.admin.list_keys()}
            assert status == {"k1": "active", "k2": "revoked", "k3": "active"}
            assert "anna" in running.admin.callers("acme")
            assert b64url(running.core.secrets.root_public) == said["root"]
            actions = [one["action"] for one in running.admin.decisions(50)]
            assert actions[-1] == "init"
            running.admin.add_caller("acme", f"later-{later}")
    with open_broker(root, holder=held, clock=lambda: AT + timedelta(hours=1)) as running:
        assert running.admin.callers("acme") == ["anna", "later-0", "later-1"]


def test_a_recorded_artefact_opens_with_the_key_of_its_broker(recorded: Path) -> None:
    said = json.loads((recorded / "recorded.json").read_text())
    private = HpkePrivateKey.generate(Kem.XWING)
    with open_broker(recorded / "broker", holder=recorded / "held", clock=lambda: AT) as running:
        envelope = running.admin.sealing_key("k1", private.public.raw)
        digest = bytes.fromhex(str(running.admin.key("k1")["manifest_digest"]))
        release = running.core.secrets.release.public_key().public_bytes_raw()
    key = SealingKey.verify(envelope, [ed25519(release)], stage="signature")
    dek = open_from(private, key.enc, key.hpke_info(), b"", key.ciphertext)
    artefact = recorded / "plain.txt.sealed"
    owner = ed25519(b64url_decode(said["owner"], length=32))
    manifest = Manifest.verify(read_manifest(artefact), [owner], expected_digest=digest)
    open_to_file(artefact, manifest, dek, recorded / "opened")
    assert (recorded / "opened").read_bytes() == (recorded / "plain.txt").read_bytes()
