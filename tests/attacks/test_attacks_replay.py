"""A host between enclave and broker that keeps answers back, or gives old ones again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.enclave.support import TENANT, World

from sealwright.enclave import broker_client
from sealwright.enclave.broker_client import BrokerClient, Session
from sealwright.enclave.clock import EnclaveClock
from sealwright.enclave.http import Answer, HttpConnection
from sealwright.enclave.identity import Identity
from sealwright.enclave.keyset import EnclaveKeys
from sealwright.errors import VerificationError


class Host:
    """Records answers by the end of their path; gives the recorded ones while `replaying` names them."""

    def __init__(self) -> None:
        self.kept: dict[str, Answer] = {}
        self.replaying: set[str] = set()
        self.elapsed = 0.0
        self.delay: dict[str, float] = {}

    def connection(self) -> type[HttpConnection]:
        host = self

        class Between(HttpConnection):
            def request(self, method: str, path: str, *rest: Any, **more: Any) -> Answer:
                end = path.rsplit("/", 1)[-1]
                if end not in host.replaying:
                    host.kept[end] = super().request(method, path, *rest, **more)
                host.elapsed += host.delay.get(end, 0.0)
                return host.kept[end]

        return Between


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(broker_client, "HttpConnection", host.connection())
    return host


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    with world.broker():
        yield world


def _boot(world: World, host: Host) -> tuple[BrokerClient, Identity, EnclaveClock]:
    config, workload = world.config(), world.workload(extra_fds={})
    clock = EnclaveClock(lambda: host.elapsed)
    identity = Identity(
        platform="software",
        config=config,
        config_bytes=config.encode(),
        config_digest=config.digest(),
        keys=EnclaveKeys.generate("default", created=world.clock()),
        openings=world.openings,
        quote=workload.quote,
    )
    return BrokerClient(config.brokers[0], workload.connect, clock), identity, clock


def _attest(client: BrokerClient, identity: Identity) -> Session:
    session = client.attest(identity)
    session.close()  # the next request opens another connection
    return session


def test_a_lease_held_back_by_the_host_runs_from_its_session(world: World, host: Host) -> None:
    # The host knows the cookie: it fetches the lease at once, and trickles the result for an hour.
    # Counted from the request for the lease, enclave time would be an hour early, and keys kept so long.
    client, identity, clock = _boot(world, host)
    host.delay["attest"] = 300.0
    session = _attest(client, identity)
    grant = session.lease(TENANT, answers=0)
    session.close()
    assert clock.now() >= grant.lease.not_before + timedelta(seconds=300)


def test_the_answers_of_an_earlier_session_are_refused(world: World, host: Host) -> None:
    # An older lease has callers who were removed since, and puts the next renewal off.
    client, identity, _ = _boot(world, host)
    session = _attest(client, identity)
    session.lease(TENANT, answers=0)
    session.close()
    host.replaying = {"auth", "attest", "lease"}
    with pytest.raises(VerificationError) as caught:
        _attest(client, identity)
    assert (caught.value.code, caught.value.stage) == ("nonce-used", "nonce")
    host.replaying = {"attest", "lease"}
    with pytest.raises(VerificationError) as caught:
        _attest(client, identity)
    assert (caught.value.code, caught.value.stage) == ("ear-mismatch", "attest")
    host.replaying = {"lease"}
    session = _attest(client, identity)
    with pytest.raises(VerificationError) as caught:
        session.lease(TENANT, answers=0)
    session.close()
    assert caught.value.code == "lease-mismatch"
