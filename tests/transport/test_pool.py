"""The pool's decisions, without a socket: who gets what, what is closed, what is counted."""

from __future__ import annotations

import random
from typing import Any

import pytest

from meshlib.errors import Rejected
from meshlib.transport.pool import CONNECTING_MAX, Pool, PoolSettings


class Connection:
    """What the pool knows of a connection."""

    def __init__(self) -> None:
        self.expires = self.usable_until = 0.0
        self.pooled = False


class Waiter:
    """A future, reduced."""

    def __init__(self) -> None:
        self.given: list[Any] = []
        self.gone = False

    def done(self) -> bool:
        return self.gone or bool(self.given)

    def set_result(self, result: Any, /) -> None:
        assert not self.done()
        self.given.append(result)


def pool(**settings: Any) -> Pool[Connection]:
    return Pool("a:1", PoolSettings(**settings), random.Random(1))


def opened(state: Pool[Connection], now: float = 0.0, lifetime: float = float("inf")) -> Connection:
    assert state.may_connect()
    connection = Connection()
    state.connect_ended(connection, now, lifetime)
    return connection


def test_the_newest_idle_connection_is_used_first() -> None:
    """LIFO, so that those not needed grow old."""
    state = pool()
    first, second = opened(state), opened(state)
    assert state.put(first, 1.0)
    assert state.put(second, 1.0)
    assert state.reuse(2.0) == (second, [])
    assert state.reuse(2.0) == (first, [])
    assert state.reuse(2.0) == (None, [])


def test_stale_connections_are_returned_to_be_closed() -> None:
    """Idle for idle_timeout_s: never used, handed out to be closed, their slots free once they are lost."""
    state = pool(idle_timeout_s=10.0)
    old, new = opened(state), opened(state)
    state.put(old, 0.0)
    state.put(new, 5.0)
    assert state.expire(9.9) == []
    assert state.expire(10.0) == [old]
    assert state.reuse(15.0) == (None, [new])
    state.lost(old)
    state.lost(old)
    state.lost(new)
    assert state.statistics().open == 0


def test_age_is_limited_with_jitter_and_by_the_certificate() -> None:
    """max_age_s ± 10 %, not the same for all, never beyond the certificate."""
    state = pool(max_age_s=100.0, max_connections=1000)
    ages = []
    for _ in range(100):
        connection = opened(state, now=50.0)
        ages.append(connection.expires - 50.0)
    assert 90.0 <= min(ages) < max(ages) <= 110.0
    assert max(ages) - min(ages) > 10.0
    short = opened(state, now=50.0, lifetime=3.0)
    assert short.expires == 53.0
    assert state.put(short, 52.0)
    assert short.usable_until == 53.0
    state.idle.remove(short)
    assert not state.put(short, 53.0)


def test_connects_are_limited_in_number_and_at_once() -> None:
    """max_connections slots, CONNECTING_MAX permits; a failed connect gives both back, a good one the permit."""
    state = pool(max_connections=CONNECTING_MAX + 1)
    assert [state.may_connect() for _ in range(CONNECTING_MAX + 1)] == [True] * CONNECTING_MAX + [False]
    state.connect_ended(Connection(), 0.0)
    assert state.may_connect()
    assert not state.may_connect()
    state.connect_ended(None, 0.0)
    assert state.may_connect()
    assert state.statistics().open == CONNECTING_MAX + 1
    assert state.statistics().connect_failures_total == 1
    state.connect_ended(None, 0.0, failed=False)  # the caller gave up: no failure, but slot and permit are free
    assert state.may_connect()
    assert state.statistics().connect_failures_total == 1


def test_waiters_in_order_and_bounded() -> None:
    """The oldest gets the returned connection; who has given up is passed over; one too many is Rejected."""
    state = pool(max_connections=1, max_pending=3)
    connection = opened(state)
    waiters = [Waiter() for _ in range(4)]
    for waiter in waiters[:3]:
        assert not state.may_connect()
        state.wait(waiter)
    with pytest.raises(Rejected, match="max_pending") as caught:
        state.wait(waiters[3])
    assert caught.value.reason == "limit"
    waiters[0].gone = True
    assert state.put(connection, 1.0)
    assert [w.given for w in waiters] == [[], [connection], [], []]
    assert state.idle == []
    state.withdraw(waiters[2])
    state.withdraw(waiters[2])
    assert state.put(connection, 1.0)
    assert state.idle == [connection]


def test_a_lost_connection_lets_a_waiter_connect() -> None:
    """Its slot and a permit are taken for the waiter in the same step: nobody can come between."""
    state = pool(max_connections=1)
    connection, waiter, other = opened(state), Waiter(), Waiter()
    state.wait(waiter)
    state.wait(other)
    state.lost(connection)
    assert (waiter.given, other.given) == ([None], [])
    assert not state.may_connect()
    state.connect_ended(None, 0.0)  # it failed, or its caller was cancelled: the next one's turn
    assert other.given == [None]


def test_waiters_for_a_permit_take_a_returned_connection_first() -> None:
    """A storm of cold calls does not open more than it needs."""
    state = pool(max_connections=100)
    first = opened(state)
    for _ in range(CONNECTING_MAX):
        assert state.may_connect()
    waiter = Waiter()
    assert not state.may_connect()
    state.wait(waiter)
    assert state.put(first, 0.0)
    assert waiter.given == [first]


def test_lower_and_higher_limits_at_run_time() -> None:
    """A lower max_connections closes what comes back; a higher one lets waiters go on at once."""
    state = pool(max_connections=2)
    one, two = opened(state), opened(state)
    state.settings = PoolSettings(max_connections=1)
    assert not state.put(one, 0.0)
    state.lost(one)
    assert state.put(two, 0.0)
    state.idle.clear()
    waiter = Waiter()
    state.wait(waiter)
    state.settings = PoolSettings(max_connections=2)
    assert waiter.given == [None]


def test_a_connection_taken_while_the_old_ones_are_sought_is_the_takers() -> None:
    """A thread pops `idle` without the lock, in the middle of `expire`: nobody else closes or gets that connection."""

    class Racing(Connection):
        @property
        def usable_until(self) -> float:
            if racing and state.idle:
                got.append(state.idle.pop())
            return 0.0

        @usable_until.setter
        def usable_until(self, until: float) -> None:
            pass

    state, got, racing = pool(), [], False  # type: Pool[Connection], list[Connection], bool
    state.idle[:] = both = [Connection(), Racing()]
    racing = True
    stale = state.expire(5.0)
    racing = False
    assert got == [both[1]]
    assert not set(map(id, got)) & set(map(id, stale + state.idle))
    assert len(got + stale + state.idle) == 2


def test_a_retired_pool_keeps_nothing() -> None:
    """Idle connections are handed out to be closed, whatever their age; none is taken back."""
    state = pool()
    idle, busy = opened(state), opened(state)
    state.put(idle, 0.0)
    state.retired = True
    assert state.expire(0.0) == [idle]
    assert not state.put(busy, 0.0)


def test_random_moves_keep_the_count() -> None:
    """Slots = connections + connects under way, never above the limit, whatever happens in which order."""
    seed = 7
    print(f"seed {seed}")
    rng = random.Random(seed)
    state = pool(max_connections=5, max_pending=4, idle_timeout_s=3.0)
    busy: list[Connection] = []
    waiters: list[Waiter] = []
    promised = 0
    for now in range(20_000):
        move = rng.randrange(6)
        if move == 0:
            found, stale = state.reuse(now)
            for old in stale:
                state.lost(old)
            if found is not None:
                busy.append(found)
            elif state.may_connect():
                promised += 1
            elif len(state.waiters) < 4:
                waiters.append(Waiter())
                state.wait(waiters[-1])
        elif move == 1 and promised:
            promised -= 1
            made = Connection() if rng.random() < 0.8 else None
            state.connect_ended(made, now)
            busy += [made] if made else []
        elif move == 2 and busy:
            back = busy.pop(rng.randrange(len(busy)))
            if not state.put(back, now):
                state.lost(back)
        elif move == 3 and busy:
            state.lost(busy.pop(rng.randrange(len(busy))))
        elif move == 4 and waiters:
            quitter = waiters.pop(rng.randrange(len(waiters)))
            state.withdraw(quitter)
        elif move == 5:
            for old in state.expire(now):
                state.lost(old)
        for waiter in [w for w in waiters if w.given]:
            waiters.remove(waiter)
            if waiter.given[0] is None:
                promised += 1
            else:
                busy.append(waiter.given[0])
        assert state.open == len(busy) + len(state.idle) + promised <= 5
        assert state.connecting == promised
        assert not (state.waiters and state.idle)
    assert state.connects_total > 500
