"""HPKE: published vectors, interoperability with pyca's one-shot suite, and what must be refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hpke as pyca
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from sealwright.crypto import hpke
from sealwright.crypto.hpke import Aead, HpkePrivateKey, HpkePublicKey, Kem
from sealwright.crypto.suites import CLASSICAL, DEFAULT, accepted_suite
from sealwright.errors import AppraisalError, MessageFormatError, VerificationError

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "transport.json").read_text())
PYCA_AEAD = {
    Aead.AES_128_GCM: pyca.AEAD.AES_128_GCM,
    Aead.AES_256_GCM: pyca.AEAD.AES_256_GCM,
    Aead.CHACHA20_POLY1305: pyca.AEAD.CHACHA20_POLY1305,
}
KEYS = {kem: HpkePrivateKey.from_seed(kem, bytes(range(32))) for kem in Kem}


@pytest.mark.parametrize("case", VECTORS["hpke"]["cases"], ids=lambda case: case["id"])
def test_rfc9180_vector(case: dict[str, Any]) -> None:
    private = HpkePrivateKey.from_seed(Kem.X25519, bytes.fromhex(case["skRm"]))
    assert private.public.raw.hex() == case["pkRm"]
    ephemeral = X25519PrivateKey.from_private_bytes(bytes.fromhex(case["skEm"]))
    info, aead = bytes.fromhex(case["info"]), Aead(case["aead"])
    enc, sender = hpke.setup_sender(private.public, info, aead=aead, testing_ephemeral=lambda: ephemeral)
    assert enc.hex() == case["enc"]
    assert private.decapsulate(enc).hex() == case["shared_secret"]
    recipient = hpke.setup_recipient(private, enc, info, aead=aead)
    wanted = {item["sequence"]: item for item in case["encryptions"]}
    for sequence in range(257):
        item = wanted.get(sequence, {"pt": "00", "aad": ""})
        pt, aad = bytes.fromhex(item["pt"]), bytes.fromhex(item["aad"])
        sealed = sender.seal(pt, aad)
        assert sealed.hex() == item.get("ct", sealed.hex())
        assert recipient.open(sealed, aad) == pt
    assert len(case["exports"]) == 3
    for item in case["exports"]:
        context = bytes.fromhex(item["context"])
        assert sender.export(context, item["length"]).hex() == item["value"]
        assert recipient.export(context, item["length"]).hex() == item["value"]


@pytest.mark.parametrize("case", VECTORS["xwing"]["cases"], ids=lambda case: case["id"])
def test_xwing_vector(case: dict[str, str]) -> None:
    private = HpkePrivateKey.from_seed(Kem.XWING, bytes.fromhex(case["seed"]))
    assert hashlib.sha256(private.public.raw).hexdigest() == case["pk_sha256"]
    assert private.decapsulate(bytes.fromhex(case["ct"])).hex() == case["ss"]


def pyca_pair(kem: Kem, seed: bytes) -> tuple[pyca.Suite, Any, Any]:
    """Return (suite maker, private, public) of the same seed in pyca's own HPKE."""
    if kem is Kem.X25519:
        private = X25519PrivateKey.from_private_bytes(seed)
        return pyca.KEM.X25519, private, private.public_key()
    expanded = hashlib.shake_256(seed).digest(96)
    mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
    x25519 = X25519PrivateKey.from_private_bytes(expanded[64:])
    both = pyca.MLKEM768X25519PrivateKey(mlkem, x25519)
    return pyca.KEM.MLKEM768_X25519, both, both.public_key()


@pytest.mark.parametrize("aead", list(Aead))
@pytest.mark.parametrize("kem", list(Kem))
def test_interoperates_with_pyca_one_shot(kem: Kem, aead: Aead) -> None:
    pyca_kem, private, public = pyca_pair(kem, bytes(range(32)))
    suite = pyca.Suite(pyca_kem, pyca.KDF.HKDF_SHA256, PYCA_AEAD[aead])
    ours = KEYS[kem]
    theirs = suite.encrypt(b"from pyca", public, b"info")
    enc, ciphertext = theirs[: kem.enc_length], theirs[kem.enc_length :]
    assert hpke.open_from(ours, enc, b"info", b"", ciphertext, aead=aead) == b"from pyca"
    enc, ciphertext = hpke.seal_to(ours.public, b"info", b"", b"from us", aead=aead)
    assert suite.decrypt(enc + ciphertext, private, b"info") == b"from us"


@pytest.mark.parametrize("kem", list(Kem))
@given(data=st.data())
def test_any_flipped_bit_is_refused(kem: Kem, data: st.DataObject) -> None:
    private = KEYS[kem]
    enc, ciphertext = hpke.seal_to(private.public, b"info", b"aad", b"payload")
    whole = bytearray(enc + ciphertext)
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    # RFC 7748 ignores the top bit of a point; the KEM context binds the bytes of enc all the same.
    whole[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(VerificationError):
        hpke.open_from(private, bytes(whole[: len(enc)]), b"info", b"aad", bytes(whole[len(enc) :]))


@pytest.mark.parametrize("kem", list(Kem))
def test_wrong_info_aad_or_key_does_not_open(kem: Kem) -> None:
    private = KEYS[kem]
    enc, ciphertext = hpke.seal_to(private.public, b"info", b"aad", b"payload")
    assert hpke.open_from(private, enc, b"info", b"aad", ciphertext) == b"payload"
    other = HpkePrivateKey.generate(kem)
    for key, info, aad in ((private, b"x", b"aad"), (private, b"info", b"x"), (other, b"info", b"aad")):
        with pytest.raises(VerificationError) as caught:
            hpke.open_from(key, enc, info, aad, ciphertext)
        assert caught.value.code == "hpke-open-failed"


@pytest.mark.parametrize("kem", list(Kem))
def test_failed_open_does_not_move_the_nonce(kem: Kem) -> None:
    enc, sender = hpke.setup_sender(KEYS[kem].public, b"")
    recipient = hpke.setup_recipient(KEYS[kem], enc, b"")
    first, second = sender.seal(b"1"), sender.seal(b"2")
    with pytest.raises(VerificationError):
        recipient.open(second)
    assert (recipient.open(first), recipient.open(second)) == (b"1", b"2")


def test_counter_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpke, "MAX_MESSAGES", 2)
    _, sender = hpke.setup_sender(KEYS[Kem.X25519].public, b"")
    sender.seal(b"")
    sender.seal(b"")
    with pytest.raises(VerificationError) as caught:
        sender.seal(b"")
    assert caught.value.code == "hpke-message-limit"


SMALL_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
]


@pytest.mark.parametrize("point", SMALL_ORDER)
@pytest.mark.parametrize("kem", list(Kem))
def test_small_order_point_is_refused_by_both_sides(kem: Kem, point: bytes) -> None:
    enc, _ = hpke.setup_sender(KEYS[kem].public, b"")
    with pytest.raises(VerificationError) as caught:
        hpke.setup_recipient(KEYS[kem], enc[:-32] + point, b"")
    assert caught.value.code == "hpke-weak-point"
    with pytest.raises(VerificationError) as caught:
        hpke.setup_sender(HpkePublicKey(kem=kem, raw=KEYS[kem].public.raw[:-32] + point), b"")
    assert caught.value.code == "hpke-weak-point"


@pytest.mark.parametrize("kem", list(Kem))
def test_wrong_lengths_are_malformed(kem: Kem) -> None:
    with pytest.raises(MessageFormatError):
        HpkePublicKey(kem=kem, raw=KEYS[kem].public.raw + b"\0")
    with pytest.raises(MessageFormatError):
        HpkePrivateKey.from_seed(kem, bytes(31))
    with pytest.raises(MessageFormatError):
        KEYS[kem].decapsulate(bytes(kem.enc_length - 1))


def test_unreduced_mlkem_key_is_malformed() -> None:
    with pytest.raises(MessageFormatError):
        HpkePublicKey(kem=Kem.XWING, raw=b"\xff" * Kem.XWING.public_length)


def test_private_key_shows_nothing() -> None:
    shown = repr(KEYS[Kem.XWING])
    assert "X25519PrivateKey" not in shown
    assert "MLKEM768PrivateKey" not in shown


def test_suites_are_accepted_by_name_only() -> None:
    assert accepted_suite("default", ["default"]) is DEFAULT
    assert accepted_suite("classical", {"default", "classical"}) is CLASSICAL
    with pytest.raises(AppraisalError) as caught:
        accepted_suite("classical", ["default"])
    assert (caught.value.code, caught.value.stage) == ("suite-not-accepted", "suite")
    with pytest.raises(AppraisalError):
        accepted_suite("default", [])
    with pytest.raises(MessageFormatError) as unknown:
        accepted_suite("cnsa", ["cnsa"])
    assert unknown.value.code == "unknown-suite"
