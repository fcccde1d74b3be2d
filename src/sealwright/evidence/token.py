"""Tokens in which a cloud or vendor says what it found in somebody's evidence: bytes in, frozen record out.

A compact JWT; or, as NVIDIA's service answers, a detached EAT `[["JWT", overall], {device: JWT, …}]` (RFC 9711,
section 5). No signature check, clock or network here; see `sealwright.verify.token`. Spec: docs/spec/token.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NoReturn, Self

from sealwright.crypto.canonical import parse_json
from sealwright.crypto.encoding import b64url_decode
from sealwright.errors import EvidenceFormatError

MAX_JWT = 64 * 1024  # bytes
MAX_TOKEN = 1024 * 1024  # bytes, of a detached EAT
MAX_DEVICES = 32

TokenKind = Literal["maa", "google", "nras", "ita"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Jwt:
    """One compact JWT (RFC 7519), parsed; nothing in it is believed yet."""

    header: Mapping[str, Any]
    unverified_claims: Mapping[str, Any]
    compact: str  # as received: what digests cover, and, up to the last dot, what is signed

    @classmethod
    def parse(cls, compact: str) -> Self:
        """Parse a compact JWT.

        Raises:
            EvidenceFormatError: `malformed-token`, or what strict base64url and JSON refuse.
        """
        if len(compact) > MAX_JWT:
            raise EvidenceFormatError(f"a JWT of {len(compact)} bytes is over {MAX_JWT}", code="too-large")
        parts = compact.split(".")
        if len(parts) != 3 or not all(parts):
            _malformed("not three parts with dots between them")
        header, claims, _ = (b64url_decode(part, error=EvidenceFormatError) for part in parts)
        return cls(header=_object(header), unverified_claims=_object(claims), compact=compact)


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudToken:
    """A token, and the detached ones of devices that it names by digest."""

    overall: Jwt
    devices: Mapping[str, Jwt]

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse a JWT or a detached EAT, as the service sent it.

        Raises:
            EvidenceFormatError: `malformed-token`, `too-large`, or what strict base64url and JSON refuse.
        """
        if raw[:1] != b"[":
            return cls(overall=Jwt.parse(_ascii(raw)), devices=MappingProxyType({}))
        overall, devices = _detached(raw)
        parsed = {name: Jwt.parse(_text(compact)) for name, compact in sorted(devices.items())}
        return cls(overall=Jwt.parse(_text(overall)), devices=MappingProxyType(parsed))


def _detached(raw: bytes) -> tuple[object, dict[str, object]]:
    value = parse_json(raw, limit=MAX_TOKEN, error=EvidenceFormatError)
    if not isinstance(value, list) or len(value) != 2:
        _malformed('not [["JWT", token], {device: token, …}]')
    overall, devices = value
    if not isinstance(overall, list) or len(overall) != 2 or overall[0] != "JWT":
        _malformed("its first item is not an overall token")
    if not isinstance(devices, dict) or len(devices) > MAX_DEVICES:
        _malformed(f"its second item is not an object of at most {MAX_DEVICES} tokens")
    return overall[1], devices


def _object(raw: bytes) -> Mapping[str, Any]:
    value = parse_json(raw, limit=MAX_JWT, error=EvidenceFormatError)
    if not isinstance(value, dict):
        _malformed("header and claims are JSON objects")
    return MappingProxyType(value)


def _ascii(raw: bytes) -> str:
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        _malformed("not ASCII")


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isascii():
        _malformed("a token in it is not ASCII text")
    return value


def _malformed(what: str) -> NoReturn:
    raise EvidenceFormatError(f"not a token: {what}", code="malformed-token")
