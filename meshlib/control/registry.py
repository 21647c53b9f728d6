"""Which instances are there, and which of them are listed as endpoints. Pure: `now` is an argument.

    register ─▶ ready ── lease ended ─▶ absent ── ABSENT_S ─▶ gone          deregister: gone, from everywhere
                 ▲ │                      │
                 │ └─ drain ─▶ draining ── lease ended ─▶ gone
                 └── a poll, or registered again ──┘

1.  The poll of a process is its lease: it is held while a poll is open, and TTL_S after the last one ended. Polls of
    one instance may overlap, so they are counted; also those of an instance that registers only later.
2.  A poll keeps what is there, it makes nothing: an instance that was deregistered, or drains, stays so until it
    registers again. Registered again with the same content, nothing changes but the lease.
3.  An absent one is still listed, as such: whoever can reach it keeps it (F36). A draining one is not.
4.  An instance and its polls belong to one service, by certificate: nobody holds the lease of another's.
5.  Everything that ends is in one of three queues. Within a queue all wait equally long, so the first is the next, and
    `expire` costs what there is to do: it is asked often, with 10,000 instances.
6.  At a bound the oldest absent instance makes room; only where all are alive one more is refused.

Sources: Consul (the check, TTL, `deregister_critical_service_after`); Envoy's matrix of discovery and health.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import PermissionDenied

TTL_S = 15.0
"""A lease ends this long after the last poll of its instance ended, in seconds (F17)."""

ABSENT_S = 900.0
"""An instance whose lease has ended is listed as absent this long, in seconds, and then gone (F36: ≥ 10 min)."""

GRACE_S = 75.0
"""After a restart leases last this long, in seconds: reconnects are spread over up to 60 s, and a lease is 15 s."""

INSTANCES_MAX = 20_000
"""Instances in all. Beyond, the one that is absent longest goes; where none is absent, one more is refused."""

SERVICE_INSTANCES_MAX = 10_000
"""Instances of one service; the same happens as at INSTANCES_MAX. Each of its callers gets the list of all."""

LABELS_MAX = 64
"""Labels of one instance, as in mesh.yaml; one more is refused."""

LABELS_CHARS_MAX = 1024
"""Characters of all labels of one instance, names and values together; more are refused."""


class NotYours(PermissionDenied):
    """The instance belongs to another service than the caller's."""


class UnknownInstance(LookupError):
    """No such instance is registered."""


class RegistryFull(Exception):
    """There is no room for one more instance."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One server process as it described itself. `id` is unique in the mesh, `service` canonical, `weight` 1 to 128.

    `draining`: it takes no new calls. `absent`: its lease has ended.
    """

    id: str
    service: str
    address: str
    zone: str
    weight: int
    labels: Mapping[str, str]
    draining: bool = False
    absent: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    """An instance for the status. `state`: ready, absent or draining. `until`: when that ends; inf: a poll is open."""

    instance: Instance
    state: str
    until: float


class Registry:
    """All instances. One thread at a time; `now` is in seconds of a clock that never goes back."""

    __slots__ = ("_absent", "_changed", "_changed_services", "_grace", "_instances", "_leases", "_open", "_services")

    def __init__(self) -> None:
        self._instances: dict[str, Instance] = {}  # in the order of registration, as the next
        self._services: dict[str, dict[str, None]] = {}
        self._open: Counter[tuple[str, str]] = Counter()  # (service, instance_id); bounded by the connections
        self._grace: OrderedDict[str, float] = OrderedDict()
        self._leases: OrderedDict[str, float] = OrderedDict()
        self._absent: OrderedDict[str, float] = OrderedDict()
        self._changed: dict[str, None] = {}
        self._changed_services: set[str] = set()

    def restore(self, instances: Iterable[Instance], now: float, grace_s: float = GRACE_S) -> None:
        """What the store remembers, before anything else: every lease lasts for `grace_s` seconds."""
        for instance in instances:
            self._insert(instance)
            queue, wait_s = (self._absent, ABSENT_S) if instance.absent else (self._grace, grace_s)
            queue[instance.id] = now + wait_s

    def register(self, instance: Instance, now: float) -> None:
        """Add it, or replace what it was. The same content again only renews the lease; an absent one is ready again.

        NotYours; RegistryFull; ValueError where its labels are beyond their bounds.
        """
        _check_labels(instance.labels)
        instance, known = replace(instance, absent=False), self._known(instance.id, instance.service)
        if known is None:
            self._make_room(instance.service)
        if known != instance:
            self._remove(instance.id)
            self._insert(instance)
            self._mark(instance)
        self._renew(instance, now)

    def drain(self, instance_id: str, service: str, now: float) -> None:
        """It takes no new calls: it is listed no more, and gone once its lease ends. NotYours; UnknownInstance."""
        instance = self._found(instance_id, service)
        if instance.absent:
            self._remove(instance_id)
        elif not instance.draining:
            self._update(replace(instance, draining=True))

    def deregister(self, instance_id: str, service: str, now: float) -> None:
        """It is gone. NotYours; UnknownInstance."""
        self._found(instance_id, service)
        self._remove(instance_id)

    def polling(self, instance_id: str, service: str, now: float) -> bool:
        """A poll began; the lease, if there is one, is held until `polled`. Is the instance registered?

        `service`: the caller's, by its certificate. NotYours: then no poll is counted.
        """
        instance = self._known(instance_id, service)
        self._open[service, instance_id] += 1
        if instance is None:
            return False
        self._unqueue(instance_id)
        if instance.absent:
            self._update(replace(instance, absent=False))
        return True

    def polled(self, instance_id: str, service: str, now: float) -> None:
        """A poll that `polling` has counted ended, answered or not."""
        self._open[service, instance_id] -= 1
        if self._open[service, instance_id] <= 0:
            del self._open[service, instance_id]
            instance = self._instances.get(instance_id)
            if instance is not None and instance.service == service:
                self._renew(instance, now)

    def expire(self, now: float) -> None:
        """Let happen whatever time it is for; `next_at` says when there is more."""
        for instance_id in (*_due(self._grace, now), *_due(self._leases, now)):
            if self._instances[instance_id].draining:
                self._remove(instance_id)
            else:
                self._update(replace(self._instances[instance_id], absent=True))
                self._absent[instance_id] = now + ABSENT_S
        for instance_id in _due(self._absent, now):
            self._remove(instance_id)

    def next_at(self) -> float:
        """When `expire` has something to do, in the seconds of `now`; inf for never."""
        return min(next(iter(queue.values()), math.inf) for queue in self._queues())

    def endpoints(self, service: str) -> list[dict[str, Any]]:
        """The content of `endpoints/<service>`: one entry per address, sorted by it; [] where nobody is.

        Of several instances at an address one that is ready wins, and of those the one that registered last.
        """
        best: dict[str, Instance] = {}
        for instance_id in self._services.get(service, ()):
            instance = self._instances[instance_id]
            rival = best.get(instance.address)
            if not instance.draining and (rival is None or rival.absent or not instance.absent):
                best[instance.address] = instance
        return [_entry(best[address]) for address in sorted(best)]

    def instances(self) -> list[Listed]:
        """All that are there, in the order of registration."""
        until = {instance_id: at for queue in self._queues() for instance_id, at in queue.items()}
        return [Listed(one, _state(one), until.get(one.id, math.inf)) for one in self._instances.values()]

    def take_changed(self) -> tuple[set[str], list[Instance], list[str]]:
        """Since last asked: services whose `endpoints` may differ; instances to store; ids to delete from the store."""
        services, ids = self._changed_services, self._changed
        self._changed_services, self._changed = set(), {}
        stored = [self._instances[instance_id] for instance_id in ids if instance_id in self._instances]
        return services, stored, [instance_id for instance_id in ids if instance_id not in self._instances]

    def put_back(self, services: Iterable[str], instances: Iterable[Instance], gone: Iterable[str]) -> None:
        """What `take_changed` gave could not be stored: it gives it again, as it is by then."""
        self._changed_services.update(services)
        self._changed.update(dict.fromkeys([*(instance.id for instance in instances), *gone]))

    def _known(self, instance_id: str, service: str) -> Instance | None:
        instance = self._instances.get(instance_id)
        if instance is not None and instance.service != service:
            raise NotYours(f"instance {instance_id!r} is one of {instance.service}, and the caller is {service}")
        return instance

    def _found(self, instance_id: str, service: str) -> Instance:
        instance = self._known(instance_id, service)
        if instance is None:
            raise UnknownInstance(f"no instance {instance_id!r} of {service} is registered")
        return instance

    def _make_room(self, service: str) -> None:
        if len(self._services.get(service, ())) >= SERVICE_INSTANCES_MAX:
            self._forget_absent(service, f"{service} has {SERVICE_INSTANCES_MAX} instances")
        if len(self._instances) >= INSTANCES_MAX:
            self._forget_absent(None, f"{INSTANCES_MAX} instances are registered")

    def _forget_absent(self, service: str | None, full: str) -> None:
        """The one that is absent longest, of one service or of all, is gone."""
        for instance_id in self._absent:
            if service in (None, self._instances[instance_id].service):
                return self._remove(instance_id)
        raise RegistryFull(f"{full}, all alive, and there is no room for one more; use several meshes")

    def _insert(self, instance: Instance) -> None:
        self._instances[instance.id] = instance
        self._services.setdefault(instance.service, {})[instance.id] = None
        self._changed_services.add(instance.service)

    def _update(self, instance: Instance) -> None:
        self._instances[instance.id] = instance
        self._mark(instance)

    def _remove(self, instance_id: str) -> None:
        self._unqueue(instance_id)
        instance = self._instances.pop(instance_id, None)
        if instance is not None:
            self._mark(instance)
            del self._services[instance.service][instance_id]
            if not self._services[instance.service]:
                del self._services[instance.service]

    def _mark(self, instance: Instance) -> None:
        self._changed[instance.id] = None
        self._changed_services.add(instance.service)

    def _renew(self, instance: Instance, now: float) -> None:
        self._unqueue(instance.id)
        if not self._open.get((instance.service, instance.id)):
            self._leases[instance.id] = now + TTL_S

    def _unqueue(self, instance_id: str) -> None:
        for queue in self._queues():
            queue.pop(instance_id, None)

    def _queues(self) -> tuple[OrderedDict[str, float], ...]:
        return self._grace, self._leases, self._absent


def _due(queue: OrderedDict[str, float], now: float) -> Iterator[str]:
    """Take those from a queue whose time has come."""
    while queue and next(iter(queue.values())) <= now:
        yield queue.popitem(last=False)[0]


def _entry(instance: Instance) -> dict[str, Any]:
    return {
        "address": instance.address,
        "zone": instance.zone,
        "weight": instance.weight,
        "labels": dict(instance.labels),
        "state": _state(instance),
    }


def _state(instance: Instance) -> str:
    return "draining" if instance.draining else "absent" if instance.absent else "ready"


def _check_labels(labels: Mapping[str, str]) -> None:
    chars = sum(len(name) + len(value) for name, value in labels.items())
    if len(labels) > LABELS_MAX or chars > LABELS_CHARS_MAX:
        message = f"an instance has at most {LABELS_MAX} labels of together {LABELS_CHARS_MAX} characters"
        raise ValueError(f"{message}, this one has {len(labels)} of {chars}")
