"""What is published: versions, fragments, closures, and their bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshlib.control import catalog as module
from meshlib.control.catalog import Catalog, Row
from meshlib.control.clock import FIRST, HybridClock

from .signers import CountingSigner, as_signer

EPOCH = "e1"
NO_LIMIT = 1 << 30


class World:
    """A catalog, its signer, and a wall clock that stands still at 1 s."""

    def __init__(self) -> None:
        self.signer = CountingSigner()
        self.catalog = Catalog(EPOCH, "shop", HybridClock(0, lambda: 1.0), as_signer(self.signer))

    def publish(self, **contents: Any) -> list[Row]:
        """Names with `_` for `/`."""
        rows = self.catalog.propose({name.replace("_", "/"): content for name, content in contents.items()})
        self.catalog.put(rows)
        return rows

    def payloads(self, *resources: str, have: dict[str, tuple[str, int]] | None = None) -> list[dict[str, Any]]:
        fragments = self.catalog.newer(resources, have or {}, NO_LIMIT)
        return [json.loads(json.loads(fragment)["payload"]) for fragment in fragments]


def service(*needs: str) -> dict[str, Any]:
    return {"policy": {}, "needs": list(needs)}


def test_a_fragment_is_the_payload_and_its_signature():
    """The payload says of which mesh, epoch and version it is; the signature is over its very bytes."""
    world = World()
    world.publish(service_a={"policy": {"timeout": "1s", "owner": "é"}, "needs": []})
    (fragment,) = world.catalog.newer(["service/a"], {}, NO_LIMIT)
    assert world.signer.signed == [json.loads(fragment)["payload"].encode()]
    assert json.loads(fragment)["signature"] == "first-1"
    assert json.loads(json.loads(fragment)["payload"]) == {
        "resource": "service/a",
        "epoch": EPOCH,
        "n": 1000,
        "mesh": "shop",
        "content": {"policy": {"timeout": "1s", "owner": "é"}, "needs": []},
    }
    assert b" " not in fragment.replace(b"1s", b"")


def test_all_pollers_share_the_bytes_of_one_signature():
    """F29: 10,000 pollers cost one signature per version."""
    world = World()
    world.publish(service_a=service())
    first = world.catalog.newer(["service/a"], {}, NO_LIMIT)
    assert all(world.catalog.newer(["service/a"], {}, NO_LIMIT)[0] is first[0] for _ in range(100))
    assert len(world.signer.signed) == 1


def test_nothing_is_visible_before_it_is_put():
    """A crash could take it back."""
    world = World()
    rows = world.catalog.propose({"service/a": service()})
    assert world.catalog.version("service/a") == (EPOCH, FIRST)
    assert world.catalog.put(rows) == {"service/a"}
    assert world.catalog.version("service/a") == (EPOCH, 1000)


def test_what_does_not_change_keeps_its_version():
    """Whatever the order of its keys."""
    world = World()
    world.publish(service_a={"policy": {"x": 1, "y": 2}, "needs": []}, service_b=service())
    rows = world.publish(service_a={"needs": [], "policy": {"y": 2, "x": 1}}, service_b=service("a"))
    assert [(row.resource, row.n) for row in rows] == [("service/b", 1001)]


def test_versions_outlive_a_restart():
    """The same content, proposed again by a new process with the rows of the store, is no change."""
    world, again = World(), World()
    rows = world.publish(service_a=service(), endpoints_a=[], trust={"bundle": ""})
    again.catalog.load(rows)
    assert again.catalog.propose({"service/a": service(), "endpoints/a": [], "trust": {"bundle": ""}}) == []
    assert again.catalog.version("service/a") == (EPOCH, 1000)
    assert again.catalog.services() == ["a"]


@pytest.mark.parametrize(
    ("had", "newer"),
    [(None, True), (("e0", 5000), True), ((EPOCH, 999), True), ((EPOCH, 1000), False), ((EPOCH, 1001), False)],
)
def test_newer_is_another_epoch_or_a_higher_n(had, newer):
    """F04: to one who is ahead, within the epoch, nothing is newer: it waits, and does not go back."""
    world = World()
    world.publish(service_a=service())
    have = {} if had is None else {"service/a": had}
    assert world.catalog.has_newer(["service/a"], have) is newer
    assert bool(world.catalog.newer(["service/a"], have, NO_LIMIT)) is newer


def test_fragments_of_a_reply_are_bounded_and_the_rest_comes_with_the_next():
    """At least one comes, however large: a poll always gets on."""
    world = World()
    world.publish(service_a=service(), service_b=service(), service_c=service())
    names = ["service/a", "service/b", "service/c"]
    size = len(world.catalog.newer(names[:1], {}, NO_LIMIT)[0])
    assert len(world.catalog.newer(names, {}, 2 * size)) == 2
    assert len(world.catalog.newer(names, {}, 2 * size - 1)) == 1
    assert len(world.catalog.newer(names, {}, 0)) == 1
    have = {name: world.catalog.version(name) for name in names[:2]}
    assert len(world.catalog.newer(names, have, 0)) == 1
    assert world.catalog.has_newer(names, have)


def test_fragments_of_a_reply_are_so_many_and_the_rest_comes_with_the_next():
    """Thousands of names that nobody has signed yet would keep everybody waiting."""
    world, have, replies = World(), {}, []  # type: World, dict[str, tuple[str, int]], list[int]
    names = [f"service/n{number}" for number in range(2 * module.FRAGMENTS_MAX + 5)]
    while world.catalog.has_newer(names, have):
        before = len(world.signer.signed)
        fragments = world.catalog.newer(names, have, NO_LIMIT)
        replies.append(len(fragments))
        assert len(world.signer.signed) - before <= module.FRAGMENTS_MAX
        for fragment in fragments:
            payload = json.loads(json.loads(fragment)["payload"])
            have[payload["resource"]] = payload["epoch"], payload["n"]
    assert replies == [module.FRAGMENTS_MAX, module.FRAGMENTS_MAX, 5]
    assert len(have) == len(names)


def test_a_service_that_never_was_is_null_at_a_version_that_stays():
    """Its callers learn at once that it is not there, and are then left in peace until it comes."""
    world = World()
    assert world.payloads("service/x", "endpoints/x") == [
        {"resource": "service/x", "epoch": EPOCH, "n": FIRST, "mesh": "shop", "content": None},
        {"resource": "endpoints/x", "epoch": EPOCH, "n": FIRST, "mesh": "shop", "content": None},
    ]
    have = {"service/x": (EPOCH, FIRST), "endpoints/x": (EPOCH, FIRST)}
    world.publish(service_a=service())
    assert not world.catalog.has_newer(have, have)
    world.publish(service_x=service())
    assert [payload["resource"] for payload in world.payloads(*have, have=have)] == ["service/x"]


def test_a_service_that_is_gone_is_null_at_a_version_of_its_own():
    """Who had it learns that it is gone, also after a restart."""
    world, again = World(), World()
    rows = world.publish(service_a=service())
    rows += world.publish(service_a=None)
    again.catalog.load(rows)
    for catalog in (world.catalog, again.catalog):
        assert catalog.has_newer(["service/a"], {"service/a": (EPOCH, 1000)})
        assert catalog.content("service/a") is None
        assert catalog.services() == []
    assert world.publish(service_a=None, service_never=None) == []


def test_what_holds_for_all_is_not_there_before_it_is_published():
    """A process never gets a null for its trust."""
    assert World().catalog.newer(["trust", "defaults"], {}, NO_LIMIT) == []


def test_those_that_are_gone_are_bounded(monkeypatch):
    """Beyond the bound the older half are as if they had never been, and still newer than what they were."""
    monkeypatch.setattr(module, "GONE_MAX", 4)
    world = World()
    assert [payload["n"] for payload in world.payloads("service/never")] == [FIRST]
    names = [f"service/{n}" for n in range(5)]
    world.catalog.put(world.catalog.propose(dict.fromkeys(names, service())))
    had = {name: world.catalog.version(name) for name in names}
    for name in names:
        world.catalog.put(world.catalog.propose({name: None}))
    assert len(world.catalog._rows) == 3
    assert all(world.catalog.has_newer([name], had) for name in names)
    assert [payload["content"] for payload in world.payloads(*names, have=had)] == [None] * 5
    for name in (*names, "service/never"):
        (payload,) = world.payloads(name)
        assert (EPOCH, payload["n"]) == world.catalog.version(name), "it would be asked for again and again"


def test_one_that_has_come_back_is_not_among_those_that_are_gone(monkeypatch):
    """Forgetting the others must not take it."""
    monkeypatch.setattr(module, "GONE_MAX", 2)
    world = World()
    for content in (service(), None, service()):
        world.publish(service_back=content)
    for n in range(10):
        world.catalog.put(world.catalog.propose({f"service/{n}": service()}))
        world.catalog.put(world.catalog.propose({f"service/{n}": None}))
    assert world.catalog.content("service/back") == service()


def test_a_restart_with_as_many_gone_as_are_remembered_forgets_none_that_mattered(monkeypatch):
    """The store keeps the newest; who has one of those that it dropped still learns that it is gone."""
    monkeypatch.setattr(module, "GONE_MAX", 2)
    world = World()
    world.catalog.load([Row("service/b", 2001, "null"), Row("service/c", 2002, "null")])
    assert world.catalog.has_newer(["service/a"], {"service/a": (EPOCH, 1000)})


def test_nulls_of_names_that_never_were_are_bounded(monkeypatch):
    """Whoever asks for ever new names makes work, and no memory; the versions stay."""
    monkeypatch.setattr(module, "NULLS_MAX", 10)
    world = World()
    for n in range(100):
        world.payloads(f"service/x{n}")
    assert len(world.catalog._signed_nulls) <= 10
    assert world.catalog.version("service/x0") == (EPOCH, FIRST)


def test_another_signer_signs_anew_and_changes_no_version():
    """A rotation of the control key gives nobody the same thing twice."""
    world = World()
    world.publish(service_a=service())
    before = world.catalog.newer(["service/a", "service/null"], {}, NO_LIMIT)
    world.catalog.resigned(as_signer(CountingSigner("second")))
    after = world.catalog.newer(["service/a", "service/null"], {}, NO_LIMIT)
    world.catalog.resigned(world.catalog._signer)
    assert world.catalog.newer(["service/a", "service/null"], {}, NO_LIMIT) == after, "the same one signs nothing anew"
    assert [json.loads(f)["signature"] for f in before] == ["first-1", "first-2"]
    assert [json.loads(f)["signature"] for f in after] == ["second-1", "second-2"]
    assert [json.loads(f)["payload"] for f in before] == [json.loads(f)["payload"] for f in after]


def test_an_older_version_that_is_put_late_changes_nothing():
    """What is visible never goes back."""
    world = World()
    older = world.catalog.propose({"trust": 1})
    newer = world.catalog.propose({"trust": 2})
    assert world.catalog.put(newer) == {"trust"}
    assert world.catalog.put(older) == set()
    assert world.catalog.content("trust") == 2


def test_what_could_not_be_stored_is_proposed_again_while_it_differs():
    """The disk was full: the content still differs. The policy was changed back: it does not."""
    world = World()
    world.publish(trust=1)
    assert [row.json for row in world.catalog.propose({"trust": 2})] == ["2"]
    assert [row.json for row in world.catalog.propose({"trust": 2})] == ["2"]
    assert world.catalog.propose({"trust": 1}) == []


def test_only_plain_data_can_be_published():
    """NaN is not JSON."""
    with pytest.raises(ValueError, match="JSON compliant"):
        World().catalog.propose({"trust": float("nan")})


def test_the_closure_has_what_the_routes_need_and_what_their_routes_need():
    """In order: what holds for all, the own policy, then each service with its endpoints, the nearest first."""
    world = World()
    world.publish(service_a=service("c", "b"), service_b=service("d"), service_d=service("a"))
    assert world.catalog.closure("me", ["a"]) == (
        "trust", "defaults", "service/me",
        "service/a", "endpoints/a", "service/c", "endpoints/c", "service/b", "endpoints/b", "service/d", "endpoints/d",
    )  # fmt: skip
    assert world.catalog.closure("me", []) == ("trust", "defaults", "service/me")
    assert world.catalog.closure("a", ["a"])[2:5] == ("service/a", "endpoints/a", "service/c")


def test_the_closure_is_worked_out_once_until_a_service_changes():
    """It is asked for with every poll; endpoints change often, and do not matter."""
    world = World()
    world.publish(service_a=service("b"))
    first = world.catalog.closure("me", ["a"])
    world.publish(endpoints_a=[], trust=1)
    assert world.catalog.closure("me", ["a"]) is first
    world.publish(service_b=service("c"))
    assert "service/c" in world.catalog.closure("me", ["a"])
    world.publish(service_b=None)
    assert "service/c" not in world.catalog.closure("me", ["a"])


def test_the_closure_is_bounded(monkeypatch):
    """What is wanted comes first, what is farthest is left out."""
    monkeypatch.setattr(module, "CLOSURE_SERVICES_MAX", 3)
    world = World()
    world.publish(service_a=service("b"), service_b=service("c"), service_c=service("d"))
    assert world.catalog.closure("me", ["a", "x"])[3:] == (
        "service/a", "endpoints/a", "service/x", "endpoints/x", "service/b", "endpoints/b",
    )  # fmt: skip


def test_closures_that_are_kept_are_bounded(monkeypatch):
    """Whoever asks for ever new ones makes work, and no memory."""
    monkeypatch.setattr(module, "CLOSURES_MAX", 50)
    world = World()
    for n in range(1000):
        world.catalog.closure("me", [f"x{n}"])
        assert sum(map(len, world.catalog._closures.values())) <= 50
