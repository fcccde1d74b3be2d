"""A minimal HTTP/1.1 client over sockets that the platform opens: to brokers of the config, nowhere else."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from sealwright.errors import UnavailableError

TIMEOUT_S = 30.0
MAX_ANSWER = 1 << 20  # bytes
Connect = Callable[[str, int], socket.socket]


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    cookie: str
    body: bytes


class HttpConnection:
    """One kept-open connection to one URL. Used from one thread at a time."""

    def __init__(self, url: str, connect: Connect) -> None:
        """Args: url: scheme, host and port only, from the enclave config."""
        parts = urlsplit(url)
        self._tls = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self._connect = connect
        self._open: http.client.HTTPConnection | None = None
        self._aborted = False

    def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Answer:
        """Return the answer, whatever its status.

        Raises:
            UnavailableError: no connection, or not HTTP (`broker-unreachable`).
        """
        try:
            connection = self._connection()
            connection.request(method, path, body=body or None, headers=headers or {})
            response = connection.getresponse()
            content = response.read(MAX_ANSWER + 1)
            if len(content) > MAX_ANSWER:
                raise http.client.HTTPException("too large")
            if response.will_close:
                self.close()
            return Answer(response.status, _cookie(response), content)
        except (OSError, http.client.HTTPException, ValueError) as exc:
            self.close()
            raise UnavailableError(
                f"the broker cannot be reached ({type(exc).__name__})",
                code="broker-unreachable",
                stage="broker",
            ) from None

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def abort(self) -> None:
        """End the request that another thread waits in, and every later one."""
        self._aborted = True
        waiting = self._open
        if waiting is not None and waiting.sock is not None:
            with contextlib.suppress(OSError):
                waiting.sock.shutdown(socket.SHUT_RDWR)

    def _connection(self) -> http.client.HTTPConnection:
        if self._aborted:
            raise OSError("aborted")
        if self._open is None:
            opened = self._connect(self._host, self._port)
            opened.settimeout(TIMEOUT_S)
            self._open = http.client.HTTPConnection(self._host, self._port)
            self._open.auto_open = 0  # only the platform opens sockets
            self._open.sock = _tls(opened, self._host) if self._tls else opened
            if self._aborted:
                raise OSError("aborted")
        return self._open


def _cookie(response: http.client.HTTPResponse) -> str:
    return (response.getheader("set-cookie") or "").partition(";")[0]


def _tls(opened: socket.socket, host: str) -> socket.socket:
    """Wrap a socket. The certificate is not looked at: the broker is known by its root's signatures, and
    what is secret is sealed; TLS only hides from the network which broker messages they are."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(opened, server_hostname=host)
