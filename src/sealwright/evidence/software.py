"""Quotes of the software platform: bytes in, frozen record out (docs/spec/software-platform.md).

No signature check, clock or network here; see `sealwright.verify.software`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sealwright.crypto.document import Bytes, Count, Digest, Document, Record
from sealwright.errors import EvidenceFormatError

LABEL = b"sealwright/software-quote/v1\0"
MAX_QUOTE = 4096  # bytes
SIGNATURE_SIZE = 96  # bytes: r and s of P-384
REPORT_DATA_SIZE = 64  # bytes


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class Claims(Record):
    """How well this process is guarded; the first value of each claim is the best one."""

    user: Literal["own", "shared"]
    sealed_root: Literal["tmpfs", "directory"]
    dumpable: Literal["never", "late"]
    core: Literal["off"]
    filesystem: Literal["landlock", "open"]
    seccomp: Literal["enforced", "none"]
    network: Literal["namespace", "seccomp", "open"]
    swap: Literal["none", "cgroup", "mlock", "reachable"]


class QuoteBody(Document):
    """The signed statement of a quoter about one process."""

    format: Literal["sealwright-software-quote/v1"] = "sealwright-software-quote/v1"
    quoter: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+-]{1,32}$")]
    boot_id: Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
    start_time: Count  # clock ticks since boot
    registers: Annotated[tuple[Digest, Digest], BeforeValidator(_tuple)]
    report_data: Bytes  # 64 bytes
    claims: Claims
    stated: Annotated[tuple[str, ...], BeforeValidator(_tuple)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.report_data) != REPORT_DATA_SIZE:
            raise ValueError(f"report_data has {REPORT_DATA_SIZE} bytes")
        if list(self.stated) != sorted(set(self.stated) & set(Claims.model_fields)):
            raise ValueError("stated is a sorted list of claims")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftwareQuote:
    """One quote, parsed; nothing in it is believed before `verify_software` has returned."""

    unverified_body: QuoteBody
    signed: bytes  # what the signature covers, as received
    signature: bytes  # 96 bytes, r and s

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse a quote.

        Raises:
            EvidenceFormatError: length, separator, or a body that is not exactly in its format.
        """
        if not SIGNATURE_SIZE + 2 <= len(raw) <= MAX_QUOTE:
            raise EvidenceFormatError(f"a software quote of {len(raw)} bytes", code="wrong-length")
        body, separator, signature = (
            raw[: -SIGNATURE_SIZE - 1],
            raw[-SIGNATURE_SIZE - 1 : -SIGNATURE_SIZE],
            raw[-SIGNATURE_SIZE:],
        )
        if separator != b"\n":
            raise EvidenceFormatError("no line feed before the signature", code="malformed-quote")
        parsed = QuoteBody.parse(body, limit=MAX_QUOTE, error=EvidenceFormatError)
        return cls(unverified_body=parsed, signed=LABEL + body, signature=signature)

    def encode(self) -> bytes:
        """Return the bytes that `parse` accepts."""
        return self.signed[len(LABEL) :] + b"\n" + self.signature
