"""ID block of an SEV-SNP guest: its owner's signature over measurement and policy, which the processor checks at launch.

Layout: AMD 56860 (SNP Firmware ABI), ID_BLOCK and ID_AUTH, section 8.18 (SNP_LAUNCH_FINISH). Its key digests are registers
`id_key_digest` and `author_key_digest` of reports. Spec: docs/spec/predicted-measurements.md, "ID block".
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

_BLOCK = struct.Struct("<48s16s16sIIQ")
_VERSION = 1
_ECDSA_P384_SHA384 = 1  # algorithm
_P384 = 2  # curve
_NUMBER = 72  # bytes of a coordinate or half of a signature, little-endian
_KEY_BYTES, _SIGNATURE_BYTES, _AUTH_BYTES = 0x404, 0x200, 0x1000
_BLOCK_SIGNATURE, _ID_KEY, _KEY_SIGNATURE, _AUTHOR_KEY = 0x40, 0x240, 0x680, 0x880  # offsets in ID_AUTH


@dataclass(frozen=True, slots=True, kw_only=True)
class IdBlock:
    """What the owner says of a guest."""

    measurement: bytes  # 48 bytes
    policy: int  # guest policy, as it is launched with
    family_id: bytes = bytes(16)
    image_id: bytes = bytes(16)
    guest_svn: int = 0

    def encode(self) -> bytes:
        """Return ID_BLOCK (96 bytes). ValueError: a member of wrong size."""
        if (len(self.measurement), len(self.family_id), len(self.image_id)) != (48, 16, 16):
            raise ValueError("a measurement has 48 bytes, identities have 16")
        if not (0 <= self.policy < 1 << 64 and 0 <= self.guest_svn < 1 << 32):
            raise ValueError("a policy has 64 bits, an SVN 32")
        return _BLOCK.pack(
            self.measurement, self.family_id, self.image_id, _VERSION, self.guest_svn, self.policy
        )


def sign_id_block(
    block: IdBlock, id_key: ec.EllipticCurvePrivateKey, author: ec.EllipticCurvePrivateKey | None = None
) -> bytes:
    """Return ID_AUTH (4096 bytes): the block's signature, and the author's over the key that made it.

    Args:
        id_key: P-384.
        author: P-384; certifies `id_key`; None: there is no author key.
    """
    auth = bytearray(_AUTH_BYTES)
    public = encode_key(id_key.public_key())
    struct.pack_into("<II", auth, 0, _ECDSA_P384_SHA384, 0 if author is None else _ECDSA_P384_SHA384)
    _put(auth, _BLOCK_SIGNATURE, _signature(id_key, block.encode()))
    _put(auth, _ID_KEY, public)
    if author is not None:
        _put(auth, _KEY_SIGNATURE, _signature(author, public))
        _put(auth, _AUTHOR_KEY, encode_key(author.public_key()))
    return bytes(auth)


def encode_key(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return a P-384 key as the processor takes it (0x404 bytes). ValueError: another curve."""
    if not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("keys of ID blocks are of P-384")
    numbers = key.public_numbers()
    raw = (
        struct.pack("<I", _P384)
        + numbers.x.to_bytes(_NUMBER, "little")
        + numbers.y.to_bytes(_NUMBER, "little")
    )
    return raw.ljust(_KEY_BYTES, b"\0")


def key_digest(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return what a report has as `id_key_digest` or `author_key_digest` (48 bytes)."""
    return hashlib.sha384(encode_key(key)).digest()


def _signature(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA384())))
    return (r.to_bytes(_NUMBER, "little") + s.to_bytes(_NUMBER, "little")).ljust(_SIGNATURE_BYTES, b"\0")


def _put(auth: bytearray, at: int, data: bytes) -> None:
    auth[at : at + len(data)] = data
