"""Messages of the KBS protocol 0.4.0 as the guest components of Confidential Containers speak it.

Spec: docs/spec/kbs-guest.md.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from sealwright.crypto.canonical import canonical
from sealwright.crypto.document import Record, validated
from sealwright.errors import AppraisalError, AppraisalFailure, MessageFormatError, VerificationError
from sealwright.protocol.jwe import EcPubkey

HashName = Literal["sha384", "sha512", "sha256"]
REPORT_DATA_BYTES = 64
DEVICE_NONCE_BYTES = 32
MAX_INIT_DATA = 256 * 1024  # characters
RESOURCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,63}){2}", re.ASCII)
_PREFERRED: Final[tuple[HashName, ...]] = ("sha384", "sha512", "sha256")
_HASHES: Final[Mapping[HashName, Callable[..., Any]]] = {
    "sha256": hashlib.sha256,
    "sha384": hashlib.sha384,
    "sha512": hashlib.sha512,
}
_SUPPORTED = "supported-hash-algorithms"
SELECTED = "selected-hash-algorithm"


class _Message(Record):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)


class GuestRuntimeData(_Message):
    """What the evidence binds, as it was sent."""

    nonce: Annotated[str, Field(max_length=64)]
    tee_pubkey: Annotated[dict[str, Any], Field(alias="tee-pubkey")]


class GuestEvidence(_Message):
    """Evidence of the TEE and, as JSON text, of devices."""

    primary_evidence: dict[str, Any]
    additional_evidence: str = ""


class InitData(_Message):
    """The text whose digest the host put into a register at launch."""

    format: Literal["toml"]
    body: Annotated[str, Field(max_length=MAX_INIT_DATA)]

    def digest(self) -> bytes:
        """Return its digest by the algorithm that it names.

        Raises:
            MessageFormatError: `malformed-init-data`.
        """
        try:
            said = tomllib.loads(self.body)
        except (tomllib.TOMLDecodeError, RecursionError):
            said = {}
        name = str(said.get("algorithm", "")).lower().replace("-", "")
        found = next((hashed for known, hashed in _HASHES.items() if known == name), None)
        if found is None or said.get("version") != "0.1.0":
            raise MessageFormatError(
                "init-data is TOML with version 0.1.0 and algorithm sha256, sha384 or sha512",
                code="malformed-init-data",
            )
        return bytes(found(self.body.encode()).digest())


class GuestAttestRequest(_Message):
    """Evidence for the session's nonce."""

    init_data: Annotated[InitData | None, Field(alias="init-data")] = None
    runtime_data: Annotated[GuestRuntimeData, Field(alias="runtime-data")]
    tee_evidence: Annotated[GuestEvidence, Field(alias="tee-evidence")]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestBinding:
    """What a guest's evidence has to hold, and the key that it vouches for."""

    tee_pubkey: EcPubkey
    tee_pubkey_digest: bytes  # SHA-256 of JCS of the JWK as it was sent
    report_data: bytes  # 64 bytes
    device_nonce: bytes  # 32 bytes


def select_hash(extra_params: object) -> HashName:
    """Return the hash of report data: the first of ours that the guest supports; without a list SHA-384.

    Raises:
        AppraisalError: `hash-unsupported`. MessageFormatError: `malformed-extra-params`.
    """
    listed = extra_params.get(_SUPPORTED) if isinstance(extra_params, dict) else None
    if listed is None:
        return "sha384"
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise MessageFormatError(f"{_SUPPORTED} is a list of names", code="malformed-extra-params")
    names = {one.lower().replace("-", "") for one in listed}
    for name in _PREFERRED:
        if name in names:
            return name
    text = f"none of the guest's hash algorithms is one of {', '.join(_PREFERRED)}"
    raise AppraisalError([AppraisalFailure(text, code="hash-unsupported")], stage="auth")


def bind(request: GuestAttestRequest, nonce: str, hash_name: HashName) -> GuestBinding:
    """Return what the evidence must hold for this session's nonce.

    Args:
        nonce: as it was sent in the challenge.

    Raises:
        VerificationError: `nonce-mismatch`, `tee-pubkey-mismatch`. AppraisalError: `tee-pubkey-unsupported`.
        MessageFormatError: the key is malformed.
    """
    said = request.runtime_data
    if not hmac.compare_digest(said.nonce.encode(), nonce.encode()):
        raise VerificationError("the nonce is not this session's", code="nonce-mismatch", stage="nonce")
    key = _pubkey(said.tee_pubkey)
    bound = {"nonce": nonce, "tee-pubkey": said.tee_pubkey}
    hashed = _HASHES[hash_name]
    primary = hashed(
        canonical({**bound, "additional-evidence": request.tee_evidence.additional_evidence})
    ).digest()
    return GuestBinding(
        tee_pubkey=key,
        tee_pubkey_digest=hashlib.sha256(canonical(said.tee_pubkey)).digest(),
        report_data=primary.ljust(REPORT_DATA_BYTES, b"\0"),
        device_nonce=hashed(canonical(bound)).digest()[:DEVICE_NONCE_BYTES],
    )


def _pubkey(said: dict[str, Any]) -> EcPubkey:
    if (said.get("kty"), said.get("crv"), said.get("alg")) != ("EC", "P-256", "ECDH-ES+A256KW"):
        text = "only tee-pubkeys of kty EC, crv P-256 and alg ECDH-ES+A256KW are served"
        raise AppraisalError([AppraisalFailure(text, code="tee-pubkey-unsupported")], stage="keyset")
    key: EcPubkey = validated(EcPubkey, said, MessageFormatError)
    key.public_key()
    return key
