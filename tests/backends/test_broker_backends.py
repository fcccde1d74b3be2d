"""A broker with more than one backend: use, move, outage, restart, approval. The second is the mock of a Managed HSM."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.backends.mocks import MockAzureHsm
from tests.backends.stands import settings_file, token
from tests.broker.support import Enclave, Kbs, World

from sealwright.broker import backend_admin
from sealwright.broker.backend.azure import AzureBackend
from sealwright.broker.rows import KeyRow
from sealwright.broker.service import Running
from sealwright.errors import RevokedError, SettingsError, UnavailableError, VerificationError

AZURE = {"kind": "azure-hsm", "url": "https://mock.managedhsm.azure.net", "key": "kek"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "broker")
    settings_file(world.root / "backends.json", {"hsm": AZURE})
    return world


@pytest.fixture
def mock(monkeypatch: pytest.MonkeyPatch) -> MockAzureHsm:
    mock = MockAzureHsm()
    mock.rotate()
    monkeypatch.setattr(
        backend_admin,
        "make_backend",
        lambda name, settings: AzureBackend(name, settings, transport=mock.transport(), token=token()),
    )
    return mock


@pytest.fixture
def running(world: World, mock: MockAzureHsm) -> Iterator[Running]:
    with world.open() as running:
        yield running


def keys(running: Running) -> dict[str, tuple[object, object]]:
    return {str(key["kid"]): (key["backend"], key["backend_version"]) for key in running.admin.list_keys()}


def actions(running: Running) -> list[tuple[Any, Any]]:
    return [(said["action"], said["verdict"]) for said in running.admin.decisions(50)]


def no_rest(running: Running) -> None:
    """Ask a backend again at once after it has failed."""
    running.core.backend._monotonic = iter(range(1 << 40, 1 << 41, 60)).__next__


def test_the_embedded_backend_is_active_at_first_and_says_what_it_is(world: World, running: Running) -> None:
    status = running.backends.status()
    assert (status["name"], status["exportable"], status["release"]) == ("embedded", True, "in-broker")
    made = running.admin.create_key("acme", "k1", "model", world.policy())
    assert made["backend"] == "embedded"
    assert made["root_key_exportable"] is True
    assert made["release"] == "in-broker"


async def test_keys_made_after_use_hang_on_the_backend_and_are_released(
    world: World, mock: MockAzureHsm
) -> None:
    with world.open() as running:
        used = running.backends.use("hsm")
        assert (used["name"], used["status"], used["exportable"]) == ("hsm", "active", False)
        dek = world.add_key(running)
        assert keys(running) == {"k1": ("hsm", mock.versions.last)}
        enclave = Enclave.make(world, running)
    with world.open() as running:  # the choice is in the rows, not in memory
        kbs = Kbs(running)
        got = await kbs.leased(enclave)
        assert await kbs.released(enclave, got) == dek
        assert running.backends.status()["keys"] == 1
        assert ("admin-backend-use", "grant") in actions(running)


async def test_all_keys_move_online_a_few_a_decision_and_open_to_the_same(
    world: World, running: Running
) -> None:
    deks = {f"k{number}": world.add_key(running, kid=f"k{number}") for number in range(10)}
    running.admin.revoke_key("k9")
    enclave = Enclave.make(world, running, {"acme": ["k0"]})
    kbs = Kbs(running)
    got = await kbs.leased(enclave)
    assert await kbs.released(enclave, got, "k0") == deks["k0"]
    running.backends.use("hsm")
    epoch = running.core.state.anchor.epoch
    first, second, third = (running.backends.move() for _ in range(3))
    assert (len(first["kids"]), first["left"]) == (8, 2)  # type: ignore[arg-type]
    assert (len(second["kids"]), second["left"]) == (2, 0)  # type: ignore[arg-type]
    assert (third["kids"], third["left"]) == ([], 0)
    assert running.core.state.anchor.epoch == epoch + 2
    moves = [said for said in running.admin.decisions(5) if said["action"] == "admin-backend-move"]
    assert [(said["epoch"], said["backend"]) for said in moves] == [(epoch + 2, "hsm"), (epoch + 1, "hsm")]
    assert {backend for backend, _ in keys(running).values()} == {"hsm"}
    assert {kid: world.sealing_key(running, kid) for kid in deks if kid != "k9"} == {
        kid: dek for kid, dek in deks.items() if kid != "k9"
    }
    assert await kbs.released(enclave, got, "k0") == deks["k0"]  # under the lease it had
    assert running.core.backend.unwrap(*_row(running, "k9")) == deks["k9"]


def _row(running: Running, kid: str) -> tuple[bytes, Any]:
    from sealwright.broker.core import wrap_context

    row = running.core.state.view().get(KeyRow, "key", kid)
    assert row is not None
    return row.wrapped, wrap_context(row)


def test_back_to_embedded_and_on_to_a_new_version(world: World, running: Running, mock: MockAzureHsm) -> None:
    dek = world.add_key(running)
    running.backends.use("hsm")
    running.backends.move()
    mock.rotate()
    assert running.backends.status()["keys_on_older_versions"] == 1
    assert running.backends.move()["kids"] == ["k1"]
    assert keys(running) == {"k1": ("hsm", mock.versions.last)}
    running.backends.use("embedded")
    assert running.backends.rotate("embedded")["version"] == "2"
    running.backends.move()
    assert keys(running) == {"k1": ("embedded", "2")}
    assert (world.root / "keys" / "kek-2").stat().st_mode & 0o777 == 0o600
    assert world.sealing_key(running, "k1") == dek


def test_a_move_that_is_cut_off_goes_on_later(world: World, running: Running, mock: MockAzureHsm) -> None:
    deks = {f"k{number}": world.add_key(running, kid=f"k{number}") for number in range(9)}
    running.backends.use("hsm")
    running.backends.move()
    mock.down = True
    with pytest.raises(UnavailableError) as caught:
        running.backends.move()
    assert caught.value.code == "backend-unavailable"
    mock.down = False
    no_rest(running)
    moved = running.backends.move()
    assert (len(moved["kids"]), moved["left"]) == (1, 0)  # type: ignore[arg-type]
    assert {kid: world.sealing_key(running, kid) for kid in deks} == deks


def test_a_key_that_is_lost_does_not_keep_the_others(
    world: World, running: Running, mock: MockAzureHsm
) -> None:
    running.backends.use("hsm")
    world.add_key(running, kid="lost")
    mock.versions.enabled[mock.versions.last] = False
    mock.rotate()
    dek = world.add_key(running, kid="safe")
    running.backends.use("embedded")
    moved = running.backends.move()
    assert (moved["kids"], moved["left"]) == (["safe"], 0)
    assert moved["failed"] == [{"kid": "lost", "code": "key-version-destroyed"}]
    with pytest.raises(RevokedError) as caught:
        running.backends.move()
    assert caught.value.code == "backend-move-stuck"
    assert world.sealing_key(running, "safe") == dek


async def test_while_the_backend_is_down_requests_are_refused_and_nothing_is_lost(
    world: World, running: Running, mock: MockAzureHsm
) -> None:
    running.backends.use("hsm")
    dek = world.add_key(running)
    enclave = Enclave.make(world, running)
    kbs = Kbs(running)
    got = await kbs.leased(enclave)
    mock.down = True
    for _ in range(2):  # the second one without asking the backend
        answer = await kbs.resource()
        assert (answer.status_code, answer.json()["code"]) == (503, "backend-unavailable")
    assert actions(running)[:2] == [("release", "refuse")] * 2
    await Kbs(running).leased(enclave)  # everybody else is served
    assert running.backends.status()["state"] == "backend-unavailable"
    assert running.admin.status()["keys"] == 1
    mock.down = False
    no_rest(running)
    assert await kbs.released(enclave, got) == dek


def blocked(running: Running, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Let the backend hang when it is asked to unwrap: (it was asked, let it go on)."""
    backend = running.core.backend.get("hsm")
    asked, go = threading.Event(), threading.Event()
    unwrap = backend.unwrap

    def hangs(*arguments: Any) -> Any:
        asked.set()
        assert go.wait(30)
        return unwrap(*arguments)

    monkeypatch.setattr(backend, "unwrap", hangs)
    return asked, go


async def test_a_backend_that_hangs_holds_nobody_else_up(
    world: World, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    running.backends.use("hsm")
    dek = world.add_key(running)
    enclave = Enclave.make(world, running)
    kbs = Kbs(running)
    got = await kbs.leased(enclave)
    asked, go = blocked(running, monkeypatch)
    release = asyncio.create_task(kbs.released(enclave, got))
    assert await asyncio.to_thread(asked.wait, 30)
    await Kbs(running).leased(enclave)
    go.set()
    assert await release == dek


async def test_a_key_revoked_while_it_is_unwrapped_is_not_released(
    world: World, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    running.backends.use("hsm")
    world.add_key(running)
    enclave = Enclave.make(world, running)
    kbs = Kbs(running)
    await kbs.leased(enclave)
    asked, go = blocked(running, monkeypatch)
    release = asyncio.create_task(kbs.resource())
    assert await asyncio.to_thread(asked.wait, 30)
    await asyncio.to_thread(running.admin.revoke_key, "k1")
    go.set()
    answer = await release
    assert (answer.status_code, answer.json()["code"]) == (401, "key-revoked")


def test_a_backend_that_fails_its_trial_is_not_used(running: Running, mock: MockAzureHsm) -> None:
    mock.exportable = True
    with pytest.raises(Exception, match="exportable") as caught:
        running.backends.use("hsm")
    assert caught.value.code == "backend-key-unfit"  # type: ignore[attr-defined]
    assert running.core.backend.active == "embedded"
    assert actions(running)[0] == ("admin-backend-use", "refuse")


def test_a_backend_that_opens_for_any_context_is_not_used(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = running.core.backend.get("hsm")
    unwrap = backend.unwrap

    def careless(wrapped: Any, _context: Any) -> Any:
        for context in (backend_admin._TRIAL, backend_admin._OTHER):
            try:
                return unwrap(wrapped, context)
            except VerificationError:
                continue
        raise AssertionError

    monkeypatch.setattr(backend, "unwrap", careless)
    with pytest.raises(VerificationError) as caught:
        running.backends.use("hsm")
    assert caught.value.code == "backend-unbound"


def test_changed_settings_have_to_be_approved(world: World, mock: MockAzureHsm) -> None:
    with world.open() as running:
        running.backends.use("hsm")
    settings_file(
        world.root / "backends.json", {"hsm": AZURE | {"url": "https://other.managedhsm.azure.net"}}
    )
    with pytest.raises(SettingsError) as caught, world.open():
        pass
    assert caught.value.code == "backend-changed"
    with world.open(approve=["hsm"]) as running:
        assert actions(running)[0] == ("admin-backend-approve", "grant")
    with world.open() as running:
        assert running.core.backend.active == "hsm"


@pytest.mark.parametrize("how", ["active", "wrapped"])
def test_a_backend_that_is_needed_and_not_in_the_settings_stops_the_start(
    world: World, mock: MockAzureHsm, how: str
) -> None:
    with world.open() as running:
        running.backends.use("hsm")
        if how == "wrapped":
            world.add_key(running)
            running.backends.use("embedded")
    (world.root / "backends.json").unlink()
    with pytest.raises(SettingsError) as caught, world.open():
        pass
    assert caught.value.code == "backend-unknown"


def test_a_former_backend_without_keys_may_go(world: World, mock: MockAzureHsm) -> None:
    with world.open() as running:
        running.backends.use("hsm")
        running.backends.use("embedded")
    (world.root / "backends.json").unlink()
    with world.open() as running:
        assert running.backends.status()["name"] == "embedded"


def test_no_key_and_no_token_is_written_anywhere(world: World, running: Running) -> None:
    from tests.backends.mocks import TOKEN

    running.backends.use("hsm")
    dek = world.add_key(running)
    running.backends.use("embedded")
    running.backends.move()
    written = b"".join(path.read_bytes() for path in world.root.rglob("*") if path.is_file())
    assert dek not in written
    assert dek.hex().encode() not in written
    assert TOKEN.encode() not in written


async def test_the_administrator_sees_and_uses_backends_over_http(world: World, running: Running) -> None:
    world.add_key(running)
    kbs = Kbs(running)
    headers = {"authorization": f"Bearer {(world.root / 'admin-token').read_text().strip()}"}
    base = "/sealwright/v1/admin"
    listed = (await kbs.http.get(f"{base}/backends", headers=headers)).json()["backends"]
    assert [(one["name"], one["state"]) for one in listed] == [("embedded", "ready"), ("hsm", "ready")]
    assert (await kbs.http.post(f"{base}/backends/hsm/use", headers=headers)).json()["status"] == "active"
    assert (await kbs.http.post(f"{base}/backends/move", headers=headers)).json()["kids"] == ["k1"]
    status = (await kbs.http.get(f"{base}/status", headers=headers)).json()
    assert (status["backend"]["name"], status["backend"]["keys"]) == ("hsm", 1)
    rotated = (await kbs.http.post(f"{base}/backends/hsm/rotate", headers=headers)).json()
    assert len(rotated["version"]) == 32
    unknown = await kbs.http.post(f"{base}/backends/nothing/use", headers=headers)
    assert (unknown.status_code, unknown.json()["code"]) == (400, "backend-unknown")
    assert (await kbs.http.get(f"{base}/backends")).status_code == 401


def test_bytes_of_a_row_that_are_no_wrap_are_refused(running: Running) -> None:
    from sealwright.broker.backend.ring import decode

    for raw in (b"", b"\x01", b"\x01\x00\x01a", b"\x02\x01a\x01b", b"\x01\x01\xff\x011x", b"\x01\x05ab"):
        with pytest.raises(VerificationError) as caught:
            decode(raw)
        assert caught.value.code == "key-unwrap-failed"


def test_settings_are_strict(tmp_path: Path) -> None:
    from sealwright.broker.backend.settings import load

    path = tmp_path / "backends.json"
    for backends, code in (
        ({"embedded": AZURE}, "backend-name-taken"),
        ({"hsm": AZURE | {"extra": 1}}, "malformed-document"),
        ({"hsm": AZURE | {"kind": "other"}}, "malformed-document"),
        ({"hsm": AZURE | {"timeout_s": 0}}, "malformed-document"),
        ({"../x": AZURE}, "malformed-document"),
    ):
        settings_file(path, backends)
        with pytest.raises(SettingsError) as caught:
            load(path)
        assert caught.value.code == code
    path.write_text(json.dumps({"format": "sealwright-backends/v2", "backends": {}}))
    with pytest.raises(SettingsError):
        load(path)
    assert load(tmp_path / "none.json") == {}
