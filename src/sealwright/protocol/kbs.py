"""Messages of the KBS protocol 0.4.0, in the keyset form. Spec: docs/spec/key-release.md.

These come in as JSON that is neither canonical nor ours to spell, so members we do not know are
ignored where the protocol lets clients add them (`extra-params`), and refused elsewhere.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from sealwright.crypto.canonical import parse_json
from sealwright.crypto.document import Bytes, Count, Name, Record, validated
from sealwright.errors import MessageFormatError
from sealwright.protocol.enclave_config import TenantList
from sealwright.protocol.keyset import TeePubkey

KBS_VERSION = "0.4.0"
KEYSET_FORM = "keyset/v1"
SESSION_COOKIE = "kbs-session-id"
MAX_ATTEST = 2 * 1024 * 1024  # bytes
MAX_AUTH = 8 * 1024


class _Message(Record):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)


class AuthRequest(_Message):
    """Opens a session."""

    version: Literal["0.4.0"]
    tee: Annotated[str, Field(min_length=1, max_length=32)]
    extra_params: Annotated[dict[str, Any] | str, Field(alias="extra-params")] = ""

    def wants_keyset(self) -> bool:
        """Say whether the client asks for our keyset form."""
        return isinstance(self.extra_params, dict) and self.extra_params.get("sealwright") == KEYSET_FORM


class Challenge(_Message):
    """The broker's nonce, standard base64 as the protocol writes it."""

    nonce: Annotated[str, Field(max_length=64)]
    extra_params: Annotated[dict[str, Any] | str, Field(alias="extra-params")] = ""

    def nonce_bytes(self) -> bytes:
        """Return the nonce (32 bytes). Raises MessageFormatError."""
        return decode_nonce(self.nonce)


class KeysetForm(_Message):
    """What our enclaves add to runtime-data."""

    keyset: Bytes
    config: Bytes
    openings: Annotated[list[TenantList], Field(max_length=256)]


class RuntimeData(_Message):
    """What the evidence binds."""

    nonce: Annotated[str, Field(max_length=64)]
    tee_pubkey: Annotated[TeePubkey, Field(alias="tee-pubkey")]
    sealwright: KeysetForm


class TeeEvidence(_Message):
    """Evidence of the TEE (our envelope) and of devices (none yet)."""

    primary_evidence: dict[str, Any]
    additional_evidence: Literal[""] = ""


class AttestRequest(_Message):
    """Evidence for the session's nonce."""

    init_data: Annotated[None, Field(alias="init-data")] = None
    runtime_data: Annotated[RuntimeData, Field(alias="runtime-data")]
    tee_evidence: Annotated[TeeEvidence, Field(alias="tee-evidence")]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `init-data` is null, not absent, as the protocol has it."""
        return self.model_dump(mode="json", by_alias=True)


class LeaseRequest(_Message):
    """Asks for, or renews, the lease of one tenant; `answers` is the count given under the last one."""

    tenant: Name
    answers: Count


def is_keyset_form(said: object) -> bool:
    """Say whether a decoded attestation is in our keyset form, rather than a guest's of Confidential Containers."""
    runtime = said.get("runtime-data") if isinstance(said, dict) else None
    return isinstance(runtime, dict) and "sealwright" in runtime


def parse_message(cls: type[Record], raw: bytes, *, limit: int) -> Any:
    """Return the message in `raw`, bounded by `limit` bytes.

    Raises:
        MessageFormatError: not strict JSON, or not this message.
    """
    return validated(cls, parse_json(raw, limit=limit))


def encode_nonce(nonce: bytes) -> str:
    """Return a nonce as the KBS protocol writes it."""
    return base64.b64encode(nonce).decode("ascii")


def decode_nonce(text: str) -> bytes:
    """Return the 32 bytes of a KBS nonce. Raises MessageFormatError."""
    try:
        nonce = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise MessageFormatError("the nonce is not base64", code="malformed-base64") from None
    if len(nonce) != 32 or encode_nonce(nonce) != text:
        raise MessageFormatError("a nonce has 32 bytes", code="wrong-length")
    return nonce
