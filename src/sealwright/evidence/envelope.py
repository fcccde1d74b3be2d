"""The envelope that carries any platform's evidence with its endorsements (docs/spec/software-platform.md)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sealwright.crypto.document import Bytes, Document, Record
from sealwright.errors import EvidenceFormatError, FormatError

MAX_ENVELOPE = 64 * 1024  # bytes
_MAX_CERTIFICATES = 8
_FormatErrorType = type[FormatError]  # the envelope has a member `type` of its own


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class Endorsements(Record):
    """What the evidence came with: the certificates of its key, leaf first, and their CRL, DER."""

    chain: Annotated[
        tuple[Bytes, ...], BeforeValidator(_tuple), Field(min_length=1, max_length=_MAX_CERTIFICATES)
    ]
    crl: Bytes


class EvidenceEnvelope(Document):
    """Evidence as it travels. Its type says how to read it, never whether to believe it."""

    format: Literal["sealwright-evidence/v1"] = "sealwright-evidence/v1"
    type: Literal["software"]
    evidence: Bytes
    endorsements: Endorsements

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.evidence:
            raise ValueError("evidence is empty")
        return self

    @classmethod
    def parse(
        cls, raw: bytes, *, limit: int = MAX_ENVELOPE, error: _FormatErrorType = EvidenceFormatError
    ) -> Self:
        """Return the envelope in `raw`.

        Raises:
            FormatError: as `error`: not canonical, too large, an unknown format or type.
        """
        return super().parse(raw, limit=limit, error=error)
