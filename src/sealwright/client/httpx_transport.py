"""Attested transports for httpx and httpx2, sync and async: one implementation of the steps, four thin shells.

The caller's request never reaches the outer connection: its method, URL path, headers and body are sealed, and
what goes out is a POST to the gateway of the same origin. Refusals come back as a local 403 (`refusal`).
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, overload

import anyio

from sealwright.client.exchange import (
    Acquire,
    ConnectionLost,
    Exchange,
    Exchanges,
    Pipe,
    Post,
    Read,
    Release,
    Step,
    Steps,
)
from sealwright.client.refusal import STATUS, refusal
from sealwright.client.trust_source import Trust, TrustSource
from sealwright.errors import MessageFormatError, SealwrightError
from sealwright.transport.bhttp import BinaryRequest

if TYPE_CHECKING:
    import httpx2

Library = Literal["httpx", "httpx2"]
_HIDDEN = frozenset({b"accept-encoding", b"host"})  # sealed answers are not compressed: lengths would tell


def _utcnow() -> datetime:
    return datetime.now(UTC)


class _Shell:
    """What the sync and async transports share. `lib` is httpx or httpx2."""

    def __init__(self, lib: Any, trust: Trust, outer: Any, now: Callable[[], datetime]) -> None:
        self._lib, self._outer, self._now = lib, outer, now
        self._trust = TrustSource(trust)
        self._origins: dict[str, Exchanges] = {}

    def _new_lock(self) -> Any:
        raise NotImplementedError

    def _start(self, request: Any, body: bytes) -> Steps:
        url = request.url
        if url.scheme not in ("https", "http"):
            raise MessageFormatError(f"cannot seal a request to a {url.scheme} URL", code="unsupported-url")
        origin = f"{url.scheme}://{url.netloc.decode()}"
        made = Exchanges(self._trust, now=self._now, lock=self._new_lock())
        exchanges = self._origins.setdefault(origin, made)
        headers = [(name, value) for name, value in request.headers.raw if name.lower() not in _HIDDEN]
        return exchanges.start(BinaryRequest.build(request.method, str(url), headers, body))

    def _post(self, request: Any, step: Post) -> Any:
        """Return the outer request: nothing of the inner one stands in it but origin and timeouts."""
        url = request.url.copy_with(raw_path=step.path.encode(), fragment=None, username=None, password=None)
        timeouts = {name: value for name, value in request.extensions.items() if name == "timeout"}
        headers = list(step.headers)
        return self._lib.Request("POST", url, headers=headers, content=step.body, extensions=timeouts)

    def _not_sent(self, error: Exception) -> bool:
        """Say whether no byte can have left: then the library's own error may pass, and be retried."""
        lib = self._lib
        kinds = (lib.ConnectError, lib.ConnectTimeout, lib.PoolTimeout, lib.UnsupportedProtocol)
        return isinstance(error, kinds)

    def _response(self, exchange: Exchange, stream: Any) -> Any:
        return self._lib.Response(
            exchange.head.status,
            headers=list(exchange.head.headers),
            stream=stream,
            extensions={"sealwright": exchange.receipt, "sealwright_enclave": exchange.enclave},
        )

    def _refused(self, error: SealwrightError) -> Any:
        headers, body = refusal(error)
        return self._lib.Response(
            STATUS, headers=list(headers), content=body, extensions={"sealwright_refusal": error}
        )


class _SyncStream:
    """The opened body of a sealed answer, as it arrives; raises when it is cut or altered."""

    def __init__(self, exchange: Exchange, errors: Any) -> None:
        self._exchange, self._errors = exchange, errors

    def __iter__(self) -> Iterator[bytes]:
        exchange = self._exchange
        yield from exchange.ready
        while not exchange.ended:
            try:
                data = next(exchange.pipe.chunks, None)
            except self._errors:
                raise exchange.lost() from None
            yield from exchange.finish() if data is None else exchange.feed(data)

    def close(self) -> None:
        self._exchange.pipe.raw.close()


class _AsyncStream:
    """The same, for async clients."""

    def __init__(self, exchange: Exchange, errors: Any) -> None:
        self._exchange, self._errors = exchange, errors

    async def __aiter__(self) -> AsyncIterator[bytes]:
        exchange = self._exchange
        for piece in exchange.ready:
            yield piece
        while not exchange.ended:
            try:
                data = await anext(exchange.pipe.chunks, None)
            except self._errors:
                raise exchange.lost() from None
            for piece in exchange.finish() if data is None else exchange.feed(data):
                yield piece

    async def aclose(self) -> None:
        await self._exchange.pipe.raw.aclose()


class _SyncTransport(_Shell):
    def _new_lock(self) -> Any:
        return threading.Lock()

    def handle_request(self, request: Any) -> Any:
        try:
            exchange = self._run(request, self._start(request, request.read()))
        except SealwrightError as exc:
            return self._refused(exc)
        stream = _mixed(_SyncStream, self._lib.SyncByteStream)(exchange, self._lib.TransportError)
        return self._response(exchange, stream)

    def close(self) -> None:
        self._outer.close()

    def _run(self, request: Any, steps: Steps) -> Exchange:
        try:
            step = next(steps)
            while True:
                step = _answered(steps, *self._performed(request, step))
        except StopIteration as done:
            exchange: Exchange = done.value
            return exchange

    def _performed(self, request: Any, step: Step) -> tuple[Any, BaseException | None]:
        try:
            if isinstance(step, Post):
                raw = self._outer.handle_request(self._post(request, step))
                return Pipe(raw.status_code, tuple(raw.headers.raw), raw, iter(raw.stream)), None
            if isinstance(step, Read):
                return next(step.pipe.chunks, None), None
            if isinstance(step, Acquire):
                return step.lock.acquire(), None
            if isinstance(step, Release):
                return step.lock.release(), None
            return step.pipe.raw.close(), None
        except self._lib.TransportError as exc:
            return None, exc if self._not_sent(exc) else ConnectionLost()
        except BaseException as exc:  # noqa: BLE001 - thrown into the steps, which close and raise it
            return None, exc


class _AsyncTransport(_Shell):
    def _new_lock(self) -> Any:
        return anyio.Lock()

    async def handle_async_request(self, request: Any) -> Any:
        try:
            exchange = await self._run(request, self._start(request, await request.aread()))
        except SealwrightError as exc:
            return self._refused(exc)
        stream = _mixed(_AsyncStream, self._lib.AsyncByteStream)(exchange, self._lib.TransportError)
        return self._response(exchange, stream)

    async def aclose(self) -> None:
        await self._outer.aclose()

    async def _run(self, request: Any, steps: Steps) -> Exchange:
        try:
            step = next(steps)
            while True:
                step = _answered(steps, *await self._performed(request, step))
        except StopIteration as done:
            exchange: Exchange = done.value
            return exchange

    async def _performed(self, request: Any, step: Step) -> tuple[Any, BaseException | None]:
        try:
            if isinstance(step, Post):
                raw = await self._outer.handle_async_request(self._post(request, step))
                return Pipe(raw.status_code, tuple(raw.headers.raw), raw, aiter(raw.stream)), None
            if isinstance(step, Read):
                return await anext(step.pipe.chunks, None), None
            if isinstance(step, Acquire):
                return await step.lock.acquire(), None
            if isinstance(step, Release):
                return step.lock.release(), None
            return await step.pipe.raw.aclose(), None
        except self._lib.TransportError as exc:
            return None, exc if self._not_sent(exc) else ConnectionLost()
        except BaseException as exc:  # noqa: BLE001 - thrown into the steps, which close and raise it
            return None, exc


def _answered(steps: Generator[Any, Any, Exchange], value: object, error: BaseException | None) -> Step:
    step: Step = steps.send(value) if error is None else steps.throw(error)
    return step


def _mixed(shell: type, base: type) -> Any:
    """Return `shell` as a subclass of the library's own base class, which its clients insist on."""
    return type(shell.__name__, (shell, base), {})


def transport(
    *,
    trust: Trust,
    library: Library = "httpx2",
    outer: Any = None,
    now: Callable[[], datetime] = _utcnow,
) -> Any:
    """Return a sync transport that sends only to enclaves that `trust` admits; see `http_client`."""
    lib = importlib.import_module(library)
    made = _mixed(_SyncTransport, lib.BaseTransport)
    return made(lib, trust, lib.HTTPTransport() if outer is None else outer, now)


def async_transport(
    *,
    trust: Trust,
    library: Library = "httpx2",
    outer: Any = None,
    now: Callable[[], datetime] = _utcnow,
) -> Any:
    """Return an async transport that sends only to enclaves that `trust` admits; see `http_client`."""
    lib = importlib.import_module(library)
    made = _mixed(_AsyncTransport, lib.AsyncBaseTransport)
    return made(lib, trust, lib.AsyncHTTPTransport() if outer is None else outer, now)


@overload
def http_client(
    *, trust: Trust, library: Literal["httpx2"] = ..., outer: Any = ..., timeout: Any = ...
) -> httpx2.Client: ...
@overload
def http_client(*, trust: Trust, library: Library, outer: Any = ..., timeout: Any = ...) -> Any: ...
def http_client(*, trust: Trust, library: Library = "httpx2", outer: Any = None, timeout: Any = None) -> Any:
    """Return an HTTP client that talks to attested enclaves only, through end-to-end encryption.

    Each origin is verified before the first byte of a request to it is sealed, and again when anything
    ends or changes. A refusal is a local 403 in OpenAI's error form.

    Args:
        trust: a trust file, or the path of one, which is read again for each request.
        library: `httpx2` (openai 3), or `httpx` (openai 2) where it is installed.
        outer: the library's transport for the untrusted connection: proxies, TLS settings.
        timeout: as the library takes it; default: 10 minutes, 10 s to connect.
    """
    lib = importlib.import_module(library)
    inner = transport(trust=trust, library=library, outer=outer)
    # Without trust_env no proxy of the environment is mounted beside our transport.
    return lib.Client(transport=inner, timeout=_timeout(lib, timeout), trust_env=False)


@overload
def async_http_client(
    *, trust: Trust, library: Literal["httpx2"] = ..., outer: Any = ..., timeout: Any = ...
) -> httpx2.AsyncClient: ...
@overload
def async_http_client(*, trust: Trust, library: Library, outer: Any = ..., timeout: Any = ...) -> Any: ...
def async_http_client(
    *, trust: Trust, library: Library = "httpx2", outer: Any = None, timeout: Any = None
) -> Any:
    """Return the async client; see `http_client`."""
    lib = importlib.import_module(library)
    inner = async_transport(trust=trust, library=library, outer=outer)
    return lib.AsyncClient(transport=inner, timeout=_timeout(lib, timeout), trust_env=False)


def _timeout(lib: Any, timeout: Any) -> Any:
    return lib.Timeout(600.0, connect=10.0) if timeout is None else timeout
