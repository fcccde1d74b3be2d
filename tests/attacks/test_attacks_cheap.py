"""Cheap requests that cost the enclave much."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.crypto.hpke import HpkePrivateKey, Kem
from sealwright.enclave.runtime import PROOFS_AT_ONCE, Enclave
from sealwright.errors import MessageFormatError, UnavailableError
from sealwright.transport.bhttp import FREE_CHUNKS, MIN_CONTENT_CHUNK, parse_request
from sealwright.transport.keys import GatewayKey, KeyConfig
from sealwright.transport.ohttp import RequestSealer
from sealwright.transport.replay import EncCache
from sealwright.transport.server import Gateway, RequestSession, ServingKeyset
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


def test_requests_that_never_end_do_not_fill_the_memory() -> None:
    private = HpkePrivateKey.generate(Kem.X25519)
    config = KeyConfig(key_id=1, public=private.public)
    keyset = ServingKeyset(
        keyset_digest=bytes(32),
        keys={1: GatewayKey(config=config, private=private)},
        receipt_key=Ed25519PrivateKey.generate(),
        cache=EncCache(bytes(32)),
    )
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
