"""The way from a broker to its database, which a drill can cut: a unix socket in front of another."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

SOCKET = ".s.PGSQL.5432"
_CHUNK = 1 << 16


class Road:
    """Forwards connections from `folder` to `target`. While it is cut nothing passes, and nobody is told."""

    def __init__(self, folder: Path, target: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._target = folder, target
        self._open = threading.Event()
        self._open.set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / SOCKET))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Let nothing pass, as a network that swallows packets."""
        self._open.clear()

    def mend(self) -> None:
        """Let everything pass again, what was held back too."""
        self._open.set()

    def close(self) -> None:
        """Accept nothing more."""
        self.mend()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._forward, args=(near,), daemon=True).start()

    def _forward(self, near: socket.socket) -> None:
        self._open.wait()
        far = socket.socket(socket.AF_UNIX)
        with near, far, contextlib.suppress(OSError):
            far.connect(str(self._target / SOCKET))
            back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
            back.start()
            self._pump(near, far)
            back.join()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while raw := source.recv(_CHUNK):
                self._open.wait()
                sink.sendall(raw)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
