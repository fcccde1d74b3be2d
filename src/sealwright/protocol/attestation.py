"""The attestation bundle that an enclave hands to a client, unverified. Spec: docs/spec/keyset.md."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from sealwright.crypto.document import Bytes, Bytes32, Document, Name

ATTESTATION_PATH = "/.well-known/sealwright/attestation"
GATEWAY_PATH = "/.well-known/sealwright/gateway"
MAX_BUNDLE = 2 * 1024 * 1024  # bytes


class AttestationRequest(Document):
    """Asks for evidence made for this nonce, with the lease of this tenant."""

    nonce: Bytes32
    tenant: Name


class AttestationBundle(Document):
    """Everything a client needs to decide; see `sealwright.client.verifier` for the steps."""

    format: Literal["sealwright-attestation/v1"] = "sealwright-attestation/v1"
    evidence: dict[str, Any]  # evidence envelope
    config: Bytes  # canonical enclave config
    keyset: Bytes  # canonical keyset
    broker_keys: dict[str, Any]  # DSSE
    lease: dict[str, Any]  # DSSE
    ear: Annotated[str, Field(max_length=64 * 1024)]  # compact JWT
