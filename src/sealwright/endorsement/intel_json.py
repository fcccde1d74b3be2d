"""Intel's collateral as JSON: the very bytes of its members, and values read by their type. No I/O and no clock."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sealwright.crypto.canonical import parse_json
from sealwright.crypto.encoding import rfc3339_decode
from sealwright.endorsement.bag import MAX_BLOB
from sealwright.errors import EvidenceFormatError

_SPACE = re.compile(r"[ \t\r\n]*")


def top_members(raw: bytes) -> dict[str, bytes]:
    """Return the members of the JSON object that `raw` is, each with the very bytes of its value.

    Raises:
        EvidenceFormatError: `malformed-intel-json`, `duplicate-key`, `too-large`.
    """
    if len(raw) > MAX_BLOB:
        raise EvidenceFormatError(f"JSON of {len(raw)} bytes is over {MAX_BLOB}", code="too-large")
    found: dict[str, bytes] = {}
    decoder = json.JSONDecoder()
    try:
        text = raw.decode()
        at = _past(text, 0, "{")
        while True:
            name, at = decoder.raw_decode(text, at)
            start = _past(text, at, ":")
            _, end = decoder.raw_decode(text, start)
            if not isinstance(name, str):
                raise malformed("a member without a name")
            if name in found:
                raise EvidenceFormatError("JSON has a duplicate key", code="duplicate-key")
            found[name] = text[start:end].encode()
            at = _SPACE.match(text, end).end()  # type: ignore[union-attr]
            if text[at : at + 1] == "}":
                break
            at = _past(text, at, ",")
    except (ValueError, RecursionError) as exc:
        raise malformed(f"not JSON ({type(exc).__name__})") from None
    if text[at + 1 :].strip(" \t\r\n"):
        raise malformed("text after the JSON object")
    return found


class Members:
    """A JSON object whose members are read by type. Members that are not asked for may stand in it."""

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            raise malformed("an object is wanted")
        self._value: Mapping[str, object] = value

    def __contains__(self, name: str) -> bool:
        return name in self._value

    def text(self, name: str) -> str:
        """Return a member that is a text."""
        value = self._value.get(name)
        if not isinstance(value, str):
            raise malformed(f"{name} is not a text")
        return value

    def number(self, name: str, largest: int = 0x7FFFFFFF) -> int:
        """Return a member that is an integer from 0 to `largest`."""
        value = self._value.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
            raise malformed(f"{name} is not an integer from 0 to {largest}")
        return value

    def hex(self, name: str, length: int) -> bytes:
        """Return a member of hex, either case, as `length` bytes."""
        text = self.text(name)
        try:
            raw = bytes.fromhex(text)  # Intel writes both cases
        except ValueError:
            raw = b""
        if len(raw) != length or len(text) != 2 * length:
            raise malformed(f"{name} is not {length} bytes of hex")
        return raw

    def date(self, name: str) -> datetime:
        """Return a member that is a time."""
        return rfc3339_decode(self.text(name), error=EvidenceFormatError)

    def object(self, name: str) -> Members:
        """Return a member that is an object."""
        return Members(self._value.get(name))

    def objects(self, name: str) -> list[Members]:
        """Return a member that is a list of objects."""
        value = self._value.get(name)
        if not isinstance(value, list):
            raise malformed(f"{name} is not a list")
        return [Members(one) for one in value]

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a member that is a list of texts; empty if it is left out."""
        value = self._value.get(name, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise malformed(f"{name} is not a list of texts")
        return tuple(value)

    def components(self, name: str) -> bytes:
        """Return the SVNs in a list of 16 components."""
        svns = [one.number("svn", 0xFF) for one in self.objects(name)]
        if len(svns) != 16:
            raise malformed(f"{name} has {len(svns)} components, not 16")
        return bytes(svns)


def _past(text: str, at: int, mark: str) -> int:
    """Return where the next token after `mark` starts."""
    at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
    if text[at : at + 1] != mark:
        raise malformed("not a JSON object")
    return _SPACE.match(text, at + 1).end()  # type: ignore[union-attr]


def loads(value: bytes) -> Any:
    """Return a strict JSON value. Raises EvidenceFormatError."""
    return parse_json(value, limit=MAX_BLOB, error=EvidenceFormatError)


def malformed(message: str) -> EvidenceFormatError:
    """Return the error of collateral that is not in its format."""
    return EvidenceFormatError(f"Intel's collateral: {message}", code="malformed-intel-json")
