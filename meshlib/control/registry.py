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
4.  An instance and its polls belong to one service, by certificate: each service has ids of its own, and what another
    one calls its own is not known to it.
5.  Everything that ends is in one of three queues. Within a queue all wait equally long, so the first is the next, and
    `expire` costs what there is to do: it is asked often, with 10,000 instances.
6.  At a bound the oldest absent instance makes room; only where all are alive one more is refused. What is bounded is
    what callers get: instances, and bytes as they are sent.

Sources: Consul (the check, TTL, `deregister_critical_service_after`); Envoy's matrix of discovery and health.
"""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

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

ENTRY_BYTES_MAX = 2048
"""Bytes of one instance as its callers get it, in JSON: address, zone, weight and labels together; more are refused."""

ENDPOINTS_BYTES_MAX = 4 * 1024 * 1024
"""The same of all instances of one service: signed it is twice as much at the most, and a process takes 16 MiB. As at
INSTANCES_MAX, absent ones make room."""

Key = tuple[str, str]
"""(service, id) of an instance."""


class UnknownInstance(LookupError):
    """No such instance is registered."""


class RegistryFull(Exception):
    """There is no room for one more instance."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One server process as it described itself. `id` is unique in its `service`, canonical; `weight` 1 to 128.

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

    @property
    def key(self) -> Key:
        """(service, id)."""
        return self.service, self.id


@dataclass(frozen=True, slots=True)
class Listed:
    """An instance for the status. `state`: ready, absent or draining. `until`: when that ends; inf: a poll is open."""

    instance: Instance
    state: str
    until: float


class Registry:
    """All instances. One thread at a time; `now` is in seconds of a clock that never goes back."""

    __slots__ = (
        "_absent", "_bytes", "_changed", "_changed_services", "_grace", "_instances", "_leases", "_open", "_services",
    )  # fmt: skip

    def __init__(self) -> None:
        self._instances: dict[Key, Instance] = {}  # in the order of registration, as the next
        self._services: dict[str, dict[Key, None]] = {}
        self._bytes: Counter[str] = Counter()
        self._open: Counter[Key] = Counter()  # bounded by the connections
        self._grace: OrderedDict[Key, float] = OrderedDict()
        self._leases: OrderedDict[Key, float] = OrderedDict()
        self._absent: OrderedDict[Key, float] = OrderedDict()
        self._changed: dict[Key, None] = {}
        self._changed_services: set[str] = set()

    def restore(self, instances: Iterable[Instance], now: float, grace_s: float = GRACE_S) -> None:
        """What the store remembers, before anything else: every lease lasts for `grace_s` seconds."""
        for instance in instances:
            self._insert(instance)
            queue, wait_s = (self._absent, ABSENT_S) if instance.absent else (self._grace, grace_s)
            queue[instance.key] = now + wait_s

    def find(self, instance_id: str, service: str) -> Instance | None:
        """The instance, or None."""
        return self._instances.get((service, instance_id))

    def keys(self) -> Iterator[Key]:
        """Of all that are there, absent ones included; to be used before anything changes."""
        return iter(self._instances)

    def register(self, instance: Instance, now: float) -> None:
        """Add it, or replace what it was. The same content again only renews the lease; an absent one is ready again.

        RegistryFull; ValueError where it is beyond its bounds.
        """
        _check(instance)
        instance = replace(instance, absent=False)
        known = self._instances.get(instance.key)
        if known != instance:
            self._make_room(instance, known)
            self._remove(instance.key)
            self._insert(instance)
            self._mark(instance)
        self._renew(instance, now)

    def drain(self, instance_id: str, service: str, now: float) -> None:
        """It takes no new calls: it is listed no more, and gone once its lease ends. UnknownInstance."""
        instance = self._found(instance_id, service)
        if instance.absent:
            self._remove(instance.key)
        elif not instance.draining:
            self._update(replace(instance, draining=True))

    def deregister(self, instance_id: str, service: str, now: float) -> None:
        """It is gone. UnknownInstance."""
        self._remove(self._found(instance_id, service).key)

    def polling(self, instance_id: str, service: str, now: float) -> bool:
        """A poll began; the lease, if there is one, is held until `polled`. Is the instance registered?

        `service`: the caller's, by its certificate.
        """
        key = service, instance_id
        instance = self._instances.get(key)
        self._open[key] += 1
        if instance is None:
            return False
        self._unqueue(key)
        if instance.absent:
            self._update(replace(instance, absent=False))
        return True

    def polled(self, instance_id: str, service: str, now: float) -> None:
        """A poll that `polling` has counted ended, answered or not."""
        key = service, instance_id
        self._open[key] -= 1
        if self._open[key] <= 0:
            del self._open[key]
            if (instance := self._instances.get(key)) is not None:
                self._renew(instance, now)

    def expire(self, now: float) -> None:
        """Let happen whatever time it is for; `next_at` says when there is more."""
        for key in (*_due(self._grace, now), *_due(self._leases, now)):
            if self._instances[key].draining:
                self._remove(key)
            else:
                self._update(replace(self._instances[key], absent=True))
                self._absent[key] = now + ABSENT_S
        for key in _due(self._absent, now):
            self._remove(key)

    def next_at(self) -> float:
        """When `expire` has something to do, in the seconds of `now`; inf for never."""
        return min(next(iter(queue.values()), math.inf) for queue in self._queues())

    def endpoints(self, service: str) -> list[dict[str, Any]]:
        """The content of `endpoints/<service>`: one entry per address, sorted by it; [] where nobody is.

        Of several instances at an address one that is ready wins, and of those the one that registered last.
        """
        best: dict[str, Instance] = {}
        for key in self._services.get(service, ()):
            instance = self._instances[key]
            rival = best.get(instance.address)
            if not instance.draining and (rival is None or rival.absent or not instance.absent):
                best[instance.address] = instance
        return [_entry(best[address]) for address in sorted(best)]

    def instances(self) -> list[Listed]:
        """All that are there, in the order of registration."""
        until = {key: at for queue in self._queues() for key, at in queue.items()}
        return [Listed(one, _state(one), until.get(key, math.inf)) for key, one in self._instances.items()]

    def take_changed(self) -> tuple[set[str], list[Instance], list[Key]]:
        """Since last asked: services whose `endpoints` may differ; instances to store; those to delete there."""
        services, keys = self._changed_services, self._changed
        self._changed_services, self._changed = set(), {}
        stored = [self._instances[key] for key in keys if key in self._instances]
        return services, stored, [key for key in keys if key not in self._instances]

    def put_back(self, services: Iterable[str], instances: Iterable[Instance], gone: Iterable[Key]) -> None:
        """What `take_changed` gave could not be stored: it gives it again, as it is by then."""
        self._changed_services.update(services)
        self._changed.update(dict.fromkeys([*(instance.key for instance in instances), *gone]))

    def _found(self, instance_id: str, service: str) -> Instance:
        instance = self._instances.get((service, instance_id))
        if instance is None:
            raise UnknownInstance(f"no instance {instance_id!r} of {service} is registered")
        return instance

    def _make_room(self, instance: Instance, known: Instance | None) -> None:
        """For `instance`, which is to be in the place of `known`."""
        service = instance.service
        if known is None:
            if len(self._services.get(service, ())) >= SERVICE_INSTANCES_MAX:
                self._forget_absent(service, f"{service} has {SERVICE_INSTANCES_MAX} instances")
            if len(self._instances) >= INSTANCES_MAX:
                self._forget_absent(None, f"{INSTANCES_MAX} instances are registered")
        more = _size(instance) - (0 if known is None else _size(known))
        while more > 0 and self._bytes[service] + more > ENDPOINTS_BYTES_MAX:
            full = f"the instances of {service} describe themselves in {ENDPOINTS_BYTES_MAX} bytes"
            self._forget_absent(service, full, but=instance.key)

    def _forget_absent(self, service: str | None, full: str, but: Key | None = None) -> None:
        """The one that is absent longest, of one service or of all, is gone."""
        for key in self._absent:
            if service in (None, key[0]) and key != but:
                return self._remove(key)
        raise RegistryFull(f"{full}, all alive, and there is no room for one more; use several meshes")

    def _insert(self, instance: Instance) -> None:
        self._instances[instance.key] = instance
        self._services.setdefault(instance.service, {})[instance.key] = None
        self._bytes[instance.service] += _size(instance)
        self._changed_services.add(instance.service)

    def _update(self, instance: Instance) -> None:
        """Another state of it."""
        self._instances[instance.key] = instance
        self._mark(instance)

    def _remove(self, key: Key) -> None:
        self._unqueue(key)
        instance = self._instances.pop(key, None)
        if instance is not None:
            self._mark(instance)
            self._bytes[instance.service] -= _size(instance)
            del self._services[instance.service][key]
            if not self._services[instance.service]:
                del self._services[instance.service], self._bytes[instance.service]

    def _mark(self, instance: Instance) -> None:
        self._changed[instance.key] = None
        self._changed_services.add(instance.service)

    def _renew(self, instance: Instance, now: float) -> None:
        self._unqueue(instance.key)
        if not self._open.get(instance.key):
            self._leases[instance.key] = now + TTL_S

    def _unqueue(self, key: Key) -> None:
        for queue in self._queues():
            queue.pop(key, None)

    def _queues(self) -> tuple[OrderedDict[Key, float], ...]:
        return self._grace, self._leases, self._absent


def _due(queue: OrderedDict[Key, float], now: float) -> Iterator[Key]:
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


def _size(instance: Instance) -> int:
    """Bytes of its entry, in the longest of its states, and of what is between two entries."""
    return len(json.dumps(_entry(replace(instance, draining=True)), separators=(",", ":"))) + 1


def _check(instance: Instance) -> None:
    if len(instance.labels) > LABELS_MAX:
        raise ValueError(f"an instance has at most {LABELS_MAX} labels, this one has {len(instance.labels)}")
    if (size := _size(instance)) > ENTRY_BYTES_MAX:
        raise ValueError(
            f"an instance describes itself in at most {ENTRY_BYTES_MAX} bytes of JSON, zone and labels included, "
            f"this one in {size}"
        )
