"""Header and trailer fields: which are valid in Binary HTTP, and their encoding (RFC 9292, section 3.6)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime

from sealwright.errors import MessageFormatError
from sealwright.transport.varint import encode_varint

Fields = tuple[tuple[bytes, bytes], ...]

MAX_FIELDS = 128  # in a section
MAX_SECTION = 64 * 1024  # bytes of names and values

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_BAD_VALUE = re.compile(rb"[\0\r\n]|^[ \t]|[ \t]$")
# RFC 9113, section 8.2.2: they speak of a connection, and there is none here.
CONNECTION_FIELDS = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade")
)
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DATE = re.compile(r"[A-Z][a-z]{2}, (\d{2}) ([A-Z][a-z]{2}) (\d{4}) (\d{2}):(\d{2}):(\d{2}) GMT", re.ASCII)


def check_field(name: bytes, value: bytes) -> None:
    """Return if one field is valid.

    Raises:
        MessageFormatError: upper case, pseudo-field, connection field, or a byte no field may hold.
    """
    if not _NAME.fullmatch(name):
        raise MessageFormatError("a field name that is not a lower-case token", code="bhttp-field")
    if name in CONNECTION_FIELDS:
        raise MessageFormatError(f"the connection field {name.decode()!r}", code="bhttp-field")
    if _BAD_VALUE.search(value):
        raise MessageFormatError(f"a forbidden byte in the value of {name.decode()!r}", code="bhttp-field")


def encode_lines(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the field lines, each checked.

    Raises:
        MessageFormatError: an invalid field, or more than a section may hold.
    """
    out = bytearray()
    for count, (name, value) in enumerate(fields, 1):
        check_field(name, value)
        out += encode_varint(len(name)) + name + encode_varint(len(value)) + value
        if count > MAX_FIELDS or len(out) > MAX_SECTION:
            raise MessageFormatError("a field section over its limits", code="bhttp-too-large")
    return bytes(out)


def one_value(fields: Fields, name: bytes) -> bytes | None:
    """Return the value of field `name`, or None.

    Raises:
        MessageFormatError: it is there more than once.
    """
    values = [value for key, value in fields if key == name]
    if len(values) > 1:
        raise MessageFormatError(f"more than one {name.decode()!r} field", code="bhttp-field")
    return values[0] if values else None


def http_date(when: datetime) -> bytes:
    """Return an IMF-fixdate (RFC 9110, section 5.6.7), whatever the locale."""
    utc = when.astimezone(UTC)
    day, month = _DAYS[utc.weekday()], _MONTHS[utc.month - 1]
    return f"{day}, {utc.day:02} {month} {utc.year:04} {utc:%H:%M:%S} GMT".encode()


def parse_http_date(value: bytes) -> datetime:
    """Return the aware UTC time of an IMF-fixdate.

    Raises:
        MessageFormatError: any other form.
    """
    match = _DATE.fullmatch(value.decode("latin-1"))
    if match and match[2] in _MONTHS:
        day, year, hour, minute, second = (int(match[group]) for group in (1, 3, 4, 5, 6))
        try:
            when = datetime(year, _MONTHS.index(match[2]) + 1, day, hour, minute, second, tzinfo=UTC)
        except ValueError:
            pass
        else:
            if http_date(when) == value:
                return when
    raise MessageFormatError("a date field that is not an IMF-fixdate", code="date-format")
