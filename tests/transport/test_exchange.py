"""Client and enclave together, in-process: what goes through, what a relay sees, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.transport.support import (
    CREDENTIAL,
    DIGEST,
    NOW,
    Outer,
    authenticate,
    gateway,
    gateway_key,
    request,
    target,
)

from sealwright.crypto.hpke import Kem
from sealwright.errors import MessageFormatError, SealwrightError, VerificationError
from sealwright.protocol.attestation import GATEWAY_PATH
from sealwright.transport.asgi import Message, OhttpApp, Receive, SealedScope, Send
from sealwright.transport.bhttp import BinaryRequest, MessageParser
from sealwright.transport.client import (
    NotStarted,
    OutcomeUnknown,
    SealedRequest,
    SealTarget,
    seal_request,
)
from sealwright.transport.fields import Fields, http_date
from sealwright.transport.keys import parse_key_list
from sealwright.transport.ohttp import RequestSealer
from sealwright.transport.padding import comments, strip
from sealwright.transport.response import ResponseWriter
from sealwright.transport.server import Gateway

KEY = gateway_key(Kem.X25519)
SSE = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"connection", b"keep-alive")]
EVENTS = [b"data: %d %s\n\n" % (index, b"tok" * (index * 40)) for index in range(8)] + [b"data: half"]


class Inner:
    """Records what it is given; answers as told."""

    def __init__(
        self, pieces: list[bytes], headers: list[tuple[bytes, bytes]], trailers: Fields | None = None
    ) -> None:
        self.pieces, self.headers, self.trailers = pieces, headers, trailers
        self.scopes: list[Message] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        self.bodies.append((await receive())["body"])
        start = {"type": "http.response.start", "status": 201, "headers": self.headers}
        await send(start | {"trailers": self.trailers is not None})
        for index, piece in enumerate(self.pieces):
            more = index < len(self.pieces) - 1
            await send({"type": "http.response.body", "body": piece, "more_body": more})
        if self.trailers is not None:
            await send({"type": "http.response.trailers", "headers": self.trailers})


class Bench:
    """A gateway around an inner application, a clock that the test turns, and the errors reported."""

    def __init__(self, inner: Any = None, *, gate: Gateway | None = None, bucket: int = 256) -> None:
        self.inner = inner or Inner([b"hello"], [(b"content-type", b"text/plain")])
        self.gateway = gate or gateway(KEY)
        self.now = NOW
        self.errors: list[Exception] = []
        self.app = OhttpApp(
            self.inner,
            self.gateway,
            authenticate=authenticate,
            now=lambda: self.now,
            on_error=self.errors.append,
            bucket=bucket,
        )

    async def send(self, sealed: SealedRequest, *, body: bytes | None = None) -> Outer:
        outer = Outer(self.app)
        await outer.post(sealed, body=body)
        return outer

    async def ask(self, sealed: SealedRequest | None = None) -> tuple[int, bytes, Fields]:
        sealed = sealed or seal()
        return (await self.send(sealed)).read(sealed.response)


def seal(what: BinaryRequest | None = None, **changes: Any) -> SealedRequest:
    return seal_request(target(KEY), what or request(), **({"now": NOW} | changes))


async def refusal(bench: Bench, sealed: SealedRequest) -> tuple[int, str]:
    status, body, _ = await bench.ask(sealed)
    return status, json.loads(body)["code"]


@pytest.mark.parametrize("kem", list(Kem))
async def test_everything_goes_through_and_nothing_shows(kem: Kem) -> None:
    key = gateway_key(kem, key_id=9)
    inner = Inner([b"planted-answer"], [(b"X-B", b"planted-reply")], ((b"sealwright-receipt", b"r" * 5000),))
    bench = Bench(inner, gate=gateway(key))
    sealed = seal_request(target(key), request("/v1/planted-path?q=%20a"), now=NOW)
    outer = await bench.send(sealed)
    status, body, trailers = outer.read(sealed.response)
    assert (status, body, trailers) == (201, b"planted-answer", ((b"sealwright-receipt", b"r" * 5000),))
    assert sealed.response.head is not None
    assert sealed.response.head.headers == ((b"x-b", b"planted-reply"),)
    scope = inner.scopes[0]
    assert (scope["method"], scope["raw_path"], scope["path"]) == (
        "POST",
        b"/v1/planted-path",
        "/v1/planted-path",
    )
    assert scope["query_string"] == b"q=%20a"
    headers = dict(scope["headers"])
    assert headers[b"authorization"] == CREDENTIAL
    assert (headers[b"host"], headers[b"date"]) == (b"ai.example", http_date(NOW))
    assert headers[b"content-length"] == str(len(request().body)).encode()
    assert inner.bodies == [request().body]
    about = scope["sealwright"]
    assert isinstance(about, SealedScope)
    assert (about.caller.tenant, about.keyset_digest, about.transport) == (
        "hospital",
        DIGEST,
        "chunked-ohttp",
    )
    seen = b"".join(
        [sealed.body, *outer.pieces, repr((sealed.headers, outer.headers, outer.status)).encode()]
    )
    for planted in (b"planted", CREDENTIAL, b"Bearer", b"swk_", b"ai.example"):
        assert planted not in seen
    assert bench.errors == []


@pytest.mark.parametrize("trailers", [None, ((b"sealwright-receipt", b"abc"),)])
async def test_event_stream_is_padded_on_the_wire_and_not_for_the_caller(trailers: Fields | None) -> None:
    bench = Bench(Inner([*EVENTS, b"\n\n"], SSE, trailers))
    sealed = seal()
    outer = await bench.send(sealed)
    assert outer.read(sealed.response) == (201, b"".join(EVENTS) + b"\n\n", trailers or ())
    assert sealed.response.head is not None
    assert sealed.response.head.headers == (SSE[0],)
    lengths = [len(piece) for piece in outer.pieces[1:9]]
    overhead = 2 + 2 + 16  # content length, chunk length, tag
    assert {(length - overhead) % 256 for length in lengths} == {0}
    assert lengths[0] == lengths[1] == 256 + overhead  # 10 and 130 bytes look the same


async def test_whole_answers_are_padded_to_the_bucket() -> None:
    sizes = set()
    for length in (0, 1, 100, 200):
        bench = Bench(Inner([b"a" * length], []))
        sealed = seal()
        outer = await bench.send(sealed)
        assert outer.read(sealed.response)[1] == b"a" * length
        sizes.add(sum(map(len, outer.pieces)))
    assert len(sizes) == 1
    requests = {len(seal(request(body=b"x" * length)).body) for length in (0, 10, 60)}
    assert len(requests) == 1


@given(
    pieces=st.lists(
        st.one_of(st.binary(max_size=40), st.sampled_from([b"\n\n", b": x\n\n", b":\n\n"])), max_size=8
    ),
    sse=st.booleans(),
    bucket=st.sampled_from([4, 5, 256, 4096]),
    big=st.integers(0, 40_000),
    split=st.integers(1, 5000),
)
def test_any_body_arrives_as_written(
    pieces: list[bytes], sse: bool, bucket: int, big: int, split: int
) -> None:
    sealed = seal()
    session = gateway(KEY).session()
    session.feed(sealed.body)
    exchange = session.finish()
    writer = ResponseWriter(exchange.sealer(), bucket=bucket)
    stream = writer.start(200, SSE if sse else [])
    written = [*pieces, b"e" * big]
    for piece in written:
        stream += writer.body(piece, True)
    stream += writer.body(b"", False)
    reader = sealed.response
    reader.begin(200, [(b"content-type", b"message/ohttp-chunked-res")])
    got = [piece for at in range(0, len(stream), split) for piece in reader.feed(stream[at : at + split])]
    assert b"".join(got + reader.finish()) == b"".join(written)


@given(st.integers(4, 4096), st.binary(max_size=600))
def test_comments_pad_to_the_bucket_and_come_off(bucket: int, data: bytes) -> None:
    event = data + b"\n\n"
    padded = event + comments(bucket)[len(event) % bucket]
    assert len(padded) % bucket == 0
    assert strip(padded) == event


def test_an_event_without_its_padding_is_refused() -> None:
    with pytest.raises(MessageFormatError) as caught:
        strip(b"data: x\n\n")
    assert caught.value.code == "sse-padding"


async def test_replayed_request_is_refused_and_runs_once() -> None:
    bench = Bench()
    sealed = seal()
    assert (await bench.ask(sealed))[0] == 201
    again = Outer(bench.app)
    await again.post(sealed)
    # The one who replays cannot read the answer; the holder of the request learns the code.
    other = seal()
    with pytest.raises(VerificationError):
        again.read(other.response)
    assert len(bench.inner.bodies) == 1
    assert [getattr(error, "code", "") for error in bench.errors] == ["replayed"]


async def test_credential_is_checked_before_anything_is_remembered() -> None:
    gate = gateway(KEY, capacity=1)
    bench = Bench(gate=gate)
    for _ in range(3):
        stranger = BinaryRequest.build("GET", "https://ai.example/", [(b"authorization", b"Bearer other")])
        assert await refusal(bench, seal(stranger)) == (401, "unauthenticated")
        late = seal(now=NOW - timedelta(seconds=61))
        assert await refusal(bench, late) == (400, "date")
        assert late.response.head is not None
        assert (b"date", http_date(NOW)) in late.response.head.headers
    assert (await bench.ask())[0] == 201  # there was room
    assert await refusal(bench, seal()) == (503, "replay-cache-full")
    assert len(bench.inner.bodies) == 1


async def test_request_without_date_or_malformed_inside_is_refused_inside_the_seal() -> None:
    bench = Bench()
    for plain, code in (
        (request().encode(bucket=256), "date-format"),
        (b"\x09", "malformed-bhttp"),
        (request().encode()[:-3], "malformed-bhttp"),
    ):
        sealed = seal()
        sealer = RequestSealer(KEY.config)
        outer = await bench.send(sealed, body=sealer.seal_all(plain))
        opener = sealer.response_opener()
        parser = MessageParser(request=False)
        content = [c for p in outer.pieces for q in opener.feed(p) for c in parser.feed(q)]
        content += parser.feed(opener.finish()) + parser.finish()
        assert json.loads(b"".join(content))["code"] == code
    assert bench.inner.bodies == []


@settings(max_examples=60)
@given(data=st.data())
async def test_altered_request_never_reaches_the_application(data: st.DataObject) -> None:
    bench = Bench()
    sealed = seal()
    body = bytearray(sealed.body)
    at = data.draw(st.integers(0, len(body) - 1))
    change = data.draw(st.sampled_from(["flip", "cut", "append", "drop"]))
    if change == "flip":
        body[at] ^= 1 << data.draw(st.integers(0, 7))
    elif change == "cut":
        del body[at:]
    elif change == "append":
        body += b"\0"
    else:
        del body[at]
    outer = await bench.send(sealed, body=bytes(body))
    assert bench.inner.scopes == []
    assert outer.status == 400
    assert set(json.loads(outer.pieces[-1])) == {"code", "status", "type"}
    with pytest.raises(OutcomeUnknown):
        outer.read(sealed.response)


@settings(max_examples=80)
@given(data=st.data())
async def test_altered_response_is_refused_by_the_client(data: st.DataObject) -> None:
    bench = Bench(Inner(EVENTS, SSE))
    sealed = seal()
    outer = await bench.send(sealed)
    pieces = list(outer.pieces)
    index = data.draw(st.integers(0, len(pieces) - 1))
    change = data.draw(st.sampled_from(["flip", "drop", "swap", "repeat", "append"]))
    if change == "flip":
        piece = bytearray(pieces[index])
        piece[data.draw(st.integers(0, len(piece) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        pieces[index] = bytes(piece)
    elif change == "drop":
        del pieces[index]
    elif change == "swap":
        other = data.draw(st.integers(0, len(pieces) - 1).filter(lambda value: value != index))
        pieces[index], pieces[other] = pieces[other], pieces[index]
    elif change == "repeat":
        pieces.insert(index, pieces[index])
    else:
        pieces.append(data.draw(st.binary(min_size=1, max_size=30)))
    outer.pieces = pieces
    with pytest.raises((VerificationError, MessageFormatError, OutcomeUnknown)):
        outer.read(sealed.response)


async def test_response_cut_short_leaves_the_outcome_unknown() -> None:
    sealed = seal()
    outer = await Bench(Inner(EVENTS, SSE)).send(sealed)
    del outer.pieces[-1]
    with pytest.raises(OutcomeUnknown) as caught:
        outer.read(sealed.response)
    assert (caught.value.code, caught.value.stage) == ("outcome-unknown", "truncated")


async def test_response_of_one_request_fed_to_another_is_refused() -> None:
    bench = Bench()
    mine, yours = seal(), seal()
    outer = await bench.send(yours)
    with pytest.raises(VerificationError) as caught:
        outer.read(mine.response)
    assert caught.value.code == "chunk-open-failed"


async def test_unknown_key_is_told_outside_and_leaves_the_outcome_unknown() -> None:
    bench = Bench()
    stale = gateway_key(Kem.X25519, key_id=2)
    sealed = seal_request(target(stale), request(), now=NOW)
    outer = await bench.send(sealed)
    assert outer.status == 400
    answer = json.loads(outer.pieces[-1])
    assert answer["code"] == "ohttp-key"
    assert answer["type"].endswith("#ohttp-key")
    with pytest.raises(OutcomeUnknown) as caught:
        outer.read(sealed.response)
    assert caught.value.stage == "ohttp-key"


async def test_not_started_is_signed_barred_and_only_then_believed() -> None:
    bench = Bench()
    sealed = seal()
    bench.gateway.accepting = False
    outer = await bench.send(sealed)
    with pytest.raises(NotStarted) as caught:
        outer.read(sealed.response)
    assert caught.value.code == "not-started"
    bench.gateway.accepting = True  # even so, these bytes never start
    replay = await bench.send(sealed)
    fresh = seal()
    with pytest.raises(VerificationError):
        replay.read(fresh.response)
    assert bench.inner.bodies == []
    assert [getattr(error, "code", "") for error in bench.errors] == ["not-serving", "barred"]


async def test_forged_or_borrowed_statements_of_not_started_are_not_believed() -> None:
    bench = Bench()
    bench.gateway.accepting = False
    real = await bench.send(seal())
    forged = Ed25519PrivateKey.generate().sign(b"x")
    for statement in (b"".join(real.pieces), forged, b"", b"short", bytes(64)):
        sealed = seal()
        outer = Outer(bench.app)
        outer.status, outer.headers, outer.complete = 503, real.headers, True
        outer.pieces = [statement]
        with pytest.raises(OutcomeUnknown):
            outer.read(sealed.response)
    # The right enc under another keyset is another statement.
    sealed = seal()
    outer = await bench.send(sealed)
    other = SealTarget(config=KEY.config, keyset_digest=bytes(32), receipt_key=target(KEY).receipt_key)
    object.__setattr__(sealed.response, "_target", other)
    with pytest.raises(OutcomeUnknown):
        outer.read(sealed.response)


async def test_a_started_request_gets_no_statement() -> None:
    bench = Bench()
    sealed = seal()
    await bench.ask(sealed)
    bench.gateway.accepting = False
    outer = await bench.send(sealed)
    assert outer.status == 200  # a sealed `replayed`, not a statement
    assert [getattr(error, "code", "") for error in bench.errors] == ["replayed"]


@pytest.mark.parametrize(("status", "headers"), [(200, []), (502, []), (302, [(b"location", b"/")])])
def test_outer_answers_leave_the_outcome_unknown(status: int, headers: list[tuple[bytes, bytes]]) -> None:
    reader = seal().response
    reader.begin(status, headers)
    assert reader.feed(b"<html>" * 10_000) == []
    with pytest.raises(OutcomeUnknown) as caught:
        reader.finish()
    assert caught.value.stage == "outer-status"
    assert "html" not in str(caught.value)
    assert reader.lost().stage == "connection"


async def _fails_at_once(scope: Message, receive: Receive, send: Send) -> None:
    raise RuntimeError("planted prompt in an exception")


async def _fails_midway(scope: Message, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": SSE})
    await send({"type": "http.response.body", "body": b"data: a\n\n", "more_body": True})
    raise RuntimeError("planted prompt in an exception")


async def _returns_midway(scope: Message, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": SSE})


async def _bad_header(scope: Message, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b\r\nc: d")]})


@pytest.mark.parametrize("inner", [_fails_at_once, _bad_header])
async def test_inner_failure_before_its_head_is_a_sealed_500(inner: Any) -> None:
    bench = Bench(inner)
    assert await refusal(bench, seal()) == (500, "inner-failed")
    assert len(bench.errors) == 1


@pytest.mark.parametrize("inner", [_fails_midway, _returns_midway])
async def test_inner_failure_midway_never_looks_whole(inner: Any) -> None:
    bench = Bench(inner)
    sealed = seal()
    outer = Outer(bench.app)
    with pytest.raises(SealwrightError) as caught:
        await outer.post(sealed)
    assert caught.value.code == "inner-failed"
    assert caught.value.__context__ is None  # nothing for a server's traceback to quote
    outer.complete = True  # as a relay would have it look
    with pytest.raises(OutcomeUnknown):
        outer.read(sealed.response)


async def test_other_paths_methods_and_types() -> None:
    bench = Bench()
    outer = Outer(bench.app)
    await outer.call("GET", [], b"", GATEWAY_PATH)
    assert outer.status == 200
    assert parse_key_list(b"".join(outer.pieces)) == (KEY.config,)
    for method, headers, path, want in (
        ("GET", [], "/v1/models", 404),
        ("POST", [(b"content-type", b"application/json")], GATEWAY_PATH, 415),
        ("POST", [], GATEWAY_PATH, 415),
        ("POST", [(b"content-type", b"message/ohttp-chunked-req")], GATEWAY_PATH, 400),
    ):
        outer = Outer(bench.app)
        await outer.call(method, headers, b"{}", path)
        assert outer.status == want
    assert bench.inner.scopes == []


async def test_request_over_its_limit() -> None:
    small = gateway(KEY)
    small.max_request = 1000
    bench = Bench(gate=small)
    assert (await bench.ask(seal(request(body=bytes(1000)))))[0] == 201
    assert await refusal(bench, seal(request(body=bytes(1001)))) == (413, "bhttp-too-large")
    sealed = seal(request(body=bytes(3 << 20)))
    assert (await bench.send(sealed)).status == 413  # stopped before it was whole


def test_two_keysets_live_side_by_side_but_not_under_one_key_id() -> None:
    first, second = gateway(KEY), gateway(gateway_key(Kem.XWING, key_id=2))
    both = [*first._by_id.values(), *second._by_id.values()]
    gate = Gateway(both)
    assert set(gate.keys) == {1, 2}
    session = gate.session()
    session.feed(seal().body)
    gate.replace(both)
    assert session.finish().keyset_digest == DIGEST
    session = gate.session()
    session.feed(seal().body)
    gate.replace(second._by_id.values())
    with pytest.raises(VerificationError):
        session.finish()  # its keys are gone
    with pytest.raises(VerificationError):
        gate.session().feed(seal().body)
    with pytest.raises(ValueError, match="share a key id"):
        Gateway([both[0], both[0]])


def test_bucket_bounds() -> None:
    make: Callable[[int], ResponseWriter] = lambda bucket: ResponseWriter(Any, bucket=bucket)  # type: ignore[arg-type]  # noqa: E731
    for bucket in (0, 3, 4097):
        with pytest.raises(ValueError, match="bucket"):
            make(bucket)
