"""One of several replicas: it waits until it may write, serves while it does, and waits again.

Spec: docs/spec/broker-state.md, Several replicas.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sealwright.broker.problems import of_error
from sealwright.broker.service import Running
from sealwright.broker.writer import BEAT_S, Writer
from sealwright.errors import SealwrightError, UnavailableError

POLL_S = 0.5  # between two looks whether the writer still lives
RETRY_S = 2.0  # after this replica became the writer and could not open the state

Open = Callable[[int], AbstractContextManager[Running]]  # at the epoch given


class Replica:
    """An ASGI application that is a broker's while this replica writes, and refuses everything else."""

    def __init__(self, writer: Writer, open_at: Open, *, log: Callable[..., None]) -> None:
        self._writer, self._open, self._log = writer, open_at, log
        self._app: ASGIApp | None = None
        self._why: SealwrightError = _standby()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or live as long as the server does."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/healthz" and self._why.code in ("not-the-writer", "log-closed"):
            await PlainTextResponse("standby")(scope, receive, send)
            return
        await of_error(self._why, path=scope["path"])(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        task = asyncio.create_task(self._run())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await send({"type": "lifespan.shutdown.complete"})

    async def _run(self) -> None:
        """Campaign and serve, for ever."""
        try:
            while True:
                try:
                    if await run_in_threadpool(self._writer.campaign):
                        await self._serve()
                    else:
                        self._why = _standby()
                except SealwrightError as error:
                    self._stopped(error)
                if self._why.code not in ("not-the-writer", "log-closed"):
                    self._writer.resign()  # another one may be able to
                    await asyncio.sleep(RETRY_S)
                await asyncio.sleep(POLL_S)
        finally:
            self._app = None
            self._writer.resign()

    async def _serve(self) -> None:
        """Open the state and serve it until this replica no longer writes, or has to open it anew."""
        epoch = self._writer.epoch
        async with _opened(self._open(epoch)) as running:
            app = running.app(log=self._log)
            async with _lifespan(app):
                self._app = app
                self._log("writing", epoch=epoch)
                try:
                    self._stopped(await self._until_lost(running))
                finally:
                    self._app = None

    async def _until_lost(self, running: Running) -> SealwrightError:
        """Beat until this replica writes no more, has to open its state anew, or cannot tell the time."""
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                if not await run_in_threadpool(self._writer.beat):
                    return _standby()
                await run_in_threadpool(_able, running)
            except UnavailableError as error:
                if error.code != "store-unavailable":
                    return error

    def _stopped(self, error: SealwrightError) -> None:
        self._why = error
        self._log("waiting", code=error.code)


@asynccontextmanager
async def _opened(opening: AbstractContextManager[Running]) -> AsyncIterator[Running]:
    """Open and close in a thread: it reads the log, and asks holders."""
    running = await run_in_threadpool(opening.__enter__)
    try:
        yield running
    finally:
        await asyncio.shield(run_in_threadpool(opening.__exit__, None, None, None))


@asynccontextmanager
async def _lifespan(app: ASGIApp) -> AsyncIterator[None]:
    """Start and end an application as a server does."""
    asked: asyncio.Queue[Message] = asyncio.Queue()
    said: asyncio.Queue[Message] = asyncio.Queue()
    scope: dict[str, Any] = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    task = asyncio.create_task(_told(app(scope, asked.get, said.put), said))
    await asked.put({"type": "lifespan.startup"})
    started = await said.get()
    if started["type"] != "lifespan.startup.complete":
        await task
        raise UnavailableError("the broker could not be started", code="not-the-writer", stage="writer")
    try:
        yield
    finally:
        await asked.put({"type": "lifespan.shutdown"})
        await said.get()
        await task


async def _told(serving: Any, said: asyncio.Queue[Message]) -> None:
    try:
        await serving
    finally:
        await said.put({"type": "lifespan.ended"})


def _able(running: Running) -> None:
    """Raise what another replica may be free of: a log that has to be opened anew, a clock that is wrong."""
    state = running.core.state
    state.ledger.check_log()
    state.now()


def _standby() -> UnavailableError:
    return UnavailableError(
        "this replica stands by: another one writes; ask that", code="not-the-writer", stage="writer"
    )
