"""TPM2_MakeCredential without a TPM: a secret that only the TPM of an endorsement key gives out, and only for one key.

TPM 2.0 Library part 1, "Credential Protection", annexes B.10 (RSA) and C.6 (ECC), and section 11.4.10 (KDFa, KDFe).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES

from sealwright.evidence.tpmkey import TpmtPublic
from sealwright.evidence.tpmwire import DIGEST_SIZE, Bank, sized, u32

_HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What TPM2_ActivateCredential takes."""

    blob: bytes  # TPM2B_ID_OBJECT, its content
    secret: bytes  # TPM2B_ENCRYPTED_SECRET, its content


def make_credential(ek: TpmtPublic, name: bytes, secret: bytes, *, seed: bytes) -> Credential:
    """Return `secret` encrypted to the TPM of `ek`, which gives it out for the key of Name `name` alone.

    The key exchange or OAEP draws its own randomness.

    Args:
        name: of the attestation key; covers its attributes.
        secret: at most as long as a digest of the endorsement key's nameAlg.
        seed: random bytes as long as that digest; used with RSA.
    """
    size = DIGEST_SIZE[ek.nameAlg]
    if ek.nameAlg not in _HASHES or not ek.symmetric_bits or len(seed) != size or not 0 < len(secret) <= size:
        raise ValueError("a secret or seed of a wrong length, or a key that is no endorsement key")
    key = ek.key()
    if isinstance(key, rsa.RSAPublicKey):
        encrypted = key.encrypt(seed, _oaep(ek.nameAlg))
    else:
        seed, encrypted = _shared(ek.nameAlg, key)
    storage = kdf_a(ek.nameAlg, seed, "STORAGE", name, b"", ek.symmetric_bits)
    encryptor = Cipher(AES(storage), CFB(bytes(16))).encryptor()
    identity = encryptor.update(sized(secret)) + encryptor.finalize()
    integrity = kdf_a(ek.nameAlg, seed, "INTEGRITY", b"", b"", size * 8)
    tag = hmac.digest(integrity, identity + name, ek.nameAlg)
    return Credential(blob=sized(tag) + identity, secret=encrypted)


def kdf_a(algorithm: Bank, key: bytes, label: str, context_u: bytes, context_v: bytes, bits: int) -> bytes:
    """Return `bits` of KDFa: SP 800-108 in counter mode with HMAC."""
    fixed = label.encode() + b"\0" + context_u + context_v + u32(bits)
    blocks = -(-bits // (DIGEST_SIZE[algorithm] * 8))
    found = b"".join(hmac.digest(key, u32(count) + fixed, algorithm) for count in range(1, blocks + 1))
    return found[: bits // 8]


def kdf_e(algorithm: Bank, z: bytes, label: str, party_u: bytes, party_v: bytes, bits: int) -> bytes:
    """Return `bits` of KDFe: SP 800-56A's one-step derivation.

    Args:
        z, party_u, party_v: x coordinates, as long as the field.
    """
    fixed = z + label.encode() + b"\0" + party_u + party_v
    blocks = -(-bits // (DIGEST_SIZE[algorithm] * 8))
    found = b"".join(hashlib.new(algorithm, u32(count) + fixed).digest() for count in range(1, blocks + 1))
    return found[: bits // 8]


def _oaep(algorithm: Bank) -> padding.OAEP:
    hash_ = _HASHES[algorithm]
    return padding.OAEP(padding.MGF1(hash_), hash_, b"IDENTITY\0")


def _shared(algorithm: Bank, key: ec.EllipticCurvePublicKey) -> tuple[bytes, bytes]:
    """Return the seed, and the ephemeral point that lets the TPM find it."""
    size = (key.curve.key_size + 7) // 8
    ephemeral = ec.generate_private_key(key.curve)
    x, y = (part.to_bytes(size, "big") for part in _xy(ephemeral.public_key()))
    z = ephemeral.exchange(ec.ECDH(), key)
    own = _xy(key)[0].to_bytes(size, "big")
    return kdf_e(algorithm, z, "IDENTITY", x, own, DIGEST_SIZE[algorithm] * 8), sized(x) + sized(y)


def _xy(key: ec.EllipticCurvePublicKey) -> tuple[int, int]:
    numbers = key.public_numbers()
    return numbers.x, numbers.y
