"""CMS EnvelopedData as AWS KMS seals a key to a Nitro enclave: one recipient, RSAES-OAEP, AES-256-CBC.

RFC 5652 section 6, in BER with or without indefinite lengths; nothing else of CMS.
Spec: docs/spec/key-backends.md, In-backend release.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.padding import PKCS7

from sealwright.errors import MessageFormatError, VerificationError

MAX_BYTES = 64 << 10
MAX_DEPTH = 12
SEQUENCE, SET, INTEGER, OCTETS, OID = 0x30, 0x31, 0x02, 0x04, 0x06
EXPLICIT_0, IMPLICIT_0 = 0xA0, 0x80
ENVELOPED_DATA = bytes.fromhex("2a864886f70d010703")
DATA = bytes.fromhex("2a864886f70d010701")
RSAES_OAEP = bytes.fromhex("2a864886f70d010107")
AES256_CBC = bytes.fromhex("60864801650304012a")
# Parameters of RSAES-OAEP (RFC 8017, A.2.1): [0] SHA-256, [1] MGF1 with SHA-256; NULL may stand beside SHA-256.
_SHA256 = bytes.fromhex("608648016503040201")
_MGF1 = bytes.fromhex("2a864886f70d010108")
_BLOCK = 16


@dataclass(frozen=True, slots=True)
class Node:
    """One BER value: its content where it is primitive, else its parts."""

    tag: int
    content: bytes
    parts: tuple[Node, ...]


def open_enveloped(raw: bytes, private: RSAPrivateKey) -> bytes:
    """Return the content of EnvelopedData that was sealed to `private`.

    CBC proves nothing of where it comes from: what is opened must be checked by what it is for (a key, by
    the artefact's key commitment).

    Raises:
        MessageFormatError: `malformed-cms`. VerificationError: `recipient-open-failed`, whatever failed.
    """
    encrypted_key, nonce, sealed = _parse(raw)
    oaep = OAEP(mgf=MGF1(SHA256()), algorithm=SHA256(), label=None)
    try:
        key = private.decrypt(encrypted_key, oaep)
        decryptor = Cipher(AES256(key), CBC(nonce)).decryptor()
        padded = decryptor.update(sealed) + decryptor.finalize()
        unpadder = PKCS7(8 * _BLOCK).unpadder()
        return unpadder.update(padded) + unpadder.finalize()
    except ValueError:
        raise VerificationError(
            "what the key service sealed does not open with this enclave's key",
            code="recipient-open-failed",
            stage="open",
        ) from None


def _parse(raw: bytes) -> tuple[bytes, bytes, bytes]:
    """Return encrypted key, IV and ciphertext."""
    if len(raw) > MAX_BYTES:
        raise _malformed()
    node, rest = _read(raw, MAX_DEPTH)
    kind, body = _parts(node, SEQUENCE, 2)
    (enveloped,) = _parts(body, EXPLICIT_0, 1)
    version, recipients, content = _parts(enveloped, SEQUENCE, 3)
    (recipient,) = _parts(recipients, SET, 1)
    recipient_version, identifier, algorithm, encrypted_key = _parts(recipient, SEQUENCE, 4)
    content_type, cipher, sealed = _parts(content, SEQUENCE, 3)
    cipher_id, nonce = _parts(cipher, SEQUENCE, 2)
    wanted = (
        (kind, OID, ENVELOPED_DATA),
        (version, INTEGER, b"\x02"),
        (recipient_version, INTEGER, b"\x02"),
        (content_type, OID, DATA),
        (cipher_id, OID, AES256_CBC),
    )
    if rest or any((node.tag, node.content) != (tag, value) for node, tag, value in wanted):
        raise _malformed()
    _check_oaep(algorithm)
    if identifier.tag != IMPLICIT_0 or nonce.tag != OCTETS or encrypted_key.tag != OCTETS:
        raise _malformed()
    if len(nonce.content) != _BLOCK:
        raise _malformed()
    return encrypted_key.content, nonce.content, _octets(sealed)


def _check_oaep(algorithm: Node) -> None:
    name, parameters = _parts(algorithm, SEQUENCE, 2)
    hashed, masked = _parts(parameters, SEQUENCE, 2)
    (hash_id,) = _parts(hashed, EXPLICIT_0, 1)
    (mask,) = _parts(masked, EXPLICIT_0 + 1, 1)
    mask_name, mask_hash = _parts(mask, SEQUENCE, 2)
    if (name.tag, name.content) != (OID, RSAES_OAEP) or (mask_name.tag, mask_name.content) != (OID, _MGF1):
        raise _malformed()
    for one in (hash_id, mask_hash):
        sha, null = (OID, _SHA256), (5, b"")
        if one.tag != SEQUENCE or [(part.tag, part.content) for part in one.parts] not in (
            [sha],
            [sha, null],
        ):
            raise _malformed()


def _octets(node: Node) -> bytes:
    if node.tag == IMPLICIT_0:
        return node.content
    if node.tag == IMPLICIT_0 | 0x20 and all(part.tag == OCTETS for part in node.parts):
        return b"".join(part.content for part in node.parts)
    raise _malformed()


def _parts(node: Node, tag: int, count: int) -> tuple[Node, ...]:
    if node.tag != tag or len(node.parts) != count:
        raise _malformed()
    return node.parts


def _read(raw: bytes, depth: int) -> tuple[Node, bytes]:
    """Return the first value in `raw`, and what follows it."""
    if len(raw) < 2 or depth == 0 or raw[0] & 0x1F == 0x1F:
        raise _malformed()
    tag, constructed = raw[0], bool(raw[0] & 0x20)
    if raw[1] == 0x80:
        if not constructed:
            raise _malformed()
        return _indefinite(tag, raw[2:], depth)
    length, start = _length(raw)
    content, rest = raw[start : start + length], raw[start + length :]
    if len(content) != length:
        raise _malformed()
    if not constructed:
        return Node(tag, content, ()), rest
    parts = []
    while content:
        part, content = _read(content, depth - 1)
        parts.append(part)
    return Node(tag, b"", tuple(parts)), rest


def _indefinite(tag: int, raw: bytes, depth: int) -> tuple[Node, bytes]:
    parts = []
    while raw[:2] != b"\0\0":
        part, raw = _read(raw, depth - 1)
        parts.append(part)
    return Node(tag, b"", tuple(parts)), raw[2:]


def _length(raw: bytes) -> tuple[int, int]:
    if raw[1] < 0x80:
        return raw[1], 2
    size = raw[1] & 0x7F
    if size > 3 or len(raw) < 2 + size:
        raise _malformed()
    return int.from_bytes(raw[2 : 2 + size], "big"), 2 + size


def _malformed() -> MessageFormatError:
    return MessageFormatError(
        "not EnvelopedData as a key service makes it for an enclave", code="malformed-cms"
    )
