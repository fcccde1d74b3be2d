"""Budgets: what is counted, refused, and never exceeded; crashes and threads included."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.broker.support import NOW, Enclave, Kbs, World
from tests.broker.test_state import crash_after, crash_before

from sealwright.appraisal.limits import Hours, Limits, Regions
from sealwright.broker.budgets import MAX_SPANS, add_epoch, charge, check_hours
from sealwright.broker.locations import check_region
from sealwright.broker.rows import BudgetRow, KeyRow, MachinesRow, Rows, Span, SpentRow
from sealwright.broker.service import Running
from sealwright.broker.state import View, _parse
from sealwright.crypto.document import validated
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.crypto.hpke import open_from
from sealwright.errors import AppraisalError, CollateralError, FormatError, SealwrightError, VerificationError
from sealwright.protocol.machines import Machines
from sealwright.protocol.release import verify_release
from sealwright.protocol.use import MAX_USE, Use


def refused(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def newest(running: Running) -> dict[str, Any]:
    return dict(running.admin.decisions(1)[0])


async def asked(kbs: Kbs, use: Use | None = None, kid: str = "k1") -> Any:
    query = "" if use is None else f"?use={use.to_text()}"
    return await kbs.http.get(f"/kbs/v0/resource/acme/key/{kid}{query}")


async def released(running: Running, enclave: Enclave, use: Use | None = None) -> Any:
    """Attest anew, and ask."""
    kbs = Kbs(running)
    await kbs.leased(enclave)
    return await asked(kbs, use)


def spent(running: Running, scope: Any = "key", name: str = "k1") -> Any:
    return running.life.budget(scope, name)["spent"]


async def test_releases_are_counted_down_to_none(world: World, running: Running) -> None:
    world.add_key(running, limits={"releases": 2})
    enclave = Enclave.make(world, running)
    kbs = Kbs(running)
    await kbs.leased(enclave)
    first = await asked(kbs)
    assert (await asked(kbs)).content == first.content  # the same session asks again: nothing is spent
    assert spent(running)["releases"] == 1
    assert newest(running)["spent"] == {"key/k1": {"releases": 1, "rows": 0, "epochs": 0}}
    assert (await released(running, enclave)).status_code == 200
    assert refused(await released(running, enclave)) == (401, "budget-exhausted")
    decision = newest(running)
    assert (decision["stage"], decision["reason"]) == (
        "budget",
        ["key k1 may have 2 releases, and this would be 3"],
    )
    assert spent(running)["releases"] == 2
    assert first.status_code == 200


async def test_raising_a_limit_forgets_nothing_that_was_spent(world: World, running: Running) -> None:
    world.add_key(running, limits={"releases": 1})
    enclave = Enclave.make(world, running)
    assert (await released(running, enclave)).status_code == 200
    running.admin.set_policy("k1", world.policy(version=2, limits={"releases": 2}))
    assert (await released(running, enclave)).status_code == 200
    assert refused(await released(running, enclave)) == (401, "budget-exhausted")
    running.life.rotate("k1")  # nor does a rotation
    assert refused(await released(running, enclave)) == (401, "budget-exhausted")


async def test_a_tenants_budget_is_over_all_its_keys_and_beside_the_policies(
    world: World, running: Running
) -> None:
    world.add_key(running, limits={"releases": 5})
    world.add_key(running, "acme", "k2")
    running.life.set_budget("tenant", "acme", Limits(releases=2))
    enclave = Enclave.make(world, running, {"acme": ["k1", "k2"]})
    kbs = Kbs(running)
    await kbs.leased(enclave)
    assert (await asked(kbs)).status_code == 200
    assert (await asked(kbs, kid="k2")).status_code == 200
    assert refused(await released(running, enclave)) == (401, "budget-exhausted")
    assert (spent(running, "tenant", "acme")["releases"], spent(running)["releases"]) == (2, 1)
    running.life.remove_budget("tenant", "acme")
    assert (await released(running, enclave)).status_code == 200
    with pytest.raises(AppraisalError) as caught:
        running.life.remove_budget("tenant", "acme")
    assert caught.value.code == "budget-unknown"
    with pytest.raises(AppraisalError) as caught:
        running.life.set_budget("key", "k9", Limits(releases=1))
    assert caught.value.code == "key-unknown"


async def test_epochs_and_rows_are_those_that_releases_name(world: World, running: Running) -> None:
    world.add_key(running, limits={"epochs": 2, "rows": 250, "purposes": ["training"], "runs": ["r1", "r2"]})
    enclave = Enclave.make(world, running)
    kbs = Kbs(running)
    await kbs.leased(enclave)

    def use(**changes: Any) -> Use:
        return Use(**({"purpose": "training", "run": "r1", "epoch": 0, "rows": 100} | changes))

    assert refused(await asked(kbs)) == (401, "use-missing")
    assert newest(running)["reason"] == ["a release of this key names its epoch, run, rows, purpose"]
    assert refused(await asked(kbs, use(rows=None))) == (401, "use-missing")
    assert refused(await asked(kbs, use(purpose="inference"))) == (401, "purpose-not-allowed")
    assert refused(await asked(kbs, use(run="r3"))) == (401, "run-not-allowed")
    assert spent(running) == {"releases": 0, "rows": 0, "epochs": 0}
    assert (await asked(kbs, use())).status_code == 200
    assert newest(running)["use"] == {"purpose": "training", "run": "r1", "epoch": 0, "rows": 100}
    assert (await asked(kbs, use())).status_code == 200  # the same session, the same use
    assert (await asked(kbs, use(epoch=1))).status_code == 200
    assert spent(running) == {"releases": 2, "rows": 200, "epochs": 2}
    assert refused(await asked(kbs, use(epoch=2, rows=1))) == (401, "budget-exhausted")
    assert refused(await asked(kbs, use(run="r2", rows=1))) == (401, "budget-exhausted")
    assert refused(await asked(kbs, use(rows=51))) == (401, "budget-exhausted")
    assert (await asked(kbs, use(rows=50))).status_code == 200  # an epoch that was paid for
    assert spent(running) == {"releases": 3, "rows": 250, "epochs": 2}


async def test_a_release_is_good_for_the_use_that_was_asked_alone(world: World, running: Running) -> None:
    dek = world.add_key(running, limits={"rows": 1000})
    enclave = Enclave.make(world, running)
    kbs = Kbs(running)
    got = await kbs.leased(enclave)
    answer = await asked(kbs, Use(rows=10))

    def verify(use: Use | None) -> bytes:
        release = verify_release(
            answer.content,
            got.broker_keys,
            nonce=kbs.nonce,
            tee_pubkey=enclave.keyset.tee_pubkey.digest(),
            kid="k1",
            manifest_digest=enclave.openings[0].artefacts[0].manifest_digest,
            lease=got.lease,
            use=use,
        )
        return open_from(enclave.tee, release.enc, release.hpke_info(), b"", release.ciphertext)

    assert verify(Use(rows=10)) == dek
    for other in (None, Use(rows=1), Use(rows=10, epoch=0)):  # what a host would have counted instead
        with pytest.raises(VerificationError) as caught:
            verify(other)
        assert (caught.value.code, caught.value.stage) == ("release-mismatch", "binding")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "e30=",
        "bm90IGpzb24",
        b64url(b'{"rows":-1}'),
        b64url(b'{"x":1}'),
        b64url(b'{ "rows":1}'),
        "A" * 4000,
    ],
)
async def test_a_use_out_of_form_is_refused(text: str, kbs: Kbs, enclave: Enclave) -> None:
    await kbs.leased(enclave)
    answer = await kbs.http.get(f"/kbs/v0/resource/acme/key/k1?use={text}")
    assert answer.status_code in (400, 413)


@given(st.binary(max_size=2 * MAX_USE))
def test_a_use_is_read_in_one_spelling_or_not(raw: bytes) -> None:
    try:
        use = Use.from_text(b64url(raw))
    except FormatError:
        return
    assert use.encode() == raw


# Never beyond


async def test_threads_together_get_no_more_than_the_budget(world: World, running: Running) -> None:
    world.add_key(running, limits={"releases": 7, "rows": 65})
    enclave = Enclave.make(world, running)
    sessions = []
    for _ in range(20):
        kbs = Kbs(running)
        await kbs.leased(enclave)
        sessions.append(kbs.http.cookies["kbs-session-id"])
    outcomes: list[str] = []
    barrier = threading.Barrier(len(sessions))

    def ask(session: str) -> None:
        barrier.wait()
        for rows in (10, 9):
            try:
                running.broker.resource(session, "acme", "k1", Use(rows=rows))
                outcomes.append("granted")
            except SealwrightError as error:
                outcomes.append(error.code)

    threads = [threading.Thread(target=ask, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = spent(running)
    granted = outcomes.count("granted")
    assert set(outcomes) == {"granted", "budget-exhausted"}
    assert granted == counts["releases"] <= 7
    assert counts["rows"] <= 65
    logged = [
        one for one in running.admin.decisions(200) if (one["action"], one["verdict"]) == ("release", "grant")
    ]
    assert len(logged) == granted
    assert sum(one["use"]["rows"] for one in logged) == counts["rows"]  # type: ignore[index]


async def test_one_session_in_many_threads_spends_once(world: World, running: Running) -> None:
    world.add_key(running, limits={"releases": 9})
    kbs = Kbs(running)
    await kbs.leased(Enclave.make(world, running))
    session = kbs.http.cookies["kbs-session-id"]
    answers: list[bytes] = []
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        answers.append(running.broker.resource(session, "acme", "k1"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert len(set(answers)) == 1
    assert spent(running)["releases"] == 1


CRASHES: list[tuple[str, str, Callable[..., None], int]] = [
    ("ledger", "commit_to", crash_before, 0),
    ("store", "prepare", crash_before, 0),
    ("store", "prepare", crash_after, 0),
    ("ledger", "submit", crash_before, 0),
    ("ledger", "submit", crash_after, 1),
    ("ledger", "settle", crash_after, 1),
    ("store", "commit", crash_before, 1),
    ("store", "commit", crash_after, 1),
]


@pytest.mark.parametrize(
    ("part", "method", "crash", "after"), CRASHES, ids=[f"{case[2].__name__}-{case[1]}" for case in CRASHES]
)
async def test_a_crash_leaves_release_and_budget_both_or_neither(
    part: str,
    method: str,
    crash: Callable[..., None],
    after: int,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch, world.open() as running:
        world.add_key(running, limits={"releases": 1})
        kbs = Kbs(running)
        await kbs.leased(Enclave.make(world, running))
        session = kbs.http.cookies["kbs-session-id"]
        crash(getattr(running.core.state, part), method, patch)
        with pytest.raises(BaseException):  # noqa: B017 - the power goes
            running.broker.resource(session, "acme", "k1")
    with world.open() as running:
        decisions = [one for one in running.admin.decisions(20) if one["action"] == "release"]
        granted = [one for one in decisions if one["verdict"] == "grant"]
        assert (spent(running)["releases"], len(granted)) == (after, after)
        enclave = Enclave.make(world, running)
        answer = await released(running, enclave)
        assert answer.status_code == (200 if after == 0 else 401)


def row_of(world: World, **policy: Any) -> KeyRow:
    from sealwright.appraisal.policy import KeyPolicy

    loaded = KeyPolicy.load(world.policy(**policy))
    fields = {"kid": "k1", "tenant": "acme", "model": "m", "created": NOW, "epoch": 1, "wrapped": b""}
    return validated(KeyRow, fields | {"policy": loaded})


USES = st.lists(
    st.builds(
        Use,
        run=st.sampled_from(["r1", "r2"]),
        epoch=st.integers(0, 12),
        rows=st.integers(0, 40),
        purpose=st.none(),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(
    USES,
    st.one_of(st.none(), st.integers(0, 12)),
    st.one_of(st.none(), st.integers(0, 10)),
    st.one_of(st.none(), st.integers(0, 300)),
)
def test_a_budget_admits_what_a_plain_count_admits(
    uses: list[Use], releases: int | None, epochs: int | None, rows: int | None
) -> None:
    limits = Limits(releases=releases, epochs=epochs, rows=rows)
    key = _KEY
    stored: dict[tuple[str, str], bytes] = {}
    for scope, name in (("key", "k1"), ("tenant", "acme")):
        row = BudgetRow(scope=scope, name=name, limits=limits, at=NOW)  # type: ignore[arg-type]
        stored[row.row_key] = row.encode()
    given_: list[Use] = []
    for use in uses:
        after = [*given_, use]
        allowed = (
            (releases is None or len(after) <= releases)
            and (epochs is None or len({(one.run, one.epoch) for one in after}) <= epochs)
            and (rows is None or sum(one.rows or 0 for one in after) <= rows)
        )
        try:
            found = charge(View(stored, 1, _parse), key, use, [], NOW)
        except AppraisalError as error:
            assert not allowed, error  # noqa: PT017
            continue
        assert allowed
        given_ = after
        stored |= {name: body for name, body in found.changes.items() if body is not None}
    if limits.counts and given_:
        row = SpentRow.parse(stored["spent", "tenant/acme"])
        assert (row.releases, row.rows) == (len(given_), sum(one.rows or 0 for one in given_))


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 30)), max_size=60))
def test_spans_are_the_set_that_was_added(added: list[tuple[str, int]]) -> None:
    spans: list[Span] = []
    for run, epoch in added:
        spans = add_epoch(spans, run, epoch)
    held = [(span.run, epoch) for span in spans for epoch in range(span.first, span.last + 1)]
    assert len(held) == len(set(held))
    assert set(held) == set(added)
    for one, other in pairwise(spans):
        assert one.run < other.run or one.last + 1 < other.first


def test_epochs_in_too_many_pieces_are_refused(world: World) -> None:
    spans = [Span(run="r", first=2 * n, last=2 * n) for n in range(MAX_SPANS)]
    row = SpentRow(scope="key", name="k1", epochs=spans)
    rows: Rows = {row.row_key: row.encode()}
    key = row_of(world, limits={"epochs": 1 << 20})
    with pytest.raises(AppraisalError) as caught:
        charge(View(rows, 1, _parse), key, Use(run="r", epoch=5000), [], NOW)
    assert caught.value.code == "budget-exhausted"
    charge(View(rows, 1, _parse), key, Use(run="r", epoch=1), [], NOW)  # joins two of them


# Hours


WORK = {
    "zone": "Europe/Berlin",
    "start": "08:00",
    "end": "18:00",
    "days": ["mon", "tue", "wed", "thu", "fri"],
}


async def test_keys_are_released_in_the_hours_and_leases_end_with_them(
    world: World, running: Running
) -> None:
    # NOW is a Monday, 12:00 UTC: 14:00 in Berlin.
    world.add_key(running, limits={"hours": WORK}, lease_s=4 * 3600)
    world.clock.forward(hours=3)
    enclave = Enclave.make(world, running)
    kbs = Kbs(running)
    got = await kbs.leased(enclave)
    assert got.lease.not_after == datetime(2026, 6, 1, 16, 0, tzinfo=UTC)
    world.clock.forward(minutes=4)
    assert (await asked(kbs)).status_code == 200
    world.clock.forward(hours=1)
    kbs = Kbs(running)
    assert (await kbs.attest(enclave)).status_code == 200
    assert refused(await kbs.lease()) == (401, "outside-hours")
    assert newest(running)["stage"] == "budget"


def hours(**changes: Any) -> Hours:
    return Hours.model_validate({"zone": "Europe/Berlin", "start": "08:00", "end": "18:00"} | changes)


def at(text: str, zone: str = "Europe/Berlin") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


@pytest.mark.parametrize(
    ("rules", "moment", "end"),
    [
        (hours(), "2026-06-01T07:59:59", None),
        (hours(), "2026-06-01T08:00:00", "2026-06-01T18:00:00"),
        (hours(), "2026-06-01T18:00:00", None),
        (hours(days=["tue"]), "2026-06-01T12:00:00", None),
        (hours(start="22:00", end="06:00"), "2026-06-01T23:00:00", "2026-06-02T06:00:00"),
        (hours(start="22:00", end="06:00"), "2026-06-02T05:59:00", "2026-06-02T06:00:00"),
        (hours(start="22:00", end="06:00", days=["mon"]), "2026-06-02T05:00:00", "2026-06-02T06:00:00"),
        (hours(start="22:00", end="06:00", days=["tue"]), "2026-06-02T05:00:00", None),
        # Clocks go forward at 02:00 on 29 March 2026, back at 03:00 on 25 October.
        (hours(start="22:00", end="06:00"), "2026-03-28T23:00:00", "2026-03-29T06:00:00"),
        (hours(start="01:00", end="04:00"), "2026-10-25T01:30:00", "2026-10-25T04:00:00"),
    ],
)
def test_a_window_of_hours(rules: Hours, moment: str, end: str | None) -> None:
    assert rules.window_end(at(moment)) == (None if end is None else at(end))


def test_a_night_when_clocks_change_has_another_length() -> None:
    night = hours(start="22:00", end="06:00")
    for day, length in (("2026-03-28", 7), ("2026-10-24", 9), ("2026-06-01", 8)):
        start = at(f"{day}T22:00:00")
        end = night.window_end(start)
        assert end is not None
        assert end - start == timedelta(hours=length)


def test_the_first_of_several_hours_ends_a_lease() -> None:
    both = [Limits(hours=hours()), Limits(hours=hours(end="12:00")), Limits()]
    assert check_hours(both, at("2026-06-01T09:00:00")) == at("2026-06-01T12:00:00")
    with pytest.raises(AppraisalError) as caught:
        check_hours(both, at("2026-06-01T13:00:00"))
    assert (caught.value.code, caught.value.stage) == ("outside-hours", "budget")


def test_a_zone_that_is_not_known_is_refused_when_it_is_set(
    world: World, running: Running, dek: bytes
) -> None:
    nowhere = {**WORK, "zone": "Europe/Atlantis"}
    acts: list[Callable[[], object]] = [
        lambda: running.admin.set_policy("k1", world.policy(limits={"hours": nowhere})),
        lambda: running.admin.create_key("acme", "k5", "m", world.policy(limits={"hours": nowhere})),
        lambda: running.life.set_budget("key", "k1", Limits(hours=hours(zone="Europe/Atlantis"))),
    ]
    for act in acts:
        with pytest.raises(CollateralError) as caught:
            act()
        assert (caught.value.code, caught.value.stage) == ("zone-unknown", "hours")


@pytest.mark.parametrize(
    "bad",
    [
        {"hours": {**WORK, "start": "8:00"}},
        {"hours": {**WORK, "end": "24:00"}},
        {"hours": {**WORK, "end": "08:00"}},
        {"hours": {**WORK, "zone": "../../etc/passwd"}},
        {"hours": {**WORK, "zone": "/etc/passwd"}},
        {"hours": {**WORK, "days": []}},
        {"hours": {**WORK, "days": ["someday"]}},
        {"releases": -1},
        {"releases": 1.5},
        {"releases": "1"},
        {"epochs": 1 << 21},
        {"purposes": []},
        {"regions": {"names": ["eu"], "operators": []}},
        {"surprise": 1},
    ],
)
def test_limits_out_of_form_are_refused(bad: dict[str, Any], world: World, running: Running) -> None:
    with pytest.raises(FormatError):
        running.admin.create_key("acme", "k1", "m", world.policy(limits=bad))


# Regions


CHIP = "snp-chip:" + "ab" * 64


def signed(key: Ed25519PrivateKey, **changes: Any) -> bytes:
    said = {
        "operator": "cloud",
        "region": "eu-central",
        "machines": [CHIP],
        "not_before": rfc3339(NOW - timedelta(days=1)),
        "not_after": rfc3339(NOW + timedelta(days=1)),
    }
    return Machines.from_json(said | changes).sign(key)


def view_of(envelope: bytes) -> View:
    row = MachinesRow(operator="cloud", region="eu-central", envelope=envelope, at=NOW)
    return View({row.row_key: row.encode()}, 1, _parse)


def test_a_region_is_what_an_admitted_operator_signed_for_the_machine_of_the_evidence() -> None:
    operator = Ed25519PrivateKey.generate()
    regions = Regions(names=["eu-central"], operators=[operator.public_key().public_bytes_raw()])
    check_region(view_of(signed(operator)), regions, [CHIP], NOW)
    bad = bytearray(signed(operator))
    bad[-10] ^= 1
    cases: list[tuple[View, list[str], datetime]] = [
        (view_of(signed(Ed25519PrivateKey.generate())), [CHIP], NOW),
        (view_of(bytes(bad)), [CHIP], NOW),
        (view_of(signed(operator, region="us-east")), [CHIP], NOW),
        (view_of(signed(operator, machines=["snp-chip:" + "cd" * 64])), [CHIP], NOW),
        (view_of(signed(operator)), [], NOW),
        (view_of(signed(operator)), [CHIP], NOW + timedelta(days=1)),
        (view_of(signed(operator)), [CHIP], NOW - timedelta(days=2)),
        (View({}, 1, _parse), [CHIP], NOW),
    ]
    for view, identities, when in cases:
        with pytest.raises(AppraisalError) as caught:
            check_region(view, regions, identities, when)
        assert (caught.value.code, caught.value.stage) == ("region-not-allowed", "region")


async def test_a_machine_that_its_evidence_does_not_name_is_in_no_region(
    world: World, running: Running
) -> None:
    operator = Ed25519PrivateKey.generate()
    public = b64url(operator.public_key().public_bytes_raw())
    world.add_key(running, limits={"regions": {"names": ["eu-central"], "operators": [public]}})
    assert running.life.add_machines(signed(operator))["machines"] == 1
    assert [one["region"] for one in running.life.machines()] == ["eu-central"]
    assert refused(await released(running, Enclave.make(world, running))) == (401, "region-not-allowed")
    assert "its evidence names no machine" in newest(running)["reason"][0]
    with pytest.raises(FormatError):
        running.life.add_machines(b"{}")


def test_what_a_broker_tells_of_a_budget_is_json(world: World, running: Running, dek: bytes) -> None:
    said = running.life.set_budget("key", "k1", Limits(releases=3, hours=hours()))
    assert json.loads(json.dumps(said))["limits"]["releases"] == 3
    assert running.life.budget("key", "unheard-of")["limits"] is None


_KEY: KeyRow


@pytest.fixture(autouse=True, scope="module")
def _key(tmp_path_factory: pytest.TempPathFactory) -> None:
    global _KEY
    _KEY = row_of(World(tmp_path_factory.mktemp("budget") / "broker"))
