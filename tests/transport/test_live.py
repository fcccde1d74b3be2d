"""Over a real server and socket: nothing is held back, and a client that leaves is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import uvicorn
from tests.transport.support import NOW, authenticate, gateway, gateway_key, request, target

from sealwright.crypto.hpke import Kem
from sealwright.protocol.attestation import GATEWAY_PATH
from sealwright.transport.asgi import App, Message, OhttpApp, Receive, Send
from sealwright.transport.client import SealedRequest, seal_request

KEY = gateway_key(Kem.XWING)


@asynccontextmanager
async def serving(inner: App) -> AsyncIterator[httpx2.AsyncClient]:
    app: Any = OhttpApp(
        inner, gateway(KEY), authenticate=authenticate, now=lambda: NOW, on_error=lambda _error: None
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        await task


def post(client: httpx2.AsyncClient, sealed: SealedRequest) -> Any:
    return client.stream("POST", GATEWAY_PATH, headers=list(sealed.headers), content=sealed.body)


async def test_first_chunk_reaches_the_client_before_the_last_is_made() -> None:
    first_seen = asyncio.Event()

    async def inner(_scope: Message, _receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": True})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await first_seen.wait()  # the test would stand still here if anything held the first one back
        await send({"type": "http.response.body", "body": b"data: 2\n\n"})
        await send({"type": "http.response.trailers", "headers": [(b"sealwright-receipt", b"r")]})

    got: list[bytes] = []
    async with serving(inner) as client:
        sealed = seal_request(target(KEY), request(), now=NOW)
        reader = sealed.response
        async with post(client, sealed) as outer:
            reader.begin(outer.status_code, outer.headers.raw)
            async for data in outer.aiter_raw():
                got += reader.feed(data)
                if got:
                    assert reader.head is not None
                    first_seen.set()
            got += reader.finish()
    assert got == [b"data: 1\n\n", b"data: 2\n\n"]
    assert reader.trailers == ((b"sealwright-receipt", b"r"),)


async def test_client_that_leaves_is_told_to_the_application() -> None:
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def inner(_scope: Message, receive: Receive, send: Send) -> None:
        seen.put_nowait((await receive())["type"])
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        seen.put_nowait((await receive())["type"])

    async with serving(inner) as client:
        sealed = seal_request(target(KEY), request(), now=NOW)
        async with post(client, sealed) as outer:
            async for _ in outer.aiter_raw():
                break
        assert [await seen.get(), await seen.get()] == ["http.request", "http.disconnect"]
