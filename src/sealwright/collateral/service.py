"""Collateral for a broker and its fleet: one upstream call for all who need a piece, ahead of its next update.

What is stale is asked for again first; where the vendor does not answer, it is served as long as the outage policy
allows its kind, and the answer says how old it is. Whoever gets it verifies it and applies a policy of their own.

Peers are strangers: each pays for the upstream calls it begins, they share half of the places there are, and who holds
the most of those makes room for who holds fewer.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup

from sealwright.collateral.budget import Payer
from sealwright.collateral.cache import Cache
from sealwright.collateral.client import Fetcher
from sealwright.collateral.need import Kind, Need
from sealwright.collateral.pace import OURS
from sealwright.collateral.record import Piece
from sealwright.collateral.surroundings import World
from sealwright.crypto.encoding import digest
from sealwright.errors import CollateralError, SealwrightError, UnavailableError

MAX_FLIGHTS = 1024  # needs that are being fetched at once
MAX_PEER_FLIGHTS = MAX_FLIGHTS // 2  # that peers pay for; what is to be kept fresh has the others
MAX_OWNERS = 64  # peers that wait for one call and have it served in their turn
MAX_REFUSED = 4096  # failures remembered
REFUSED_S = 60.0  # seconds before a vendor that failed is asked for the same again
NOT_FOUND_S = 600.0  # the same, where the vendor said that there is no such thing
TRACKED = timedelta(days=14)  # what nobody asked for since is no longer kept fresh


@dataclass(slots=True)
class Counters:
    """Numbers since the start, for metrics."""

    hits: int = 0  # answered from the cache, fresh
    due: int = 0  # answered from the cache, and asked for again behind it
    stale: int = 0  # answered from the cache past the next update, as the outage policy allows
    coalesced: int = 0  # waited for an upstream call that somebody else began
    upstream: int = 0  # calls begun
    upstream_failed: int = 0
    given_up: int = 0  # calls of peers that made room for others
    refresh_failed: int = 0  # times that the cache could not be read to see what is due
    refused: int = 0  # not answered


@dataclass(slots=True)
class _Flight:
    """An upstream call under way."""

    owners: list[str]  # the first one pays
    done: anyio.Event = field(default_factory=anyio.Event)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    piece: Piece | None = None
    error: UnavailableError | None = None

    def join(self, payer: Payer | None) -> None:
        """Let it have its turn as soon as its own or `payer`'s comes: a slow queue of one must not delay another."""
        owner = OURS[0] if payer is None else payer.name
        if owner not in self.owners and len(self.owners) < MAX_OWNERS:
            self.owners.append(owner)

    def give_up(self) -> None:
        """End it for somebody else's sake."""
        self.error = _full()
        self.scope.cancel()


class CollateralService:
    """Answers needs from the cache and from vendors. Use as an async context manager, in one event loop."""

    def __init__(
        self,
        cache: Cache,
        fetcher: Fetcher | None,
        *,
        outage: Mapping[Kind, timedelta] | None = None,
        world: World | None = None,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            fetcher: None: offline, only the cache answers.
            outage: how far past its next update a kind may be served when the vendor does not answer; default: not.
        """
        self.counters = Counters()
        self._cache, self._fetcher = cache, fetcher
        self._outage = dict(outage or {})
        self._world = world or World()
        self._flights: dict[Need, _Flight] = {}
        self._refused: OrderedDict[Need, tuple[float, UnavailableError]] = OrderedDict()
        self._salt = os.urandom(8)  # spreads what many brokers ask for
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()
        return await self._stack.__aexit__(kind, error, trace)

    async def get(
        self,
        need: Need,
        *,
        wait_s: float | None = None,
        fresh: bool = False,
        force: bool = False,
        payer: Payer | None = None,
    ) -> Piece:
        """Return a piece that is current, or no staler than the outage policy allows.

        Args:
            wait_s: how long to wait for an upstream call, seconds; it goes on after that. None: until it ends.
            fresh: wait for a piece that is due, too; else it is answered at once.
            force: ask upstream whatever the cache has, and do not fall back to it.
            payer: the peer that pays if an upstream call is begun for it; None: it is for this service itself.

        Raises:
            UnavailableError: `collateral-pending`, `collateral-over-budget`, or what `Fetcher.fetch` raises.
            CollateralError: offline: `collateral-missing`, `collateral-stale`.
        """
        found = await self.cached(need)
        now = self._world.now()
        state = "none" if found is None else found.state(now)
        if found is not None and state == "fresh" and not force:
            self.counters.hits += 1
            return found
        if found is not None and state == "due" and not (fresh or force):
            self.counters.due += 1
            self._begin_quietly(need)
            return found
        try:
            return await self._upstream(need, wait_s, payer)
        except SealwrightError as exc:
            return self._fall_back(None if force else found, now, exc)

    async def cached(self, need: Need) -> Piece | None:
        """Return what the cache has, however old it is; None: nothing."""
        if not need.facts.kept:
            return None
        return await anyio.to_thread.run_sync(self._cache.get, need)

    def pending_s(self, need: Need) -> float | None:
        """Return how long an upstream call for `need` that is under way may take, seconds; None: there is none."""
        flight = self._flights.get(need)
        return (
            None if flight is None or self._fetcher is None else self._fetcher.expected_s(need, flight.owners)
        )

    async def keep_fresh(self, *, every_s: float = 60.0) -> None:
        """Ask again for everything in use shortly before it is due, for ever. Run it in a task of its own.

        A cache that cannot be read is tried again the next time: it must not end what runs beside this.
        """
        while True:
            try:
                await self.refresh_due()
            except UnavailableError:
                self.counters.refresh_failed += 1
            await self._world.sleep(every_s)

    async def refresh_due(self) -> int:
        """Begin an upstream call for each piece in use that is about to be due; return how many."""
        begun = 0
        now = self._world.now()
        used_since = now - TRACKED

        def due() -> list[Need]:
            entries = list(self._cache.entries(used_since=used_since))
            kept = [
                Piece(
                    need=entry.need(),
                    blobs=(),
                    fetched=entry.fetched,
                    issued=entry.issued,
                    next_update=entry.next_update,
                )
                for entry in entries
            ]
            return [piece.need for piece in kept if self._due(piece, now)]

        for need in await anyio.to_thread.run_sync(due):
            begun += self._begin_quietly(need)
        return begun

    def _due(self, piece: Piece, now: datetime) -> bool:
        """Say whether `piece` is to be asked for, up to a tenth of its life early, as this service's salt has it."""
        refresh = piece.refresh_at()
        if refresh is None:
            return False
        share = int.from_bytes(digest(self._salt, piece.need.kind, piece.need.key)[:4], "big") / 2**32
        return now >= refresh - (refresh - piece.fetched) * 0.1 * share

    async def _upstream(self, need: Need, wait_s: float | None, payer: Payer | None) -> Piece:
        flight = self._flights.get(need)
        if flight is None:
            flight = self._begin(need, payer)
        else:
            flight.join(payer)
            self.counters.coalesced += 1
        with anyio.move_on_after(wait_s):
            await flight.done.wait()
        if flight.piece is not None:
            return flight.piece
        if flight.error is not None:
            raise _again(flight.error)
        raise UnavailableError(
            f"{need} is being fetched, and the vendor limits requests: ask again",
            code="collateral-pending",
            stage="fetch",
        )

    def _begin(self, need: Need, payer: Payer | None = None) -> _Flight:
        """Begin an upstream call. Raises UnavailableError, CollateralError."""
        if self._fetcher is None:
            raise CollateralError(
                f"{need} is not in the cache, and this is offline: import a collateral pack",
                code="collateral-missing",
                stage="fetch",
            )
        until, error = self._refused.get(need, (0.0, None))
        if error is not None and self._world.clock() < until:
            raise _again(error)
        if len(self._flights) >= MAX_FLIGHTS or self._tasks is None:
            raise _full()
        if payer is not None:
            self._make_room(payer.name)
            payer.pay(need)
        flight = self._flights[need] = _Flight([OURS[0] if payer is None else payer.name])
        self.counters.upstream += 1
        self._tasks.start_soon(self._fly, self._fetcher, need, flight)
        return flight

    def _make_room(self, owner: str) -> None:
        """Let `owner` begin one more call: in place of one of the peer that holds the most. Raises UnavailableError."""
        paid = [one for one in self._flights.values() if one.owners[0] != OURS[0] and one.error is None]
        if len(paid) < MAX_PEER_FLIGHTS:
            return
        held = Counter(one.owners[0] for one in paid)
        most = max(held.values())
        spare = [one for one in paid if held[one.owners[0]] == most and len(one.owners) == 1]
        if not spare or most <= held[owner] + 1:
            raise _full()
        spare[-1].give_up()  # the newest
        self.counters.given_up += 1

    def _begin_quietly(self, need: Need) -> bool:
        if need in self._flights:
            return False
        try:
            self._begin(need)
        except SealwrightError:
            return False  # what there is still holds; it is tried again
        return True

    async def _fly(self, fetcher: Fetcher, need: Need, flight: _Flight) -> None:
        try:
            with flight.scope:
                flight.piece = await self._kept(await fetcher.fetch(need, owners=flight.owners))
                self._refused.pop(need, None)
        except UnavailableError as exc:
            flight.error = self._failed(need, exc)
        except Exception as exc:  # noqa: BLE001 - a bug of ours in one answer must not end the others
            flight.error = self._failed(
                need,
                UnavailableError(
                    f"{need} could not be read ({type(exc).__name__}), which is our bug",
                    code="collateral-bad-answer",
                    stage="fetch",
                ),
            )
        finally:
            del self._flights[need]
            flight.done.set()

    def _failed(self, need: Need, error: UnavailableError) -> UnavailableError:
        self.counters.upstream_failed += 1
        pause = NOT_FOUND_S if error.code == "collateral-not-found" else REFUSED_S
        self._refused.pop(need, None)  # the newest stand last
        self._refused[need] = (self._world.clock() + pause, error)
        if len(self._refused) > MAX_REFUSED:
            self._refused.popitem(last=False)
        return error

    async def _kept(self, piece: Piece) -> Piece:
        """Put a piece into the cache; return the one that is there then, which may be a newer one."""
        if not piece.need.facts.kept:
            return piece
        if await anyio.to_thread.run_sync(self._cache.put, piece):
            return piece
        return await self.cached(piece.need) or piece

    def _fall_back(self, found: Piece | None, now: datetime, error: SealwrightError) -> Piece:
        if found is None:
            self.counters.refused += 1
            raise error
        stale = found.stale(now)
        if stale > self._outage.get(found.need.kind, timedelta(0)):
            self.counters.refused += 1
            if self._fetcher is not None:
                raise error
            raise CollateralError(
                f"{found.need} should have been replaced {stale} ago, and this is offline: import a newer "
                "collateral pack",
                code="collateral-stale",
                stage="fetch",
            ) from error
        self.counters.stale += stale > timedelta(0)
        return found


def _full() -> UnavailableError:
    return UnavailableError(
        "too many pieces are being fetched already: ask again later",
        code="collateral-rate-limited",
        stage="fetch",
    )


def _again(error: UnavailableError) -> UnavailableError:
    """Return an error like `error`: one that is raised for many collects all their traces."""
    return UnavailableError(str(error), code=error.code, stage=error.stage)
