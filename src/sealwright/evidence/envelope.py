"""The envelope that carries any platform's evidence with its endorsements. Spec: docs/spec/evidence.md."""

from __future__ import annotations

from hashlib import sha256
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sealwright.crypto.document import Bytes, Document, Record
from sealwright.errors import EvidenceFormatError, FormatError

MAX_ENVELOPE = 1024 * 1024  # bytes
MAX_ENDORSEMENTS = 64
MAX_DEVICES = 32
_FormatErrorType = type[FormatError]  # the envelope has a member `type` of its own

PlatformType = Literal["software", "snp", "tdx", "sgx", "nitro", "tpm", "az-snp-vtpm", "az-tdx-vtpm"]
DeviceType = Literal["nvgpu", "nvswitch"]


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


_Endorsements = Annotated[tuple[Bytes, ...], BeforeValidator(_tuple), Field(max_length=MAX_ENDORSEMENTS)]


class _Part(Record):
    evidence: Bytes  # as the vendor's interface gave it
    event_log: Bytes | None = None  # CCEL, TCG log; what it says is replayed to the signed registers
    runtime_log: Bytes | None = None  # systemd's, of what it extended after the event log had ended
    endorsements: _Endorsements  # sorted by content, see `sealwright.endorsement.bag`

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.evidence:
            raise ValueError("evidence is empty")
        if self.runtime_log is not None and self.event_log is None:
            raise ValueError("a runtime log goes on where an event log has ended")
        return self


class DeviceEvidence(_Part):
    """Evidence of one device beside the CPU."""

    type: DeviceType


class VtpmEvidence(_Part):
    """A quote of the virtual TPM beside the TEE's own evidence, over the same report data."""

    type: Literal["tpm"] = "tpm"


class EvidenceEnvelope(_Part, Document):
    """Evidence as it travels. Its type says how to read it, never whether to believe it."""

    format: Literal["sealwright-evidence/v1"] = "sealwright-evidence/v1"
    type: PlatformType
    vtpm: VtpmEvidence | None = None
    devices: Annotated[
        tuple[DeviceEvidence, ...], BeforeValidator(_tuple), Field(max_length=MAX_DEVICES)
    ] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the envelope as plain JSON values; without devices it has no member `devices`."""
        value = super().to_json()
        if not self.devices:
            del value["devices"]
        return value

    def device_digests(self) -> list[tuple[str, bytes]]:
        """Return (type, SHA-256 of its evidence) of each device in slot order: what `devices_digest` covers."""
        return [(device.type, sha256(device.evidence).digest()) for device in self.devices]

    @classmethod
    def parse(
        cls, raw: bytes, *, limit: int = MAX_ENVELOPE, error: _FormatErrorType = EvidenceFormatError
    ) -> Self:
        """Return the envelope in `raw`.

        Raises:
            FormatError: as `error`: not canonical, too large, an unknown format or type.
        """
        return super().parse(raw, limit=limit, error=error)
