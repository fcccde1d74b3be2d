"""Against the broker: a rogue enclave's journal, promises that nobody keeps, openings that are not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.broker.support import Enclave, Kbs, World
from tests.broker.test_journal import batch, post, receipt

from sealwright.broker.routes import Health, rows_hold
from sealwright.broker.service import Running
from sealwright.crypto.canonical import canonical
from sealwright.errors import MessageFormatError, VerificationError
from sealwright.protocol.commitment import Openings


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "broker")


@pytest.fixture
def running(world: World) -> Iterator[Running]:
    with world.open() as running:
        world.add_key(running)
        yield running


async def test_receipts_naming_another_enclaves_lease_do_not_count_as_its(
    world: World, running: Running
) -> None:
    victim, rogue = Enclave.make(world, running), Enclave.make(world, running)
    held = await Kbs(running).leased(victim)
    kbs = Kbs(running)
    got = await kbs.leased(rogue)
    forged, _ = receipt(rogue, got, lease_id=held.lease.lease_id)
    size = running.core.state.store.count_receipts(held.lease.lease_id)
    answer = await post(kbs, batch(got.broker_keys, rogue.keyset.digest(), forged))
    assert (answer.status_code, answer.json()["code"]) == (401, "receipt-mismatch")
    assert running.core.state.store.count_receipts(held.lease.lease_id) == size == 0
    honest, _ = receipt(rogue, got)
    assert (await post(kbs, batch(got.broker_keys, rogue.keyset.digest(), honest))).status_code == 200


async def test_a_witness_quorum_that_nobody_would_check_is_refused(world: World, running: Running) -> None:
    enclave = Enclave.make(world, running)
    log = enclave.config.to_json()["log"]
    answer = await Kbs(running).attest(enclave.with_config(log={**log, "quorum": 1}))
    assert (answer.status_code, answer.json()["code"]) == (401, "log-quorum-unsupported")


@pytest.mark.parametrize("name", ["", "../x", "a" * 65, "é"])
def test_openings_with_odd_names_are_malformed(name: str) -> None:
    fields = {name: {"salt": "A" * 43, "value": ""}}
    with pytest.raises(MessageFormatError):
        Openings.parse(canonical({"fields": fields, "record_id": "0" * 32}))


async def test_made_up_sessions_do_not_fill_the_log(world: World, running: Running) -> None:
    enclave, size = Enclave.make(world, running), running.core.state.ledger.size
    for _ in range(3):
        kbs = Kbs(running)
        nonce = await kbs.auth()
        kbs.http.cookies.clear()
        kbs.http.cookies.set("kbs-session-id", os.urandom(16).hex())
        attested = await kbs.http.post("/kbs/v0/attest", json=enclave.attest_body(nonce))
        answers = [attested, await kbs.lease(), await kbs.resource()]
        assert [(a.status_code, a.json()["code"]) for a in answers] == [(401, "session-unknown")] * 3
    assert running.core.state.ledger.size == size


def test_asking_for_health_hashes_the_rows_once_a_second(running: Running) -> None:
    state = running.core.state
    looked, at, view = [], [0.0], state.view

    def counted() -> object:
        looked.append(at[0])
        if at[0] > 2:
            raise VerificationError("", code="row-tampered", stage="state")
        return view()

    state.view = counted  # type: ignore[method-assign,assignment]
    health = Health(partial(rows_hold, running.core), lambda: at[0])
    for moment in (0, 0.5, 0.99, 1.0, 1.5):
        at[0] = moment
        health.check()
    for moment in (2.5, 2.6):
        at[0] = moment
        with pytest.raises(VerificationError):
            health.check()
    assert looked == [0, 1.0, 2.5]
