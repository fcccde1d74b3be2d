"""The date window and the enc cache: once, in time, with room, and never after it was barred."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.transport.support import DIGEST, NOW

from sealwright.crypto.encoding import joined
from sealwright.errors import SealwrightError, UnavailableError, VerificationError
from sealwright.transport.replay import EncCache

S = timedelta(seconds=1)


def code(cache: EncCache, enc: bytes = b"e", *, tenant: str = "a", date: int = 0, now: int = 0) -> str:
    """Return the code of the refusal, or 'ok'. Times in seconds from NOW."""
    try:
        cache.admit(enc, tenant=tenant, date=NOW + date * S, now=NOW + now * S)
    except SealwrightError as exc:
        return exc.code
    return "ok"


@pytest.mark.parametrize(
    ("date", "want"), [(-61, "date"), (-60, "ok"), (0, "ok"), (60, "ok"), (61, "date"), (86400, "date")]
)
def test_window_has_60_seconds_either_side(date: int, want: str) -> None:
    assert code(EncCache(DIGEST), date=date) == want


@given(date=st.integers(-60, 60), steps=st.lists(st.integers(-300, 300), max_size=20))
def test_a_request_never_starts_twice_whatever_the_clock_does(date: int, steps: list[int]) -> None:
    cache = EncCache(DIGEST)
    assert code(cache, date=date) == "ok"
    for now in steps:
        assert code(cache, date=date, now=now) in ("replayed", "date")


def test_clock_turned_back_does_not_let_an_evicted_request_in() -> None:
    cache = EncCache(DIGEST)
    assert code(cache, b"1") == "ok"
    assert code(cache, b"2", date=300, now=300) == "ok"
    assert len(cache) == 1  # the first has left
    assert code(cache, b"1", now=0) == "date"


def test_full_cache_and_full_share_refuse_until_entries_leave() -> None:
    cache = EncCache(DIGEST, capacity=3, share=2)
    assert [code(cache, b"1"), code(cache, b"2"), code(cache, b"3")] == ["ok", "ok", "replay-cache-full"]
    assert [code(cache, b"3", tenant="b"), code(cache, b"4", tenant="c")] == ["ok", "replay-cache-full"]
    assert code(cache, b"1") == "replayed"  # also when full
    assert code(cache, b"5", date=61, now=61) == "ok"


def test_barred_never_starts_and_started_is_never_barred() -> None:
    cache = EncCache(DIGEST)
    message = cache.bar(b"e", tenant="a", date=NOW, now=NOW)
    assert message == joined("sealwright/not-started/v1", DIGEST, hashlib.sha256(b"e").digest())
    assert code(cache) == "barred"
    assert cache.bar(b"e", tenant="a", date=NOW, now=NOW) == message
    for now in (1, 60, 61, 0, 500):
        assert code(cache, now=now) in ("barred", "date")
    assert code(cache, b"started", date=500, now=500) == "ok"
    with pytest.raises(VerificationError) as caught:
        cache.bar(b"started", tenant="a", date=NOW + 500 * S, now=NOW + 500 * S)
    assert caught.value.code == "replayed"
    # Long after, its entry is gone: then its date keeps a false statement from being made.
    with pytest.raises(VerificationError) as caught:
        cache.bar(b"started", tenant="a", date=NOW + 500 * S, now=NOW + 561 * S)
    assert caught.value.code == "date"


def test_bars_have_the_same_limits() -> None:
    cache = EncCache(DIGEST, capacity=2, share=1)
    cache.bar(b"1", tenant="a", date=NOW, now=NOW)
    with pytest.raises(UnavailableError) as caught:
        cache.bar(b"2", tenant="a", date=NOW, now=NOW)
    assert caught.value.code == "replay-cache-full"
    assert code(cache, b"2") == "replay-cache-full"
