"""What quoter and workload agree on: descriptor numbers, paths inside the image, and messages.

Messages are single packets on a socketpair. An answer starts with a byte: 0 and the result, or 1 and
the JSON of an error.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from sealwright.errors import AppraisalError, AppraisalFailure, UnavailableError

NULL, ROOT, QUOTES, CONNECTIONS, CONFIG, PAYLOAD, SCRATCH, LISTENER, FIRST_EXTRA = 0, 3, 4, 5, 6, 7, 8, 9, 10
SEALED = f"/proc/self/fd/{ROOT}"
SCRATCH_PATH = f"/proc/self/fd/{SCRATCH}"
PACKET = 128 * 1024  # bytes, the longest message

OK, FAILED = b"\0", b"\1"


def packed(value: object) -> bytes:
    """Return a message with a JSON value."""
    return json.dumps(value).encode()


def unpacked(raw: bytes) -> Any:
    """Return the JSON value of a message between quoter and workload, who trust each other's form."""
    return json.loads(raw)


def failure(exc: Exception) -> bytes:
    """Return the answer that tells the other side of an error."""
    code = getattr(exc, "code", "no-hardening")
    stage = getattr(exc, "stage", "")
    text = str(exc) or type(exc).__name__
    kind = type(exc).__name__
    return FAILED + packed({"message": text[:2000], "code": code, "stage": stage, "kind": kind})


def raise_failure(answer: bytes) -> NoReturn:
    """Raise the error in an answer that starts with 1; an empty one says that the other side ended."""
    if not answer:
        raise UnavailableError("the quoter has ended", code="quoter-gone", stage="quote")
    told = unpacked(answer[1:])
    if told["kind"] == "AppraisalError":
        raise AppraisalError([AppraisalFailure(told["message"], code=told["code"])], stage=told["stage"])
    raise UnavailableError(told["message"], code=told["code"], stage=told["stage"])
