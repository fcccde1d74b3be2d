"""A broker that fetches what evidence did not bring: from a vendor that answers here, once for all, within budgets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from starlette.responses import Response
from tests.broker.guest_support import Guest, guest_policy
from tests.broker.support import NOW, Clock, World
from tests.collateral.support import Vendor, quick_world, running

from sealwright.broker.service import Running
from sealwright.broker.supply import Supply, SupplySettings
from sealwright.testing.snp import SnpTestPlatform
from sealwright.testing.software import FakePlatformWarning

PATH = "acme/key/disk"
CRL = "/vcek/v1/Genoa/crl"


@pytest.fixture(scope="module")
def platform() -> SnpTestPlatform:
    with pytest.warns(FakePlatformWarning):
        return SnpTestPlatform(NOW)


class Fleet:
    """A broker with a vendor, and guests from addresses of their own."""

    def __init__(self, running: Running, vendor: Vendor, platform: SnpTestPlatform) -> None:
        self.running, self.vendor, self.platform = running, vendor, platform
        assert running.supply is not None
        self.supply: list[Supply] = []
        make = running.supply

        def kept(log: Any) -> Supply:
            self.supply.append(make(log))
            return self.supply[-1]

        object.__setattr__(running, "supply", kept)
        self.app = running.app(log=lambda *_, **__: None)

    def guest(self, address: str) -> Guest:
        guest = Guest(self.running, self.platform)
        transport = httpx2.ASGITransport(self.app, client=(address, 1))
        guest.http = httpx2.AsyncClient(transport=transport, base_url="http://broker.test")
        return guest

    async def attest(self, address: str, **changes: Any) -> httpx2.Response:
        """Attest with evidence that comes without its CRL."""
        guest = self.guest(address)
        nonce = (await guest.auth())["nonce"]
        evidence = guest.evidence(nonce, **changes)
        evidence["cert_chain"] = [one for one in evidence["cert_chain"] if one["cert_type"] != "CRL"]
        return await guest.http.post("/kbs/v0/attest", json=guest.body(nonce, evidence=evidence))


def crl(platform: SnpTestPlatform) -> Any:
    def answer(request: Any, _body: bytes) -> Response:
        found = request.url.path == CRL
        return Response(platform.crl if found else b"", status_code=200 if found else 404)

    return answer


@contextmanager
def fleet(tmp_path: Path, platform: SnpTestPlatform, answer: Any, **settings: Any) -> Iterator[Fleet]:
    vendor = Vendor(answer)
    world = World(tmp_path / "broker", clock=Clock(NOW))
    with running(vendor):
        supply = SupplySettings(fetch=True, hosts=vendor.hosts, world=quick_world(NOW)[0], **settings)
        with world.open(collateral=tmp_path / "cache", supply=supply) as opened:
            opened.resources.put(PATH, b"secret", tenant="acme", policy=guest_policy(platform))
            yield Fleet(opened, vendor, platform)


async def test_what_evidence_did_not_bring_is_fetched_once_for_all(
    tmp_path: Path, platform: SnpTestPlatform
) -> None:
    with fleet(tmp_path, platform, crl(platform)) as one:
        async with one.supply[0].running():
            codes: list[int] = []

            async def attest(number: int) -> None:
                codes.append((await one.attest(f"10.0.0.{number}")).status_code)

            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(attest, number)
        assert codes == [200] * 50
        assert one.vendor.counted[CRL] == 1


async def test_a_vendor_that_is_down_leaves_nothing_decided(
    tmp_path: Path, platform: SnpTestPlatform
) -> None:
    with fleet(tmp_path, platform, lambda *_: Response(status_code=500)) as one:
        async with one.supply[0].running():
            answer = await one.attest("10.0.0.1")
        assert answer.status_code in (401, 503)
        assert answer.json()["code"] in ("collateral-missing", "collateral-pending")
        newest = one.running.admin.decisions(1)[0]
        assert (newest["verdict"], newest["code"]) == ("refuse", "collateral-missing")


async def test_an_address_over_its_budget_is_refused_and_another_is_served(
    tmp_path: Path, platform: SnpTestPlatform
) -> None:
    with fleet(tmp_path, platform, crl(platform), budget=2) as one:
        async with one.supply[0].running():
            # The certificates of made-up chips, which nobody has: two pieces are paid for, and another is not to be had.
            guest = one.guest("10.0.0.66")
            codes = []
            for number in range(3):
                nonce = (await guest.auth())["nonce"]
                evidence = guest.evidence(nonce, chip_id=bytes([number + 1]) * 64)
                evidence["cert_chain"] = []
                answer = await guest.http.post("/kbs/v0/attest", json=guest.body(nonce, evidence=evidence))
                codes.append((answer.status_code, answer.json()["code"]))
            assert (429, "collateral-over-budget") in codes
            assert (await one.attest("10.0.0.1")).status_code == 200


async def test_evidence_that_no_policy_is_about_has_nothing_fetched(
    tmp_path: Path, platform: SnpTestPlatform
) -> None:
    with fleet(tmp_path, platform, crl(platform)) as one:
        one.running.resources.remove(PATH)
        async with one.supply[0].running():
            assert (await one.attest("10.0.0.1")).status_code == 401
        assert not one.vendor.asked


async def test_the_fleet_has_its_collateral_from_the_broker(
    tmp_path: Path, platform: SnpTestPlatform
) -> None:
    with fleet(tmp_path, platform, crl(platform)) as one:
        async with one.supply[0].running():
            http = one.guest("10.0.0.1").http
            assert (await http.get("/sealwright/v1/collateral/amd-vcek/" + "x" * 300)).status_code == 400
            found = await http.get("/sealwright/v1/collateral/amd-crl/vcek:Genoa")
            assert found.status_code == 200, found.text
            assert json.loads(found.content)["key"] == "vcek:Genoa"
        assert one.vendor.counted[CRL] == 1


def test_fetching_needs_a_cache(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from sealwright.cli import main

    assert main(["broker", "serve", str(tmp_path), "--fetch-collateral"]) == 2
    assert "--collateral" in capsys.readouterr().err
