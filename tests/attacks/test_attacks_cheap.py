"""Cheap requests that cost the enclave much."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from sealwright.enclave.runtime import PROOFS_AT_ONCE, Enclave
from sealwright.errors import MessageFormatError, UnavailableError
from sealwright.transport.bhttp import FREE_CHUNKS, MIN_CONTENT_CHUNK, parse_request
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
