"""Binary HTTP: the RFC's examples, vectors that name the refusal, and properties of the parser."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealwright.errors import MessageFormatError
from sealwright.transport import bhttp
from sealwright.transport.bhttp import BinaryRequest, MessageParser, ResponseHead
from sealwright.transport.fields import MAX_FIELDS, http_date, one_value, parse_http_date
from sealwright.transport.varint import MAX_VARINT, decode_varint, encode_varint

CASES = json.loads((Path(__file__).parents[1] / "vectors" / "transport.json").read_text())["bhttp"]["cases"]
GOOD = [case for case in CASES if case["expect"] == "ok"]

names = st.from_regex(r"[a-z][a-z0-9-]{0,15}", fullmatch=True).map(str.encode)
values = st.from_regex(r"([!-~]([ -~]{0,20}[!-~])?)?", fullmatch=True).map(str.encode)
fields = (
    st.lists(st.tuples(names, values), max_size=5)
    .map(tuple)
    .filter(
        lambda items: not {name for name, _ in items} & {b"content-length", b"te", b"connection", b"upgrade"}
    )
)
requests = st.builds(
    BinaryRequest,
    method=st.sampled_from(["GET", "POST"]),
    authority=st.sampled_from(["", "a.example:8443", "[::1]"]),
    path=st.from_regex(r"/[a-z?=&%]{0,20}", fullmatch=True),
    headers=fields,
    body=st.binary(max_size=300),
    trailers=fields,
)


def pairs(items: list[list[str]]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name.encode(), value.encode()) for name, value in items)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_vector(case: dict[str, Any]) -> None:
    raw = bytes.fromhex(case["message"])
    parse: Any = bhttp.parse_request if case["kind"] == "request" else bhttp.parse_response
    if case["expect"] != "ok":
        with pytest.raises(MessageFormatError) as caught:
            parse(raw)
        assert caught.value.code == case["expect"]
    elif case["kind"] == "request":
        got = parse(raw)
        assert (got.path, got.headers) == (case["path"], pairs(case["headers"]))
        assert (got.body.decode(), got.trailers) == (case["content"], pairs(case["trailers"]))
    else:
        head, content, trailers = parse(raw)
        assert (head.status, head.headers) == (case["status"], pairs(case["headers"]))
        assert (content.decode(), trailers) == (case["content"], pairs(case["trailers"]))


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case["id"])
def test_byte_by_byte_is_the_same(case: dict[str, Any]) -> None:
    raw = bytes.fromhex(case["message"])
    parser = MessageParser(request=case["kind"] == "request")
    content = [piece for byte in raw for piece in parser.feed(bytes((byte,)))] + parser.finish()
    assert b"".join(content).decode() == case["content"]
    assert parser.trailers == pairs(case["trailers"])


@given(request=requests, bucket=st.sampled_from([1, 16, 256]))
def test_request_round_trip(request: BinaryRequest, bucket: int) -> None:
    raw = request.encode(bucket=bucket)
    assert len(raw) % bucket == 0
    assert bhttp.parse_request(raw) == request


@given(head=st.builds(ResponseHead, status=st.integers(200, 599), headers=fields), data=st.data())
def test_response_round_trip(head: ResponseHead, data: st.DataObject) -> None:
    pieces = data.draw(st.lists(st.binary(min_size=1, max_size=100), max_size=5))
    trailers = data.draw(fields)
    raw = head.encode() + b"".join(map(bhttp.encode_content, pieces)) + bhttp.encode_end(trailers) + bytes(7)
    assert bhttp.parse_response(raw) == (head, b"".join(pieces), trailers)
    parser = MessageParser(request=False)
    assert parser.feed(raw) + parser.finish() == pieces


@given(raw=st.binary(max_size=200), request=st.booleans(), data=st.data())
def test_only_its_own_error(raw: bytes, request: bool, data: st.DataObject) -> None:
    if data.draw(st.booleans()):  # close to a good message, to get deep
        good = bytearray.fromhex(data.draw(st.sampled_from(GOOD))["message"])
        at = data.draw(st.integers(0, len(good) - 1))
        good[at : at + data.draw(st.integers(0, 3))] = raw[:3]
        raw = bytes(good)
    parser = MessageParser(request=request)
    cut = data.draw(st.integers(0, len(raw)))
    try:
        parser.feed(raw[:cut])
        parser.feed(raw[cut:])
        parser.finish()
    except MessageFormatError:
        with pytest.raises(MessageFormatError):
            parser.feed(b"\0")  # once refused, it stays refused
    else:
        assert parser.request if request else parser.head


def test_limits() -> None:
    request = BinaryRequest(method="GET", authority="", path="/", headers=((b"a", b"b"),) * MAX_FIELDS)
    assert len(bhttp.parse_request(request.encode()).headers) == MAX_FIELDS
    many = BinaryRequest(method="GET", authority="", path="/", headers=((b"a", b"b"),) * (MAX_FIELDS + 1))
    with pytest.raises(MessageFormatError):
        many.encode()
    lines = b"\x01a\x01b" * (MAX_FIELDS + 1)
    start = bytes.fromhex("034745540568747470730001") + b"/"
    for raw in (
        b"\x00" + start + encode_varint(len(lines)) + lines,
        b"\x02" + start + lines + b"\x00",
    ):
        with pytest.raises(MessageFormatError) as caught:
            bhttp.parse_request(raw)
        assert caught.value.code == "bhttp-too-large"
    body = BinaryRequest(method="POST", authority="", path="/", body=bytes(11)).encode()
    assert len(bhttp.parse_request(body, max_content=11).body) == 11
    with pytest.raises(MessageFormatError):
        bhttp.parse_request(body, max_content=10)
    with pytest.raises(MessageFormatError):  # refused by its length, before it is there
        MessageParser(request=True, max_content=10).feed(body[:-8])
    with pytest.raises(MessageFormatError):
        MessageParser(request=True).feed(
            b"\x02" + start + b"\x00" + encode_varint(bhttp.MAX_CONTENT_CHUNK + 1)
        )


def test_build_drops_what_belongs_to_the_outer_connection() -> None:
    headers = [(b"Host", b"x"), (b"Connection", b"keep-alive"), (b"Authorization", b"Bearer k")]
    request = BinaryRequest.build("POST", "https://u:p@ai.example:8443/v1/chat?x=1#f", headers, b"{}")
    assert (request.authority, request.path) == ("ai.example:8443", "/v1/chat?x=1")
    assert request.headers == ((b"authorization", b"Bearer k"),)
    assert BinaryRequest.build("GET", "https://ai.example").path == "/"
    assert bhttp.parse_request(request.encode()) == request


@pytest.mark.parametrize(
    "change",
    [
        {"method": "G T"},
        {"scheme": "ftp"},
        {"authority": "a/b"},
        {"path": "x"},
        {"path": "/a\r\nb"},
        {"headers": ((b"a", b"b\r\nc: d"),)},
        {"headers": ((b"A", b"b"),)},
    ],
)
def test_encoder_refuses_what_the_parser_would(change: dict[str, Any]) -> None:
    with pytest.raises(MessageFormatError):
        BinaryRequest(**({"method": "GET", "authority": "a", "path": "/"} | change)).encode()


@given(st.integers(0, MAX_VARINT))
def test_varint(value: int) -> None:
    raw = encode_varint(value)
    assert decode_varint(raw, 0) == (value, len(raw))
    assert decode_varint(raw[:-1], 0) is None
    assert decode_varint(b"xx" + raw, 2) == (value, 2 + len(raw))


def test_varint_examples_of_rfc9000() -> None:
    for raw, value in (
        ("c2197c5eff14e88c", 151288809941952652),
        ("9d7f3e7d", 494878333),
        ("7bbd", 15293),
        ("25", 37),
    ):
        assert decode_varint(bytes.fromhex(raw), 0) == (value, len(raw) // 2)
        assert encode_varint(value).hex() == raw
    assert decode_varint(bytes.fromhex("4025"), 0) == (37, 2)


def test_dates() -> None:
    when = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)
    assert http_date(when) == b"Sun, 06 Nov 1994 08:49:37 GMT"
    assert parse_http_date(http_date(when)) == when
    for bad in (
        b"Mon, 06 Nov 1994 08:49:37 GMT",
        b"Sunday, 06-Nov-94 08:49:37 GMT",
        b"Sun, 31 Feb 1994 08:49:37 GMT",
        b"Sun, 06 Xxx 1994 08:49:37 GMT",
        b"Sun, 06 Nov 1994 08:49:60 GMT",
        b"",
        b"\xff",
    ):
        with pytest.raises(MessageFormatError):
            parse_http_date(bad)


def test_one_value() -> None:
    assert one_value(((b"a", b"1"),), b"b") is None
    assert one_value(((b"a", b"1"),), b"a") == b"1"
    with pytest.raises(MessageFormatError):
        one_value(((b"a", b"1"), (b"a", b"1")), b"a")
