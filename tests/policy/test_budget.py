"""The retry budget against Finagle's vectors, its window, and its bounds."""

from __future__ import annotations

import pytest

from meshlib.policy.budget import SLICES, TTL_S, RetryBudget


def retried(budget: RetryBudget, requests: int, now: float = 1000.0) -> int:
    count = 0
    for _ in range(requests):
        budget.deposit(now)
        count += budget.withdraw(now)
    return count


@pytest.mark.parametrize("percent", [0.0001, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.99, 0.9999, 1.0])
def test_a_share_of_the_calls_may_be_retried(percent: float):
    """Finagle: of 10 000 calls on a stopped clock exactly that share, within one."""
    assert abs(retried(RetryBudget(percent, 0.0, 60.0), 10_000) - 10_000 * percent) <= 1


@pytest.mark.parametrize(
    ("percent", "floor", "ttl", "expected"),
    [(0.0, 10, 1, 10), (0.0, 5, 2, 10), (0.1, 10, 1, 1010), (0.5, 5, 2, 5010), (0.0, 0, 10, 0)],
)
def test_a_quiet_caller_may_retry_too(percent: float, floor: float, ttl: float, expected: int):
    """Finagle: min_per_second × ttl retries come on top of the share, also where the share is nothing."""
    assert abs(retried(RetryBudget(percent, floor, ttl), 10_000) - expected) <= 1


@pytest.mark.parametrize(
    ("percent", "floor", "ttl"), [(-0.1, 0, 10), (1.1, 0, 10), (0.2, -1, 10), (0.2, 0, 0), (0.2, 0, 61)]
)
def test_values_out_of_range_are_refused(percent: float, floor: float, ttl: float):
    """ValueError names what is wrong."""
    with pytest.raises(ValueError, match=r"budget (percent|min_per_second|ttl)"):
        RetryBudget(percent, floor, ttl)


def test_deposits_fade_after_the_ttl():
    """A burst of calls does not pay for retries for ever: after the ttl only the floor is left."""
    budget = RetryBudget(0.5, 0.0)
    for _ in range(100):
        budget.deposit(1000.0)
    assert budget.balance(1000.0) == pytest.approx(50)
    assert budget.balance(1000.0 + TTL_S - 1) == pytest.approx(50)
    assert budget.balance(1000.0 + TTL_S + 1) == 0.0
    assert not budget.withdraw(1000.0 + TTL_S + 1)


def test_withdrawals_fade_too():
    """The floor comes back: a caller that emptied it may retry again after the ttl."""
    budget = RetryBudget(0.2, 1.0)
    assert sum(budget.withdraw(0.0) for _ in range(100)) == 10
    assert not budget.withdraw(TTL_S - 1)
    assert sum(budget.withdraw(TTL_S + 1) for _ in range(100)) == 10


def test_reading_the_balance_changes_nothing():
    """`balance` may be asked at any time, also of the future."""
    budget = RetryBudget(0.5, 0.0)
    for _ in range(10):
        budget.deposit(5.0)
    assert budget.balance(10_000.0) == 0.0
    assert budget.balance(5.0) == pytest.approx(5)
    assert budget.withdraw(5.0)


def test_a_long_silence_costs_no_loop():
    """Catching up forgets at most SLICES slices, however long it was idle (tower's budget loops per tick)."""

    class Counted(list):
        writes = 0

        def __setitem__(self, at, value):
            self.writes += 1
            super().__setitem__(at, value)

    budget = RetryBudget(0.2, 10.0)
    budget._slices = slices = Counted(budget._slices)
    budget.deposit(1e9)
    assert slices.writes == SLICES + 1


def test_time_never_goes_back():
    """Two threads read the clock in one order and take the lock in the other: nothing that was paid is lost."""
    budget = RetryBudget(0.2, 1.0)
    assert sum(budget.withdraw(100.0) for _ in range(20)) == 10
    budget.deposit(98.5)
    assert not budget.withdraw(101.0), "an older `now` made the budget forget its withdrawals"
    assert not budget.withdraw(100.0)
