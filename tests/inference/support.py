"""A small engine in Python that speaks the frames of the real one."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Collection
from typing import NoReturn

from sealwright.inference import frames
from sealwright.inference.frames import Kind
from sealwright.inference.parameters import EngineParameters

PARAMETERS = EngineParameters(context_tokens=512, slots=2, threads=1)


def chunk(text: str | None, finish: str | None = None) -> bytes:
    delta = {} if text is None else {"content": text}
    return json.dumps(
        {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "timings": {"prompt_ms": 1.5}}
    ).encode()


def usage(tokens_in: int, tokens_out: int) -> bytes:
    counts = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}
    return json.dumps({"choices": [], "usage": counts}).encode()


def fake_engine(  # noqa: C901
    channel: socket.socket, model_fd: int, parameters: EngineParameters
) -> NoReturn:
    """Echoes the last message word by word; some words make it behave badly."""
    if os.pread(model_fd, 4, 0) != b"GGUF":
        os._exit(1)
    channel.sendall(frames.encode(Kind.READY))
    cancelled: set[int] = set()
    sending = threading.Lock()

    def send(kind: Kind, request: int, body: bytes = b"") -> None:
        with sending:
            channel.sendall(frames.encode(kind, request, body))

    def chat(request: int, body: bytes) -> None:  # noqa: C901
        words = json.loads(body)["messages"][-1]["content"].split(" ")
        count = 0
        for word in words:
            if word == "CRASH":
                os._exit(3)
            if word == "ODD":
                send(Kind.EVENT, request, b'{"choices": 5}')
            if word == "REFUSE":
                send(Kind.FAILED, request, b'{"code": "engine-refused"}')
                return
            if word == "SECRETCODE":
                send(Kind.FAILED, request, b'{"code": "your prompt was: tulip"}')
                return
            if word == "FDS":
                word = str(sorted(int(fd) for fd in os.listdir("/proc/self/fd")))
            if word == "FLOOD":
                while True:
                    send(Kind.EVENT, request, bytes(1 << 19))
            if word == "FOREVER":
                while request not in cancelled:
                    send(Kind.EVENT, request, chunk("again "))
                    time.sleep(0.002)
            if request in cancelled:
                break
            count += 1
            send(Kind.EVENT, request, chunk(word + " "))
        send(Kind.EVENT, request, chunk(None, "stop"))
        send(Kind.EVENT, request, usage(len(words), count))
        send(Kind.END, request)

    while (frame := frames.receive(channel, limit=frames.MAX_REQUEST)) is not None:
        if frame.kind is Kind.CHAT:
            threading.Thread(target=chat, args=(frame.request, frame.body), daemon=True).start()
        else:
            cancelled.add(frame.request)
    os._exit(0)


def model_fd(content: bytes = b"GGUF and more") -> int:
    fd = os.memfd_create("", os.MFD_CLOEXEC)
    os.pwrite(fd, content, 0)
    return fd


def ask(text: str) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": text}]}).encode()


def close_others(*, keep: Collection[int], parent: int, spawns: bool) -> None:
    """Like the platform's confinement, without the kernel's part in it."""
    assert os.getppid() == parent
    low = 3
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 20)
