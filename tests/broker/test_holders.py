"""Holders of the highest checkpoint: files and witnesses, reachable or not, new, of another log, of another past."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from tests.broker.support import World
from tests.broker.test_state import copy, refused, restore
from tests.broker.witness_support import keyed

from sealwright.broker import holders as module
from sealwright.broker.holders import Holders, parse_witness
from sealwright.errors import LogFormatError, SealwrightError, SettingsError, UnavailableError
from sealwright.ops.witness import open_witness, witness_app
from sealwright.tlog.keys import Cosigner
from sealwright.tlog.witness import AddCheckpoint


def test_each_decision_is_cosigned_before_it_is_answered(world: World, sites: Any) -> None:
    (site,) = sites(1)
    texts = keyed(world, [site])
    with world.open(witnesses=texts) as running:
        running.admin.add_caller("acme", "anna")
        head = site.witness.heads.get(world.log_key.split("+")[0])
        assert head is not None
        assert head.size == running.core.state.ledger.size
        assert running.admin.status()["holders"] == ["witness.test/0"]


def test_log_and_database_restored_together_are_refused_by_a_witness(
    world: World, sites: Any, tmp_path: Path
) -> None:
    texts = keyed(world, sites(1))
    saved = copy(world.root, tmp_path / "saved")
    with world.open(witnesses=texts) as running:
        running.admin.revoke_key("k1")
    restore(world, saved, "log", "broker.sqlite", "openings")
    assert refused(world, witnesses=texts) == "log-rolled-back"


def test_a_fork_of_the_same_size_and_a_longer_one_are_refused_by_a_witness(
    world: World, sites: Any, tmp_path: Path
) -> None:
    texts = keyed(world, sites(1))
    saved = copy(world.root, tmp_path / "saved")
    with world.open(witnesses=texts) as running:
        running.admin.revoke_key("k1")
    restore(world, saved, "log", "broker.sqlite", "openings")
    with world.open() as running:
        running.admin.add_caller("acme", "eve")
    assert refused(world, witnesses=texts) == "log-forked"
    with world.open() as running:
        running.admin.add_caller("acme", "mallory")
    assert refused(world, witnesses=texts) == "log-forked"


def test_of_two_brokers_from_one_disk_only_the_first_to_decide_goes_on(
    world: World, sites: Any, tmp_path: Path
) -> None:
    """A clone of a broker's disk, with all its keys: the witness lets one of them live."""
    texts = keyed(world, sites(1))
    twin = World.__new__(World)
    twin.root, twin.clock, twin.holder = copy(world.root, tmp_path / "twin"), world.clock, None
    with world.open(witnesses=texts) as one, twin.open(witnesses=texts) as two:
        one.admin.add_caller("acme", "anna")
        with pytest.raises(SealwrightError) as caught:
            two.admin.add_caller("acme", "eve")
        assert (caught.value.code, caught.value.stage) == ("log-forked", "consistency")
        with pytest.raises(SealwrightError) as caught:
            two.admin.list_keys()
        assert caught.value.code == "state-uncertain"
        one.admin.add_caller("acme", "otto")


def test_a_holder_file_shows_a_twin_too(tmp_path: Path) -> None:
    world = World(tmp_path / "broker", holder=tmp_path / "held")
    twin = World.__new__(World)
    twin.root, twin.clock, twin.holder = copy(world.root, tmp_path / "twin"), world.clock, world.holder
    with world.open() as one, twin.open() as two:
        one.admin.add_caller("acme", "anna")
        with pytest.raises(SealwrightError) as caught:
            two.admin.add_caller("acme", "eve")
        assert caught.value.code == "log-forked"


def test_a_witness_that_cannot_be_reached_stops_answers_and_the_change_is_finished_later(
    world: World, sites: Any
) -> None:
    (site,) = sites(1)
    texts = keyed(world, [site])
    with world.open(witnesses=texts) as running:
        site.cut = True
        with pytest.raises(UnavailableError) as caught:
            running.admin.revoke_key("k1")
        assert (caught.value.code, caught.value.stage) == ("holder-unreachable", "holder")
        with pytest.raises(UnavailableError) as caught:
            running.admin.list_keys()
        assert caught.value.code == "state-uncertain"
        site.cut = False
        assert running.admin.key("k1")["status"] == "revoked"
    site.cut = True
    assert refused(world, witnesses=texts) == "holder-unreachable"


def test_two_of_three_witnesses_are_enough_and_one_is_not(world: World, sites: Any) -> None:
    first, second, _third = three = sites(3)
    texts = keyed(world, three, holders_needed=2)
    with world.open(witnesses=texts, holders_needed=2) as running:
        first.cut = True
        running.admin.add_caller("acme", "anna")
        second.cut = True
        with pytest.raises(UnavailableError) as caught:
            running.admin.add_caller("acme", "otto")
        assert caught.value.code == "holder-unreachable"
        first.cut = False  # it missed some, and is brought up to date
        assert running.admin.callers("acme") == ["anna", "otto"]


def test_one_witness_of_another_past_outvotes_all_others(world: World, sites: Any, tmp_path: Path) -> None:
    first, *others = three = sites(3)
    texts = keyed(world, three, holders_needed=2)
    saved = copy(world.root, tmp_path / "saved")
    for other in others:
        other.cut = True
    others[0].cut = False
    with world.open(witnesses=texts, holders_needed=2) as running:
        running.admin.revoke_key("k1")
    restore(world, saved, "log", "broker.sqlite", "openings")
    first.cut, others[1].cut = False, False
    assert refused(world, witnesses=texts, holders_needed=2) == "log-rolled-back"


def test_a_witness_that_has_seen_nothing_is_refused_unless_it_is_begun(world: World, sites: Any) -> None:
    (site,) = sites(1)
    assert refused(world, witnesses=[site.text]) == "holder-missing"
    keyed(world, [site])
    shutil.rmtree(site.directory)
    site.__post_init__()
    assert refused(world, witnesses=[site.text]) == "holder-missing"


def test_a_witness_of_other_logs_only_is_named(tmp_path: Path, world: World, sites: Any) -> None:
    (site,) = sites(1)
    site.witness.logs.clear()
    assert refused(world, witnesses=[site.text], new_holder=True) == "holder-unknown-log"


LIES: list[tuple[tuple[int, dict[str, str], bytes], str]] = [
    ((200, {}, b""), "cosignature-missing"),
    ((200, {}, "— witness.test/0 AAAAAAAAAAAA\n".encode()), "cosignature-missing"),
    ((409, {"content-type": "text/x.tlog.size"}, b"007\n"), "holder-unreachable"),
    ((409, {"content-type": "text/x.tlog.size"}, b"\xff"), "holder-unreachable"),
    ((409, {"content-type": "text/x.tlog.size"}, b"9999\n"), "log-rolled-back"),
    ((409, {"content-type": "text/plain"}, b"other root"), "log-forked"),
    ((422, {}, b""), "log-forked"),
    ((500, {}, b""), "holder-unreachable"),
    ((302, {"location": "http://elsewhere"}, b""), "holder-unreachable"),
    ((200, {}, b"x" * (1 << 17)), "holder-unreachable"),
]


@pytest.mark.parametrize(("answer", "code"), LIES)
def test_a_lying_witness_vouches_for_nothing(answer: Any, code: str, world: World, sites: Any) -> None:
    (site,) = sites(1)
    site.answer = answer
    assert refused(world, witnesses=[site.text], new_holder=True) == code


def test_a_cosignature_by_another_key_or_of_another_checkpoint_counts_for_nothing(
    world: World, sites: Any
) -> None:
    (site,) = sites(1)
    texts = keyed(world, [site])
    real = site.witness.cosigner
    object.__setattr__(site.witness, "cosigner", Cosigner(name=real.name, key=Ed25519PrivateKey.generate()))
    assert refused(world, witnesses=texts) == "cosignature-missing"
    object.__setattr__(site.witness, "cosigner", real)
    line = site.witness.add(AddCheckpoint.parse(site.asked[-1]))
    site.answer = (200, {}, line)
    with world.open(witnesses=texts) as running, pytest.raises(SealwrightError) as caught:
        running.admin.add_caller("acme", "anna")
    assert caught.value.code == "cosignature-missing"


@pytest.mark.parametrize(("number", "need"), [(2, 1), (3, 1), (4, 2), (3, 4), (1, 0)])
def test_quorums_without_a_common_holder_are_refused(number: int, need: int, sites: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        Holders([module.parse_witness(site.text) for site in sites(number)], need=need)
    assert caught.value.code == "holder-quorum"


@pytest.mark.parametrize("text", ["", "x@http://w", "{vkey}@ftp://w", "{vkey}", "{log}@http://w"])
def test_what_is_no_witness_is_refused(text: str, world: World, sites: Any) -> None:
    vkey = sites(1)[0].witness.cosigner.vkey.encode()
    with pytest.raises(SettingsError) as caught:
        parse_witness(text.format(vkey=vkey, log=world.log_key))
    assert caught.value.code == "malformed-witness"


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_a_request_is_parsed_or_refused(raw: bytes) -> None:
    try:
        parsed = AddCheckpoint.parse(raw)
    except LogFormatError:
        return
    assert parsed.encode() == raw


@given(st.integers(0, 1 << 40), st.lists(st.binary(min_size=32, max_size=32), max_size=63), st.binary())
def test_a_request_reads_back(old: int, proof: list[bytes], note: bytes) -> None:
    made = AddCheckpoint(old_size=old, proof=tuple(proof), note=note)
    assert AddCheckpoint.parse(made.encode()) == made


REQUESTS = [
    (b"", 400),
    (b"old 0\n\nnot a note", 400),
    (b"old 00\n\n", 400),
    (b"new 0\n\n", 400),
]


@pytest.mark.parametrize(("body", "status"), REQUESTS)
def test_a_witness_refuses_what_is_no_request(body: bytes, status: int, world: World, sites: Any) -> None:
    (site,) = sites(1)
    assert TestClient(witness_app(site.witness)).post("/add-checkpoint", content=body).status_code == status


def test_a_witness_refuses_other_logs_other_keys_and_old_sizes_beyond(
    world: World, sites: Any, tmp_path: Path
) -> None:
    (site,) = sites(1)
    keyed(world, [site])
    other = World(tmp_path / "other")
    client = TestClient(witness_app(site.witness))
    note = (other.root / "log" / "checkpoint").read_bytes()
    foreign = AddCheckpoint(old_size=0, proof=(), note=note)
    assert client.post("/add-checkpoint", content=foreign.encode()).status_code == 404
    mine = AddCheckpoint.parse(site.asked[-1])
    unsigned = mine.note.replace(b"\n\n", b"\n\n\xe2\x80\x94 x AAAAAAAA\n")
    assert b"AAAAAAAA" in unsigned
    at = len(mine.note) - 30  # within the signature
    flipped = b"A" if mine.note[at : at + 1] != b"A" else b"B"
    bent = AddCheckpoint(old_size=0, proof=(), note=mine.note[:at] + flipped + mine.note[at + 1 :])
    assert client.post("/add-checkpoint", content=bent.encode()).status_code in (400, 403, 404)
    beyond = AddCheckpoint(old_size=1 << 20, proof=(), note=mine.note)
    assert client.post("/add-checkpoint", content=beyond.encode()).status_code == 400
    stale = AddCheckpoint(old_size=1, proof=(), note=mine.note)
    answer = client.post("/add-checkpoint", content=stale.encode())
    assert (answer.status_code, answer.headers["content-type"]) == (409, "text/x.tlog.size")


def test_a_witness_without_a_name_or_with_a_witness_for_a_log_is_refused(
    tmp_path: Path, world: World, sites: Any
) -> None:
    with pytest.raises(SettingsError) as caught:
        open_witness(tmp_path / "none", [world.log_key])
    assert caught.value.code == "witness-missing"
    vkey = sites(1)[0].witness.cosigner.vkey.encode()
    with pytest.raises(SettingsError) as caught:
        open_witness(tmp_path / "w", [vkey], name="w")
    assert caught.value.code == "malformed-witness"
