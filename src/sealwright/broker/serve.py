"""The broker as a process: one socket, one loop, an orderly end on SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from sealwright.broker.metrics import CONTENT_TYPE, Metrics
from sealwright.errors import SettingsError, UnavailableError

GRACE_S = 5  # for requests under way
MAX_CONNECTIONS = 512
KEEP_ALIVE_S = 5  # an idle connection
METRICS_CONNECTIONS = 16


class _Server(uvicorn.Server):
    """Ends with exit code 0 on SIGTERM and SIGINT; uvicorn would raise the signal again."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def parse_listen(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`. Raises SettingsError: `malformed-listen`."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal() and int(port) < 1 << 16):
        raise SettingsError("--listen is HOST:PORT", code="malformed-listen")
    return host.strip("[]"), int(port)


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises UnavailableError: `cannot-listen`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as exc:
        raise UnavailableError(
            f"cannot listen on {host} port {port}: {exc.strerror}", code="cannot-listen", stage="listen"
        ) from exc


def harden() -> None:
    """Keep keys off the disk: no core dumps, files for this user only."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)


def serve(app: ASGIApp, sock: socket.socket, log: Callable[..., None]) -> None:
    """Serve until SIGTERM or SIGINT, then let requests under way end."""
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        lifespan="on",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    _Server(config).run(sockets=[sock])
    log("stopped")


def metrics_app(metrics: Metrics) -> ASGIApp:
    """Return the application of the metrics' own address: `GET /metrics`, nothing else."""

    async def get(_request: Request) -> Response:
        return Response(await run_in_threadpool(metrics.text), media_type=CONTENT_TYPE)

    return Router(routes=[Route("/metrics", get, methods=["GET"])])


@contextmanager
def metrics_served(metrics: Metrics, sock: socket.socket) -> Iterator[None]:
    """Serve metrics on an address of their own while the block runs."""
    config = uvicorn.Config(
        metrics_app(metrics),
        access_log=False,
        log_config=None,
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=METRICS_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(GRACE_S)
