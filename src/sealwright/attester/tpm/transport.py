"""Ways to a TPM: a character device, or a software TPM's socket. One command, one response, with a time limit."""

from __future__ import annotations

import os
import select
import socket
from typing import NoReturn, Protocol, Self

from sealwright.errors import SettingsError, UnavailableError
from sealwright.evidence.tpmwire import malformed

TIMEOUT_S = 60.0  # an RSA key can take a hardware TPM that long
MAX_RESPONSE = 4096  # bytes; that of the PC client profile
_HEADER = 10  # bytes: tag, size, response code


class Transport(Protocol):
    """Where commands go."""

    def send(self, command: bytes) -> bytes:
        """Return the response to one command. Raises UnavailableError."""

    def close(self) -> None:
        """Let go of the TPM."""


class SocketTransport:
    """A software TPM's command socket, such as swtpm's `--server`."""

    def __init__(self, connection: socket.socket, timeout_s: float = TIMEOUT_S) -> None:
        self._socket = connection
        self._socket.settimeout(timeout_s)

    def send(self, command: bytes) -> bytes:
        """Return the response to one command. Raises UnavailableError: `tpm-unreachable`.

        After an error the connection is closed: what comes late would be taken for the next command's response.
        """
        try:
            return self._exchange(command)
        except OSError as exc:
            self.close()
            _unreachable(exc)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _exchange(self, command: bytes) -> bytes:
        self._socket.sendall(command)
        head = self._receive(_HEADER)
        size = int.from_bytes(head[2:6], "big")
        if not _HEADER <= size <= MAX_RESPONSE:
            malformed(f"a TPM response of {size} bytes")
        return head + self._receive(size - _HEADER)

    def _receive(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            part = self._socket.recv(count - len(found))
            if not part:
                raise ConnectionResetError("the TPM closed the connection")
            found += part
        return found


class DeviceTransport:
    """A character device: /dev/tpmrm0, whose resource manager keeps other users' keys and sessions apart."""

    def __init__(self, descriptor: int, timeout_s: float = TIMEOUT_S) -> None:
        self._fd = descriptor
        self._timeout_ms = int(timeout_s * 1000)

    @classmethod
    def open(cls, path: str, timeout_s: float = TIMEOUT_S) -> Self:
        """Open a device. Raises UnavailableError: `tpm-unreachable`."""
        try:
            return cls(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC), timeout_s)
        except OSError as exc:
            _unreachable(exc)

    def send(self, command: bytes) -> bytes:
        """Return the response to one command. Raises UnavailableError: `tpm-unreachable`."""
        try:
            if os.write(self._fd, command) != len(command):
                raise OSError("the TPM took a part of the command only")
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            if not poll.poll(self._timeout_ms):
                raise TimeoutError("the TPM does not answer")
            return os.read(self._fd, MAX_RESPONSE)
        except OSError as exc:
            _unreachable(exc)

    def close(self) -> None:
        """Close the device."""
        os.close(self._fd)


def connect(address: str, *, timeout_s: float = TIMEOUT_S) -> Transport:
    """Return the way to a TPM.

    Args:
        address: `/dev/tpmrm0`, `unix:/path/of/socket` or `tcp:HOST:PORT`.

    Raises:
        SettingsError: `malformed-tpm-address`. UnavailableError: `tpm-unreachable`.
    """
    kind, _, rest = address.partition(":")
    host, _, port = rest.rpartition(":")
    try:
        if address.startswith("/dev/"):
            return DeviceTransport.open(address, timeout_s)
        if kind == "unix" and rest:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.settimeout(timeout_s)
                connection.connect(rest)
            except OSError:
                connection.close()
                raise
            return SocketTransport(connection, timeout_s)
        if kind == "tcp" and host and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16:
            return SocketTransport(socket.create_connection((host, int(port)), timeout_s), timeout_s)
    except OSError as exc:
        _unreachable(exc)
    raise SettingsError(
        "a TPM's address is /dev/tpmrm0, unix:PATH or tcp:HOST:PORT", code="malformed-tpm-address"
    )


def _unreachable(exc: OSError) -> NoReturn:
    reason = exc.strerror or str(exc) or "it does not answer"
    raise UnavailableError(f"no TPM there: {reason}", code="tpm-unreachable") from exc
