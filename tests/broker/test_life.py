"""Rotation, revocation, notices and policies that go back or lock out: over HTTP, with a broker in process."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tests.broker.support import CODE, NOW, Enclave, Kbs, World

from sealwright.appraisal.binding import ConfigBinding
from sealwright.appraisal.platform import Appraisal
from sealwright.broker.notices import MAX_WAITING, MAX_WAITING_ALIKE, Notices
from sealwright.broker.revocations import Subject, check_revoked, check_value
from sealwright.broker.rows import KeyRow, LeaseRow, RevocationRow
from sealwright.broker.service import Running
from sealwright.broker.state import View
from sealwright.broker.subject import identities
from sealwright.crypto.dsse import Envelope
from sealwright.crypto.encoding import b64url
from sealwright.crypto.hpke import HpkePrivateKey, Kem, open_from
from sealwright.crypto.statement import ed25519
from sealwright.errors import (
    AppraisalError,
    FormatError,
    MessageFormatError,
    RevokedError,
    UnavailableError,
    VerificationError,
)
from sealwright.protocol.sealing_key import SealingKey


def refused(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def newest(running: Running) -> dict[str, Any]:
    return dict(running.admin.decisions(1)[0])


def next_dek(running: Running, kid: str = "k1") -> bytes:
    private = HpkePrivateKey.generate(Kem.XWING)
    envelope = running.admin.sealing_key(kid, private.public.raw, coming=True)
    release = running.core.secrets.release.public_key().public_bytes_raw()
    said = SealingKey.verify(envelope, [ed25519(release)], stage="signature")
    return open_from(private, said.enc, said.hpke_info(), b"", said.ciphertext)


def prepared(world: World, running: Running, *, version: int = 2) -> tuple[bytes, bytes]:
    """Make the next generation, seal for it, admit that; return its key and manifest digest."""
    running.life.rotate("k1")
    dek = next_dek(running)
    envelope = world.manifest(dek, "k1", version=version)
    answer = running.admin.admit("k1", envelope, owner_key=None, force=False)
    return dek, bytes.fromhex(str(answer["manifest_digest"]))


def listing(enclave: Enclave, manifest: bytes) -> Enclave:
    """Return another enclave, whose config lists another manifest of the key."""
    listed = enclave.openings[0]
    artefact = listed.artefacts[0].model_copy(update={"manifest_digest": manifest})
    openings = [listed.model_copy(update={"artefacts": [artefact]})]
    config = enclave.config.to_json()
    config["tenants"] = [{"tenant": "acme", "artefacts": openings[0].commitment().hex()}]
    return replace(enclave.with_config(tenants=config["tenants"]), openings=openings)


# Rotation


async def test_old_and_new_are_released_at_every_step_of_a_rotation(
    world: World, running: Running, enclave: Enclave, dek: bytes
) -> None:
    old = enclave

    async def holds(who: Enclave, key: bytes) -> None:
        kbs = Kbs(running)
        assert await kbs.released(who, await kbs.leased(who)) == key

    await holds(old, dek)
    coming, manifest = prepared(world, running)
    new = listing(enclave, manifest)
    assert coming != dek
    await holds(old, dek)
    await holds(new, coming)
    assert running.life.switch("k1")["generation"] == 2
    await holds(old, dek)
    await holds(new, coming)
    assert world.sealing_key(running, "k1") == coming
    running.admin.set_policy("k1", world.policy(version=2))  # wraps both again
    await holds(old, dek)
    await holds(new, coming)
    running.life.retire("k1")
    await holds(new, coming)
    assert refused(await Kbs(running).attest(old)) == (401, "manifest-mismatch")
    third, manifest = prepared(world, running, version=3)
    running.life.switch("k1")
    await holds(listing(enclave, manifest), third)
    assert running.admin.key("k1")["generation"] == 3


async def test_a_session_that_began_before_the_switch_gets_its_key(
    world: World, running: Running, enclave: Enclave, dek: bytes
) -> None:
    kbs = Kbs(running)
    got = await kbs.leased(enclave)
    prepared(world, running)
    running.life.switch("k1")
    assert await kbs.released(enclave, got) == dek


def test_generations_live_through_a_restart(world: World) -> None:
    with world.open() as running:
        world.add_key(running)
        coming, _ = prepared(world, running)
    with world.open() as running:
        running.life.switch("k1")
    with world.open() as running:
        assert world.sealing_key(running, "k1") == coming


def test_a_swapped_generation_is_refused_though_the_database_is_the_hosts(
    world: World, running: Running, dek: bytes
) -> None:
    prepared(world, running)
    view = running.core.state.view()
    current = view.get(KeyRow, "key", "k1")
    coming = view.rows["generation", "k1@next"]
    assert current is not None
    # The very bytes of the current key under the next one's row: another row root, so nothing is read at all.
    other = KeyRow.model_validate(KeyRow.parse(current.encode()).model_copy(update={"generation": 2}))
    from sealwright.broker.core import wrap_context

    with pytest.raises(VerificationError) as caught:
        running.core.backend.unwrap(other.wrapped, wrap_context(other))
    assert caught.value.code == "key-unwrap-failed"
    assert coming != current.encode()


def _rotate_twice(world: World, running: Running) -> None:
    running.life.rotate("k1")
    running.life.rotate("k1")


def _switch_unadmitted(world: World, running: Running) -> None:
    running.life.rotate("k1")
    running.life.switch("k1")


def _switch_twice(world: World, running: Running) -> None:
    prepared(world, running)
    running.life.switch("k1")
    prepared(world, running, version=3)
    running.life.switch("k1")


def _older_manifest(world: World, running: Running) -> None:
    prepared(world, running, version=1)


@pytest.mark.parametrize(
    ("act", "code", "stage"),
    [
        (_rotate_twice, "next-generation-exists", "rotation"),
        (lambda _, running: running.life.switch("k1"), "no-next-generation", "rotation"),
        (lambda _, running: next_dek(running), "no-next-generation", "rotation"),
        (_switch_unadmitted, "next-not-admitted", "rotation"),
        (_switch_twice, "previous-generation-kept", "rotation"),
        (lambda _, running: running.life.retire("k1"), "no-previous-generation", "rotation"),
        (lambda _, running: running.life.retire("k1", "next"), "no-next-generation", "rotation"),
        (lambda _, running: running.life.rotate("k9"), "key-unknown", "admin"),
        (_older_manifest, "manifest-older", "admin"),
    ],
)
def test_what_a_rotation_refuses(
    act: Callable[[World, Running], object], code: str, stage: str, world: World, running: Running, dek: bytes
) -> None:
    with pytest.raises(AppraisalError) as caught:
        act(world, running)
    assert (caught.value.code, caught.value.stage) == (code, stage)
    assert (newest(running)["verdict"], newest(running)["code"]) == ("refuse", code)


def test_a_rotation_can_be_called_off(world: World, running: Running, dek: bytes) -> None:
    prepared(world, running)
    running.life.retire("k1", "next")
    assert world.sealing_key(running, "k1") == dek
    prepared(world, running)


# Policies


def test_an_older_policy_is_refused_unless_forced(world: World, running: Running, dek: bytes) -> None:
    running.admin.set_policy("k1", world.policy(version=3))
    with pytest.raises(VerificationError) as caught:
        running.admin.set_policy("k1", world.policy(version=2))
    assert (caught.value.code, caught.value.stage) == ("version-rollback", "version")
    assert newest(running)["code"] == "version-rollback"
    running.admin.set_policy("k1", world.policy(version=3))
    running.admin.set_policy("k1", world.policy(version=2), force=True)
    assert newest(running)["forced"] is True


def test_force_does_not_stand_in_for_signatures(world: World, running: Running) -> None:
    from sealwright.appraisal.policy import KeyPolicy
    from sealwright.appraisal.yaml import load_yaml
    from sealwright.crypto.document import validated

    signer = Ed25519PrivateKey.generate()
    signers = {"keys": [b64url(signer.public_key().public_bytes_raw())], "threshold": 1}

    def signed(version: int) -> bytes:
        policy = validated(KeyPolicy, load_yaml(world.policy(version=version, signers=signers)))
        return Envelope.sign(KeyPolicy._PAYLOAD_TYPE, policy.encode(), signer).encode()

    running.admin.create_key("acme", "k1", "model", signed(2))
    with pytest.raises(VerificationError) as caught:
        running.admin.set_policy("k1", signed(1), force=True)
    assert caught.value.code == "version-rollback"
    with pytest.raises(VerificationError) as caught:
        running.admin.set_policy("k1", world.policy(version=3), force=True)
    assert caught.value.code == "untrusted-signer"


def other_code(world: World, *codes: bytes) -> bytes:
    software = {
        "vector": {"hardware": 97, "runtime-opaque": 96},
        "roots": [world.platform.root_fingerprint.hex()],
        "code": [code.hex() for code in codes],
    }
    return world.policy(platforms={"software": software})


async def test_a_policy_that_locks_out_all_who_hold_a_lease_is_refused(
    world: World, running: Running, kbs: Kbs, enclave: Enclave
) -> None:
    running.admin.set_policy("k1", other_code(world, bytes(32)))  # nobody holds a lease
    running.admin.set_policy("k1", world.policy())
    await kbs.leased(enclave)
    with pytest.raises(AppraisalError) as caught:
        running.admin.set_policy("k1", other_code(world, bytes(32)))
    assert (caught.value.code, caught.value.stage) == ("would-lock-out", "lock-out")
    assert newest(running)["code"] == "would-lock-out"
    running.admin.set_policy("k1", other_code(world, bytes(32), CODE))
    with pytest.raises(AppraisalError):
        running.admin.set_policy(
            "k1", world.policy(config={"brokers": [b64url(bytes(32))], "log_keys": [world.log_key]})
        )
    running.admin.set_policy("k1", other_code(world, bytes(32)), force=True)
    assert refused(await kbs.lease()) == (401, "code-not-allowed")
    # Who is out already cannot be locked out.
    running.admin.set_policy("k1", other_code(world, b"\1" * 32))


async def test_who_holds_no_lease_any_more_is_not_asked(
    world: World, running: Running, kbs: Kbs, enclave: Enclave
) -> None:
    await kbs.leased(enclave)
    world.clock.forward(seconds=600)
    running.admin.set_policy("k1", other_code(world, bytes(32)))


async def test_evidence_that_was_erased_is_not_asked(
    world: World, running: Running, kbs: Kbs, enclave: Enclave
) -> None:
    from sealwright.broker.erasure import Erasure

    await kbs.leased(enclave)
    (row,) = running.core.state.view().all(LeaseRow, "lease")
    assert row.record is not None
    Erasure(running.core).erase([row.record])
    running.admin.set_policy("k1", other_code(world, bytes(32)))


# Leases


async def test_the_grace_moves_the_end_and_nothing_else(world: World, running: Running, kbs: Kbs) -> None:
    world.add_key(running, lease_s=100, grace_s=40)
    world.add_key(running, "acme", "k2", lease_s=300, grace_s=20)
    enclave = Enclave.make(world, running, {"acme": ["k1", "k2"]})
    lease = (await kbs.leased(enclave)).lease
    assert (lease.not_after - lease.not_before, lease.grace_s) == (timedelta(seconds=120), 20)


async def test_nothing_outlives_what_it_rests_on_by_a_grace(world: World, running: Running, kbs: Kbs) -> None:
    world.add_key(running, lease_s=100, grace_s=40, expires="2026-06-01T12:02:00Z")
    lease = (await kbs.leased(Enclave.make(world, running))).lease
    assert (lease.not_after - lease.not_before, lease.grace_s) == (timedelta(seconds=120), 20)


def test_a_lease_with_its_grace_is_bounded(world: World, running: Running) -> None:
    with pytest.raises(FormatError):
        running.admin.create_key("acme", "k1", "model", world.policy(lease_s=80000, grace_s=10000))


# Revocation


def measured(enclave: Enclave) -> str:
    return CODE.hex()


REVOKED: list[tuple[str, Callable[[Enclave], str], str, str]] = [
    ("tenant", lambda _: "acme", "tenant-revoked", "revocation"),
    ("enclave", lambda one: one.keyset.digest().hex(), "enclave-revoked", "revocation"),
    ("config", lambda one: one.config.digest().hex(), "config-revoked", "revocation"),
    (
        "manifest",
        lambda one: one.openings[0].artefacts[0].manifest_digest.hex(),
        "manifest-revoked",
        "revocation",
    ),
    ("measurement", measured, "measurement-revoked", "revocation"),
    ("key", lambda _: "k1", "key-revoked", "key"),
]


@pytest.mark.parametrize(("kind", "value", "code", "stage"), REVOKED, ids=[case[0] for case in REVOKED])
async def test_what_is_revoked_is_refused_at_the_next_request_of_every_kind(
    kind: str,
    value: Callable[[Enclave], str],
    code: str,
    stage: str,
    running: Running,
    kbs: Kbs,
    enclave: Enclave,
) -> None:
    await kbs.leased(enclave)
    assert (await kbs.resource()).status_code == 200
    running.life.revoke(kind, value(enclave), "the key leaked")
    for answer in (await kbs.resource(), await kbs.lease(), await Kbs(running).attest(enclave)):
        assert refused(answer) == (401, code)
        assert answer.json()["exit_code"] == 13
        assert "leaked" not in answer.text
        decision = newest(running)
        assert (decision["verdict"], decision["code"], decision["stage"]) == ("refuse", code, stage)
    listed = running.life.revocations()
    assert [(one["kind"], one["value"], one["reason"]) for one in listed] == [
        (kind, value(enclave), "the key leaked")
    ]


async def test_another_enclave_goes_on(world: World, running: Running, kbs: Kbs, enclave: Enclave) -> None:
    running.life.revoke("enclave", enclave.keyset.digest().hex(), "lost")
    await kbs.leased(Enclave.make(world, running))


async def test_a_revocation_outlasts_a_restart_and_is_authenticated(world: World) -> None:
    with world.open() as running:
        world.add_key(running)
        running.life.revoke("measurement", CODE.hex(), "CVE")
    with world.open() as running:
        enclave = Enclave.make(world, running)
        assert refused(await Kbs(running).attest(enclave)) == (401, "measurement-revoked")
    import sqlite3

    with sqlite3.connect(world.root / "broker.sqlite") as db:
        db.execute("DELETE FROM security_rows WHERE kind = 'revocation'")
    db.close()
    with pytest.raises(VerificationError) as caught, world.open():
        pass
    assert caught.value.code == "row-tampered"


async def test_a_revocation_can_be_taken_back_where_it_is_not_final(
    running: Running, kbs: Kbs, enclave: Enclave
) -> None:
    running.life.revoke("tenant", "acme", "unpaid")
    assert refused(await kbs.attest(enclave)) == (401, "tenant-revoked")
    running.life.unrevoke("tenant", "acme", "paid")
    assert (newest(running)["action"], newest(running)["reason"]) == ("admin-unrevoke", ["paid"])
    await kbs.leased(enclave)
    running.life.revoke("enclave", enclave.keyset.digest().hex(), "lost")
    for kind, value in (("enclave", enclave.keyset.digest().hex()), ("key", "k1")):
        with pytest.raises(RevokedError) as caught:
            running.life.unrevoke(kind, value, "found")
        assert (caught.value.code, caught.value.stage) == ("revocation-final", "admin")
    with pytest.raises(AppraisalError) as unknown:
        running.life.unrevoke("tenant", "acme", "again")
    assert unknown.value.code == "revocation-unknown"
    running.life.revoke("tenant", "acme", "unpaid")
    with pytest.raises(AppraisalError) as twice:
        running.life.revoke("tenant", "acme", "unpaid")
    assert twice.value.code == "revoked-already"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("measurement", "00"),
        ("measurement", "0" * 64 + "\n"),
        ("measurement", "A" * 64),
        ("tcb", "snp:Milan:snp<"),
        ("tcb", "snp:Milan:colour<3"),
        ("tcb", "intel:date<2024-13-01"),
        ("tcb", "intel:status="),
        ("cpu", "Milan"),
        ("enclave", "0" * 63),
        ("tenant", "a/b"),
        ("planet", "earth"),
        ("", ""),
    ],
)
def test_what_is_no_revocation_is_refused(kind: str, value: str, running: Running) -> None:
    with pytest.raises(MessageFormatError) as caught:
        running.life.revoke(kind, value, "why")
    assert caught.value.code in ("malformed-revocation", "malformed-document")
    with pytest.raises(MessageFormatError):
        running.life.revoke("tenant", "acme", "")


def appraisal(**claims: Any) -> Appraisal:
    return Appraisal(
        platform="snp",
        confidential=True,
        vector={"hardware": 2},
        config=ConfigBinding(register="host_data", held=bytes(32)),
        code=b"\7" * 32,
        claims=claims,
        registers={"measurement": b"\1" * 48},
        failures=(),
    )


SNP = {"product": "Milan", "reported_tcb": {"boot_loader": 4, "tee": 0, "snp": 22, "microcode": 213}}
TDX = {"fmspc": "00806f050000", "tcb": {"status": "SWHardeningNeeded", "tcb_date": "2024-03-13T00:00:00Z"}}
LEVELS = [
    ("tcb", "snp:Milan:snp<23", SNP, True),
    ("tcb", "snp:Milan:snp<22", SNP, False),
    ("tcb", "snp:Genoa:snp<23", SNP, False),
    ("tcb", "snp:Milan:fmc<9", SNP, False),
    ("tcb", "intel:date<2024-03-14", SNP, False),
    ("tcb", "intel:date<2024-03-14", TDX, True),
    ("tcb", "intel:date<2024-03-13", TDX, False),
    ("tcb", "intel:date<2020-01-01", {"tcb": {"status": "UpToDate", "tcb_date": None}}, True),
    ("tcb", "intel:status=SWHardeningNeeded", TDX, True),
    ("tcb", "intel:status=OutOfDate", TDX, False),
    ("tcb", "snp:Milan:snp<23", {"hardware": SNP}, True),
    ("cpu", "snp:Milan", SNP, True),
    ("cpu", "snp:Milan", {"hardware": SNP}, True),
    ("cpu", "snp:Genoa", SNP, False),
    ("cpu", "fmspc:00806f050000", TDX, True),
    ("cpu", "fmspc:00906ed50000", TDX, False),
    ("measurement", "01" * 48, SNP, True),
    ("measurement", "07" * 32, SNP, True),
    ("measurement", "02" * 48, SNP, False),
]


def view_of(*rows: RevocationRow) -> View:
    from sealwright.broker.state import _parse

    return View({row.row_key: row.encode() for row in rows}, 1, _parse)


@pytest.mark.parametrize(("kind", "value", "claims", "hit"), LEVELS)
def test_levels_and_generations_as_evidence_names_them(kind: Any, value: str, claims: Any, hit: bool) -> None:
    check_value(kind, value)
    view = view_of(RevocationRow(kind=kind, value=value, reason="why", at=NOW))
    subject = Subject(appraisals=(appraisal(**claims),))
    if not hit:
        check_revoked(view, subject)
        return
    with pytest.raises(RevokedError) as caught:
        check_revoked(view, subject)
    assert caught.value.code in ("tcb-level-revoked", "cpu-revoked", "measurement-revoked")
    assert caught.value.stage == "revocation"


def test_a_device_or_vtpm_that_was_revoked_is_refused_within_its_machine() -> None:
    machine = replace(appraisal(**SNP), parts={"vtpm": replace(appraisal(), registers={"pcr4": b"\4" * 32})})
    view = view_of(RevocationRow(kind="measurement", value="04" * 32, reason="why", at=NOW))
    with pytest.raises(RevokedError):
        check_revoked(view, Subject(appraisals=(machine,)))


@given(
    st.sampled_from(["measurement", "tcb", "cpu", "enclave", "config", "manifest", "tenant"]),
    st.text(max_size=80),
)
def test_a_value_is_of_its_form_or_refused(kind: Any, value: str) -> None:
    try:
        check_value(kind, value)
    except MessageFormatError:
        return
    check_revoked(
        view_of(RevocationRow(kind=kind, value=value, reason="w", at=NOW)), Subject(tenant="x" * 65)
    )


async def test_guests_of_containers_are_refused_what_was_revoked(world: World, running: Running) -> None:
    view = view_of(RevocationRow(kind="tenant", value="acme", reason="why", at=NOW))
    with pytest.raises(RevokedError) as caught:
        running.guests._judge(view, None, None, NOW, tenant="acme")  # type: ignore[arg-type]
    assert caught.value.code == "tenant-revoked"


def test_which_machine_it_is_and_when_nobody_can_say() -> None:
    assert identities(appraisal(chip_id="ab" * 64, hwid=None)) == ["snp-chip:" + "ab" * 64]
    assert identities(appraisal(chip_id="00" * 64, hwid=None)) == []
    assert identities(appraisal(chip_id="00" * 64, hwid="cd" * 8)) == ["snp-chip:" + "cd" * 8]
    assert identities(appraisal(ppid="ef" * 16)) == ["intel-ppid:" + "ef" * 16]
    assert identities(appraisal()) == []


# Notices


async def asked(notices: Notices, *leases: bytes) -> list[bytes]:
    return await notices.changed(leases)


async def test_a_lease_is_told_at_once_of_what_concerns_it(world: World, running: Running, kbs: Kbs) -> None:
    world.add_key(running)
    world.add_key(running, "other", "k2")
    mine = (await kbs.leased(Enclave.make(world, running))).lease.lease_id
    theirs = (
        await Kbs(running).leased(Enclave.make(world, running, {"other": ["k2"]}), "other")
    ).lease.lease_id
    notices = Notices(running.core, hold_s=0.0)
    assert await asked(notices, mine, theirs) == []
    waiting = asyncio.create_task(Notices(running.core, hold_s=60).changed([mine]))
    await asyncio.sleep(0)
    await asyncio.to_thread(running.admin.revoke_key, "k1")
    assert await asyncio.wait_for(waiting, 30) == [mine]
    assert await asked(notices, mine, theirs) == [mine]
    running.life.revoke("cpu", "snp:Milan", "CVE")
    assert await asked(notices, mine, theirs) == [mine, theirs]
    assert await asked(notices, os.urandom(16)) == []


async def test_a_rotation_and_a_policy_are_told_and_a_rewrap_is_not(
    world: World, running: Running, kbs: Kbs, enclave: Enclave
) -> None:
    lease = (await kbs.leased(enclave)).lease.lease_id
    notices = Notices(running.core, hold_s=0.0)
    running.admin.set_policy("k1", world.policy())  # the same again: only wrapped anew
    assert await asked(notices, lease) == []
    running.admin.add_caller("acme", "anna")
    assert await asked(notices, lease) == []
    running.admin.set_policy("k1", world.policy(version=2))
    assert await asked(notices, lease) == [lease]
    lease = (await Kbs(running).leased(enclave)).lease.lease_id
    assert await asked(notices, lease) == []
    prepared(world, running)
    assert await asked(notices, lease) == [lease]


@pytest.mark.parametrize(("limit", "waiting"), [(1, 1), (MAX_WAITING, MAX_WAITING_ALIKE)])
async def test_no_more_wait_than_there_is_room_for(
    limit: int, waiting: int, running: Running, kbs: Kbs, enclave: Enclave
) -> None:
    lease = (await kbs.leased(enclave)).lease.lease_id
    notices = Notices(running.core, hold_s=0.3, limit=limit)
    held = [asyncio.create_task(notices.changed([lease])) for _ in range(waiting)]
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError) as caught:
        await notices.changed([lease])
    assert (caught.value.code, caught.value.stage) == ("too-many-waiting", "notices")
    assert await asyncio.gather(*held) == [[]] * waiting
    assert await notices.changed([lease]) == []
    assert not notices._waiting


async def test_nobody_waits_for_a_lease_that_is_not_known(running: Running) -> None:
    forever = Notices(running.core, hold_s=3600)
    assert await asyncio.wait_for(forever.changed([os.urandom(16)]), 30) == []


async def test_the_last_releases_of_a_session_are_kept(
    running: Running, kbs: Kbs, enclave: Enclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sealwright.broker import releasing
    from sealwright.protocol.use import Use

    monkeypatch.setattr(releasing, "MAX_KEPT", 2)
    await kbs.leased(enclave)
    session = kbs.http.cookies["kbs-session-id"]
    first, second, third = (running.broker.resource(session, "acme", "k1", Use(rows=n)) for n in range(3))
    assert running.broker.resource(session, "acme", "k1", Use(rows=2)) == third
    assert running.broker.resource(session, "acme", "k1", Use(rows=1)) == second
    assert running.broker.resource(session, "acme", "k1", Use(rows=0)) != first


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b'{"leases": []}', b'{"leases": ["00"]}', b'{"leases": 1}', b'{"leases": ["' + b"0" * 20000],
)
async def test_a_notice_request_out_of_form_is_refused(body: bytes, kbs: Kbs) -> None:
    answer = await kbs.http.post("/sealwright/v1/notices", content=body)
    assert answer.status_code in (400, 413)


async def test_the_enclave_record_is_what_the_log_has(running: Running, kbs: Kbs, enclave: Enclave) -> None:
    await kbs.leased(enclave)
    (row,) = running.core.state.view().all(LeaseRow, "lease")
    assert row.record is not None
    fields = running.core.state.ledger.opened(row.record)
    assert fields is not None
    assert hashlib.sha256(fields["keyset"]).digest() == row.keyset_digest
    assert running.core.state.ledger.opened(bytes(32)) is None
