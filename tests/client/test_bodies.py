"""Answers that unpack to more than they weigh: nothing is unpacked, and the bound counts what was sent."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest

from sealwright.client.admin import AdminClient
from sealwright.client.proofs import fetch_proof
from sealwright.errors import SealwrightError

UNPACKED = 64 << 20  # bytes
BOMB = gzip.compress(bytes(UNPACKED))


class _Stream(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        yield BOMB

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield BOMB


def _answer(request: httpx2.Request) -> httpx2.Response:
    assert request.headers["accept-encoding"] == "identity"
    return httpx2.Response(200, headers={"content-encoding": "gzip"}, stream=_Stream())


@pytest.fixture
def unpacked() -> Iterator[None]:
    """Fail where much more is held than was sent."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < UNPACKED // 8


@pytest.mark.usefixtures("unpacked")
def test_an_administrator_unpacks_nothing() -> None:
    with (
        AdminClient("http://broker", "token", transport=httpx2.MockTransport(_answer)) as client,
        pytest.raises(SealwrightError),
    ):
        client.ask("GET", "/status")


@pytest.mark.usefixtures("unpacked")
async def test_whoever_fetches_a_proof_unpacks_nothing() -> None:
    with pytest.raises(SealwrightError):
        await fetch_proof("http://broker", "00" * 32, transport=httpx2.MockTransport(_answer))
