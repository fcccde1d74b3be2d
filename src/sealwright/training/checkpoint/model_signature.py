"""OpenSSF model signing 1.0: `model.sig` beside the weights, which `model_signing verify key` accepts.

A sigstore bundle v0.3 with a DSSE envelope around an in-toto statement; a P-256 key signs. Spec: docs/spec/checkpoint.md.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from sealwright.crypto.canonical import parse_json
from sealwright.crypto.dsse import pae
from sealwright.errors import ArtefactFormatError, FormatError, VerificationError

MAX_SIGNATURE = 1 << 20  # bytes
STAGE = "model-signature"
_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_IN_TOTO = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
# What the tool leaves out where it is told nothing else.
_IGNORED = [".git", ".gitattributes", ".github", ".gitignore", "model.sig"]


def sign_model(name: str, digests: Mapping[str, bytes], key: EllipticCurvePrivateKey) -> bytes:
    """Return the bundle (JSON) that signs these files.

    Args:
        digests: SHA-256 of each file by its path below the model's folder.
        key: on P-256.
    """
    payload = json.dumps(_statement(name, digests), separators=(",", ":")).encode()
    signature = key.sign(pae(_IN_TOTO, payload), ECDSA(SHA256()))
    bundle = {
        "mediaType": _BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": _hint(key.public_key())}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _IN_TOTO,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle, separators=(",", ":")).encode()


def verify_model(bundle: bytes, digests: Mapping[str, bytes], key: EllipticCurvePublicKey) -> str:
    """Return the model's name, proved to be signed by `key` with exactly these files.

    Raises:
        ArtefactFormatError: `malformed-model-signature`.
        VerificationError: stage `model-signature`: `bad-signature`, `model-differs`.
    """
    try:
        match parse_json(bundle, limit=MAX_SIGNATURE):
            case {
                "mediaType": str(media),
                "dsseEnvelope": {
                    "payload": str(text),
                    "payloadType": str(kind),
                    "signatures": [{"sig": str(sig)}],
                },
            } if media == _BUNDLE and kind == _IN_TOTO:
                payload, raw = base64.b64decode(text, validate=True), base64.b64decode(sig, validate=True)
            case _:
                raise _malformed()
    except (FormatError, ValueError):
        raise _malformed() from None
    try:
        key.verify(raw, pae(kind, payload), ECDSA(SHA256()))
    except InvalidSignature:
        raise VerificationError(
            "the model's signature is not by the checkpoint's key", code="bad-signature", stage=STAGE
        ) from None
    return _same_files(payload, digests)


def model_key(spki: bytes) -> EllipticCurvePublicKey:
    """Return the P-256 key of a SubjectPublicKeyInfo. Raises ArtefactFormatError: `malformed-model-signature`."""
    try:
        key = load_der_public_key(spki)
    except ValueError:
        raise _malformed() from None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise _malformed()
    return key


def spki_of(key: EllipticCurvePublicKey) -> bytes:
    """Return the SubjectPublicKeyInfo (DER) of a key."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _same_files(payload: bytes, digests: Mapping[str, bytes]) -> str:
    try:
        statement = parse_json(payload, limit=MAX_SIGNATURE)
        name: str = statement["subject"][0]["name"]
        expected = _statement(name, digests)
    except (FormatError, KeyError, IndexError, TypeError):
        raise _malformed() from None
    said = statement.get("predicate", {}).get("resources"), statement["subject"]
    if statement.get("_type") != _STATEMENT or statement.get("predicateType") != _PREDICATE:
        raise _malformed()
    wanted = expected["predicate"]["resources"], expected["subject"]
    if said != wanted:  # as values: the tool writes members in any order; nothing here is secret
        raise VerificationError(
            "the model's signature is over other files", code="model-differs", stage=STAGE
        )
    return name


def _statement(name: str, digests: Mapping[str, bytes]) -> dict[str, Any]:
    ordered = dict(sorted(digests.items()))
    whole = hashlib.sha256(b"".join(ordered.values())).hexdigest()
    return {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": whole}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": _IGNORED,
            },
            "resources": [
                {"name": path, "algorithm": "sha256", "digest": value.hex()}
                for path, value in ordered.items()
            ],
        },
    }


def _hint(key: EllipticCurvePublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _malformed() -> ArtefactFormatError:
    return ArtefactFormatError(
        "this is no OpenSSF model signature by a P-256 key", code="malformed-model-signature", stage=STAGE
    )
