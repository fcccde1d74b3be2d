"""Sums are exact, whoever drops out, and whenever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.training.secagg.support import Run, expected, updates

from sealwright.errors import UnavailableError, VerificationError


@pytest.mark.parametrize("mode", ["masked", "tee", "tee+masked"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_sum_of_all(mode: str, threads: int) -> None:
    run = Run.make(5, mode=mode, elements=300_001)
    sent, weights = updates(run), [1, 2, 8, 3, 5]
    total = run.round(sent, weights, threads=threads)
    assert total.weight == sum(weights)
    np.testing.assert_array_equal(total.total, expected(sent, weights, range(5), run.spec))
    mean = sum(w * u for w, u in zip(weights, sent, strict=True)) / sum(weights)
    np.testing.assert_allclose(total.mean(), mean, atol=1e-6 * float(run.spec.clip_value))


@pytest.fixture(scope="module")
def seven() -> Run:
    """Seven workers, all neighbours; five shares open a seed (40 of 63, of 6 neighbours: 4)."""
    return Run.make(7)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_exact_under_any_dropout_that_the_threshold_allows(seven: Run, data: st.DataObject) -> None:
    run = seven
    places = st.sets(st.integers(1, 7), max_size=4)
    dropped = data.draw(places)
    alive = [place for place in range(1, 8) if place not in dropped]
    silent = data.draw(st.sets(st.sampled_from(alive), max_size=len(alive))) if alive else set()
    weights = data.draw(st.lists(st.integers(1, 8), min_size=7, max_size=7))
    sent = updates(run, seed=data.draw(st.integers(0, 1000)))
    threshold = run.spec.threshold_of(6)
    answering = set(alive) - silent
    enough = all(len(answering - {place}) >= threshold for place in alive)
    survivable = len(alive) - 1 >= threshold
    if not (enough and survivable):
        with pytest.raises((UnavailableError, VerificationError)) as caught:
            run.round(sent, weights, drop=dropped, silent=silent)
        assert caught.value.code == ("too-few-shares" if survivable else "survivors-too-few")
        for worker in run.workers:
            run.greet(worker)
        return
    total = run.round(sent, weights, drop=dropped, silent=silent)
    assert total.weight == sum(weights[place - 1] for place in alive)
    np.testing.assert_array_equal(
        total.total, expected(sent, weights, [place - 1 for place in alive], run.spec)
    )


def test_a_sparse_graph_with_dropouts() -> None:
    run = Run.make(30, degree=8, threshold=5, elements=1000)
    sent = updates(run)
    for dropped, silent in (((), ()), ((3, 17), ()), ((9,), (21,)), ((), (1, 30))):
        total = run.round(sent, drop=dropped, silent=silent)
        alive = [place - 1 for place in range(1, 31) if place not in dropped]
        np.testing.assert_array_equal(total.total, expected(sent, [1] * 30, alive, run.spec))


def test_many_rounds_give_different_masks() -> None:
    run = Run.make(3)
    sent = [np.zeros(64) for _ in range(3)]
    seen = set()
    for _ in range(4):
        roster = run.roster()
        coordinator = run.coordinator(roster)
        messages = [worker.mask(run.opened(roster), sent[0], 1) for worker in run.workers]
        seen |= {bytes(message[: 65 * 4]) for message in messages}
        for message in messages:
            coordinator.receive(message)
        signed = run.countersigner.sign(coordinator.survivors())
        for place in coordinator.received:
            worker = run.by_place(roster, place)
            nonce = coordinator.open(worker.unmask(signed, coordinator.shares_for(place)))
            run.nonces[worker.enrolment.worker] = nonce
        assert not coordinator.sum().total.any()
    assert len(seen) == 12


def test_a_masked_update_looks_random() -> None:
    run = Run.make(2, elements=100_000)
    roster = run.roster()
    message = run.workers[0].mask(run.opened(roster), np.zeros(100_000), 1)
    numbers = np.frombuffer(message[:400_004], dtype="<u4").astype(np.float64)
    # Mean and bits of a uniform distribution, within six standard deviations.
    assert abs(numbers.mean() / 2**31 - 1) < 6 * (2 / np.sqrt(12)) / np.sqrt(100_000)
    bits = np.unpackbits(np.frombuffer(message[:400_004], dtype=np.uint8)).mean()
    assert abs(bits - 0.5) < 6 * 0.5 / np.sqrt(3_200_000)
