"""Padding of event streams by SSE comments: put on by the enclave, taken off by the client."""

from __future__ import annotations

from sealwright.errors import MessageFormatError

BUCKET = 256  # bytes
PADDING_FIELD = b"sealwright-padding"
SSE = b"sse"
_SHORTEST = 3  # bytes of ":\n\n"


def comments(bucket: int) -> list[bytes]:
    """Return, by length modulo `bucket`, the comment that pads a piece of that length."""
    lengths = (-residue % bucket for residue in range(bucket))
    full = (length if length >= _SHORTEST else length + bucket for length in lengths)
    return [b":" + b" " * (length - _SHORTEST) + b"\n\n" for length in full]


def strip(piece: bytes) -> bytes:
    """Return one content chunk without its comment; a chunk that does not end an event has none.

    Raises:
        MessageFormatError: it ends an event, but has no comment of ours.
    """
    if not piece.endswith(b"\n\n"):
        return piece
    body = piece[:-2].rstrip(b" ")
    if not body.endswith(b":"):
        raise MessageFormatError("an event chunk without its padding", code="sse-padding")
    return body[:-1]
