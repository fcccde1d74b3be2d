"""What docs/spec/key-backends.md promises, held against every backend: the real one where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from tests.backends.stands import Stand

from sealwright.broker.backend import Backends, KeyBackend, WrapContext, Wrapped
from sealwright.broker.backend.ring import decode, encode
from sealwright.broker.backend_admin import try_out
from sealwright.errors import RevokedError, SealwrightError, UnavailableError, VerificationError

CONTEXT = WrapContext(kid="k1", tenant="acme", policy_digest=b"p" * 32, epoch=7)
OTHERS = {
    "tenant": replace(CONTEXT, tenant="other"),
    "kid": replace(CONTEXT, kid="k2"),
    "policy": replace(CONTEXT, policy_digest=b"q" * 32),
    "epoch": replace(CONTEXT, epoch=8),
}


@pytest.fixture
def backend(stand: Stand) -> Iterator[KeyBackend]:
    backend = stand.make()
    yield backend
    backend.close()


def refused(stand: Stand, work: Any) -> SealwrightError:
    """Return the error of `work`, in which no secret stands."""
    with pytest.raises(SealwrightError) as caught:
        work()
    shown = " ".join([str(caught.value), repr(caught.value), *caught.value.lines()])
    assert not [secret for secret in stand.secrets if secret in shown]
    return caught.value


def rotated(stand: Stand, backend: KeyBackend) -> KeyBackend:
    """Return the backend with one version more."""
    if stand.rotate is None:
        backend.rotate()
        return backend
    assert refused(stand, backend.rotate).code == "backend-rotates-elsewhere"
    stand.rotate()
    return stand.make()


def test_what_is_wrapped_unwraps_and_no_two_wraps_are_equal(backend: KeyBackend) -> None:
    key = bytearray(os.urandom(32))
    first, second = backend.wrap(key, CONTEXT), backend.wrap(key, CONTEXT)
    assert first.payload != second.payload
    assert first.version == second.version == backend.current()
    assert backend.unwrap(first, CONTEXT) == backend.unwrap(second, CONTEXT) == key
    assert bytes(key) not in first.payload


def test_created_keys_have_32_bytes_and_differ(backend: KeyBackend) -> None:
    keys = [backend.unwrap(backend.create(CONTEXT), CONTEXT) for _ in range(3)]
    assert {len(key) for key in keys} == {32}
    assert len({bytes(key) for key in keys}) == 3


@pytest.mark.parametrize("what", OTHERS)
def test_another_context_is_refused(stand: Stand, backend: KeyBackend, what: str) -> None:
    wrapped = backend.create(CONTEXT)
    error = refused(stand, lambda: backend.unwrap(wrapped, OTHERS[what]))
    assert (type(error), error.code, error.stage) == (VerificationError, "key-unwrap-failed", "unwrap")
    error = refused(stand, lambda: backend.rewrap(wrapped, OTHERS[what], CONTEXT))
    assert error.code == "key-unwrap-failed"


def test_an_altered_wrap_is_refused(stand: Stand, backend: KeyBackend) -> None:
    wrapped = backend.create(CONTEXT)
    for at in (-1, -20, -40):
        payload = bytearray(wrapped.payload)
        payload[at] ^= 1
        bent = Wrapped(version=wrapped.version, payload=bytes(payload))
        assert refused(stand, lambda bent=bent: backend.unwrap(bent, CONTEXT)).code == "key-unwrap-failed"
    for payload in (b"", b"x", wrapped.payload[:-1]):
        bent = Wrapped(version=wrapped.version, payload=payload)
        assert refused(stand, lambda bent=bent: backend.unwrap(bent, CONTEXT)).exit_code in (10, 69)


def test_a_rewrap_opens_for_the_new_context_alone(stand: Stand, backend: KeyBackend) -> None:
    key = bytearray(os.urandom(32))
    moved = backend.rewrap(backend.wrap(key, CONTEXT), CONTEXT, OTHERS["policy"])
    assert backend.unwrap(moved, OTHERS["policy"]) == key
    assert refused(stand, lambda: backend.unwrap(moved, CONTEXT)).code == "key-unwrap-failed"


def test_after_a_rotation_old_versions_unwrap_and_new_wraps_use_the_new(
    stand: Stand, backend: KeyBackend
) -> None:
    key = bytearray(os.urandom(32))
    old = backend.wrap(key, CONTEXT)
    newer = rotated(stand, backend)
    assert newer.current() != old.version
    assert newer.unwrap(old, CONTEXT) == key
    assert newer.wrap(key, CONTEXT).version == newer.current()
    moved = newer.rewrap(old, CONTEXT, CONTEXT)
    assert moved.version == newer.current()
    assert newer.unwrap(moved, CONTEXT) == key


def test_a_destroyed_version_refuses_and_later_ones_work(stand: Stand, backend: KeyBackend) -> None:
    if stand.destroy is None:
        pytest.skip("moto decrypts with disabled keys; the mock of ours does not")
    old = backend.create(CONTEXT)
    newer = rotated(stand, backend)
    new = newer.create(CONTEXT)
    stand.destroy(old.version)
    again = stand.make()
    error = refused(stand, lambda: again.unwrap(old, CONTEXT))
    assert (type(error), error.code, error.stage) == (RevokedError, "key-version-destroyed", "unwrap")
    assert len(again.unwrap(new, CONTEXT)) == 32
    again.close()


def test_what_was_wrapped_before_a_restart_unwraps_after_it(stand: Stand, backend: KeyBackend) -> None:
    key = bytearray(os.urandom(32))
    wrapped = backend.wrap(key, CONTEXT)
    backend.close()
    again = stand.make()
    assert again.unwrap(wrapped, CONTEXT) == key
    again.close()


def test_many_threads_at_once(backend: KeyBackend) -> None:
    keys = [bytearray(os.urandom(32)) for _ in range(24)]

    def both(key: bytearray) -> bytearray:
        return backend.unwrap(backend.wrap(key, CONTEXT), CONTEXT)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(both, keys)) == keys


# python-pkcs11's iterators complain when they are collected after the library was lost.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_while_it_is_down_it_refuses_and_afterwards_it_works(stand: Stand, backend: KeyBackend) -> None:
    if stand.down is None or stand.up is None:
        pytest.skip("this stand has nothing that could be away")
    wrapped = backend.create(CONTEXT)
    stand.down()
    try:
        away = backend if stand.rotate is None else stand.make()
        for work in (
            lambda: away.unwrap(wrapped, CONTEXT),
            lambda: away.create(CONTEXT),
            away.current,
            lambda: away.rewrap(wrapped, CONTEXT, OTHERS["kid"]),
        ):
            error = refused(stand, work)
            assert (type(error), error.code, error.exit_code) == (UnavailableError, "backend-unavailable", 69)
    finally:
        stand.up()
    assert len(backend.unwrap(wrapped, CONTEXT)) == 32


def test_the_trial_of_a_new_backend_passes(backend: KeyBackend) -> None:
    assert try_out(backend) == backend.current()


def test_only_the_embedded_key_is_exportable_and_no_release_is_called_better_than_it_is(
    backend: KeyBackend,
) -> None:
    assert backend.facts.exportable == (backend.facts.kind == "embedded")
    assert backend.facts.release == "in-broker"


def test_through_the_ring_a_row_says_which_backend_and_version(backend: KeyBackend) -> None:
    ring = Backends({"embedded": backend, "other": backend}, active="other")
    raw = ring.create(CONTEXT)
    assert ring.stands(raw) == ("other", backend.current())
    assert encode(*decode(raw)) == raw
    assert len(ring.unwrap(raw, CONTEXT)) == 32
