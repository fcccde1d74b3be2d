"""What a release is for, as its asker names it. Spec: docs/spec/life-cycle.md, Naming a use."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field

from sealwright.appraisal.limits import PurposeText
from sealwright.crypto.document import Count, Document, Name
from sealwright.crypto.encoding import b64url, b64url_decode

MAX_USE = 1024  # bytes
PARAMETER = "use"  # of the resource's address


class Use(Document):
    """One use of a key: signed by nobody, bound into the release, counted against budgets."""

    purpose: PurposeText | None = None
    run: Name | None = None
    epoch: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None  # of the run
    rows: Count | None = None

    def to_text(self) -> str:
        """Return what stands in the address: base64url of the canonical bytes."""
        return b64url(self.encode())

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the use in an address. Raises MessageFormatError."""
        return cls.parse(b64url_decode(text), limit=MAX_USE)
