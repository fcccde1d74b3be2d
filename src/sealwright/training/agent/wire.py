"""Calls to an agent over a Unix socket: a small head in JSON and parts in bytes. Spec: docs/spec/training.md, Calls.

The caller (a ClientApp, a driver) is not trusted: what it may see is sealed or signed before it gets there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sealwright.crypto.canonical import canonical, parse_canonical
from sealwright.errors import MessageFormatError, SealwrightError, UnavailableError

MAX_HEAD = 1 << 20  # bytes
MAX_PARTS = 8192
MAX_BYTES = 16 << 30  # of all parts of a call
TIMEOUT_S = 600.0
_LENGTH = struct.Struct(">I")
_CREDENTIALS = struct.Struct("3i")

Part = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Call:
    """A call, or the answer to one."""

    name: str  # of an answer: `ok` or `refused`
    said: Mapping[str, Any] = field(default_factory=dict)  # JSON values
    parts: Sequence[Part] = field(default=(), repr=False)

    def encode(self) -> bytes:
        """Return it as one text of bytes, for engines that carry such."""
        return b"".join(map(bytes, (*self.head(), *self.parts)))

    def head(self) -> tuple[bytes, bytes]:
        """Return the head's length, and the head."""
        head = canonical({"call": self.name, "said": dict(self.said), "parts": [len(p) for p in self.parts]})
        if len(head) > MAX_HEAD:
            raise malformed("the head of a call is too large")
        return _LENGTH.pack(len(head)), head

    @classmethod
    def parse(cls, raw: Part) -> Call:
        """Return the call in `raw`; its parts look into it. Raises MessageFormatError: `malformed-call`."""
        view = memoryview(raw)
        if len(view) < _LENGTH.size:
            raise malformed("a call is cut")
        (length,) = _LENGTH.unpack(view[: _LENGTH.size])
        name, said, sizes = _head(bytes(view[_LENGTH.size : _LENGTH.size + length]), length)
        parts, at = [], _LENGTH.size + length
        for size in sizes:
            parts.append(view[at : at + size])
            at += size
        if at != len(view):
            raise malformed("a call is cut, or longer than it says")
        return cls(name, said, parts)

    def text(self, name: str) -> str:
        """Return a text that the head has to have. Raises MessageFormatError: `malformed-call`."""
        value = self.said.get(name)
        if not isinstance(value, str):
            raise malformed(f"a call without {name}")
        return value

    def number(self, name: str) -> int:
        """Return a number from 0 that the head has to have. Raises MessageFormatError: `malformed-call`."""
        value = self.said.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise malformed(f"a call without {name}")
        return value

    def texts(self, name: str) -> list[str]:
        """Return texts, one for each part. Raises MessageFormatError: `malformed-call`."""
        value = self.said.get(name)
        if (
            not isinstance(value, list)
            or len(value) != len(self.parts)
            or not all(isinstance(one, str) for one in value)
        ):
            raise malformed(f"a call whose {name} do not name its parts")
        return value

    def part(self) -> Part:
        """Return the only part. Raises MessageFormatError: `malformed-call`."""
        if len(self.parts) != 1:
            raise malformed(f"a call with {len(self.parts)} parts where one is wanted")
        return self.parts[0]


class Handler(Protocol):
    """What an agent does."""

    def handle(self, call: Call) -> Call:
        """Return the answer. Raises SealwrightError: it is told to the caller."""
        ...


def answered(handler: Handler, call: Call) -> Call:
    """Return a handler's answer, or its refusal."""
    try:
        return handler.handle(call)
    except SealwrightError as error:
        said = {"code": error.code, "stage": error.stage, "text": str(error)[:1000]}
        return Call("refused", said)


def unwrapped(answer: Call) -> Call:
    """Return an answer that is no refusal.

    Raises:
        AgentRefusal: with the code and stage of the agent's own error.
    """
    if answer.name == "ok":
        return answer
    if answer.name != "refused":
        raise malformed("an answer that is none")
    raise AgentRefusal(answer.text("text"), code=answer.text("code"), stage=answer.text("stage"))


class AgentRefusal(SealwrightError):
    """An agent does not do what it was asked; the code says why."""

    exit_code = 11


class AgentServer:
    """Serves one agent at a socket that only its owner reaches. One call at a time."""

    def __init__(self, listener: socket.socket, handler: Handler) -> None:
        """Args: listener: a listening Unix socket, closed with this."""
        self._listener, self._handler = listener, handler
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def run(self) -> None:
        """Serve until `close`."""
        while not self._ended.is_set():
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def close(self) -> None:
        """End it."""
        self._ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError, MessageFormatError, UnavailableError):
            peer.settimeout(TIMEOUT_S)
            if not _is_ours(peer):
                return
            while True:
                call = _receive(peer)
                with self._lock:
                    answer = answered(self._handler, call)
                _send(peer, answer)


def listen(path: Path) -> socket.socket:
    """Return a listening socket at `path`, mode 0600. Raises UnavailableError: `cannot-listen`."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(16)
    except OSError as exc:
        listener.close()
        raise UnavailableError(
            f"cannot listen at {path.name}: {exc.strerror}", code="cannot-listen", stage="listen"
        ) from exc
    return listener


class AgentClient:
    """Calls an agent."""

    def __init__(self, path: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        """Raises UnavailableError: `agent-unreachable`."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(path))
        except OSError as exc:
            self._socket.close()
            raise _unreachable(exc) from exc

    def call(self, call: Call) -> Call:
        """Return the agent's answer, a refusal too. Raises UnavailableError: `agent-unreachable`."""
        try:
            _send(self._socket, call)
            return _receive(self._socket)
        except OSError as exc:
            raise _unreachable(exc) from exc

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()

    def __enter__(self) -> AgentClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def malformed(text: str) -> MessageFormatError:
    """Return the error for a call that is none."""
    return MessageFormatError(text, code="malformed-call", stage="call")


def _head(raw: bytes, length: int) -> tuple[str, dict[str, Any], list[int]]:
    if length > MAX_HEAD or len(raw) != length:
        raise malformed("the head of a call is cut or too large")
    match parse_canonical(raw, limit=MAX_HEAD):
        case {"call": str(name), "said": dict(said), "parts": list(sizes), **rest} if not rest:
            fine = all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in sizes)
            if fine and len(sizes) <= MAX_PARTS and sum(sizes) <= MAX_BYTES:
                return name, said, sizes
    raise malformed("the head of a call is not in its form")


def _send(peer: socket.socket, call: Call) -> None:
    for part in (*call.head(), *call.parts):
        peer.sendall(part)


def _receive(peer: socket.socket) -> Call:
    (length,) = _LENGTH.unpack(_exactly(peer, _LENGTH.size))
    if length > MAX_HEAD:
        raise malformed("the head of a call is too large")
    name, said, sizes = _head(bytes(_exactly(peer, length)), length)
    return Call(name, said, [_exactly(peer, size) for size in sizes])


def _exactly(peer: socket.socket, size: int) -> bytearray:
    out = bytearray(size)
    view, done = memoryview(out), 0
    while done < size:
        count = peer.recv_into(view[done:])
        if not count:
            raise UnavailableError("the other side has hung up", code="agent-unreachable", stage="call")
        done += count
    return out


def _is_ours(peer: socket.socket) -> bool:
    """Whether who calls is this user, or root: the socket's mode says it, and so does the kernel."""
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    return uid in (0, os.geteuid())


def _unreachable(exc: OSError) -> UnavailableError:
    return UnavailableError(
        f"the agent does not answer ({exc.strerror or type(exc).__name__}): see whether it runs",
        code="agent-unreachable",
        stage="call",
    )
