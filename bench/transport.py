"""The transport alone: 64 event streams of 1,000 frames through one uvicorn worker, sealed and plain.

    python bench/transport.py [--rounds N] [--streams N] [--frames N]

Peer: the same application on the same server without the seal, in interleaved rounds. The application yields to
the event loop after each frame, as one that waits for tokens does. Server and client are two processes; the
client only receives while the clock runs, then opens and compares every frame. Opening is a row of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from sealwright.crypto.hpke import HpkePrivateKey, Kem
from sealwright.protocol.attestation import GATEWAY_PATH
from sealwright.transport.asgi import Message, OhttpApp, Receive, Send
from sealwright.transport.bhttp import BinaryRequest
from sealwright.transport.client import SealedRequest, SealTarget, seal_request
from sealwright.transport.keys import GatewayKey, KeyConfig
from sealwright.transport.replay import EncCache
from sealwright.transport.server import Caller, Gateway, ServingKeyset

EVENT = b"data: " + b"x" * 172 + b"\n\n"  # 180 bytes, as a chat chunk of a short token
DIGEST = bytes(32)
RECEIPT = Ed25519PrivateKey.from_private_bytes(b"b" * 32)


def key(kem: Kem) -> GatewayKey:
    """Return the key that server and client share knowledge of."""
    private = HpkePrivateKey.from_seed(kem, b"b" * 32)
    return GatewayKey(config=KeyConfig(key_id=1, public=private.public), private=private)


def gateway(kem: Kem) -> Gateway:
    """Return a gateway with one keyset."""
    cache = EncCache(DIGEST)
    keyset = ServingKeyset(keyset_digest=DIGEST, keys={1: key(kem)}, receipt_key=RECEIPT, cache=cache)
    return Gateway([keyset])


def seal_target(kem: Kem) -> SealTarget:
    """Return what a client knows of the server."""
    return SealTarget(config=key(kem).config, keyset_digest=DIGEST, receipt_key=RECEIPT.public_key())


def sealed_request(target: SealTarget, path: str) -> SealedRequest:
    """Return a fresh request of about 1 KiB."""
    request = BinaryRequest.build(
        "POST", f"https://bench.example{path}", [(b"authorization", b"k")], b"p" * 700
    )
    return seal_request(target, request, now=datetime.now(UTC))


class Stream:
    """Sends as many events as the path says."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await receive()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(int(scope["path"].rpartition("/")[2])):
            await send({"type": "http.response.body", "body": EVENT, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})


async def starlette_stream(request: Request) -> StreamingResponse:
    """Answer as `Stream` does, through Starlette."""

    async def events() -> AsyncIterator[bytes]:
        for _ in range(int(request.path_params["count"])):
            yield EVENT
            await asyncio.sleep(0)

    await request.body()
    return StreamingResponse(events(), media_type="text/event-stream")


class Both:
    """Starlette under /starlette, the bare application elsewhere."""

    def __init__(self) -> None:
        """Set up the routes."""
        routes = [Route("/starlette/{count}", starlette_stream, methods=["POST"])]
        self.starlette, self.bare = Starlette(routes=routes), Stream()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        app: Any = self.starlette if scope["path"].startswith("/starlette/") else self.bare
        await app(scope, receive, send)


def serve(listener: socket.socket) -> None:
    """Run the server process: sealed at the gateway's path, plain elsewhere."""

    def failed(error: Exception) -> None:
        raise error

    app: Any = OhttpApp(
        Both(),
        gateway(Kem.XWING),
        authenticate=lambda _headers: Caller(tenant="bench"),
        now=lambda: datetime.now(UTC),
        on_error=failed,
        outer=Both(),
    )
    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_level="warning", lifespan="off")
    uvicorn.Server(config).run(sockets=[listener])


def receive_all(port: int, requests: list[bytes]) -> tuple[float, list[bytes]]:
    """Return (seconds, responses as they came) for requests sent at once.

    It looks in every 2 ms and takes what is there, so that the client neither slows the server nor competes with it.
    """
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in requests]
    responses = [bytearray() for _ in requests]
    started = time.perf_counter()
    for client, request in zip(clients, requests, strict=True):
        client.sendall(request)
        client.setblocking(False)
    waiting = set(range(len(clients)))
    while waiting:
        time.sleep(0.002)
        for index in tuple(waiting):
            try:
                piece = clients[index].recv(1 << 20)
            except BlockingIOError:
                continue
            responses[index] += piece
            if not piece:
                waiting.remove(index)
    took = time.perf_counter() - started
    for client in clients:
        client.close()
    return took, [bytes(response) for response in responses]


def wire(path: str, sealed: SealedRequest | None) -> bytes:
    """Return the bytes of an HTTP/1.1 request."""
    fields = sealed.headers if sealed else ()
    body = sealed.body if sealed else b"p" * 700
    lines = [b"POST %s HTTP/1.1" % path.encode(), b"host: bench", b"connection: close"]
    lines += [b"%s: %s" % field for field in (*fields, (b"content-length", str(len(body)).encode()))]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def body_of(response: bytes) -> bytes:
    """Return the body of a response with chunked transfer coding."""
    head, _, rest = response.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(head[:80].decode())
    out: list[bytes] = []
    at = 0
    while True:
        end = rest.index(b"\r\n", at)
        size = int(rest[at:end], 16)
        if not size:
            return b"".join(out)
        out.append(rest[end + 2 : end + 2 + size])
        at = end + 4 + size


def open_all(sealed: list[SealedRequest], bodies: list[bytes], frames: int) -> float:
    """Return the seconds that opening took; every stream must hold every frame."""
    started = time.perf_counter()
    for request, body in zip(sealed, bodies, strict=True):
        reader = request.response
        reader.begin(200, [(b"content-type", b"message/ohttp-chunked-res")])
        pieces = [piece for at in range(0, len(body), 4096) for piece in reader.feed(body[at : at + 4096])]
        if pieces + reader.finish() != [EVENT] * frames:
            raise RuntimeError("a stream did not arrive as it was written")
    return time.perf_counter() - started


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process, seconds (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare(
    pid: int, port: int, path: str, rounds: int, streams: int, frames: int
) -> list[dict[str, object]]:
    """Return the rows of streaming through the application at `path`."""
    path, name, total = f"{path}/{frames}", path.strip("/") or "bare ASGI", streams * frames
    ours, peer, opened, cpu = [], [], [], []
    target = seal_target(Kem.XWING)
    for _ in range(rounds + 1):  # the first one warms up
        sealed = [sealed_request(target, path) for _ in range(streams)]
        before = cpu_s(pid)
        took, responses = receive_all(port, [wire(GATEWAY_PATH, one) for one in sealed])
        between = cpu_s(pid)
        ours.append(total / took)
        opened.append(total / open_all(sealed, [body_of(one) for one in responses], frames))
        took, responses = receive_all(port, [wire(path, None)] * streams)
        peer.append(total / took)
        cpu.append((between - before, cpu_s(pid) - between))
        if any(body_of(one) != EVENT * frames for one in responses):
            raise RuntimeError("a plain stream did not arrive as it was written")
    ratio = statistics.median(a / b for a, b in zip(ours[1:], peer[1:], strict=True))
    work = f"transport alone, {name}, {streams} streams x {frames} frames"
    return [
        row(work, statistics.median(ours[1:]), statistics.median(peer[1:]), ratio, "frames/s", ">= 0.70"),
        row(
            f"transport alone, {name}, server CPU",
            statistics.median(a for a, _ in cpu[1:]) / total * 1e6,
            statistics.median(b for _, b in cpu[1:]) / total * 1e6,
            statistics.median(b / a for a, b in cpu[1:]),
            "us/frame",
            ">= 0.70",
        ),
        row(f"client opens a stream, {name}", statistics.median(opened[1:]), None, None, "frames/s", ""),
    ]


def request_rows() -> list[dict[str, object]]:
    """Return what sealing and opening one request costs, by suite."""
    out: list[dict[str, object]] = []
    for kem in Kem:
        gate, target, now = gateway(kem), seal_target(kem), datetime.now(UTC)
        started = time.perf_counter()
        sealed = [sealed_request(target, "/") for _ in range(300)]
        middle = time.perf_counter()
        for one in sealed:
            session = gate.session()
            session.feed(one.body)
            session.finish().admit(lambda _headers: Caller(tenant="bench"), now=now)
        ended = time.perf_counter()
        for what, took in (("seal", middle - started), ("open and admit", ended - middle)):
            out.append(row(f"{what} a request, {kem.name}", took / 300 * 1e6, None, None, "us", ""))
    return out


def row(
    work: str, ours: float, peer: float | None, ratio: float | None, unit: str, limit: str
) -> dict[str, object]:
    """Return one row of the table."""
    return {
        "work": work,
        "ours": round(ours, 1),
        "peer": round(peer, 1) if peer else None,
        "ratio": round(ratio, 3) if ratio else None,
        "unit": unit,
        "limit": limit or None,
    }


def main() -> None:
    """Print one JSON object a row."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--frames", type=int, default=1000)
    options = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(listener,), daemon=True)
    server.start()
    try:
        port = listener.getsockname()[1]
        rows = [
            one
            for path in ("/starlette", "")
            for one in compare(server.pid or 0, port, path, options.rounds, options.streams, options.frames)
        ]
    finally:
        server.terminate()
        server.join()
    for one in rows + request_rows():
        print(json.dumps(one), flush=True)


if __name__ == "__main__":
    main()
