"""The engine process: llama.cpp on one model, without keys, without network, behind a socketpair.

It is forked by the zygote, confines itself before it looks at the model, and speaks `frames` only.
llama.cpp's own texts of errors quote the prompt, so nothing but codes leaves in a failure.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from sealwright.inference import frames
from sealwright.inference.frames import Kind
from sealwright.inference.parameters import EngineParameters

REFUSED, FAILED, TOO_LONG = "engine-refused", "engine-failed", "context-length-exceeded"


def prepare() -> None:
    """Load llama.cpp's library, so that engines find it loaded."""
    import xllamacpp  # noqa: F401


def run(channel: socket.socket, model_fd: int, parameters: EngineParameters) -> NoReturn:
    """Load the model behind `model_fd` and serve requests until the enclave hangs up; never returns.

    Args:
        model_fd: a sealed memfd; closed once the model is mapped.
    """
    code = 1
    try:
        server = load(model_fd, parameters)
        os.close(model_fd)
        channel.sendall(frames.encode(Kind.READY))
        _Session(channel, server, parameters.slots).serve()
        code = 0
    except BaseException:  # noqa: BLE001 - its text may quote the model or a prompt; the exit code is all we say
        code = 1
    finally:
        os._exit(code)  # not through the interpreter's end: generating threads would hold it up


def load(model_fd: int, parameters: EngineParameters) -> Any:
    """Return llama.cpp's server on the model, with its own HTTP listener shut down."""
    import xllamacpp

    p = common_params(f"/proc/self/fd/{model_fd}", parameters)
    # The server cannot be told not to listen: give it an abstract unix socket that nobody can name,
    # a key that nobody knows, and shut it as soon as we may.
    p.hostnames = [f"@{secrets.token_hex(16)}.sock"]
    p.api_keys = [secrets.token_hex(32)]
    server = xllamacpp.Server(p)
    if shut_listeners() < 1:
        raise RuntimeError("llama.cpp's listener was not found")
    return server


def common_params(path: str, parameters: EngineParameters) -> Any:
    """Return llama.cpp's parameters for the model at `path`, all but where its server listens."""
    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path = path
    p.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP  # maps the memfd: one plaintext copy
    p.n_ctx = parameters.context_tokens * parameters.slots  # llama.cpp divides it among the slots
    p.n_parallel = parameters.slots
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = parameters.threads
    p.verbosity = -1
    p.cache_prompt = False  # one caller's prompt must not be seen in another one's timing
    p.cache_ram_mib = 0
    p.ctx_shift = False
    p.endpoint_slots = p.endpoint_metrics = p.endpoint_props = p.ui = False
    return p


def shut_listeners() -> int:
    """Shut down every listening socket of this process; return how many there were."""
    found = 0
    for fd in _sockets():
        with socket.socket(fileno=os.dup(fd)) as candidate:
            if candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                candidate.shutdown(socket.SHUT_RDWR)
                found += 1
    return found


def _sockets() -> list[int]:
    """Return this process's socket descriptors, without needing /proc/self/fd to be listed."""
    import stat

    found = []
    for fd in range(256):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                found.append(fd)
        except OSError:
            continue
    return found


class _Session:
    """Requests in, events out; one thread a slot."""

    def __init__(self, channel: socket.socket, server: Any, slots: int) -> None:
        self._channel = channel
        self._server = server
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="slot")
        self._sending = threading.Lock()
        self._cancelled: dict[int, threading.Event] = {}

    def serve(self) -> None:
        """Read frames until the connection ends."""
        while (frame := frames.receive(self._channel, limit=frames.MAX_REQUEST)) is not None:
            if frame.kind is Kind.CHAT:
                cancelled = self._cancelled[frame.request] = threading.Event()
                self._pool.submit(self._chat, frame.request, frame.body, cancelled)
            elif frame.kind is Kind.CANCEL and frame.request in self._cancelled:
                self._cancelled[frame.request].set()

    def _chat(self, request: int, body: bytes, cancelled: threading.Event) -> None:
        failed: list[str] = []

        def event(chunk: bytes) -> bool:
            if chunk.startswith(b'{"error"'):
                failed.append(error_code(chunk))
            elif not failed:
                self._send(Kind.EVENT, request, chunk)
            return cancelled.is_set()

        code = self._generate(body, event, cancelled)
        if failed or code:
            body = json.dumps({"code": code or failed[0]}).encode()
            self._send(Kind.FAILED, request, body)
        else:
            self._send(Kind.END, request)
        self._cancelled.pop(request, None)

    def _generate(self, body: bytes, event: Callable[[bytes], bool], cancelled: threading.Event) -> str:
        if cancelled.is_set():
            return ""
        try:
            returned = self._server.handle_chat_completions(body, event)
        except ValueError:
            return REFUSED
        except Exception:  # noqa: BLE001 - whatever it was, its text stays here
            return FAILED
        return (
            error_code(returned) if isinstance(returned, bytes) and returned.startswith(b'{"error"') else ""
        )

    def _send(self, kind: Kind, request: int, body: bytes = b"") -> None:
        try:
            with self._sending:
                self._channel.sendall(frames.encode(kind, request, body))
        except OSError:
            os._exit(0)  # the enclave is gone, and so are all who could want this answer


def error_code(chunk: bytes) -> str:
    """Return our code for an error object of llama.cpp; its message is not looked at."""
    try:
        error = json.loads(chunk)["error"]
        kind, status = error.get("type"), error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        return FAILED
    if kind == "exceed_context_size_error":
        return TOO_LONG
    return REFUSED if status == 400 else FAILED
