"""Clock, lease, journal, credentials and bounds, each alone."""

from __future__ import annotations

import random as random_module
from collections import Counter
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealwright.enclave.app import Bucket
from sealwright.enclave.auth import authenticate
from sealwright.enclave.clock import EnclaveClock
from sealwright.enclave.keyset import EnclaveKeys
from sealwright.enclave.lease import TenantLease
from sealwright.enclave.receipts import Answer, Journal, ReceiptIssuer
from sealwright.errors import RevokedError, UnavailableError, VerificationError
from sealwright.protocol.lease import Caller, Callers, credential_digest
from sealwright.protocol.receipt import Receipt, verify_receipt

T0 = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)


class Elapsed:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_enclave_time_starts_with_a_lease_and_counts_from_the_request() -> None:
    elapsed = Elapsed()
    clock = EnclaveClock(elapsed)
    with pytest.raises(UnavailableError):
        clock.now()
    clock.anchor(T0, sent=990.0)  # the answer took ten seconds
    assert clock.now() == T0 + timedelta(seconds=10)
    elapsed.seconds += 5
    assert clock.now() == T0 + timedelta(seconds=15)


@given(st.lists(st.tuples(st.integers(-(10**6), 10**6), st.floats(0, 1000)), min_size=1, max_size=10))
def test_no_lease_sets_enclave_time_back(anchors: list[tuple[int, float]]) -> None:
    clock = EnclaveClock(lambda: 1000.0)
    clock.anchor(T0, sent=1000.0)
    seen = clock.now()
    for ahead, sent in anchors:
        clock.anchor(T0 + timedelta(seconds=ahead), sent=sent)
        assert clock.now() >= seen
        seen = clock.now()


def _grant(*, sent: float = 0.0, seconds: int = 100, grace_s: int | None = None) -> Any:
    end = T0 + timedelta(seconds=seconds + (grace_s or 0))
    lease = SimpleNamespace(not_before=T0, not_after=end, grace_s=grace_s)
    return SimpleNamespace(lease=lease, sent=sent)


@pytest.mark.parametrize(("random", "due"), [(0.0, 45.0), (0.5, 50.0), (0.999, 54.99)])
def test_a_lease_is_renewed_around_its_half_life(random: float, due: float) -> None:
    lease = TenantLease("acme", random=lambda: random)
    lease.granted(_grant(sent=10.0))
    assert not lease.due(10 + due - 0.1)
    assert lease.due(10 + due + 0.1)


@given(
    st.floats(0, 1, exclude_max=True),
    st.integers(2, 86400),
    st.one_of(st.none(), st.integers(1, 86400)),
    st.integers(0, 10**6),
)
def test_renewal_spreads_over_a_tenth_either_side_of_half_the_length(
    random: float, seconds: int, grace_s: int | None, sent: int
) -> None:
    lease = TenantLease("acme", random=lambda: random)
    lease.granted(_grant(sent=float(sent), seconds=seconds, grace_s=grace_s))
    half = seconds / 2
    assert not lease.due(sent + half * 0.9 - 1e-3)
    assert lease.due(sent + half * 1.1 + 1e-3)  # in the first part of the lease, before any grace
    at = half * (0.9 + 0.2 * random)
    assert (lease.due(sent + at - 1e-3), lease.due(sent + at + 1e-3)) == (False, True)


def test_renewals_of_a_fleet_fill_the_spread() -> None:
    source = random_module.Random(7)
    due = []
    for _ in range(1000):
        lease = TenantLease("acme", random=source.random)
        lease.granted(_grant())
        due.append(next(t / 10 for t in range(440, 560) if lease.due(t / 10)))
    assert 45.0 <= min(due) < 46
    assert 54 < max(due) <= 55.1
    per_second = Counter(int(at) for at in due)
    assert all(60 <= per_second[second] <= 140 for second in range(45, 55))


def test_the_grace_is_told_and_ends() -> None:
    lease = TenantLease("acme", random=lambda: 0.5)
    assert not lease.in_grace(T0)
    lease.granted(_grant(grace_s=20))
    assert not lease.in_grace(T0 + timedelta(seconds=99))
    assert lease.in_grace(T0 + timedelta(seconds=100))
    lease.unreachable("broker-unreachable", 60.0)
    assert lease.check(T0 + timedelta(seconds=119))
    with pytest.raises(RevokedError):
        lease.check(T0 + timedelta(seconds=120))
    assert not lease.in_grace(T0 + timedelta(seconds=121))


def test_a_notice_hurries_and_many_do_not_drive() -> None:
    lease = TenantLease("acme", random=lambda: 0.5)
    lease.granted(_grant(seconds=600))
    lease.hurry(10.0)
    assert (lease.due(10.4), lease.due(10.5)) == (False, True)
    lease.granted(_grant(sent=10.5, seconds=600))
    lease.hurry(11.0)  # forged, or another change: heeded, five seconds after the last at the soonest
    assert (lease.due(15.4), lease.due(15.5)) == (False, True)
    lease.hurry(12.0)
    assert not lease.due(15.4)
    lease.refused("tenant-revoked")
    lease.hurry(30.0)
    assert not lease.due(10**9)


def test_an_ended_lease_stops_for_good() -> None:
    lease = TenantLease("acme", random=lambda: 0.5)
    lease.granted(_grant())
    assert lease.check(T0 + timedelta(seconds=99))
    with pytest.raises(RevokedError) as caught:
        lease.check(T0 + timedelta(seconds=100))
    assert caught.value.code == "lease-ended"
    lease.granted(_grant(seconds=10**6))
    with pytest.raises(RevokedError):
        lease.check(T0)
    assert not lease.due(10**9)


def test_a_refusal_stops_and_an_outage_does_not() -> None:
    lease = TenantLease("acme", random=lambda: 0.5)
    lease.granted(_grant())
    pauses = []
    for _ in range(8):
        lease.unreachable("broker-unreachable", 50.0)
        at = next(t for t in range(50, 200) if lease.due(t))
        pauses.append(at - 50)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert lease.check(T0)
    lease.refused("key-revoked")
    with pytest.raises(RevokedError) as caught:
        lease.check(T0)
    assert caught.value.code == "key-revoked"


def test_without_a_lease_nobody_is_served() -> None:
    with pytest.raises(RevokedError) as caught:
        TenantLease("acme", random=lambda: 0.5).check(T0)
    assert caught.value.code == "no-lease"


def _callers(tenant: str, **credentials: str) -> Callers:
    entries = [
        Caller(caller=name, credential_digest=credential_digest(text)) for name, text in credentials.items()
    ]
    return Callers(tenant=tenant, lease_id=bytes(16), callers=entries)


def test_a_credential_stands_for_one_caller_of_one_tenant() -> None:
    known = [_callers("acme", alice="swk_a", bob="swk_b"), _callers("other", carol="swk_c")]
    for text, tenant, name in (("swk_a", "acme", "alice"), ("swk_c", "other", "carol")):
        caller = authenticate([(b"authorization", f"Bearer {text}".encode())], known)
        assert (caller.tenant, caller.name) == (tenant, name)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([], "credential-missing"),
        ([(b"authorization", b"Basic swk_a")], "credential-missing"),
        ([(b"authorization", b"Bearer swk_a"), (b"authorization", b"Bearer swk_a")], "credential-missing"),
        ([(b"authorization", b"Bearer " + b"x" * 200)], "credential-missing"),
        ([(b"authorization", b"Bearer swk_b")], "credential-unknown"),
        ([(b"authorization", b"Bearer ")], "credential-unknown"),
        ([(b"authorization", b"Bearer \xff")], "credential-unknown"),
    ],
)
def test_other_credentials_are_refused(headers: list[tuple[bytes, bytes]], code: str) -> None:
    with pytest.raises(VerificationError) as caught:
        authenticate(headers, [_callers("acme", alice="swk_a")])
    assert caught.value.code == code


def test_the_journal_keeps_room_for_what_it_promised() -> None:
    journal = Journal(2)
    with journal.room(), journal.room():
        with pytest.raises(UnavailableError) as caught, journal.room():
            pass
        assert caught.value.code == "receipt-backlog-full"
        journal.put({"n": 1})
    assert journal.batch() == [{"n": 1}]
    with journal.room(), pytest.raises(UnavailableError), journal.room():
        pass
    journal.logged(1)
    assert len(journal) == 0


def _answer(**changes: Any) -> Answer:
    fields: dict[str, Any] = {
        "tenant": "acme", "caller": "alice", "kid": "k1", "manifest_digest": bytes(32), "model": "m",
        "decision": "allow", "status": "complete", "request": bytes(32), "response": bytes(32),
        "tokens_in": 1, "tokens_out": 2, "transport": "chunked-ohttp",
    }  # fmt: skip
    return Answer(**{**fields, **changes})


def test_receipts_verify_and_are_counted_by_lease() -> None:
    keys = EnclaveKeys.generate("default", created=T0)
    journal = Journal(10)
    issuer = ReceiptIssuer(keys, config_digest=b"c" * 32, platform="software", journal=journal)
    leases: list[Any] = [SimpleNamespace(lease_id=bytes([n]) * 16) for n in range(2)]
    for number, lease in enumerate([leases[0], leases[0], leases[1]]):
        raw = issuer.issue(issuer.new_id(), lease, _answer(), started=T0)
        statement = verify_receipt(Receipt.parse(raw), keys.keyset, config_digest=b"c" * 32)
        assert statement.predicate.sequence == number
        assert not statement.predicate.confidential
    assert [issuer.answers(lease.lease_id) for lease in leases] == [2, 1]
    assert len(journal) == 3


def test_suites_decide_the_kem() -> None:
    assert EnclaveKeys.generate("default", created=T0).keyset.hpke[0].kem == 0x647A
    assert EnclaveKeys.generate("classical", created=T0).keyset.hpke[0].kem == 0x0020


def test_private_keys_are_not_shown() -> None:
    assert "PrivateKey" not in repr(EnclaveKeys.generate("default", created=T0))


def test_a_bucket_bounds_bursts_and_rate() -> None:
    elapsed = Elapsed()
    bucket = Bucket(2.0, 3.0, clock=elapsed)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    elapsed.seconds += 1
    assert [bucket.take() for _ in range(3)] == [True, True, False]
