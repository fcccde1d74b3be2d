"""`attest --url`: what a hostile enclave, or who stands before it, can answer."""

from __future__ import annotations

import contextlib
import gzip
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from sealwright.cli.attest import _ask
from sealwright.errors import UnavailableError
from sealwright.protocol.attestation import MAX_BUNDLE, AttestationRequest

REQUEST = AttestationRequest(nonce=bytes(32), tenant="acme")
MEGABYTE = 1 << 20


@contextlib.contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            with contextlib.suppress(OSError):
                answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def peak_of_refusal(url: str) -> int:
    """Return how much memory it took to refuse the answer, bytes."""
    tracemalloc.start()
    try:
        with pytest.raises(UnavailableError) as caught:
            _ask(url, REQUEST)
        assert caught.value.code == "attestation-unavailable"
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_answer_without_end_is_read_no_further_than_a_bundle_goes() -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(64):
            handler.wfile.write(bytes(MEGABYTE))

    with answering(endless) as url:
        assert peak_of_refusal(url) < 2 * MAX_BUNDLE + 16 * MEGABYTE


def test_a_compressed_answer_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(64 * MEGABYTE))

    def compressed(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-encoding", "gzip")
        handler.send_header("content-length", str(len(bomb)))
        handler.end_headers()
        handler.wfile.write(bomb)

    with answering(compressed) as url:
        assert peak_of_refusal(url) < 16 * MEGABYTE


def test_a_bundle_is_returned_as_it_is() -> None:
    def bundle(handler: BaseHTTPRequestHandler) -> None:
        asked = handler.rfile.read(int(handler.headers["content-length"]))
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(asked)

    with answering(bundle) as url:
        assert _ask(url, REQUEST) == REQUEST.encode()
