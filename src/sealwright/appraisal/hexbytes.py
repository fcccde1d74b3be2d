"""Bytes of any length, written as lower-case hex: registers, identifiers."""

from __future__ import annotations

from typing import Annotated

from pydantic import PlainSerializer, PlainValidator

from sealwright.crypto.encoding import hex_decode
from sealwright.errors import FormatError


def _hex(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("hex text is wanted")
    try:
        return hex_decode(value)
    except FormatError as exc:
        raise ValueError(str(exc)) from None


HexBytes = Annotated[bytes, PlainValidator(_hex), PlainSerializer(bytes.hex, return_type=str)]
