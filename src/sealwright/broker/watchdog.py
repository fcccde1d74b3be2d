"""Connections that stall are cut: a network that swallows packets must not hold the broker's lock for ever."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

LOOK_S = 0.5


class Watchdog:
    """Shuts a socket down when what it is used for takes longer than `limit_s`."""

    def __init__(self, limit_s: float) -> None:
        """Start the watching thread. Args: limit_s: for one use."""
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._uses: dict[object, tuple[float, int]] = {}  # (end, descriptor of our own)
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="database-watchdog", daemon=True).start()

    @contextmanager
    def over(self, descriptor: int) -> Iterator[None]:
        """Watch over one use of the socket `descriptor`, which stays its owner's."""
        token, own = object(), os.dup(descriptor)
        with self._lock:
            self._uses[token] = (time.monotonic() + self._limit_s, own)
        try:
            yield
        finally:
            with self._lock:
                del self._uses[token]
            os.close(own)

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_S):
            with self._lock:
                now = time.monotonic()
                for end, own in self._uses.values():
                    if now >= end:
                        _cut(own)


def _cut(descriptor: int) -> None:
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as sock:
        sock.shutdown(socket.SHUT_RDWR)
