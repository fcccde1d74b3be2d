"""Strict text encodings, and ‖ (length-prefixed joining) of docs/spec/encodings.md.

Each decoder accepts exactly what its encoder writes: `encode(decode(x)) == x`, or it is an error.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from datetime import UTC, datetime

from sealwright.errors import FormatError, MessageFormatError

_RFC3339 = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z", re.ASCII)
_YEARS = range(1970, 9999)  # what has a skew or a life before and after it that a datetime can hold
_HEX = re.compile(r"(?:[0-9a-f]{2})*", re.ASCII)


def b64url(raw: bytes) -> str:
    """Return base64url without padding (RFC 4648 section 5)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def b64url_decode(
    text: str, *, length: int | None = None, error: type[FormatError] = MessageFormatError
) -> bytes:
    """Return the bytes of an unpadded base64url text, of `length` bytes if given.

    Raises:
        FormatError: as `error`: alphabet, padding, stray bits or length.
    """
    try:
        raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise error("not base64url without padding", code="malformed-base64") from None
    if b64url(raw) != text:
        raise error("not base64url without padding", code="malformed-base64")
    if length is not None and len(raw) != length:
        raise error(f"{len(raw)} bytes where {length} are wanted", code="wrong-length")
    return raw


def hex_decode(
    text: str, *, length: int | None = None, error: type[FormatError] = MessageFormatError
) -> bytes:
    """Return the bytes of a lower-case hex text, of `length` bytes if given.

    Raises:
        FormatError: as `error`: upper case, odd length, other characters or length.
    """
    if not _HEX.fullmatch(text):
        raise error("not lower-case hex", code="malformed-hex")
    raw = bytes.fromhex(text)
    if length is not None and len(raw) != length:
        raise error(f"{len(raw)} bytes where {length} are wanted", code="wrong-length")
    return raw


def rfc3339(when: datetime) -> str:
    """Return a time as RFC 3339 UTC to the second. `when` must be aware."""
    if when.tzinfo is None:
        raise ValueError("a naive datetime has no UTC time")
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339_decode(text: str, *, error: type[FormatError] = MessageFormatError) -> datetime:
    """Return the aware UTC time of an RFC 3339 text in the one form we write.

    Raises:
        FormatError: as `error`.
    """
    if not _RFC3339.fullmatch(text):
        raise error("not an RFC 3339 UTC time to the second", code="malformed-time")
    try:
        when = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise error("not an RFC 3339 UTC time to the second", code="malformed-time") from None
    if when.year not in _YEARS:
        raise error(f"a year outside {_YEARS[0]} to {_YEARS[-1]}", code="malformed-time")
    return when


def joined(*items: bytes | str | int) -> bytes:
    """Return `items` joined by ‖: each preceded by its length as u32 big-endian.

    Text is UTF-8, integers are u64 big-endian, bytes are raw.
    """
    out = bytearray()
    for item in items:
        raw = (
            item.encode()
            if isinstance(item, str)
            else struct.pack(">Q", item)
            if isinstance(item, int)
            else item
        )
        out += struct.pack(">I", len(raw)) + raw
    return bytes(out)


def digest(*items: bytes | str | int) -> bytes:
    """Return SHA-256 (32 bytes) of `joined(*items)`; the first item is the domain label."""
    return hashlib.sha256(joined(*items)).digest()
