"""Seals one response as it is written: head, body, trailers in; bytes for the wire out, none held back."""

from __future__ import annotations

from collections.abc import Iterable

from sealwright.transport.bhttp import ResponseHead, encode_content, encode_end
from sealwright.transport.fields import CONNECTION_FIELDS, Fields
from sealwright.transport.ohttp import MAX_CHUNK, ResponseSealer
from sealwright.transport.padding import BUCKET, PADDING_FIELD, SSE, comments
from sealwright.transport.varint import encode_varint


class ResponseWriter:
    """Call `start`, then `body` until its last, then `trailers` if they were announced."""

    def __init__(self, sealer: ResponseSealer, *, bucket: int = BUCKET) -> None:
        """Args: bucket: what is padded is padded to a multiple of this, bytes; at most 4096."""
        if not 4 <= bucket <= 4096:
            raise ValueError("a bucket has 4 to 4096 bytes")
        self.finished = False
        self._sealer, self._seal = sealer, sealer.seal
        self._bucket = bucket
        self._room = MAX_CHUNK - 8 - 2 * bucket  # leaves a full chunk its length and padding
        self._comments = comments(bucket)
        self._sse = False
        self._awaits_trailers = False
        self._held = b""  # head, and the body of an answer in one piece
        self._trailers: Fields = ()

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]], *, trailers: bool = False) -> bytes:
        """Take the head. Connection fields are dropped; `trailers` announces a call of `trailers`.

        Raises:
            MessageFormatError: status or a field is not valid HTTP.
        """
        lowered = [(name.lower(), value) for name, value in headers]
        fields = [(name, value) for name, value in lowered if name not in CONNECTION_FIELDS]
        names = dict(fields)
        self._sse = names.get(b"content-type", b"").startswith(b"text/event-stream") and (
            b"content-encoding" not in names
        )
        if self._sse:
            fields = [(name, value) for name, value in fields if name != b"content-length"]
            fields.append((PADDING_FIELD, SSE))
        self._awaits_trailers = trailers
        head = ResponseHead(status=status, headers=tuple(fields)).encode()
        if self._sse:
            return self._sealer.prefix + self._frames(head)
        self._held = head
        return self._sealer.prefix

    def body(self, data: bytes, more: bool) -> bytes:
        """Take a piece of the body; `more` tells that it is not the last."""
        if more and self._sse and 0 < len(data) <= self._room:
            return self._seal(self._event(data))
        out = self._event_frames(data) if self._sse else self._plain_frames(data, more)
        return out if more or self._awaits_trailers else out + self._end()

    def trailers(self, headers: Iterable[tuple[bytes, bytes]], more: bool = False) -> bytes:
        """Take trailer fields; `more` tells that there are others to come."""
        self._trailers += tuple((name.lower(), value) for name, value in headers)
        return b"" if more else self._end()

    def _event(self, data: bytes) -> bytes:
        if data[-2:] == b"\n\n":
            comment = self._comments[len(data) % self._bucket]
            return b"%b%b%b" % (encode_varint(len(data) + len(comment)), data, comment)
        return encode_varint(len(data)) + data

    def _event_frames(self, data: bytes) -> bytes:
        pieces = (data[at : at + self._room] for at in range(0, len(data), self._room))
        return b"".join(self._seal(self._event(piece)) for piece in pieces)

    def _plain_frames(self, data: bytes, more: bool) -> bytes:
        pieces = (data[at : at + MAX_CHUNK] for at in range(0, len(data), MAX_CHUNK))
        held = self._held + b"".join(map(encode_content, pieces))
        self._held = b"" if more else held
        return self._frames(held) if more else b""

    def _frames(self, plain: bytes) -> bytes:
        pieces = (plain[at : at + MAX_CHUNK] for at in range(0, len(plain), MAX_CHUNK))
        return b"".join(map(self._seal, pieces))

    def _end(self) -> bytes:
        plain = self._held + encode_end(self._trailers)
        plain += bytes(-len(plain) % self._bucket)
        cut = (len(plain) - 1) // MAX_CHUNK * MAX_CHUNK
        self.finished = True
        return self._frames(plain[:cut]) + self._sealer.finish(plain[cut:])
