"""Telling a service manager that a service is ready, and keeps being alive: systemd's protocol, sd_notify(3).

Ready means what `/readyz` says; alive what `/healthz` says, asked over the service's own port, so that a server that
accepts and never answers is restarted as well as one that has stopped.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping

PROBE_S = 5.0  # for one answer
PAUSE_S = 0.2  # between questions until it is ready
MAX_ANSWER = 64  # bytes read: the status line decides

Ask = Callable[[str], bool]


def asked(address: tuple[str, int], headers: Mapping[str, str] | None = None) -> Ask:
    """Return a function that says whether a path of the server at `address` answers 200.

    Args:
        address: where it listens; a wildcard address is asked over loopback.
        headers: sent along.
    """
    host, port = _reached(address[0]), address[1]
    sent = {"host": f"[{host}]:{port}" if ":" in host else f"{host}:{port}", "connection": "close"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in {**sent, **(headers or {})}.items())

    def ask(path: str) -> bool:
        try:
            with socket.create_connection((host, port), timeout=PROBE_S) as probe:
                probe.settimeout(PROBE_S)
                probe.sendall(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
                return probe.recv(MAX_ANSWER).startswith(b"HTTP/1.1 200 ")
        except OSError:
            return False

    return ask


@contextlib.contextmanager
def service(
    ask: Ask,
    *,
    ready: str = "/readyz",
    alive: str = "/healthz",
    environment: Mapping[str, str] = os.environ,
) -> Iterator[None]:
    """Notify the service manager, if one started this process, while the block runs.

    Args:
        ask: whether a path answers 200.
        environment: NOTIFY_SOCKET and, where there is a watchdog, WATCHDOG_USEC and WATCHDOG_PID.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        yield
        return
    ended = threading.Event()
    watch = (address, ask, ready, alive, _watchdog_s(environment), ended)
    thread = threading.Thread(target=_watch, args=watch, name="notify", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        _send(address, "STOPPING=1")


def _watch(
    address: str, ask: Ask, ready: str, alive: str, watchdog_s: float | None, ended: threading.Event
) -> None:
    """Say READY=1 once, then WATCHDOG=1 at half the watchdog's time for as long as it is alive."""
    while not ask(ready):
        if ended.wait(PAUSE_S):
            return
    _send(address, "READY=1\nSTATUS=ready")
    if watchdog_s is None:
        return
    while not ended.wait(watchdog_s / 2):
        if ask(alive):
            _send(address, "WATCHDOG=1")


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """Return the watchdog's time; None without one, or where it watches another process."""
    text, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", str(os.getpid()))
    if not (text.isascii() and text.isdecimal()) or int(text) == 0 or pid != str(os.getpid()):
        return None
    return int(text) / 1_000_000


def _send(address: str, state: str) -> None:
    """A service manager that is not there is no reason to fail."""
    target = f"\0{address[1:]}" if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), target)


def _reached(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
