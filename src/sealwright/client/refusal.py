"""How a refusal reaches an SDK: a local 403 in OpenAI's error form, neither retried nor hidden."""

from __future__ import annotations

import json

from sealwright.crypto.canonical import parse_json
from sealwright.errors import FormatError, SealwrightError
from sealwright.transport.fields import Fields

STATUS = 403
_PROBLEM = b"application/problem+json"


def refusal(error: SealwrightError) -> tuple[Fields, bytes]:
    """Return header fields and body of the local answer that stands for `error`."""
    return _answer(str(error), error.code, error.stage)


def translated(headers: Fields, body: bytes) -> tuple[Fields, bytes]:
    """Return a sealed answer of the enclave's transport (RFC 9457) in OpenAI's error form; others as they are."""
    kinds = [value for name, value in headers if name == b"content-type"]
    if kinds != [_PROBLEM]:
        return headers, body
    try:
        problem = parse_json(body)
    except FormatError:
        return headers, body
    match problem:
        case {"code": str(code), **rest}:
            fields, new = _answer(str(rest.get("detail") or rest.get("title") or code), code, "enclave")
        case _:
            return headers, body
    # The enclave may say that a later try can help; everything else of its head is kept too.
    said = {name for name, _ in headers} & {b"x-should-retry"}
    fields = tuple(field for field in fields if field[0] not in said)
    replaced = {name for name, _ in fields}
    return (*fields, *[field for field in headers if field[0] not in replaced]), new


def _answer(message: str, code: str, stage: str) -> tuple[Fields, bytes]:
    error = {"message": message, "type": "sealwright_error", "param": stage or None, "code": code}
    body = json.dumps({"error": error}).encode()
    fields = (
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-should-retry", b"false"),
    )
    return fields, body
