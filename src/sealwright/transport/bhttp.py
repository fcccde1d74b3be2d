"""Binary HTTP messages (RFC 9292): records, encoders, and an incremental parser with limits."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from sealwright.errors import MessageFormatError
from sealwright.transport.fields import (
    CONNECTION_FIELDS,
    MAX_FIELDS,
    MAX_SECTION,
    Fields,
    check_field,
    encode_lines,
)
from sealwright.transport.varint import decode_varint, encode_varint

MAX_CONTROL = 8 * 1024  # bytes: method, scheme, authority, path, each
MAX_INFORMATIONAL = 8  # interim responses
MAX_CONTENT_CHUNK = 1 << 20  # bytes of one content chunk of indeterminate length
MIN_CONTENT_CHUNK = 64  # bytes, on average over content as large as is accepted
FREE_CHUNKS = 1024  # that may be smaller

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
_SCHEME = re.compile(r"https?", re.ASCII)
_AUTHORITY = re.compile(r"[!$&'()*+,\-.0-9:;=A-Z\[\]_a-z~%]*", re.ASCII)
_PATH = re.compile(r"/[\x21\x22\x24-\x7e]*|\*", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryRequest:
    """One request, whole. Field names are lower case; `path` holds the query too."""

    method: str
    scheme: str = "https"
    authority: str
    path: str
    headers: Fields = ()
    body: bytes = b""
    trailers: Fields = ()

    @classmethod
    def build(
        cls, method: str, url: str, headers: Iterable[tuple[bytes, bytes]] = (), body: bytes = b""
    ) -> Self:
        """Return the request that an HTTP client would send to `url`.

        Names are lowered; `host` (it is the authority) and connection fields are dropped, since they
        speak of the outer connection.
        """
        parts = urlsplit(url)
        lowered = ((name.lower(), value) for name, value in headers)
        dropped = CONNECTION_FIELDS | {b"host"}
        return cls(
            method=method,
            scheme=parts.scheme,
            authority=parts.netloc.rpartition("@")[2],
            path=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            headers=tuple((name, value) for name, value in lowered if name not in dropped),
            body=body,
        )

    def encode(self, *, bucket: int = 1) -> bytes:
        """Return the request of known length, zero-padded to a multiple of `bucket` bytes.

        Raises:
            MessageFormatError: control data or a field is not valid.
        """
        control = (self.method, self.scheme, self.authority, self.path)
        _check_control(*control)
        out = bytearray(b"\x00")
        for raw in (
            *(item.encode() for item in control),
            encode_lines(self.headers),
            self.body,
            encode_lines(self.trailers),
        ):
            out += encode_varint(len(raw)) + raw
        return bytes(out) + bytes(-len(out) % bucket)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHead:
    """Status and header fields of a response."""

    status: int
    headers: Fields = ()

    def encode(self) -> bytes:
        """Return the start of a response of indeterminate length, up to its content.

        Raises:
            MessageFormatError: status or a field is not valid.
        """
        if not 200 <= self.status <= 599:
            raise MessageFormatError(f"{self.status} is not a final status", code="malformed-bhttp")
        return b"\x03" + encode_varint(self.status) + encode_lines(self.headers) + b"\x00"


def encode_content(data: bytes) -> bytes:
    """Return one content chunk of indeterminate length; `data` must not be empty."""
    return encode_varint(len(data)) + data


def encode_end(trailers: Fields = ()) -> bytes:
    """Return the end of a message of indeterminate length: end of content, and trailers."""
    return b"\x00" + encode_lines(trailers) + b"\x00"


def _check_control(method: str, scheme: str, authority: str, path: str) -> None:
    forms = ((_TOKEN, method), (_SCHEME, scheme), (_AUTHORITY, authority), (_PATH, path))
    if any(len(item) > MAX_CONTROL for _, item in forms):
        raise MessageFormatError("control data over its limit", code="bhttp-too-large")
    if not all(form.fullmatch(item) for form, item in forms):
        raise MessageFormatError("control data that HTTP does not allow", code="malformed-bhttp")


_Steps = Generator[None, None, None]


class MessageParser:
    """Takes one message in pieces; `feed` returns content as it comes.

    A request sets `request` (without its body) and a response `head` as soon as they are there;
    `trailers` is set by the end. Content of indeterminate length comes in its chunks, each whole.
    """

    def __init__(self, *, request: bool, max_content: int | None = None) -> None:
        """Args: request: what is expected; max_content: largest content accepted, bytes."""
        self.request: BinaryRequest | None = None
        self.head: ResponseHead | None = None
        self.trailers: Fields | None = None
        self._want_request = request
        self._left = max_content
        # A request is parsed before anyone is authenticated: a byte a chunk would cost seconds of the loop.
        self._chunks_left = None if max_content is None else FREE_CHUNKS + max_content // MIN_CONTENT_CHUNK
        self._buffer = bytearray()
        self._at = 0  # position in the buffer
        self._ended = False
        self._dead = False
        self._out: list[bytes] = []
        self._steps = self._message()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the content that `data` completes.

        Raises:
            MessageFormatError: not this kind of message, or over a limit. The parser is then dead.
        """
        if self._dead:
            raise MessageFormatError("this message was refused already", code="malformed-bhttp")
        self._dead = True
        self._buffer += data
        next(self._steps, None)
        self._dead = self._ended
        del self._buffer[: self._at]
        self._at = 0
        out, self._out = self._out, []
        return out

    def finish(self) -> list[bytes]:
        """Return the last content; the message has ended.

        Raises:
            MessageFormatError: it ends where RFC 9292, section 3.8, does not allow it.
        """
        self._ended = True
        return self.feed(b"")

    def _message(self) -> _Steps:
        framing = yield from self._varint()
        if framing not in ((0, 2) if self._want_request else (1, 3)):
            raise MessageFormatError("not the Binary HTTP message expected here", code="malformed-bhttp")
        known = framing < 2
        if self._want_request:
            yield from self._request(known)
        else:
            yield from self._response(known)
        yield from self._known_content() if known else self._chunks()
        self.trailers = yield from self._fields(known)
        while not self._ended:
            self._padding()
            yield
        self._padding()

    def _padding(self) -> None:
        if self._buffer.count(0, self._at) != len(self._buffer) - self._at:
            raise MessageFormatError("padding that is not zero", code="malformed-bhttp")
        self._at = len(self._buffer)

    def _request(self, known: bool) -> _Steps:
        items: list[str] = []
        for _ in range(4):
            raw = yield from self._take((yield from self._varint()), MAX_CONTROL)
            items.append(raw.decode("latin-1"))
        _check_control(*items)
        method, scheme, authority, path = items
        headers = yield from self._fields(known)
        self.request = BinaryRequest(
            method=method, scheme=scheme, authority=authority, path=path, headers=headers
        )

    def _response(self, known: bool) -> _Steps:
        for _ in range(MAX_INFORMATIONAL + 1):
            status = yield from self._varint()
            if not 100 <= status <= 599:
                break
            headers = yield from self._fields(known)
            if status >= 200:
                self.head = ResponseHead(status=status, headers=headers)
                return
        raise MessageFormatError("no final status", code="malformed-bhttp")

    def _known_content(self) -> _Steps:
        if (yield from self._ends_here()):
            return
        left = yield from self._varint()
        self._count(left)
        while left:
            if self._at == len(self._buffer):
                yield from self._more()
            piece = bytes(self._buffer[self._at : self._at + left])
            self._at += len(piece)
            left -= len(piece)
            self._out.append(piece)

    def _chunks(self) -> _Steps:
        if (yield from self._ends_here()):
            return
        while length := (yield from self._varint()):
            self._count(length)
            if self._chunks_left is not None:
                self._chunks_left -= 1
                if self._chunks_left < 0:
                    raise MessageFormatError("content in too many chunks", code="bhttp-too-large")
            chunk = yield from self._take(
                length, MAX_CONTENT_CHUNK
            )  # first: feed swaps the list while we wait
            self._out.append(chunk)

    def _count(self, length: int) -> None:
        if self._left is not None:
            self._left -= length
            if self._left < 0:
                raise MessageFormatError("content over its limit", code="bhttp-too-large")

    def _fields(self, known: bool) -> Generator[None, None, Fields]:
        """Parse one section: a length and lines, or lines and a zero."""
        if (yield from self._ends_here()):
            return ()
        if known:
            section = yield from self._take((yield from self._varint()), MAX_SECTION)
            return _parse_lines(section)
        lines: list[tuple[bytes, bytes]] = []
        left = MAX_SECTION
        while length := (yield from self._varint()):
            name = yield from self._take(length, left)
            value = yield from self._take((yield from self._varint()), left)
            left -= len(name) + len(value)
            _add_line(lines, name, value)
        return tuple(lines)

    def _ends_here(self) -> Generator[None, None, bool]:
        while self._at == len(self._buffer):
            if self._ended:
                return True
            yield
        return False

    def _more(self) -> _Steps:
        if self._ended:
            raise MessageFormatError("a Binary HTTP message cut short", code="malformed-bhttp")
        yield

    def _varint(self) -> Generator[None, None, int]:
        while (found := decode_varint(self._buffer, self._at)) is None:
            yield from self._more()
        value, self._at = found
        return value

    def _take(self, length: int, limit: int) -> Generator[None, None, bytes]:
        if length > limit:
            raise MessageFormatError("a part of the message is over its limit", code="bhttp-too-large")
        while len(self._buffer) - self._at < length:
            yield from self._more()
        start, self._at = self._at, self._at + length
        return bytes(self._buffer[start : self._at])


def _add_line(lines: list[tuple[bytes, bytes]], name: bytes, value: bytes) -> None:
    check_field(name, value)
    if len(lines) == MAX_FIELDS:
        raise MessageFormatError("too many fields", code="bhttp-too-large")
    lines.append((name, value))


def _parse_lines(section: bytes) -> Fields:
    """Parse the lines of a section of known length."""
    lines: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(section):
        name, at = _item(section, at)
        value, at = _item(section, at)
        _add_line(lines, name, value)
    return tuple(lines)


def _item(section: bytes, at: int) -> tuple[bytes, int]:
    found = decode_varint(section, at)
    if found is None or found[0] > len(section) - found[1]:
        raise MessageFormatError("a field line cut short", code="malformed-bhttp")
    length, start = found
    return section[start : start + length], start + length


def parse_request(raw: bytes, *, max_content: int | None = None) -> BinaryRequest:
    """Return the whole request in `raw`.

    Raises:
        MessageFormatError: not a Binary HTTP request, or over a limit.
    """
    parser = MessageParser(request=True, max_content=max_content)
    return finish_request(parser, parser.feed(raw))


def finish_request(parser: MessageParser, content: list[bytes]) -> BinaryRequest:
    """Return the request of `parser`, whose content so far is `content`, at its end.

    Raises:
        MessageFormatError: it has not ended, or its `content-length` is not the length.
    """
    body = b"".join(content + parser.finish())
    head = parser.request
    if head is None:
        raise MessageFormatError("a Binary HTTP message cut short", code="malformed-bhttp")
    for name, value in head.headers:
        if name == b"content-length" and value != str(len(body)).encode():
            raise MessageFormatError("content-length is not the length", code="malformed-bhttp")
    return BinaryRequest(
        method=head.method,
        scheme=head.scheme,
        authority=head.authority,
        path=head.path,
        headers=head.headers,
        body=body,
        trailers=parser.trailers or (),
    )


def parse_response(raw: bytes) -> tuple[ResponseHead, bytes, Fields]:
    """Return (head, content, trailers) of the whole response in `raw`.

    Raises:
        MessageFormatError: not a Binary HTTP response, or over a limit.
    """
    parser = MessageParser(request=False)
    body = b"".join(parser.feed(raw) + parser.finish())
    if parser.head is None:
        raise MessageFormatError("a Binary HTTP message cut short", code="malformed-bhttp")
    return parser.head, body, parser.trailers or ()
