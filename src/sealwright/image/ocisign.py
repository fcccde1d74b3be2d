"""Signatures of images in cosign's form: a payload that names the manifest's digest, signed by a key of the owner.

Format: cosign SIGNATURE_SPEC, simple signing. No transparency log of others is asked: the release's own log has it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from sealwright.crypto.canonical import canonical, parse_json
from sealwright.errors import SettingsError, VerificationError
from sealwright.image.oci import CONFIG, MANIFEST, Descriptor, LayoutReader, LayoutWriter

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"
MAX_PAYLOAD = 64 << 10  # bytes
MAX_SIGNATURES = 32
_TYPE = "cosign container image signature"
_REFERENCE = re.compile(r"[a-z0-9][a-z0-9._:/-]{0,254}", re.ASCII)

SigningKey = EllipticCurvePrivateKey | Ed25519PrivateKey
VerifyingKey = EllipticCurvePublicKey | Ed25519PublicKey


def load_signing_key(pem: bytes) -> SigningKey:
    """Return a P-256 or Ed25519 key from PKCS #8 in PEM. Raises SettingsError: `image-key`."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise _no_key() from None
    if isinstance(key, Ed25519PrivateKey) or (
        isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1)
    ):
        return key
    raise _no_key()


def load_verifying_key(pem: bytes) -> VerifyingKey:
    """Return a P-256 or Ed25519 public key from PEM. Raises SettingsError: `image-key`."""
    try:
        key = load_pem_public_key(pem)
    except ValueError:
        raise _no_key() from None
    if isinstance(key, Ed25519PublicKey) or (
        isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
    ):
        return key
    raise _no_key()


def payload(image: Descriptor, reference: str) -> bytes:
    """Return what is signed: the digest, and the repository that the image is for.

    Raises:
        SettingsError: `image-name`.
    """
    if not _REFERENCE.fullmatch(reference):
        raise SettingsError(
            f"{reference!r} is no repository, such as registry.example/broker", code="image-name"
        )
    critical = {
        "identity": {"docker-reference": reference},
        "image": {"docker-manifest-digest": image.digest},
        "type": _TYPE,
    }
    return canonical({"critical": critical, "optional": None})


def sign(key: SigningKey, content: bytes) -> bytes:
    """Return the signature; the same key and content give the same bytes."""
    if isinstance(key, Ed25519PrivateKey):
        return key.sign(content)
    return key.sign(content, ECDSA(SHA256(), deterministic_signing=True))


def write_signature(out: LayoutWriter, image: Descriptor, key: SigningKey, reference: str) -> Descriptor:
    """Add the artefact that cosign looks for beside an image, and return its manifest's descriptor."""
    content = payload(image, reference)
    layer = out.blob(content, SIMPLE_SIGNING)
    signed = Descriptor(
        media_type=SIMPLE_SIGNING,
        digest=layer.digest,
        size=layer.size,
        annotations={SIGNATURE: base64.b64encode(sign(key, content)).decode()},
    )
    config = {
        "architecture": "",
        "os": "",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": out.document(config, CONFIG).to_json(),
        "layers": [signed.to_json()],
    }
    return out.document(manifest, MANIFEST)


def signature_name(image: Descriptor) -> str:
    """Return the tag under which cosign keeps the signatures of an image."""
    return f"{image.digest.replace(':', '-')}.sig"


def verify_signature(layout: LayoutReader, image: Descriptor, key: VerifyingKey, reference: str) -> None:
    """Prove that `key` signed this image for `reference`.

    Raises:
        VerificationError: `image-not-signed`, `image-signature`.
    """
    names = [one.annotations.get("org.opencontainers.image.ref.name") for one in layout.index]
    if signature_name(image) not in names:
        raise VerificationError(
            f"{image.digest} has no signature", code="image-not-signed", stage="signature"
        )
    manifest = layout.document(layout.named(signature_name(image)))
    layers = manifest.get("layers")
    for layer in layers[:MAX_SIGNATURES] if isinstance(layers, list) else ():
        if _holds(layout, Descriptor.from_json(layer), image, key, reference):
            return
    raise VerificationError(
        f"no signature of {image.digest} is by this key and for {reference}",
        code="image-signature",
        stage="signature",
    )


def _holds(
    layout: LayoutReader, layer: Descriptor, image: Descriptor, key: VerifyingKey, reference: str
) -> bool:
    if layer.media_type != SIMPLE_SIGNING:
        return False
    content = layout.blob(layer, limit=MAX_PAYLOAD)
    try:
        signature = base64.b64decode(layer.annotations.get(SIGNATURE, ""), validate=True)
        _verify(key, signature, content)
    except (binascii.Error, ValueError, TypeError, InvalidSignature):
        return False
    return _names(parse_json(content, limit=MAX_PAYLOAD, error=SettingsError), image, reference)


def _verify(key: VerifyingKey, signature: bytes, content: bytes) -> None:
    if isinstance(key, Ed25519PublicKey):
        key.verify(signature, content)
    else:
        key.verify(signature, content, ECDSA(SHA256()))


def _names(said: Any, image: Descriptor, reference: str) -> bool:
    try:
        critical = said["critical"]
        digest = critical["image"]["docker-manifest-digest"]
        named = critical["identity"]["docker-reference"]
        return critical["type"] == _TYPE and named == reference and hmac.compare_digest(digest, image.digest)
    except (KeyError, TypeError):
        return False


def _no_key() -> SettingsError:
    return SettingsError(
        "a P-256 or Ed25519 key in PEM is wanted (private: PKCS #8, without a password)",
        code="image-key",
        stage="signature",
    )
