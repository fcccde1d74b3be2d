"""Enrolment without a TPM: makers' certificates, credentials, the attestation CA."""

from __future__ import annotations

import hashlib
import hmac
import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.serialization import Encoding
from tests.tpm.support import NOW, Maker

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.tpm import AK_EKU, EK_EKU, ek_public
from sealwright.endorsement.x509 import fingerprint, key_usage
from sealwright.errors import EvidenceFormatError, MessageFormatError, RevokedError, VerificationError
from sealwright.evidence import tpmkey
from sealwright.protocol.tpm_ca import AK_LIFE, new_attestation_ca
from sealwright.protocol.tpm_credential import kdf_a, kdf_e, make_credential
from sealwright.protocol.tpm_enrol import (
    ActivatedAk,
    EnrolAnswer,
    EnrolChallenge,
    EnrolRequest,
    Pending,
    challenge,
    finish,
)
from sealwright.testing.tpm import ak_public
from sealwright.verify.context import Context
from sealwright.verify.tpm import verify_ak
from sealwright.verify.tpmek import VerifiedEk, verify_ek

AK = ak_public(ec.generate_private_key(ec.SECP256R1()))


@cache
def maker() -> Maker:
    return Maker()


@cache
def keys() -> dict[str, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey]:
    return {
        "rsa": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "p256": ec.generate_private_key(ec.SECP256R1()),
        "p384": ec.generate_private_key(ec.SECP384R1()),
    }


def context(**changes: Any) -> Context:
    return replace(Context(at=NOW, roots=frozenset({fingerprint(maker().root)})), **changes)


def ek_of(certificate: x509.Certificate, *crls: x509.CertificateRevocationList) -> VerifiedEk:
    bag = Endorsements(certificates=(maker().root,), crls=crls)
    return verify_ek(certificate, bag, context=context())


def counter() -> Callable[[int], bytes]:
    numbers = itertools.count(1)
    return lambda size: bytes([next(numbers)]) * size


def ask(name: str = "p256", **changes: Any) -> tuple[EnrolChallenge, Pending]:
    certificate = maker().certify(keys()[name].public_key())
    request = EnrolRequest(
        ek_certificate=certificate.public_bytes(Encoding.DER),
        ek_chain=(maker().root.public_bytes(Encoding.DER),),
        ak_public=AK.encode(),
    )
    request = EnrolRequest.parse(request.model_copy(update=changes).encode())
    return challenge(request, Endorsements(), context=context(), random=counter())


def open_credential(name: str, asked: EnrolChallenge, ak_name: bytes) -> bytes:
    """Return the secret as a TPM would, written apart from what is tested: part 1, annexes B.10 and C.6."""
    key = keys()[name]
    size = 48 if name == "p384" else 32
    algorithm = "sha384" if name == "p384" else "sha256"
    if isinstance(key, rsa.RSAPrivateKey):
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"IDENTITY\0")
        seed = key.decrypt(asked.encrypted_secret, oaep)
    else:
        half = len(asked.encrypted_secret) // 2
        x, y = asked.encrypted_secret[2:half], asked.encrypted_secret[half + 2 :]
        point = ec.EllipticCurvePublicKey.from_encoded_point(key.curve, b"\x04" + x + y)
        own = key.public_key().public_numbers().x.to_bytes(size, "big")
        z = key.exchange(ec.ECDH(), point)
        seed = hashlib.new(algorithm, b"\0\0\0\x01" + z + b"IDENTITY\0" + x + own).digest()
    tag, identity = asked.credential_blob[2 : 2 + size], asked.credential_blob[2 + size :]
    bits = (size * 8).to_bytes(4, "big")
    mac_key = hmac.digest(seed, b"\0\0\0\x01INTEGRITY\0" + bits, algorithm)
    assert hmac.digest(mac_key, identity + ak_name, algorithm) == tag
    aes_bits = 256 if name == "p384" else 128
    fixed = b"\0\0\0\x01STORAGE\0" + ak_name + aes_bits.to_bytes(4, "big")
    aes = hmac.digest(seed, fixed, algorithm)[: aes_bits // 8]
    decryptor = Cipher(AES(aes), CFB(bytes(16))).decryptor()
    plain = decryptor.update(identity) + decryptor.finalize()
    assert plain[:2] == b"\0\x20"
    return plain[2:]


@pytest.mark.parametrize("name", ["rsa", "p256", "p384"])
def test_the_secret_is_for_the_key_of_that_name(name: str) -> None:
    asked, pending = ask(name)
    assert EnrolChallenge.parse(asked.encode()) == asked
    secret = open_credential(name, asked, AK.name())
    activated = finish(pending, EnrolAnswer(secret=secret), at=NOW)
    assert (activated.ak, activated.ek.public) == (AK, ek_public(keys()[name].public_key()))
    other = replace(AK, objectAttributes=AK.objectAttributes & ~tpmkey.RESTRICTED)
    with pytest.raises(AssertionError):
        open_credential(name, asked, other.name())


def test_kdfs_give_more_than_a_block() -> None:
    long = kdf_a("sha256", b"key", "LABEL", b"u", b"v", 512)
    fixed = b"LABEL\0uv" + (512).to_bytes(4, "big")
    assert long == b"".join(hmac.digest(b"key", n.to_bytes(4, "big") + fixed, "sha256") for n in (1, 2))
    long = kdf_e("sha256", b"z", "LABEL", b"u", b"v", 384)
    blocks = b"".join(hashlib.sha256(n.to_bytes(4, "big") + b"zLABEL\0uv").digest() for n in (1, 2))
    assert long == blocks[:48]


@pytest.mark.parametrize("changes", [{"secret": b""}, {"secret": bytes(33)}, {"seed": bytes(31)}, {"ek": AK}])
def test_credentials_of_wrong_lengths(changes: dict[str, Any]) -> None:
    right = {"ek": ek_public(keys()["p256"].public_key()), "secret": bytes(32), "seed": bytes(32)} | changes
    with pytest.raises(ValueError, match="wrong length"):
        make_credential(right["ek"], AK.name(), right["secret"], seed=right["seed"])


def refusal(run: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(VerificationError) as refused:
        run()
    return refused.value.stage, refused.value.code


def test_a_wrong_or_late_answer() -> None:
    _, pending = ask()
    wrong = EnrolAnswer(secret=bytes(32))
    assert refusal(lambda: finish(pending, wrong, at=NOW)) == ("activation", "wrong-credential")
    right = EnrolAnswer(secret=pending.secret)
    late = NOW + timedelta(minutes=5)
    assert refusal(lambda: finish(pending, right, at=late)) == ("activation", "challenge-expired")
    assert isinstance(finish(pending, right, at=late - timedelta(seconds=1)), ActivatedAk)


def test_secrets_are_not_shown() -> None:
    _, pending = ask()
    assert pending.secret.hex() not in repr(pending)
    assert repr(pending.secret) not in repr(pending)


def test_activated_keys_are_made_by_finish_alone() -> None:
    _, pending = ask()
    with pytest.raises(TypeError):
        ActivatedAk(ek=pending.ek, ak=AK, _made_by=object())
    with pytest.raises(TypeError):
        replace(pending.ek, _made_by=object())


def test_messages_are_exact() -> None:
    answer = EnrolAnswer(secret=bytes(32))
    assert EnrolAnswer.parse(answer.encode()) == answer
    for raw in (b"{}", answer.encode() + b" ", answer.encode().replace(b"AAAA", b"AAA", 1)):
        with pytest.raises(MessageFormatError):
            EnrolAnswer.parse(raw)
    for changes in ({"ak_public": b"\0"}, {"ek_certificate": b"0"}, {"ek_chain": (b"?",)}):
        with pytest.raises(EvidenceFormatError):
            ask(**changes)


def test_a_key_that_is_no_attestation_key() -> None:
    loose = replace(AK, objectAttributes=AK.objectAttributes & ~tpmkey.FIXED_TPM)
    assert refusal(lambda: ask(ak_public=loose.encode())) == ("attestation-key", "ak-not-restricted")


def test_a_maker_that_is_trusted() -> None:
    ek = ek_of(maker().certify(keys()["rsa"].public_key()))
    assert (ek.manufacturer, ek.model, ek.version) == ("id:494E5443", "model", "id:00010002")
    assert ek.root == fingerprint(maker().root)


def test_the_root_is_named_by_the_owner() -> None:
    certificate = maker().certify(keys()["p256"].public_key())
    bag = Endorsements(certificates=(maker().root,))
    run: Callable[[], object] = lambda: verify_ek(certificate, bag, context=context(roots=frozenset()))  # noqa: E731
    assert refusal(run) == ("ek-certificate", "unknown-root")


def test_a_maker_of_the_same_name() -> None:
    forged = Maker().certify(keys()["p256"].public_key())
    assert refusal(lambda: ek_of(forged)) == ("ek-certificate", "bad-certificate")


BAD: dict[str, dict[str, Any]] = {
    "no purpose": {"purposes": ()},
    "an attestation key's purpose": {"purposes": (AK_EKU,)},
    "both purposes": {"purposes": (EK_EKU, AK_EKU)},
    "a key that signs": {"usage": key_usage(digital_signature=True)},
    "a key that signs too": {"usage": key_usage(digital_signature=True, key_agreement=True)},
    "usage of the other kind of key": {"usage": key_usage(key_encipherment=True)},
    "a key that certifies": {"usage": key_usage(key_agreement=True, key_cert_sign=True)},
    "a CA": {"ca": True},
    "no maker": {"attributes": ()},
    "no model": {"attributes": ("1", "3")},
    "two makers": {"attributes": ("1", "1", "2", "3")},
    "a maker without an id": {"maker": "Intel"},
}


@pytest.mark.parametrize("what", BAD)
def test_certificates_that_are_not_an_endorsement_keys(what: str) -> None:
    certificate = maker().certify(keys()["p256"].public_key(), **BAD[what])
    assert refusal(lambda: ek_of(certificate)) == ("ek-certificate", "bad-certificate")


def test_a_key_that_no_template_makes() -> None:
    certificate = maker().certify(ec.generate_private_key(ec.SECP521R1()).public_key())
    assert refusal(lambda: ek_of(certificate)) == ("ek-certificate", "bad-certificate")


def test_a_revoked_endorsement_key() -> None:
    certificate = maker().certify(keys()["p256"].public_key())
    assert len(ek_of(certificate, maker().crl()).collateral) == 1
    with pytest.raises(RevokedError) as refused:
        ek_of(certificate, maker().crl(certificate.serial_number))
    assert refused.value.code == "certificate-revoked"


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_the_attestation_ca(curve: ec.EllipticCurve) -> None:
    ca = new_attestation_ca("Owner", at=NOW, key=ec.generate_private_key(curve))
    _, pending = ask()
    activated = finish(pending, EnrolAnswer(secret=pending.secret), at=NOW)
    certificate = ca.certify(activated, machine="worker-7", at=NOW)
    assert certificate.not_valid_after_utc <= NOW + AK_LIFE
    named = {one.oid: one.value for one in certificate.subject}
    assert named[x509.NameOID.COMMON_NAME] == "worker-7"
    assert named[x509.NameOID.SERIAL_NUMBER] == fingerprint(activated.ek.certificate).hex()
    trusted = Context(at=NOW, roots=frozenset({fingerprint(ca.root)}))
    bag = Endorsements(certificates=(certificate, ca.root), crls=(ca.crl([], at=NOW),))
    chain, _ = verify_ak(AK, bag, context=trusted)
    assert not chain.vendor
    revoked = replace(bag, crls=(ca.crl([certificate.serial_number], at=NOW),))
    with pytest.raises(RevokedError):
        verify_ak(AK, revoked, context=trusted)


def test_certificates_end_with_their_tpms_certificate() -> None:
    _, pending = ask()
    end = pending.ek.certificate.not_valid_after_utc
    at = end - timedelta(days=1)
    activated = finish(replace(pending, expires=end), EnrolAnswer(secret=pending.secret), at=at)
    assert (
        new_attestation_ca("Owner", at=at).certify(activated, machine="m", at=at).not_valid_after_utc == end
    )


def test_what_a_ca_cannot_be() -> None:
    with pytest.raises(ValueError, match="P-256 or P-384"):
        new_attestation_ca("Owner", at=NOW, key=ec.generate_private_key(ec.SECP521R1()))
    _, pending = ask()
    activated = finish(pending, EnrolAnswer(secret=pending.secret), at=NOW)
    for name in ("", "x" * 65):
        with pytest.raises(ValueError, match="1 to 64"):
            new_attestation_ca("Owner", at=NOW).certify(activated, machine=name, at=NOW)
