"""The vectors of docs/spec/sealed-artefact.md, each with the stage that refuses it."""

import io
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from tests.sealing.make_vectors import TARGET, document
from tests.sealing.support import Kept
from tests.sealing.tink_oracle import tink_with

from sealwright.crypto.encoding import b64url_decode, digest
from sealwright.errors import SealwrightError
from sealwright.sealing import Manifest, open_into

VECTORS = json.loads(TARGET.read_bytes())
OWNER_KEY = Ed25519PublicKey.from_public_bytes(b64url_decode(VECTORS["owner_key"]))
STAGES = [
    "parse",
    "signature",
    "admitted",
    "key-commitment",
    "contents",
    "lengths",
    "segments",
    "plaintext-digest",
]


def opened(case: dict[str, str], path: Path) -> bytes:
    path.write_bytes(bytes.fromhex(case["ciphertext"]))
    admitted = bytes.fromhex(case["admitted"])
    manifest = Manifest.verify(case["envelope"].encode(), [OWNER_KEY], admitted)
    kept = Kept()
    try:
        open_into(path, manifest, bytes.fromhex(case["dek"]), kept)
    finally:
        assert len(kept.ended) == 1
    return bytes(kept.plain)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["id"])
def test_vector(case: dict[str, str], tmp_path: Path) -> None:
    if case["expect"] == "ok":
        assert opened(case, tmp_path / "sealed") == bytes.fromhex(case["plain"])
        return
    with pytest.raises(SealwrightError) as caught:
        opened(case, tmp_path / "sealed")
    assert caught.value.stage == case["expect"]


@pytest.mark.parametrize(
    "case", [case for case in VECTORS["cases"] if case["expect"] == "ok"], ids=lambda case: case["id"]
)
def test_tink_opens_the_vectors(case: dict[str, str]) -> None:
    manifest = Manifest.unverified_parse(case["envelope"].encode())
    plain = bytes.fromhex(case["plain"])
    # The associated data as the specification writes it, not as our code does.
    data = digest(manifest.artefact_id, manifest.version, case["path"], 0, len(plain))
    oracle = tink_with(bytes.fromhex(case["dek"]))
    with oracle.new_decrypting_stream(io.BytesIO(bytes.fromhex(case["ciphertext"])), data) as stream:
        assert stream.read() == plain


def test_every_stage_has_a_vector_and_the_file_is_what_its_maker_makes() -> None:
    assert {case["expect"] for case in VECTORS["cases"]} == {"ok", *STAGES}
    assert document() == TARGET.read_bytes()
