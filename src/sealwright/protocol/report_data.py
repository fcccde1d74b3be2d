"""What a quote's 64-byte slot must hold, by purpose. Spec: docs/spec/keyset.md, Report data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import StrEnum

from sealwright.crypto.canonical import canonical, canonical_digest
from sealwright.crypto.encoding import b64url, digest

DEVICE_LABEL = "sealwright/device/v1"
NONCE_BYTES = 32
REPORT_DATA_BYTES = 64


class Purpose(StrEnum):
    """Who asked for the quote; a verifier accepts only its own."""

    SERVE = "sealwright/serve/v1"
    LEASE = "sealwright/lease/v1"
    ENROL = "sealwright/enrol/v1"


def devices_digest(devices: Sequence[tuple[str, bytes]] = ()) -> bytes:
    """Return SHA-256 (32 bytes) over the devices' evidence: (type, SHA-256 of it) in slot order."""
    return canonical_digest([{"type": kind, "sha256": sha256.hex()} for kind, sha256 in devices])


def device_nonce(nonce: bytes, keyset_digest: bytes) -> bytes:
    """Return the 32 bytes that devices beside the CPU are asked with: all that ties their evidence to a keyset.

    Args:
        nonce: 32 bytes of the verifier.
        keyset_digest: SHA-256, 32 bytes.

    Raises:
        ValueError: a length is wrong.
    """
    if len(nonce) != NONCE_BYTES or len(keyset_digest) != 32:
        raise ValueError("nonce and keyset digest have 32 bytes")
    return digest(DEVICE_LABEL, nonce, keyset_digest)


def report_data(
    purpose: Purpose,
    *,
    nonce: bytes,
    config_digest: bytes,
    keyset_digest: bytes,
    devices: Sequence[tuple[str, bytes]] = (),
    run_spec_digest: bytes | None = None,
) -> bytes:
    """Return the 64 bytes that a quote for `purpose` must carry.

    Args:
        nonce: 32 bytes of the verifier.
        config_digest, keyset_digest, run_spec_digest: SHA-256, 32 bytes.

    Raises:
        ValueError: a length is wrong, or run_spec_digest does not belong to the purpose.
    """
    if len(nonce) != NONCE_BYTES or len(config_digest) != 32 or len(keyset_digest) != 32:
        raise ValueError("nonce and digests have 32 bytes")
    if (run_spec_digest is not None) != (purpose is Purpose.ENROL):
        raise ValueError("run_spec_digest belongs to purpose enrol only")
    bound = {
        "config_digest": config_digest.hex(),
        "devices_digest": devices_digest(devices).hex(),
        "keyset_digest": keyset_digest.hex(),
        "nonce": b64url(nonce),
        "purpose": str(purpose),
    }
    if run_spec_digest is not None:
        bound["run_spec_digest"] = run_spec_digest.hex()
    return hashlib.sha384(canonical(bound)).digest().ljust(REPORT_DATA_BYTES, b"\0")
