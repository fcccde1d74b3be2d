"""A reader of protocol-buffer messages that has one reading of each message, or none. No I/O.

The usual readers let a later field overwrite an earlier one and merge messages: here a field that is not a list
stands once. Groups, fixed-width fields and varints longer than they need to be are refused.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self, TypeVar

from sealwright.errors import EvidenceFormatError

MAX_FIELDS = 4096
_VARINT, _BYTES = 0, 2
_T = TypeVar("_T", int, bytes)


@dataclass(frozen=True, slots=True)
class Message:
    """The fields of one message, by number, in the order they came."""

    fields: dict[int, list[int | bytes]]

    @classmethod
    def parse(cls, raw: bytes, *, known: Collection[int] | None = None) -> Self:
        """Read `raw`.

        Args:
            known: the field numbers that may stand in it; None: any.

        Raises:
            EvidenceFormatError: `malformed-protobuf`.
        """
        fields: dict[int, list[int | bytes]] = {}
        at = count = 0
        while at < len(raw):
            tag, at = _varint(raw, at)
            number, wire = tag >> 3, tag & 7
            value: int | bytes
            value, at = size, _ = _varint(raw, at)
            if wire == _BYTES:
                if size > len(raw) - at:
                    raise _malformed("a field reaches past the end")
                value, at = raw[at : at + size], at + size
            elif wire != _VARINT:
                raise _malformed(f"wire type {wire}")
            count += 1
            if number == 0 or count > MAX_FIELDS or (known is not None and number not in known):
                raise _malformed(f"field {number}, or too many fields")
            fields.setdefault(number, []).append(value)
        return cls(fields)

    def many(self, number: int) -> list[bytes]:
        """Return every value of a repeated field of bytes or messages. Raises EvidenceFormatError."""
        return [_typed(value, bytes, number) for value in self.fields.get(number, [])]

    def raw(self, number: int) -> bytes:
        """Return a field of bytes, empty where it is left out. Raises EvidenceFormatError."""
        value = self._one(number)
        return b"" if value is None else _typed(value, bytes, number)

    def integer(self, number: int) -> int:
        """Return an unsigned field, 0 where it is left out. Raises EvidenceFormatError."""
        value = self._one(number)
        return 0 if value is None else _typed(value, int, number)

    def _one(self, number: int) -> int | bytes | None:
        values = self.fields.get(number, [])
        if len(values) > 1:
            raise _malformed(f"field {number} stands twice")
        return values[0] if values else None


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(raw):
            break
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if (byte == 0 and shift) or value >= 1 << 64:
                break
            return value, at
    raise _malformed("a varint that does not end, or is longer than it needs to be")


def _typed(value: int | bytes, kind: type[_T], number: int) -> _T:
    if not isinstance(value, kind):
        raise _malformed(f"field {number} is of another type")
    return value


def _malformed(what: str) -> EvidenceFormatError:
    return EvidenceFormatError(
        f"not the protocol-buffer message it should be: {what}", code="malformed-protobuf"
    )
