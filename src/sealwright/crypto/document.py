"""The base of every JSON document that is signed or digested: strict fields, one spelling.

`Document.parse` accepts only RFC 8785 bytes and `encode(parse(x)) == x` holds for what it accepts.
Spec: docs/spec/encodings.md.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError

from sealwright.crypto.canonical import MAX_JSON, canonical, parse_canonical
from sealwright.crypto.encoding import b64url, b64url_decode, hex_decode, rfc3339, rfc3339_decode
from sealwright.errors import FormatError, MessageFormatError


def _binary(length: int | None) -> PlainValidator:
    def check(value: object) -> bytes:
        raw = _decoded(b64url_decode, value)
        if length is not None and len(raw) != length:
            raise ValueError(f"{len(raw)} bytes where {length} are wanted")
        return raw

    return PlainValidator(check)


def _hex(length: int) -> PlainValidator:
    def check(value: object) -> bytes:
        raw = _decoded(hex_decode, value)
        if len(raw) != length:
            raise ValueError(f"{len(raw)} bytes where {length} are wanted")
        return raw

    return PlainValidator(check)


def _decoded(decode: Any, value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("a text is wanted")
    try:
        raw: bytes = decode(value)
    except FormatError as exc:
        raise ValueError(str(exc)) from None
    return raw


def _time(value: object) -> datetime:
    if isinstance(value, datetime):
        return rfc3339_decode(rfc3339(value))  # to the second, like what is written
    if not isinstance(value, str):
        raise ValueError("a time is wanted")
    try:
        return rfc3339_decode(value)
    except FormatError as exc:
        raise ValueError(str(exc)) from None


_AS_B64 = PlainSerializer(b64url, return_type=str)
_AS_HEX = PlainSerializer(bytes.hex, return_type=str)

Bytes = Annotated[bytes, _binary(None), _AS_B64]
Bytes32 = Annotated[bytes, _binary(32), _AS_B64]  # keys, nonces, salts
Digest = Annotated[bytes, _hex(32), _AS_HEX]  # SHA-256
Id16 = Annotated[bytes, _hex(16), _AS_HEX]  # random identifiers
Time = Annotated[datetime, PlainValidator(_time), PlainSerializer(rfc3339, return_type=str)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]


class Record(BaseModel):
    """A part of a document: frozen, strict, unknown members refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


R = TypeVar("R", bound=Record)


class Document(Record):
    """A whole document with a canonical encoding."""

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return canonical(self.to_json())

    def digest(self) -> bytes:
        """Return SHA-256 of the canonical bytes (32 bytes)."""
        return hashlib.sha256(self.encode()).digest()

    @classmethod
    def parse(
        cls, raw: bytes, *, limit: int = MAX_JSON, error: type[FormatError] = MessageFormatError
    ) -> Self:
        """Return the document in `raw`.

        Raises:
            FormatError: as `error`: not canonical, a member missing, unknown or of a wrong form.
        """
        document = cls.from_json(parse_canonical(raw, limit=limit, error=error), error=error)
        # A member left to its default would give one document two byte strings, and another digest.
        if document.encode() != raw:
            raise error(f"{cls.__name__}: a member with one value only is left out", code="not-canonical")
        return document

    @classmethod
    def from_json(cls, value: object, *, error: type[FormatError] = MessageFormatError) -> Self:
        """Return the document of already decoded JSON values.

        Raises:
            FormatError: as `error`.
        """
        return validated(cls, value, error)


def validated(cls: type[R], value: object, error: type[FormatError] = MessageFormatError) -> R:
    """Return the record in decoded JSON values.

    Raises:
        FormatError: as `error`; the text names the member, never its value.
    """
    try:
        return cls.model_validate(value)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise error(f"{cls.__name__}: {where}: {first['msg']}", code="malformed-document") from None
