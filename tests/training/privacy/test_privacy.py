"""Noise is exact, bounds hold in integers, budgets hold through restarts and rollbacks."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealwright.errors import SealwrightError
from sealwright.training.privacy.accountant import ORDERS, concentrated, gaussian, nothing, sampled
from sealwright.training.privacy.entries import Budget, Entry, decimal_up
from sealwright.training.privacy.gaussian import discrete_gaussian
from sealwright.training.privacy.ledger import PrivacyLedger
from sealwright.training.privacy.noise import add_central_noise, bounded, norm2, private_encoder
from sealwright.training.privacy.randomness import exp_bounds, stream_source
from sealwright.training.privacy.spec import NoisePlan, PrivacySpec
from sealwright.training.secagg.fixed import decode_sum
from sealwright.training.secagg.spec import RunSpec

BUDGET = Budget(name="digits", unit="worker", epsilon="3", delta="0.00001")


def run_spec(**changes: object) -> RunSpec:
    members = {
        "run": "r", "mode": "masked", "elements": 64, "clip": "4", "max_weight": 1, "min_roster": 8,
        "max_roster": 10, "min_survivors": 6, "degree": 9, "threshold": 6, "countersigner": bytes(32),
        "enrolment_policy": bytes(32), "purpose": "test",
    }  # fmt: skip
    return RunSpec(**{**members, **changes})


def plan(run: RunSpec | None = None, **changes: object) -> NoisePlan:
    run = run or run_spec()
    members = {
        "run_spec": run.digest(), "mechanism": "distributed", "norm": "0.5", "noise_multiplier": "1.5",
        "colluding": 1, "epsilon": "3", "delta": "0.00001",
    }  # fmt: skip
    return NoisePlan(PrivacySpec(**{**members, **changes}), run)


def entry(number: int, rho: str = "0.05") -> Entry:
    return Entry(
        mechanism="distributed",
        first_round=number,
        rounds=1,
        sampling="none",
        sampling_rate="1",
        rho=rho,
        dropouts=0,
    )


@pytest.mark.parametrize("variance", [Fraction(1, 3), Fraction(1), Fraction(37, 5)])
def test_the_noise_has_the_probabilities_of_a_discrete_gaussian(variance: Fraction) -> None:
    count = 200_000
    found = discrete_gaussian(variance, count, stream_source(b"chi-square".ljust(32)))
    weights = {x: math.exp(-x * x / (2 * float(variance))) for x in range(-60, 61)}
    total = sum(weights.values())
    cells = [x for x in weights if count * weights[x] / total >= 20]
    expected = np.array([count * weights[x] / total for x in cells])
    seen = np.array([int((found == x).sum()) for x in cells])
    statistic = float(((seen - expected) ** 2 / expected).sum())
    freedom = len(cells)
    assert statistic < freedom + 5 * math.sqrt(2 * freedom) + 5  # the seed is fixed: no flake
    wrong = np.rint(np.random.default_rng(1).normal(0, math.sqrt(variance), count))  # rounded, not discrete
    if variance < 1:
        seen = np.array([int((wrong == x).sum()) for x in cells])
        assert ((seen - expected) ** 2 / expected).sum() > 10 * (freedom + 5 * math.sqrt(2 * freedom) + 5)


@given(st.fractions(min_value=0, max_value=60, max_denominator=10**6))
def test_the_slow_exponential_encloses_the_fast_one(gamma: Fraction) -> None:
    low, high = exp_bounds(gamma, 80)
    assert low < high <= low + Fraction(1, 1 << 78)
    value = Fraction(math.exp(-gamma))
    assert low - value / 2**48 <= value <= high + value / 2**48


@settings(max_examples=60)
@given(st.lists(st.floats(-1e300, 1e300), min_size=64, max_size=64), st.integers(0, 255))
def test_no_update_is_longer_than_the_bound(numbers: list[float], seed: int) -> None:
    made = plan()
    values = bounded(np.array(numbers), made, stream_source(bytes([seed]) * 32))
    assert sum(int(v) ** 2 for v in values) == norm2(values) <= made.bound2


def test_the_sum_has_the_noise_of_its_survivors() -> None:
    run = run_spec(elements=4096)
    made, total = plan(run), np.zeros(4097, dtype=np.uint32)
    for worker in range(7):
        out = np.empty(4097, dtype=np.uint32)
        encode = private_encoder(made, source=stream_source(bytes([worker]) * 32))
        encode(np.zeros(4096), 1, run, out)
        total += out
    values = decode_sum(total, run, 7).total.astype(float)
    assert abs(values.var() / (7 * float(made.share_variance)) - 1) < 0.1
    assert 5 * made.share_variance >= made.total_variance  # min_survivors less colluding
    assert made.rho(9) < made.rho(6)


def test_central_noise_is_added_once() -> None:
    run = run_spec(mode="tee", elements=4096)
    made = plan(run, mechanism="central", colluding=0)
    residues = np.zeros(4097, dtype=np.uint32)
    residues[-1] = 7
    noisy = add_central_noise(decode_sum(residues, run, 7), made, source=stream_source(bytes(32)))
    assert abs(noisy.total.astype(float).var() / float(made.central_variance) - 1) < 0.1


@pytest.mark.parametrize(
    ("run", "changes"),
    [
        ({"max_weight": 3}, {}),
        ({}, {"colluding": 6}),
        ({}, {"mechanism": "central", "colluding": 0}),
        ({}, {"norm": "4"}),
        ({}, {"run_spec": bytes(32)}),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(run: dict[str, object], changes: dict[str, object]) -> None:
    with pytest.raises(SealwrightError) as caught:
        plan(run_spec(**run), **changes)
    assert (caught.value.code, caught.value.stage) == ("dp-plan", "dp")


def test_bad_updates_and_weights_are_refused() -> None:
    made, out = plan(), np.empty(65, dtype=np.uint32)
    for update, weight, code in [
        (np.full(64, np.nan), 1, "update-out-of-range"),
        (np.zeros(63), 1, "update-length"),
        (np.zeros(64), 2, "dp-plan"),
    ]:
        with pytest.raises(SealwrightError) as caught:
            private_encoder(made)(update, weight, made.run, out)
        assert caught.value.code == code


@given(st.floats(0.3, 20), st.floats(0.001, 1), st.integers(1, 2000))
def test_costs_only_grow(noise: float, rate: float, rounds: int) -> None:
    less, more = gaussian(noise * 1.1, rate * 0.9), gaussian(noise, rate)
    assert all(a <= b * (1 + 1e-6) + 1e-9 for a, b in zip(less.values, more.values, strict=True))
    assert more.times(rounds).epsilon(1e-5) <= more.times(rounds + 1).epsilon(1e-5)
    assert more.epsilon(1e-5) <= more.epsilon(1e-6)


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.01, 1000), (0.7, 0.1, 100), (4.0, 1.0, 50)])
def test_our_bound_is_above_and_near_that_of_an_independent_accountant(
    noise: float, rate: float, steps: int
) -> None:
    dp = pytest.importorskip("dp_accounting")
    event = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise))
    ours = gaussian(noise, rate).times(steps)
    theirs = dp.rdp.RdpAccountant(list(ORDERS)).compose(event, steps).get_epsilon(1e-5)
    exact = dp.pld.PLDAccountant().compose(event, steps).get_epsilon(1e-5)
    assert ours.epsilon(1e-5) == pytest.approx(theirs, rel=1e-3)
    assert exact * 0.999 <= ours.epsilon(1e-5) <= 1.35 * exact


def test_sampling_of_any_mechanism_costs_more_than_of_the_gaussian_and_less_than_all() -> None:
    assert (
        gaussian(2, 0.1).epsilon(1e-5)
        <= sampled(0.125, 0.1).epsilon(1e-5)
        <= concentrated(0.125).epsilon(1e-5)
    )
    assert nothing().epsilon(0.5) == 0


@given(st.floats(0, 1e8, allow_subnormal=True), st.integers(1, 14))
def test_decimals_are_rounded_up(value: float, places: int) -> None:
    assert 0 <= Fraction(decimal_up(value, places=places)) - Fraction(value) < Fraction(1, 10**places)


def test_a_round_over_budget_is_refused_and_not_recorded(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger, number = PrivacyLedger(path, BUDGET, pinned=None), 1
    while (ledger.state.cost() + entry(1).cost()).epsilon(1e-5) <= 3:
        assert Fraction(ledger.charge(entry(number)).epsilon) <= 3
        number += 1
    before = path.read_bytes()
    with pytest.raises(SealwrightError) as caught:
        ledger.charge(entry(number))
    assert (caught.value.code, caught.value.stage) == ("dp-budget-spent", "dp")
    assert number > 2
    assert path.read_bytes() == before
    again = PrivacyLedger(path, BUDGET, pinned=ledger.state.head)
    with pytest.raises(SealwrightError, match="over the budget"):
        again.charge(entry(number))
    assert again.spent().rounds == number - 1


def test_two_processes_cannot_spend_the_same_budget(tmp_path: Path) -> None:
    one, two = (PrivacyLedger(tmp_path / "l", BUDGET, pinned=None) for _ in range(2))
    one.charge(entry(1))
    with pytest.raises(SealwrightError) as caught:
        two.charge(entry(1))
    assert caught.value.code == "ledger-round"
    assert two.charge(entry(2)).rounds == 2


def test_a_ledger_that_was_set_back_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = PrivacyLedger(path, BUDGET, pinned=None)
    ledger.charge(entry(1))
    old = path.read_bytes()
    ledger.charge(entry(2))
    path.write_bytes(old)
    for attempt in (
        lambda: ledger.charge(entry(3)),
        lambda: PrivacyLedger(path, BUDGET, pinned=ledger.state.head),
        lambda: PrivacyLedger(path, BUDGET, pinned=None),
    ):
        with pytest.raises(SealwrightError) as caught:
            attempt()
        assert (caught.value.code, caught.value.stage) == ("ledger-rollback", "ledger")


def test_a_damaged_ledger_and_an_unwritable_folder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    PrivacyLedger(path, BUDGET, pinned=None).charge(entry(1))
    raw = path.read_bytes()
    for bad in (raw[:-1], raw.replace(b"0.05", b"0.01"), b""):
        path.write_bytes(bad)
        with pytest.raises(SealwrightError) as caught:
            PrivacyLedger(path, BUDGET, pinned=None)
        assert caught.value.code == "ledger-malformed"
    with pytest.raises(SealwrightError) as caught:
        PrivacyLedger(tmp_path / "none" / "ledger", BUDGET, pinned=None)
    assert caught.value.code == "ledger-unavailable"


def test_a_round_is_charged_with_its_dropouts(tmp_path: Path) -> None:
    ledger = PrivacyLedger(tmp_path / "l", BUDGET, pinned=None)
    spent = ledger.charge_round(plan(), round_number=1, roster=9, survivors=7)
    assert (spent.dropouts, spent.rounds, spent.mechanisms) == (2, 1, ["distributed"])
    with pytest.raises(SealwrightError) as caught:
        ledger.charge_round(plan(), round_number=2, roster=9, survivors=5)
    assert caught.value.code == "dp-plan"
    with pytest.raises(SealwrightError, match="another budget"):
        ledger.charge_round(plan(epsilon="8"), round_number=2, roster=9, survivors=7)


@pytest.mark.parametrize(
    "changes",
    [
        {"rho": "0"},
        {"rho": None},
        {"sampling_rate": "0.5"},
        {"mechanism": "dp-sgd", "rho": None, "noise_multiplier": "1"},
    ],
)
def test_an_entry_that_costs_nothing_or_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    ledger = PrivacyLedger(tmp_path / "l", BUDGET, pinned=None)
    with pytest.raises(SealwrightError) as caught:
        ledger.charge(entry(1).model_copy(update=changes))
    assert caught.value.code == "ledger-malformed"
