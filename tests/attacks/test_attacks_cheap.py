"""Cheap requests that cost the enclave much."""

from __future__ import annotations

import asyncio
import gc
import threading
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.requests import Request

from sealwright.broker.http import read_body
from sealwright.broker.problems import of_error
from sealwright.crypto.hpke import HpkePrivateKey, Kem
from sealwright.enclave.receipts import Journal
from sealwright.enclave.runtime import PROOFS_AT_ONCE, Enclave
from sealwright.errors import MessageFormatError, UnavailableError, VerificationError
from sealwright.protocol.attestation import GATEWAY_PATH
from sealwright.transport.asgi import Message, OhttpApp, Receive, Send
from sealwright.transport.bhttp import FREE_CHUNKS, MIN_CONTENT_CHUNK, BinaryRequest, parse_request
from sealwright.transport.client import OutcomeUnknown, SealTarget, seal_request
from sealwright.transport.keys import GatewayKey, KeyConfig
from sealwright.transport.ohttp import REQUEST_TYPE, RequestSealer
from sealwright.transport.replay import EncCache
from sealwright.transport.server import Caller, Gateway, RequestSession, ServingKeyset
from sealwright.transport.varint import encode_varint


def _request(chunks: int, size: int) -> bytes:
    head = b"\x02" + b"".join(encode_varint(len(item)) + item for item in (b"POST", b"https", b"a", b"/"))
    return head + b"\x00" + (encode_varint(size) + bytes(size)) * chunks + b"\x00\x00"


def test_a_body_of_one_byte_chunks_is_refused_before_it_costs_seconds() -> None:
    limit = 1 << 20
    most = FREE_CHUNKS + limit // MIN_CONTENT_CHUNK
    assert len(parse_request(_request(most, 1), max_content=limit).body) == most
    with pytest.raises(MessageFormatError) as caught:
        parse_request(_request(most + 1, 1), max_content=limit)
    assert caught.value.code == "bhttp-too-large"
    assert len(parse_request(_request(1 << 10, 1 << 10), max_content=limit).body) == limit


def _keyset() -> tuple[KeyConfig, ServingKeyset]:
    private = HpkePrivateKey.generate(Kem.X25519)
    config = KeyConfig(key_id=1, public=private.public)
    keyset = ServingKeyset(
        keyset_digest=bytes(32),
        keys={1: GatewayKey(config=config, private=private)},
        receipt_key=Ed25519PrivateKey.generate(),
        cache=EncCache(bytes(32)),
    )
    return config, keyset


def _alive(config: KeyConfig) -> list[GatewayKey]:
    gc.collect()
    keys = [key for key in gc.get_objects() if isinstance(key, GatewayKey)]
    return [key for key in keys if key.config is config]


@pytest.mark.parametrize("begun", [0, 3, 20, 60])
def test_a_trickled_request_does_not_keep_private_keys_alive(begun: int) -> None:
    config, keyset = _keyset()
    gateway = Gateway([keyset])
    del keyset
    session = gateway.session()
    session.feed((RequestSealer(config).seal_all(bytes(64)))[:begun])
    assert _alive(config)
    gateway.replace([])
    assert not _alive(config)
    with pytest.raises(VerificationError) as caught:
        session.feed(b"x")
    assert caught.value.code == "ohttp-key"


def test_a_request_under_a_keyset_that_is_still_served_goes_on() -> None:
    config, keyset = _keyset()
    gateway = Gateway([keyset])
    session = gateway.session()
    raw = RequestSealer(config).seal_all(bytes(64))
    session.feed(raw[:60])
    gateway.replace([keyset])
    session.feed(raw[60:])
    assert session.finish().keyset_digest == keyset.keyset_digest


async def test_a_request_body_that_never_ends_is_given_up() -> None:
    said: list[Message] = []

    async def never() -> Message:
        return await asyncio.get_running_loop().create_future()

    async def send(message: Message) -> None:
        said.append(message)

    def now() -> datetime:
        raise AssertionError("it is not whole")

    refused: list[Any] = []
    app = OhttpApp(
        _nobody,
        Gateway([_keyset()[1]]),
        authenticate=lambda _: Caller(tenant=""),
        now=now,
        on_error=refused.append,
        body_s=0.01,
    )
    headers = [(b"content-type", REQUEST_TYPE)]
    scope = {"type": "http", "method": "POST", "path": GATEWAY_PATH, "headers": headers}
    await app(scope, never, send)
    assert (said[0]["status"], [error.code for error in refused]) == (408, ["body-timeout"])
    assert (b"connection", b"close") in said[0]["headers"]

    with pytest.raises(MessageFormatError) as caught:
        await read_body(Request(scope, never), 10, seconds=0.01)
    assert of_error(caught.value, path="/").status_code == 408


async def _nobody(scope: Message, receive: Receive, send: Send) -> None:
    raise AssertionError("nothing was admitted")


def test_an_answer_outside_the_seal_that_never_ends_is_not_read_for_ever() -> None:
    config, keyset = _keyset()
    target = SealTarget(
        config=config, keyset_digest=keyset.keyset_digest, receipt_key=keyset.receipt_key.public_key()
    )
    request = BinaryRequest(method="POST", scheme="https", authority="a", path="/", headers=(), body=b"")
    reader = seal_request(target, request, now=datetime(2026, 1, 1, tzinfo=UTC)).response
    reader.begin(502, [])
    for _ in range(4):
        assert reader.feed(bytes(1 << 14)) == []
    with pytest.raises(OutcomeUnknown):
        reader.feed(b"x")


def test_requests_that_never_end_do_not_fill_the_memory() -> None:
    config, keyset = _keyset()
    gateway = Gateway([keyset], max_request=1 << 16, max_arriving=1 << 17)

    def begin() -> RequestSession:
        sealer, session = RequestSealer(config), gateway.session()
        session.feed(sealer.prefix)
        for _ in range(4):
            session.feed(sealer.seal(bytes(1 << 14)))
        return session

    flood = [begin(), begin()]
    with pytest.raises(UnavailableError) as caught:
        begin()
    assert caught.value.code == "gateway-full"
    for session in flood:
        session.close()
        session.close()
    begin().close()


async def test_questions_for_proofs_leave_threads_for_the_leases() -> None:
    release = threading.Event()
    slow: Any = SimpleNamespace(proof=lambda _: release.wait(20) and b"proof")
    enclave = Enclave.__new__(Enclave)
    enclave._brokers, enclave._proving = [slow], 0
    asked = [asyncio.create_task(enclave.proof("00")) for _ in range(PROOFS_AT_ONCE)]
    await asyncio.sleep(0)
    try:
        with pytest.raises(UnavailableError) as caught:
            await enclave.proof("00")
        assert caught.value.code == "too-busy"
    finally:
        release.set()
    assert await asyncio.gather(*asked) == [b"proof"] * PROOFS_AT_ONCE
    assert await enclave.proof("00") == b"proof"


def test_receipts_are_forgotten_once_by_whoever_hands_them_over() -> None:
    # A stop leaves one thread in the middle of a batch while `flush` begins another.
    journal: Journal = Journal(10)
    for number in range(3):
        journal.put({"n": number})
    inside, release, sent = threading.Event(), threading.Event(), []

    def post(batch: list[Any], *_: object) -> None:
        sent.append(list(batch))
        inside.set()
        release.wait(20)

    enclave = Enclave.__new__(Enclave)
    grant: Any = SimpleNamespace(broker_keys=SimpleNamespace(journal_key=None))
    slow: Any = SimpleNamespace(journal=post)
    enclave.journal, enclave._brokers, enclave._last_grant = journal, [slow], grant
    enclave._keyset_digest, enclave._handing = bytes(32), threading.Lock()
    threads = [threading.Thread(target=enclave._journal_once) for _ in range(2)]
    threads[0].start()
    inside.wait(20)
    threads[1].start()
    journal.put({"n": 3})
    release.set()
    for thread in threads:
        thread.join()
    assert [[one["n"] for one in batch] for batch in sent] in ([[0, 1, 2], [3]], [[0, 1, 2, 3]])
    assert len(journal) == 0 or len(sent) == 1
