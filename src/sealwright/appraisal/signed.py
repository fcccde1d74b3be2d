"""Documents that are signed, versioned and expire: policies, trust files, reference values. Spec: docs/spec/signed-documents.md.

The rules are TUF's for its root: a new version is signed by a threshold of the keys that the old one names and by a
threshold of its own, its version is higher, and it has not expired.
"""

from __future__ import annotations

from typing import Annotated, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field, model_validator

from sealwright.crypto.document import Bytes32, Record
from sealwright.crypto.dsse import Envelope
from sealwright.errors import SettingsError, VerificationError

POLICY = "application/vnd.sealwright.policy.v1+json"
TRUST = "application/vnd.sealwright.trust.v1+json"
GUEST_POLICY = "application/vnd.sealwright.guest-policy.v1+json"
REFERENCE_VALUES = "application/vnd.sealwright.reference-values.v1+json"
_START = b'{"payload":'


class Signers(Record):
    """Ed25519 keys, and how many of them have to sign."""

    keys: Annotated[list[Bytes32], Field(min_length=1, max_length=16)]
    threshold: Annotated[int, Field(ge=1, le=16)] = 1

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if len(set(self.keys)) != len(self.keys) or self.threshold > len(self.keys):
            raise ValueError("a key stands twice, or fewer keys than the threshold")
        return self

    def public_keys(self) -> list[Ed25519PublicKey]:
        """Return the keys."""
        return [Ed25519PublicKey.from_public_bytes(key) for key in self.keys]

    def check(self, envelope: Envelope, payload_type: str, *, stage: str) -> bytes:
        """Return the payload, proved to be signed by the threshold of these keys.

        Raises:
            VerificationError: `wrong-payload-type`, `bad-signature`, `untrusted-signer`.
        """
        return envelope.verify(payload_type, self.public_keys(), threshold=self.threshold, stage=stage)


def is_signed(raw: bytes) -> bool:
    """Say whether a settings file is a DSSE envelope rather than YAML; nothing is verified."""
    return raw.startswith(_START)


def unverified_payload(raw: bytes) -> tuple[Envelope, bytes]:
    """Return an envelope and what is in it. Raises SettingsError."""
    envelope = Envelope.parse(raw, error=SettingsError)
    return envelope, envelope.unverified_payload


def check_succession(
    envelope: Envelope | None, payload_type: str, *, old: Signers | None, old_version: int, version: int
) -> None:
    """Prove that a new version may take the place of the one that names `old`.

    Args:
        old: None: the old one names no signers, and anyone who may write it may replace it.

    Raises:
        VerificationError: `version-rollback`, or a signature is missing.
    """
    if version <= old_version:
        raise VerificationError(
            f"version {version} does not follow version {old_version}",
            code="version-rollback",
            stage="version",
        )
    if old is not None and envelope is None:
        raise VerificationError(
            "the next version has to be signed by the signers that this one names",
            code="untrusted-signer",
            stage="signers",
        )
    if old is not None and envelope is not None:
        old.check(envelope, payload_type, stage="signers")
