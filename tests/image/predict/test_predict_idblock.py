"""ID blocks of SEV-SNP guests: layout, signatures, and the digests that reports have."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sealwright.cli import main
from sealwright.image.idblock import IdBlock, encode_key, key_digest, sign_id_block

KEY, AUTHOR = (ec.derive_private_key(number, ec.SECP384R1()) for number in (7, 8))
MEASUREMENT = bytes(range(48))
BLOCK = IdBlock(measurement=MEASUREMENT, policy=0x30000)
# sev-snp-measure 0.0.13 of the same key.
DIGEST = "5a567a369cd97a94c458ab1d41654efc23fd320e1472358c5f9f5b5df4256e78e38a9e3494cc2426bc9f9cd1bca63d1d"


def pem(key: Any) -> bytes:
    found: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return found


def check(auth: bytes, at: int, key: ec.EllipticCurvePrivateKey, data: bytes) -> None:
    """Verify a signature at an offset of ID_AUTH."""
    r, s = (int.from_bytes(auth[start : start + 72], "little") for start in (at, at + 72))
    key.public_key().verify(encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA384()))


def test_layout() -> None:
    raw = IdBlock(
        measurement=MEASUREMENT, policy=1 << 17, family_id=b"f" * 16, image_id=b"i" * 16, guest_svn=9
    ).encode()
    assert raw == MEASUREMENT + b"f" * 16 + b"i" * 16 + struct.pack("<IIQ", 1, 9, 1 << 17)
    assert len(raw) == 96


def test_signatures() -> None:
    auth = sign_id_block(BLOCK, KEY, AUTHOR)
    assert len(auth) == 4096
    assert struct.unpack_from("<II", auth) == (1, 1)
    assert auth[0x240:0x644] == encode_key(KEY.public_key())
    assert auth[0x880:0xC84] == encode_key(AUTHOR.public_key())
    check(auth, 0x40, KEY, BLOCK.encode())
    check(auth, 0x680, AUTHOR, encode_key(KEY.public_key()))
    for changed in (
        IdBlock(measurement=bytes(48), policy=0x30000),
        IdBlock(measurement=MEASUREMENT, policy=0x20000),
    ):
        with pytest.raises(InvalidSignature):
            check(auth, 0x40, KEY, changed.encode())


def test_without_an_author_there_is_none() -> None:
    auth = sign_id_block(BLOCK, KEY)
    assert struct.unpack_from("<II", auth) == (1, 0)
    assert not any(auth[0x680:])


def test_the_digest_is_the_oracles() -> None:
    assert key_digest(KEY.public_key()).hex() == DIGEST


def test_wrong_sizes_and_curves_are_bugs() -> None:
    for wrong in (
        IdBlock(measurement=b"", policy=0),
        IdBlock(measurement=MEASUREMENT, policy=1 << 64),
        IdBlock(measurement=MEASUREMENT, policy=0, guest_svn=-1),
    ):
        with pytest.raises(ValueError, match="has"):
            wrong.encode()
    with pytest.raises(ValueError, match="P-384"):
        encode_key(ec.generate_private_key(ec.SECP256R1()).public_key())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {
        "id.pem": pem(KEY),
        "author.pem": pem(AUTHOR),
        "p256.pem": pem(ec.generate_private_key(ec.SECP256R1())),
        "no.pem": b"no key",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).chmod(0o600)
    options = ["image", "id-block", f"--measurement={MEASUREMENT.hex()}", "--json"]
    keys = [f"--id-key={tmp_path / 'id.pem'}", f"--author-key={tmp_path / 'author.pem'}"]
    assert main([*options, *keys]) == 0
    found = json.loads(capsys.readouterr().out)
    assert base64.b64decode(found["id_block"]) == BLOCK.encode()
    check(base64.b64decode(found["id_auth"]), 0x40, KEY, BLOCK.encode())
    assert found["id_key_digest"] == DIGEST
    for name in ("p256.pem", "no.pem"):
        assert main([*options, f"--id-key={tmp_path / name}"]) == 65
        assert json.loads(capsys.readouterr().out)["error"]["code"] == "malformed-id-key"
    (tmp_path / "id.pem").chmod(0o644)
    assert main([*options, keys[0]]) == 65
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "secret-exposed"
    assert main(["image", "id-block", "--measurement=00", keys[0]]) == 2
