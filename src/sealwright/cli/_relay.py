"""A relay, as an attacker owns it, before an enclave or a broker: it records, changes and replays what passes."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

from sealwright.protocol.attestation import GATEWAY_PATH

PIECE = 65536  # bytes
Change = Callable[[list[bytes]], list[bytes]]  # the pieces of one sealed answer, as they came


class Relay:
    """Passes connections on to a server; `recorded` is every byte, both ways."""

    def __init__(self, target: str, change: Change | None = None) -> None:
        """Args: change: what to make of each sealed answer, which is then held until it is whole."""
        address = urlsplit(target)
        self._target = (address.hostname or "127.0.0.1", address.port or 80)
        self._change = change
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
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # a thread that waits in accept ends only by this
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
                threading.Thread(target=self._connection, args=(client,), daemon=True).start()

    def _connection(self, client: socket.socket) -> None:
        sent = bytearray()
        with self._lock:
            self._requests.append(sent)
        tamper = Tamper(self._change) if self._change else None
        with contextlib.suppress(OSError), client, socket.create_connection(self._target) as server:
            up = threading.Thread(target=self._pass, args=(client, server, sent), daemon=True)
            up.start()
            self._pass(server, client, None, tamper)
            up.join()

    def _pass(
        self,
        source: socket.socket,
        sink: socket.socket,
        copy: bytearray | None,
        tamper: Tamper | None = None,
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := _receive(source):
                with self._lock:
                    self._bytes += piece
                    if copy is not None:
                        copy += piece
                sink.sendall(tamper.feed(piece) if tamper else piece)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


class Tamper:
    """Holds each sealed answer of one connection until its end, and lets it go changed."""

    def __init__(self, change: Change) -> None:
        self._change = change
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        """Take what the enclave sent; return what the client gets."""
        if not self._held and b"message/ohttp-chunked-res" not in piece:
            return piece
        self._held += piece
        if not self._held.endswith(b"\r\n0\r\n\r\n"):
            return b""
        head, _, body = self._held.partition(b"\r\n\r\n")
        self._held = b""
        changed = [b"%x\r\n%b\r\n" % (len(data), data) for data in self._change(_pieces(body))]
        return head + b"\r\n\r\n" + b"".join(changed) + b"0\r\n\r\n"


def _pieces(body: bytes) -> list[bytes]:
    """Return what is in HTTP's own chunks: each one is what the enclave sealed and sent at once."""
    found: list[bytes] = []
    while True:
        size, _, body = body.partition(b"\r\n")
        if not (length := int(size, 16)):
            return found
        found.append(body[:length])
        body = body[length + 2 :]


def _receive(link: socket.socket) -> bytes:
    return link.recv(PIECE)
