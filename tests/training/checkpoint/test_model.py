"""`model.sig`, against the tool of OpenSSF model signing itself; and what is sealed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from hypothesis import given
from hypothesis import strategies as st
from tests.training.checkpoint.chains import Run

from sealwright.errors import ArtefactFormatError, SealwrightError, UnavailableError
from sealwright.protocol.checkpoint import MODEL_FILE
from sealwright.sealing import open_to_file
from sealwright.sealing.model_signing import sign_model, verify_model
from sealwright.training.checkpoint.folder import MODEL_SIGNATURE, CheckpointFolder
from sealwright.training.checkpoint.model_key import model_key, spki_of
from sealwright.training.safetensors import decode_safetensors

KEY = ec.generate_private_key(ec.SECP256R1())
D = bytes(range(32))


def test_the_tool_verifies_the_opened_weights(honest: Run, tmp_path: Path) -> None:
    pytest.importorskip("model_signing")
    newest = honest.verify().newest
    model = tmp_path / "model"
    model.mkdir()
    weights = model / MODEL_FILE
    open_to_file(honest.folder.artefact(2), newest.manifest, honest.site.weights_dek, weights)
    signature = model / MODEL_SIGNATURE
    signature.write_bytes(honest.folder.read(2, MODEL_SIGNATURE))
    public = tmp_path / "key.pem"
    key = load_der_public_key(newest.statement.predicate.model_key)
    public.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    command = [
        sys.executable,
        "-m",
        "model_signing",
        "verify",
        "key",
        str(model),
        "--signature",
        str(signature),
    ]
    command += ["--public_key", str(public)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(
        decode_safetensors(weights.read_bytes())["b"], np.zeros(2, dtype=np.float32)
    )
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert subprocess.run(command, check=False, capture_output=True, timeout=60).returncode != 0


def test_we_accept_what_the_tool_signs(tmp_path: Path) -> None:
    pytest.importorskip("model_signing")
    import hashlib

    from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

    model = tmp_path / "model"
    model.mkdir()
    (model / MODEL_FILE).write_bytes(b"weights")
    private = tmp_path / "key.pem"
    private.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    signature = model / MODEL_SIGNATURE
    command = [
        sys.executable,
        "-m",
        "model_signing",
        "sign",
        "key",
        str(model),
        "--signature",
        str(signature),
    ]
    command += ["--private_key", str(private)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    digests = {MODEL_FILE: hashlib.sha256(b"weights").digest()}
    assert verify_model(signature.read_bytes(), digests, KEY.public_key()) == "model"


def refused(bundle: bytes, digests: dict[str, bytes], key: ec.EllipticCurvePublicKey) -> str:
    with pytest.raises(SealwrightError) as caught:
        verify_model(bundle, digests, key)
    assert caught.value.stage == "model-signature"
    return caught.value.code


def test_other_files_and_keys_are_refused() -> None:
    bundle = sign_model("m-1", {MODEL_FILE: D}, KEY)
    assert verify_model(bundle, {MODEL_FILE: D}, KEY.public_key()) == "m-1"
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    assert refused(bundle, {MODEL_FILE: D}, other) == "bad-signature"
    assert refused(bundle, {MODEL_FILE: bytes(32)}, KEY.public_key()) == "model-differs"
    assert refused(bundle, {"other": D}, KEY.public_key()) == "model-differs"
    assert refused(bundle, {MODEL_FILE: D, "extra": D}, KEY.public_key()) == "model-differs"
    assert refused(bundle, {}, KEY.public_key()) == "model-differs"


def test_a_bundle_of_another_kind_is_none() -> None:
    said = json.loads(sign_model("m-1", {MODEL_FILE: D}, KEY))
    for changed in (
        said | {"mediaType": "other"},
        said | {"dsseEnvelope": said["dsseEnvelope"] | {"payloadType": "other"}},
        said | {"dsseEnvelope": said["dsseEnvelope"] | {"signatures": []}},
        said | {"dsseEnvelope": said["dsseEnvelope"] | {"payload": "!"}},
        [],
    ):
        assert (
            refused(json.dumps(changed).encode(), {MODEL_FILE: D}, KEY.public_key())
            == "malformed-model-signature"
        )
    for payload in (b"[]", b"{}", b'{"subject":[{"name":1}]}', b"nothing"):
        from base64 import b64encode

        from cryptography.hazmat.primitives.hashes import SHA256

        from sealwright.crypto.dsse import pae

        signature = KEY.sign(pae("application/vnd.in-toto+json", payload), ec.ECDSA(SHA256()))
        envelope = {
            "payload": b64encode(payload).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": b64encode(signature).decode(), "keyid": ""}],
        }
        raw = json.dumps(said | {"dsseEnvelope": envelope}).encode()
        assert refused(raw, {MODEL_FILE: D}, KEY.public_key()) == "malformed-model-signature"


@given(st.data())
def test_a_bent_bundle_raises_our_errors_alone(data: st.DataObject) -> None:
    raw = bytearray(BUNDLE)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        verify_model(bytes(raw), {MODEL_FILE: D}, KEY.public_key())
    except SealwrightError:
        return


BUNDLE = sign_model("m-1", {MODEL_FILE: D}, KEY)


def test_keys_are_on_p256() -> None:
    assert spki_of(model_key(spki_of(KEY.public_key()))) == spki_of(KEY.public_key())
    with pytest.raises(ArtefactFormatError):
        model_key(spki_of(ec.generate_private_key(ec.SECP384R1()).public_key()))


def test_a_version_is_never_replaced(honest: Run, tmp_path: Path) -> None:
    folder = honest.copy(tmp_path / "copy")
    with pytest.raises(UnavailableError) as caught, folder.adding(2):
        pass
    assert caught.value.code == "version-exists"


def test_a_version_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "run")

    def half() -> None:
        with folder.adding(1) as staged:
            (staged / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert list(folder.root.iterdir()) == []


def test_no_plaintext_of_weights_is_left_on_disk(honest: Run) -> None:
    """The weights of version 2 are 2.0 in float32, six in a row: sealed, that pattern is nowhere."""
    pattern = np.full(6, honest.epoch, dtype=np.float32).tobytes()
    files = [path for path in honest.folder.root.rglob("*") if path.is_file()]
    assert not any(pattern in path.read_bytes() for path in files)
    assert not any(path.is_symlink() for path in honest.folder.root.rglob("*"))
