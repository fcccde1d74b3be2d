"""A strict reader of DER (X.690): definite, shortest lengths, nothing left over. For extensions that pyca leaves raw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sealwright.errors import EvidenceFormatError, FormatError

MAX_OID = 64  # bytes; Python would not even print a longer arc
BOOLEAN, INTEGER, OCTET_STRING, OID, ENUMERATED, SEQUENCE = 0x01, 0x02, 0x04, 0x06, 0x0A, 0x30


@dataclass(frozen=True, slots=True)
class Element:
    """One element: its tag byte and its content."""

    tag: int
    content: bytes

    def octets(self, length: int | None = None) -> bytes:
        """Return the content of an OCTET STRING, of `length` bytes if given. Raises FormatError."""
        content = self._content(OCTET_STRING)
        if length is not None and len(content) != length:
            raise _malformed(f"an OCTET STRING of {len(content)} bytes where {length} are wanted")
        return content

    def integer(self, *, tag: int = INTEGER) -> int:
        """Return a non-negative INTEGER (or ENUMERATED) in its shortest form. Raises FormatError."""
        content = self._content(tag)
        padded = len(content) > 1 and content[0] == 0 and content[1] < 0x80
        if not content or content[0] >= 0x80 or padded:
            raise _malformed("an INTEGER that is negative or not in its shortest form")
        return int.from_bytes(content, "big")

    def boolean(self) -> bool:
        """Return a BOOLEAN, which DER writes as 00 or FF. Raises FormatError."""
        content = self._content(BOOLEAN)
        if content not in (b"\x00", b"\xff"):
            raise _malformed("a BOOLEAN that is neither 00 nor FF")
        return content == b"\xff"

    def oid(self) -> str:
        """Return an OBJECT IDENTIFIER in dotted form. Raises FormatError."""
        return ".".join(str(arc) for arc in _arcs(self._content(OID)))

    def children(self) -> list[Element]:
        """Return the elements of a SEQUENCE. Raises FormatError."""
        return list(_elements(self._content(SEQUENCE)))

    def _content(self, tag: int) -> bytes:
        if self.tag != tag:
            raise _malformed(f"tag {self.tag:#04x} where {tag:#04x} is wanted")
        return self.content


def read_der(raw: bytes) -> Element:
    """Return the one element that `raw` is.

    Raises:
        EvidenceFormatError: `malformed-der`.
    """
    found = list(_elements(raw))
    if len(found) != 1:
        raise _malformed(f"{len(found)} elements where one is wanted")
    return found[0]


def _elements(raw: bytes) -> Iterator[Element]:
    at = 0
    while at < len(raw):
        tag, start, end = _header(raw, at)
        yield Element(tag, raw[start:end])
        at = end


def _header(raw: bytes, at: int) -> tuple[int, int, int]:
    """Return the tag of the element at `at`, and where its content starts and ends."""
    if at + 2 > len(raw) or raw[at] & 0x1F == 0x1F:
        raise _malformed("an element that is cut off, or a tag of several bytes")
    length, start = raw[at + 1], at + 2
    if length >= 0x80:
        start += length & 0x7F
        said = raw[at + 2 : start]
        length = int.from_bytes(said, "big")
        if len(said) not in (1, 2, 3) or length < 0x80 or said[0] == 0:
            raise _malformed("a length that is not in its shortest form")
    if start + length > len(raw):
        raise _malformed("an element that is cut off")
    return raw[at], start, start + length


def _arcs(content: bytes) -> list[int]:
    if len(content) > MAX_OID:
        raise _malformed(f"an OBJECT IDENTIFIER of {len(content)} bytes")
    values, value, fresh = [], 0, True
    for byte in content:
        if fresh and byte == 0x80:
            raise _malformed("an OBJECT IDENTIFIER that is not in its shortest form")
        value, fresh = value << 7 | byte & 0x7F, byte < 0x80
        if fresh:
            values.append(value)
            value = 0
    if not values or not fresh:
        raise _malformed("an OBJECT IDENTIFIER that is cut off")
    first = min(values[0] // 40, 2)
    return [first, values[0] - 40 * first, *values[1:]]


def _malformed(message: str) -> FormatError:
    return EvidenceFormatError(f"not DER: {message}", code="malformed-der")
