"""What a service manager is told: ready once it is, alive as long as it is."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealwright.cli import main
from sealwright.cli._notify import asked, service


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(20)
        yield channel


def environment(manager: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.getsockname(), **more}


def silent(manager: socket.socket, seconds: float = 0.3) -> bool:
    manager.settimeout(seconds)
    try:
        manager.recv(256)
    except TimeoutError:
        return True
    finally:
        manager.settimeout(20)
    return False


def test_ready_is_said_when_it_is_ready_and_not_before(manager: socket.socket) -> None:
    ready = threading.Event()
    with service(lambda _path: ready.is_set(), environment=environment(manager)):
        assert silent(manager)
        ready.set()
        assert manager.recv(256) == b"READY=1\nSTATUS=ready"
        assert silent(manager)  # without a watchdog nothing more is wanted
    assert manager.recv(256) == b"STOPPING=1"


def test_the_watchdog_is_fed_only_while_it_is_alive(manager: socket.socket) -> None:
    alive = threading.Event()
    alive.set()

    def ask(path: str) -> bool:
        return path == "/readyz" or alive.is_set()

    said = environment(manager, WATCHDOG_USEC="100000", WATCHDOG_PID=str(os.getpid()))
    with service(ask, environment=said):
        assert manager.recv(256).startswith(b"READY=1")
        assert manager.recv(256) == b"WATCHDOG=1"
        assert manager.recv(256) == b"WATCHDOG=1"
        alive.clear()
        silent(manager)  # at most one was under way
        assert silent(manager)


@pytest.mark.parametrize(
    "more", [{"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}]
)
def test_another_process_watchdog_is_not_fed(manager: socket.socket, more: dict[str, str]) -> None:
    with service(lambda _path: True, environment=environment(manager, **more)):
        assert manager.recv(256).startswith(b"READY=1")
        assert silent(manager)


def test_without_a_manager_nothing_is_asked() -> None:
    def ask(_path: str) -> bool:
        raise AssertionError("nobody wants to know")

    with service(ask, environment={}):
        pass


def test_a_manager_that_has_gone_stops_nothing(tmp_path: Path) -> None:
    with service(lambda _path: True, environment={"NOTIFY_SOCKET": str(tmp_path / "none")}):
        pass


@contextmanager
def answering(status: int, seen: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen(self)
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(("status", "wanted"), [(200, True), (503, False), (204, False)])
def test_only_200_counts(status: int, wanted: bool) -> None:
    heads: list[tuple[str, str | None, str | None]] = []

    def seen(request: http.server.BaseHTTPRequestHandler) -> None:
        heads.append((request.path, request.headers["host"], request.headers["authorization"]))

    with answering(status, seen) as port:
        assert asked(("0.0.0.0", port), {"authorization": "Bearer t"})("/readyz") is wanted
        assert heads == [("/readyz", f"127.0.0.1:{port}", "Bearer t")]
    assert asked(("127.0.0.1", port))("/readyz") is False


@pytest.mark.slow
def test_a_broker_says_that_it_is_ready(manager: socket.socket, tmp_path: Path) -> None:
    directory = tmp_path / "broker"
    assert main(["broker", "init", str(directory), "--json"]) == 0
    code = "import sys; from sealwright.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "broker", "serve", str(directory), "--listen", "127.0.0.1:0"]
    started = {**os.environ, **environment(manager, WATCHDOG_USEC="1000000")}
    process = subprocess.Popen(command, env=started, stderr=subprocess.DEVNULL)
    try:
        assert manager.recv(256).startswith(b"READY=1")
        assert manager.recv(256) == b"WATCHDOG=1"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        while (said := manager.recv(256)) == b"WATCHDOG=1":
            pass
        assert said == b"STOPPING=1"
    finally:
        process.kill()
        process.wait()
