"""What the enclave refuses of a broker: each answer bent on its way, each refusal at its stage."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.enclave.support import KID, TENANT, World

from sealwright.crypto.canonical import canonical
from sealwright.crypto.hpke import HpkePublicKey, Kem, seal_to
from sealwright.enclave import broker_client
from sealwright.enclave.broker_client import BrokerClient, BrokerRefusal, Session
from sealwright.enclave.clock import EnclaveClock
from sealwright.enclave.http import Answer, HttpConnection
from sealwright.enclave.identity import Identity
from sealwright.enclave.keyset import EnclaveKeys
from sealwright.errors import (
    MessageFormatError,
    RevokedError,
    SealwrightError,
    UnavailableError,
    VerificationError,
)
from sealwright.protocol.lease import BrokerKeys, Callers, Lease
from sealwright.protocol.release import Release

Bend = Callable[[bytes], bytes]


class Wire:
    """Bends answers by the end of their path."""

    def __init__(self) -> None:
        self.bends: dict[str, Bend] = {}

    def connection(self) -> type[HttpConnection]:
        wire = self

        class Bent(HttpConnection):
            def request(self, method: str, path: str, *rest: Any, **more: Any) -> Answer:
                answer = super().request(method, path, *rest, **more)
                for end, bend in wire.bends.items():
                    if path.endswith(end):
                        return answer._replace(status=200, body=bend(answer.body))
                return answer

        return Bent


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    wire = Wire()
    monkeypatch.setattr(broker_client, "HttpConnection", wire.connection())
    return wire


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    with world.broker():
        yield world


def _session(world: World, elapsed: Callable[[], float] = lambda: 0.0) -> Session:
    config = world.config()
    workload = world.workload(extra_fds={})
    identity = Identity(
        platform="software",
        config=config,
        config_bytes=config.encode(),
        config_digest=config.digest(),
        keys=EnclaveKeys.generate("default", created=datetime.now(UTC)),
        openings=world.openings,
        quote=workload.quote,
    )
    session = BrokerClient(config.brokers[0], workload.connect, EnclaveClock(elapsed)).attest(identity)
    session.close()  # the next request opens another connection
    return session


def _take(world: World, session: Session) -> bytearray:
    try:
        grant = session.lease(TENANT, answers=0)
        return session.release(grant, KID, world.openings[0].artefacts[0].manifest_digest)
    finally:
        session.close()


def test_a_key_is_released(world: World, wire: Wire) -> None:
    assert len(_take(world, _session(world))) == 32


def _bent_lease(world: World, signer: Ed25519PrivateKey | None = None, **changes: Any) -> Bend:
    def bend(body: bytes) -> bytes:
        parts = json.loads(body)
        lease = Lease.unverified(canonical(parts["lease"])).model_copy(update=changes)
        parts["lease"] = json.loads(lease.sign(signer or world.running.core.secrets.release))
        return json.dumps(parts).encode()

    return bend


@pytest.mark.parametrize(
    ("changes", "kind", "code"),
    [
        ({"keyset_digest": bytes(32)}, VerificationError, "lease-mismatch"),
        ({"config_digest": bytes(32)}, VerificationError, "lease-mismatch"),
        ({"ear_digest": bytes(32)}, VerificationError, "lease-mismatch"),
        ({"tenant": "other"}, VerificationError, "lease-mismatch"),
        ({"lease_id": bytes(16)}, VerificationError, "lease-mismatch"),  # the callers are of another one
        ({"not_before": datetime(2020, 1, 1, tzinfo=UTC)}, SealwrightError, "broker-keys-not-yet"),
        ({"not_after": datetime(2020, 1, 1, tzinfo=UTC)}, RevokedError, "lease-ended"),
    ],
)
def test_a_lease_that_is_not_ours(
    world: World, wire: Wire, changes: dict[str, Any], kind: type[Exception], code: str
) -> None:
    wire.bends["/lease"] = _bent_lease(world, **changes)
    with pytest.raises(kind) as caught:
        _take(world, _session(world))
    assert caught.value.code == code  # type: ignore[attr-defined]


def test_a_rogue_broker_is_refused_by_its_root_and_its_keys(world: World, wire: Wire) -> None:
    rogue = Ed25519PrivateKey.generate()
    wire.bends["/lease"] = _bent_lease(world, rogue)
    with pytest.raises(VerificationError) as caught:
        _take(world, _session(world))
    assert (caught.value.stage, caught.value.code) == ("lease", "untrusted-signer")

    def own_keys(body: bytes) -> bytes:
        parts = json.loads(_bent_lease(world, rogue)(body))
        keys = BrokerKeys.unverified(canonical(parts["broker_keys"]))
        keys = keys.model_copy(update={"release_key": rogue.public_key().public_bytes_raw()})
        parts["broker_keys"] = json.loads(keys.sign(rogue))
        return json.dumps(parts).encode()

    wire.bends["/lease"] = own_keys
    with pytest.raises(VerificationError) as caught:
        _take(world, _session(world))
    assert (caught.value.stage, caught.value.code) == ("broker", "untrusted-signer")


def test_callers_of_another_signer_are_refused(world: World, wire: Wire) -> None:
    def bend(body: bytes) -> bytes:
        parts = json.loads(body)
        callers = Callers.unverified(canonical(parts["callers"]))
        parts["callers"] = json.loads(callers.sign(Ed25519PrivateKey.generate()))
        return json.dumps(parts).encode()

    wire.bends["/lease"] = bend
    with pytest.raises(VerificationError) as caught:
        _take(world, _session(world))
    assert caught.value.code == "untrusted-signer"


def _bent_release(world: World, signer: Ed25519PrivateKey | None = None, **changes: Any) -> Bend:
    def bend(body: bytes) -> bytes:
        release = Release.unverified(body).model_copy(update=changes)
        return release.sign(signer or world.running.core.secrets.release)

    return bend


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": bytes(32)},
        {"tee_pubkey": bytes(32)},
        {"kid": "another"},
        {"tenant": "another"},
        {"manifest_digest": bytes(32)},
        {"lease_id": bytes(16)},
        {"lease_digest": bytes(32)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_release_for_something_else(world: World, wire: Wire, changes: dict[str, Any]) -> None:
    wire.bends[f"/key/{KID}"] = _bent_release(world, **changes)
    with pytest.raises(VerificationError) as caught:
        _take(world, _session(world))
    assert (caught.value.stage, caught.value.code) == ("binding", "release-mismatch")


def test_a_key_of_someone_elses_making_is_refused(world: World, wire: Wire) -> None:
    wire.bends[f"/key/{KID}"] = _bent_release(world, Ed25519PrivateKey.generate())
    with pytest.raises(VerificationError) as caught:
        _take(world, _session(world))
    assert (caught.value.stage, caught.value.code) == ("signature", "untrusted-signer")

    def other_key(body: bytes) -> bytes:
        release = Release.unverified(body)
        to = HpkePublicKey(
            kem=Kem.XWING, raw=EnclaveKeys.generate("default", created=datetime.now(UTC)).releases.public.raw
        )
        enc, ciphertext = seal_to(to, release.hpke_info(), b"", os.urandom(32))
        return _bent_release(world, enc=enc, ciphertext=ciphertext)(body)

    wire.bends[f"/key/{KID}"] = other_key
    with pytest.raises(VerificationError) as caught:
        _take(world, _session(world))
    assert caught.value.code == "hpke-open-failed"


def test_an_old_session_replayed_cannot_turn_enclave_time_back(world: World, wire: Wire) -> None:
    """Host clock and network are the attacker's: a lease past its end stays ended."""
    now = [0.0]
    config, workload = world.config(), world.workload(extra_fds={})
    clock = EnclaveClock(lambda: now[0])
    identity = Identity(
        platform="software",
        config=config,
        config_bytes=config.encode(),
        config_digest=config.digest(),
        keys=EnclaveKeys.generate("default", created=datetime.now(UTC)),
        openings=world.openings,
        quote=workload.quote,
    )
    recorded: dict[str, bytes] = {}
    for path in ("/auth", "/attest", "/lease"):
        wire.bends[path] = lambda body, path=path: recorded.setdefault(path, body)  # type: ignore[misc]
    client = BrokerClient(config.brokers[0], workload.connect, clock)
    session = client.attest(identity)
    first = session.lease(TENANT, answers=0)
    session.close()
    now[0] += (first.lease.not_after - first.lease.not_before + timedelta(seconds=1)).total_seconds()
    identity.nonces.clear()  # the repeated nonce alone is refused; the clock does not rest on that
    replayed = client.attest(identity)
    with pytest.raises(RevokedError) as caught:
        replayed.lease(TENANT, answers=0)
    replayed.close()
    assert caught.value.code == "lease-ended"
    assert clock.now() > first.lease.not_after


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/auth", b"tulip"),
        ("/auth", b'{"nonce":"AAAA","extra-params":{"sealwright":"keyset/v1"}}'),
        ("/auth", json.dumps({"nonce": "A" * 43 + "=", "extra-params": ""}).encode()),
        ("/attest", b'{"token":5}'),
        ("/attest", b"[]"),
        ("/lease", b"{}"),
        ("/lease", b'{"lease":{},"callers":{},"broker_keys":{}}'),
        (f"/key/{KID}", b"tulip"),
    ],
)
def test_what_is_not_the_protocol_is_malformed(world: World, wire: Wire, path: str, body: bytes) -> None:
    wire.bends[path] = lambda _: body
    with pytest.raises(MessageFormatError) as caught:
        _take(world, _session(world))
    assert "tulip" not in str(caught.value)


def test_the_brokers_own_no_is_told_apart_from_silence(world: World) -> None:
    session = _session(world)
    with pytest.raises(BrokerRefusal):
        session.lease("nobody", answers=0)
    session.close()
    config = world.config()
    client = BrokerClient(
        config.brokers[0],
        world.workload(extra_fds={}, peers={("broker.test", 80): ("127.0.0.1", 1)}).connect,
        EnclaveClock(),
    )
    with pytest.raises(UnavailableError) as caught:
        client.proof("00" * 32)
    assert caught.value.code == "broker-unreachable"
