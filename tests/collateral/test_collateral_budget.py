"""Budgets of peers, and fair queues: what one address may cost the others."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.collateral.support import FakeTime

from sealwright.collateral import budget as module
from sealwright.collateral.budget import Budget, account
from sealwright.collateral.need import Need
from sealwright.collateral.pace import Pacer
from sealwright.errors import UnavailableError


def chip(number: int = 0) -> Need:
    return Need("amd-vcek", f"Milan:{number:0128x}:3:0:8:115")


def test_a_budget_is_spent_and_comes_back_within_the_hour() -> None:
    now = [0.0]
    budget = Budget(lambda: now[0], pieces=4)
    payer = budget.payer("192.0.2.1")
    for number in range(4):
        payer.pay(chip(number))
    with pytest.raises(UnavailableError) as caught:
        payer.pay(chip(4))
    assert (caught.value.code, caught.value.stage) == ("collateral-over-budget", "fetch")
    budget.payer("192.0.2.2").pay(chip(4))
    now[0] += 900
    payer.pay(chip(5))
    with pytest.raises(UnavailableError):
        payer.pay(chip(6))


def test_what_genuine_evidence_needed_is_given_back_once_to_who_paid() -> None:
    budget = Budget(lambda: 0.0, pieces=2)
    one, other = budget.payer("192.0.2.1"), budget.payer("192.0.2.2")
    one.pay(chip(1))
    one.pay(chip(2))
    other.pay(chip(3))
    for _ in range(2):
        budget.forgive([chip(1), chip(9)])
    one.pay(chip(4))
    with pytest.raises(UnavailableError):
        one.pay(chip(5))
    other.pay(chip(5))
    with pytest.raises(UnavailableError):
        other.pay(chip(6))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAID", 16)
    budget = Budget(lambda: 0.0, pieces=1, max_peers=8)
    for number in range(100):
        budget.payer(f"192.0.2.{number}").pay(chip(number))
    assert (len(budget._left), len(budget._paid)) == (8, 16)
    with pytest.raises(UnavailableError):
        budget.payer("192.0.2.99").pay(chip(0))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("", "192.0.2.1", False),
    ],
)
def test_one_owner_has_one_account(one: str, other: str, same: bool) -> None:
    assert (account(one) == account(other)) is same


async def order_of(arrivals: list[list[str]]) -> list[int]:
    """Return in which order requests that arrive together have their turns; each has owners."""
    time = FakeTime()
    pacer = Pacer(time.clock, time.sleep, {"slow": 10.0})
    served: list[int] = []

    async def one(number: int) -> None:
        await pacer.turn("slow", longest_s=1e9, owners=arrivals[number])
        served.append(number)

    await pacer.turn("slow", longest_s=0)
    async with anyio.create_task_group() as tasks:
        for number in range(len(arrivals)):
            tasks.start_soon(one, number)
        await time.run(lambda: len(served) == len(arrivals))
    assert pacer._lanes["slow"].waiting == []
    assert time.seconds == 10 * len(arrivals), "and the vendor's limit is kept"
    return served


async def test_owners_take_turns() -> None:
    assert await order_of([["a"], ["a"], ["a"], ["b"], ["b"], ["c"]]) == [0, 3, 5, 1, 4, 2]


async def test_a_request_of_two_has_the_earlier_turn() -> None:
    assert await order_of([["a"], ["a"], ["a", "b"], ["c"]]) == [0, 2, 3, 1]


async def test_who_leaves_does_not_hold_the_others_up() -> None:
    time = FakeTime()
    pacer = Pacer(time.clock, time.sleep, {"slow": 10.0})
    await pacer.turn("slow", longest_s=0)
    served: list[str] = []

    async def one(owner: str, scope: anyio.CancelScope) -> None:
        with scope:
            await pacer.turn("slow", longest_s=100, owners=[owner])
            served.append(owner)

    scopes = {owner: anyio.CancelScope() for owner in "abc"}
    async with anyio.create_task_group() as tasks:
        for owner, scope in scopes.items():
            tasks.start_soon(one, owner, scope)
        await anyio.sleep(0.01)
        scopes["a"].cancel()  # it was the one that watched the time
        await time.run(lambda: len(served) == 2)
    assert served == ["b", "c"]


async def test_who_joins_is_expected_in_its_own_turn() -> None:
    time = FakeTime()
    pacer = Pacer(time.clock, time.sleep, {"slow": 10.0})
    async with anyio.create_task_group() as tasks:
        await pacer.turn("slow", longest_s=0)

        async def one() -> None:
            await pacer.turn("slow", longest_s=1000, owners=["a"])

        for _ in range(30):
            tasks.start_soon(one)
        await anyio.sleep(0.01)
        assert pacer.expected_s("slow", ["a"]) >= 300
        assert pacer.expected_s("slow", ["b"]) <= 20
        with pytest.raises(UnavailableError) as caught:
            await pacer.turn("slow", longest_s=60, owners=["a"])
        assert caught.value.code == "collateral-rate-limited"
        tasks.cancel_scope.cancel()


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=24))
def test_no_owner_waits_longer_than_its_share(owners: list[str]) -> None:
    served = anyio.run(order_of, [[owner] for owner in owners])
    assert sorted(served) == list(range(len(owners)))
    for number, owner in enumerate(owners):
        own = owners[:number].count(owner)
        bound = sum(min(owners.count(other), own + 1) for other in set(owners))
        assert served.index(number) < bound
