"""A relay between client and enclave, as the attacker owns it: it records, alters and replays what passes."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

from sealwright.protocol.attestation import GATEWAY_PATH

PIECE = 65536  # bytes


class Relay:
    """Passes connections on to an enclave; `recorded` is every byte, both ways.

    `alter` may change each piece of what the enclave answers.
    """

    def __init__(self, target: str, alter: Callable[[bytes], bytes] | None = None) -> None:
        address = urlsplit(target)
        self._target = (address.hostname or "127.0.0.1", address.port or 80)
        self._alter = alter
        self._lock = threading.Lock()
        self._bytes = bytearray()
        self._requests: list[bytearray] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def recorded(self) -> bytes:
        """Everything that passed."""
        with self._lock:
            return bytes(self._bytes)

    def close(self) -> None:
        """Stop accepting."""
        self._listener.close()

    def replay(self, target: str) -> tuple[int, bytes]:
        """Send the last captured sealed request to `target` again; return the status and body of the answer."""
        address = urlsplit(target)
        with self._lock:
            captured = [bytes(sent) for sent in self._requests if GATEWAY_PATH.encode() in sent]
        raw = captured[-1][captured[-1].rindex(b"POST " + GATEWAY_PATH.encode()) :]
        with socket.create_connection((address.hostname or "", address.port or 80), timeout=30) as link:
            link.sendall(raw)
            answer = b""
            while piece := _receive(link):
                answer += piece
                head, _, body = answer.partition(b"\r\n\r\n")
                if body and (b"chunked" not in head.lower() or body.endswith(b"0\r\n\r\n")):
                    break
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]), body

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                sent = bytearray()
                with self._lock:
                    self._requests.append(sent)
                for source, sink, copy, alter in (
                    (client, server, sent, None),
                    (server, client, None, self._alter),
                ):
                    threading.Thread(target=self._pass, args=(source, sink, copy, alter), daemon=True).start()

    def _pass(
        self,
        source: socket.socket,
        sink: socket.socket,
        copy: bytearray | None,
        alter: Callable[[bytes], bytes] | None,
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := _receive(source):
                with self._lock:
                    self._bytes += piece
                    if copy is not None:
                        copy += piece
                sink.sendall(alter(piece) if alter else piece)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def _receive(link: socket.socket) -> bytes:
    return link.recv(PIECE)
