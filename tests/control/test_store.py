"""The store: what is in it after each method, who is refused, and that nothing acknowledged is lost."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from meshlib.control import store as module
from meshlib.control.catalog import Row
from meshlib.control.registry import Instance
from meshlib.control.store import (
    TOKEN_KEPT_S,
    TOKEN_LIFE_S_MAX,
    UNKNOWN_LIFE_S,
    CertificateRevoked,
    PolicyChanged,
    Store,
    StoreFull,
    Token,
    TokenRefused,
)

from . import store_writer

LAUNCH = Path(__file__).parents[1] / "process" / "launch.py"
INSTANCE = Instance("a", "inventory.default", "10.0.0.1:80", "z1", 2, {"version": "2"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store.open(path)
    yield store
    store.close()


def again(store: Store, path: Path) -> Store:
    """The same store, closed and opened."""
    store.close()
    return Store.open(path)


def test_each_opening_of_a_store_is_an_epoch(tmp_path):
    """Its disk may be another, or an old backup: every process takes everything anew (F04)."""
    first, other = Store.open(tmp_path / "a"), Store.open(tmp_path / "b")
    epoch = first.epoch
    assert len(epoch) == 32
    assert other.epoch != epoch
    reopened = again(first, tmp_path / "a")
    assert reopened.epoch != epoch
    reopened.close()
    other.close()


def test_resources_and_instances_are_kept_together(store, path):
    """As they were given; an instance that is gone is gone."""
    rows = [Row("service/a", 7, '{"é":1}'), Row("service/gone", 8, "null")]
    instances = [
        INSTANCE,
        Instance("b", "x.default", "h:1", "", 1, {}, draining=True),
        replace(INSTANCE, id="c", absent=True),
    ]
    store.save(rows, instances)
    store = again(store, path)
    assert store.resources() == rows
    assert store.instances() == instances
    assert store.last_n() == 8
    store.save(
        [],
        [Instance("b", "x.default", "h:2", "", 1, {})],
        [(one.service, one.id) for one in (*instances[::2], replace(INSTANCE, service="x.default"))],
    )
    assert store.instances() == [Instance("b", "x.default", "h:2", "", 1, {})]
    store.close()


def test_an_older_version_never_replaces_a_newer_one(store):
    """Two writes may overtake each other."""
    store.save([Row("trust", 5, "5")])
    store.save([Row("trust", 4, "4"), Row("trust", 5, "4")])
    assert store.resources() == [Row("trust", 5, "5")]


def test_half_of_a_write_is_none(store):
    """What fails in the middle leaves everything as it was."""

    def rows() -> Iterator[Row]:
        yield Row("trust", 9, "9")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.save(rows())
    with pytest.raises(ZeroDivisionError):
        store.add_policy(9, 0.0, "file", "", rows())
    assert (store.resources(), store.policy(), store.last_n()) == ([], None, 0)


def test_resources_that_are_gone_are_bounded(store, monkeypatch):
    """The newest are remembered; living ones are not touched."""
    monkeypatch.setattr(module, "GONE_MAX", 2)
    store.save([Row(f"service/{n}", n, "null") for n in range(1, 5)])
    store.save([Row("service/alive", 1, "1")])
    assert [row.resource for row in store.resources()] == ["service/alive", "service/3", "service/4"]


def test_a_policy_comes_with_its_resources(store, path):
    """Both or none; the last one is the policy, the others are history without text."""
    store.add_policy(10, 1.5, "mesh.yaml", "version: 1", [Row("defaults", 10, "{}")])
    store.add_policy(20, 2.5, "alice", "version: 1 # two", [], expected=10)
    store = again(store, path)
    assert store.policy() == (20, 2.5, "alice", "version: 1 # two")
    assert store.policy(10) == (10, 1.5, "mesh.yaml", "version: 1")
    assert store.policy(11) is None
    assert [(policy.n, policy.document) for policy in store.history()] == [(20, ""), (10, "")]
    assert [policy.n for policy in store.history(1)] == [20]
    assert store.resources() == [Row("defaults", 10, "{}")]
    assert store.last_n() == 20
    store.close()


@pytest.mark.parametrize(("n", "expected"), [(30, 19), (30, 0), (20, 20), (10, None)])
def test_no_update_of_the_policy_is_lost(store, n, expected):
    """Compare and swap: who has not seen the last one, or comes late, changes nothing and learns the version."""
    store.add_policy(20, 0.0, "alice", "one", [])
    with pytest.raises(PolicyChanged, match="version 20") as caught:
        store.add_policy(n, 0.0, "bob", "two", [Row("defaults", n, "{}")], expected=expected)
    assert caught.value.n == 20
    assert store.policy().document == "one"
    assert store.resources() == []


def test_the_first_policy_replaces_none(store):
    """Version 0 stands for none."""
    with pytest.raises(PolicyChanged, match="version 0"):
        store.add_policy(1, 0.0, "alice", "one", [], expected=5)
    store.add_policy(1, 0.0, "alice", "one", [], expected=0)


def test_the_history_is_bounded(store, monkeypatch):
    """The oldest are forgotten."""
    monkeypatch.setattr(module, "HISTORY_MAX", 3)
    for n in range(1, 6):
        store.add_policy(n, 0.0, "alice", "", [])
    assert [policy.n for policy in store.history()] == [5, 4, 3]


def add_token(store: Store, name: str = "t", uses: int = 1, expires: float = 100.0) -> None:
    store.add_token(name, "secret", service="inventory.default", uses=uses, expires=expires, now=0.0)


def refusal(store: Store, key: str, *, name: str = "t", secret: str = "secret", now: float = 1.0) -> str:
    with pytest.raises(TokenRefused) as caught:
        store.redeem(name, secret, key, 9, now)
    return caught.value.reason


def test_a_token_is_used_up_and_the_same_key_may_ask_again(store, path):
    """F24: a lost answer costs no use, and is of the same enrolment; another key costs one."""
    add_token(store)
    assert store.redeem("t", "secret", "k1", 5, 1.0) == ("inventory.default", 5)
    store = again(store, path)
    assert store.redeem("t", "secret", "k1", 6, 1.0) == ("inventory.default", 5)
    assert refusal(store, "k2") == "used"
    assert store.tokens(1.0) == [Token("t", "inventory.default", 1, 1, 100.0)]
    store.close()


def test_a_token_is_refused_for_a_reason_and_a_wrong_secret_is_told_from_nothing(store):
    """Unknown and wrong are one; a refused use costs nothing."""
    add_token(store)
    assert refusal(store, "k", name="x") == "unknown"
    assert refusal(store, "k", secret="wrong") == "unknown"
    assert refusal(store, "k", now=100.0) == "expired"
    assert store.tokens(1.0)[0].used == 0
    store.redeem("t", "secret", "k", 5, 99.9)
    assert store.remove_token("t")
    assert refusal(store, "k") == "revoked"
    assert not store.remove_token("t")
    assert not store.remove_token("x")
    assert store.tokens(1.0) == []


def test_of_fifty_with_different_keys_one_wins(store):
    """F24: at once, with one use; and with three uses, three."""
    for name, uses in (("one", 1), ("three", 3)):
        add_token(store, name, uses)
        barrier = threading.Barrier(50)

        def redeem(key: int, name: str = name, barrier: threading.Barrier = barrier) -> str:
            barrier.wait()
            try:
                return store.redeem(name, "secret", f"k{key}", key + 1, 1.0)[0]
            except TokenRefused as refused:
                return refused.reason

        with ThreadPoolExecutor(50) as pool:
            answers = sorted(pool.map(redeem, range(50)))
        assert answers == ["inventory.default"] * uses + ["used"] * (50 - uses)


def test_tokens_are_bounded_and_expired_ones_make_room(store, monkeypatch):
    """At the bound nothing is refused for the sake of the dead."""
    monkeypatch.setattr(module, "TOKENS_MAX", 2)
    add_token(store, "a", expires=10.0)
    add_token(store, "b", expires=20.0)
    with pytest.raises(StoreFull, match="2 join tokens"):
        add_token(store, "c")
    store.add_token("c", "secret", service="s.default", uses=1, expires=90.0, now=10.0)
    assert [token.id for token in store.tokens(10.0)] == ["b", "c"]


def test_a_token_lives_a_month_at_most(store):
    """A longer one is a password."""
    add_token(store, "a", expires=TOKEN_LIFE_S_MAX)
    with pytest.raises(ValueError, match="at most"):
        add_token(store, "b", expires=TOKEN_LIFE_S_MAX + 1.0)


def test_an_expired_token_is_forgotten_after_an_hour(store):
    """Until then its holder is told what is wrong."""
    add_token(store, expires=100.0)
    store.redeem("t", "secret", "k", 5, 1.0)
    store.forget(100.0 + TOKEN_KEPT_S - 1.0)
    assert refusal(store, "k", now=200.0) == "expired"
    store.forget(100.0 + TOKEN_KEPT_S)
    assert refusal(store, "k", now=200.0) == "unknown"
    assert store._database.rows("SELECT * FROM redemptions") == []


def test_the_operator_s_token_is_one(store, path):
    """A new one ends the one before."""
    assert store.operator() is None
    store.set_operator("id1", "hash1")
    store.set_operator("id2", "hash2")
    store = again(store, path)
    assert store.operator() == ("id2", "hash2")
    store.close()


SERVICE = "inventory.default"


def test_a_revoked_enrolment_gets_no_leaf_any_more(store, path):
    """However many it has had: one row says so, also after a restart. Others are not touched."""
    for number in range(50):
        store.add_leaf(1, SERVICE, 100.0 + number, 0.0)
    store.add_leaf(2, SERVICE, 100.0, 0.0)
    assert store.revoke(1, 1.0, 10.0)
    assert store.revoke(1, 2.0, 10.0), "asked again, it is the same answer"
    store = again(store, path)
    with pytest.raises(CertificateRevoked):
        store.add_leaf(1, SERVICE, 200.0, 3.0)
    store.add_leaf(2, SERVICE, 200.0, 3.0)
    assert store.revoked(148.9) == ([1], 1)
    assert store.revoked(149.0) == ([], 0), "nobody accepts them anyway"
    assert store._database.rows("SELECT enrolment, ends FROM enrolments") == [(1, 149.0), (2, 200.0)]
    store.close()


def test_a_revocation_outlives_what_the_store_has_forgotten(store):
    """After a backup came back there may be leaves that it does not know: they end a leaf's life from now."""
    store.add_leaf(1, SERVICE, 10.0, 0.0)
    store.revoke(1, 1.0, 50.0)
    assert (store.revoked(50.9), store.revoked(51.0)) == (([1], 1), ([], 0))


def test_a_revocation_outlives_the_token_that_could_undo_it(store):
    """F24. The same key that redeems the same token again is the same enrolment, whenever the token ends."""
    add_token(store, uses=2, expires=1000.0)
    _, enrolment = store.redeem("t", "secret", "k", 5, 0.0)
    store.add_leaf(enrolment, SERVICE, 10.0, 0.0, token="t", instance="i")
    store.add_leaf(6, SERVICE, 10.0, 0.0)
    store.revoke(enrolment, 1.0, 10.0)
    store.forget(999.0)
    assert store.redeem("t", "secret", "k", 7, 999.0) == (SERVICE, 5)
    with pytest.raises(CertificateRevoked):
        store.add_leaf(5, SERVICE, 2000.0, 999.0)
    store.forget(1000.0 + TOKEN_KEPT_S)
    assert store._database.rows("SELECT * FROM enrolments") == []


def test_an_enrolment_is_remembered_as_long_as_its_last_leaf(store):
    """Whichever was the last to be handed out; with the token that it came from, and who came."""
    store.add_leaf(1, SERVICE, 1000.0, 0.0, token="t", instance="i")
    store.add_leaf(1, SERVICE, 10.0, 0.0)
    store.forget(500.0)
    assert store._database.rows("SELECT * FROM enrolments") == [(1, SERVICE, "t", "i", 1000.0, None)]
    store.forget(1000.0)
    assert not store.revoke(1, 1000.0, 10.0)


def test_an_enrolment_that_the_store_does_not_know_can_be_revoked_where_that_is_wanted(store):
    """A store was lost, the authority was not: its leaves are still good. They count as ones of the longest life."""
    assert not store.revoke(0xABC, 5.0, 10.0)
    assert store.revoked(5.0) == ([], 0)
    assert store.revoke(0xABC, 5.0, 10.0, unknown=True)
    assert store.revoked(5.0 + UNKNOWN_LIFE_S - 1.0) == ([0xABC], 1)
    with pytest.raises(CertificateRevoked):
        store.add_leaf(0xABC, SERVICE, 100.0, 6.0)


def test_of_many_revoked_the_newest_are_told(store, monkeypatch):
    """Every process gets the list, so it is bounded; what is revoked stays so here, whatever is told."""
    monkeypatch.setattr(module, "REVOKED_MAX", 2)
    for enrolment in (3, 2, 1):
        store.add_leaf(enrolment, SERVICE, 100.0, 0.0)
        store.revoke(enrolment, 4.0 - enrolment, 10.0)
    assert store.revoked(5.0) == ([1, 2], 3)
    with pytest.raises(CertificateRevoked):
        store.add_leaf(3, SERVICE, 100.0, 5.0)


def test_a_store_knows_how_old_it_is(store, path):
    """From the first time that it is asked."""
    assert store.made_at(5.0) == 5.0
    store = again(store, path)
    assert store.made_at(7.0) == 5.0
    store.close()


def test_enrolments_are_bounded_and_ended_ones_make_room(store, path, monkeypatch):
    """The count is right after a restart, too. A renewal needs no room."""
    monkeypatch.setattr(module, "ENROLMENTS_MAX", 2)
    store.add_leaf(1, SERVICE, 10.0, 0.0)
    store.add_leaf(2, SERVICE, 20.0, 0.0)
    store = again(store, path)
    with pytest.raises(StoreFull, match="2 enrolments"):
        store.add_leaf(3, SERVICE, 100.0, 0.0)
    store.add_leaf(2, SERVICE, 30.0, 0.0)
    store.add_leaf(3, SERVICE, 100.0, 10.0)
    with pytest.raises(StoreFull):
        store.add_leaf(4, SERVICE, 100.0, 10.0)
    store.close()


def test_enrolments_of_one_service_leave_room_for_others(store, monkeypatch):
    """Its own bound is met first, and nobody else's."""
    monkeypatch.setattr(module, "SERVICE_ENROLMENTS_MAX", 2)
    store.add_leaf(1, SERVICE, 10.0, 0.0)
    store.add_leaf(2, SERVICE, 20.0, 0.0)
    with pytest.raises(StoreFull, match="2 of inventory"):
        store.add_leaf(3, SERVICE, 100.0, 0.0)
    store.add_leaf(4, "orders.default", 100.0, 0.0)
    store.add_leaf(3, SERVICE, 100.0, 10.0)


def killed_at(path: Path, acknowledged: int, then_s: float) -> dict[str, int]:
    """Let a process write, kill it `then_s` after so many writes; the last number of each kind that it said."""
    command = [sys.executable, str(LAUNCH), str(os.getpid()), store_writer.__file__, str(path)]
    said: dict[str, int] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        killer = threading.Timer(60.0, process.kill)
        killer.start()
        for count, line in enumerate(process.stdout):
            kind, number = line.split()
            said[kind] = int(number)
            if count == acknowledged:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(then_s)
                process.kill()
        killer.cancel()
        assert process.wait(10) == -9, "it ended by itself"
    return said


def check_after_kill(path: Path, said: dict[str, int]) -> None:
    """Everything that was said is there, and nothing is there by half."""
    store = Store.open(path)
    policy, rows = store.policy(), {row.resource: row for row in store.resources()}
    assert policy is not None
    assert policy.n >= said.get("policy", 0)
    assert {rows[part].n for part in store_writer.PARTS[:3]} == {policy.n}, "half a policy"
    assert rows["endpoints/a"].n in (policy.n, policy.n + 1)
    assert store.history(1)[0].n == policy.n
    instances = [instance.id for instance in store.instances()]
    assert f"i{said['instance']}" in instances
    assert f"i{said['instance'] - 60}" not in instances
    assert rows["registered"].json == f'"{instances[-1]}"', "a registration without what was published of it"
    tokens = {token.id: token.used for token in store.tokens(0.0)}
    assert f"t{said['token']}" in tokens
    assert tokens[f"t{said['redeemed']}"] == 1
    redeemed = store.redeem(f"t{said['redeemed']}", store_writer.PADDING, f"key {said['redeemed']}", 1 << 60, 0.0)
    assert redeemed == ("a.default", said["redeemed"])
    assert said["revoked"] in store.revoked(0.0).enrolments
    assert store.revoke(said["leaf"], 0.0, 1.0)
    assert store.last_n() >= max(said.values())
    store.close()


def survives(path: Path, kills: int) -> None:
    """One store for all, so that each process also recovers from the one before."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(kills):
        check_after_kill(path, killed_at(path, rng.randint(6, 120), rng.uniform(0.0, 0.01)))


@pytest.mark.process
def test_a_process_that_is_killed_loses_nothing_that_it_acknowledged(path):
    """kill -9 at eight random points: every acknowledged write is there, and none by half."""
    survives(path, 8)


@pytest.mark.faults
def test_forty_kills_lose_nothing_that_was_acknowledged(path):
    """The same at forty points of one store's life."""
    survives(path, 40)


@pytest.mark.process
def test_a_second_service_on_one_store_is_refused(path):
    """While the first runs, with its process id; not once it was killed."""
    command = [sys.executable, str(LAUNCH), str(os.getpid()), store_writer.__file__, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(module.StoreError, match=rf"another config service \(process {process.pid}\)"):
            module.Store(module.Database.open(path, 1, "", lock_wait_s=0.05))
        process.kill()
    Store.open(path).close()
