"""The enclave's side of an engine: requests in, streams out, crashes survived.

A crash costs the requests that ran in it, never a key: the sealed memfd is kept, and the zygote
starts another engine on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from typing import Self

from sealwright.errors import MessageFormatError, UnavailableError
from sealwright.inference import frames
from sealwright.inference.frames import Frame, Kind
from sealwright.inference.parameters import EngineParameters
from sealwright.inference.zygote import Zygote

TOKEN_BYTES = 2048  # of a token's event, on average; it takes some 300
LOAD_TIMEOUT_S = 600.0
RESTART_PAUSES_S = (0.0, 1.0, 5.0, 30.0)  # the last one from then on; a start that lasted begins anew
LASTED_S = 60.0


class EngineError(UnavailableError):
    """The engine did not do it. The code says why; there is nothing else to say."""

    def __init__(self, code: str) -> None:
        super().__init__("the engine did not answer the request", code=code, stage="engine")


class EngineProcess:
    """One running engine and its channel."""

    def __init__(
        self,
        pid: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        parameters: EngineParameters,
    ) -> None:
        self.pid = pid
        self._reader = reader
        self._writer = writer
        self._slots = asyncio.Semaphore(parameters.slots)
        self._streams: dict[int, asyncio.Queue[Frame]] = {}
        self._most = frames.MAX_EVENT + TOKEN_BYTES * parameters.context_tokens
        self._said: Counter[int] = Counter()  # bytes of each request's events
        self._next = 0
        self.ended = asyncio.Event()

    @classmethod
    async def start(cls, zygote: Zygote, model_fd: int, parameters: EngineParameters) -> Self:
        """Start an engine and wait until it has loaded the model.

        Raises:
            UnavailableError: it ended or timed out while loading (`engine-load-failed`).
        """
        pid, channel = zygote.spawn(model_fd, parameters)
        reader, writer = await asyncio.open_connection(sock=_nonblocking(channel))
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                first = await frames.read(reader, limit=frames.MAX_EVENT)
            if first is not None and first.kind is Kind.READY:
                return cls(pid, reader, writer, parameters)
        except (TimeoutError, MessageFormatError):
            pass
        except BaseException:
            zygote.kill(pid)
            raise
        zygote.kill(pid)
        await _closed(writer)
        raise UnavailableError(
            "the engine could not load the model", code="engine-load-failed", stage="engine"
        )

    async def pump(self) -> None:
        """Hand the engine's frames to their streams until it ends."""
        try:
            while (frame := await frames.read(self._reader, limit=frames.MAX_EVENT)) is not None:
                if (queue := self._streams.get(frame.request)) is None:
                    continue
                self._count(frame)
                queue.put_nowait(frame)
        except MessageFormatError:
            pass  # an engine that does not speak our frames is as good as gone
        finally:
            self.ended.set()
            self._writer.close()
            gone = Frame(Kind.FAILED, 0, b'{"code":"engine-failed"}')
            for queue in self._streams.values():
                queue.put_nowait(gone)

    def _count(self, frame: Frame) -> None:
        """Bound what one request may cost the enclave: an engine may be its model's, and never end."""
        self._said[frame.request] += frames.HEADER.size + len(frame.body)
        if self._said[frame.request] > self._most:
            raise MessageFormatError("an engine's answer is over its limit", code="engine-frame")

    async def chat(self, body: bytes) -> AsyncGenerator[bytes, None]:
        """Yield the engine's events for one request; closing the generator cancels it.

        Raises:
            EngineError: with the code of the engine.
        """
        async with self._slots:
            if self.ended.is_set():
                raise EngineError("engine-failed")
            self._next = request = self._next % 0xFFFFFFFF + 1
            queue = self._streams[request] = asyncio.Queue()
            ended = False
            try:
                self._writer.write(frames.encode(Kind.CHAT, request, body))
                while True:
                    frame = await queue.get()
                    if frame.kind is Kind.EVENT:
                        yield frame.body
                        continue
                    ended = True
                    if frame.kind is Kind.FAILED:
                        raise EngineError(_code(frame.body))
                    return
            finally:
                if not ended and not self.ended.is_set():
                    await self._cancel(request, queue)
                del self._streams[request], self._said[request]

    async def closed(self) -> None:
        """Close the channel, after the process has ended."""
        await _closed(self._writer)

    async def _cancel(self, request: int, queue: asyncio.Queue[Frame]) -> None:
        """Tell the engine, and keep the slot until it has let go of the request."""
        self._writer.write(frames.encode(Kind.CANCEL, request))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(60):
                while (await queue.get()).kind is Kind.EVENT:
                    pass


class Engine:
    """An engine that is started again when it ends, on the same sealed memfd."""

    def __init__(
        self,
        zygote: Zygote,
        model_fd: int,
        parameters: EngineParameters,
        *,
        note: Callable[[str], None],
    ) -> None:
        """Args: model_fd: sealed memfd, closed with the engine; note: gets a code when it ends or starts."""
        self._zygote = zygote
        self._model_fd = model_fd
        self._parameters = parameters
        self._note = note
        self._process: EngineProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        """Whether a process with the model loaded is there to answer."""
        return self._process is not None and not self._process.ended.is_set()

    async def start(self) -> None:
        """Load the model.

        Raises:
            UnavailableError: `engine-load-failed`.
        """
        self._process = await EngineProcess.start(self._zygote, self._model_fd, self._parameters)
        self._supervisor = asyncio.create_task(self._supervise(self._process), name="engine")

    async def chat(self, body: bytes) -> AsyncGenerator[bytes, None]:
        """Yield the engine's events for one request, as `EngineProcess.chat`."""
        if self._process is None:
            raise EngineError("engine-unavailable")
        stream = self._process.chat(body)
        try:
            async for event in stream:
                yield event
        finally:
            await stream.aclose()

    async def close(self) -> None:
        """End the engine at once, and let go of the model."""
        process, self._process = self._process, None
        if self._model_fd >= 0:
            os.close(self._model_fd)
            self._model_fd = -1
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        if process is not None:
            self._zygote.kill(process.pid)
            await process.closed()

    async def _supervise(self, process: EngineProcess) -> None:
        loop = asyncio.get_running_loop()
        crashes = 0
        while True:
            started = loop.time()
            await process.pump()
            self._process = None
            self._note("engine-ended")
            self._zygote.kill(process.pid)
            await process.closed()
            crashes = 0 if loop.time() - started > LASTED_S else crashes
            process, crashes = await self._again(crashes)
            self._process = process
            self._note("engine-started")

    async def _again(self, crashes: int) -> tuple[EngineProcess, int]:
        while True:
            await asyncio.sleep(RESTART_PAUSES_S[min(crashes, len(RESTART_PAUSES_S) - 1)])
            crashes += 1
            try:
                started = await EngineProcess.start(self._zygote, self._model_fd, self._parameters)
            except UnavailableError as exc:
                self._note(exc.code)
            else:
                return started, crashes


def _code(body: bytes) -> str:
    known = ("engine-refused", "engine-failed", "context-length-exceeded")
    try:
        code = json.loads(body)["code"]
    except (ValueError, KeyError, TypeError):
        return "engine-failed"
    return code if code in known else "engine-failed"


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _nonblocking(channel: socket.socket) -> socket.socket:
    channel.setblocking(False)
    return channel
