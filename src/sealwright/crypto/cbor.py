"""CBOR (RFC 8949) in and out: a small strict reader, and the deterministic form (section 4.2.1) for what we write.

Read: integers, byte and text strings, arrays, maps, true, false, null, and the tags a caller names. Refused: floats,
other simple values, heads that are longer than they need be, a key that stands twice, bytes after the item, and
anything past the bounds. Definite and indefinite lengths are both read; evidence in use has either.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from sealwright.errors import FormatError, MessageFormatError

MAX_CBOR = 64 * 1024  # bytes; callers pass less
MAX_DEPTH = 8  # nested arrays, maps and tags
MAX_ITEMS = 4096

_UINT, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_INDEFINITE = 31
_BREAK: Final = object()
_SIMPLE_VALUES = {20: False, 21: True, 22: None}


@dataclass(frozen=True, slots=True)
class Tagged:
    """An item with its tag."""

    tag: int
    value: CborValue


Key: TypeAlias = "int | str | bytes"
CborValue: TypeAlias = (
    "bool | int | bytes | str | Sequence[CborValue] | Mapping[Any, CborValue] | Tagged | None"
)


def decode(
    raw: bytes,
    *,
    limit: int = MAX_CBOR,
    tags: Collection[int] = (),
    error: type[FormatError] = MessageFormatError,
) -> CborValue:
    """Return the one item that `raw` is; arrays are lists, maps are dicts with keys that are int, str or bytes.

    Args:
        limit: largest size accepted, bytes.
        tags: tags that may stand anywhere in it; others are refused.
        error: the FormatError to raise.

    Raises:
        FormatError: as `error`: `malformed-cbor`, `duplicate-key`, `too-large`, `too-deep`.
    """
    if len(raw) > limit:
        raise error(f"CBOR of {len(raw)} bytes is over the limit of {limit}", code="too-large")
    reader = _Reader(raw, frozenset(tags), error)
    value = reader.item(0)
    if reader.at != len(raw):
        raise reader.malformed("bytes after the item")
    return value


def encode(value: CborValue) -> bytes:
    """Return `value` in the deterministic form: shortest heads, definite lengths, keys sorted by their encoding.

    Raises:
        ValueError: a value this form does not have here (our bug, not input).
    """
    match value:
        case None | bool():
            return bytes([0xF6 if value is None else 0xF5 if value else 0xF4])
        case int():
            return _head(_UINT, value) if value >= 0 else _head(_NEGATIVE, -1 - value)
        case bytes():
            return _head(_BYTES, len(value)) + value
        case str():
            text = value.encode()
            return _head(_TEXT, len(text)) + text
        case Tagged(tag, inner):
            return _head(_TAG, tag) + encode(inner)
        case Mapping():
            pairs = sorted((encode(key), encode(item)) for key, item in value.items())
            return _head(_MAP, len(pairs)) + b"".join(key + item for key, item in pairs)
        case Sequence():
            return _head(_ARRAY, len(value)) + b"".join(encode(item) for item in value)
        case _:
            raise ValueError(f"no CBOR form for {type(value).__name__}")


def _head(major: int, number: int) -> bytes:
    if number < 24:
        return bytes([major << 5 | number])
    for info, form in ((24, ">BB"), (25, ">BH"), (26, ">BI"), (27, ">BQ")):
        if number < 1 << (8 << (info - 24)):
            return struct.pack(form, major << 5 | info, number)
    raise ValueError("an integer beyond 64 bits")


class _Reader:
    """One reading of one item; `at` is where it is."""

    def __init__(self, raw: bytes, tags: frozenset[int], error: type[FormatError]) -> None:
        self._raw = raw
        self._tags = tags
        self._error = error
        self._items = 0
        self.at = 0

    def malformed(self, what: str) -> FormatError:
        return self._error(f"malformed CBOR: {what}", code="malformed-cbor")

    def item(self, depth: int) -> CborValue:
        value = self._item_or_break(depth)
        if value is _BREAK:
            raise self.malformed("a break outside an indefinite item")
        return value  # type: ignore[return-value]

    def _item_or_break(self, depth: int) -> object:
        self._count(depth)
        major, info = self._initial()
        if info == _INDEFINITE:
            return self._indefinite(major, depth)
        number = self._number(info)
        match major:
            case 0:
                return number
            case 1:
                return -1 - number
            case 2:
                return self._take(number)
            case 3:
                return self._text(number)
            case 4:
                return [self.item(depth + 1) for _ in range(self._length(number, 1))]
            case 5:
                return self._map(self._length(number, 2), depth)
            case 6:
                return self._tagged(number, depth)
            case _:
                return self._simple(info)

    def _indefinite(self, major: int, depth: int) -> object:
        match major:
            case 2:
                return b"".join(self._take(length) for length in self._chunks(_BYTES))
            case 3:
                # Each chunk is whole UTF-8 by itself.
                return "".join(self._text(length) for length in self._chunks(_TEXT))
            case 4:
                return list(iter(lambda: self._item_or_break(depth + 1), _BREAK))
            case 5:
                return self._map(None, depth)
            case 7:
                return _BREAK
            case _:
                raise self.malformed("an indefinite length where none can be")

    def _chunks(self, wanted: int) -> Iterator[int]:
        """Yield the length of each chunk; the caller takes it before it asks for the next."""
        while True:
            self._count(0)
            major, info = self._initial()
            if (major, info) == (_SIMPLE, _INDEFINITE):
                return
            if major != wanted or info == _INDEFINITE:
                raise self.malformed("a chunk of another kind in an indefinite string")
            yield self._number(info)

    def _map(self, length: int | None, depth: int) -> dict[Key, CborValue]:
        found: dict[Key, CborValue] = {}
        while length is None or len(found) < length:
            key = self._item_or_break(depth + 1)
            if key is _BREAK and length is None:
                break
            if isinstance(key, bool) or not isinstance(key, int | str | bytes):
                raise self.malformed("a map key that is neither integer, text nor bytes")
            if key in found:
                raise self._error("CBOR has a duplicate key", code="duplicate-key")
            found[key] = self.item(depth + 1)
        return found

    def _tagged(self, tag: int, depth: int) -> Tagged:
        if tag not in self._tags:
            raise self.malformed("a tag that is not expected")
        return Tagged(tag, self.item(depth + 1))

    def _simple(self, info: int) -> bool | None:
        if info not in _SIMPLE_VALUES:
            raise self.malformed("a float, or a simple value that is not known")
        return _SIMPLE_VALUES[info]

    def _count(self, depth: int) -> None:
        self._items += 1
        if depth > MAX_DEPTH:
            raise self._error(f"CBOR is nested deeper than {MAX_DEPTH}", code="too-deep")
        if self._items > MAX_ITEMS:
            raise self._error(f"CBOR of more than {MAX_ITEMS} items", code="too-large")

    def _initial(self) -> tuple[int, int]:
        byte = self._take(1)[0]
        return byte >> 5, byte & 0x1F

    def _number(self, info: int) -> int:
        if info < 24:
            return info
        if info > 27:
            raise self.malformed("a reserved length")
        size = 1 << (info - 24)
        number = int.from_bytes(self._take(size), "big")
        if number < (24 if size == 1 else 1 << (4 * size)):
            raise self.malformed("a head that is longer than it need be")
        return number

    def _length(self, length: int, each: int) -> int:
        # Each item takes a byte at least: a length that cannot be is refused before anything is made of it.
        if length * each > len(self._raw) - self.at:
            raise self.malformed("it is cut off")
        return length

    def _text(self, length: int) -> str:
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self.malformed("text that is not UTF-8") from None

    def _take(self, length: int) -> bytes:
        if length > len(self._raw) - self.at:
            raise self.malformed("it is cut off")
        self.at += length
        return self._raw[self.at - length : self.at]
