"""Splitting by a key: shares, a known vector, and that a changed weight moves only what it must."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.policy.hash_split import HashSplit

from .clusters import within_3_sigma

KEYS = [f"user-{n}" for n in range(4000)]
weights_of = st.lists(st.integers(0, 100), min_size=1, max_size=6).filter(any)


def names(count: int) -> list[str]:
    return [f"backend-{n}" for n in range(count)]


def drawn(weights, salt="orders/canary", of=None) -> list[int]:
    split = HashSplit(weights, of or names(len(weights)), salt)
    return [split.draw(key) for key in KEYS]


def test_the_same_in_every_process():
    """A known vector: what a process draws today, every other one draws, under any PYTHONHASHSEED."""
    split = HashSplit([90, 10, 0, 50], ["v1", "v2", "v3", "v4"], "orders.default/canary")
    found = [split.draw(key) for key in ("alice", "bob", "carol", "dave", "erin", "\u00e4", "", "\ud800")]
    assert found == [0, 3, 3, 3, 1, 0, 0, 0]


@pytest.mark.parametrize("weights", [[1, 1], [90, 10], [99, 1], [5, 3, 2], [1, 0, 1], [1, 1, 1, 1, 1]])
def test_shares(weights):
    """Fixed keys, so a fixed result; within the band of Gateway API for weights."""
    indices = drawn(weights)
    for index, weight in enumerate(weights):
        assert within_3_sigma(indices.count(index), len(KEYS), weight / sum(weights))


@given(weights_of, st.integers(0, 5), st.integers(0, 100), st.text(max_size=4))
def test_a_raised_weight_draws_to_it_and_a_lowered_one_away(weights, at, changed, salt):
    """Every key that moves goes to the backend that was raised, or comes from the one that was lowered."""
    at %= len(weights)
    after = [*weights[:at], changed, *weights[at + 1 :]]
    if not any(after):
        return
    first, second = (HashSplit(w, names(len(w)), salt) for w in (weights, after))
    for key in KEYS[:200]:
        old, new = first.draw(key), second.draw(key)
        if old != new:
            assert (new if changed > weights[at] else old) == at


@given(weights_of, st.text())
def test_nobody_is_drawn_for_nothing(weights, key):
    """A weight of 0 is never drawn, and any text is a key."""
    assert weights[HashSplit(weights, names(len(weights)), "s").draw(key)] > 0


def test_a_backend_more_takes_only_what_is_its_own():
    """Appended, it moves keys to itself alone, about its share of them; taken away, they go back where they were."""
    before, after = drawn([1, 1, 1]), drawn([1, 1, 1, 1])
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {3}
    assert within_3_sigma(len(moved), len(KEYS), 0.25)


def test_the_order_of_the_backends_says_nothing():
    """A backend is its name, not its place."""
    forwards, backwards = drawn([3, 2, 1], of=["a", "b", "c"]), drawn([1, 2, 3], of=["c", "b", "a"])
    assert [2 - index for index in forwards] == backwards


def test_the_salt_tells_splits_apart():
    """Who is in the first 10 % of one split is in the first 10 % of another one no more often than anybody else."""
    one, other = drawn([90, 10], "a"), drawn([90, 10], "b")
    both = sum(x == y == 1 for x, y in zip(one, other, strict=True))
    assert within_3_sigma(both, len(KEYS), 0.01)


def test_a_name_that_is_there_twice():
    """They share as two backends do."""
    indices = drawn([1, 1], of=["same", "same"])
    assert within_3_sigma(indices.count(0), len(KEYS), 0.5)


def test_a_split_of_nothing():
    """As Split: a mistake of the configuration."""
    with pytest.raises(ValueError, match=r"positive weight, got \[0, 0\]"):
        HashSplit([0, 0], ["a", "b"], "s")
