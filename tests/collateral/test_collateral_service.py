"""A broker's service: one upstream call for all, spaced as vendors ask, ahead of next updates, and honest in an outage."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import anyio
import httpx2
import pytest
from starlette.applications import Starlette
from tests.collateral.support import FakeTime, milan_chain, milan_crl, quick_world, running

from sealwright.collateral import client
from sealwright.collateral import service as module
from sealwright.collateral.budget import Budget
from sealwright.collateral.cache import Cache
from sealwright.collateral.client import Fetcher
from sealwright.collateral.need import Need
from sealwright.collateral.record import Piece, Served
from sealwright.collateral.routes import collateral_routes
from sealwright.collateral.service import NOT_FOUND_S, REFUSED_S, CollateralService
from sealwright.collateral.sources import Answer, Hosts, Request
from sealwright.collateral.surroundings import Patience, World
from sealwright.errors import CollateralError, UnavailableError

CRL = Need("amd-crl", "vcek:Milan")
NOW = datetime(2025, 6, 20, tzinfo=UTC)
Handler = Callable[[httpx2.Request], httpx2.Response]


@asynccontextmanager
async def serving(
    folder: Path, handler: Handler | None, world: World, **more: object
) -> AsyncIterator[CollateralService]:
    cache = Cache(folder)
    if handler is None:
        async with CollateralService(cache, None, world=world, **more) as service:  # type: ignore[arg-type]
            yield service
        return
    transport = httpx2.MockTransport(handler)
    patience = Patience(attempts=1)
    async with (
        Fetcher(transport=transport, world=world, patience=patience) as fetcher,
        CollateralService(cache, fetcher, world=world, **more) as service,  # type: ignore[arg-type]
    ):
        yield service


def crl(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, content=milan_crl()[1])


def down(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(500)


def crl_piece(fetched: datetime = NOW) -> Piece:
    """Return the CRL with the dates that it has."""
    need, blob = milan_crl()
    return Piece(
        need=need,
        blobs=(blob,),
        fetched=fetched,
        issued=datetime(2025, 5, 6, 12, 39, 6, tzinfo=UTC),
        next_update=datetime(2026, 5, 12, tzinfo=UTC),
    )


def any_answer(need: Need, request: Request, answer: Answer, *, now: datetime) -> Piece:
    """Read any bytes as a piece: no vendor has published a hundred VCEKs."""
    return Piece(need=need, blobs=(answer.body,), fetched=now)


async def test_a_fleet_of_100_nodes_makes_one_call_a_chip_ten_seconds_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "read_answer", any_answer)
    time = FakeTime()
    calls: list[tuple[str, float]] = []

    def kds(request: httpx2.Request) -> httpx2.Response:
        calls.append((str(request.url), time.seconds))
        return httpx2.Response(200, content=request.url.path.encode())

    chips = [Need("amd-vcek", f"Milan:{number:0128x}:3:0:8:115") for number in range(100)]
    got: list[Piece] = []
    async with serving(tmp_path, kds, time.world()) as service, anyio.create_task_group() as tasks:

        async def node(chip: Need) -> None:
            got.append(await service.get(chip))

        for chip in chips:
            for _ in range(3):  # three verifications of each node at once
                tasks.start_soon(node, chip)
        await time.run(lambda: len(got) == 300)
        assert service.counters.upstream == 100
        assert service.counters.coalesced == 200
        got.clear()
        for chip in chips:
            tasks.start_soon(node, chip)
        await time.run(lambda: len(got) == 100)
        assert service.counters.hits == 100
    assert len(calls) == len({url for url, _ in calls}) == 100, "one upstream call a chip, for ever"
    starts = [at for _, at in calls]
    assert all(later - earlier >= 10 for earlier, later in pairwise(starts))
    assert starts[-1] >= 990


async def test_other_lanes_do_not_wait_for_the_slow_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "read_answer", any_answer)
    time = FakeTime()
    async with serving(tmp_path, crl, time.world()) as service, anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(service.get, Need("amd-vcek", f"Milan:{number:0128x}:3:0:8:115"))
        got: list[Piece] = []

        async def other() -> None:
            got.append(await service.get(CRL))

        tasks.start_soon(other)
        while not got:
            await anyio.sleep(0.005)
        assert time.seconds == 0
        tasks.cancel_scope.cancel()


async def test_who_does_not_wait_is_told_and_the_call_goes_on(tmp_path: Path) -> None:
    gate = anyio.Event()

    async def slow(request: httpx2.Request) -> httpx2.Response:
        await gate.wait()
        return crl(request)

    async with serving(tmp_path, slow, quick_world()[0]) as service:  # type: ignore[arg-type]
        with pytest.raises(UnavailableError) as caught:
            await service.get(CRL, wait_s=0.01)
        assert caught.value.code == "collateral-pending"
        assert service.pending_s(CRL) is not None
        gate.set()
        assert (await service.get(CRL)).blobs == (milan_crl()[1],)
        assert service.pending_s(CRL) is None
        assert service.counters.upstream == 1


async def test_one_that_goes_away_leaves_the_others_their_answer(tmp_path: Path) -> None:
    gate = anyio.Event()

    async def slow(request: httpx2.Request) -> httpx2.Response:
        await gate.wait()
        return crl(request)

    got: list[Piece] = []
    async with serving(tmp_path, slow, quick_world()[0]) as service:  # type: ignore[arg-type]

        async def stays() -> None:
            got.append(await service.get(CRL))

        async with anyio.create_task_group() as staying:
            async with anyio.create_task_group() as leaving:
                leaving.start_soon(service.get, CRL)
                await anyio.sleep(0.01)
                staying.start_soon(stays)
                await anyio.sleep(0.01)
                leaving.cancel_scope.cancel()
            gate.set()
    assert [piece.need for piece in got] == [CRL]
    assert service.counters.upstream == 1


async def test_what_is_due_is_answered_at_once_and_asked_for_behind_it(tmp_path: Path) -> None:
    time = FakeTime(NOW)
    Cache(tmp_path).put(crl_piece(NOW - timedelta(days=2)))
    async with serving(tmp_path, crl, time.world()) as service:
        found = await service.get(CRL)
        assert found.fetched == NOW - timedelta(days=2)
        await time.run(lambda: service.counters.upstream == 1 and service.pending_s(CRL) is None)
        assert (await service.get(CRL)).fetched == NOW
        assert (service.counters.due, service.counters.hits) == (1, 1)


async def test_due_and_the_vendor_is_away(tmp_path: Path) -> None:
    Cache(tmp_path).put(crl_piece(NOW - timedelta(days=2)))
    async with serving(tmp_path, down, quick_world(NOW)[0]) as service:
        assert (await service.get(CRL, fresh=True)).fetched == NOW - timedelta(days=2)
        with pytest.raises(UnavailableError):
            await service.get(CRL, force=True)


@pytest.mark.parametrize(("allowed", "late"), [(0, 1), (3, 1), (3, 2.9), (3, 3.1)])
async def test_stale_collateral_is_served_within_the_outage_policy_only(
    tmp_path: Path, allowed: float, late: float
) -> None:
    Cache(tmp_path).put(crl_piece())
    now = datetime(2026, 5, 12, tzinfo=UTC) + timedelta(days=late)
    outage = {"amd-crl": timedelta(days=allowed)}
    async with serving(tmp_path, down, quick_world(now)[0], outage=outage) as service:
        if late <= allowed:
            piece = await service.get(CRL)
            assert piece.stale(now) == timedelta(days=late), "the answer says how stale it is"
            assert service.counters.stale == 1
        else:
            with pytest.raises(UnavailableError):
                await service.get(CRL)
            assert service.counters.refused == 1
    async with serving(tmp_path, None, quick_world(now)[0], outage=outage) as offline:
        if late <= allowed:
            assert await offline.get(CRL)
        else:
            with pytest.raises(CollateralError) as caught:
                await offline.get(CRL)
            assert caught.value.code == "collateral-stale"


async def test_stale_is_replaced_where_the_vendor_answers(tmp_path: Path) -> None:
    # The vendor still serves what is past its next update: the caller gets it, and sees that it is stale.
    now = datetime(2026, 5, 13, tzinfo=UTC)
    async with serving(tmp_path, crl, quick_world(now)[0]) as service:
        piece = await service.get(CRL)
        assert piece.state(now) == "stale"
        assert service.counters.upstream == 1


async def test_offline(tmp_path: Path) -> None:
    async with serving(tmp_path, None, quick_world(NOW)[0]) as service:
        with pytest.raises(CollateralError) as caught:
            await service.get(CRL)
        assert caught.value.code == "collateral-missing"
        Cache(tmp_path).put(crl_piece(NOW - timedelta(days=9)))
        assert (await service.get(CRL)).state(NOW) == "due"


@pytest.mark.parametrize(
    ("status", "code", "pause_s"),
    [(404, "collateral-not-found", NOT_FOUND_S), (500, "collateral-unreachable", REFUSED_S)],
)
async def test_a_vendor_that_fails_is_not_asked_for_the_same_again_for_a_while(
    tmp_path: Path, status: int, code: str, pause_s: float
) -> None:
    clock = [0.0]

    async def sleep(seconds: float) -> None:
        clock[0] += seconds

    world = World(clock=lambda: clock[0], sleep=sleep, now=lambda: NOW)
    async with serving(tmp_path, lambda request: httpx2.Response(status), world) as service:
        budget = Budget(world.clock)
        for _ in range(3):
            with pytest.raises(UnavailableError) as caught:
                await service.get(CRL, payer=budget.payer("192.0.2.1"))
            assert caught.value.code == code
        assert service.counters.upstream == 1
        clock[0] += pause_s - 2
        with pytest.raises(UnavailableError):
            await service.get(CRL)
        assert service.counters.upstream == 1
        clock[0] += 4
        with pytest.raises(UnavailableError):
            await service.get(CRL)
        assert service.counters.upstream == 2


def chip(number: int) -> Need:
    """Return the VCEK of a chip that may not exist."""
    return Need("amd-vcek", f"Milan:{number:0128x}:3:0:8:115")


async def queued(service: CollateralService, count: int) -> None:
    """Wait until so many VCEKs wait for their turn."""
    assert service._fetcher is not None
    lanes = service._fetcher._pacer._lanes
    while "amd-vcek" not in lanes or len(lanes["amd-vcek"].waiting) < count:
        await anyio.sleep(0.001)


async def test_a_peer_that_makes_up_chips_spends_its_own_budget_and_its_own_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "read_answer", any_answer)
    time = FakeTime()
    order: list[str] = []

    def kds(request: httpx2.Request) -> httpx2.Response:
        order.append(request.url.path)
        return httpx2.Response(200, content=request.url.path.encode())

    budget = Budget(time.clock, pieces=64)
    async with serving(tmp_path, kds, time.world()) as service:
        refused = 0
        for number in range(180):
            try:
                await service.get(chip(number), wait_s=0, payer=budget.payer("192.0.2.1"))
            except UnavailableError as exc:
                refused += exc.code == "collateral-over-budget"
        assert refused == 180 - 64
        assert service.counters.upstream == 64
        got: list[Piece] = []

        async def honest() -> None:
            got.append(await service.get(chip(1000), payer=budget.payer("198.51.100.7")))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(honest)
            await queued(service, 64)
            await time.run(lambda: bool(got))
        place = next(number for number, path in enumerate(order) if chip(1000).parts[1] in path)
        assert place <= 2, "its turn came before all but the first of the 64"


async def test_who_waits_for_what_a_slow_peer_asked_for_has_it_in_its_own_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "read_answer", any_answer)
    time = FakeTime()
    budget = Budget(time.clock)
    order: list[str] = []

    def kds(request: httpx2.Request) -> httpx2.Response:
        order.append(request.url.path)
        return httpx2.Response(200, content=b"x")

    async with serving(tmp_path, kds, time.world()) as service:
        for number in range(
            40
        ):  # the peer knows whom it wants to delay: the last one is somebody else's chip
            with pytest.raises(UnavailableError):
                await service.get(chip(number), wait_s=0, payer=budget.payer("192.0.2.1"))
        got: list[Piece] = []

        async def honest() -> None:
            got.append(await service.get(chip(39), payer=budget.payer("198.51.100.7")))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(honest)
            while not service.counters.coalesced:
                await anyio.sleep(0.001)
            await time.run(lambda: bool(got))
        place = next(number for number, path in enumerate(order) if chip(39).parts[1] in path)
        assert place <= 2
        assert (service.counters.coalesced, service.counters.upstream) == (1, 40)


async def test_many_peers_do_not_fill_all_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PEER_FLIGHTS", 8)
    gate = anyio.Event()

    async def slow(request: httpx2.Request) -> httpx2.Response:
        await gate.wait()
        return httpx2.Response(404)

    budget = Budget(lambda: 0.0)
    async with serving(tmp_path, slow, quick_world(NOW)[0]) as service:  # type: ignore[arg-type]

        async def begin(number: int, peer: str | None) -> str:
            payer = None if peer is None else budget.payer(peer)
            with pytest.raises(UnavailableError) as caught:
                await service.get(chip(number), wait_s=0.001, payer=payer)
            return caught.value.code

        for number in range(8):
            assert await begin(number, f"192.0.2.{number % 2}") == "collateral-pending"
        assert await begin(8, "192.0.2.0") == "collateral-rate-limited", "it holds as many as any other"
        for number in (9, 10, 11):
            assert await begin(number, "198.51.100.7") == (
                "collateral-pending" if number < 11 else "collateral-rate-limited"
            )
        assert service.counters.given_up == 2
        assert service.pending_s(chip(7)) is None, "the newest call of a peer that held four"
        assert service.pending_s(chip(0)) is not None
        assert await begin(12, None) == "collateral-pending", "what is ours has places of its own"
        gate.set()


async def test_a_cache_that_cannot_be_read_does_not_end_the_refreshing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> object:
        raise UnavailableError("no", code="cache-unusable", stage="cache")

    time = FakeTime(NOW)
    async with serving(tmp_path, crl, time.world()) as service, anyio.create_task_group() as tasks:
        monkeypatch.setattr(Cache, "entries", broken)
        tasks.start_soon(service.keep_fresh)
        await time.run(lambda: service.counters.refresh_failed == 3)
        tasks.cancel_scope.cancel()


async def test_a_bug_in_one_answer_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Piece:
        raise ZeroDivisionError

    async with serving(tmp_path, crl, quick_world()[0]) as service:
        monkeypatch.setattr(client, "read_answer", broken)
        with pytest.raises(UnavailableError, match="our bug"):
            await service.get(CRL)
        monkeypatch.undo()
        assert await service.get(Need("amd-crl", "vlek:Milan"))


async def test_it_keeps_what_is_used_fresh_ahead_of_time(tmp_path: Path) -> None:
    time = FakeTime(NOW)
    calls: list[float] = []

    def vendor(request: httpx2.Request) -> httpx2.Response:
        calls.append(time.seconds)
        return crl(request)

    Cache(tmp_path).put(crl_piece())
    async with serving(tmp_path, vendor, time.world()) as service, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: service.keep_fresh(every_s=600))
        await time.run(lambda: len(calls) >= 3, longest_s=4 * 86400)
        tasks.cancel_scope.cancel()
    assert service.counters.hits == 0, "nobody had asked"
    gaps = [later - earlier for earlier, later in zip([0.0, *calls], calls, strict=False)]
    assert all(0.9 * 86400 - 601 <= gap <= 86400 + 601 for gap in gaps), "daily, up to a tenth early"


async def test_brokers_do_not_ask_at_the_same_moment(tmp_path: Path) -> None:
    piece = crl_piece()
    times = set()
    for number in range(8):
        service = CollateralService(Cache(tmp_path / str(number)), None)
        times.add(
            next(hour for hour in range(200) if service._due(piece, NOW + timedelta(minutes=hour * 10)))
        )
    assert len(times) > 1


async def asked(service: CollateralService, path: str, *, wait_s: float = 0.05) -> httpx2.Response:
    app = Starlette(routes=collateral_routes(service, Budget(lambda: 0.0), wait_s=wait_s))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://broker") as one:
        return await one.get(f"/sealwright/v1/collateral/{path}")


async def test_the_route_serves_what_a_fetcher_reads(tmp_path: Path) -> None:
    async with serving(tmp_path, crl, quick_world(NOW)[0]) as service:
        answer = await asked(service, "amd-crl/vcek:Milan", wait_s=5)
        assert answer.status_code == 200
        served = Served.parse(answer.content)
        assert (served.need(), served.blobs) == (CRL, (milan_crl()[1],))


async def test_the_route_has_bounds(tmp_path: Path) -> None:
    calls: list[str] = []

    def vendor(request: httpx2.Request) -> httpx2.Response:
        calls.append(request.url.path)
        return httpx2.Response(500)

    async with serving(tmp_path, vendor, quick_world(NOW)[0]) as service:
        for path in ("amd-magic/x", "amd-crl/vcek:mil..an", "amd-crl/" + "a" * 5000, "amd-crl/vcek%3A..%2Fx"):
            answer = await asked(service, path)
            assert answer.status_code in (400, 404), path
        # A stranger cannot have chips that do not exist queued for AMD, nor ask for this machine's metadata.
        for path in (
            f"amd-vcek/Milan:{'0' * 128}:1:2:3:4",
            "azure-thim/this-vm",
            "intel-tcb-info/tdx:000000000000",
            "amd-crl/vcek:Madeup1",
        ):
            answer = await asked(service, path)
            assert (answer.status_code, answer.json()["code"]) == (404, "collateral-missing")
        assert calls == []
        answer = await asked(service, "amd-crl/vcek:Milan", wait_s=5)
        assert (answer.status_code, answer.json()["code"]) == (503, "collateral-unreachable")
        assert "kdsintf" not in answer.text, "the reason is not for peers"
        assert int(answer.headers["retry-after"]) >= 1
        assert len(calls) == 1


async def test_what_is_on_its_way_is_waited_for(tmp_path: Path) -> None:
    gate = anyio.Event()

    async def slow(request: httpx2.Request) -> httpx2.Response:
        await gate.wait()
        return httpx2.Response(404)

    chip = Need("amd-vcek", f"Milan:{'a' * 128}:1:2:3:4")
    async with serving(tmp_path, slow, quick_world(NOW)[0]) as service:  # type: ignore[arg-type]
        with pytest.raises(UnavailableError):
            await service.get(chip, wait_s=0.01)  # the broker has seen evidence of this chip
        answer = await asked(service, f"amd-vcek/{chip.key}")
        assert (answer.status_code, answer.json()["code"]) == (503, "collateral-pending")
        gate.set()


async def test_an_enclave_fetches_from_its_broker_over_http(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put(crl_piece())
    services: list[CollateralService] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with CollateralService(cache, None, world=quick_world(NOW)[0]) as service:
            services.append(service)
            app.router.routes.extend(collateral_routes(service, Budget(lambda: 0.0)))
            yield

    with running(Starlette(lifespan=lifespan)) as url:
        async with Fetcher(Hosts(service=url), world=quick_world(NOW + timedelta(hours=1))[0]) as fetcher:
            piece = await fetcher.fetch(CRL)
            assert piece == crl_piece(), "its age is that of the broker's fetch"
            with pytest.raises(UnavailableError) as caught:
                await fetcher.fetch(milan_chain()[0])
            assert caught.value.code == "collateral-not-found"


async def test_the_route_spends_the_budget_of_who_asks(tmp_path: Path) -> None:
    async with serving(tmp_path, down, quick_world(NOW)[0]) as service:
        budget = Budget(lambda: 0.0, pieces=1)
        app = Starlette(routes=collateral_routes(service, budget, wait_s=5))

        async def ask(peer: str, path: str) -> tuple[int, str]:
            transport = httpx2.ASGITransport(app, client=(peer, 1))
            async with httpx2.AsyncClient(transport=transport, base_url="http://broker") as one:
                answer = await one.get(f"/sealwright/v1/collateral/{path}")
                return answer.status_code, answer.json()["code"]

        assert await ask("192.0.2.1", "amd-crl/vcek:Milan") == (503, "collateral-unreachable")
        assert await ask("192.0.2.1", "amd-crl/vcek:Genoa") == (429, "collateral-over-budget")
        assert await ask("192.0.2.2", "amd-crl/vcek:Genoa") == (503, "collateral-unreachable")
