"""The strict text forms that C2SP formats share: base64 with padding, decimals, key names."""

from __future__ import annotations

import base64
import binascii
import re

from sealwright.errors import LogFormatError

MAX_NUMBER = (1 << 63) - 1
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


def b64(raw: bytes) -> str:
    """Return standard base64 with padding (RFC 4648 section 4)."""
    return base64.b64encode(raw).decode("ascii")


def b64_decode(text: str, *, length: int | None = None) -> bytes:
    """Return the bytes of a base64 text in its one spelling, `length` bytes if given.

    Raises:
        LogFormatError: alphabet, padding, stray bits or length.
    """
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise LogFormatError("not base64 with padding", code="malformed-base64") from None
    if b64(raw) != text:
        raise LogFormatError("not base64 with padding", code="malformed-base64")
    if length is not None and len(raw) != length:
        raise LogFormatError(f"{len(raw)} bytes where {length} are wanted", code="wrong-length")
    return raw


def decimal_decode(text: str) -> int:
    """Return a number below 2^63 written in ASCII digits without leading zeros.

    Raises:
        LogFormatError: anything else.
    """
    if not _DECIMAL.fullmatch(text) or int(text) > MAX_NUMBER:
        raise LogFormatError("not a decimal number below 2^63", code="malformed-number")
    return int(text)


def check_key_name(name: str) -> str:
    """Return `name`, which a signed note may carry: not empty, no Unicode space, no `+`, no control character,
    no half of a surrogate pair.

    Raises:
        LogFormatError: it may not.
    """
    refused = any(
        char.isspace() or char == "+" or char < " " or "\ud800" <= char <= "\udfff" for char in name
    )
    if not name or refused:
        raise LogFormatError("not a key name", code="malformed-key")
    return name
