"""EAT attestation results (draft-ietf-rats-ear) as ES256 JWTs. Spec: docs/spec/appraisal.md."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey
from joserfc.jws import JWSRegistry

from sealwright.appraisal.platform import Appraisal
from sealwright.crypto.encoding import b64url
from sealwright.errors import CollateralError, MessageFormatError, VerificationError

PROFILE = "tag:ietf.org,2026:rats/ear#03"
LIFE = timedelta(minutes=5)
MAX_EAR = 64 * 1024  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Ear:
    """A verified result: its claims, and `ear_digest` (SHA-256 of the compact JWT)."""

    claims: Mapping[str, Any]
    digest: bytes


def issue_ear(
    appraisal: Appraisal,
    key: ECKey,
    *,
    nonce: bytes,
    config_digest: bytes,
    keyset_digest: bytes,
    evidence_digest: bytes,
    policies: Sequence[bytes],
    at: datetime,
    build: str,
) -> str:
    """Return the compact JWT of an appraisal, allowed or refused.

    Args:
        config_digest: 32 bytes; the appraisal's register was found to hold it.
        policies: digests (32 bytes) of the policies it was appraised against.
        at: time of issue.
    """
    own = {
        "config_digest": config_digest.hex(),
        "keyset_digest": keyset_digest.hex(),
        "evidence_digest": evidence_digest.hex(),
    }
    claims = {
        "eat_nonce": b64url(nonce),
        **_claims(appraisal, policies=policies, own=own, at=at, build=build),
    }
    return jwt.encode({"alg": "ES256", "typ": "eat-claims+jwt"}, claims, key, algorithms=["ES256"])


def issue_guest_ear(
    appraisal: Appraisal,
    key: ECKey,
    *,
    nonce: str,
    tee_pubkey: Mapping[str, object],
    evidence_digest: bytes,
    policies: Sequence[bytes],
    at: datetime,
    build: str,
) -> str:
    """Return the compact JWT for a guest of Confidential Containers: `tee-pubkey` inside, our key in the header.

    Args:
        nonce: the challenge as the guest was given it.
        tee_pubkey: the JWK as the guest sent it; the evidence vouches for it.
        policies: digests (32 bytes) of the policies it was appraised against.
        at: time of issue.
    """
    own = {"evidence_digest": evidence_digest.hex()}
    claims = {
        "eat_nonce": nonce,
        "tee-pubkey": dict(tee_pubkey),
        **_claims(appraisal, policies=policies, own=own, at=at, build=build),
    }
    header = {"alg": "ES256", "typ": "JWT", "jwk": key.as_dict(private=False)}
    return jwt.encode(header, claims, key, algorithms=["ES256"])


def _claims(
    appraisal: Appraisal, *, policies: Sequence[bytes], own: Mapping[str, object], at: datetime, build: str
) -> dict[str, Any]:
    main = submodule(appraisal, policies=policies, own=own)
    return {
        "eat_profile": PROFILE,
        "iat": int(at.timestamp()),
        "exp": int((at + LIFE).timestamp()),
        "ear_status": appraisal.status,
        "ear_verifier_id": {"developer": "sealwright", "build": build},
        "submods": {"cpu0": main} | {name: submodule(part) for name, part in appraisal.parts.items()},
    }


def submodule(
    appraisal: Appraisal, *, policies: Sequence[bytes] = (), own: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """Return the claims about one part of the evidence: draft names, and ours under `sealwright`.

    Args:
        policies: digests (32 bytes) of the policies it was appraised against.
        own: further members of ours, or other values of those.
    """
    return {
        "ear_status": appraisal.status,
        "ear_trustworthiness_vector": dict(appraisal.vector),
        "ear_appraisal_policy_ids": [digest.hex() for digest in (*policies, *appraisal.policies)],
        "sealwright": {
            "platform": appraisal.platform,
            "confidential": appraisal.confidential,
            "allowed": not appraisal.failures,
            "failures": [failure.code for failure in appraisal.failures],
            "code": appraisal.code.hex(),
            "claims": appraisal.claims,
            **(own or {}),
        },
    }


def verify_ear(token: str, key: ECKey, *, at: datetime | None) -> Ear:
    """Return a result proved to be issued under `key`; with `at`, also one that is still fresh.

    Raises:
        MessageFormatError, VerificationError: not ours. CollateralError: `ear-expired`.
    """
    if len(token) > MAX_EAR or not token.isascii():
        raise MessageFormatError("an EAR is a compact JWT of bounded size", code="malformed-ear")
    try:
        decoded = jwt.decode(token, key, algorithms=["ES256"], registry=JWSRegistry(algorithms=["ES256"]))
    except Exception as exc:  # noqa: BLE001 - the library meets a hostile header with TypeError and others
        raise VerificationError(
            f"the result does not verify ({type(exc).__name__})", code="ear-signature", stage="ear"
        ) from None
    claims = decoded.claims
    if claims.get("eat_profile") != PROFILE:
        raise MessageFormatError("the result is of another profile", code="malformed-ear")
    expires = claims.get("exp")
    if not isinstance(expires, int):
        raise MessageFormatError("the result has no expiry", code="malformed-ear")
    if at is not None and at >= datetime.fromtimestamp(expires, UTC):
        raise CollateralError("the result has expired", code="ear-expired", stage="ear")
    return Ear(claims=claims, digest=ear_digest(token))


def ear_digest(token: str) -> bytes:
    """Return SHA-256 (32 bytes) of the compact JWT."""
    return hashlib.sha256(token.encode("ascii")).digest()
