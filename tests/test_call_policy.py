"""Per-call policy: nesting, ranges, headers, and that it ends with its block."""

from __future__ import annotations

import asyncio

import pytest

from meshlib.call_policy import MAX_RETRIES, POLICY, call_policy


def test_it_holds_inside_and_ends_with_its_block():
    """Also when the block raises."""
    assert POLICY.get() is None
    seen = []

    def block():
        with call_policy(timeout=2, max_retries=0, idempotent=False):
            seen.append(POLICY.get())
            raise KeyError

    with pytest.raises(KeyError):
        block()
    (policy,) = seen
    assert (policy.timeout_s, policy.max_retries, policy.idempotent) == (2.0, 0, False)
    assert POLICY.get() is None


def test_an_inner_policy_adds_and_wins():
    """What the inner one does not say is the outer one's."""
    with call_policy(timeout=2.0, idempotent=True, headers={"x-a": "1"}):
        with call_policy(timeout=1.0, max_retries=2, headers={"x-b": "2"}):
            policy = POLICY.get()
            assert (policy.timeout_s, policy.max_retries, policy.idempotent) == (1.0, 2, True)
            assert policy.header_lines == b"x-a: 1\r\nx-b: 2\r\n"
        assert (POLICY.get().timeout_s, POLICY.get().max_retries) == (2.0, None)


def test_tasks_begun_inside_inherit_it():
    """A contextvar: read when a call is made, in whatever task."""

    async def ask():
        return POLICY.get().timeout_s

    async def scenario():
        with call_policy(timeout=3.0):
            task = asyncio.get_running_loop().create_task(ask())
        return await task

    assert asyncio.run(scenario()) == 3.0


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("timeout", value) for value in (0, -1, float("inf"), float("nan"))),
        *(("max_retries", value) for value in (-1, MAX_RETRIES + 1)),
        ("headers", {"x a": "1"}),
        ("headers", {"": "1"}),
        ("headers", {"x-a": "1\r\nx-b: 2"}),
        ("headers", {"x-a": "\0"}),
        ("headers", {"x-a": "€"}),
        ("headers", {"Host": "other"}),
        ("headers", {"Content-Length": "1"}),
        ("headers", {"transfer-encoding": "chunked"}),
        ("headers", {"X-Meshlib-Attempt": "1"}),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(argument, value):
    """ValueError names the argument; nothing is set."""
    with pytest.raises(ValueError, match=argument), call_policy(**{argument: value}):
        pytest.fail("the block was entered")
    assert POLICY.get() is None


def test_the_ends_of_the_ranges_are_inside():
    """0 and MAX_RETRIES retries, a tiny timeout, latin-1 header values."""
    for retries in (0, MAX_RETRIES):
        with call_policy(timeout=1e-9, max_retries=retries, headers={"x-a": "caf\xe9\t!"}):
            assert POLICY.get().max_retries == retries


def test_an_inner_header_wins_over_an_outer_one_of_the_same_name():
    """As every other value does."""
    with call_policy(headers={"x-a": "1", "x-b": "1"}), call_policy(headers={"X-A": "2"}):
        lines = POLICY.get().header_lines
    assert lines.lower().split(b"\r\n").count(b"x-a: 1") == 0
    assert b"X-A: 2\r\n" in lines
