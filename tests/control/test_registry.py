"""Leases, states and bounds of the registry, on fake time."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from meshlib.control import registry as module
from meshlib.control.registry import (
    ABSENT_S,
    ENTRY_BYTES_MAX,
    GRACE_S,
    LABELS_MAX,
    TTL_S,
    Instance,
    Registry,
    RegistryFull,
    UnknownInstance,
)

SERVICE = "inventory.default"


def instance(name: str = "a", address: str = "10.0.0.1:80", **more: Any) -> Instance:
    facts = {"id": name, "service": SERVICE, "address": address, "zone": "z1", "weight": 1, "labels": {"v": "1"}}
    return Instance(**{**facts, **more})


def states(registry: Registry, service: str = SERVICE) -> dict[str, str]:
    return {entry["address"]: entry["state"] for entry in registry.endpoints(service)}


def registered(*instances: Instance, now: float = 0.0) -> Registry:
    registry = Registry()
    for one in instances:
        registry.register(one, now)
    registry.take_changed()
    return registry


def test_what_is_registered_is_listed():
    """All that the process said of itself, sorted by address."""
    registry = registered(instance("b", "10.0.0.2:80"), instance("a"))
    assert registry.endpoints(SERVICE) == [
        {"address": "10.0.0.1:80", "zone": "z1", "weight": 1, "labels": {"v": "1"}, "state": "ready"},
        {"address": "10.0.0.2:80", "zone": "z1", "weight": 1, "labels": {"v": "1"}, "state": "ready"},
    ]
    assert registry.endpoints("orders.default") == []


def test_a_registration_without_a_poll_lasts_for_one_ttl():
    """The first poll has that long to come."""
    registry = registered(instance())
    assert registry.next_at() == TTL_S
    registry.expire(TTL_S - 0.001)
    assert states(registry) == {"10.0.0.1:80": "ready"}
    registry.expire(TTL_S)
    assert states(registry) == {"10.0.0.1:80": "absent"}


def test_the_lease_is_held_while_a_poll_is_open_and_ends_a_ttl_after_the_last():
    """F17. However long the poll is held; overlapping polls are counted."""
    registry = registered(instance())
    assert registry.polling("a", SERVICE, 1.0)
    assert registry.polling("a", SERVICE, 2.0)
    registry.polled("a", SERVICE, 3.0)
    assert registry.next_at() == math.inf
    registry.expire(1000.0)
    assert states(registry) == {"10.0.0.1:80": "ready"}
    registry.polled("a", SERVICE, 1000.0)
    assert registry.next_at() == 1000.0 + TTL_S
    registry.expire(1000.0 + TTL_S)
    assert states(registry) == {"10.0.0.1:80": "absent"}


def test_a_poll_that_began_before_the_registration_holds_it():
    """A process polls before it serves."""
    registry = Registry()
    assert not registry.polling("a", SERVICE, 0.0)
    registry.register(instance(), 1.0)
    assert registry.next_at() == math.inf
    registry.polled("a", SERVICE, 50.0)
    assert registry.next_at() == 50.0 + TTL_S


def test_an_absent_one_is_gone_after_a_while():
    """F36: it is listed as absent for ABSENT_S, so that whoever reaches it keeps it; then not at all."""
    registry = registered(instance())
    registry.expire(TTL_S)
    assert registry.next_at() == TTL_S + ABSENT_S
    registry.expire(TTL_S + ABSENT_S - 0.001)
    assert states(registry) == {"10.0.0.1:80": "absent"}
    registry.take_changed()
    registry.expire(TTL_S + ABSENT_S)
    assert states(registry) == {}
    assert registry.take_changed() == ({SERVICE}, [], [(SERVICE, "a")])
    assert not registry.polling("a", SERVICE, 2000.0)


@pytest.mark.parametrize("how", ["poll", "register"])
def test_an_absent_one_that_comes_back_is_ready_at_once(how):
    """F36: on heal nothing needs to be said again; a poll is enough."""
    registry = registered(instance())
    registry.expire(TTL_S)
    registry.take_changed()
    if how == "poll":
        assert registry.polling("a", SERVICE, 20.0)
    else:
        registry.register(instance(), 20.0)
    assert states(registry) == {"10.0.0.1:80": "ready"}
    assert registry.take_changed() == ({SERVICE}, [instance()], [])


def test_the_same_registration_again_changes_nothing_but_the_lease():
    """Anti-entropy is free: nothing is stored, nothing is published."""
    registry = registered(instance())
    registry.register(instance(), 10.0)
    assert registry.take_changed() == (set(), [], [])
    assert registry.next_at() == 10.0 + TTL_S


def test_another_content_replaces_what_it_was():
    """And is to be stored."""
    registry = registered(instance())
    registry.register(instance(weight=5), 1.0)
    assert registry.endpoints(SERVICE)[0]["weight"] == 5
    assert registry.take_changed() == ({SERVICE}, [instance(weight=5)], [])


def test_a_draining_one_is_not_listed_and_its_polls_do_not_resurrect_it():
    """It says so before it stops; it goes on polling until it is gone."""
    registry = registered(instance())
    registry.polling("a", SERVICE, 0.0)
    registry.drain("a", SERVICE, 1.0)
    assert states(registry) == {}
    assert registry.take_changed() == ({SERVICE}, [instance(draining=True)], [])
    registry.polled("a", SERVICE, 2.0)
    assert registry.polling("a", SERVICE, 3.0), "it is known, so that it need not register again"
    assert states(registry) == {}
    registry.polled("a", SERVICE, 4.0)
    registry.expire(4.0 + TTL_S)
    assert registry.take_changed() == ({SERVICE}, [], [(SERVICE, "a")])
    assert registry.next_at() == math.inf


def test_a_deregistered_one_whose_poll_goes_on_is_not_resurrected():
    """The poll that was open, and the next one, find nobody."""
    registry = registered(instance())
    registry.polling("a", SERVICE, 0.0)
    registry.deregister("a", SERVICE, 1.0)
    registry.polled("a", SERVICE, 2.0)
    assert not registry.polling("a", SERVICE, 3.0)
    registry.polled("a", SERVICE, 4.0)
    assert states(registry) == {}
    assert registry.next_at() == math.inf


def test_one_address_is_listed_once_and_ready_wins():
    """A process that was killed and started again at its address, within a TTL: the new one counts."""
    old, new = instance("old", zone="z1"), instance("new", zone="z2")
    registry = registered(old, new)
    assert [entry["zone"] for entry in registry.endpoints(SERVICE)] == ["z2"], "registered last"
    registry.polling("new", SERVICE, 1.0)
    registry.expire(TTL_S)
    assert [(e["zone"], e["state"]) for e in registry.endpoints(SERVICE)] == [("z2", "ready")]
    registry.drain("new", SERVICE, 20.0)
    assert [(e["zone"], e["state"]) for e in registry.endpoints(SERVICE)] == [("z1", "absent")]
    registry.register(instance("old", zone="z1"), 21.0)
    registry.register(instance("older", zone="z3"), 21.0)
    registry.polling("old", SERVICE, 22.0)
    registry.expire(21.0 + TTL_S)
    assert [(e["zone"], e["state"]) for e in registry.endpoints(SERVICE)] == [("z1", "ready")], "an absent one won"


def test_after_a_restart_everybody_has_the_grace():
    """Reconnects are spread over a minute: nobody is absent for having been told to come late."""
    registry = Registry()
    registry.restore([instance("a"), instance("b", "10.0.0.2:80")], 100.0)
    assert registry.take_changed() == ({SERVICE}, [], []), "everything is to be published, nothing to be stored"
    registry.expire(100.0 + GRACE_S - 0.001)
    assert set(states(registry).values()) == {"ready"}
    registry.polling("b", SERVICE, 170.0)
    registry.expire(100.0 + GRACE_S)
    assert states(registry) == {"10.0.0.1:80": "absent", "10.0.0.2:80": "ready"}
    registry.polled("b", SERVICE, 200.0)
    assert registry.next_at() == 200.0 + TTL_S


def test_what_was_absent_or_draining_before_a_restart_still_is():
    """Otherwise every restart would send calls to those that are long dead."""
    registry = Registry()
    registry.restore([instance("a", absent=True), instance("b", "10.0.0.2:80", draining=True)], 0.0)
    assert states(registry) == {"10.0.0.1:80": "absent"}
    registry.expire(GRACE_S)
    assert [listed.instance.id for listed in registry.instances()] == ["a"]
    registry.expire(ABSENT_S)
    assert registry.instances() == []


def test_each_service_has_ids_of_its_own():
    """Who takes an id first keeps nobody else out, and can neither drain, remove nor hold another service's instance."""
    registry = registered(instance())
    for act in (registry.drain, registry.deregister):
        with pytest.raises(UnknownInstance):
            act("a", "orders.default", 1.0)
    assert not registry.polling("a", "orders.default", 1.0)
    assert registry.take_changed() == (set(), [], [])
    other = instance(service="orders.default", address="10.0.0.9:80")
    registry.register(other, 1.0)
    assert registry.take_changed() == ({"orders.default"}, [other], [])
    assert (registry.find("a", SERVICE), registry.find("a", "orders.default")) == (instance(), other)
    assert list(registry.keys()) == [(SERVICE, "a"), ("orders.default", "a")]
    registry.expire(TTL_S)
    assert states(registry) == {"10.0.0.1:80": "absent"}
    assert states(registry, "orders.default") == {"10.0.0.9:80": "ready"}, "its poll is open"


def test_a_poll_from_before_somebody_else_took_the_id_does_not_hold_it():
    """Polls are counted by service."""
    registry = Registry()
    registry.polling("a", "orders.default", 0.0)
    registry.register(instance(), 1.0)
    assert registry.next_at() == 1.0 + TTL_S
    registry.polled("a", "orders.default", 10.0)
    assert registry.next_at() == 1.0 + TTL_S


def test_who_is_not_there_cannot_be_drained_or_removed():
    """And the error says who."""
    with pytest.raises(UnknownInstance, match="'x' of inventory"):
        Registry().drain("x", SERVICE, 0.0)
    with pytest.raises(UnknownInstance):
        Registry().deregister("x", SERVICE, 0.0)


def test_what_could_not_be_stored_is_given_again_as_it_is_by_then():
    """No change is lost with a full disk, and none that is over comes back."""
    registry = registered()
    registry.register(instance("a"), 0.0)
    registry.register(instance("b", "10.0.0.2:80"), 0.0)
    taken = registry.take_changed()
    registry.deregister("a", SERVICE, 1.0)
    registry.put_back(*taken)
    services, stored, gone = registry.take_changed()
    assert (services, [one.id for one in stored], gone) == ({SERVICE}, ["b"], [(SERVICE, "a")])


def test_the_status_says_until_when():
    """Ready ones with an open poll: for ever."""
    registry = registered(instance("a"), instance("b", "10.0.0.2:80"), instance("c", "10.0.0.3:80"))
    registry.polling("a", SERVICE, 5.0)
    registry.expire(TTL_S)
    registry.register(instance("d", "10.0.0.4:80"), 20.0)
    registry.drain("d", SERVICE, 20.0)
    assert [(listed.instance.id, listed.state, listed.until) for listed in registry.instances()] == [
        ("a", "ready", math.inf),
        ("b", "absent", TTL_S + ABSENT_S),
        ("c", "absent", TTL_S + ABSENT_S),
        ("d", "draining", 20.0 + TTL_S),
    ]


EMPTY = len('{"address":"10.0.0.1:80","zone":"z1","weight":1,"labels":{"l":""},"state":"draining"},')


@pytest.mark.parametrize(
    ("more", "fits"),
    [
        ({"labels": {f"l{n}": "" for n in range(LABELS_MAX)}}, True),
        ({"labels": {f"l{n}": "" for n in range(LABELS_MAX + 1)}}, False),
        ({"labels": {"l": "x" * (ENTRY_BYTES_MAX - EMPTY)}}, True),
        ({"labels": {"l": "x" * (ENTRY_BYTES_MAX - EMPTY + 1)}}, False),
        ({"labels": {"l": "\U0001f600" * ((ENTRY_BYTES_MAX - EMPTY) // 12)}}, True),
        ({"labels": {"l": "\U0001f600" * ((ENTRY_BYTES_MAX - EMPTY) // 12 + 1)}}, False),
        ({"zone": "\u00e9" * 300}, True),
        ({"zone": "\u00e9" * 350}, False),
    ],
)
def test_what_an_instance_says_of_itself_is_bounded(more, fits):
    """In number, and in bytes as they are sent, of which a character may have twelve; every caller gets all of them."""
    registry = Registry()
    if fits:
        registry.register(instance(**more), 0.0)
    else:
        with pytest.raises(ValueError, match="at most"):
            registry.register(instance(**more), 0.0)
    assert bool(registry.instances()) == fits


def test_what_all_instances_of_a_service_say_is_bounded(monkeypatch):
    """Its callers get one fragment with all of it. Absent ones make room, living ones and other services' do not; who
    says less than before is never refused.
    """
    large, size = "x" * 500, len(json.dumps(instance(zone="x" * 500).labels))
    monkeypatch.setattr(module, "ENDPOINTS_BYTES_MAX", 2 * (500 + EMPTY + size))
    registry = registered(instance("a", zone=large), instance("b", "10.0.0.2:80", zone=large))
    for refused in (instance("c", "10.0.0.3:80", zone=large), instance("a", zone=2 * large)):
        with pytest.raises(RegistryFull, match=r"inventory\.default describe themselves"):
            registry.register(refused, 1.0)
    registry.register(instance("c", service="orders.default", zone=large), 1.0)
    registry.polling("b", SERVICE, 1.0)
    registry.expire(TTL_S)
    registry.register(instance("c", "10.0.0.3:80", zone=large), 20.0)
    assert states(registry) == {"10.0.0.2:80": "ready", "10.0.0.3:80": "ready"}
    monkeypatch.setattr(module, "ENDPOINTS_BYTES_MAX", 100)
    registry.register(instance("c", "10.0.0.3:80"), 21.0)
    registry.deregister("b", SERVICE, 22.0)
    registry.deregister("c", SERVICE, 22.0)
    assert SERVICE not in registry._bytes


@pytest.mark.parametrize("bound", ["INSTANCES_MAX", "SERVICE_INSTANCES_MAX"])
def test_at_the_bound_an_absent_one_makes_room_and_a_living_one_does_not(monkeypatch, bound):
    """A fleet that crashes in a loop leaves absent ones; that must not keep the next ones out."""
    monkeypatch.setattr(module, bound, 3)
    registry = registered(instance("a"), instance("b"))
    registry.expire(TTL_S)
    registry.register(instance("c"), 20.0)
    registry.take_changed()
    registry.register(instance("d"), 21.0)
    registry.register(instance("e"), 21.0)
    assert [listed.instance.id for listed in registry.instances()] == ["c", "d", "e"]
    assert registry.take_changed()[2] == [(SERVICE, "a"), (SERVICE, "b")]
    with pytest.raises(RegistryFull, match="no room"):
        registry.register(instance("f"), 22.0)
    registry.register(instance("c", weight=2), 22.0)


def test_the_bound_of_a_service_is_no_other_s(monkeypatch):
    """Who is full takes no room from others, nor do others make room for it."""
    monkeypatch.setattr(module, "SERVICE_INSTANCES_MAX", 1)
    registry = registered(instance("a", service="orders.default"))
    registry.expire(TTL_S)
    registry.register(instance("b"), 20.0)
    with pytest.raises(RegistryFull, match="inventory"):
        registry.register(instance("c"), 20.0)


def test_expiring_costs_what_there_is_to_do(monkeypatch):
    """With 10,000 instances whose polls come and go, `expire` looks at none that has not ended."""
    registry = registered(*(instance(f"i{n}", f"10.0.{n // 250}.{n % 250}:80") for n in range(10_000)))
    for n in range(10_000):
        registry.polling(f"i{n}", SERVICE, 1.0)
        registry.polled(f"i{n}", SERVICE, 1.0 + n / 1000)
    looked: list[str] = []
    monkeypatch.setattr(module, "replace", lambda one, **more: looked.append(one.id) or replace(one, **more))
    for _ in range(1000):
        registry.expire(1.0 + TTL_S - 0.001)
    assert looked == []
    registry.expire(1.0 + TTL_S + 0.0015)
    assert looked == ["i0", "i1"]


def test_of_two_absent_ones_at_an_address_the_last_registered_is_listed():
    """It is the likelier to come back."""
    registry = registered(instance("old", zone="z1"), instance("new", zone="z2"))
    registry.expire(TTL_S)
    assert [(e["zone"], e["state"]) for e in registry.endpoints(SERVICE)] == [("z2", "absent")]


def test_who_registers_within_the_grace_is_not_absent_at_its_end():
    """The lease is then an ordinary one."""
    registry = Registry()
    registry.restore([instance()], 0.0)
    registry.register(instance(), GRACE_S - 1.0)
    registry.expire(GRACE_S)
    assert states(registry) == {"10.0.0.1:80": "ready"}
    assert registry.next_at() == GRACE_S - 1.0 + TTL_S


def test_who_registers_is_ready():
    """Whatever it says of itself."""
    assert states(registered(instance(absent=True))) == {"10.0.0.1:80": "ready"}


def test_an_absent_one_that_drains_is_gone_at_once():
    """Nobody is to be kept waiting for it."""
    registry = registered(instance())
    registry.expire(TTL_S)
    registry.drain("a", SERVICE, 20.0)
    assert registry.instances() == []
    assert registry.next_at() == math.inf
