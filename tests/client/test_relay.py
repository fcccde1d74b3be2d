"""A hostile relay between client and fake enclave: each thing it can do ends in the documented refusal."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.support import Clock, fake_enclave

import sealwright
from sealwright.client.httpx_transport import async_transport
from sealwright.errors import SealwrightError
from sealwright.protocol.attestation import ATTESTATION_PATH, GATEWAY_PATH
from sealwright.testing.enclave import FakeEnclave
from sealwright.testing.gateway import FakeServer

PROMPT = "planted prompt"
CREDENTIAL_HEADER = "authorization"
Handler = Callable[[httpx2.Request], Awaitable[httpx2.Response]]


class Relay:
    """Passes requests on to the enclave, and keeps every byte. Tests override `outbound` and `inbound`."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.enclave: FakeEnclave = fake_enclave(self.clock)
        self.server = FakeServer(self.enclave)
        self.wire: list[bytes] = []
        self.requests: list[httpx2.Request] = []
        self.outbound: Callable[[httpx2.Request], httpx2.Request] = lambda request: request
        self.inbound: Callable[[httpx2.Request, httpx2.Response], httpx2.Response] = lambda _, answer: answer
        self._inner = httpx2.ASGITransport(self.server.app)

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.wire.append(repr((str(request.url), request.headers.raw)).encode() + request.content)
        self.requests.append(request)
        changed = self.outbound(request)
        answer = await self._inner.handle_async_request(changed)
        body = b"".join([part async for part in answer.stream])  # type: ignore[union-attr]
        whole = httpx2.Response(answer.status_code, headers=answer.headers, content=body)
        self.wire.append(repr(whole.headers.raw).encode() + body)
        return self.inbound(changed, whole)

    def client(self) -> httpx2.AsyncClient:
        made = async_transport(
            trust=self.enclave.trust_file(), outer=httpx2.MockTransport(self), now=self.clock
        )
        return httpx2.AsyncClient(transport=made, base_url="http://relay.test", follow_redirects=True)

    async def chat(self, client: httpx2.AsyncClient, *, stream: bool = False) -> httpx2.Response:
        body = {"model": "echo", "messages": [{"role": "user", "content": PROMPT}], "stream": stream}
        headers = {CREDENTIAL_HEADER: f"Bearer {self.enclave.credential}"}
        return await client.post("/v1/chat/completions", json=body, headers=headers)

    def on_gateway(self, act: Callable[[httpx2.Response], httpx2.Response]) -> None:
        self.inbound = lambda request, answer: act(answer) if request.url.path == GATEWAY_PATH else answer


@pytest.fixture
def relay() -> Relay:
    return Relay()


def remade(answer: httpx2.Response, body: bytes | None = None, **changes: Any) -> httpx2.Response:
    headers = [(name, value) for name, value in answer.headers.raw if name.lower() != b"content-length"]
    settings = {"status_code": answer.status_code, "headers": headers, **changes}
    return httpx2.Response(content=answer.content if body is None else body, **settings)


def code(answer: httpx2.Response) -> str:
    assert answer.status_code == 403
    assert answer.headers["x-should-retry"] == "false"
    return str(answer.json()["error"]["code"])


async def test_an_honest_relay_sees_no_plaintext(relay: Relay) -> None:
    async with relay.client() as client:
        for stream in (False, True):
            answer = await relay.chat(client, stream=stream)
            assert "planted" in answer.text
            assert sealwright.receipt(answer)
    planted = [PROMPT.encode(), b"planted", relay.enclave.credential.encode(), b"chat/completions", b"swk_"]
    for secret in planted:
        assert not any(secret in item for item in relay.wire), secret
    assert relay.server.errors == []


async def test_an_altered_request_is_refused_by_the_enclave(relay: Relay) -> None:
    def alter(request: httpx2.Request) -> httpx2.Request:
        if request.url.path != GATEWAY_PATH:
            return request
        body = bytearray(request.content)
        body[-1] ^= 1
        return httpx2.Request("POST", request.url, headers=request.headers, content=bytes(body))

    relay.outbound = alter
    async with relay.client() as client:
        assert code(await relay.chat(client)) == "outcome-unknown"
    assert relay.server.seen == []


async def test_a_truncated_request_is_refused_by_the_enclave(relay: Relay) -> None:
    def cut(request: httpx2.Request) -> httpx2.Request:
        if request.url.path != GATEWAY_PATH:
            return request
        headers = {name: value for name, value in request.headers.items() if name != "content-length"}
        return httpx2.Request("POST", request.url, headers=headers, content=request.content[:-300])

    relay.outbound = cut
    async with relay.client() as client:
        assert code(await relay.chat(client)) == "outcome-unknown"
    assert relay.server.seen == []


async def test_a_replayed_request_does_not_run_twice(relay: Relay) -> None:
    async with relay.client() as client:
        await relay.chat(client)
        replayed = relay.requests[-1]
        relay.outbound = lambda request: replayed if request.url.path == GATEWAY_PATH else request
        assert code(await relay.chat(client)) == "chunk-open-failed"  # another exchange's answer
    assert relay.server.seen == [PROMPT]
    assert [getattr(error, "code", "") for error in relay.server.errors] == ["replayed"]


async def test_a_request_held_back_past_its_date_is_refused(relay: Relay) -> None:
    def late(request: httpx2.Request) -> httpx2.Request:
        if request.url.path == GATEWAY_PATH:
            relay.clock.move(seconds=61)
        return request

    relay.outbound = late
    async with relay.client() as client:
        answer = await relay.chat(client)
    assert answer.status_code == 400  # sealed: the enclave's own word
    assert answer.json()["error"]["code"] == "date"
    assert relay.server.seen == []


@pytest.mark.parametrize("stream", [False, True])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
async def test_any_flipped_bit_of_an_answer_is_refused(stream: bool, data: st.DataObject) -> None:
    relay = RELAY
    relay.server.seen.clear()

    def flip(answer: httpx2.Response) -> httpx2.Response:
        bit = data.draw(st.integers(0, 8 * len(answer.content) - 1))
        body = bytearray(answer.content)
        body[bit // 8] ^= 1 << bit % 8
        return remade(answer, bytes(body))

    relay.on_gateway(flip)
    async with relay.client() as client:
        await refused(relay, client, stream, {"chunk-open-failed", "chunk-length", "outcome-unknown"})


@pytest.mark.parametrize("stream", [False, True])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
async def test_any_truncated_answer_is_refused(stream: bool, data: st.DataObject) -> None:
    relay = RELAY

    def cut(answer: httpx2.Response) -> httpx2.Response:
        return remade(answer, answer.content[: data.draw(st.integers(0, len(answer.content) - 1))])

    relay.on_gateway(cut)
    async with relay.client() as client:
        await refused(relay, client, stream, {"outcome-unknown", "chunk-open-failed"})


async def refused(relay: Relay, client: httpx2.AsyncClient, stream: bool, codes: set[str]) -> None:
    """A refusal before the caller saw anything is a 403; within a stream it is raised, and never the end."""
    try:
        found = code(await relay.chat(client, stream=stream))
    except SealwrightError as exc:
        found = exc.code if stream else "raised where no stream was asked for"
    assert found in codes


RELAY = Relay()


async def test_reordered_and_repeated_chunks_are_refused(relay: Relay) -> None:
    def frames(body: bytes) -> tuple[bytes, list[bytes], bytes]:
        nonce, rest, out = body[:32], body[32:], []
        while rest[0]:
            size = {0: 1, 1: 2, 2: 4}[rest[0] >> 6]
            length = int.from_bytes(rest[:size], "big") & ((1 << (8 * size - 2)) - 1)
            out.append(rest[: size + length])
            rest = rest[size + length :]
        return nonce, out, rest

    def reorder(answer: httpx2.Response) -> httpx2.Response:
        nonce, middle, last = frames(answer.content)
        middle[1], middle[2] = middle[2], middle[1]
        return remade(answer, nonce + b"".join(middle) + last)

    def repeat(answer: httpx2.Response) -> httpx2.Response:
        nonce, middle, last = frames(answer.content)
        return remade(answer, nonce + b"".join([*middle, middle[-1]]) + last)

    def drop(answer: httpx2.Response) -> httpx2.Response:
        nonce, middle, last = frames(answer.content)
        return remade(answer, nonce + b"".join(middle[:-1]) + last)

    for act in (reorder, repeat, drop):
        relay.on_gateway(act)
        async with relay.client() as client:
            await refused(relay, client, True, {"chunk-open-failed"})


async def test_a_stripped_receipt_cannot_be_told_from_a_cut_answer(relay: Relay) -> None:
    # The trailer rides in the final chunk: without it the answer never ends well.
    relay.on_gateway(lambda answer: remade(answer, answer.content[:-200]))
    async with relay.client() as client:
        await refused(relay, client, True, {"chunk-open-failed", "outcome-unknown"})


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_in_plaintext_is_no_answer(relay: Relay, stream: bool) -> None:
    fake = json.dumps({"choices": [{"message": {"content": "evil"}}]}).encode()
    for kind in ("application/json", "text/event-stream", "message/ohttp-chunked-res"):
        answer = httpx2.Response(200, headers={"content-type": kind}, content=fake)
        relay.inbound = lambda request, real, fake=answer: fake if request.url.path == GATEWAY_PATH else real  # type: ignore[misc]
        async with relay.client() as client:
            got = await relay.chat(client, stream=stream)
        assert code(got) in {"outcome-unknown", "chunk-open-failed", "chunk-length"}
        assert "evil" not in got.text


async def test_plaintext_after_a_sealed_answer_is_refused(relay: Relay) -> None:
    relay.on_gateway(lambda answer: remade(answer, answer.content + b"data: evil\n\n"))
    async with relay.client() as client:
        await refused(relay, client, True, {"chunk-open-failed"})


async def test_the_answer_to_another_request_is_refused(relay: Relay) -> None:
    kept: list[httpx2.Response] = []

    def swap(answer: httpx2.Response) -> httpx2.Response:
        kept.append(remade(answer))
        return remade(kept[0])

    relay.on_gateway(swap)
    async with relay.client() as client:
        assert (await relay.chat(client)).status_code == 200
        assert code(await relay.chat(client)) == "chunk-open-failed"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(relay: Relay, status: int) -> None:
    location = {"location": "http://evil.test/"}
    relay.on_gateway(lambda _: httpx2.Response(status, headers=location))
    async with relay.client() as client:
        assert code(await relay.chat(client)) == "outcome-unknown"
    assert {request.url.host for request in relay.requests} == {"relay.test"}
    relay.requests.clear()
    relay.inbound = lambda _, __: httpx2.Response(status, headers=location)
    async with relay.client() as client:
        assert code(await relay.chat(client)) == "attestation-unavailable"
    assert {request.url.host for request in relay.requests} == {"relay.test"}


async def test_a_forged_not_started_is_not_believed(relay: Relay) -> None:
    kind = {"content-type": "application/vnd.sealwright.not-started"}
    relay.on_gateway(lambda _: httpx2.Response(503, headers=kind, content=b"\0" * 64))
    async with relay.client() as client:
        assert code(await relay.chat(client)) == "outcome-unknown"
    assert sum(request.url.path == GATEWAY_PATH for request in relay.requests) == 1
    assert relay.server.seen == [PROMPT]  # it did run: sealing it again would have run it twice


async def test_a_swapped_keyset_header_changes_nothing(relay: Relay) -> None:
    def swap(request: httpx2.Request) -> httpx2.Request:
        headers = {**request.headers, "sealwright-keyset": "00" * 32}
        return httpx2.Request("POST", request.url, headers=headers, content=request.content)

    relay.outbound = swap
    async with relay.client() as client:
        answer = await relay.chat(client)
    # It only routes: what opens the request is the key, which the relay cannot change.
    assert answer.status_code == 200
    assert sealwright.receipt(answer)


async def test_an_older_attestation_replayed_is_refused(relay: Relay) -> None:
    kept: list[httpx2.Response] = []

    def replay(request: httpx2.Request, answer: httpx2.Response) -> httpx2.Response:
        if request.url.path != ATTESTATION_PATH:
            return answer
        kept.append(remade(answer))
        return remade(kept[0])

    relay.inbound = replay
    async with relay.client() as client:
        assert (await relay.chat(client)).status_code == 200
    async with relay.client() as client:
        assert code(await relay.chat(client)) == "report-data-mismatch"
    assert relay.server.seen == [PROMPT]


async def test_an_attestation_delayed_past_its_lease_is_refused(relay: Relay) -> None:
    def delay(request: httpx2.Request, answer: httpx2.Response) -> httpx2.Response:
        relay.clock.move(minutes=11)
        return answer

    relay.inbound = delay
    async with relay.client() as client:
        assert code(await relay.chat(client)) == "lease-ended"
    assert [request.url.path for request in relay.requests] == [ATTESTATION_PATH]


async def test_nothing_is_sealed_after_the_lease_unless_it_was_renewed(relay: Relay) -> None:
    async with relay.client() as client:
        await relay.chat(client)
        relay.clock.move(minutes=11)
        assert code(await relay.chat(client)) == "lease-ended"  # the enclave got no new one
        relay.enclave.renew()
        assert (await relay.chat(client)).status_code == 200
        # A renewed lease in a sealed head carries on without a new attestation.
        asked = sum(request.url.path == ATTESTATION_PATH for request in relay.requests)
        relay.clock.move(minutes=6)
        relay.enclave.renew()
        assert (await relay.chat(client)).status_code == 200
        relay.clock.move(minutes=6)
        answer = await relay.chat(client)
        assert answer.status_code == 200
        assert sum(request.url.path == ATTESTATION_PATH for request in relay.requests) == asked
        assert sealwright.receipt(answer).file.lease is not None


async def test_an_enclave_of_the_relays_own_is_refused(relay: Relay) -> None:
    trust = relay.enclave.trust_file()
    rogue = Relay()
    made = async_transport(trust=trust, outer=httpx2.MockTransport(rogue), now=rogue.clock)
    async with httpx2.AsyncClient(transport=made, base_url="http://relay.test") as client:
        assert code(await rogue.chat(client)) in {"untrusted-signer", "quoting-root-not-allowed"}
    assert rogue.server.seen == []
    assert len(rogue.requests) == 1


@settings(max_examples=40, deadline=None)
@given(data=st.data())
async def test_no_application_byte_leaves_on_an_altered_attestation(data: st.DataObject) -> None:
    relay = RELAY
    relay.requests.clear()
    relay.wire.clear()

    def flip(_: httpx2.Request, answer: httpx2.Response) -> httpx2.Response:
        bit = data.draw(st.integers(0, 8 * len(answer.content) - 1))
        body = bytearray(answer.content)
        body[bit // 8] ^= 1 << bit % 8
        return remade(answer, bytes(body))

    relay.inbound = flip
    async with relay.client() as client:
        code(await relay.chat(client))
    assert [request.url.path for request in relay.requests] == [ATTESTATION_PATH]
    assert all(set(json.loads(request.content)) == {"nonce", "tenant"} for request in relay.requests)
    assert not any(b"planted" in item or b"swk_" in item for item in relay.wire)
