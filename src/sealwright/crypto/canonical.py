"""JSON in and out: strict parsing, and the one canonical form (RFC 8785) that is signed or digested.

A canonical document has exactly one spelling, so `parse_canonical` accepts only bytes that
re-encode to themselves: duplicate keys, white space, other escapes and other number forms are refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any, NoReturn

import rfc8785

from sealwright.errors import FormatError, MessageFormatError

MAX_JSON = 1 << 20  # bytes; callers pass less
MAX_DEPTH = 32  # nested arrays and objects
MAX_INT = (1 << 53) - 1
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_NO_BRACKET = bytes(byte for byte in range(256) if byte not in b"[]{}")
_ONE_KIND = bytes.maketrans(b"{}", b"[]")


def canonical(value: object) -> bytes:
    """Return `value` as RFC 8785 bytes.

    Raises:
        ValueError: the value has no canonical form (our bug, not input).
    """
    try:
        return rfc8785.dumps(value)  # type: ignore[arg-type]
    except rfc8785.CanonicalizationError as exc:
        raise ValueError(f"no canonical form: {exc}") from exc


def canonical_digest(value: object) -> bytes:
    """Return SHA-256 (32 bytes) of the canonical form of `value`."""
    return hashlib.sha256(canonical(value)).digest()


def parse_json(raw: bytes, *, limit: int = MAX_JSON, error: type[FormatError] = MessageFormatError) -> Any:
    """Return the value of one strict JSON text: UTF-8, no duplicate keys, bounded size and depth.

    What is returned has a canonical form: no infinite numbers, no halves of surrogate pairs.

    Args:
        limit: largest size accepted, bytes.
        error: the FormatError to raise.

    Raises:
        FormatError: as `error`, for anything else.
    """
    if len(raw) > limit:
        raise error(f"JSON of {len(raw)} bytes is over the limit of {limit}", code="too-large")
    if _depth(raw) > MAX_DEPTH:
        raise error(f"JSON is nested deeper than {MAX_DEPTH}", code="too-deep")

    value = _loads(raw, error)
    if b"\\u" in raw:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise error("JSON with half of a surrogate pair", code="not-canonical") from None
    return value


def parse_canonical(
    raw: bytes, *, limit: int = MAX_JSON, error: type[FormatError] = MessageFormatError
) -> dict[str, Any]:
    """Return the object in `raw`, which must be its RFC 8785 form byte for byte.

    Raises:
        FormatError: as `error`: not JSON, not an object, or not canonical.
    """
    value = parse_json(raw, limit=limit, error=error)
    if not isinstance(value, dict):
        raise error("not a JSON object", code="malformed-json")
    try:
        again = rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as exc:
        raise error("JSON has no canonical form", code="not-canonical") from exc
    if again != raw:
        raise error("JSON is not in its canonical form (RFC 8785)", code="not-canonical")
    return value


def _loads(raw: bytes, error: type[FormatError]) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(items)
        if len(out) != len(items):
            raise error("JSON has a duplicate key", code="duplicate-key")
        return out

    def constant(name: str) -> NoReturn:
        raise error(f"JSON has the non-number {name}", code="malformed-json")

    def integer(text: str) -> int:
        if len(text) > 17 or abs(int(text)) > MAX_INT:
            raise error("JSON has an integer beyond 2^53", code="integer-range")
        return int(text)

    def number(text: str) -> float:
        if math.isinf(value := float(text)):
            raise error("JSON has a number that is not finite", code="malformed-json")
        return value

    try:
        return json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=pairs,
            parse_constant=constant,
            parse_int=integer,
            parse_float=number,
        )
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as exc:
        # The decoder's text can quote the input, which may be secret: name only the kind.
        raise error(f"not JSON ({type(exc).__name__})", code="malformed-json") from None


def _depth(raw: bytes) -> int:
    """Return an upper bound of the nesting of `raw`, without parsing; above MAX_DEPTH it is not exact."""
    # Whoever can send bytes can have this run: pairs are taken out from the inside, a level at a time.
    left = _STRING.sub(b"", raw).translate(_ONE_KIND, _NO_BRACKET)
    levels = 0
    while levels <= MAX_DEPTH and b"[]" in left:
        left = left.replace(b"[]", b"")
        levels += 1
    return levels + left.count(b"[")
