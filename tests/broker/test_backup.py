"""Backups: made while the broker works, put back exactly or into a new log, and nothing in between."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.broker.support import NOW, Enclave, Kbs, World

from sealwright.broker.backup import Manifest, back_up, log_paths
from sealwright.broker.restore import open_source, restore_exactly, restore_into_new_log
from sealwright.broker.settings import Layout
from sealwright.errors import AppraisalError, FormatError, SealwrightError, VerificationError


def backed_up(world: World) -> bytes:
    out = io.BytesIO()
    with open_source(Layout(root=world.root), None) as source:
        back_up(source, out, at=NOW)
    return out.getvalue()


def elsewhere(world: World, folder: Path) -> World:
    """Return another machine with the broker's keys and settings, and nothing else."""
    other = World.__new__(World)
    other.root, other.clock, other.holder, other.owner = folder, world.clock, world.holder, world.owner
    other.platform, other.broker_root, other.log_key = world.platform, world.broker_root, world.log_key
    folder.mkdir(mode=0o700)
    shutil.copytree(world.root / "keys", folder / "keys")
    shutil.copy(world.root / "settings.json", folder)
    return other


def restored(raw: bytes, world: World, **options: Any) -> Manifest:
    options = {"clock": world.clock, "holder": world.holder} | options
    return restore_exactly(io.BytesIO(raw), Layout(root=world.root), None, **options)


@pytest.fixture
def held(tmp_path: Path) -> World:
    world = World(tmp_path / "broker", holder=tmp_path / "held")
    with world.open() as running:
        world.add_key(running)
        running.admin.add_caller("acme", "anna")
    return world


async def test_a_backup_that_is_put_back_goes_on_as_the_broker_would(held: World, tmp_path: Path) -> None:
    with held.open() as running:
        await Kbs(running).leased(Enclave.make(held, running))
        before = running.admin.decisions(50, openings=True)
        raw = backed_up(held)  # while it works
    other = elsewhere(held, tmp_path / "other")
    manifest = restored(raw, other)
    with other.open() as running:
        newest, *rest = running.admin.decisions(51, openings=True)
        assert (newest["action"], newest["backup"]) == ("restore", manifest.backup_id.hex())
        assert rest == before  # salts included
        assert running.admin.callers("acme") == ["anna"]
        kbs = Kbs(running)
        enclave = Enclave.make(other, running)
        assert len(await kbs.released(enclave, await kbs.leased(enclave))) == 32


def test_a_backup_shows_nothing_without_the_keys(held: World) -> None:
    raw = backed_up(held)
    for secret in (b"anna", b"acme", b"admin-caller-add", b"model", b"policy"):
        assert secret not in raw


def test_a_backup_from_before_the_last_decision_is_refused_by_the_holder(held: World, tmp_path: Path) -> None:
    raw = backed_up(held)
    with held.open() as running:
        running.admin.revoke_key("k1")
    other = elsewhere(held, tmp_path / "other")
    with pytest.raises(VerificationError) as caught:
        restored(raw, other)
    assert caught.value.code == "log-rolled-back"


async def test_into_a_new_log_nothing_is_released_before_its_owner_says_so_again(
    held: World, tmp_path: Path
) -> None:
    raw = backed_up(held)
    with held.open() as running:
        epoch = running.core.state.anchor.epoch
        running.admin.revoke_key("k1")
    other = elsewhere(held, tmp_path / "other")
    other.holder = tmp_path / "held-2"
    options = {"clock": other.clock, "holder": other.holder, "new_holder": True}
    restore_into_new_log(io.BytesIO(raw), Layout(root=other.root), None, origin="broker/two", **options)
    with other.open() as running:
        (made,) = running.admin.decisions(5)
        assert (made["action"], made["epoch"]) == ("restore-into-new-log", epoch + 1)
        assert running.admin.key("k1")["status"] == "active"  # the revocation is lost
        other.log_key = running.core.secrets.log_key
        assert other.log_key.startswith("broker/two+")
        enclave = Enclave.make(other, running)
        answer = await Kbs(running).attest(enclave)
        assert answer.status_code == 401
        (why, *_) = running.admin.decisions(1)
        assert why["code"] != "none"
        assert why["verdict"] == "refuse"
        running.admin.set_policy("k1", other.policy())
        kbs = Kbs(running)
        assert len(await kbs.released(enclave, await kbs.leased(enclave))) == 32


def test_a_new_log_has_a_new_name(held: World, tmp_path: Path) -> None:
    other = elsewhere(held, tmp_path / "other")
    origin = held.log_key.split("+")[0]
    with pytest.raises(SealwrightError) as caught:
        restore_into_new_log(io.BytesIO(backed_up(held)), Layout(root=other.root), None, origin=origin)
    assert caught.value.code == "restore-origin"


def test_a_backup_goes_into_an_empty_place_only(held: World) -> None:
    with pytest.raises(SealwrightError) as caught:
        restored(backed_up(held), held)
    assert caught.value.code == "restore-not-empty"


def rewritten(raw: bytes, bend: Callable[[str, bytes], tuple[str, bytes] | None]) -> bytes:
    """Return the backup with each part bent, or left out."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(raw)) as source, tarfile.open(fileobj=out, mode="w|") as target:
        for member in source:
            file = source.extractfile(member)
            assert file is not None
            bent = bend(member.name, file.read())
            if bent is not None:
                member.name, body = bent
                member.size = len(body)
                target.addfile(member, io.BytesIO(body))
    return out.getvalue()


def flip(wanted: str) -> Callable[[str, bytes], tuple[str, bytes]]:
    def bend(name: str, raw: bytes) -> tuple[str, bytes]:
        if not name.startswith(wanted):
            return name, raw
        middle = len(raw) // 2
        return name, raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]

    return bend


def without(wanted: str) -> Callable[[str, bytes], tuple[str, bytes] | None]:
    return lambda name, raw: None if name.startswith(wanted) else (name, raw)


def renamed(wanted: str, to: str) -> Callable[[str, bytes], tuple[str, bytes]]:
    return lambda name, raw: (to if name.startswith(wanted) else name, raw)


BENDS = [
    ("rows", flip("rows"), {"sealed-value-foreign"}),
    ("an opening", flip("openings/"), {"sealed-value-foreign"}),
    ("entries", flip("log/tile/entries"), {"log-entry-edited", "malformed-bundle"}),
    ("a tile", flip("log/tile/0"), {"log-entry-edited", "log-root-mismatch"}),
    (
        "the manifest",
        flip("manifest"),
        {"bad-signature", "malformed-base64", "not-canonical", "malformed-document"},
    ),
    ("no manifest", without("manifest"), {"malformed-backup"}),
    ("no rows", without("rows"), {"malformed-backup"}),
    ("no log", without("log/"), {"malformed-backup"}),
    ("no openings", without("openings/"), {"opening-missing"}),
    ("a path out", renamed("log/tile/0", "log/../../keys/kek"), {"malformed-path"}),
    ("an unknown part", renamed("rows", "other"), {"malformed-backup"}),
    ("an opening as rows", renamed("openings/", "rows"), {"malformed-backup", "sealed-value-foreign"}),
]


@pytest.mark.parametrize(("bend", "codes"), [case[1:] for case in BENDS], ids=[case[0] for case in BENDS])
def test_a_bent_backup_is_refused(bend: Any, codes: set[str], held: World, tmp_path: Path) -> None:
    raw = rewritten(backed_up(held), bend)
    with pytest.raises(SealwrightError) as caught:
        restored(raw, elsewhere(held, tmp_path / "other"))
    assert caught.value.code in codes


def test_a_cut_backup_is_refused(held: World, tmp_path: Path) -> None:
    raw = backed_up(held)
    with pytest.raises(SealwrightError):
        restored(raw[: len(raw) // 2], elsewhere(held, tmp_path / "other"))


@pytest.mark.parametrize("raw", [b"", b"x" * 4096, bytes(10240)])
def test_what_is_no_backup_is_refused(raw: bytes, held: World, tmp_path: Path) -> None:
    with pytest.raises(FormatError):
        restored(raw, elsewhere(held, tmp_path / "other"))


def test_a_backup_of_another_broker_is_refused(held: World, tmp_path: Path) -> None:
    other = World(tmp_path / "stranger")
    with pytest.raises(VerificationError) as caught:
        restored(backed_up(other), elsewhere(held, tmp_path / "other"))
    assert caught.value.code == "untrusted-signer"


@given(st.integers(0, 70000))
def test_the_paths_of_a_log_are_those_of_its_edge(size: int) -> None:
    paths = list(log_paths(size))
    assert len(paths) == len(set(paths))
    assert sum(".p/" in path for path in paths) <= 4


def erase(running: Any, *commitments: str) -> int:
    from sealwright.broker.erasure import Erasure

    return Erasure(running.core).erase([bytes.fromhex(one) for one in commitments])


def test_what_was_erased_stays_erased_through_crash_and_restore(
    held: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held.open() as running:
        wanted = next(one for one in running.admin.decisions(50) if one["action"] == "admin-caller-add")
        name = str(wanted["commitment"])
        path = held.root / "openings" / f"{name}.json"
        kept = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(running.core.state.ledger, "erase", lambda _: None)  # the process dies before it
            assert erase(running, name) == 1
        assert path.exists()
    with held.open() as running:
        assert not path.exists()
        assert name not in [one["commitment"] for one in running.admin.decisions(50)]
        assert running.admin.callers("acme") == ["anna"]
        with pytest.raises(AppraisalError) as caught:
            erase(running, name)
        assert caught.value.code == "opening-unknown"
    path.write_bytes(kept)  # as an old copy of the disk would have it
    raw = backed_up(held)
    other = elsewhere(held, tmp_path / "other")
    restored(raw, other)
    assert not (other.root / "openings" / f"{name}.json").exists()


async def test_erasing_asks_for_the_token(held: World) -> None:
    with held.open() as running:
        kbs = Kbs(running)
        body = {"commitments": ["00" * 32]}
        answer = await kbs.http.post("/sealwright/v1/admin/erase", json=body)
        assert (answer.status_code, answer.json()["code"]) == (401, "admin-token")
        token = (held.root / "admin-token").read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        answer = await kbs.http.post("/sealwright/v1/admin/erase", json=body, headers=headers)
        assert answer.json()["code"] == "opening-unknown"
