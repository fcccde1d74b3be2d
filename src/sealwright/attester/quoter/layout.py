"""What quoter and workload agree on: descriptor numbers, paths inside the image, and messages.

Messages are single packets on a socketpair. An answer starts with a byte: 0 and the result, or 1 and
the JSON of an error.
"""

from __future__ import annotations

import json
import socket
from typing import Any, NoReturn

from sealwright.errors import AppraisalError, AppraisalFailure, UnavailableError

NULL, ROOT, QUOTES, CONNECTIONS, CONFIG, PAYLOAD, SCRATCH, LISTENER, FIRST_EXTRA = 0, 3, 4, 5, 6, 7, 8, 9, 10
SEALED = f"/proc/self/fd/{ROOT}"
SCRATCH_PATH = f"/proc/self/fd/{SCRATCH}"
PACKET = 128 * 1024  # bytes, the longest message

CHUNK = 64 * 1024  # bytes; a socket's buffer holds a packet of this size everywhere
MAX_ANSWER = 2 * 1024 * 1024  # bytes of a quote with its endorsements

OK, FAILED = b"\0", b"\1"


def packed(value: object) -> bytes:
    """Return a message with a JSON value."""
    return json.dumps(value).encode()


def unpacked(raw: bytes) -> Any:
    """Return the JSON value of a message between quoter and workload, who trust each other's form."""
    return json.loads(raw)


def send_answer(channel: socket.socket, answer: bytes) -> None:
    """Send a result that may be longer than a packet: its length first, then its bytes."""
    channel.send(OK + len(answer).to_bytes(4, "big"))
    for start in range(0, len(answer), CHUNK):
        channel.send(answer[start : start + CHUNK])


def receive_answer(channel: socket.socket) -> bytes:
    """Return what `send_answer` sent.

    Raises:
        UnavailableError: the other side ended, or answered with an error.
    """
    head = channel.recv(PACKET)
    if head[:1] != OK or len(head) != 5:
        raise_failure(head)
    size, found = int.from_bytes(head[1:], "big"), b""
    while len(found) < size <= MAX_ANSWER:
        packet = channel.recv(PACKET)
        if not packet:
            raise_failure(b"")
        found += packet
    return found


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
