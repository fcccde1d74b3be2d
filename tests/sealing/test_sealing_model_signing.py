"""OpenSSF model signing, against its own tool in both directions."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256K1,
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from tests.sealing.support import DEK
from tests.sealing.trees import SEALING, TREE, opened, write_tree

from sealwright.cli import main
from sealwright.errors import SealwrightError
from sealwright.sealing import seal_folder
from sealwright.sealing.model_signing import SIGNATURE, sign_model, verify_model

KEY = generate_private_key(SECP256R1())
DIFFERS = ("model-differs", "model-signature")
FILES = {**TREE, ".gitignore": b"*.tmp\n", "zz": b"last"}


def digests(tree: dict[str, bytes]) -> dict[str, bytes]:
    return {path: hashlib.sha256(raw).digest() for path, raw in tree.items() if path != SIGNATURE}


def write_keys(folder: Path, key: EllipticCurvePrivateKey) -> tuple[Path, Path]:
    private, public = folder / "key.pem", folder / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.chmod(0o600)
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def tool(*args: object) -> subprocess.CompletedProcess[str]:
    """Run the real `model_signing`."""
    command = [sys.executable, "-m", "model_signing", *map(str, args)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("curve", [SECP256R1, SECP384R1, SECP521R1], ids=lambda curve: curve.name)
def test_the_tool_accepts_what_was_sealed_and_refuses_it_altered(curve: type, tmp_path: Path) -> None:
    key = generate_private_key(curve())
    _, public = write_keys(tmp_path, key)
    source = write_tree(tmp_path / "model", FILES)
    seal_folder(source, tmp_path / "model.sealed", SEALING, model_key=key)
    files = opened(tmp_path / "model.sealed", tmp_path / "opened")
    assert files.keys() == {*FILES, SIGNATURE}
    folder = tmp_path / "opened"
    check = ("verify", "key", folder, "--signature", folder / SIGNATURE, "--public_key", public)
    assert tool(*check).returncode == 0
    assert verify_model(files[SIGNATURE], digests(files), key.public_key()) == "model"
    (folder / "zz").write_bytes(b"lost")
    assert tool(*check).returncode != 0


def test_we_accept_what_the_tool_signs(tmp_path: Path) -> None:
    private, _ = write_keys(tmp_path, KEY)
    folder = write_tree(tmp_path / "model", FILES)
    signed = tool("sign", "key", folder, "--signature", folder / SIGNATURE, "--private_key", private)
    assert signed.returncode == 0, signed.stderr
    bundle = (folder / SIGNATURE).read_bytes()
    assert verify_model(bundle, digests(FILES), KEY.public_key()) == "model"
    assert refused(bundle, digests({**FILES, "sub/.gitignore": b"signed below the root"})) == DIFFERS


def refused(bundle: bytes, files: dict[str, bytes], key: EllipticCurvePrivateKey = KEY) -> tuple[str, str]:
    with pytest.raises(SealwrightError) as caught:
        verify_model(bundle, files, key.public_key())
    return caught.value.code, str(caught.value.stage)


def test_other_files_are_refused() -> None:
    files = digests(FILES)
    bundle = sign_model("m", files, KEY)
    assert refused(bundle, {**files, "more": bytes(32)}) == DIFFERS
    assert refused(bundle, {path: value for path, value in files.items() if path != "zz"}) == DIFFERS
    assert refused(bundle, {**files, "zz": bytes(32)}) == DIFFERS
    assert refused(bundle, {**files, "zz": files["config.json"], "config.json": files["zz"]}) == DIFFERS


def test_another_key_is_refused() -> None:
    files = digests(FILES)
    bundle = sign_model("m", files, KEY)
    assert refused(bundle, files, generate_private_key(SECP256R1()))[0] == "bad-signature"
    assert refused(bundle, files, generate_private_key(SECP384R1()))[0] == "bad-signature"
    assert refused(bundle, files, generate_private_key(SECP256K1()))[0] == "wrong-model-key"
    with pytest.raises(SealwrightError) as caught:
        sign_model("m", files, generate_private_key(SECP256K1()))
    assert caught.value.code == "wrong-model-key"


BUNDLE = sign_model("m", digests(FILES), KEY)


@given(at=st.integers(0, len(base64.b64decode(json.loads(BUNDLE)["dsseEnvelope"]["payload"])) * 8 - 1))
def test_any_flipped_bit_of_the_statement_is_refused(at: int) -> None:
    said = json.loads(BUNDLE)
    payload = bytearray(base64.b64decode(said["dsseEnvelope"]["payload"]))
    payload[at // 8] ^= 1 << at % 8
    said["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    assert refused(json.dumps(said).encode(), digests(FILES))[0] == "bad-signature"


@given(raw=st.binary(max_size=300) | st.just(BUNDLE[:-1]) | st.just(b"{}") | st.just(b'{"dsseEnvelope":[]}'))
def test_anything_else_is_malformed(raw: bytes) -> None:
    assert refused(raw, digests(FILES))[0] == "malformed-model-signature"


def resigned(change: object) -> bytes:
    """Return a bundle whose statement was changed, and signed again by the right key."""
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA256

    from sealwright.crypto.dsse import pae

    said = json.loads(BUNDLE)
    envelope = said["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    change(statement, envelope)  # type: ignore[operator]
    payload = json.dumps(statement).encode()
    envelope["payload"] = base64.b64encode(payload).decode()
    signature = KEY.sign(pae(envelope["payloadType"], payload), ECDSA(SHA256()))
    envelope["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    return json.dumps(said).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda s, e: s.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda s, e: s.update(predicateType="https://example.org/other"),
        lambda s, e: e.update(payloadType="text/plain"),
        lambda s, e: s.update(subject=[]),
        lambda s, e: s["subject"][0]["digest"].update(sha256="00" * 32),
        lambda s, e: s["predicate"].update(resources={}),
        lambda s, e: s["predicate"]["resources"].append(s["predicate"]["resources"][0]),
        lambda s, e: s["predicate"]["resources"][0].update(algorithm="blake3"),
        lambda s, e: s["predicate"]["resources"][0].update(digest="00"),
        lambda s, e: s["predicate"]["resources"][0].update(digest="zz" * 32),
    ],
)
def test_a_genuine_signature_of_something_else_is_malformed(change: object) -> None:
    assert refused(resigned(change), digests(FILES)) == ("malformed-model-signature", "model-signature")
    assert verify_model(resigned(lambda s, e: None), digests(FILES), KEY.public_key()) == "m"


def test_a_signature_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "model", {**FILES, SIGNATURE: b"theirs"})
    with pytest.raises(SealwrightError) as caught:
        seal_folder(source, tmp_path / "model.sealed", SEALING, model_key=KEY)
    assert caught.value.code == "model-signature-exists"
    seal_folder(source, tmp_path / "model.sealed", SEALING)
    assert opened(tmp_path / "model.sealed", tmp_path / "opened")[SIGNATURE] == b"theirs"


def test_what_changes_between_signing_and_sealing_is_refused(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "model", FILES)
    path = source / "zz"

    def swap(done: int, _: int) -> None:
        path.write_bytes(b"tsal")  # of the same length

    with pytest.raises(SealwrightError) as caught:
        seal_folder(source, tmp_path / "model.sealed", replace(SEALING), model_key=KEY, progress=swap)
    assert caught.value.code == "input-changed"


def test_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_keys(tmp_path, KEY)
    write_tree(tmp_path / "model", FILES)
    (tmp_path / "dek").write_bytes(DEK)
    (tmp_path / "dek").chmod(0o600)
    assert main(["owner-key", "new", "owner.pem"]) == 0
    key = ["--owner-key", "owner.pem", "--dek-file", "dek"]
    assert main(["seal", "model", *key, "--model-key", "key.pem"]) == 0
    assert f"in {len(FILES) + 1} files" in capsys.readouterr().out
    assert main(["open", "model.sealed", *key, "--to", "opened"]) == 0
    check = ("verify", "key", "opened", "--signature", "opened/model.sig", "--public_key", "public.pem")
    assert tool(*check).returncode == 0
    assert main(["seal", "model/zz", *key, "--model-key", "key.pem"]) == 2
    assert main(["seal", "model", *key, "--model-key", "owner.pem"]) == 65
    assert main(["seal", "model", *key, "--model-key", "public.pem"]) == 65
