"""Collateral for this broker and its fleet: fetched when evidence needs it, kept fresh, within the budget of each peer.

Nothing here proves or decides anything: it fills the cache that attestations read. What a peer causes to be fetched
before its evidence is proved is bounded by its budget, by the queue of its own, and by `Broker.evidence_of`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import anyio
from starlette.routing import BaseRoute

from sealwright.broker.collateral import needs_in
from sealwright.collateral.budget import PIECES, Budget, Payer
from sealwright.collateral.cache import Cache
from sealwright.collateral.client import Fetcher
from sealwright.collateral.need import Kind, Need
from sealwright.collateral.routes import collateral_routes
from sealwright.collateral.service import CollateralService
from sealwright.collateral.sources import Hosts
from sealwright.collateral.surroundings import Patience, Progress, World
from sealwright.errors import UnavailableError
from sealwright.evidence.envelope import EvidenceEnvelope

MAX_NEEDS = 128  # pieces of one envelope: eight GPUs have fewer
WAIT_S = 10.0  # seconds that an attestation waits for what it needs; it is told to come again after that
# Weightiest first. With these it is worth asking again; whatever else a vendor says, the policy's outage decides.
_LATER = ("collateral-over-budget", "collateral-rate-limited", "collateral-pending")


@dataclass(frozen=True, slots=True, kw_only=True)
class SupplySettings:
    """How a broker comes by collateral."""

    fetch: bool = False  # ask vendors; else the fleet gets what the cache has
    hosts: Hosts = field(default_factory=Hosts)
    proxy: str | None = None  # URL; None: as HTTPS_PROXY and NO_PROXY say
    ca_file: Path | None = None  # in place of the system's CAs
    budget: int = PIECES  # pieces that one address may have fetched at once, and again each hour
    # How far past its next update a kind is served to the fleet when its vendor does not answer. What counts for this
    # broker's own attestations stands in each policy.
    outage: Mapping[Kind, timedelta] = field(default_factory=dict)
    patience: Patience = field(default_factory=Patience)
    world: World = field(default_factory=World)


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """What evidence needs, and what is not there yet."""

    needs: Sequence[Need] = ()
    pending: UnavailableError | None = None  # why; None: there is nothing more to wait for


class Supply:
    """Fetches and serves collateral while `running`; before and after that only the cache answers."""

    def __init__(self, cache: Cache, settings: SupplySettings, log: Callable[..., None]) -> None:
        """Prepare; nothing is asked yet.

        Raises:
            SettingsError: `malformed-collateral-settings`.
        """
        self._log = log
        self._fetcher = self._fetching(settings) if settings.fetch else None
        self.service = CollateralService(cache, self._fetcher, outage=settings.outage, world=settings.world)
        self._budget = Budget(settings.world.clock, pieces=settings.budget)

    @property
    def fetches(self) -> bool:
        """Whether vendors are asked."""
        return self._fetcher is not None

    def routes(self) -> list[BaseRoute]:
        """Return the routes by which the fleet has its collateral from here."""
        return collateral_routes(self.service, self._budget)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Fetch what is asked for, and keep fresh what is in use, until the block ends."""
        async with AsyncExitStack() as stack:
            if self._fetcher is not None:
                await stack.enter_async_context(self._fetcher)
            await stack.enter_async_context(self.service)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            if self.fetches:
                tasks.start_soon(self.service.keep_fresh)
            yield
            tasks.cancel_scope.cancel()

    async def bring(self, envelope: EvidenceEnvelope, peer: str) -> Brought:
        """Have the cache filled with what evidence needs, as far as vendors answer in a few seconds.

        Args:
            peer: the IP address that the evidence comes from, which pays.
        """
        needed = await anyio.to_thread.run_sync(needs_in, envelope)
        needs = [need for need in needed if need.facts.kept][:MAX_NEEDS]
        found: list[UnavailableError] = []
        payer = self._budget.payer(peer)
        async with anyio.create_task_group() as tasks:
            for need in needs:
                tasks.start_soon(self._bring, need, payer, found)
        pending = min(found, key=lambda error: _LATER.index(error.code), default=None)
        return Brought(needs=needs, pending=pending)

    def proved(self, brought: Brought) -> None:
        """Give back what was paid for evidence that turned out to be genuine, and allowed."""
        self._budget.forgive(brought.needs)

    async def _bring(self, need: Need, payer: Payer, found: list[UnavailableError]) -> None:
        try:
            await self.service.get(need, wait_s=WAIT_S, payer=payer)
        except UnavailableError as error:
            if error.code in _LATER:
                found.append(error)

    def _fetching(self, settings: SupplySettings) -> Fetcher:
        return Fetcher(
            settings.hosts,
            ca_file=settings.ca_file,
            proxy=settings.proxy,
            patience=settings.patience,
            progress=self._tell,
            world=settings.world,
        )

    def _tell(self, event: Progress) -> None:
        if event.event in ("retrying", "got"):
            self._log(
                "collateral", need=f"{event.need.kind}/{event.need.key}", did=event.event, text=event.text
            )
