"""A fake enclave under a clock that tests move."""

from __future__ import annotations

import socket
import threading
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import uvicorn

from sealwright.testing.enclave import FakeEnclave
from sealwright.testing.software import FakePlatformWarning


class Clock:
    """A time that stands until it is moved."""

    def __init__(self) -> None:
        self.at = datetime.now(UTC).replace(microsecond=0)

    def __call__(self) -> datetime:
        return self.at

    def move(self, **by: float) -> None:
        self.at += timedelta(**by)


def fake_enclave(clock: Callable[[], datetime] | None = None, **settings: Any) -> FakeEnclave:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        return FakeEnclave(now=clock or Clock(), **settings)


class Served:
    """An ASGI application on a loopback port, in a thread of its own, until it is stopped."""

    def __init__(self, app: Any) -> None:
        config = uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )

    def __enter__(self) -> Served:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._socket.close()
