"""What enclave and engine say to each other over their socketpair: length-prefixed JSON frames.

    u32 length of the body | u32 request | u8 kind | body (JSON, or empty)

Neither side believes the other: lengths are bounded, unknown kinds end the connection.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from enum import IntEnum
from typing import NamedTuple

from sealwright.errors import MessageFormatError

HEADER = struct.Struct(">IIB")
MAX_REQUEST = 1 << 26  # bytes, enclave to engine; the config's limits are lower
MAX_EVENT = 1 << 20  # bytes, engine to enclave


class Kind(IntEnum):
    """What a frame is. The first two go to the engine, the others come from it."""

    CHAT = 1  # body: the engine's request
    CANCEL = 2
    READY = 16  # the model is loaded
    EVENT = 17  # body: one chunk of the engine's stream
    END = 18  # the stream is whole
    FAILED = 19  # body: {"code"}, never the engine's own text, which quotes its input


class Frame(NamedTuple):
    """One frame."""

    kind: Kind
    request: int
    body: bytes


def encode(kind: Kind, request: int = 0, body: bytes = b"") -> bytes:
    """Return the frame's bytes."""
    return HEADER.pack(len(body), request, kind) + body


def decode_header(raw: bytes, *, limit: int) -> tuple[int, int, Kind]:
    """Return (length, request, kind).

    Raises:
        MessageFormatError: a length over `limit`, or an unknown kind.
    """
    length, request, number = HEADER.unpack(raw)
    if length > limit:
        raise MessageFormatError("an engine frame is over its limit", code="engine-frame")
    try:
        kind = Kind(number)
    except ValueError:
        raise MessageFormatError("an engine frame of unknown kind", code="engine-frame") from None
    return length, request, kind


def receive(channel: socket.socket, *, limit: int) -> Frame | None:
    """Return the next frame, None at the end of the connection (blocking)."""
    head = _exactly(channel, HEADER.size)
    if head is None:
        return None
    length, request, kind = decode_header(head, limit=limit)
    body = _exactly(channel, length)
    return None if body is None else Frame(kind, request, body)


async def read(reader: asyncio.StreamReader, *, limit: int) -> Frame | None:
    """Return the next frame, None at the end of the connection."""
    try:
        length, request, kind = decode_header(await reader.readexactly(HEADER.size), limit=limit)
        return Frame(kind, request, await reader.readexactly(length) if length else b"")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _exactly(channel: socket.socket, count: int) -> bytes | None:
    out = bytearray(count)
    view = memoryview(out)
    while view:
        got = channel.recv_into(view)
        if not got:
            return None
        view = view[got:]
    return bytes(out)
