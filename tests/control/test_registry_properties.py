"""The registry against a model that keeps every fact and works everything out anew."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meshlib.control.registry import ABSENT_S, GRACE_S, TTL_S, Instance, Key, Registry, UnknownInstance

IDS = st.sampled_from(["a", "b", "c", "d"])
SERVICES = st.sampled_from(["inventory.default", "orders.default"])
ADDRESSES = st.sampled_from(["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"])


@dataclass
class Fact:
    """An instance, when it was last heard of, and since when it is absent. `order`: of registration."""

    instance: Instance
    heard: float
    ttl_s: float
    order: int
    absent_since: float | None = None


class RegistryModel(RuleBasedStateMachine):
    """Random lives of four instances of two services at three addresses, with restarts of the config service."""

    def __init__(self) -> None:
        super().__init__()
        self.registry, self.now, self.order = Registry(), 0.0, 0
        self.facts: dict[Key, Fact] = {}
        self.open: dict[tuple[str, str], int] = {}
        self.stored: dict[Key, Instance] = {}
        self.published: dict[str, Any] = {}

    @rule(id=IDS, service=SERVICES, address=ADDRESSES, weight=st.integers(1, 2))
    def register(self, id: str, service: str, address: str, weight: int) -> None:
        one = Instance(id, service, address, "", weight, {})
        known = self.facts.get(one.key)
        self.registry.register(one, self.now)
        if known is None or known.instance != one or known.absent_since is not None:
            self.order += 1
            self.facts[one.key] = Fact(one, self.now, TTL_S, self.order)
        else:
            known.heard, known.ttl_s = self.now, TTL_S

    @rule(id=IDS, service=SERVICES)
    def poll_begins(self, id: str, service: str) -> None:
        fact = self.facts.get((service, id))
        assert self.registry.polling(id, service, self.now) == (fact is not None)
        self.open[service, id] = self.open.get((service, id), 0) + 1
        if fact is not None:
            fact.absent_since = None

    @rule(id=IDS, service=SERVICES)
    def poll_ends(self, id: str, service: str) -> None:
        if self.open.get((service, id)):
            self.registry.polled(id, service, self.now)
            self.open[service, id] -= 1
            fact = self.facts.get((service, id))
            if fact is not None and not self.open[service, id]:
                fact.heard, fact.ttl_s = self.now, TTL_S

    @rule(id=IDS, service=SERVICES, how=st.sampled_from(["drain", "deregister"]))
    def leave(self, id: str, service: str, how: str) -> None:
        fact = self.facts.get((service, id))
        try:
            getattr(self.registry, how)(id, service, self.now)
        except UnknownInstance:
            assert fact is None
        else:
            assert fact is not None
            if how == "deregister" or fact.absent_since is not None:
                del self.facts[service, id]
            else:
                fact.instance = replace(fact.instance, draining=True)

    @rule(seconds=st.sampled_from([0.1, 5.0, TTL_S, GRACE_S, ABSENT_S]))
    def time_goes_on(self, seconds: float) -> None:
        """As the service does it: whenever `next_at` says so."""
        until = self.now + seconds
        while self.registry.next_at() <= until:
            self.now = max(self.now, self.registry.next_at())
            self.registry.expire(self.now)
            self._time_in_model()
        self.now = until

    def _time_in_model(self) -> None:
        for key, fact in list(self.facts.items()):
            if fact.absent_since is not None:
                if fact.absent_since + ABSENT_S <= self.now:
                    del self.facts[key]
            elif not self.open.get(key) and fact.heard + fact.ttl_s <= self.now:
                if fact.instance.draining:
                    del self.facts[key]
                else:
                    fact.absent_since = self.now

    @rule(put_back=st.booleans())
    def publish(self, put_back: bool) -> None:
        """As the service does it; sometimes it cannot store."""
        services, instances, gone = self.registry.take_changed()
        if put_back:
            self.registry.put_back(services, instances, gone)
            services, instances, gone = self.registry.take_changed()
        for service in services:
            self.published[service] = self.registry.endpoints(service)
        self.stored.update((one.key, one) for one in instances)
        for key in gone:
            self.stored.pop(key, None)
        self._check_published()

    def _check_published(self) -> None:
        """Whatever differs was told; whatever was acknowledged is stored, as it is."""
        for service in ("inventory.default", "orders.default"):
            assert self.published.get(service, []) == self.registry.endpoints(service)
        assert self.stored.keys() == self.facts.keys()
        for key, one in self.stored.items():
            assert one == replace(self.facts[key].instance, absent=self.facts[key].absent_since is not None)

    @rule()
    def restart(self) -> None:
        """Killed and started again with what is stored: all connections are lost, all have the grace."""
        self.publish(put_back=False)
        self.registry, self.open = Registry(), {}
        self.registry.restore(sorted(self.stored.values(), key=lambda one: self.facts[one.key].order), self.now)
        for fact in self.facts.values():
            fact.heard, fact.ttl_s = self.now, GRACE_S
            if fact.absent_since is not None:
                fact.absent_since = self.now

    @invariant()
    def lists_what_it_must(self) -> None:
        """One entry per address; ready wins, and of those who registered last; none that drains."""
        for service in ("inventory.default", "orders.default"):
            best: dict[str, tuple[bool, int, str]] = {}
            for fact in self.facts.values():
                one = fact.instance
                if one.service == service and not one.draining:
                    rank = (fact.absent_since is None, fact.order, one.id)
                    best[one.address] = max(best.get(one.address, rank), rank)
            expected = [(address, best[address]) for address in sorted(best)]
            assert [(e["address"], e["state"], e["weight"]) for e in self.registry.endpoints(service)] == [
                (address, "ready" if ready else "absent", self.facts[service, id].instance.weight)
                for address, (ready, _, id) in expected
            ]


RegistryModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class TestRegistry(RegistryModel.TestCase):
    """At every step the registry lists what the model says, and nothing acknowledged is lost."""
