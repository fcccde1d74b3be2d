"""GPUs beside an enclave: their evidence is collected before the quote, which covers it; broker and client check both."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.enclave.support import KID, TENANT, World

from sealwright.appraisal.policy import KeyPolicy
from sealwright.audit.report import check_bundle
from sealwright.client.verifier import verify_attestation
from sealwright.crypto.canonical import canonical
from sealwright.enclave.broker_client import BrokerClient, BrokerRefusal, Session
from sealwright.enclave.clock import EnclaveClock
from sealwright.enclave.identity import Identity
from sealwright.enclave.keyset import EnclaveKeys
from sealwright.endorsement.x509 import fingerprint
from sealwright.errors import SealwrightError, UnavailableError
from sealwright.evidence.envelope import DeviceEvidence, EvidenceEnvelope
from sealwright.evidence.nvgpu import GpuEvidence
from sealwright.protocol.attestation import AttestationBundle
from sealwright.protocol.report_data import Purpose, device_nonce
from sealwright.testing.nvgpu import FakeDevice, FakeNvidia
from sealwright.testing.software import FakePlatformWarning

NOT_QUOTED = ("report-data", "report-data-mismatch")  # of the CPU's evidence
STALE_DEVICE = ("nonce", "report-data-mismatch")
GRANTED = ("", "granted")
Devices = list[dict[str, Any]]  # of an envelope, as JSON values
Bend = Callable[["Machine", bytes, Devices], Devices]  # nonce of the devices, what the enclave sends


@dataclass
class Machine(World):
    """The world of an enclave that has two GPUs beside it."""

    def __post_init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FakePlatformWarning)
            self.nvidia = FakeNvidia(datetime.now(UTC).replace(microsecond=0))
        self.gpus: list[FakeDevice] = [self.nvidia.device() for _ in range(2)]
        self.asked: list[bytes] = []
        super().__post_init__()

    def policy(self, **changes: Any) -> dict[str, Any]:
        made = super().policy(**changes)
        made["platforms"]["nvgpu"] = {
            "architectures": ["HOPPER"],
            "driver": {"exact": ["550.90.07"]},
            "vbios": {"minimum": "96.00.9F.00.01"},
            "count": {"minimum": 2, "maximum": 2},
            "roots": [fingerprint(self.nvidia.device_root.certificate).hex()],
            "rim_roots": [fingerprint(self.nvidia.rim_root.certificate).hex()],
        }
        return made

    def collect(self, nonce: bytes) -> Sequence[DeviceEvidence]:
        """Do as `collect_gpus` does."""
        self.asked.append(nonce)
        return [self.nvidia.evidence(gpu, nonce) for gpu in self.gpus]

    def identity(self, **changes: Any) -> Identity:
        config = self.config()
        workload = self.workload(extra_fds={})
        settings: dict[str, Any] = {
            "platform": "software",
            "config": config,
            "config_bytes": config.encode(),
            "config_digest": config.digest(),
            "keys": EnclaveKeys.generate("default", created=datetime.now(UTC)),
            "openings": self.openings,
            "quote": workload.quote,
            "devices": self.collect,
            **changes,
        }
        return Identity(**{name: value for name, value in settings.items() if value is not None})

    def attest(self, identity: Identity) -> Session:
        connect = self.workload(extra_fds={}).connect
        session = BrokerClient(identity.config.brokers[0], connect, EnclaveClock()).attest(identity)
        session.close()  # the next request opens another connection
        return session


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    with machine.broker():
        yield machine


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the envelopes that are made."""
    made: list[dict[str, Any]] = []
    genuine = Identity.evidence

    def noting(self: Identity, purpose: Purpose, nonce: bytes) -> dict[str, Any]:
        made.append(genuine(self, purpose, nonce))
        return made[-1]

    monkeypatch.setattr(Identity, "evidence", noting)
    return made


def test_granted(machine: Machine, sent: list[dict[str, Any]]) -> None:
    identity = machine.identity()
    session = machine.attest(identity)
    grant = session.lease(TENANT, answers=0)
    key = session.release(grant, KID, machine.openings[0].artefacts[0].manifest_digest)
    session.close()
    assert len(key) == 32
    (envelope,) = sent
    devices = EvidenceEnvelope.parse(canonical(envelope)).devices
    (nonce,) = machine.asked
    assert [GpuEvidence.parse(one.evidence).report.request_nonce for one in devices] == [nonce, nonce]
    (asked,) = identity.nonces
    assert nonce == device_nonce(asked, identity.keys.digest)


def test_an_enclave_without_devices_has_no_such_member(machine: Machine) -> None:
    identity = machine.identity(devices=None)
    assert "devices" not in identity.evidence(Purpose.LEASE, bytes(32))
    assert machine.asked == []


def another_nonce(machine: Machine, nonce: bytes, _devices: Devices) -> Devices:
    return [machine.nvidia.evidence(gpu, nonce[::-1]).to_json() for gpu in machine.gpus]


def swapped(_machine: Machine, _nonce: bytes, devices: Devices) -> Devices:
    return devices[::-1]


def added(machine: Machine, nonce: bytes, devices: Devices) -> Devices:
    return [*devices, machine.nvidia.evidence(machine.nvidia.device(), nonce).to_json()]


def removed(_machine: Machine, _nonce: bytes, devices: Devices) -> Devices:
    return devices[:1]


def replaced(machine: Machine, nonce: bytes, devices: Devices) -> Devices:
    """Put fresh evidence of the same device in its place: it is genuine, and not what was quoted."""
    return [machine.nvidia.evidence(machine.gpus[0], nonce).to_json(), devices[1]]


def retyped(_machine: Machine, _nonce: bytes, devices: Devices) -> Devices:
    return [devices[0] | {"type": "nvswitch"}, devices[1]]


@pytest.fixture
def bent(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> Callable[[Bend], None]:
    """Let a host change the devices in an envelope after it was quoted."""

    def bend(how: Bend) -> None:
        genuine = Identity.evidence

        def bending(self: Identity, purpose: Purpose, nonce: bytes) -> dict[str, Any]:
            made = genuine(self, purpose, nonce)
            return made | {"devices": how(machine, device_nonce(nonce, self.keys.digest), made["devices"])}

        monkeypatch.setattr(Identity, "evidence", bending)

    return bend


@pytest.mark.parametrize("how", [another_nonce, swapped, added, removed, replaced, retyped])
def test_what_was_not_quoted_is_refused(machine: Machine, bent: Callable[[Bend], None], how: Bend) -> None:
    bent(how)
    assert refusal(machine, machine.identity()) == NOT_QUOTED


@pytest.mark.parametrize(
    ("devices", "code"),
    [
        (lambda m, n: m.collect(n[::-1]), STALE_DEVICE),  # quoted, and stale
        (lambda m, n: m.collect(n)[:1], ("appraisal", "device-count-not-allowed")),
        (lambda m, n: (), ("appraisal", "device-count-not-allowed")),
        (lambda m, n: m.collect(n)[:1] * 2, ("devices", "duplicate-device")),
    ],
)
def test_what_was_quoted_is_judged(
    machine: Machine, devices: Callable[[Machine, bytes], Sequence[DeviceEvidence]], code: tuple[str, str]
) -> None:
    identity = machine.identity(devices=lambda nonce: devices(machine, nonce))
    assert refusal(machine, identity) == code


def test_devices_of_another_keyset_are_refused(machine: Machine) -> None:
    """The host lends the GPUs of one enclave to another: their nonce names the keyset."""
    lent = EnclaveKeys.generate("default", created=datetime.now(UTC))
    nonces: set[bytes] = set()
    identity = machine.identity(
        nonces=nonces, devices=lambda _: machine.collect(device_nonce(next(iter(nonces)), lent.digest))
    )
    assert refusal(machine, identity) == STALE_DEVICE


def test_without_its_devices_an_enclave_does_not_attest(machine: Machine) -> None:
    def silent(_nonce: bytes) -> Sequence[DeviceEvidence]:
        raise UnavailableError("no driver", code="gpu-driver-missing", stage="collect")

    with pytest.raises(UnavailableError) as caught:
        machine.attest(machine.identity(devices=silent))
    assert caught.value.code == "gpu-driver-missing"


def refusal(machine: Machine, identity: Identity) -> tuple[str, str]:
    """Return stage and code that the broker logs, having refused."""
    with pytest.raises(BrokerRefusal):
        machine.attest(identity)
    logged = machine.running.admin.decisions(1)[0]
    assert (logged["verdict"], logged["action"]) == ("refuse", "attest")
    return str(logged["stage"]), str(logged["code"])


# The client that asks the enclave checks the same.


def bundle(machine: Machine, identity: Identity, nonce: bytes) -> dict[str, Any]:
    session = machine.attest(identity)
    grant = session.lease(TENANT, answers=0)
    session.close()
    return AttestationBundle(
        evidence=identity.evidence(Purpose.SERVE, nonce),
        config=identity.config_bytes,
        keyset=identity.keys.keyset.encode(),
        broker_keys=json.loads(grant.broker_keys_envelope),
        lease=json.loads(grant.lease_envelope),
        ear=grant.ear,
    ).to_json()


def checked(machine: Machine, said: dict[str, Any], nonce: bytes) -> tuple[str, str]:
    try:
        verify_attestation(canonical(said), nonce=nonce, trust=machine.trust(), at=datetime.now(UTC))
    except SealwrightError as exc:
        return exc.stage, exc.code
    return GRANTED


def test_a_client_checks_the_devices_too(machine: Machine) -> None:
    nonce, identity = b"n" * 32, machine.identity()
    said = bundle(machine, identity, nonce)
    assert checked(machine, said, nonce) == GRANTED
    evidence, asked = said["evidence"], device_nonce(nonce, identity.keys.digest)
    for how in (another_nonce, swapped, added, removed, replaced):
        changed = evidence | {"devices": how(machine, asked, evidence["devices"])}
        assert checked(machine, said | {"evidence": changed}, nonce) == NOT_QUOTED
    for devices, code in (
        (lambda n: machine.collect(n[::-1]), STALE_DEVICE),
        (lambda n: (), ("appraisal", "device-count-not-allowed")),
    ):
        other = machine.identity(keys=identity.keys, devices=devices)
        changed = other.evidence(Purpose.SERVE, nonce)
        assert checked(machine, said | {"evidence": changed}, nonce) == code


def test_an_auditor_with_a_policy_checks_the_devices_too(machine: Machine) -> None:
    """Devices that answered another nonce, quoted by the enclave all the same: the policy alone sees it."""
    nonce, identity = b"n" * 32, machine.identity()
    said = bundle(machine, identity, nonce)
    policy = KeyPolicy.from_json(machine.policy())

    def looked_at(said: dict[str, Any], nonce: bytes | None) -> tuple[str, str]:
        try:
            check_bundle(canonical(said), rules=policy, nonce=nonce, at=datetime.now(UTC))
        except SealwrightError as exc:
            return exc.stage, exc.code
        return GRANTED

    assert looked_at(said, nonce) == GRANTED
    assert looked_at(said, None) == GRANTED  # freshness is not judged, and the report says so
    assert looked_at(said, b"m" * 32) == NOT_QUOTED
    other = machine.identity(keys=identity.keys, devices=lambda n: machine.collect(n[::-1]))
    stale = said | {"evidence": other.evidence(Purpose.SERVE, nonce)}
    assert looked_at(stale, nonce) == STALE_DEVICE
