"""The one fetcher: asks vendors over TLS, patiently, and takes no more than was asked for.

TLS is always verified, redirects lead to the same origin only, bodies are bounded while they are read and may not be
compressed. None of that makes collateral genuine; it keeps a bad day of a vendor's from becoming one of ours.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import anyio
import httpx2

from sealwright import __version__
from sealwright.collateral.http import (
    REDIRECTS,
    Again,
    bad_answer,
    check_status,
    give_up,
    read_body,
    redirected,
    refused,
)
from sealwright.collateral.need import Need
from sealwright.collateral.pace import OURS, Pacer
from sealwright.collateral.record import Piece
from sealwright.collateral.sources import Answer, Hosts, Request, read_answer, request_for
from sealwright.collateral.surroundings import Patience, Progress, World, quiet
from sealwright.errors import FormatError, SettingsError, UnavailableError
from sealwright.protocol.body import PLAIN

MAX_REDIRECTS = 3


class Fetcher:
    """Fetches one need at a time, or many at once. Use as an async context manager, in one event loop."""

    def __init__(
        self,
        hosts: Hosts | None = None,
        *,
        ca_file: Path | None = None,
        proxy: str | None = None,
        patience: Patience | None = None,
        progress: Callable[[Progress], None] = quiet,
        world: World | None = None,
        pacer: Pacer | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            ca_file: PEM of the CAs to believe for TLS, in place of the system's.
            proxy: URL; default: as HTTPS_PROXY and NO_PROXY say. Never used for the cloud's metadata service.
            transport: in place of the network.

        Raises:
            SettingsError: `malformed-collateral-settings`.
        """
        self.hosts = hosts or Hosts()
        self._patience = patience or Patience()
        self._progress = progress
        self._world = world or World()
        self._pacer = pacer or Pacer(self._world.clock, self._world.sleep)
        self._far = self._client(ca_file, proxy, transport, environment=True)
        self._near = self._client(ca_file, None, transport, environment=False)

    def _client(
        self,
        ca_file: Path | None,
        proxy: str | None,
        transport: httpx2.AsyncBaseTransport | None,
        *,
        environment: bool,
    ) -> httpx2.AsyncClient:
        try:
            verify = True if ca_file is None else ssl.create_default_context(cafile=str(ca_file))
            return httpx2.AsyncClient(
                transport=transport,
                verify=verify,
                proxy=proxy,
                trust_env=environment,
                follow_redirects=False,
                timeout=httpx2.Timeout(self._patience.request_s, connect=self._patience.connect_s),
                headers={"user-agent": f"sealwright/{__version__}", **PLAIN},
            )
        except (OSError, ValueError, httpx2.InvalidURL) as exc:
            raise SettingsError(
                f"the CA file or proxy cannot be used ({type(exc).__name__})",
                code="malformed-collateral-settings",
            ) from exc

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._far.aclose()
        await self._near.aclose()

    def expected_s(self, need: Need, owners: Sequence[str] = OURS) -> float:
        """Return how long `need` would wait for its turn now, seconds."""
        return self._pacer.expected_s(request_for(need, self.hosts).lane, owners)

    async def fetch(self, need: Need, *, owners: Sequence[str] = OURS) -> Piece:
        """Return what the vendor answers now: in its format, and about `need`. It is not verified.

        Args:
            owners: who wants it; those who want much do not delay the others. May grow meanwhile.

        Raises:
            UnavailableError: `collateral-unreachable`, `collateral-rate-limited`, `collateral-not-found`,
                `collateral-refused`, `collateral-bad-answer`.
        """
        request = request_for(need, self.hosts)
        url = request.url(self.hosts)
        host = urlsplit(url).hostname
        for attempt in range(1, self._patience.attempts + 1):
            await self._turn(need, request, owners)
            try:
                answer = await self._ask(request, url)
                piece = read_answer(need, request, answer, now=self._world.now())
            except Again as exc:
                await self._pause(need, request, attempt, exc, f"{host} {exc}")
                continue
            except FormatError as exc:
                raise UnavailableError(
                    f"{host} answered something else than {need}: {exc}; is a proxy or mirror in between?",
                    code="collateral-bad-answer",
                    stage="fetch",
                ) from exc
            self._progress(Progress(need=need, event="got", text=f"{sum(map(len, piece.blobs))} bytes"))
            return piece
        raise RuntimeError("the last attempt returns or raises")

    async def _turn(self, need: Need, request: Request, owners: Sequence[str]) -> None:
        expected = self._pacer.expected_s(request.lane, owners)
        if expected > 0:
            self._progress(Progress(need=need, event="waiting", seconds=expected, text="for the rate limit"))
        await self._pacer.turn(request.lane, longest_s=self._patience.longest_queue_s, owners=owners)
        self._progress(Progress(need=need, event="asking"))

    async def _pause(self, need: Need, request: Request, attempt: int, why: Again, text: str) -> None:
        """Wait before the next attempt, or raise what it was."""
        patience = self._patience
        asked = why.after_s or 0.0
        if why.limited and asked:
            self._pacer.hold(request.lane, min(asked, patience.longest_retry_after_s))
        if attempt == patience.attempts or asked > patience.longest_retry_after_s:
            give_up(why, text, asked)
        backoff = min(patience.backoff_s * 2 ** (attempt - 1), patience.longest_backoff_s)
        wait = max(asked, backoff * (0.5 + self._world.random() / 2))
        self._progress(Progress(need=need, event="retrying", seconds=wait, text=text))
        await self._world.sleep(wait)

    async def _ask(self, request: Request, url: str) -> Answer:
        """Return the answer with status 200. Raises UnavailableError, or Again."""
        for _ in range(MAX_REDIRECTS + 1):
            try:
                with anyio.fail_after(self._patience.request_s):
                    answer = await self._exchange(request, url)
            except TimeoutError:
                raise Again(f"did not answer within {self._patience.request_s:.0f} s") from None
            except (httpx2.HTTPError, httpx2.StreamError) as exc:
                raise Again(f"cannot be reached ({type(exc).__name__})") from exc
            except httpx2.InvalidURL as exc:
                raise refused("the URL is not one") from exc
            if isinstance(answer, Answer):
                return answer
            url = answer
        raise refused(f"{urlsplit(url).hostname} redirects in circles")

    async def _exchange(self, request: Request, url: str) -> Answer | str:
        """Return the answer, or the URL of the same origin that it redirects to."""
        client = self._near if request.host == "azure_imds" else self._far
        method = "GET" if request.body is None else "POST"
        headers = dict(request.headers)
        async with client.stream(method, url, content=request.body, headers=headers) as response:
            if response.status_code in REDIRECTS:
                return redirected(url, response.headers.get("location", ""))
            check_status(response, self._world.now())
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise bad_answer("a compressed answer, though none was asked for")
            body = await read_body(response, request.limit)
            kept = {name: response.headers[name] for name in request.keep if name in response.headers}
            return Answer(body=body, headers=kept)
