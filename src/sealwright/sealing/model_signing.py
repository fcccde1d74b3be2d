"""OpenSSF model signing 1.0: a signature over the files of a model that `model_signing verify key` accepts.

A sigstore bundle v0.3 with a DSSE envelope around an in-toto statement; an EC key signs. Spec: docs/spec/sealed-artefact.md,
Model signing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealwright.crypto.canonical import parse_json
from sealwright.crypto.dsse import pae
from sealwright.errors import ArtefactFormatError, FormatError, SettingsError, VerificationError

SIGNATURE = "model.sig"  # its name beside the files that it signs
# What the tool leaves out where it is told nothing else: it has to be left out for its verifier to accept a signature.
IGNORED = frozenset({SIGNATURE, ".git", ".gitattributes", ".github", ".gitignore"})
MAX_SIGNATURE = 2 << 20
STAGE = "model-signature"
_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_IN_TOTO = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_HASHES: tuple[tuple[type, HashAlgorithm], ...] = (
    (SECP256R1, SHA256()),
    (SECP384R1, SHA384()),
    (SECP521R1, SHA512()),
)


def sign_model(name: str, digests: Mapping[str, bytes], key: EllipticCurvePrivateKey) -> bytes:
    """Return the bundle, JSON, that signs these files.

    Args:
        name: of the model.
        digests: SHA-256 of each file, 32 bytes, by path below the model's folder; `IGNORED` is not signed.
        key: on P-256, P-384 or P-521.

    Raises:
        SettingsError: `wrong-model-key`: another curve.
    """
    # Deterministic: a sealing that goes on has to find the same signature again.
    algorithm = ECDSA(_hash(key.public_key()), deterministic_signing=True)
    payload = json.dumps(_statement(name, digests), separators=(",", ":"), ensure_ascii=True).encode()
    signature = key.sign(pae(_IN_TOTO, payload), algorithm)
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
    """Return the model's name, as it was signed, once the signature is `key`'s and of exactly these files.

    Args:
        bundle: what `sign_model` or the `model_signing` tool made with an EC key.
        digests: as of `sign_model`.

    Raises:
        ArtefactFormatError: `malformed-model-signature`.
        VerificationError: stage `model-signature`: `bad-signature`, `model-differs`.
        SettingsError: `wrong-model-key`.
    """
    algorithm = ECDSA(_hash(key))
    try:
        said = parse_json(bundle, limit=MAX_SIGNATURE)
        envelope = _member(said, "dsseEnvelope", dict)
        payload = base64.b64decode(_member(envelope, "payload", str), validate=True)
        (signature,) = _member(envelope, "signatures", list)
        raw = base64.b64decode(_member(signature, "sig", str), validate=True)
        kinds = (_member(said, "mediaType", str), _member(envelope, "payloadType", str))
    except (FormatError, ValueError) as exc:
        raise _malformed() from exc
    if kinds != (_BUNDLE, _IN_TOTO):
        raise _malformed()
    try:
        key.verify(raw, pae(_IN_TOTO, payload), algorithm)
    except InvalidSignature as exc:
        raise VerificationError(
            "the model's signature is not by this key, or was altered", code="bad-signature", stage=STAGE
        ) from exc
    return _compare(payload, digests)


def _compare(payload: bytes, digests: Mapping[str, bytes]) -> str:
    """Return the name in a genuine statement about exactly these files."""
    try:
        statement = parse_json(payload, limit=MAX_SIGNATURE)
        (subject,) = _member(statement, "subject", list)
        name: str = _member(subject, "name", str)
        said = _resources(_member(statement, "predicate", dict))
        types = (_member(statement, "_type", str), _member(statement, "predicateType", str))
        root = _member(_member(subject, "digest", dict), "sha256", str)
    except (FormatError, ValueError) as exc:
        raise _malformed() from exc
    if types != (_STATEMENT, _PREDICATE) or root != _root(said.values()):
        raise _malformed()
    unsigned = digests.keys() - said.keys()
    same = said.keys() <= digests.keys() and not any(signed(path) for path in unsigned)
    if not same or not all(hmac.compare_digest(said[path], digests[path]) for path in said):
        raise VerificationError("these are not the files that were signed", code="model-differs", stage=STAGE)
    return name


def signed(path: str) -> bool:
    """Return whether a signature covers the file at a path below the model's folder."""
    return path.partition("/")[0] not in IGNORED


def _statement(name: str, digests: Mapping[str, bytes]) -> dict[str, object]:
    ordered = {path: value for path, value in sorted(digests.items()) if signed(path)}
    return {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": _root(ordered.values())}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": sorted(IGNORED),
            },
            "resources": [
                {"name": path, "algorithm": "sha256", "digest": value.hex()}
                for path, value in ordered.items()
            ],
        },
    }


def _resources(predicate: dict[str, Any]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for one in _member(predicate, "resources", list):
        path = _member(one, "name", str)
        value = bytes.fromhex(_member(one, "digest", str))
        if path in found or _member(one, "algorithm", str) != "sha256" or len(value) != SHA256.digest_size:
            raise _malformed()
        found[path] = value
    return found


def _root(digests: Any) -> str:
    whole = hashlib.sha256()
    for value in digests:
        whole.update(value)
    return whole.hexdigest()


def _hash(key: EllipticCurvePublicKey) -> HashAlgorithm:
    for curve, algorithm in _HASHES:
        if isinstance(key.curve, curve):
            return algorithm
    raise SettingsError(
        "a model is signed with a key on P-256, P-384 or P-521: make one with "
        "`openssl ecparam -name prime256v1 -genkey -noout`",
        code="wrong-model-key",
    )


def _hint(key: EllipticCurvePublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _member(value: Any, name: str, kind: type) -> Any:
    if not isinstance(value, dict) or not isinstance(value.get(name), kind):
        raise _malformed()
    return value[name]


def _malformed() -> ArtefactFormatError:
    return ArtefactFormatError(
        "this is no OpenSSF model signature, made with a key and SHA-256 of each file",
        code="malformed-model-signature",
        stage=STAGE,
    )
